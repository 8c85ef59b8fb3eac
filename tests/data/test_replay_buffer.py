"""ReplayBuffer against a slow reference that keeps whole episodes in a list."""

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ai.data import Packed, ReplayBuffer
from ai.data.episodes.packing import pack


def episode(n, start=0, truncated=False, two_players=False, rng=None):
    rng = rng or np.random.default_rng(start)
    made = {
        "obs": np.arange(start, start + n + 1, dtype=np.float32)[:, None],
        "action": np.arange(start, start + n),
        "reward": rng.standard_normal(n).astype(np.float32),
        "value": rng.standard_normal(n + 1).astype(np.float32),
        "policy": rng.random((n, 3)).astype(np.float32),
        "truncated": np.bool_(truncated),
        "game": np.int64(start),
    }
    if two_players:
        made["to_play"] = rng.integers(0, 2, n + 1)
    return made


def reference_return(e, s, n_step, gamma):
    """The n-step return of step s of one episode, straight from the definition."""
    n = len(e["action"])
    own = e["to_play"][s] if "to_play" in e else 0
    sign = lambda r: 1 if "to_play" not in e or e["to_play"][r] == own else -1  # noqa: E731
    total, factor = 0.0, 1.0
    for r in range(s, min(s + n_step, n) if n_step != math.inf else n):
        total += factor * sign(r) * e["reward"][r]
        ends = r == n - 1 and not e["truncated"]
        factor *= 0.0 if ends else gamma
    stop = n if n_step == math.inf else min(s + n_step, n)
    return total + factor * sign(stop) * e["value"][stop]


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 7), min_size=1, max_size=6),
    n_step=st.sampled_from([1, 2, 3, 10, math.inf]),
    truncated=st.booleans(),
    two_players=st.booleans(),
)
def test_targets_equal_the_definition(lengths, n_step, truncated, two_players):
    episodes = [episode(n, 100 * i, truncated, two_players) for i, n in enumerate(lengths)]
    buffer = ReplayBuffer(100, n_step=n_step, gamma=0.9)
    buffer.extend(pack(episodes))
    batch = buffer.sample(64)
    for action, target in zip(batch["action"].tolist(), batch["target"].tolist(), strict=True):
        expected = reference_return(episodes[action // 100], action % 100, n_step, 0.9)
        assert target == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_targets_of_an_unrolled_draw_equal_those_of_single_draws():
    episodes = [episode(5, 100 * i, two_players=True) for i in range(4)]
    buffer = ReplayBuffer(50, unroll=3, n_step=2, gamma=0.9)
    buffer.extend(pack(episodes))
    batch = buffer.sample(50)
    for b in range(50):
        for k in range(4):
            if batch["mask"][b, k]:
                action = int(batch["action"][b, k])
                expected = reference_return(episodes[action // 100], action % 100, 2, 0.9)
                assert float(batch["target"][b, k]) == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_hand_computed_outcome_of_a_two_player_game():
    buffer = ReplayBuffer(20, n_step=math.inf)
    buffer.add({"action": np.arange(3), "reward": np.array([0.0, 0, 1]), "to_play": np.array([0, 1, 0])})
    batch = buffer.sample(64)
    assert {(int(a), float(t)) for a, t in zip(batch["action"], batch["target"], strict=True)} == {
        (0, 1),
        (1, -1),
        (2, 1),
    }


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=12),
    capacity=st.integers(10, 30),
    unroll=st.integers(0, 5),
    chunk=st.integers(1, 4),
)
def test_draws_are_stretches_of_live_episodes(lengths, capacity, unroll, chunk):
    episodes = {1000 * i: episode(n, 1000 * i) for i, n in enumerate(lengths)}
    buffer = ReplayBuffer(capacity, unroll=unroll)
    ordered = list(episodes.values())
    for first in range(0, len(ordered), chunk):
        buffer.extend(pack(ordered[first : first + chunk]))
    rows = [(game, r) for game, e in episodes.items() for r in range(len(e["obs"]))][-capacity:]
    live = {(game, r) for game, r in rows if r < len(episodes[game]["action"])}
    assert len(buffer) == len(live)
    if not live:
        return
    batch = buffer.sample(128)
    seen = set()
    for b in range(128):
        game, start = int(batch["game"][b, 0]), int(batch["action"][b, 0])
        e, step = episodes[game], start - game
        seen.add((game, step))
        n = len(e["action"])
        for k in range(unroll + 1):
            r = min(step + k, n)
            assert bool(batch["mask"][b, k]) == (step + k < n)
            assert float(batch["obs"][b, k, 0]) == e["obs"][r, 0]
            assert float(batch["reward"][b, k]) == (e["reward"][r] if r < n else 0)
            assert torch.equal(batch["policy"][b, k], torch.from_numpy(e["policy"][r]) if r < n else torch.zeros(3))
    assert seen <= live
    if len(live) < 12:
        assert seen == live


def test_uniform_draws_are_uniform():
    buffer = ReplayBuffer(30)
    buffer.extend(pack([episode(1, 10 * i) for i in range(5)] + [episode(4, 90)]))
    actions = torch.cat([buffer.sample(300)["action"] for _ in range(30)])
    counts = torch.unique(actions, return_counts=True)[1].double()
    # 9 steps, 1000 expected each; the 0.9999 quantile of chi-square with 8 degrees of freedom is 31.8
    assert len(counts) == 9
    assert float(((counts - 1000) ** 2 / 1000).sum()) < 31.8


@pytest.mark.parametrize("max_reuse", [None, 5000])
def test_prioritised_draws_and_weights_follow_the_priorities(max_reuse):
    buffer = ReplayBuffer(40, alpha=0.5, beta=1.0, max_reuse=max_reuse)
    buffer.extend(pack([episode(9)]))
    index = buffer.sample(9 if max_reuse else 400)["index"].unique()
    assert len(index) == 9
    buffer.update_priorities(index, torch.arange(1.0, 10.0) ** 2)
    if max_reuse:
        draws = torch.cat([buffer.sample(1)["index"] for _ in range(1500)])
        share = torch.unique(draws, return_counts=True)[1].double() / 1500
    else:
        draws = torch.cat([buffer.sample(450)["index"] for _ in range(20)])
        share = torch.unique(draws, return_counts=True)[1].double() / 9000
    expected = torch.arange(1.0, 10.0, dtype=torch.float64) / 45
    assert float((share - expected).abs().max()) < (0.04 if max_reuse else 0.025)
    batch = buffer.sample(9)
    weights = dict(zip(batch["index"].tolist(), batch["weight"].tolist(), strict=True))
    ratio = {i: w * (i - int(index[0]) + 1) for i, w in weights.items()}  # weight ∝ 1 / share, with beta 1
    assert max(ratio.values()) == pytest.approx(min(ratio.values()), rel=1e-4)
    assert max(weights.values()) == pytest.approx(1)


def test_draws_without_replacement_are_the_successive_ones():
    buffer = ReplayBuffer(40, alpha=1.0, max_reuse=10**6)
    buffer.extend(pack([episode(3)]))
    buffer.update_priorities(torch.arange(3), torch.tensor([1.0, 2.0, 5.0]))
    pairs = [tuple(sorted(buffer.sample(2)["action"].tolist())) for _ in range(1000)]
    p = {0: 1 / 8, 1: 2 / 8, 2: 5 / 8}
    for a, b in ((0, 1), (0, 2), (1, 2)):
        expected = p[a] * p[b] * (1 / (1 - p[a]) + 1 / (1 - p[b]))
        assert pairs.count((a, b)) / 1000 == pytest.approx(expected, abs=0.06)  # four deviations
    uniform = ReplayBuffer(40, max_reuse=10**6)
    uniform.extend(pack([episode(4)]))
    counts = torch.bincount(torch.cat([uniform.sample(2)["action"] for _ in range(800)])).tolist()
    assert all(abs(count - 400) < 60 for count in counts)


def test_draws_do_not_look_at_the_whole_ring():
    buffers = [ReplayBuffer(10**6, max_reuse=3, alpha=alpha) for alpha in (None, 0.5)]
    for buffer in buffers:
        buffer.extend(pack([episode(5), episode(3, 100)]))
        buffer._drawing.is_open = Untouchable(buffer._drawing.is_open)
        assert sorted(buffer.sample(8)["action"].tolist()) == [0, 1, 2, 3, 4, 100, 101, 102]
        assert len(buffer) == 8


class Untouchable:
    """An array of which only a few places may be asked for at a time."""

    def __init__(self, array):
        self.array = array

    def __getitem__(self, rows):
        assert np.size(rows) < 100
        return self.array[rows]

    def __setitem__(self, rows, value):
        assert np.size(rows) < 100
        self.array[rows] = value


def no_value(e):
    return {key: values for key, values in e.items() if key != "value"}


@pytest.mark.parametrize("two_players", [False, True])
def test_without_values_a_draw_has_what_completes_the_target(two_players):
    episodes = [episode(n, 100 * i, n == 4, two_players) for i, n in enumerate((1, 3, 4, 7))]
    buffer = ReplayBuffer(100, n_step=3, gamma=0.9)
    buffer.extend(pack([no_value(e) for e in episodes]))
    batch = buffer.sample(200)
    assert "target" not in batch
    for b in range(200):
        e = episodes[int(batch["action"][b]) // 100]
        reached = int(batch["next_obs"][b]) % 100
        assert reached == min(int(batch["action"][b]) % 100 + 3, len(e["action"]))
        target = batch["n_step_reward"][b] + batch["next_discount"][b] * e["value"][reached]
        expected = reference_return(e, int(batch["action"][b]) % 100, 3, 0.9)
        assert float(target) == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_without_values_unrolled_draws_have_the_parts_at_each_step():
    e = no_value(episode(5))
    buffer = ReplayBuffer(20, n_step=2, gamma=0.5, unroll=2)
    buffer.add(e)
    batch = buffer.sample(40)
    for obs, after, mask in zip(batch["obs"][..., 0], batch["next_obs"][..., 0], batch["mask"], strict=True):
        assert after[mask].tolist() == (obs[mask] + 2).clamp(max=5).tolist()
    assert set(batch["next_discount"][batch["mask"]].tolist()) == {0.0, 0.25}
    buffer = ReplayBuffer(20, n_step=2, unroll=2, first_only=("obs",))
    buffer.add(e)
    assert buffer.sample(4)["next_obs"].shape == (4, 1)


@pytest.mark.parametrize("n_step", [1, 3, math.inf])
@pytest.mark.parametrize("truncated", [False, True])
def test_past_a_true_end_the_target_is_0_whatever_is_said_there(n_step, truncated):
    made = episode(4, truncated=truncated)
    made["value"] = np.append(np.zeros(4), 7.0).astype(np.float32)
    buffer = ReplayBuffer(20, n_step=n_step, unroll=3)
    buffer.add(made)
    batch = buffer.sample(60)
    past = batch["target"][~batch["mask"]]
    assert len(past) > 20
    assert (past == (7.0 if truncated else 0.0)).all()


def test_full_returns_of_an_episode_cut_off_need_a_value():
    with pytest.raises(ValueError, match=r"n_step=inf needs a value .* episode 1 of 2 was cut off and holds none"):
        ReplayBuffer(20, n_step=math.inf).extend(
            pack([no_value(episode(3, 0)), no_value(episode(2, 5, truncated=True))])
        )
    with pytest.raises(ValueError, match=r"may not have the keys \['next_obs'\]"):
        ReplayBuffer(20, n_step=1).add({**no_value(episode(2)), "next_obs": np.zeros(2)})


def test_negative_priorities_are_refused():
    buffer = ReplayBuffer(12, alpha=1.0)
    buffer.add(episode(5))
    before = buffer.state_dict()["priority"]
    with pytest.raises(ValueError, match=r"priority must be at least 0, got -2: of an error give its size"):
        buffer.update_priorities(torch.arange(3), torch.tensor([1.0, -2.0, 3.0]))
    assert torch.equal(buffer.state_dict()["priority"], before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "2"}, "of a buffer of format '2', this version reads formats up to 2"),
        ({"format": 3}, "of a buffer of format 3, this version reads formats up to 2"),
        ({"gamma": 0.5}, "of a buffer of gamma 0.5, this one has 0.9"),
        ({"n_step": 3}, "of a buffer of n_step 3, this one has 2"),
        ({"alpha": 0.7}, "of a buffer of alpha 0.7, this one has 0.6"),
        ({"uses": torch.zeros(2, dtype=torch.int32)}, "the state of this buffer is damaged"),
        ({"generator": torch.zeros(3, dtype=torch.uint8)}, "the state of this buffer is damaged"),
        ({"columns": {"obs": torch.zeros(2, 1)}}, "the state of this buffer is damaged"),
        ({"n_written": None}, "the state of this buffer is damaged"),
    ],
)
def test_a_state_that_does_not_load_leaves_the_buffer_as_it_was(change, message):
    def made(first):
        buffer = ReplayBuffer(23, n_step=2, gamma=0.9, alpha=0.6, max_reuse=9)
        buffer.extend(pack([episode(4, first), episode(6, first + 50)]))
        return buffer

    buffer, twin = made(0), made(0)
    with pytest.raises(ValueError, match=message):
        buffer.load_state_dict({**made(100).state_dict(), **change})
    a, b = buffer.sample(8), twin.sample(8)
    assert all(torch.equal(a[key], b[key]) for key in b)
    with pytest.raises(ValueError, match=r"the keys \['uses'\] are not in it"):
        buffer.load_state_dict({key: value for key, value in twin.state_dict().items() if key != "uses"})


