"""Numbers of two devices: how close they are to be, by their type, stated here alone; and how a test has both."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

# (relative, absolute): a few hundred roundings of values near 1, as sums in another order make them.
TOLERANCES = {
    torch.float64: (1e-9, 1e-9),
    torch.float32: (1e-4, 1e-5),
    torch.float16: (1e-2, 2e-3),
    torch.bfloat16: (5e-2, 2e-2),
}
_EXACT = (0.0, 0.0)


def assert_close(actual: Any, expected: Any, dtype: torch.dtype | None = None) -> None:
    """The tensors of both structures agree, wherever they lie.

    Args:
        actual: a tensor, or a structure of them.
        expected: likewise; it may be of a finer type.
        dtype: in which they were computed; None: as `actual` is.
    """
    ours = [x for x in tree_leaves(actual) if isinstance(x, Tensor)]
    wanted = [x for x in tree_leaves(expected) if isinstance(x, Tensor)]
    assert len(ours) == len(wanted) > 0
    for a, b in zip(ours, wanted, strict=True):
        relative, absolute = TOLERANCES.get(dtype or a.dtype, _EXACT)
        torch.testing.assert_close(a.detach().cpu(), b.detach().cpu().to(a.dtype), rtol=relative, atol=absolute)


def approximately(value: Any, dtype: torch.dtype = torch.float32) -> Any:
    """What a number, or a dict of them, equals that was computed in such a type."""
    relative, absolute = TOLERANCES[dtype]
    return pytest.approx(value, rel=relative, abs=absolute)


def lies_on(value: Any, device: str) -> bool:
    """Whether there are tensors in the structure, and all lie on the device."""
    tensors = [x for x in tree_leaves(value) if isinstance(x, Tensor)]
    return bool(tensors) and all(x.device.type == device for x in tensors)


def beside(device: str) -> AbstractContextManager[Any]:
    """In a stream of its own, begun after all that was asked of the device; on the CPU nothing."""
    if device == "cpu":
        return nullcontext()
    stream: Any = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    return torch.cuda.stream(stream)


def computed_on(device: str, call: Callable[..., Any]) -> Callable[..., Any]:
    """Computes what the call does on the device, for a test that stays on the CPU.

    Parameters, buffers and arguments go there, a generator as one of its seed, and results come back. Gradients go all
    the way, and what the call writes into buffers and frozen parameters is written.

    Args:
        device: 'cpu' gives the call itself.
        call: a module, a method of one, or a function of tensors and modules.
    """
    if device == "cpu":
        return call

    def move(value: Any, where: str) -> Any:
        moved = tree_map_only(Tensor, lambda x: x.to(where), value)
        return tree_map_only(torch.Generator, lambda rng: torch.Generator(where).manual_seed(rng.initial_seed()), moved)

    def computed(*args: Any, **kwargs: Any) -> Any:
        given = [call, getattr(call, "__self__", None), *tree_leaves((args, kwargs))]
        with _lying_on(device, [x for x in given if isinstance(x, nn.Module)]):
            out = call(*move(args, device), **move(kwargs, device))
        assert lies_on(out, device)
        return move(out, "cpu")

    return computed


@contextmanager
def _lying_on(device: str, given: list[nn.Module]) -> Iterator[None]:
    modules = {id(module): module for whole in given for module in whole.modules()}.values()
    places = [held for module in modules for held in (module._parameters, module._buffers)]
    kept = [(held, name, x) for held in places for name, x in held.items() if x is not None]
    there = {id(x): x.to(device) for _, _, x in kept}  # what is tied stays tied
    for held, name, x in kept:
        held[name] = there[id(x)]
    try:
        yield
    finally:
        for held, name, x in kept:
            written, held[name] = held[name], x
            if not x.requires_grad and not torch.equal(written.cpu(), x):
                with torch.no_grad():
                    x.copy_(written)
