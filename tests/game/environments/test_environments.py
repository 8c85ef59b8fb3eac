"""Environments of several libraries behind one protocol."""

import copy
import pickle
import re

import gymnasium as gym
import numpy as np
import pytest
import torch

import ai.model as m
from ai.data import ReplayBuffer
from ai.game import (
    CartPole,
    Environments,
    GameEnvironments,
    GymnasiumEnvironments,
    GymnasiumGame,
    Hog,
    ParallelEnvironments,
    Rollouts,
    ScalarChanceGame,
    TicTacToe,
    VectorEnvironments,
)


def rollout(env, actions, seed=0):
    seen = [env.reset(seed)]
    steps = []
    for action in actions:
        obs, *rest = env.step(action)
        seen.append(obs)
        steps.append(rest)
    return np.array(seen), [np.array(column) for column in zip(*steps, strict=True)]


@pytest.mark.parametrize(
    "make",
    [
        lambda: GameEnvironments(CartPole(max_steps=15), 3),
        lambda: GymnasiumEnvironments("CartPole-v1", 3, max_episode_steps=15),
        lambda: VectorEnvironments("CartPole-v1", 3, vectorization_mode="sync", max_episode_steps=15),
    ],
    ids=["game", "gymnasium", "vector"],
)
def test_episodes_end_and_are_cut_and_begin_anew_one_step_later(make):
    env = make()
    assert isinstance(env, Environments)
    assert (env.num, env.num_actions, env.observation_shape) == (3, 2, (4,))
    actions = np.arange(200)[:, None].repeat(3, 1) // np.array([1, 2, 5]) % 2
    seen, (reward, ended, cut) = rollout(env, actions)
    assert reward.dtype == np.float32
    assert not (ended & cut).any()
    assert ended.any()
    assert cut.any()
    over = ended | cut
    fallen = (np.abs(seen[1:, :, 2]) > 12 * 2 * np.pi / 360) | (np.abs(seen[1:, :, 0]) > 2.4)
    assert (ended == fallen).all()  # what is seen at an end is the true last moment
    begun = np.roll(over, 1, axis=0)
    begun[0] = False
    assert (np.abs(seen[1:][begun]) <= 0.05).all()
    assert (reward == np.where(begun, 0, 1)).all()


@pytest.mark.parametrize(
    "make",
    [
        lambda kind: GymnasiumEnvironments(kind, 1),
        lambda kind: VectorEnvironments(lambda: gym.vector.SyncVectorEnv([kind])),
    ],
    ids=["gymnasium", "vector"],
)
def test_an_episode_that_ends_where_its_time_is_up_has_ended(make):
    class Last(gym.Env):
        observation_space, action_space = gym.spaces.Box(-9, 9, (1,)), gym.spaces.Discrete(2)

        def reset(self, *, seed=None, options=None):
            return np.zeros(1, np.float32), {}

        def step(self, action):
            return np.ones(1, np.float32), 1.0, True, True, {}

    env = make(Last)
    env.reset(0)
    _, _, ended, cut = env.step(np.zeros(1, int))
    assert (ended.tolist(), cut.tolist()) == ([True], [False])


def test_instances_of_gymnasium_are_those_of_the_library_itself():
    env = GymnasiumEnvironments("CartPole-v1", 2)
    obs = env.reset(3)
    plain = gym.make("CartPole-v1")
    plain.reset(seed=0)
    plain.unwrapped.state = np.array(env._envs[1].unwrapped.state)
    for action in (0, 1, 1, 0, 1):
        obs, reward, *_ = env.step(np.array([0, action]))
        theirs, their_reward, *_ = plain.step(action)
        np.testing.assert_array_equal(obs[1], theirs)
        assert reward[1] == their_reward


@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1", "MountainCarContinuous-v0"])
def test_gymnasium_goes_on_from_a_state_without_pickle(name):
    rng = np.random.default_rng(0)
    a, b = GymnasiumEnvironments(name, 3), GymnasiumEnvironments(name, 3)

    def action():
        return rng.integers(0, 2, 3) if a.num_actions else rng.uniform(-1, 1, (3, *a.action_shape))

    a.reset(5)
    for _ in range(40):
        a.step(action())
    b.load_state_dict(copy.deepcopy(a.state_dict()))
    for _ in range(40):
        taken = action()
        for x, y in zip(a.step(taken), b.step(taken), strict=True):
            np.testing.assert_array_equal(x, y)


