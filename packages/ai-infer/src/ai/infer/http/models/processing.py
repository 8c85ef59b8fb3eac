"""What is done to a request before the model and to its output after it, in the front end and not in the worker."""

import asyncio
import dataclasses
import importlib
import logging
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from ai.infer.http.formats.messages import RefusedError, first_line
from ai.infer.http.formats.tensors import BadInputError, from_raw, to_bytes
from ai.infer.http.models.user_threads import UserThreads
from ai.infer.transport.trees import RawInput, RawTensor, Tree

_log = logging.getLogger("ai.infer")


class Processing:
    """Two functions of the user's, each run in a thread; a request's own errors are ValueErrors of the first.

    Args:
        before: called with the inputs, tensors and lists of bytes; returns what the model gets: one, or a tuple.
        after: called with the model's output; returns what goes out.
        timeout_s: how long each may take, waiting for a thread included.
    """

    def __init__(
        self, before: Callable[..., Any] | None, after: Callable[[Any], Any] | None, timeout_s: float | None = None
    ) -> None:
        self._before = before
        self._after = after
        self._timeout_s = timeout_s
        self._threads = UserThreads()  # of this model: another's functions that hang hold up nobody else's

    async def prepare(self, inputs: Sequence[RawInput]) -> list[RawInput]:
        """Returns what the model gets for these inputs.

        Raises:
            BadInputError: `before` raised a ValueError.
            RefusedError: it failed otherwise.
            TimeoutError: it took too long.
        """
        before = self._before
        if before is None:
            return list(inputs)
        given = [_map(x, RawTensor, from_raw) for x in inputs]  # anew: what a request said is kept for the next like it

        def prepare() -> list[RawInput]:
            try:
                made = before(*given)
            except ValueError as error:
                raise BadInputError(first_line(error)) from error
            return [_as_input(x) for x in (made if isinstance(made, tuple) else (made,))]

        prepared: list[RawInput] = await self._run("before", prepare)
        return prepared

    async def finish(self, output: Tree) -> Tree:
        """Returns what goes out for a model's output of `RawTensor`s, likewise of them.

        Raises:
            RefusedError: `after` failed.
            TimeoutError: it took too long.
        """
        after = self._after
        if after is None:
            return output
        return await self._run("after", lambda: _map(after(_map(output, RawTensor, from_raw)), Tensor, _raw))

    async def _run(self, which: str, function: Callable[[], Any]) -> Any:
        try:
            async with asyncio.timeout(self._timeout_s):
                made, error = await self._threads.run(function)
        except TimeoutError:
            text = f"{which} did not return within {self._timeout_s:g} s"
            _log.error("%s: a request is given up, and the thread that is in it is lost until it does", text)
            raise TimeoutError(text) from None
        if isinstance(error, (BadInputError, RefusedError)):
            raise error
        if error is not None:
            raise _failed(which, error) from error
        return made


def find_function(path: str) -> Callable[..., Any]:
    """Returns the function written `package.module:name`.

    Raises:
        ValueError: there is none.
    """
    module, _, name = path.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"before and after must be package.module:function, and {path!r} is none: {error}") from error
    if not callable(found):
        raise ValueError(f"before and after must be functions, and {path!r} is a {type(found).__name__}")
    function: Callable[..., Any] = found
    return function


def _failed(which: str, error: BaseException) -> RefusedError:
    _log.error("%s failed on a request", which, exc_info=error)
    return RefusedError(500, f"{which} failed on this request: {type(error).__name__}: {first_line(error)}")


def _raw(x: Tensor) -> RawTensor:
    x = x.detach().cpu()
    return RawTensor(x.dtype, tuple(x.shape), to_bytes(x))


def _as_input(x: Any) -> RawInput:
    """Returns what travels to a worker for what `before` made."""
    if isinstance(x, Tensor):
        return _raw(x)
    if isinstance(x, list):
        return [_as_item(item) for item in x]
    raise RefusedError(500, f"before must return tensors and lists of tensors or text, not {type(x).__name__}")


def _as_item(x: Any) -> Any:
    if isinstance(x, (bytes, str)):
        return x.encode() if isinstance(x, str) else x
    return _as_input(x)


def _map(tree: Any, kind: type, change: Callable[[Any], Any]) -> Any:
    """Returns a tree whose leaves of a kind are changed."""
    if isinstance(tree, kind):
        return change(tree)
    if isinstance(tree, dict):
        return {key: _map(value, kind, change) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_map(value, kind, change) for value in tree]
    if isinstance(tree, tuple):
        values = [_map(value, kind, change) for value in tree]
        return type(tree)(*values) if hasattr(tree, "_fields") else tuple(values)
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        fields = {field.name: _map(getattr(tree, field.name), kind, change) for field in dataclasses.fields(tree)}
        return dataclasses.replace(tree, **fields)
    return tree
