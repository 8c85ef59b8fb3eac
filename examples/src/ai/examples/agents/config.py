"""The options that every agent's run has, and those of learning from a buffer."""

from dataclasses import dataclass


@dataclass(frozen=True)
class AgentConfig:
    """What every such run needs; every field is an option of the command line."""

    env: str = "CartPole-v1"
    """A name of Gymnasium; `ALE/…` takes ALE's own vector environment."""
    num_envs: int = 8
    """Environments side by side."""
    total_steps: int = 100_000
    """Steps of all environments together."""
    timelimit: float | None = None
    """Seconds after which training stops with what it has, such as on a machine that is lent; None for all steps."""
    gamma: float = 0.99
    """What a later reward is worth a step earlier."""
    learning_rate: float = 1e-3
    """Of Adam."""
    anneal: bool = False
    """Whether the learning rate falls to 0 in a straight line."""
    clip_norm: float | None = None
    """Largest norm of a gradient."""
    goal: float | None = None
    """The mean return of 20 training episodes in a row that counts as solved, for `solved_at`."""
    trial: str = "agent"
    """The trial's folder, relative to $AI_LAB_PATH (else ./ai-lab) unless absolute."""
    resume: bool = False
    """Go on from the trial's last snapshot instead of starting anew."""
    clean: bool = False
    """Delete what an earlier run left in the trial's folder, which is else kept beside it."""
    task_interval: int | None = None
    """Updates between two measurements; None measures ten times in all."""
    episodes: int = 20
    """Of a measurement while training."""
    final_episodes: int = 100
    """Of the measurement at the end, of the best snapshot."""
    film: bool = False
    """Whether to keep pictures of the agent in the trial, and at the end a film; needs pygame."""
    device: str = "cpu"
    """Where the model learns and acts."""
    seed: int = 0
    """Seeds the weights, the environments and the order of the data."""

    def __post_init__(self) -> None:
        for name in ("num_envs", "total_steps", "episodes", "final_episodes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.timelimit is not None and not self.timelimit > 0:
            raise ValueError(f"timelimit must be positive or None, got {self.timelimit}")


@dataclass(frozen=True)
class ReplayConfig(AgentConfig):
    """What a run that learns from a buffer needs besides."""

    batch_size: int = 64
    """Steps in a batch."""
    replay_ratio: float = 32.0
    """How often a step is learnt from on average; batch_size for an update a step."""
    min_steps: int = 1000
    """Steps before the first update."""
    buffer: int = 100_000
    """Rows kept: one a step, and one more wherever a rollout or an episode ends."""
    n_step: int = 1
    """Rewards before the value takes over."""

    @property
    def updates(self) -> int:
        """Updates that all steps allow."""
        return max(1, int((self.total_steps - self.min_steps) * self.replay_ratio / self.batch_size))
