"""Samplers and splits: shares as asked, every sample where promised, resumable and alike on all ranks."""

from itertools import islice

import numpy as np
import pytest
import torch
from scipy import stats

from ai.data import Dataset, padded
from ai.data.batch.order import Order, Position
from ai.data.batch.shuffle import uniforms
from ai.data.sampling import balanced, by_length, in_blocks, weighted


def test_uniforms_are_uniform_and_apart():
    for place in ((0, 0), (1, 0), (0, 1), (2**63, 7)):
        drawn = uniforms(torch.arange(50_000), *place)
        assert stats.kstest(drawn, "uniform").pvalue > 1e-4
        assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 0.02
        assert len(np.unique(drawn)) == 50_000
    assert not np.array_equal(uniforms(torch.arange(9), 0, 1), uniforms(torch.arange(9), 1, 0))
    assert len(np.unique(uniforms(torch.arange(9) << 32, 0))) == 9


def test_weighted_draws_follow_the_weights_and_never_take_what_weighs_nothing():
    weights = [0.0, 1.0, 2.0, 0.0, 5.0, 0.0]
    order = Order(6, 6, True, True, True, sampler=weighted(weights))
    drawn = torch.cat([order.indices(Position(epoch, 0)) for epoch in range(2000)])
    counts = torch.bincount(drawn, minlength=6).numpy()
    assert counts[[0, 3, 5]].tolist() == [0, 0, 0]
    assert stats.chisquare(counts[[1, 2, 4]], np.array([1, 2, 5]) * 1500).pvalue > 1e-4


def test_balanced_draws_take_classes_alike():
    labels = torch.tensor([3] * 900 + [5] * 90 + [9] * 10)
    order = Order(1000, 1000, True, True, True, sampler=balanced(labels))
    drawn = labels[torch.cat([order.indices(Position(epoch, 0)) for epoch in range(9)])]
    assert stats.chisquare(torch.bincount(drawn)[[3, 5, 9]].numpy()).pvalue > 1e-4


@pytest.mark.parametrize("world", [1, 3])
def test_batches_of_like_lengths_hold_each_sample_once(world):
    lengths = np.random.default_rng(0).integers(1, 500, 1000)
    shards = [
        Order(1000, 8, True, False, False, seed=2, sampler=by_length(lengths, 10)).shard(rank, world)
        for rank in range(world)
    ]
    batches = [[shard.indices(Position(1, k)) for k in range(len(shard))] for shard in shards]
    drawn = torch.cat([batch for own in batches for batch in own])
    assert torch.equal(drawn.sort().values, torch.arange(1000))
    spread = np.mean([np.ptp(lengths[batch]) for own in batches for batch in own])
    assert spread < 500 / 5  # of 8 at random it is 389
    means = [lengths[batch].mean() for batch in batches[0][:10]]
    assert sorted(means) != means  # batches come in no order of length
    other = torch.cat([shards[0].indices(Position(2, k)) for k in range(3)])
    assert not torch.equal(other, torch.cat(batches[0][:3]))


