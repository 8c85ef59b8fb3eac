"""Which tensor of a file belongs where in a module: asked of the module, whose own hooks have the last word."""

import copy
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

_MISSHAPEN = re.compile(
    r"size mismatch for (\S+): copying a param with shape torch\.Size\(\[(.*?)\]\) from checkpoint, "
    r"the shape in current model is torch\.Size\(\[(.*?)\]\)"
)


def matched(module: nn.Module, state: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Returns what a module's `load_state_dict` is to be given, and a line for each kind of difference.

    Names count as they are. Only if something differs then, wrappers (`torch.compile`, data parallel) are left out:
    of the module's names where it has such wrappers, and of the file's where it was saved from one.
    """
    bare = skeleton(module)
    best: tuple[dict[str, Any], list[str]] | None = None
    for named in _readings(module, state):
        found = _compared(module, bare, named)
        if not found[1]:
            return found
        best = found if best is None or _count(found[1]) < _count(best[1]) else best
    assert best is not None
    return best


def unwrapped(module: nn.Module) -> nn.Module:
    """Returns what `torch.compile` or data parallel wraps, or the module itself."""
    while (name := _wrapped(module)) is not None:
        module = module.get_submodule(name)
    return module


def _readings(module: nn.Module, state: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yields the file's tensors under the module's names, by each way to read the names that keeps them apart."""
    own = _plain_names(module)
    yield dict(state)
    readings = [state]
    plain = {name: ".".join(part for part in name.split(".") if part != "_orig_mod") for name in state}
    readings.append({plain[name]: value for name, value in state.items()})
    if state and all(name.startswith("module.") for name in plain.values()):
        readings.append({plain[name].removeprefix("module."): value for name, value in state.items()})
    for reading in readings:
        named = {own.get(name, name): value for name, value in reading.items()}
        if len(named) == len(state):  # no two names became one
            yield named


def _plain_names(module: nn.Module) -> dict[str, str]:
    """Returns the module's names by those that they would have without wrappers."""
    prefixes: dict[str, str] = {}

    def visit(node: nn.Module, name: str, plain: str) -> None:
        prefixes[name] = plain
        for key, child in node._modules.items():
            if child is not None:
                visit(child, f"{name}{key}.", plain if key == _wrapped(node) else f"{plain}{key}.")

    visit(module, "", "")
    names = {}
    for name in module.state_dict(keep_vars=True):
        place = name.rpartition(".")[0]
        while place and f"{place}." not in prefixes:
            place = place.rpartition(".")[0]
        start = f"{place}." if place else ""
        names[prefixes[start] + name.removeprefix(start)] = name
    return names


def _wrapped(module: nn.Module) -> str | None:
    """Returns the name under which a wrapper holds what it wraps, or None for a module that is no wrapper."""
    if isinstance(module, DataParallel | DistributedDataParallel):
        return "module"
    compiled = sys.modules.get("torch._dynamo.eval_frame")  # there are none before it is imported
    return "_orig_mod" if compiled is not None and isinstance(module, compiled.OptimizedModule) else None


def is_taken(module: nn.Module, state: Mapping[str, Any]) -> bool:
    """Tells whether the module's own `load_state_dict` takes a state; True where that cannot be tried on a copy."""
    bare = skeleton(module)
    if bare is None:
        return True
    try:
        with torch.no_grad():
            bare.load_state_dict(_without_memory(state))
    except RuntimeError:
        return False
    return True


def _without_memory(state: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: torch.empty(value.shape, dtype=value.dtype, device="meta") if isinstance(value, Tensor) else value
        for name, value in state.items()
    }


def skeleton(module: nn.Module) -> nn.Module | None:
    """Returns a copy of the module whose tensors have no memory, or None if it cannot be copied."""
    memo: dict[int, Any] = {}
    for tensor in [*module.parameters(), *module.buffers()]:
        empty = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
        memo[id(tensor)] = nn.Parameter(empty, False) if isinstance(tensor, nn.Parameter) else empty
    try:
        return copy.deepcopy(module, memo)
    except Exception:  # whatever a module of somebody's does not like about being copied
        return None


def _compared(module: nn.Module, bare: nn.Module | None, state: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    own = {name: value for name, value in module.state_dict(keep_vars=True).items() if isinstance(value, Tensor)}
    shapes = {
        name: (tuple(own[name].shape), tuple(value.shape))
        for name, value in state.items()
        if name in own and isinstance(value, Tensor) and own[name].shape != value.shape
    }
    fitting = {name: value for name, value in state.items() if name not in shapes}
    missing = [name for name in module.state_dict(keep_vars=True) if name not in state]
    unexpected = [name for name in state if name not in module.state_dict(keep_vars=True)]
    if bare is not None and (missing or unexpected):  # the module's own hooks may know these names
        try:
            with torch.no_grad():
                found = bare.load_state_dict(_without_memory(fitting), strict=False)
        except RuntimeError as error:
            for name, given, wanted in _MISSHAPEN.findall(str(error)):
                shapes[name] = (_shape(wanted), _shape(given))
        else:
            missing = [name for name in found.missing_keys if name not in shapes]
            unexpected = list(found.unexpected_keys)
    misshapen = [f"{name} (model {wanted}, file {given})" for name, (wanted, given) in shapes.items()]
    named = [("missing", missing), ("unexpected", unexpected), ("misshapen", misshapen)]
    return fitting, [f"{kind}: {', '.join(names)}" for kind, names in named if names]


def _shape(text: str) -> tuple[int, ...]:
    return tuple(int(size) for size in text.split(",") if size.strip())


def _count(problems: list[str]) -> int:
    return sum(line.count(", ") + 1 for line in problems)