def test_games_go_on_from_a_state():
    a, b = (GameEnvironments(CartPole(), 3) for _ in range(2))
    a.reset(5)
    for _ in range(40):
        a.step(np.array([0, 1, 0]))
    b.load_state_dict(copy.deepcopy(a.state_dict()))
    for x, y in zip(a.step(np.array([1, 1, 0])), b.step(np.array([1, 1, 0])), strict=True):
        np.testing.assert_array_equal(x, y)


class Tosses(ScalarChanceGame):
    """One player bids, and a coin is tossed, three times: heads, one in four, pays the bid."""

    num_players, num_actions, observation_shape = 1, 2, (1,)
    dtype = np.dtype([("moves", "i4"), ("bid", "i4"), ("player", "i1"), ("over", "i1"), ("reward", "f4")])

    @staticmethod
    def play_row(s, action):
        tossed = s["moves"] % 2
        s["reward"] = s["bid"] * action * tossed
        s["bid"] = (action + 1) * (1 - tossed)
        s["moves"] += 1
        s["over"] = s["moves"] == 6

    @staticmethod
    def legal_row(s, out):
        out[0] = out[1] = True

    @staticmethod
    def chance_row(s, out):
        out[0], out[1] = 0.75 * (s["moves"] % 2), 0.25 * (s["moves"] % 2)

    @staticmethod
    def observe_row(s, out):
        out[0] = s["moves"]


def test_luck_moves_by_its_odds_between_the_moves_that_are_asked_for():
    env, resumed = (GameEnvironments(Tosses(), 500) for _ in range(2))
    env.reset(0)
    bids, paid = np.arange(500) % 2, []
    for move in range(7):  # three of a game, its begin anew, three more
        if move == 4:
            resumed.load_state_dict(copy.deepcopy(env.state_dict()))
        seen, reward, ended, cut = env.step(bids)
        if move >= 4:
            other, *rest = resumed.step(bids)
            for one, same in zip((seen["obs"], reward, ended, cut), (other["obs"], *rest), strict=True):
                np.testing.assert_array_equal(one, same)
        np.testing.assert_array_equal(seen["obs"][:, 0], 2 * ((move + 1) % 4))
        np.testing.assert_array_equal(seen["legal"].all(axis=1), ~ended)  # shown also to one player, beside outcomes
        assert ended.all() == ended.any() == (move in (2, 6))
        assert set(reward) == ({0} if move == 3 else {0, 1, 2})
        paid.append(reward > 0)
    won = np.stack([row for move, row in enumerate(paid) if move != 3])
    assert abs(won.mean() - 0.25) < 0.04
    assert len(np.unique(won, axis=0)) == 6  # no toss is that of another move, or of the game before


def test_what_luck_brings_is_paid_to_the_player_who_moved():
    env = GameEnvironments(Hog(goal=6, dice=2), 40)
    seen, over, won = env.reset(3), np.zeros(40, bool), 0
    for _ in range(30):
        np.testing.assert_array_equal(seen["legal"][~over], [[True, True] + [False] * 11] * int((~over).sum()))
        seen, reward, ended, _ = env.step(np.ones(40, np.int64))
        np.testing.assert_array_equal(reward, ended)
        over, won = ended, won + ended.sum()
    assert won > 100


def test_a_state_of_other_games_is_refused_and_changes_nothing():
    env, other = GameEnvironments(CartPole(), 3), GameEnvironments(CartPole(), 2)
    env.reset(0)
    other.reset(0)
    before = env.state_dict()
    with pytest.raises(ValueError, match=r"state must be of 3 games of \d+ bytes, got \(2, \d+\)"):
        env.load_state_dict(other.state_dict())
    for name, value in before.items():
        np.testing.assert_array_equal(env.state_dict()[name], value)


@pytest.mark.parametrize("num", [1, 2])
@pytest.mark.parametrize(
    "kind", [lambda n: GameEnvironments(CartPole(), n), lambda n: GymnasiumEnvironments("CartPole-v1", n)]
)
def test_environments_that_have_not_begun_say_so(kind, num):
    env = kind(num)
    for ask in (lambda: env.step(np.zeros(num, np.int64)), env.state_dict):
        with pytest.raises(RuntimeError, match=r"reset\(seed\) must be called before the first step or state"):
            ask()