def test_a_state_of_the_first_format_still_loads():
    buffer = ReplayBuffer(23, max_reuse=3)
    buffer.add(episode(6))
    buffer.sample(4)
    state = {k: v for k, v in buffer.state_dict().items() if k not in ("format", "n_step", "gamma", "alpha")}
    other = ReplayBuffer(23, max_reuse=3)
    other.load_state_dict(state)
    a, b = buffer.sample(6), other.sample(6)
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_repr_tells_what_is_in_the_ring():
    buffer = ReplayBuffer(50)
    assert repr(buffer) == "ReplayBuffer(0 steps in 0 of 50 rows, no episodes yet)"
    buffer.add({"obs": np.zeros((3, 2)), "action": [0, 1]})
    assert repr(buffer).startswith("ReplayBuffer(2 steps in 3 of 50 rows, obs: float64[2], action: int64[], ")


def test_new_steps_get_the_highest_priority_and_old_indices_are_passed_over():
    buffer = ReplayBuffer(12, alpha=1.0)
    buffer.extend(pack([episode(5)]))
    first = buffer.sample(64)["index"].unique()
    buffer.update_priorities(first, torch.full((5,), 3.0))
    buffer.extend(pack([episode(5, 100)]))
    tree = buffer._drawing._tree
    assert tree.get(np.arange(6, 11)) == pytest.approx(3.0, rel=1e-5)
    buffer.extend(pack([episode(5, 200)]))  # overwrites the first episode
    buffer.update_priorities(first, torch.full((5,), 1e9))
    assert tree.total == pytest.approx(30.0, rel=1e-5)
    with pytest.raises(ValueError, match="priority must be finite"):
        buffer.update_priorities(first, torch.tensor([1, 2, 3, 4, math.nan]))
    with pytest.raises(ValueError, match="draws uniformly: give alpha"):
        ReplayBuffer(12).update_priorities(first, first)


