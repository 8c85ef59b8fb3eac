"""Shuffled orders that are looked up place by place, so that a large one need not be drawn to be begun."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ai.data.batch.seeds import derive_seed

# Orders of up to so many samples are drawn whole: 8 MB in some ten milliseconds, and then a batch costs nothing more.
DRAWN_WHOLE = 1 << 20
_N_ROUNDS = 6


def shuffled(places: Tensor, n: int, *place_of_draw: int) -> Tensor:
    """Returns what lies at `places` of a shuffled 0 … n - 1, in time and memory that do not grow with n beyond 2**20.

    Args:
        places: int64, each in [0, n).
        n: how many are shuffled.
        *place_of_draw: what the order is a function of, as of `derive_seed`.

    Up to 2**20 the order is `torch.randperm`'s. Beyond, it is a keyed bijection: a Feistel network of six rounds over
    the least power of two that holds n, followed from place to place until it lands below n.

    Source: Black and Rogaway, 2002, Ciphers with Arbitrary Finite Domains (cycle walking); Appleby, 2008, MurmurHash3
    (the rounds' mixing).

    >>> shuffled(torch.tensor([0, 1, 10**9 - 1]), 10**9, 3).unique().numel()
    3
    """
    if n <= DRAWN_WHOLE:
        generator = torch.Generator().manual_seed(derive_seed(*place_of_draw))
        return torch.randperm(n, generator=generator, device="cpu")[places]
    keys = [derive_seed(*place_of_draw, round_) & 0xFFFF_FFFF for round_ in range(_N_ROUNDS)]
    found = _permuted(places.numpy(), n, keys)
    beyond = np.flatnonzero(found >= n)
    while len(beyond):
        found[beyond] = _permuted(found[beyond], n, keys)
        beyond = beyond[found[beyond] >= n]
    return torch.from_numpy(found)


class Stretch:
    """Places `first` to `end` of a shuffled 0 … n - 1, looked up when they are asked for: a part of any size is small.

    Args:
        n: how many are shuffled.
        first: of the places.
        end: of the places, the first that is not among them.
        *place_of_draw: what the order is a function of, as of `shuffled`.

    >>> held_out = Stretch(10**9, 9 * 10**8, 10**9, 3)
    >>> len(held_out), bool(held_out[-1] == held_out[[5, 10**8 - 1]][1])
    (100000000, True)
    """

    def __init__(self, n: int, first: int, end: int, *place_of_draw: int) -> None:
        self._n = n
        self._places = range(first, end)
        self._place_of_draw = place_of_draw

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int | slice | Tensor | Sequence[int]) -> Tensor:
        """Returns what `tensor[index]` would, of the tensor with these numbers: int64."""
        if isinstance(index, slice):
            chosen = self._places[index]
            return self._looked_up(torch.arange(chosen.start, chosen.stop, chosen.step, device="cpu"))
        places = torch.as_tensor(index, device="cpu")
        if places.dtype == torch.bool:
            places = places.nonzero().view(-1)
        places = places.long()
        beyond = (places < -len(self)) | (places >= len(self))
        if beyond.any():
            raise IndexError(f"index ({places[beyond][0]}) is out of range for {len(self)} places")
        return self._looked_up(torch.where(places < 0, places + self._places.stop, places + self._places.start))

    def _looked_up(self, places: Tensor) -> Tensor:
        return shuffled(places.reshape(-1), self._n, *self._place_of_draw).view(places.shape)


def uniforms(places: Tensor, *place_of_draw: int) -> np.ndarray:
    """Returns a number in [0, 1) for each place, a function of the place alone: float64."""
    low = (places.numpy() & 0xFFFF_FFFF).astype(np.uint32)
    high = (places.numpy() >> 32).astype(np.uint32)
    halves = []
    for half in range(2):
        first, second = (derive_seed(*place_of_draw, half, turn) & 0xFFFF_FFFF for turn in range(2))
        halves.append(_mixed(_mixed(low, first) ^ high, second).astype(np.int64))
    return ((halves[0] << 21) | (halves[1] >> 11)) * 2.0**-53


def _permuted(places: np.ndarray, n: int, keys: list[int]) -> np.ndarray:
    """Returns a permutation of the numbers with as many bits as n - 1, at `places`."""
    n_bits = (n - 1).bit_length()
    n_low = n_bits // 2
    low = (places & ((1 << n_low) - 1)).astype(np.uint32)
    high = (places >> n_low).astype(np.uint32)
    for round_, key in enumerate(keys):
        if round_ % 2:
            low ^= _mixed(high, key) >> np.uint32(32 - n_low)
        else:
            high ^= _mixed(low, key) >> np.uint32(32 - (n_bits - n_low))
    return (high.astype(np.int64) << n_low) | low


def _mixed(half: np.ndarray, key: int) -> np.ndarray:
    """Returns 32 bits that depend on every bit of each number and of the key."""
    mixed = half ^ np.uint32(key)
    mixed ^= mixed >> np.uint32(16)
    mixed *= np.uint32(0x85EBCA6B)
    mixed ^= mixed >> np.uint32(13)
    mixed *= np.uint32(0xC2B2AE35)
    mixed ^= mixed >> np.uint32(16)
    return mixed