@pytest.mark.parametrize(
    "env",
    [
        GameEnvironments(CartPole(), 3),
        GymnasiumEnvironments("CartPole-v1", 3),
        VectorEnvironments("CartPole-v1", 3, vectorization_mode="sync"),
    ],
    ids=["game", "gymnasium", "vector"],
)
def test_rows_of_neighbouring_seeds_begin_apart(env):
    begun = np.concatenate([env.reset(seed) for seed in (0, 1, 2, 2**40)])
    assert len(np.unique(begun, axis=0)) == 12


@pytest.mark.parametrize("env", [GymnasiumEnvironments, VectorEnvironments])
def test_boxes_are_reached_from_minus_one_to_one(env):
    class Shows(gym.Env):
        observation_space, action_space = (
            gym.spaces.Box(-9, 9, (2,)),
            gym.spaces.Box(np.float32([-2, 0]), np.float32([2, 8])),
        )

        def reset(self, seed=None, options=None):
            return np.zeros(2, np.float32), {}

        def step(self, action):
            return np.array(action), 0.0, False, False, {}

    make = Shows if env is GymnasiumEnvironments else lambda: gym.vector.SyncVectorEnv([Shows, Shows, Shows])
    env = env(make, *((3,) if env is GymnasiumEnvironments else ()))
    env.reset(0)
    seen, *_ = env.step(np.array([[-1, -1], [0.5, 0.5], [7, 1]]))
    assert seen.tolist() == [[-2, 0], [1, 6], [2, 8]]
    with pytest.raises(ValueError, match=r"action must have shape \(3, 2\), got \(3,\)"):
        env.step(np.zeros(3))


def test_choices_count_from_the_start_of_the_space_and_must_lie_in_it():
    class Shows(gym.Env):
        observation_space, action_space = gym.spaces.Discrete(99), gym.spaces.Discrete(3, start=5)

        def reset(self, seed=None, options=None):
            return 0, {}

        def step(self, action):
            return action, 0.0, False, False, {}

    env = GymnasiumEnvironments(Shows, 3)
    assert env.reset(0).tolist() == [0, 0, 0]
    assert env.step(np.array([0, 1, 2]))[0].tolist() == [5, 6, 7]
    with pytest.raises(ValueError, match=r"action must be in \[0, 3\), got \[0, 3, 0\]"):
        env.step(np.array([0, 3, 0]))


class Goals(gym.Env):
    observation_space = gym.spaces.Dict(
        {k: gym.spaces.Box(-9, 9, (1,)) for k in ("observation", "achieved_goal", "desired_goal")}
    )
    action_space = gym.spaces.Discrete(2)

    def reset(self, seed=None, options=None):
        self.t = 0
        return self.seen(), {"action_mask": np.array([1, 0], np.int8)}

    def step(self, action):
        self.t += 1
        return self.seen(), 1.0, self.t == 2, False, {"action_mask": np.array([self.t % 2, 1], np.int8)}

    def seen(self):
        return {k: np.float32([self.t + n]) for n, k in enumerate(self.observation_space.spaces)}


@pytest.mark.parametrize(
    "make",
    [
        lambda: GymnasiumEnvironments(Goals, 2, mask=True),
        lambda: VectorEnvironments(lambda: gym.vector.SyncVectorEnv([Goals, Goals]), mask=True),
    ],
    ids=["gymnasium", "vector"],
)
def test_goals_and_masks_are_seen_by_our_keys(make):
    env = make()
    first = env.reset(0)
    assert first["legal"].tolist() == [[True, False]] * 2
    later = [env.step(np.zeros(2, int))[0] for _ in range(3)]
    by_time = [[float(seen[key][0, 0]) for seen in later] for key in ("obs", "achieved", "goal")]
    offsets = {key: n for n, key in enumerate(Goals.observation_space.spaces)}
    assert by_time == [[t + offsets[k] for t in (1, 2, 0)] for k in ("observation", "achieved_goal", "desired_goal")]
    assert [seen["legal"][1].tolist() for seen in later] == [[True, True], [False, True], [True, False]]
    assert first["legal"].tolist() == [[True, False]] * 2  # what was given is not changed later