@pytest.mark.parametrize("alpha", [None, 0.7])
def test_no_step_is_drawn_more_often_than_max_reuse(alpha):
    buffer = ReplayBuffer(50, max_reuse=3, alpha=alpha)
    buffer.extend(pack([episode(4, 100 * i) for i in range(5)]))
    draws = torch.cat([buffer.sample(10)["index"] for _ in range(5)])
    assert int(torch.unique(draws, return_counts=True)[1].max()) <= 3
    while len(buffer) >= 1:
        draws = torch.cat([draws, buffer.sample(1)["index"]])
    assert torch.unique(draws, return_counts=True)[1].tolist() == [3] * 20
    with pytest.raises(ValueError, match="0 steps may be drawn, batch_size is 4"):
        buffer.sample(4)


def test_reanalyse_rewrites_live_rows_only():
    buffer = ReplayBuffer(12)
    buffer.extend(pack([episode(5)]))
    index = buffer.sample(20)["index"].unique()
    whole = buffer.episode(int(index[0]))
    assert whole["obs"][:, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert buffer.update(index, policy=torch.ones(5, 3), value=torch.full((5,), 9.0)) == 5
    batch = buffer.sample(20)
    assert (batch["policy"] == 1).all()
    assert (batch["value"] == 9).all()
    buffer.extend(pack([episode(5, 100), episode(2, 200)]))  # overwrites the first three rows
    assert buffer.update(index, value=torch.full((5,), 7.0)) == 2
    assert buffer.column("value")[:2].tolist() == [7, 7]
    with pytest.raises(ValueError, match=r"'z' is not a key of this buffer"):
        buffer.update(index, z=index)
    with pytest.raises(ValueError, match=r"'policy' must have shape \(5, 3\), got \(5, 2\)"):
        buffer.update(index, policy=torch.zeros(5, 2))
    with pytest.raises(ValueError, match=r"index \(0\) is not among the live rows"):
        buffer.episode(0)


@pytest.mark.parametrize(
    "options", [{}, {"alpha": 0.6}, {"max_reuse": 4}, {"unroll": 2, "n_step": 2}, {"n_step": math.inf}]
)
def test_a_state_repeats_every_later_draw(options):
    buffer = ReplayBuffer(23, seed=4, **options)
    for i in range(9):
        buffer.add(episode(3, 100 * i))
    buffer.sample(8)
    state = copy.deepcopy(buffer.state_dict())
    other = ReplayBuffer(23, seed=0, **options)
    other.load_state_dict(state)
    for i in range(9, 12):
        for each in (buffer, other):
            each.add(episode(3, 100 * i))
        a, b = buffer.sample(6), other.sample(6)
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a)
    with pytest.raises(ValueError, match="of a buffer of capacity 23, this one has 24"):
        ReplayBuffer(24).load_state_dict(state)


