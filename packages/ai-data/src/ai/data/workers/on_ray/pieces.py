"""Messages as one block of bytes, cut so small that Ray carries the pieces within the reply of a call.

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
MAX_PIECES = 64
MAX_BYTES = MAX_PIECES * _PIECE_BYTES
# Where an array begins, so that any number may lie there.
_ALIGNMENT = 64


class Block:
    """A message as it lies in memory.

    Args:
        message: copied; what happens to its arrays afterwards changes nothing here.

    Attributes:
        sizes: bytes of its pickle, and of each array beside it.
        data: all of them, one after the other.
    """

    def __init__(self, message: Any) -> None:
        body, buffers = split(message)
        parts = [np.asarray(part) for part in (body, *buffers)]
        self.sizes = [part.nbytes for part in parts]
        self.data = np.empty(sum(_padded(size) for size in self.sizes), np.uint8)
        begin = 0
        for part in parts:
            self.data[begin : begin + part.nbytes] = part
            begin += _padded(part.nbytes)


def n_pieces(n_bytes: int) -> int:
    """Returns how many pieces so many bytes are cut into: 1 also where they are too many for a reply."""
    n = max(1, -(-n_bytes // _PIECE_BYTES))
    return n if n <= MAX_PIECES else 1


def cut(blocks: Sequence[Block], n: int) -> list[Any]:
    """Returns the sizes of all blocks' parts, and then `n` pieces; all in one, for the store, where `n` are too few.

    Pieces are bytes, which Ray does not pickle; what is for the store is an array, which is read where it lies.
    """
    whole = blocks[0].data if len(blocks) == 1 else np.concatenate([np.empty(0, np.uint8), *(b.data for b in blocks)])
    wanted = n_pieces(whole.nbytes)
    if wanted > n or whole.nbytes > MAX_BYTES:
        pieces: list[Any] = [whole]
    else:
        pieces = [piece.tobytes() for piece in np.array_split(whole, wanted)]
    return [[block.sizes for block in blocks], *pieces, *[None] * (n - len(pieces))]


def read(sizes: Sequence[Sequence[int]], pieces: Sequence[bytes | np.ndarray | None]) -> Iterator[Any]:
    """Returns the messages, each made when asked for; their arrays may be written to, and keep no store full."""
    return _read(sizes, np.concatenate([np.frombuffer(piece, np.uint8) for piece in pieces if piece is not None]))


def _read(sizes: Sequence[Sequence[int]], whole: np.ndarray) -> Iterator[Any]:
    begin = 0
    for each in sizes:
        parts = []
        for size in each:
            parts.append(whole[begin : begin + size])
            begin += _padded(size)
        yield joined(parts[0], parts[1:])


def _padded(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