@pytest.mark.parametrize("sampler", [weighted(range(1, 41)), balanced([0, 1] * 20), by_length(range(40), 2)])
def test_loaders_with_a_sampler_resume_at_every_batch_and_divide_among_ranks(sampler):
    ds = Dataset(torch.arange(40))

    def made():
        return ds.loader(4, train=True, sampler=sampler)

    loader, states, batches = made(), [], []
    for _ in range(24):
        states.append(loader.state_dict())
        batches.append(next(iter(loader)))
    for state, expected in zip(states, batches, strict=True):
        again = made()
        again.load_state_dict(state)
        assert torch.equal(next(iter(again)), expected)
    whole = ds.loader(8, train=True, sampler=sampler)
    shards = [made().shard(rank, 2) for rank in range(2)]
    for _ in range(7):
        together = torch.cat([next(iter(shard)) for shard in shards])
        assert torch.equal(together.sort().values, next(iter(whole)).sort().values)
    with pytest.raises(ValueError, match="of another dataset or mode: its sampler is None, ours "):
        loader.load_state_dict(ds.loader(4, train=True).state_dict())
    with pytest.raises(ValueError, match="sampler must be of the 39 samples of the dataset, it is of 40"):
        ds[:39].loader(4, sampler=sampler)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: weighted([1.0, -1.0]), "weights must be finite numbers of at least 0"),
        (lambda: weighted([0.0, 0.0]), "and not all 0"),
        (lambda: weighted([1.0, float("nan")]), "weights must be finite"),
        (lambda: balanced([0.5, 1.0]), r"labels must be one whole number a sample, got float64 of shape \(2,\)"),
        (lambda: by_length([[1, 2]]), r"lengths must be one number a sample, got int64 of shape \(1, 2\)"),
        (lambda: by_length([1], 0), "window must be at least 1 batch, got 0"),
    ],
)
def test_bad_samplers_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_stratified_parts_have_every_class_in_its_share():
    rng = np.random.default_rng(1)
    y = torch.from_numpy(rng.choice(30, 2000, p=np.arange(1, 31) / 465))
    ds = Dataset({"i": torch.arange(2000), "y": y})
    parts = ds.split(0.7, 0.2, 0.1, stratify="y")
    assert [len(part) for part in parts] == [1400, 400, 200]
    assert torch.equal(torch.cat([part.data["i"] for part in parts]).sort().values, torch.arange(2000))
    for part, share in zip(parts, (0.7, 0.2, 0.1), strict=True):
        counts = torch.bincount(part.data["y"], minlength=30)
        assert float((counts - share * torch.bincount(y, minlength=30)).abs().max()) <= 1
        assert part.data["i"].tolist() != sorted(part.data["i"].tolist())
    again = ds.split(0.7, 0.2, 0.1, stratify="y")
    assert all(torch.equal(a.data["i"], b.data["i"]) for a, b in zip(parts, again, strict=True))
    assert not torch.equal(ds.split(0.7, 0.3, seed=1, stratify="y")[0].data["i"], ds.split(0.7, 0.3)[0].data["i"])


def test_stratifying_many_small_classes_starves_no_part():
    y = torch.arange(1000) // 4
    train, test = Dataset({"y": y}).split(0.9, 0.1, stratify="y")
    assert (len(train), len(test)) == (900, 100)
    with pytest.raises(ValueError, match="stratify must name a column of one whole number a sample, got 'z'"):
        Dataset({"y": y}).split(0.9, 0.1, stratify="z")
    with pytest.raises(ValueError, match=r"stratify needs fractions that sum to 1, got \(900, 100\)"):
        Dataset({"y": y}).split(900, 100, stratify="y")


def test_sequences_are_padded_with_masks():
    rows = [np.arange(n, dtype=np.int16) + 1 for n in (3, 1, 2, 4)]
    ds = Dataset({"x": rows, "y": [0, 1, 2, 3]})
    (batch,) = ds.loader(4, n_workers=0, collate=padded("x", value=-1))
    assert batch["x"].tolist() == [[1, 2, 3, -1], [1, -1, -1, -1], [1, 2, -1, -1], [1, 2, 3, 4]]
    assert batch["x"].dtype == torch.int16
    assert batch["x_mask"].sum(1).tolist() == [3, 1, 2, 4]
    assert batch["y"].tolist() == [0, 1, 2, 3]
    pairs = padded()([np.ones((2, 3)), np.ones((1, 3))])
    assert pairs["x"].shape == (2, 2, 3)
    assert pairs["x"][1, 1].tolist() == [0, 0, 0]
    with pytest.raises(ValueError, match=r"padded needs samples with the keys \['z'\], got \['x', 'y'\]"):
        next(iter(ds.loader(4, n_workers=0, collate=padded("z"))))
    with pytest.raises(ValueError, match=r"'x' must be sequences alike but for their lengths, got int64"):
        padded()([np.ones(2, int), np.ones(2)])


def test_an_epoch_does_not_always_lack_its_longest_samples():
    loader = Dataset(torch.arange(100)).loader(16, train=True, sampler=by_length(range(100)))
    batches = [batch.numpy() for batch in islice(loader, 6 * 40)]
    assert len(np.unique(batches)) == 100
    assert np.mean([np.ptp(batch) for batch in batches]) < 25