def test_a_mask_that_is_not_there_is_an_error():
    env = GymnasiumEnvironments("CartPole-v1", 1, mask=True)
    with pytest.raises(
        ValueError, match=r"mask=True needs an environment with info\['action_mask'\] at every step, got \[\]"
    ):
        env.reset(0)


class Masked(gym.Env):
    """Shows which one of three actions may be taken, as PettingZoo does."""

    observation_space = gym.spaces.Dict(
        {"observation": gym.spaces.Box(0, 9, (1,)), "action_mask": gym.spaces.MultiBinary(3)}
    )
    action_space = gym.spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        self.t = 0
        return self.seen(), {}

    def step(self, action):
        assert action == self.t % 3
        self.t += 1
        return self.seen(), 1.0, self.t == 5, False, {}

    def seen(self):
        return {"observation": np.float32([self.t]), "action_mask": np.eye(3, dtype=np.int8)[self.t % 3]}


@pytest.mark.parametrize(
    "make",
    [
        lambda kind: GymnasiumEnvironments(kind, 2),
        lambda kind: VectorEnvironments(lambda: gym.vector.SyncVectorEnv([kind, kind])),
    ],
    ids=["gymnasium", "vector"],
)
def test_a_mask_in_what_is_seen_is_kept_to(make):
    env = make(Masked)
    with pytest.raises(AssertionError):
        [env.reset(0), env.step(np.array([2, 2]))]
    likes_the_last = lambda obs: (m.Categorical(torch.tensor([[0.0, 0.0, 9.0]] * len(obs))), obs[:, 0])  # noqa: E731
    model = m.Model(torch.nn.Identity())
    model.forward = likes_the_last
    source = Rollouts(env, model, steps=8)
    source.start(0, 0)
    made = next(source).columns
    assert made["legal"].dtype == bool
    assert made["legal"].sum() == len(made["legal"])
    assert made["action"][:5].tolist() == [0, 1, 2, 0, 1]


def test_masks_that_fit_no_choice_or_come_from_two_places_are_refused():
    with pytest.raises(ValueError, match="mask must be False where observations hold a mask themselves"):
        GymnasiumEnvironments(Masked, 1, mask=True)
    with pytest.raises(TypeError, match=r"a mask needs one choice among numbered actions, got actions of shape \(1,\)"):
        GymnasiumEnvironments("Pendulum-v1", 1, mask=True)

    class Wide(Masked):
        action_space = gym.spaces.Discrete(4)

    with pytest.raises(ValueError, match=r"the mask in observations must have shape \(4,\), got \(3,\)"):
        GymnasiumEnvironments(Wide, 1)


def telling(mask):
    """Instances that give this mask beside what is seen, or within it."""

    class Telling(gym.Env):
        action_space = gym.spaces.Discrete(3)

        def __init__(self, within=False):
            self.within, box = within, gym.spaces.Box(-9, 9, (1,))
            masks = gym.spaces.Box(-np.inf, np.inf, (3,))
            self.observation_space = gym.spaces.Dict({"obs": box, "action_mask": masks}) if within else box

        def reset(self, *, seed=None, options=None):
            obs = np.zeros(1, np.float32)
            return ({"obs": obs, "action_mask": mask}, {}) if self.within else (obs, {"action_mask": mask})

    return Telling


@pytest.mark.parametrize(
    ("mask", "shape"), [(np.True_, ()), (None, ()), ([1], (1,)), ([0, 2], (2,)), (np.ones((1, 3)), (1, 3))]
)
def test_a_mask_beside_what_is_seen_that_would_spread_over_all_actions_is_refused(mask, shape):
    kind = telling(mask)
    for num, env in (
        ((), GymnasiumEnvironments(kind, 1, mask=True)),
        ((1,), VectorEnvironments(lambda: gym.vector.SyncVectorEnv([kind]), mask=True)),
    ):
        wanted = re.escape(f"info['action_mask'] must have shape {(*num, 3)}, got {(*num, *shape)}")
        with pytest.raises(ValueError, match=wanted):
            env.reset(0)