def test_memory_is_stated_and_never_grows():
    buffer = ReplayBuffer(1000)
    assert buffer.n_bytes == 0
    buffer.add(episode(5))
    n_bytes = buffer.n_bytes
    per_row = 4 + 8 + 4 + 4 + 12 + 1 + 8 + 8 + 4  # obs action reward value policy truncated game version discount
    assert n_bytes == 1000 * (per_row + 8 + 8 + 1 + 4)  # and begin, end, open, uses
    for i in range(300):
        buffer.add(episode(5, i))
    assert buffer.n_bytes == n_bytes


def test_defaults_of_an_episode():
    packed = pack([{"obs": np.zeros((3, 2)), "action": [0, 1], "reward": [1.0, 2.0], "value": [5.0, 6.0]}], version=7)
    assert packed.columns["discount"].tolist() == [1, 0, 0]
    assert packed.columns["version"].tolist() == [7, 7, 7]
    assert packed.columns["value"].tolist() == [5, 6, 0]
    cut = pack([{"action": [0, 1], "value": [5.0, 6.0], "truncated": True, "to_play": [0, 1, 0]}])
    assert cut.columns["discount"].tolist() == [1, 1, 0]
    assert cut.columns["value"].tolist() == [5, 6, -6]


@pytest.mark.parametrize(
    ("episodes", "message"),
    [
        ([{"obs": np.zeros(3)}], r"needs one of the keys .*to tell its steps, got \['obs'\]"),
        ([{"action": []}], "at least one step, got an empty 'action'"),
        (
            [{"action": [1], "reward": [1.0]}, {"action": [1]}],
            r"equal keys, got \['action', 'reward'\] and \['action'\]",
        ),
        (
            [{"action": [1, 2], "obs": np.zeros((3, 2))}, {"action": [1], "obs": np.zeros((2, 3))}],
            r"'obs' must have T \+ 1",
        ),
        (
            [{"action": [1], "game": 1}, {"action": [1], "game": [1, 2, 3]}],
            r"'game' must have T or T \+ 1 entries, or one shape .* \(3,\) for T = 1 .*: an array with T",
        ),
        (
            [{"action": [1, 2], "note": [1, 2]}, {"action": [1, 2, 3], "note": [1, 2, 3, 4, 5]}],
            r"'note' must have T .* got \(5,\) for T = 3 and \(2,\) for T = 2: .* goes along with the steps",
        ),
    ],
)
def test_malformed_episodes_are_refused(episodes, message):
    with pytest.raises(ValueError, match=message):
        pack(episodes)


