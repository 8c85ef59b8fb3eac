"""Which samples an epoch takes: weighted, balanced by class, or in batches of like lengths; each exactly resumable.

A sampler is given to a loader, `ds.loader(64, train=True, sampler=balanced(ds.data["y"]))`. It is a function of
(seed, epoch, place), so nothing of it need be stored, and ranks divide it among themselves.

Example:
    >>> import torch
    >>> from ai.data import Dataset
    >>> ds = Dataset({"x": torch.arange(100), "y": [0] * 90 + [1] * 10})
    >>> loader = ds.loader(50, train=True, sampler=balanced(ds.data["y"]))
    >>> 15 < int(next(iter(loader))["y"].sum()) < 35
    True
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ai.data.arguments import check_at_least, check_whole
from ai.data.batch.seeds import derive_seed
from ai.data.batch.shuffle import DRAWN_WHOLE, shuffled, uniforms


def weighted(weights: Sequence[float] | Tensor | np.ndarray) -> "Weighted":
    """Returns a sampler that draws each sample in proportion to its weight, with replacement.

    Args:
        weights: one for each sample, at least 0; they need not sum to 1.
    """
    return Weighted(_numbers("weights", weights).astype(np.float64))


def balanced(labels: Sequence[int] | Tensor | np.ndarray) -> "Weighted":
    """Returns a sampler that draws every class equally often, and within a class every sample.

    Args:
        labels: one whole number for each sample, such as `ds.data["y"]`.
    """
    numbers = _numbers("labels", labels)
    if numbers.ndim != 1 or numbers.dtype.kind not in "biu":
        raise ValueError(f"labels must be one whole number a sample, got {numbers.dtype} of shape {numbers.shape}")
    _, which, counts = np.unique(numbers, return_inverse=True, return_counts=True)
    return Weighted(1 / counts[which])


def by_length(lengths: Sequence[int] | Tensor | np.ndarray, window: int = 50) -> "ByLength":
    """Returns a sampler whose batches hold samples of like lengths, in shuffled order; each sample once an epoch.

    So many batches at a time are drawn, sorted by length, cut and shuffled as wholes: little is padded, and neighbours
    in length are others in every epoch. A state taken within an epoch needs as many samples a batch, on all ranks
    together, where it is loaded.

    Args:
        lengths: one for each sample.
        window: batches that are sorted together.
    """
    check_whole(window=window)
    if window < 1:
        raise ValueError(f"window must be at least 1 batch, got {window}")
    return ByLength(_numbers("lengths", lengths), int(window))


def in_blocks(n: int, block: int = 1024, mix: int = 16) -> "Blocks":
    """Returns a sampler that shuffles without jumping about, for what is larger than memory; each sample once an epoch.

    The samples are cut into blocks of neighbours, the blocks are shuffled, and so many of them at a time are mixed with
    each other: a file is read by blocks, as through a shuffle buffer of `block` × `mix` samples. Where the blocks begin
    is drawn anew for each epoch.

    Args:
        n: samples, `len(ds)`.
        block: samples that lie together.
        mix: blocks that are mixed.
    """
    check_at_least(1, n=n, block=block, mix=mix)
    return Blocks(int(n), int(block), int(mix))


class Weighted:
    """Draws with replacement; made by `weighted` and `balanced`.

    Args:
        weights: `[n]` float64.
    """

    any_cut = True

    def __init__(self, weights: np.ndarray) -> None:
        if weights.ndim != 1 or not np.isfinite(weights).all() or (weights < 0).any() or not weights.any():
            raise ValueError("weights must be finite numbers of at least 0, one for each sample, and not all 0")
        self._ends = np.cumsum(weights / weights.max())

    def __len__(self) -> int:
        return len(self._ends)

    def __call__(self, places: Tensor, *, seed: int, epoch: int, together: int) -> Tensor:
        """Returns the samples at `places`."""
        masses = uniforms(places, seed, epoch) * self._ends[-1]
        found = np.searchsorted(self._ends, masses, side="right")
        return torch.from_numpy(np.minimum(found, np.searchsorted(self._ends, self._ends[-1])))

    def fingerprint(self) -> str:
        """Tells this sampler from others."""
        return f"weighted {_digest(self._ends)}"


class ByLength:
    """Draws batches of like lengths; made by `by_length`.

    Args:
        lengths: `[n]`.
        window: batches that are sorted together.
    """

    def __init__(self, lengths: np.ndarray, window: int) -> None:
        if lengths.ndim != 1 or not len(lengths) or lengths.dtype.kind not in "iuf":
            raise ValueError(f"lengths must be one number a sample, got {lengths.dtype} of shape {lengths.shape}")
        if not (lengths >= 0).all():
            raise ValueError(f"lengths must be at least 0, got {lengths[~(lengths >= 0)][0]}")
        self._lengths = lengths
        self._window = window
        self._last: tuple[Any, Tensor] | None = None

    def __len__(self) -> int:
        return len(self._lengths)

    def __call__(self, places: Tensor, *, seed: int, epoch: int, together: int) -> Tensor:
        """Returns the samples at `places`, which lie within one batch of `together`."""
        size = self._window * together
        which = int(places[0]) // size
        first = which * size
        key = (seed, epoch, together, which)
        last = self._last  # another thread may look into another stretch
        if last is None or last[0] != key:
            end = min(first + size, len(self))
            samples = shuffled(torch.arange(first, end, device="cpu"), len(self), seed, epoch)
            n_whole = len(samples) // together
            # What is over is taken off before the sorting: after it, an epoch would always lack its longest samples.
            whole, over = samples[: n_whole * together], samples[n_whole * together :]
            whole = whole[torch.from_numpy(np.argsort(self._lengths[whole.numpy()], kind="stable"))]
            order = np.random.default_rng([seed % 2**64, epoch, which]).permutation(n_whole)
            last = key, torch.cat([whole.view(n_whole, together)[torch.from_numpy(order)].reshape(-1), over])
            self._last = last
        return last[1][places - first]

    def fingerprint(self) -> str:
        """Tells this sampler from others."""
        return f"by length {self._window} {_digest(self._lengths)}"


class Blocks:
    """Draws blocks of neighbours, mixed; made by `in_blocks`."""

    any_cut = True

    def __init__(self, n: int, block: int, mix: int) -> None:
        self._n = n
        self._block = block
        self._mix = mix
        self._orders: dict[tuple[int, ...], Tensor] = {}  # drawn whole, by what they were drawn for

    def __len__(self) -> int:
        return self._n

    def __call__(self, places: Tensor, *, seed: int, epoch: int, together: int) -> Tensor:
        """Returns the samples at `places`."""
        size = self._block * self._mix
        drawn = torch.empty_like(places)
        for which in range(int(places[0]) // size, int(places[-1]) // size + 1):
            first, end = which * size, min((which + 1) * size, self._n)
            here = (places >= first) & (places < end)
            drawn[here] = first + self._shuffled(places[here] - first, end - first, seed, epoch, which)
        number, within = drawn // self._block, drawn % self._block
        n_whole = self._n // self._block  # the incomplete one comes last, and is another in every epoch
        whole = number < n_whole
        if n_whole:
            number[whole] = self._shuffled(number[whole], n_whole, seed, epoch)
        return (number * self._block + within + derive_seed(seed, epoch) % self._n) % self._n

    def fingerprint(self) -> str:
        """Tells this sampler from others."""
        return f"in blocks {self._n} {self._block} {self._mix}"

    def _shuffled(self, places: Tensor, n: int, *place_of_draw: int) -> Tensor:
        """Returns what `shuffled` does, drawing a short order once for many batches."""
        if n > DRAWN_WHOLE:
            return shuffled(places, n, *place_of_draw)
        if (order := self._orders.get(place_of_draw)) is None:
            order = shuffled(torch.arange(n, device="cpu"), n, *place_of_draw)
            for earlier in list(self._orders)[:-3]:  # a prefetching loader and threads look into several
                self._orders.pop(earlier, None)
            self._orders[place_of_draw] = order
        return order[places]


def _numbers(name: str, given: Any) -> np.ndarray:
    try:
        numbers = np.asarray(given)
    except (TypeError, ValueError):  # rows of different lengths, a tensor of a GPU
        numbers = np.asarray(None)
    if numbers.dtype.kind not in "biuf" or not numbers.size or not numbers.ndim:
        raise ValueError(f"{name} must be one number a sample, got {given!r}")
    return numbers


def _digest(values: np.ndarray) -> str:
    return hashlib.blake2b(np.ascontiguousarray(values).tobytes(), digest_size=8).hexdigest()
