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
