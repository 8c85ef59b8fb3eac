"""Returns of packed episodes against slow loops over one step at a time."""

import numpy as np
import pytest
import torch

from ai.data import lambda_returns, vtrace_returns
from ai.data.episodes.returns import full_returns, n_step_returns, n_step_rewards


def random_episodes(seed, n, two_players=False):
    """Returns `n` packed episodes: some end, some are cut off, in some the players do not alternate."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 9, n) + 1
    rows, last = int(lengths.sum()), np.cumsum(lengths) - 1
    columns = {key: rng.normal(size=rows).astype(np.float32) for key in ("reward", "value")}
    columns["discount"] = rng.choice([1.0, 0.9], rows).astype(np.float32)
    columns["discount"][last[rng.random(n) < 0.5] - 1] = 0
    columns["ratio"] = rng.gamma(1.0, 1.0, rows)
    if two_players:
        columns["to_play"] = rng.integers(0, 2, rows)
    return columns, lengths


def spans(lengths):
    ends = np.cumsum(lengths)
    return zip(ends - lengths, ends - 1, strict=True)


def sign(columns, a, b):
    return 1 if "to_play" not in columns or columns["to_play"][a] == columns["to_play"][b] else -1


def values_at_ends(columns, lengths):
    """The values, 0 after a true end, whatever is said there."""
    out = columns["value"].astype(float)
    for _, last in spans(lengths):
        if columns["discount"][last - 1] == 0:
            out[last] = 0
    return out


def slow_gae(columns, lengths, gamma, lam):
    """Advantages as the exponentially weighted sum of temporal differences, term by term."""
    r, v, d = columns["reward"].astype(float), columns["value"].astype(float), columns["discount"].astype(float)
    out = values_at_ends(columns, lengths)
    for first, last in spans(lengths):
        for s in range(first, last):
            weight = 1.0
            for t in range(s, last):
                delta = r[t] + gamma * d[t] * sign(columns, t, t + 1) * v[t + 1] - v[t]
                out[s] += weight * sign(columns, s, t) * delta
                weight *= gamma * lam * d[t]
    return out


def slow_vtrace(columns, lengths, gamma, lam, rho_max, c_max):
    """Equation 1 of the paper as it is printed: a sum over later steps, each with its product of traces."""
    r, v, d = columns["reward"].astype(float), columns["value"].astype(float), columns["discount"].astype(float)
    out = values_at_ends(columns, lengths)
    for first, last in spans(lengths):
        for s in range(first, last):
            for t in range(s, last):
                rho = min(rho_max, columns["ratio"][t])
                delta = rho * (r[t] + gamma * d[t] * sign(columns, t, t + 1) * v[t + 1] - v[t])
                trace = np.prod([gamma * d[i] * lam * min(c_max, columns["ratio"][i]) for i in range(s, t)])
                out[s] += trace * sign(columns, s, t) * delta
    return out


def slow_n_step(columns, lengths, n_step, gamma):
    """Rewards up to n steps on and what a value there is worth, `[2, R]`, step by step."""
    out = []
    for first, last in spans(lengths):
        for s in range(first, last + 1):
            stop, total, weight = min(s + n_step, last), 0.0, 1.0
            if s == last and columns["discount"][last - 1] == 0:
                weight = 0.0
            for t in range(s, stop):
                total += weight * sign(columns, s, t) * columns["reward"][t]
                weight *= gamma * columns["discount"][t]
            out.append((total, weight * sign(columns, s, stop)))
    return np.array(out).T


def as_rows(columns, lengths):
    """The columns as a ring holds them, every row, and the steps left from each."""
    rows = torch.arange(int(lengths.sum()))
    last = torch.from_numpy(np.repeat(np.cumsum(lengths) - 1, lengths))
    return {key: torch.from_numpy(column) for key, column in columns.items()}, rows, last - rows


@pytest.mark.parametrize("two_players", [False, True])
@pytest.mark.parametrize("lam", [0.0, 0.7, 1.0])
def test_lambda_returns_less_the_values_are_the_advantages_of_gae(lam, two_players):
    columns, lengths = random_episodes(0, 60, two_players)
    np.testing.assert_allclose(
        lambda_returns(columns, lengths, 0.9, lam), slow_gae(columns, lengths, 0.9, lam), atol=2e-5
    )


@pytest.mark.parametrize("two_players", [False, True])
@pytest.mark.parametrize(("lam", "rho_max", "c_max"), [(1.0, 1.0, 1.0), (0.8, 2.0, 0.5)])
def test_vtrace_is_the_sum_of_the_paper(lam, rho_max, c_max, two_players):
    columns, lengths = random_episodes(1, 60, two_players)
    got = vtrace_returns(columns, lengths, columns["ratio"], 0.9, lam=lam, rho_max=rho_max, c_max=c_max)
    np.testing.assert_allclose(got, slow_vtrace(columns, lengths, 0.9, lam, rho_max, c_max), atol=5e-5)


def test_vtrace_on_policy_is_the_lambda_return():
    columns, lengths = random_episodes(2, 60)
    ones = np.ones_like(columns["ratio"])
    np.testing.assert_allclose(
        vtrace_returns(columns, lengths, ones, 0.9, lam=0.7), lambda_returns(columns, lengths, 0.9, 0.7), atol=2e-5
    )


@pytest.mark.parametrize("two_players", [False, True])
@pytest.mark.parametrize("n_step", [1, 3, 20])
def test_n_step_rewards_and_their_factor_are_those_of_a_slow_loop(n_step, two_players):
    columns, lengths = random_episodes(3, 40, two_players)
    got = n_step_rewards(*as_rows(columns, lengths), n_step, 0.9, int(lengths.sum()))
    np.testing.assert_allclose(torch.stack(got), slow_n_step(columns, lengths, n_step, 0.9), atol=1e-5)


def test_full_returns_need_no_values():
    columns = {"reward": np.array([1.0, 2.0, 0.0]), "discount": np.array([1.0, 1.0, 1.0])}
    assert full_returns(columns, np.array([3]), 0.5).tolist() == [2, 2, 0]


@pytest.mark.parametrize(
    ("lam", "message"), [(1.5, r"lam must lie in \[0, 1\], got 1.5"), (0.5, r"lam \(0.5\) below 1 needs .* a value")]
)
def test_a_wrong_lambda_is_refused(lam, message):
    columns = {"reward": np.zeros(2), "discount": np.zeros(2)}
    with pytest.raises(ValueError, match=message):
        lambda_returns(columns, np.array([2]), 0.9, lam)


@pytest.mark.parametrize(
    ("lengths", "change", "message"),
    [
        (
            [3, 2],
            {},
            r"reward must have shape \(5,\), the sum of lengths, which are T \+ 1 .* got \(6,\)",
        ),
        ([4, 2], {"value": np.ones((6, 1))}, r"value must have shape \(6,\), .* got \(6, 1\)"),
        ([6, 0], {}, r"lengths must be T \+ 1 of at least one episode"),
    ],
)
def test_columns_that_are_not_those_of_the_lengths_are_refused(lengths, change, message):
    columns = {"reward": np.ones(6), "discount": np.ones(6), "value": np.ones(6)} | change
    with pytest.raises(ValueError, match=message):
        lambda_returns(columns, np.array(lengths), 0.9, 0.5)
    with pytest.raises(ValueError, match=message):
        vtrace_returns(columns, np.array(lengths), np.ones(int(sum(lengths))), 0.9)


def test_traces_need_a_lambda_and_a_ratio_for_each_row():
    columns = {"reward": np.ones(3), "discount": np.ones(3), "value": np.ones(3)}
    with pytest.raises(ValueError, match=r"lam must lie in \[0, 1\], got 2"):
        vtrace_returns(columns, np.array([3]), np.ones(3), 0.9, lam=2)
    with pytest.raises(ValueError, match=r"ratio must have shape \(3,\)"):
        vtrace_returns(columns, np.array([3]), np.ones(2), 0.9)


def test_what_is_said_beyond_a_true_end_counts_for_nothing():
    lengths = np.array([3, 2])
    columns = {
        "reward": np.array([1.0, 2.0, 0.0, 4.0, 0.0], np.float32),
        "discount": np.array([1.0, 0.0, 0.0, 1.0, 0.0], np.float32),
        "value": np.array([5.0, 6.0, np.nan, 7.0, 8.0], np.float32),
    }
    known = {**columns, "value": np.nan_to_num(columns["value"], nan=-3.0)}
    steps, ratio = [0, 1, 3], np.full(5, 0.5, np.float32)
    for lam in (0.0, 0.5, 1.0):
        got = lambda_returns(columns, lengths, 0.9, lam)[steps]
        np.testing.assert_array_equal(got, lambda_returns(known, lengths, 0.9, lam)[steps])
        assert got[1] == 2.0
    got = vtrace_returns(columns, lengths, ratio, 0.9)[steps]
    np.testing.assert_array_equal(got, vtrace_returns(known, lengths, ratio, 0.9)[steps])
    assert got[1] == 6 + 0.5 * (2 - 6)
    tensors = {key: torch.from_numpy(column) for key, column in columns.items()}
    parts = n_step_rewards(tensors, torch.tensor([0, 1, 3]), torch.tensor([2, 1, 1]), 2, 0.5, 5)
    got = n_step_returns(*parts, tensors["value"][[2, 2, 4]])
    assert got.tolist() == [1 + 0.5 * 2, 2.0, 4 + 0.5 * 8]
