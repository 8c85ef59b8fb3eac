import pickle

import numpy as np
import pytest
import torch

from ai.game import GymnasiumGame, Play, Search, SelfPlay, check
from ai.game.protocol import Game

gymnasium = pytest.importorskip("gymnasium")


class Model(torch.nn.Module):
    """A learned model of nothing: the embedding is what was seen."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(4, 3, generator=torch.Generator().manual_seed(0)))

    def initial(self, observation):
        out = observation.float() @ self.weight
        return observation.float(), out[:, :2], out[:, 2]

    def recurrent(self, embedding, action):
        after = embedding * 0.9 + torch.as_tensor(action)[:, None] * 0.1
        _, logits, value = self.initial(after)
        ones = torch.ones(len(after))
        return after, ones, 0.99 * ones, logits, value


def test_it_plays_as_the_environment_itself():
    game, rng = GymnasiumGame("CartPole-v1"), np.random.default_rng(0)
    assert isinstance(game, Game)
    seeds = np.array([3, 5], np.uint64)
    state = game.init(2, seeds)
    ours = [[], []]
    actions = [[], []]
    while not game.terminal(state).all():
        action = rng.integers(0, 2, 2)
        live = ~game.terminal(state)
        state = game.step(state, action)
        for row in np.flatnonzero(live):
            actions[row].append(int(action[row]))
            ours[row].append((state["seen"][row].tolist(), float(game.reward(state)[row])))
    for row, seed in enumerate(seeds):
        env = gymnasium.make("CartPole-v1")
        env.reset(seed=int(seed))
        theirs = [env.step(a) for a in actions[row]]
        assert [(np.float32(seen).tolist(), reward) for seen, reward, *_ in theirs] == ours[row]
        assert theirs[-1][2]
        assert not any(ended for _, _, ended, _, _ in theirs[:-1])


def test_an_instance_is_used_again_after_its_episode():
    game = GymnasiumGame("CartPole-v1")
    for seed in range(5):
        state = game.init(2, seed)
        while not game.terminal(state).all():
            state = game.step(state, np.zeros(2, np.int64))
    assert len(game._pool) == 2


def test_only_the_newest_state_goes_on():
    game = GymnasiumGame("CartPole-v1")
    state = game.init(2, 0)
    game.step(state, np.array([0, 1]))
    with pytest.raises(ValueError, match="state must be the newest of its environment, row 0 is not"):
        game.step(state, np.array([0, 1]))
    fresh = game.init(1, 1)
    with pytest.raises(ValueError, match="state must hold each environment once"):
        game.step(np.repeat(fresh, 2), np.array([0, 1]))
    uniform = lambda seen: (torch.zeros(len(seen), 2), torch.zeros(len(seen)))  # noqa: E731
    with pytest.raises(ValueError, match="cannot be copied, so search them with a learned model"):
        Search(game, uniform, simulations=4)(game.init(1, 2))


def test_self_play_searches_a_learned_model_and_keeps_a_value_beyond_a_time_limit():
    game = GymnasiumGame("CartPole-v1", max_episode_steps=6, discount=0.9)
    play = SelfPlay(game, Model(), Play(games=3, simulations=4))
    play.start(0, 0)
    for _ in range(5):
        episode = next(play)
        assert len(episode["action"]) == 6
        assert episode["truncated"]
        assert episode["discount"].tolist() == pytest.approx([0.9] * 6)
    game = GymnasiumGame("CartPole-v1", discount=0.9)
    play = SelfPlay(game, Model(), Play(games=3, simulations=4))
    play.start(0, 0)
    episode = next(play)
    assert not episode["truncated"]
    assert episode["discount"][-1] == 0


def test_a_restored_source_starts_new_episodes():
    play = SelfPlay(GymnasiumGame("CartPole-v1"), Model(), Play(games=2, simulations=2))
    play.start(0, 0)
    next(play)
    state = play.state_dict()
    again = SelfPlay(GymnasiumGame("CartPole-v1"), Model(), Play(games=2, simulations=2))
    again.start(7, 0)
    again.load_state_dict(state)
    assert again.stats == play.stats
    assert next(again)["reward"].sum() > 0


def test_a_copy_makes_its_own_instances():
    game = GymnasiumGame("CartPole-v1")
    state = game.init(1, 0)
    copy = pickle.loads(pickle.dumps(game))
    assert copy.num_actions == 2
    np.testing.assert_array_equal(copy.init(1, 0)["seen"], state["seen"])
    game.step(state, np.array([0]))  # the copy's play did not touch this one's


def test_what_it_cannot_play_is_refused():
    with pytest.raises(TypeError, match="environment must have discrete actions, got Box"):
        GymnasiumGame("Pendulum-v1")
    with pytest.raises(TypeError, match="environment must show a box of numbers, got Discrete"):
        GymnasiumGame("Taxi-v3" if "Taxi-v3" in gymnasium.registry else "CliffWalking-v1")
    with pytest.raises(ValueError, match="those of GymnasiumGame cannot"):
        check(GymnasiumGame("CartPole-v1"))
    with pytest.raises(ValueError, match=r"discount must be in \(0, 1\], got 0"):
        GymnasiumGame("CartPole-v1", discount=0)
