"""What PPO, DQN and SAC share: environments by name, a recorded run, returns and films of an agent."""
