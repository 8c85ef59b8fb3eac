"""Messages in pieces: whole again whatever their number, and each small enough to travel within a reply."""

import numpy as np
import pytest
import torch

from ai.data.workers.on_ray.pieces import MAX_BYTES, Block, cut, n_expected, read

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
    wanted = len(whole.pieces)
    assert wanted == -(-whole.n_bytes // (96 << 10)) == 6
    _sizes, *pieces = cut([whole], wanted + 2)
    assert [piece is not None for piece in pieces] == [True] * wanted + [False] * 2
    assert all(isinstance(piece, bytes) for piece in pieces[:wanted])  # which Ray does not pickle
    assert all(len(piece) + 1024 < INLINE_BYTES for piece in pieces[:wanted])
    assert MAX_BYTES * 1.1 < 10 << 20  # `task_rpc_inlined_bytes_limit`


@pytest.mark.parametrize("n_arrays", [1, 700, 7])
@pytest.mark.parametrize("n_messages", [1, 3, 8])
def test_as_many_pieces_as_are_expected_after_messages_suffice_for_their_like(n_messages, n_arrays):
    rng = np.random.default_rng(n_messages)
    sent = [[rng.integers(256, size=200_001, dtype=np.uint8)[i::n_arrays] for i in range(n_arrays)]] * n_messages
    first, *by_store = cut([Block(message) for message in sent], 1)
    assert isinstance(by_store[0], np.ndarray)
    n = n_expected(first, by_store)
    sizes, *pieces = cut([Block(message) for message in sent], n)
    assert {type(piece) for piece in pieces} <= {bytes, type(None)}
    assert n_expected(sizes, pieces) <= n <= sum(map(len, by_store)) // (96 << 10) + n_messages
    for found, message in zip(read(sizes, pieces), sent, strict=True):
        assert all(np.array_equal(*pair) for pair in zip(found, message, strict=True))


def test_small_messages_share_a_piece():
    sizes, *pieces = cut([Block(bytes(1000))] * 8, 3)
    assert [piece is not None for piece in pieces] == [True, False, False]
    assert list(read(sizes, pieces)) == [bytes(1000)] * 8


def test_what_is_too_large_for_a_reply_is_one_piece():
    sizes, first, *rest = cut([Block(np.ones(MAX_BYTES, np.uint8))], 70)
    assert first.nbytes > MAX_BYTES
    assert not first.flags.writeable  # as what comes out of a store is
    assert rest == [None] * 69
    assert n_expected(sizes, [first, *rest]) == 1
    assert next(read(sizes, [first, *rest])).sum() == MAX_BYTES


def test_no_message_is_no_message():
    sizes, *pieces = cut([], 3)
    assert not list(read(sizes, pieces))
    assert n_expected(sizes, pieces) == 1


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