@pytest.mark.parametrize("mask", [np.array([0, 1, 2]), np.float32([0, -np.inf, 0])])
def test_numbers_of_actions_and_what_is_added_to_logits_are_no_masks(mask):
    kind = telling(mask)
    said = re.escape(f"a mask must be 1 where an action is legal and 0 where not, got {mask.tolist()}"[:-1])
    with pytest.raises(ValueError, match=said):
        GymnasiumEnvironments(kind, 1, mask=True).reset(0)
    inside = GymnasiumEnvironments(lambda: kind(within=True), 1)
    source = Rollouts(inside, m.Model(torch.nn.Identity()), steps=1)
    with pytest.raises(ValueError, match="a mask must be 1 where an action is legal and 0 where not"):
        source.start(0, 0)


class Pair:
    """A parallel environment: agent b is done after two steps, a after four (cut off)."""

    possible_agents = ("a", "b")

    def observation_space(self, agent):
        return gym.spaces.Box(0, 99, (1,))

    def action_space(self, agent):
        return gym.spaces.Discrete(4)

    def reset(self, seed=None, options=None):
        self.agents, self.t = ["a", "b"], 0
        return {a: np.float32([0]) for a in self.agents}, {}

    def step(self, actions):
        assert set(actions) == set(self.agents)
        self.t += 1
        live, limit = self.agents, {"a": 4, "b": 2}
        self.agents = [a for a in live if self.t < limit[a]]
        end = {a: a == "b" and self.t == 2 for a in live}
        cut = {a: a == "a" and self.t == 4 for a in live}
        return (
            {a: np.float32([self.t]) for a in live},
            {a: float(actions[a]) for a in live},
            end,
            cut,
            {a: {} for a in live},
        )


def test_agents_are_rows_and_wait_for_each_other():
    env = ParallelEnvironments(Pair, 2)
    assert isinstance(env, Environments)
    assert env.num == 4
    seen, (reward, ended, cut) = rollout(env, [np.array([1, 2, 3, 3])] * 6)
    assert seen[:, 0, 0].tolist() == [0, 1, 2, 3, 4, 0, 1]
    assert reward[:, :2].tolist() == [[1, 2], [1, 2], [1, 0], [1, 0], [0, 0], [1, 2]]
    assert ended[:, 1].tolist() == [False, True, True, True, False, False]
    assert cut[:, 0].tolist() == [False, False, False, True, False, False]
    assert not ended[:, 0].any()
    assert seen[:, 2:].tolist() == seen[:, :2].tolist()


def test_agents_of_different_kinds_are_refused():
    class Unlike(Pair):
        def action_space(self, agent):
            return gym.spaces.Discrete(2 if agent == "a" else 3)

    with pytest.raises(ValueError, match="agents must share one space of observations and one of actions"):
        ParallelEnvironments(Unlike, 1)


def test_agents_with_other_bounds_and_agents_that_come_later_are_refused():
    class Bounds(Pair):
        def action_space(self, agent):  # the two print alike
            return gym.spaces.Box(np.array([-1, -1, -2 if agent == "a" else -1, -2]), np.ones(4), dtype=np.float64)

    class Later(Pair):
        def reset(self, seed=None, options=None):
            shown, info = super().reset(seed=seed)
            return {"a": shown["a"]}, info

    with pytest.raises(ValueError, match=r"those of \['b'\] are not those of 'a'"):
        ParallelEnvironments(Bounds, 1)
    with pytest.raises(ValueError, match=r"must begin with all of possible_agents, \['b'\] are not there"):
        ParallelEnvironments(Later, 1).reset(0)


def test_agents_go_when_they_are_done_and_no_sooner():
    class Stays(Pair):
        def step(self, actions):
            before = self.agents
            told = super().step(actions)
            self.agents = before
            return told

    class Vanishes(Pair):
        def step(self, actions):
            seen, reward, end, cut, info = super().step(actions)
            return seen, reward, dict.fromkeys(end, False), cut, info

    class Returns(Pair):
        def step(self, actions):
            told = super().step(actions)
            if self.t == 3:
                self.agents = ["a", "b"]
            return told

    class Silent(Pair):
        def step(self, actions):
            seen, *told = super().step(actions)
            return {agent: shown for agent, shown in seen.items() if agent in self.agents}, *told

    for kind, steps, rule in (
        (Silent, 2, r"observations must tell of all agents that acted, also at their end, \['b'\] are missing"),
        (Stays, 2, r"must be gone from agents, \['b'\] are there"),
        (Vanishes, 2, r"must be terminated or truncated when they go from agents, \['b'\] are neither"),
        (Returns, 3, r"must be gone from agents, \['b'\] are there"),
    ):
        env = ParallelEnvironments(kind, 1)
        env.reset(0)
        for _ in range(steps - 1):
            env.step(np.zeros(2, int))
        with pytest.raises(ValueError, match=rule):
            env.step(np.zeros(2, int))


