"""Messages in pieces: whole again whatever their number, and each small enough to travel within a reply."""

import numpy as np
import pytest
import torch

from ai.data.workers.on_ray.pieces import MAX_PIECES, Block, cut, n_pieces, read

INLINE_BYTES = 100 << 10  # Ray's `max_direct_call_object_size`


def messages():
    rng = np.random.default_rng(0)
    return [
        ("episodes", {"obs": rng.normal(size=(70_000,)), "flag": np.array([True]), "none": np.empty((0, 3))}),
        ("taken", 7),
        ("mixed", np.arange(3, dtype=np.int8), np.arange(5.0), torch.arange(4, dtype=torch.bfloat16), "é"),
    ]


def assert_same(found, expected):
    assert repr(found) == repr(expected)
    assert np.array_equal(found[0][1]["obs"], expected[0][1]["obs"])


@pytest.mark.parametrize("n", [1, 2, 6, 9])
def test_messages_are_whole_again_in_order_from_too_few_enough_and_too_many_pieces(n):
    sizes, *pieces = cut([Block(message) for message in messages()], n)
    assert len(pieces) == n
    assert_same(list(read(sizes, pieces)), messages())


def test_each_piece_travels_within_the_reply_and_all_of_them_do():
    whole = Block(np.zeros(560_000, np.uint8))
    wanted = n_pieces(whole.data.nbytes)
    _sizes, *pieces = cut([whole], wanted + 2)
    assert [piece is not None for piece in pieces] == [True] * wanted + [False] * 2
    assert all(isinstance(piece, bytes) for piece in pieces[:wanted])  # which Ray does not pickle
    assert all(len(piece) + 4096 < INLINE_BYTES for piece in pieces[:wanted])
    assert MAX_PIECES * INLINE_BYTES < 10 << 20  # `task_rpc_inlined_bytes_limit`


def test_what_is_too_large_for_a_reply_is_one_piece():
    most = MAX_PIECES * (96 << 10)
    assert (n_pieces(0), n_pieces(1), n_pieces(most), n_pieces(most + 1)) == (1, 1, MAX_PIECES, 1)
    sizes, first, *rest = cut([Block(np.ones(most, np.uint8))], MAX_PIECES)
    assert first.nbytes > most
    first.setflags(write=False)  # as what comes out of a store is
    assert rest == [None] * (MAX_PIECES - 1)
    assert next(read(sizes, [first, *rest])).sum() == most


def test_no_message_is_no_message():
    sizes, *pieces = cut([], 3)
    assert not list(read(sizes, pieces))


def test_arrays_are_aligned_and_may_be_written_to_on_both_sides():
    array = np.arange(5.0)
    block = Block((np.zeros(3, np.int8), array))
    array += 1  # after it was sent
    sizes, *pieces = cut([block], 1)
    _, found = next(read(sizes, pieces))
    assert found.tolist() == [0, 1, 2, 3, 4]
    assert found.flags.aligned
    found += 1
    assert next(read(sizes, pieces))[1].tolist() == [0, 1, 2, 3, 4]
