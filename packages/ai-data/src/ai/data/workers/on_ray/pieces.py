"""Messages in pieces so small that Ray carries them within the reply of a call.

What is larger than a piece Ray writes to the store of one machine, fetches into that of the other, and maps there: for
a parcel of small episodes that takes more of the processor's time than the bytes themselves.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ai.data.workers.message import joined, split

# Below Ray's own 100 KiB (`max_direct_call_object_size`), by more than what it writes around an array.
_PIECE_BYTES = 96 << 10
# Of one reply, which Ray gives 10 MiB in all (`task_rpc_inlined_bytes_limit`).
MAX_BYTES = 64 * _PIECE_BYTES
# Where an array begins, so that any number may lie there.
_ALIGNMENT = 64


class Block:
    """A message as it lies in memory: its pickle and the arrays beside it, one after the other, in pieces.

    Args:
        message: copied; what happens to its arrays afterwards changes nothing here.

    Attributes:
        sizes: bytes of its pickle, and of each array beside it.
        n_bytes: of all, and of what lies between them.
        pieces: all of it; one piece if it is too large for a reply.
    """

    def __init__(self, message: Any) -> None:
        body, buffers = split(message)
        parts = [body, *buffers]
        self.sizes = [part.nbytes for part in parts]
        self.n_bytes = sum(_padded(size) for size in self.sizes)
        most = _PIECE_BYTES if self.n_bytes <= MAX_BYTES else self.n_bytes
        self.pieces = [b"".join(views) for views in _views(parts, most)]


def cut(blocks: Sequence[Block], n: int) -> list[Any]:
    """Returns the sizes of all blocks' parts, and then `n` pieces; all in one, for the store, where `n` are too few.

    Pieces are bytes, which Ray does not pickle; what is for the store is an array, which is read where it lies.
    """
    pieces: list[Any] = []
    for piece in (piece for block in blocks for piece in block.pieces):
        if pieces and len(pieces[-1]) + len(piece) <= _PIECE_BYTES:
            pieces[-1] += piece
        else:
            pieces.append(piece)
    if len(pieces) > n or sum(block.n_bytes for block in blocks) > MAX_BYTES:
        pieces = [np.frombuffer(pieces[0] if len(pieces) == 1 else b"".join(pieces), np.uint8)]
    return [[block.sizes for block in blocks], *pieces, *[None] * (n - len(pieces))]


def n_expected(sizes: Sequence[Sequence[int]], pieces: Sequence[bytes | np.ndarray | None]) -> int:
    """Returns into how many pieces messages like these are cut: 1 also where they are too many for a reply."""
    here = [piece for piece in pieces if piece is not None]
    if len(here) > 1:
        return len(here)
    n_bytes = sum(np.frombuffer(piece, np.uint8).nbytes for piece in here)
    # no two messages share a piece but where both have room there, so each after the first begins one at most
    return max(1, -(-n_bytes // _PIECE_BYTES) + len(sizes) - 1) if n_bytes <= MAX_BYTES else 1


def read(sizes: Sequence[Sequence[int]], pieces: Sequence[bytes | np.ndarray | None]) -> Iterator[Any]:
    """Returns the messages, each made when asked for; their arrays may be written to, and keep no store full."""
    here = [np.frombuffer(piece, np.uint8) for piece in pieces if piece is not None]
    return _read(sizes, np.concatenate([np.empty(0, np.uint8), *here]))


def _read(sizes: Sequence[Sequence[int]], whole: np.ndarray) -> Iterator[Any]:
    begin = 0
    for each in sizes:
        parts = []
        for size in each:
            parts.append(whole[begin : begin + size])
            begin += _padded(size)
        yield joined(parts[0], parts[1:])


def _views(parts: Sequence[memoryview], most: int) -> Iterator[list[memoryview]]:
    """Yields what each piece of at most `most` bytes is made of."""
    piece: list[memoryview] = []
    room = most
    for part in parts:
        for view in (part, memoryview(bytes(_padded(part.nbytes) - part.nbytes))):
            while view.nbytes > room:
                yield [*piece, view[:room]]
                piece, view, room = [], view[room:], most
            piece.append(view)
            room -= view.nbytes
    yield piece


def _padded(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
