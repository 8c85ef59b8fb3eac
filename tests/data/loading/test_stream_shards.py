"""Streams divided among ranks: where they go on, and where they cannot."""

from itertools import islice

import numpy as np
import pytest

from ai.data.loading.stream import StreamLoader
from tests.data.loading.test_stream import Stateful


def numbers(batches):
    return [int(number) for batch in batches for number in np.asarray(batch).reshape(len(batch), -1)[:, 0]]


@pytest.mark.parametrize("made", [lambda: range(20), Stateful], ids=["plain", "stateful"])
@pytest.mark.parametrize("train", [True, False])
def test_shards_go_on_where_a_resumed_stream_stood(train, made):
    loader = StreamLoader(made(), 2, train=train, n_workers=0)
    used = numbers(islice(loader, 4))
    resumed = StreamLoader(made(), 2, train=train, n_workers=0)
    resumed.load_state_dict(loader.state_dict())
    ranks = [resumed.shard(rank, 2) for rank in range(2)]
    rest = [numbers(islice(rank, 3)) for rank in ranks]
    first = 1 if made is Stateful else 0
    assert used == list(range(first, first + 8))
    assert rest == [list(range(first + 8 + rank, first + 20, 2)) for rank in range(2)]
    if train:  # and on into the next pass
        assert [sorted(numbers(islice(rank, 5))) for rank in ranks] == [
            list(range(first + rank, first + 20, 2)) for rank in range(2)
        ]


def test_a_shard_of_an_evaluation_that_was_used_begins_anew():
    loader = StreamLoader(range(8), 2, n_workers=0)
    next(iter(loader))
    assert numbers(loader.shard(1, 2)) == [1, 3, 5, 7]


def test_shards_that_cannot_share_a_position_are_refused():
    for shuffle, message in ((0, "3 samples into its pass, no multiple of 2"), (4, "among 4 that are shuffled")):
        loader = StreamLoader(range(20), 3, train=True, n_workers=0, shuffle=shuffle)
        next(iter(loader))
        with pytest.raises(ValueError, match=message):
            loader.shard(0, 2)
    with pytest.raises(ValueError, match="already shard 1 of 2"):
        StreamLoader(range(20), 3, n_workers=0).shard(1, 2).shard(0, 2)
