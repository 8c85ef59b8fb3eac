"""Preprocess and postprocess functions: one callable for the whole value, or one per key of a dict."""

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor

Transform: TypeAlias = Callable[..., Any] | Mapping[str, Callable[..., Any]]


class Applied:
    """A transform ready to be called, with the random generator it asks for by parameter name.

    Args:
        transform: a callable of a sample or batch, or a dict of callables by key.
        name: what errors call it.
    """

    def __init__(self, transform: Transform, name: str) -> None:
        named = transform if isinstance(transform, Mapping) else {"": transform}
        for key, function in named.items():
            if not callable(function):
                place = f"{name}[{key!r}]" if key else name
                raise TypeError(f"{place} must be callable, got {type(function).__name__}")
        self._functions = dict(named)
        self._by_key = isinstance(transform, Mapping)
        self._name = name
        self._wanted = {key: _random_parameter(function) for key, function in named.items()}

    def __call__(self, value: Any, generator: Callable[[str], Any]) -> Any:
        """Returns the transformed value.

        Args:
            value: a sample or a batch.
            generator: returns the generator for the parameter name `generator` or `rng`; called only where wanted.
        """
        if not self._by_key:
            return self._call("", value, generator)
        if not isinstance(value, Mapping) or not self._functions.keys() <= value.keys():
            have = sorted(value, key=str) if isinstance(value, Mapping) else type(value).__name__
            raise KeyError(
                f"{self._name} has functions for the keys {sorted(self._functions, key=str)}, the value has {have}"
            )
        return {k: self._call(k, v, generator) if k in self._functions else v for k, v in value.items()}

    def _call(self, key: str, value: Any, generator: Callable[[str], Any]) -> Any:
        wanted = self._wanted[key]
        if wanted is None:
            return self._functions[key](value)
        return self._functions[key](value, **{wanted: generator(wanted)})


class Chain:
    """Transforms one after the other, each going on in one generator; the functions of a dict draw alike.

    Args:
        *transforms: callables or dicts of callables by key.
    """

    def __init__(self, *transforms: Transform) -> None:
        self._transforms = [Applied(transform, "postprocess") for transform in transforms]

    def __call__(self, value: Any, generator: Any) -> Any:
        """Returns the value after all transforms."""
        for transform in self._transforms:
            value = transform(value, _beginning(generator, generator.get_state()))
        return value


def _beginning(generator: Any, state: Any) -> Callable[[str], Any]:
    """Returns what gives a generator as it was in `state`, each time it is asked for."""
    return lambda _name: generator.set_state(state)


def bytes_to_unit_range(x: "Tensor") -> "Tensor":
    """Returns uint8 pixels as float32 in [-1, 1]."""
    return x.float().mul_(1 / 127.5).sub_(1)


def _random_parameter(function: Callable[..., Any]) -> str | None:
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # some builtins have no signature
        return None
    return next((name for name in ("generator", "rng") if name in parameters), None)