@pytest.mark.parametrize("n_first", [8, 9])
def test_a_constant_as_long_as_its_first_episode_stays_a_constant(n_first):
    board = np.arange(9)
    steps = [n_first, 4, 12]
    packed = pack([{"action": np.zeros(n), "board": board + n, "along": np.arange(n)} for n in steps])
    expected = np.concatenate([np.tile(board + n, (n + 1, 1)) for n in steps])
    assert np.array_equal(packed.columns["board"], expected)
    assert packed.columns["along"].tolist() == [place for n in steps for place in (*range(n), 0)]


def test_both_readings_are_told_where_episodes_come_one_by_one():
    buffer = ReplayBuffer(50)
    buffer.add({"action": np.zeros(9), "board": np.arange(9)})
    with pytest.raises(ValueError, match=r"'board' must be .* as in the first episode, .*\(9,\): an array with T or"):
        buffer.add({"action": np.zeros(4), "board": np.arange(9)})


def test_a_buffer_refuses_what_does_not_fit():
    buffer = ReplayBuffer(5)
    with pytest.raises(ValueError, match="an episode of 5 steps needs 6 rows, capacity is 5"):
        buffer.add(episode(5))
    buffer.add({"action": [1], "x": [[1.0, 2.0]]})
    with pytest.raises(ValueError, match=r"must have the keys .* got"):
        buffer.add({"action": [1]})
    with pytest.raises(ValueError, match=r"'x' must be torch.float64 of shape \(2,\) a row"):
        buffer.add({"action": [1], "x": [[1.0]]})
    with pytest.raises(ValueError, match=r"got int64 of shape \(2,\)$"):
        buffer.add({"action": [1], "x": [[1, 2]]})
    with pytest.raises(ValueError, match=r"may not have the keys \['index'\]"):
        ReplayBuffer(5).add({"action": [1], "index": [1]})
    with pytest.raises(ValueError, match=r"n_step \(3\) needs episodes with a reward"):
        ReplayBuffer(5, n_step=3).add({"action": [1]})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"capacity": 1}, "capacity must be at least 2, got 1"),
        ({"unroll": -1}, "unroll must be at least 0, got -1"),
        ({"n_step": 0}, "n_step must be at least 1, got 0"),
        ({"max_reuse": 0}, "max_reuse must be at least 1, got 0"),
        ({"gamma": 1.5}, r"gamma must lie in \[0, 1\], got 1.5"),
        ({"alpha": -1.0}, "alpha must be at least 0 and finite, got -1"),
    ],
)
def test_bad_buffer_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ReplayBuffer(**{"capacity": 10, **options})


