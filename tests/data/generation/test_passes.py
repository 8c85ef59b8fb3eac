"""Passes over rollouts: each step the same number of times, an order of its own each time, exact states."""

import copy
from itertools import islice

import numpy as np
import pytest
import torch

from ai.data import Datagen, Packed, lambda_returns
from tests.data.helpers_data import Walk


class Counts(Walk):
    """Rollouts of two episodes, of 4 and 6 steps, whose observations never repeat."""

    def __next__(self):
        self.made += 1
        obs = np.arange(12) + 100 * self.made
        columns = {
            "obs": obs,
            "action": self.rng.integers(0, 9, 12),
            "reward": np.ones(12, np.float32),
            "value": obs.astype(np.float32),
            "truncated": np.zeros(12, bool),
            "memory": np.stack([obs, obs], 1),
        }
        return Packed(columns, np.array([5, 7]), finished={"episode_return": np.array([float(self.made)])})


def loader(passes=3, **how):
    return Datagen(Counts()).passes(passes, **how)


STEPS = [*range(4), *range(5, 11)]


def test_every_step_comes_once_a_pass_and_no_rollout_returns():
    data = loader(3, batches=2)
    for rollout in (1, 2):
        orders = []
        for _ in range(3):
            order = torch.cat([next(data)["obs"] for _ in range(2)]).tolist()
            assert sorted(order) == [100 * rollout + step for step in STEPS]
            orders.append(tuple(order))
        assert len(set(orders)) == 3
    assert data.stats()["steps"] == 20
    assert data.stats()["rollouts"] == 2
    assert data.stats()["return"] == 1.5


def test_the_order_is_a_function_of_seed_rollout_and_pass():
    runs = [[batch["obs"].tolist() for batch in islice(loader(2, seed=seed), 6)] for seed in (0, 0, 1)]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_targets_and_advantages_are_those_of_the_whole_rollout():
    batch = next(loader(gamma=0.9, lam=0.5))
    source = Counts()
    source.start(0, 0)
    made = next(source)
    columns = {**made.columns, "discount": np.ones(12, np.float32)}
    columns["discount"][[3, 10]] = 0
    want = lambda_returns(columns, made.lengths, 0.9, 0.5)
    rows = (batch["obs"] - 100).tolist()
    assert batch["target"].tolist() == want[rows].tolist()
    torch.testing.assert_close(batch["advantage"], batch["target"] - batch["value"])


def test_without_a_later_reward_the_target_is_the_reward_itself():
    batch = next(loader(gamma=0.0))
    assert torch.equal(batch["target"], batch["reward"])


def test_sequences_stay_within_their_episode():
    data = loader(1, batches=2, sequence=4)
    batches = [next(data) for _ in range(2)]
    found = {}
    for batch in batches:
        for obs, mask, memory in zip(
            batch["obs"].tolist(), batch["mask"].tolist(), batch["memory"].tolist(), strict=True
        ):
            assert [row[0] for row in memory] == obs
            found[obs[0] - 100] = [o - 100 for o, m in zip(obs, mask, strict=True) if m]
    assert found == {0: [0, 1, 2, 3], 5: [5, 6, 7, 8], 9: [9, 10]}


def test_parameters_are_wanted_just_before_a_rollout():
    data = loader(2, batches=2)
    wanted = []
    for _ in range(8):
        wanted.append((data.wants_params(), data.wants_params(3)))
        next(data)
    assert wanted == [(True, True), (False, False), (False, True), (False, True)] * 2


@pytest.mark.parametrize("sequence", [None, 3])
@pytest.mark.parametrize("stop", range(1, 12, 2))
def test_resuming_at_any_batch_changes_nothing(stop, sequence, tmp_path):
    def drive(data, first, last):
        for k in range(first, last):
            if data.wants_params():
                data.update_params({"w": torch.tensor(float(k))})
            yield next(data)

    reference = list(drive(loader(2, batches=2, sequence=sequence), 0, 13))
    before, after = (loader(2, batches=2, sequence=sequence) for _ in range(2))
    head = list(drive(before, 0, stop))
    torch.save(copy.deepcopy(before.state_dict()), tmp_path / "state.pt")
    after.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for ours, theirs in zip(head + list(drive(after, stop, 13)), reference, strict=True):
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert after.stats()["return"] == np.mean(range(1, 5))


def test_single_episodes_are_rollouts_too_and_the_postprocess_draws_by_place():
    def jitter(batch, generator):
        return {**batch, "r": torch.rand(2, generator=generator)}

    make = lambda: Datagen(Walk(6), jitter).passes(2, batches=3)  # noqa: E731
    ours, theirs = list(islice(make(), 7)), list(islice(make(), 7))
    assert all(torch.equal(a["r"], b["r"]) for a, b in zip(ours, theirs, strict=True))
    assert len({a["r"][0].item() for a in ours}) == 7
    assert "advantage" not in ours[0]  # without values


def test_ranks_have_rollouts_of_their_own():
    first, second = (next(loader().shard(rank, 2))["action"].tolist() for rank in range(2))
    assert sorted(first) != sorted(second)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"passes": 0}, "passes must be at least 1, got 0"),
        ({"batches": 0}, "batches must be at least 1, got 0"),
        ({"sequence": 0}, "sequence must be at least 1, got 0"),
        ({"gamma": 1.5}, r"gamma must lie in \[0, 1\], got 1.5"),
        ({"lam": -1}, r"lam must lie in \[0, 1\], got -1"),
    ],
)
def test_arguments_out_of_range_are_refused(how, message):
    with pytest.raises(ValueError, match=message):
        loader(**{"passes": 1, **how})


def test_more_parts_than_steps_are_refused():
    with pytest.raises(ValueError, match=r"batches \(11\) must not exceed the 10 steps of a rollout"):
        next(loader(batches=11))


def test_another_loaders_state_is_refused():
    with pytest.raises(ValueError, match="state must be the state_dict of a PassesLoader"):
        loader().load_state_dict({"seed": 0})


def test_repr_tells_source_and_rollout():
    data = loader(3, batches=2)
    assert repr(data) == "PassesLoader(3 passes of 2 batches on cpu, of Counts, no rollout yet)"
    next(data)
    assert repr(data).startswith("PassesLoader(3 passes of 2 batches on cpu, of Counts, obs: int64[], action: int64[]")


@pytest.mark.parametrize("how", [{"passes": 3}, {"batches": 2}, {"gamma": 0.5}, {"lam": 0.5}, {"sequence": 2}])
def test_a_state_of_another_cut_of_the_rollouts_is_refused(how):
    before = loader(**{"passes": 1, "batches": 1})
    next(before)
    after, same = (loader(**{"passes": 1, "batches": 1, **how}) for _ in range(2))
    ((name, value),) = how.items()
    with pytest.raises(ValueError, match=f"the state is of a loader of {name} .*, this one has {value}"):
        after.load_state_dict(before.state_dict())
    assert next(after)["obs"].tolist() == next(same)["obs"].tolist()


@pytest.mark.parametrize(
    "again",
    [
        lambda first: first.shard(0, 2),
        lambda first: Datagen(first.source).passes(1),
        lambda first: Datagen(first.source).loader(4, n_workers=0, replay_ratio=1),
    ],
)
def test_a_source_that_another_loader_has_begun_is_no_longer_acted_in(again):
    first = loader(1)
    next(first)
    second = again(first)
    for use in (first.state_dict, lambda: next(first)):
        with pytest.raises(RuntimeError, match="source was begun anew by another who acts in it"):
            use()
    assert int(next(second)["obs"].min()) < int(next(second)["obs"].min())
