"""Seeds derived from the place of a draw, so that a random number never depends on what ran before it."""

import hashlib
import random
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor


def derive_seed(*place: int) -> int:
    """Returns a seed in [0, 2**63) that is a hash of `place`, for example (seed, epoch, index).

    Example:
        >>> derive_seed(0, 1, 2) == derive_seed(0, 1, 2), derive_seed(0, 1, 2) == derive_seed(0, 2, 1)
        (True, False)
    """
    return _seed(_hashed(place))


def derive_seeds(place: Iterable[int], numbers: Iterable[int]) -> Iterator[int]:
    """Yields `derive_seed(*place, number)` for each number; what they have in common is hashed once."""
    begun = _hashed(place)
    for number in numbers:
        whole = begun.copy()
        whole.update(_packed(number))
        yield _seed(whole)


def _hashed(place: Iterable[int]) -> "hashlib.blake2b":
    return hashlib.blake2b(b"".join(map(_packed, place)), digest_size=8)


def _seed(hashed: "hashlib.blake2b") -> int:
    return int.from_bytes(hashed.digest(), "little") >> 1


def _packed(number: int) -> bytes:
    # Modulo 2**64, since torch's own seeds go beyond a signed number.
    return (int(number) & 0xFFFF_FFFF_FFFF_FFFF).to_bytes(8, "little")


def seed_from(state: "Tensor") -> int:
    """Returns a seed that follows from the state of a generator: 128 bits."""
    digest = hashlib.blake2b(state.numpy().tobytes(), digest_size=16).digest()
    return int.from_bytes(digest, "little")


def seed_global_states(seed: int) -> None:
    """Seeds the global generators of Python, numpy and (where it is loaded) torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    if "torch" in sys.modules:
        import torch

        torch.default_generator.manual_seed(seed)


@contextmanager
def global_states_kept() -> Iterator[None]:
    """Restores the global generators of Python, numpy and torch's CPU on exit."""
    states = _global_states()
    try:
        yield
    finally:
        _set_global_states(states)


class OwnGlobalStates:
    """Global generators that belong to what runs inside `with`, from one `with` to the next.

    Args:
        seed: where they begin.
    """

    def __init__(self, seed: int) -> None:
        with global_states_kept():
            seed_global_states(seed)
            self._own = _global_states()

    def __enter__(self) -> None:
        self._outer = _global_states()
        _set_global_states(self._own)

    def __exit__(self, *error: object) -> None:
        self._own = _global_states()
        _set_global_states(self._outer)


def _global_states() -> tuple[Any, Any, Any]:
    import torch

    return random.getstate(), np.random.get_state(), torch.get_rng_state()


def _set_global_states(states: tuple[Any, Any, Any]) -> None:
    import torch

    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])