def counting(n, start=0, **more):
    """An episode of n steps whose observations count from `start`, cut off at its end, with reward 2^t."""
    return {
        "obs": np.arange(start, start + n + 1),
        "action": np.zeros(n),
        "reward": 2.0 ** np.arange(n),
        "truncated": np.bool_(True),
        **more,
    }


@pytest.mark.parametrize("n", [1, 3])
def test_next_keys_are_seen_n_steps_on_with_the_rewards_until_there(n):
    buffer = ReplayBuffer(40, n_step=n, gamma=0.5, next_keys=("obs", "tag"))
    for k in range(12):  # far more than fit: the ring wraps
        ends = np.bool_(k % 2)
        buffer.add({**counting(5, 10 * k), "truncated": ends, "tag": np.arange(6) * 3})
    batch = buffer.sample(500)
    assert "target" not in batch
    step, left = batch["obs"] % 10, 5 - batch["obs"] % 10
    taken = left.clamp(max=n)
    assert torch.equal(batch["next_obs"], batch["obs"] + taken)
    assert torch.equal(batch["next_tag"], (step + taken) * 3)
    torch.testing.assert_close(batch["n_step_reward"], 2.0**step * taken)  # 2^t + 2^(t+1) / 2 + …
    ended = (taken == left) & (batch["obs"] // 10 % 2 == 0)
    torch.testing.assert_close(batch["next_discount"], torch.where(ended, 0.0, 0.5**taken))


def test_the_next_value_of_the_other_player_counts_against():
    buffer = ReplayBuffer(40, n_step=2)
    buffer.add({**counting(4), "to_play": np.array([0, 1, 1, 0, 1])})
    batch = buffer.sample(100)
    found = {
        int(obs): (float(reward), float(discount))
        for obs, reward, discount in zip(batch["obs"], batch["n_step_reward"], batch["next_discount"], strict=True)
    }
    assert found == {0: (1 - 2, -1), 1: (2 + 4, -1), 2: (4 - 8, 1), 3: (8, -1)}


@pytest.mark.parametrize("pad", ["zeros", "first"])
@pytest.mark.parametrize("alpha", [None, 0.5])
def test_frames_are_stacked_within_their_episode_and_never_from_overwritten_ones(pad, alpha):
    buffer = ReplayBuffer(23, frame_stack=4, pad_frames=pad, n_step=1, alpha=alpha)
    seen = set()
    for k in range(15):
        n = 3 + k % 5
        frames = (np.arange(1, n + 2) + 10 * k).astype(np.uint8)
        buffer.add({**counting(n), "obs": frames[:, None].repeat(2, 1)})
        batch = buffer.sample(60)
        assert batch["obs"].dtype == torch.uint8
        assert batch["obs"].shape == batch["next_obs"].shape == (60, 4, 2)
        for now, later in zip(batch["obs"][:, :, 0].tolist(), batch["next_obs"][:, :, 0].tolist(), strict=True):
            first = now[3] // 10 * 10 + 1
            want = [f if f >= first else (0 if pad == "zeros" else first) for f in range(now[3] - 3, now[3] + 1)]
            assert now == want
            assert later[3] == now[3] + 1
            assert [f for f in later[:3] if f >= first] == [f for f in now[1:] if f >= first]
            seen.add(now[3])
    assert len(seen) > 40
    other = ReplayBuffer(23, frame_stack=4, pad_frames=pad, n_step=1, alpha=alpha)
    other.load_state_dict(buffer.state_dict())
    assert torch.equal(other.sample(50)["obs"], buffer.sample(50)["obs"])


def test_burn_in_goes_back_as_far_as_the_episode_and_is_not_learnt_from():
    buffer = ReplayBuffer(100, unroll=2, burn_in=3, first_only=("memory",))
    buffer.add({**counting(6), "memory": np.arange(7) * 10})
    buffer.add({**counting(6, 100), "memory": np.arange(7) * 10 + 1000})
    batch = buffer.sample(200)
    for obs, mask, context, memory in zip(
        *(batch[key].tolist() for key in ("obs", "mask", "context", "memory")), strict=True
    ):
        base, drawn = obs[3] // 100 * 100, obs[3]
        assert obs == [min(max(drawn + k, base), base + 6) for k in range(-3, 3)]
        assert mask == [False] * 3 + [drawn + k < base + 6 for k in range(3)]
        assert context == [drawn + k >= base for k in (-3, -2, -1)]
        assert memory == obs[0] % 100 * 10 + base * 10


def test_context_is_never_the_first_of_a_draw():
    packed = Packed({**pack([counting(5)]).columns}, np.array([6]), np.array([False, True, False, True, False, False]))
    buffer = ReplayBuffer(30)
    for _ in range(7):
        buffer.extend(packed)
    assert set(buffer.sample(100)["obs"].tolist()) == {1, 3}
    assert len(buffer) == 10


def test_a_state_without_beginnings_is_told_by_the_ends():
    buffer = ReplayBuffer(20, unroll=1, burn_in=2)
    for k in range(6):
        buffer.add(counting(4, 10 * k))
    state, twin = buffer.state_dict(), ReplayBuffer(20, unroll=1, burn_in=2)
    del state["begin"]
    twin.load_state_dict(state)
    assert torch.equal(twin.sample(50)["obs"], buffer.sample(50)["obs"])


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"frame_stack": 0}, "frame_stack must be at least 1, got 0"),
        ({"burn_in": 2}, r"burn_in \(2\) needs unroll"),
        ({"pad_frames": "mirror"}, "pad_frames must be 'zeros' or 'first', got 'mirror'"),
    ],
)
def test_draws_that_cannot_be_are_refused(how, message):
    with pytest.raises(ValueError, match=message):
        ReplayBuffer(10, **how)


