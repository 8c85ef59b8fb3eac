"""The order of samples: a pure function of (seed, epoch, batch)."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ai.data.batch.order import Order, Position
from ai.data.batch.seeds import derive_seed


def epoch_of(order, epoch=0):
    return [order.indices(Position(epoch, k)).tolist() for k in range(len(order))]


def flat(batches):
    return [index for batch in batches for index in batch]


def test_eval_order_is_the_stored_one_with_its_tail():
    assert epoch_of(Order(5, 2, shuffle=False, endless=False, drop_last=False)) == [[0, 1], [2, 3], [4]]


def test_train_order_is_the_seeded_permutation_without_its_tail():
    order = Order(7, 3, shuffle=True, endless=True, drop_last=True, seed=5)
    generator = torch.Generator().manual_seed(derive_seed(5, 2))
    assert flat(epoch_of(order, 2)) == torch.randperm(7, generator=generator)[:6].tolist()


@pytest.fixture
def small_limit(monkeypatch):
    """Orders beyond 65,536 are looked up, so that looking up is tried at sizes that can be counted."""
    monkeypatch.setattr("ai.data.batch.shuffle.DRAWN_WHOLE", 1 << 16)


@pytest.mark.usefixtures("small_limit")
@pytest.mark.parametrize(("n", "batch_size", "world"), [(100_003, 64, 1), (100_003, 9000, 3), (70_001, 5, 7)])
@pytest.mark.parametrize("shuffle", [False, True])
def test_large_orders_give_each_sample_once_over_all_ranks(n, batch_size, world, shuffle):
    shards = [Order(n, batch_size, shuffle, False, False, seed=3).shard(rank, world) for rank in range(world)]
    given_ = torch.cat([shard.indices(Position(2, k)) for shard in shards for k in range(len(shard))])
    assert torch.equal(given_.sort().values, torch.arange(n))
    whole = Order(n, batch_size * world, shuffle, False, False, seed=3)
    together = torch.cat([shard.indices(Position(2, 1)) for shard in shards])
    assert torch.equal(together.sort().values, whole.indices(Position(2, 1)).sort().values)


def test_any_position_of_an_enormous_order_is_there_at_once():
    for shuffle in (False, True):  # each would be 8 TB if drawn
        order = Order(10**12, 32, shuffle, True, True, seed=1).shard(3, 1000)
        seen = torch.cat([order.indices(Position(9, len(order) - 1)), order.indices(Position(0, 0))])
        assert len(seen.unique()) == 64
        assert int(seen.max()) < 10**12


@pytest.mark.usefixtures("small_limit")
def test_the_first_scheme_draws_whole_orders():
    order = Order(70_000, 10, True, True, True, seed=5).drawn_as(6, 1)
    generator = torch.Generator().manual_seed(derive_seed(6, 2))
    assert torch.equal(order.indices(Position(2, 1)), torch.randperm(70_000, generator=generator)[10:20])
    assert not torch.equal(order.drawn_as(6, 2).indices(Position(2, 1)), order.indices(Position(2, 1)))


def test_epochs_and_seeds_differ():
    orders = {tuple(flat(epoch_of(Order(50, 50, True, True, True, seed=s), e))) for s in range(3) for e in range(3)}
    assert len(orders) == 9


def test_position_rolls_over_to_the_next_epoch_only_where_endless():
    assert Order(4, 2, True, True, True).after(Position(0, 1)) == Position(1, 0)
    ending = Order(4, 2, False, False, False)
    assert ending.ended(ending.after(Position(0, 1)))


def test_reading_two_epochs_alternately_gives_the_same_batches():
    order = Order(9, 2, True, True, True, seed=1)
    expected = {e: epoch_of(Order(9, 2, True, True, True, seed=1), e) for e in range(4)}
    for k in range(4):
        for epoch in (0, 3, 1, 2):
            assert order.indices(Position(epoch, k)).tolist() == expected[epoch][k]


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 60), batch_size=st.integers(1, 9), world=st.integers(1, 5), train=st.booleans())
def test_ranks_together_give_each_sample_once_and_the_batches_of_one_large_rank(n, batch_size, world, train):
    whole = Order(n, batch_size * world, train, train, train, seed=3)
    shards = [Order(n, batch_size, train, train, train, seed=3).shard(rank, world) for rank in range(world)]
    given = [index for shard in shards for batch in epoch_of(shard) for index in batch]
    assert len(given) == len(set(given))
    if train:  # ranks agree on the number of batches, whole ones only
        assert {len(shard) for shard in shards} == {n // world // batch_size}
    else:
        assert sorted(given) == list(range(n))
    for k in range(min(map(len, shards))):
        together = sorted(flat(shard.indices(Position(0, k)).tolist() for shard in shards))
        assert together == sorted(whole.indices(Position(0, k)).tolist())


def test_single_batch_repeats_the_first_one_of_epoch_0():
    order = Order(10, 3, True, True, True, single_batch=True)
    first = Order(10, 3, True, True, True).indices(Position(0, 0)).tolist()
    assert len(order) == 1
    assert [order.indices(Position(e, 0)).tolist() for e in range(3)] == [first] * 3


def test_bad_ranks_are_refused():
    with pytest.raises(ValueError, match=r"rank \(2\) must lie in \[0, world\) with world \(2\)"):
        Order(10, 2, True, True, True).shard(2, 2)
    with pytest.raises(ValueError, match="already shard 1 of 2"):
        Order(10, 2, True, True, True).shard(1, 2).shard(0, 2)