def test_two_rows_are_never_one_instance_and_no_step_comes_before_the_reset():
    one = Pair()
    with pytest.raises(ValueError, match="make must give another instance each time"):
        ParallelEnvironments(lambda: one, 2).reset(0)
    with pytest.raises(RuntimeError, match=r"reset\(seed\) must be called before the first step"):
        ParallelEnvironments(Pair, 1).step(np.zeros(2, int))


@pytest.mark.parametrize(
    "make",
    [
        lambda: GymnasiumEnvironments("CartPole-v1", 2),
        lambda: VectorEnvironments("CartPole-v1", 2, vectorization_mode="sync"),
        lambda: ParallelEnvironments(Pair, 1),
    ],
)
def test_copies_make_instances_of_their_own(make):
    env = make()
    twin = pickle.loads(pickle.dumps(env)) if not isinstance(env, ParallelEnvironments) else copy.deepcopy(env)
    first = env.reset(0)
    with pytest.raises(RuntimeError, match=r"reset\(seed\) must be called before the first step"):
        copy.copy(env).step(np.zeros(2, int))
    np.testing.assert_array_equal(twin.reset(0), first)
    env.step(np.zeros(2, int))
    np.testing.assert_array_equal(twin.reset(0), first)


def test_ale_steps_in_its_own_vector_environment():
    env = VectorEnvironments("ALE/Pong-v5", 2, num_threads=1)
    assert (env.observation_shape, env.num_actions) == ((4, 84, 84), 6)
    first = env.reset(0)
    seen, reward, ended, cut = env.step(np.array([0, 1]))
    assert first.dtype == seen.dtype == np.uint8
    assert (first[:, -1] == seen[:, -2]).all()
    assert (reward.dtype, ended.dtype, cut.dtype) == (np.float32, bool, bool)
    env.close()


def test_frames_that_are_stored_once_are_stacked_as_ale_shows_them_from_an_episodes_first_on():
    env = VectorEnvironments("ALE/Pong-v5", 2, num_threads=1, noop_max=0, max_num_frames_per_episode=20)  # five steps
    shown = set()

    def act(model, seen, generator, n_steps):
        shown.update(stack.numpy().tobytes() for stack in seen["obs"])
        return {"action": torch.tensor([2, 3])}

    source = Rollouts(env, torch.nn.Identity(), act, steps=6, context=3, newest_frame=True)
    source.start(0, 0)
    buffer = ReplayBuffer(60, n_step=1, frame_stack=4)
    for _ in range(2):
        buffer.extend(next(source))
    drawn = buffer.sample(32)["obs"]
    assert all(stack.numpy().tobytes() in shown for stack in drawn)
    first = (drawn[:, 2] == 0).flatten(1).all(1)  # no frame before it: zeros in both
    assert 0 < first.sum() < 32
    env.close()


def test_a_vector_environment_that_hides_its_ends_is_refused():
    make = lambda: gym.make_vec(  # noqa: E731
        "CartPole-v1", 2, "sync", vector_kwargs={"autoreset_mode": gym.vector.AutoresetMode.SAME_STEP}
    )
    with pytest.raises(ValueError, match="environment must reset in the step after an end"):
        VectorEnvironments(make)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: GameEnvironments(TicTacToe(), 0), ValueError, "num must be at least 1, got 0"),
        (lambda: GymnasiumEnvironments("CartPole-v1", 0), ValueError, "num must be at least 1, got 0"),
        (
            lambda: VectorEnvironments("CartPole-v1"),
            ValueError,
            "num must be at least 1 where a name is given, got None",
        ),
        (lambda: GameEnvironments(GymnasiumGame("CartPole-v1"), 1), TypeError, "game must be one that can be copied"),
    ],
)
def test_what_cannot_be_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


