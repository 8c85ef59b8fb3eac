"""The random generators that data holds itself, as `DataLoader(generator=...)` and a sampler's: taken and put back."""

import random
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

_PARTS = ("sampler", "batch_sampler", "dataset")


def generator_states(data: Any) -> dict[str, Any]:
    """The states of the generators in `data`, its samplers and its datasets, by where they lie.

    >>> data = torch.utils.data.DataLoader(range(9), shuffle=True, generator=torch.Generator().manual_seed(1))
    >>> state = generator_states(data)
    >>> first = [int(x) for x in data]
    >>> set_generator_states(data, state)
    >>> first == [int(x) for x in data]
    True
    """
    return {place: _state(generator) for place, generator in _generators(data)}


def set_generator_states(data: Any, states: Mapping[str, Any]) -> None:
    """Put back what `generator_states` took, where there still is such a generator."""
    for place, generator in _generators(data):
        state = states.get(place)
        if state is None:
            continue
        if isinstance(generator, torch.Generator):
            generator.set_state(state)
        elif isinstance(generator, random.Random):
            version, internal, gauss = state
            generator.setstate((version, tuple(internal), gauss))
        else:
            generator.bit_generator.state = _mapped(state, _words)


def _generators(data: Any, place: str = "", seen: set[int] | None = None) -> Iterator[tuple[str, Any]]:
    """Each once: a loader and its sampler often share theirs."""
    seen = set() if seen is None else seen
    attributes = getattr(data, "__dict__", {})
    for name, value in attributes.items():
        if isinstance(value, (torch.Generator, np.random.Generator, random.Random)) and id(value) not in seen:
            seen.add(id(value))
            yield f"{place}{name}", value
    for name in _PARTS:
        part = attributes.get(name)
        if part is not None and id(part) not in seen:
            seen.add(id(part))
            yield from _generators(part, f"{place}{name}.", seen)


def _state(generator: Any) -> Any:
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, random.Random):
        return generator.getstate()
    # As tensors, so that the file can be read without running code from it.
    return _mapped(generator.bit_generator.state, lambda value: torch.from_numpy(value.astype(np.int64)))


def _words(value: torch.Tensor) -> Any:
    # The Mersenne Twister's are of 32 bits, and alone in being 624.
    return value.numpy().astype(np.uint32 if len(value) == 624 else np.uint64)


def _mapped(state: Any, convert: Any) -> Any:
    if isinstance(state, Mapping):
        return {key: _mapped(value, convert) for key, value in state.items()}
    return convert(state) if isinstance(state, (np.ndarray, torch.Tensor)) else state