def test_a_state_within_an_epoch_that_a_sampler_cut_fits_the_same_batches_alone():
    ds = Dataset(torch.arange(96))

    def begun(n, sampler, n_batches):
        loader = ds.loader(n, train=True, sampler=sampler)
        drawn = [batch for batch in islice(loader, n_batches)]
        return loader, torch.cat(drawn)

    state = begun(8, by_length(range(96)), 4)[0].state_dict()
    with pytest.raises(ValueError, match="cut into batches of 8 samples on all ranks, this loader's are of 16"):
        ds.loader(16, train=True, sampler=by_length(range(96))).load_state_dict(state)
    with pytest.raises(ValueError, match="cut into batches of 8 samples on all ranks, this loader's are of 16"):
        begun(8, by_length(range(96)), 4)[0].shard(0, 2)
    halves = [ds.loader(4, train=True, sampler=by_length(range(96))).shard(rank, 2) for rank in range(2)]
    rest = []
    for half in halves:  # as many samples a step
        half.load_state_dict(state)
        rest += islice(half, 8)
    drawn = begun(8, by_length(range(96)), 4)[1]
    assert torch.equal(torch.cat([drawn, *rest]).sort().values, torch.arange(96))
    loader, _ = begun(8, by_length(range(96)), 12)  # between two epochs
    ds.loader(16, train=True, sampler=by_length(range(96))).load_state_dict(loader.state_dict())
    weights = weighted(torch.arange(96.0))
    loader, _ = begun(8, weights, 4)
    other = ds.loader(16, train=True, sampler=weights)
    other.load_state_dict(loader.state_dict())
    assert torch.equal(next(iter(other)), torch.cat([next(iter(loader)) for _ in range(2)]))


def test_weights_whose_sum_is_beyond_a_float_still_count():
    drawn = weighted([1e308] * 3)(torch.arange(300), seed=0, epoch=0, together=300)
    assert torch.bincount(drawn, minlength=3).min() > 60


def test_padding_that_would_change_or_lose_values_is_refused():
    samples = [{"x": np.array([1])}, {"x": np.array([1, 2])}]
    with pytest.raises(ValueError, match=r"value must be one that 'x' can hold, int64, got 0\.5"):
        padded("x", value=0.5)(samples)
    assert padded("x", value=-100)(samples)["x"].tolist() == [[1, -100], [1, 2]]
    with pytest.raises(ValueError, match=r"may not have the keys \['x_mask'\]"):
        padded("x")([{"x": np.array([1]), "x_mask": 1}])
    with pytest.raises(ValueError, match=r"the same keys, got \['x'\] and \['x', 'y'\]"):
        padded("x")([*samples, {"x": np.array([1]), "y": 1}])


def test_a_part_of_a_mapped_column_is_stratified(tmp_path):
    labels = np.memmap(tmp_path / "y", np.int64, "w+", shape=(40,))
    labels[:] = np.arange(40) % 2
    part = Dataset({"y": labels}).subset(list(range(20)))
    assert [part.data["y"].tensor().float().mean().item() for part in part.split(0.5, 0.5, stratify="y")] == [0.5, 0.5]


@pytest.mark.parametrize(("n", "block", "mix"), [(1000, 16, 4), (1003, 16, 4), (7, 16, 4), (64, 1, 1)])
def test_blocks_give_each_sample_once_and_read_few_stretches_at_a_time(n, block, mix):
    sampler = in_blocks(n, block, mix)
    epochs = [sampler(torch.arange(n), seed=1, epoch=epoch, together=8) for epoch in range(2)]
    for epoch in epochs:
        assert sorted(epoch.tolist()) == list(range(n))
    if n > block:
        assert not torch.equal(*epochs)
        window = epochs[0][: block * mix].sort().values
        assert int((window.diff() > 1).sum()) <= mix + 1
    by_batches = [sampler(part, seed=1, epoch=0, together=8) for part in torch.arange(n).split(8)]
    assert torch.equal(torch.cat(by_batches), epochs[0])


def test_blocks_resume_with_another_batch_size_and_are_dealt_to_ranks():
    ds = Dataset(torch.arange(96))
    reference = torch.cat(list(islice(ds.loader(4, train=True, sampler=in_blocks(96, 8, 2)), 48)))
    loader = ds.loader(4, train=True, sampler=in_blocks(96, 8, 2))
    list(islice(loader, 6))
    other = ds.loader(8, train=True, sampler=in_blocks(96, 8, 2))
    other.load_state_dict(loader.state_dict())
    assert torch.equal(torch.cat(list(islice(other, 21))), reference[24:])
    ranks = [ds.loader(4, sampler=in_blocks(96, 8, 2)).shard(rank, 2) for rank in range(2)]
    assert sorted(torch.cat([torch.cat(list(rank)) for rank in ranks]).tolist()) == list(range(96))
    with pytest.raises(ValueError, match="mix must be at least 1, got 0"):
        in_blocks(96, 8, 0)