def test_frames_are_looked_for_where_they_must_be():
    with pytest.raises(ValueError, match=r"frame_stack \(4\) needs episodes with obs, got the keys"):
        ReplayBuffer(10, frame_stack=4).add({"action": np.zeros(2)})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_step": 2.5}, "n_step must be a whole number, got 2.5"),
        ({"n_step": math.nan}, "n_step must be a number or None, got nan"),
        ({"alpha": math.nan}, "alpha must be a number or None, got nan"),
        ({"alpha": 1.0, "beta": -3}, "beta must be at least 0 and finite, got -3"),
        ({"unroll": 2, "first_only": "obs"}, "first_only must be a tuple of keys, such as .'obs',."),
        ({"n_step": 2, "next_keys": "obs"}, "next_keys must be a tuple of keys"),
    ],
)
def test_options_that_would_be_taken_for_something_else_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ReplayBuffer(50, **options)


def test_keys_sizes_and_priorities_that_do_not_fit_are_refused():
    episode = {"obs": np.arange(3), "action": np.zeros(2), "reward": np.ones(2)}
    with pytest.raises(ValueError, match=r"first_only names the keys \['obz'\]"):
        ReplayBuffer(50, unroll=2, first_only=("obz",)).add(episode)
    buffer = ReplayBuffer(50, alpha=0.5)
    buffer.add(episode)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        buffer.sample(0)
    with pytest.raises(ValueError, match=r"one number for each index, got the shapes \(1,\) and \(2,\)"):
        buffer.update_priorities(torch.tensor([0, 1]), torch.ones(1))