class Counts(gym.Env):
    """Shows how many steps were taken, in double precision, and keeps what was done."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float64)

    def __init__(self, actions):
        self.action_space, self.done = actions, []

    def reset(self, *, seed=None, options=None):
        self.time = 0
        return np.zeros(1), {"action_mask": np.ones(2, np.int8)}

    def step(self, action):
        self.done.append(np.asarray(action).tolist())
        self.time += 1
        return np.full(1, self.time, np.float64), 0.0, False, False, {}


@pytest.mark.parametrize(
    "make",
    [
        lambda env: GymnasiumEnvironments(env, 2),
        lambda env: VectorEnvironments(lambda: gym.vector.SyncVectorEnv([env, env])),
    ],
    ids=["gymnasium", "vector"],
)
def test_double_precision_is_shown_in_single(make):
    env = make(lambda: Counts(gym.spaces.Discrete(2)))
    assert env.reset(0).dtype == np.float32
    obs = env.step(np.zeros(2, np.int64))[0]
    assert obs.dtype == np.float32
    assert obs.tolist() == [[1], [1]]


def test_each_axis_of_a_box_is_reached_by_its_own_bounds():
    own = Counts(gym.spaces.Box(np.array([-2, 0, -np.inf], np.float32), np.array([4, np.inf, np.inf], np.float32)))
    env = GymnasiumEnvironments(lambda: own, 1)
    env.reset(0)
    for action in ([0.5, -3, -3], [-5, 7, 7]):
        env.step(np.array([action], np.float32))
    assert own.done == [[2.5, 0, -3], [-2, 7, 7]]


def test_a_box_of_whole_numbers_is_rounded_to_the_nearest():
    own = Counts(gym.spaces.Box(-10, 10, (1,), np.int8))
    env = GymnasiumEnvironments(lambda: own, 1)
    env.reset(0)
    for action in (-1, -0.96, 0.96, 0.04):
        env.step(np.array([[action]]))
    assert own.done == [[-10], [-10], [10], [0]]


def test_a_choice_outside_of_several_is_refused():
    env = GymnasiumEnvironments(lambda: Counts(gym.spaces.MultiDiscrete([2, 3], start=[0, 5])), 1)
    env.reset(0)
    env.step(np.array([[1, 2]]))
    assert env._envs[0].done == [[1, 7]]
    for wrong in ([[2, 0]], [[0, -1]]):
        with pytest.raises(ValueError, match=r"action must be at least 0 and below \[2 3\]"):
            env.step(np.array(wrong))


def test_a_mask_that_is_missing_later_is_named():
    env = GymnasiumEnvironments(lambda: Counts(gym.spaces.Discrete(2)), 1, mask=True)
    assert env.reset(0)["legal"].tolist() == [[True, True]]
    with pytest.raises(ValueError, match=r"mask=True needs an environment with info\['action_mask'\] at every step"):
        env.step(np.array([0]))


def test_a_row_without_a_mask_is_named_and_lists_are_masks():
    class Listed(gym.Env):
        observation_space, action_space = gym.spaces.Box(-9, 9, (1,)), gym.spaces.Discrete(3)

        def __init__(self, says):
            self.says = says

        def reset(self, *, seed=None, options=None):
            return np.zeros(1, np.float32), {"action_mask": [1, 0, 1]}

        def step(self, action):
            return np.zeros(1, np.float32), 0.0, False, False, {"action_mask": [0, 1, 1]} if self.says else {}

    env = VectorEnvironments(lambda: gym.vector.SyncVectorEnv([lambda: Listed(True), lambda: Listed(False)]), mask=True)
    seen = env.reset(0)
    assert seen["legal"].tolist() == [[True, False, True]] * 2
    assert seen["obs"].shape == (2, 1)
    with pytest.raises(ValueError, match=r"needs info\['action_mask'\] of every row, got none of \[1\]"):
        env.step(np.zeros(2, int))


def test_two_observations_by_key_are_refused():
    box = gym.spaces.Box(0, 1, (1,))

    class Both(Counts):
        observation_space = gym.spaces.Dict(obs=box, observation=box)

    with pytest.raises(TypeError, match="must have one of 'obs' and 'observation'"):
        GymnasiumEnvironments(lambda: Both(gym.spaces.Discrete(2)), 1)


class Rounds(gym.Env):
    """What is seen depends on whether an action is numpy's number or Python's."""

    observation_space, action_space = gym.spaces.Box(-9, 9, (1,)), gym.spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        self.sum = np.float32(0.1)
        return np.array([self.sum], np.float32), {}

    def step(self, action):
        self.sum = self.sum + action * np.float32(0.1) / 3  # of numpy's int64 in double precision
        return np.array([self.sum], np.float32), 0.0, False, False, {}


def test_a_state_does_the_same_actions_again_to_the_bit():
    env, other = GymnasiumEnvironments(Rounds, 2), GymnasiumEnvironments(Rounds, 2)
    env.reset(0)
    for _ in range(9):
        seen = env.step(np.array([1, 2]))[0]
    np.testing.assert_array_equal(other.load_state_dict(env.state_dict()), seen)
    np.testing.assert_array_equal(other.step(np.array([2, 1]))[0], env.step(np.array([2, 1]))[0])


class Scales(gym.Env):
    """Scales what it is given in place."""

    observation_space, action_space = gym.spaces.Box(-99, 99, (1,)), gym.spaces.Box(-3, 3, (1,))

    def reset(self, *, seed=None, options=None):
        self.sum = np.zeros(1, np.float32)
        return self.sum.copy(), {}

    def step(self, action):
        action *= 0.5
        self.sum += action
        return self.sum.copy(), 0.0, False, False, {}


def test_a_state_has_what_was_done_not_what_an_environment_made_of_it():
    env, other = GymnasiumEnvironments(Scales, 2), GymnasiumEnvironments(Scales, 2)
    env.reset(0)
    for _ in range(3):
        seen = env.step(np.array([[0.5], [1.0]]))[0]
    np.testing.assert_allclose(seen, [[2.25], [4.5]])
    state = env.state_dict()
    for _ in range(2):  # nor does loading a state change it
        np.testing.assert_array_equal(other.load_state_dict(state), seen)
    np.testing.assert_array_equal(other.state_dict()["done"]["1"], env.state_dict()["done"]["1"])


def test_states_of_something_else_are_refused_and_change_nothing():
    env, same, wide = (GymnasiumEnvironments("CartPole-v1", n) for n in (2, 2, 3))
    before = env.reset(0)
    wide.reset(1)
    with pytest.raises(ValueError, match="the state is of 3 environments, this one has 2"):
        env.load_state_dict(wide.state_dict())
    with pytest.raises(ValueError, match=r"must be the state_dict of a GymnasiumEnvironments, .*'seeds'\] are not"):
        env.load_state_dict({})
    np.testing.assert_array_equal(same.reset(0), before)
    np.testing.assert_array_equal(env.step(np.array([0, 1]))[0], same.step(np.array([0, 1]))[0])


def test_one_instance_for_two_rows_is_refused():
    only = gym.make("CartPole-v1")
    env = GymnasiumEnvironments(lambda: gym.wrappers.TimeLimit(only, 5), 2)
    with pytest.raises(ValueError, match="environment must make another instance each time"):
        env.reset(0)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: GymnasiumEnvironments(gym.make("CartPole-v1"), 2), TypeError, "a registered name or a function"),
        (
            lambda: GymnasiumEnvironments(Rounds, 2, render_mode="x"),
            ValueError,
            r"options \(\['render_mode'\]",
        ),
        (lambda: VectorEnvironments(lambda: None, 3), ValueError, r"num \(3\) must be None where a function is given"),
        (
            lambda: VectorEnvironments(lambda: gym.make("CartPole-v1")),
            TypeError,
            "must make a vector environment of Gymnasium, got TimeLimit: use GymnasiumEnvironments",
        ),
        (
            lambda: GymnasiumEnvironments(lambda: gym.make_vec("CartPole-v1", 2, "sync"), 2),
            TypeError,
            "must make one instance, got a vector environment: use VectorEnvironments",
        ),
        (lambda: GymnasiumEnvironments("CartPole-v1", 2.0), TypeError, "num must be a whole number, got 2.0"),
    ],
)
def test_what_would_be_ignored_or_cannot_be_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_parts_of_a_choice_are_refused():
    env = GymnasiumEnvironments("CartPole-v1", 2)
    env.reset(0)
    with pytest.raises(ValueError, match=r"action must be whole numbers, got \[0.5, 1.0\]"):
        env.step(np.array([0.5, 1.0]))
