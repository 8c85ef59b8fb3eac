import pickle
from typing import ClassVar

import numpy as np
import pytest
import torch

from ai.game import GymnasiumEnvironments, GymnasiumGame, Play, Search, SelfPlay, TicTacToe, check
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


class Shown(gymnasium.Env):
    """Shows samples of a space; its third action is allowed at every second step, and six steps end it."""

    opened: ClassVar[list] = []

    def __init__(self, space):
        self.observation_space, self.action_space, self.closed = space, gymnasium.spaces.Discrete(3, start=1), False
        Shown.opened.append(self)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self.steps = 0
        return self.observation_space.sample(), self.mask()

    def step(self, action):
        assert action in (1, 2, 3)
        self.steps += 1
        return self.observation_space.sample(), 1.0, self.steps == 6, False, self.mask()

    def mask(self):
        return {"action_mask": np.array([1, 1, self.steps % 2], np.int8)}

    def close(self):
        self.closed = True


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
    endless = lambda: Shown(gymnasium.spaces.Sequence(gymnasium.spaces.Discrete(3)))  # noqa: E731
    with pytest.raises(TypeError, match="environment must show something of a fixed size, got Sequence"):
        GymnasiumGame(endless)
    with pytest.raises(ValueError, match="those of GymnasiumGame cannot"):
        check(GymnasiumGame("CartPole-v1"))
    with pytest.raises(ValueError, match=r"discount must be in \(0, 1\], got 0"):
        GymnasiumGame("CartPole-v1", discount=0)


SPACES = {
    "discrete": (gymnasium.spaces.Discrete(5), (5,), np.float32),
    "dict": (
        gymnasium.spaces.Dict(a=gymnasium.spaces.Discrete(3), b=gymnasium.spaces.Box(0, 1, (2,))),
        (5,),
        np.float32,
    ),
    "tuple": (
        gymnasium.spaces.Tuple([gymnasium.spaces.Discrete(3), gymnasium.spaces.MultiBinary(4)]),
        (7,),
        np.float32,
    ),
    "frames": (gymnasium.spaces.Box(0, 255, (8, 6), np.uint8), (8, 6), np.uint8),
    "box": (gymnasium.spaces.Box(-1, 1, (3,), np.float64), (3,), np.float32),
}


@pytest.mark.parametrize(("space", "shape", "dtype"), SPACES.values(), ids=SPACES)
def test_it_shows_what_the_environment_shows(space, shape, dtype):
    game = GymnasiumGame(lambda: Shown(space))
    state = game.init(2, np.array([3, 4], np.uint64))
    space.seed(4)
    expected = space.sample()
    seen = game.observe(state)
    assert seen.shape == (2, *shape)
    assert seen.dtype == dtype
    flat = expected if isinstance(space, gymnasium.spaces.Box) else gymnasium.spaces.flatten(space, expected)
    np.testing.assert_array_equal(seen[1], np.asarray(flat, dtype))


def test_a_mask_tells_the_legal_actions():
    game = GymnasiumGame(lambda: Shown(gymnasium.spaces.Discrete(2)))
    state = game.init(2)
    np.testing.assert_array_equal(game.legal(state), [[True, True, False]] * 2)
    with pytest.raises(ValueError, match="action must be legal, got 2 in row 1"):
        game.step(state, np.array([0, 2]))
    state = game.step(state, np.array([0, 1]))
    assert game.legal(state).all()


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (1, r"info\['action_mask'\] must have shape \(3,\), got \(\)"),
        ([1], r"info\['action_mask'\] must have shape \(3,\), got \(1,\)"),
        ([0.0, -np.inf, 0.0], "a mask must be 1 where an action is legal and 0 where not"),
        ([0, 0, 0], r"info\['action_mask'\] must allow an action while the episode goes on, got zeros"),
    ],
)
def test_what_is_no_mask_of_the_actions_is_refused_and_not_spread_over_them(mask, said, monkeypatch):
    game = GymnasiumGame(lambda: Shown(gymnasium.spaces.Discrete(2)))
    state = game.init(1)
    monkeypatch.setattr(Shown, "mask", lambda env: {"action_mask": mask})
    with pytest.raises(ValueError, match=said):
        game.step(state, np.array([0]))
    with pytest.raises(ValueError, match=said):
        game.init(1)


@pytest.mark.parametrize("of", [GymnasiumGame, lambda *args, **how: GymnasiumEnvironments(*args, 2, **how)])
def test_what_makes_no_environment_is_named_and_no_option_is_dropped(of):
    with pytest.raises(TypeError, match=r"^environment must be a registered name or a function .*, got NoneType$"):
        of(None)
    with pytest.raises(TypeError, match=r"^environment must be a registered name .*, got TicTacToe, which lacks"):
        of(TicTacToe)
    with pytest.raises(ValueError, match=r"^options \(\['render_mode'\]\) must be given to gymnasium by the function"):
        of(lambda: Shown(gymnasium.spaces.Discrete(2)), render_mode="human")


def test_a_mask_of_an_episode_that_is_over_is_not_looked_at(monkeypatch):
    game = GymnasiumGame(lambda: Shown(gymnasium.spaces.Discrete(2)))
    state = game.init(1)
    for _ in range(5):
        state = game.step(state, np.array([0]))
    monkeypatch.setattr(Shown, "mask", lambda env: {"action_mask": np.zeros(3)})
    assert game.terminal(game.step(state, np.array([0]))).all()


def test_what_is_abandoned_is_used_again_and_closed_in_the_end():
    Shown.opened.clear()
    game = GymnasiumGame(lambda: Shown(gymnasium.spaces.Discrete(2)))
    for _ in range(4):
        state = game.init(3)
        state = game.step(state, np.zeros(3, int))
        game.release(state)
    assert len(Shown.opened) == 3
    with pytest.raises(ValueError, match="row 0 is not"):
        game.step(state, np.zeros(3, int))
    game.close()
    assert all(env.closed for env in Shown.opened)
    assert game.init(1).shape == (1,)  # and begins anew
    del game
    assert all(env.closed for env in Shown.opened)


def test_self_play_gives_back_what_it_cuts_off_and_keeps_frames_as_bytes():
    Shown.opened.clear()
    game = GymnasiumGame(lambda: Shown(gymnasium.spaces.Box(0, 255, (4, 4), np.uint8)))
    seen = set()

    class Frames(torch.nn.Module):
        def initial(self, observation):
            seen.add(observation.dtype)
            return observation.flatten(1), torch.zeros(len(observation), 3), torch.zeros(len(observation))

        def recurrent(self, embedding, action):
            n = len(embedding)
            return embedding, torch.zeros(n), torch.ones(n), torch.zeros(n, 3), torch.zeros(n)

    play = SelfPlay(game, Frames(), Play(games=2, simulations=2, max_moves=3))
    play.start(0, 0)
    for _ in range(8):
        episode = next(play)
        assert episode["obs"].dtype == np.uint8
        assert episode["obs"].shape == (4, 4, 4)
        assert episode["legal"][np.arange(3), episode["action"]].all()
    assert seen == {torch.float32}
    assert len(Shown.opened) == 2
    play.load_state_dict(play.state_dict())
    next(play)
    assert len(Shown.opened) == 2


def test_atari_is_registered_when_it_is_asked_for():
    pytest.importorskip("ale_py")
    game = GymnasiumGame("ALE/Pong-v5", frameskip=4)
    state = game.init(1, 0)
    assert game.observe(state).dtype == np.uint8
    game.close()
