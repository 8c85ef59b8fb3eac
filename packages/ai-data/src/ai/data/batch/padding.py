"""Batches of sequences of different lengths: padded to the longest, with masks."""

from collections.abc import Mapping
from numbers import Real
from typing import Any

import numpy as np

from ai.data.batch.collate import collate


def padded(*keys: str, value: float = 0) -> "Padded":
    """Returns a `collate` that pads sequences along their first axis to the longest of the batch.

    Args:
        *keys: which entries of a sample are sequences; each gets a mask `<key>_mask` `[batch, length]`, true where the
            sequence is. None: each sample is a sequence itself, and a batch is `{"x": padded, "x_mask": mask}`.
        value: to pad with.

    Example:
        >>> batch = padded("x")([{"x": np.array([1, 2, 3]), "y": 0}, {"x": np.array([4]), "y": 1}])
        >>> batch["x"].tolist(), batch["x_mask"].tolist()
        ([[1, 2, 3], [4, 0, 0]], [[True, True, True], [True, False, False]])
    """
    if odd := [key for key in keys if not isinstance(key, str)]:
        raise TypeError(f"keys must be names of entries, got {odd[0]!r}")
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"value must be a number, got {value!r}")
    return Padded(keys, value)


class Padded:
    """Made by `padded`."""

    def __init__(self, keys: tuple[str, ...], value: float) -> None:
        self._keys = keys
        self._value = value

    def __call__(self, samples: list[Any]) -> Any:
        """Returns the batch."""
        if not self._keys:
            samples = [{"x": sample} for sample in samples]
        keys = self._keys or ("x",)
        first = samples[0]
        if not isinstance(first, Mapping) or any(key not in first for key in keys):
            have = sorted(first) if isinstance(first, Mapping) else type(first).__name__
            raise ValueError(f"padded needs samples with the keys {sorted(keys)}, got {have}")
        if clash := sorted({f"{key}_mask" for key in keys} & first.keys()):
            raise ValueError(f"samples may not have the keys {clash}: padded gives the masks under these names")
        if odd := next((sample for sample in samples if sample.keys() != first.keys()), None):
            raise ValueError(f"every sample must have the same keys, got {sorted(first)} and {sorted(odd)}")
        rest = [{key: value for key, value in sample.items() if key not in keys} for sample in samples]
        batch: dict[str, Any] = collate(rest) if rest[0] else {}
        for key in keys:
            batch[key], batch[f"{key}_mask"] = self._pad([np.asarray(sample[key]) for sample in samples], key)
        return batch

    def _pad(self, values: list[np.ndarray], key: str) -> tuple[np.ndarray, np.ndarray]:
        for value in values:
            if value.ndim == 0 or value.shape[1:] != values[0].shape[1:] or value.dtype != values[0].dtype:
                raise ValueError(
                    f"{key!r} must be sequences alike but for their lengths, got {values[0].dtype} of shape "
                    f"{values[0].shape} and {value.dtype} of shape {value.shape}"
                )
        with np.errstate(all="ignore"):
            held = np.asarray(self._value).astype(values[0].dtype)
        if not np.array_equal(held, np.asarray(self._value), equal_nan=values[0].dtype.kind == "f"):
            raise ValueError(f"value must be one that {key!r} can hold, {values[0].dtype}, got {self._value}")
        lengths = np.array([len(value) for value in values])
        mask = np.arange(lengths.max()) < lengths[:, None]
        whole = np.full((*mask.shape, *values[0].shape[1:]), self._value, values[0].dtype)
        whole[mask] = np.concatenate(values)
        return whole, mask