def test_rewards_of_several_numbers_a_step_have_no_n_step_sums():
    buffer = ReplayBuffer(100, n_step=2, gamma=0.9)
    with pytest.raises(
        ValueError, match=r"reward must be one number a step for n-step sums, got the shape \(2,\) a step"
    ):
        buffer.add(
            {"obs": np.zeros((4, 2), "float32"), "action": np.zeros(3, "int64"), "reward": np.ones((3, 2), "float32")}
        )
    assert (len(buffer), buffer.n_written) == (0, 0)


def test_draws_leave_out_what_is_not_wanted_and_are_otherwise_the_same():
    whole, lean = (ReplayBuffer(50, n_step=2, omit_keys=keys) for keys in ((), ("reward", "truncated", "version")))
    for buffer in (whole, lean):
        for i in range(5):
            buffer.add({"obs": np.arange(4.0) + 10 * i, "action": np.zeros(3), "reward": np.ones(3)})
    a, b = whole.sample(16), lean.sample(16)
    assert a.keys() - b.keys() == {"reward", "truncated", "version"}
    assert all(torch.equal(a[key], b[key]) for key in b)
    assert "reward" in lean.columns  # it is kept, and can be rewritten
    with pytest.raises(TypeError, match="omit_keys must be a tuple of keys, got 3"):
        ReplayBuffer(50, omit_keys=3)
    with pytest.raises(ValueError, match=r"omit_keys must be a tuple of keys, such as \('reward',\)"):
        ReplayBuffer(50, omit_keys="reward")
    with pytest.raises(ValueError, match=r"omit_keys names the keys \['rewards'\], episodes have \["):
        ReplayBuffer(50, omit_keys=("rewards",)).add({"obs": np.zeros(3), "action": np.zeros(2)})
