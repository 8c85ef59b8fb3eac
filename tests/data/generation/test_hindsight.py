"""Hindsight: goals that were reached, rewards that follow, everything else as it was."""

import copy

import numpy as np
import pytest

from ai.data import Datagen, Hindsight, Packed, ReplayBuffer
from tests.data.helpers_data import Walk


def reward(achieved, goal):
    return np.where((achieved == goal).all(1), 0.0, -1.0)


def ends(achieved, goal):
    return (achieved == goal).all(1)


class Walks(Walk):
    """Episodes of 3 to 6 steps on a line towards 99, which is never reached."""

    def __next__(self):
        self.made += 1
        n = int(self.rng.integers(3, 7))
        place = np.cumsum(self.rng.choice([-1, 1], n + 1))[:, None] + 100 * self.made
        return {
            "obs": place * 2,
            "achieved": place,
            "goal": np.full((n + 1, 1), 99),
            "action": np.arange(n),
            "reward": np.full(n, -1.0),
            "truncated": np.bool_(True),
            "episode_return": -float(n),
        }


def started(source=None, **how):
    made = Hindsight(source or Walks(), reward, **how)
    made.start(0, 0)
    return made


def test_a_source_in_two_of_them_is_acted_in_by_the_last_alone():
    source = Walks()
    first = started(source)
    second = started(source)
    with pytest.raises(RuntimeError, match="source was begun anew by another who acts in it"):
        next(first)
    next(second)


@pytest.mark.parametrize("ending", [None, ends])
def test_copies_end_where_their_goal_was_reached(ending):
    source, plain = started(ends=ending, copies=3), Walks()
    plain.start(0, 0)
    reached = set()
    for _ in range(20):
        made, original = next(source), next(plain)
        assert made.n_episodes == 4
        assert made.finished["episode_return"].tolist() == [original["episode_return"]]
        parts = np.split(np.arange(len(made.columns["obs"])), np.cumsum(made.lengths)[:-1])
        first = {key: column[parts[0]] for key, column in made.columns.items()}
        for key in ("obs", "achieved", "goal"):
            assert (first[key] == original[key]).all()
        assert (first["reward"][:-1] == -1).all()
        assert first["discount"].tolist() == [1] * len(original["action"]) + [0]
        for rows in parts[1:]:
            n = len(rows) - 1
            one = {key: column[rows] for key, column in made.columns.items()}
            for key in ("obs", "achieved", "action"):
                steps = slice(None) if key != "action" else slice(n)
                assert (one[key][steps] == first[key][: n + 1][steps]).all()
            goal = one["achieved"][-1]
            assert (one["goal"] == goal).all()
            at_goal = (one["achieved"][1:] == goal).all(1)
            assert one["reward"].tolist() == [*np.where(at_goal, 0.0, -1.0), 0.0]
            assert one["discount"].tolist() == [*(1.0 - at_goal if ending else np.ones(n)), 0.0]
            assert one["truncated"].all() == (ending is None)
            reached.add(n)
    assert reached == {1, 2, 3, 4, 5, 6}


def test_packed_episodes_keep_what_may_be_drawn():
    class Parts(Walk):
        def __next__(self):
            place = np.arange(8)[:, None]
            columns = {"achieved": place, "goal": place * 0 - 1, "action": place[:, 0], "reward": np.zeros(8)}
            return Packed(columns, np.array([3, 5]), np.array([0, 1, 0, 1, 1, 1, 0, 0], bool))

    made = next(started(Parts(), copies=2))
    steps = made.columns["action"]
    assert made.n_episodes == 6
    assert set(steps[made.drawable].tolist()) <= {1, 3, 4, 5}
    last = np.cumsum(made.lengths) - 1
    assert not made.drawable[last].any()


def test_it_is_a_source_like_any_other_and_resumes():
    def make():
        buffer = ReplayBuffer(500, n_step=2, next_keys=("obs", "goal"))
        return Datagen(started(copies=2)).loader(16, n_workers=0, buffer=buffer)

    loader, other = make(), make()
    for _ in range(5):
        next(loader)
    other.load_state_dict(copy.deepcopy(loader.state_dict()))
    for _ in range(5):
        ours, theirs = next(loader), next(other)
        assert all((ours[key] == theirs[key]).all() for key in ours)
        assert (ours["goal"] == ours["next_goal"]).all()
    assert loader.stats()["return"] < -3


def test_what_cannot_be_relabelled_is_refused():
    with pytest.raises(ValueError, match="copies must be at least 1, got 0"):
        Hindsight(Walks(), reward, copies=0)
    with pytest.raises(ValueError, match=r"hindsight needs episodes with goal and achieved, \['achieved', 'goal'\]"):
        next(started(Walk()))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (
            {"reward": lambda achieved, goal: np.zeros(1)},
            r"reward must give one number a step, shape .*, got \(1,\)",
        ),
        ({"ends": lambda achieved, goal: True}, r"ends must give one number a step, shape \(\d,\), got \(\)"),
    ],
)
def test_one_number_for_all_steps_is_refused(how, message):
    source = Hindsight(Walks(), how.get("reward", reward), ends=how.get("ends"), copies=1)
    source.start(0, 0)
    with pytest.raises(ValueError, match=message):
        next(source)


class Once:
    """One episode of three steps, with what is given changed in it."""

    def __init__(self, **changes):
        self.changes = changes

    def start(self, seed, worker): ...

    def update_params(self, state_dict, version): ...

    def __next__(self):
        made = {"action": np.ones(3), "reward": np.full(3, -1.0), "goal": np.full(4, 9), "achieved": np.arange(4)}
        return made | self.changes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"achieved": np.arange(3)}, r"achieved must have T \+ 1 entries, one a moment, got 3 for T = 3"),
        ({"reward": np.full(3, -1)}, "reward must give whole numbers where the episodes' rewards are int64, got -0.5"),
    ],
)
def test_what_would_be_made_up_or_cut_down_is_refused(changes, message):
    source = Hindsight(Once(**changes), lambda achieved, goal: np.full(len(achieved), -0.5), copies=1)
    with pytest.raises(RuntimeError, match=r"start\(seed, worker\) must be called before the first episode"):
        next(source)
    source.start(0, 0)
    with pytest.raises(ValueError, match=message):
        next(source)


def test_goals_lie_ahead_in_the_same_episode_though_its_beginning_was_overwritten():
    source, buffer = started(ends=ends, copies=2), ReplayBuffer(37, n_step=2, gamma=0.5, next_keys=("goal", "achieved"))
    for _ in range(30):
        buffer.extend(next(source))
        batch = buffer.sample(32)
        at, after, goal = (batch[key][:, 0] for key in ("achieved", "next_achieved", "goal"))
        assert (batch["next_goal"][:, 0] == goal).all()
        meant = goal == 99
        assert ((after - at).abs() <= 2).all()
        assert ((goal - at).abs()[~meant] <= 6).all()  # no goal of another episode, which is 100 away
        reached = (after == goal) & ~meant
        assert (batch["next_discount"][reached] == 0).all()
        assert (batch["next_discount"][meant] > 0).all()
