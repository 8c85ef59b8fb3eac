"""An optimiser's state put back: into one of the same class, and with the settings of the side that is to win."""

import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch.optim import Optimizer

_BOOKKEEPING = ("params", "param_names", "initial_lr")
_HOW_COMPUTED = ("fused", "foreach", "capturable", "differentiable", "maximize")


def load_optimizer(key: str, optimizer: Optimizer, state: Mapping[str, Any], kind: str | None, settings: str) -> None:
    """Load `state` into an optimiser.

    Args:
        key: the name of its model.
        optimizer: what is filled.
        state: of an optimiser's `state_dict`.
        kind: the class of the optimiser that it was taken from; None where that is not known.
        settings: whose learning rate, momentum and the like hold afterwards, `'snapshot'`'s or `'script'`'s.

    Raises:
        ValueError: the optimiser is of another class, has other groups, or `settings` is neither.
    """
    if settings not in ("snapshot", "script"):
        raise ValueError(f"settings must be 'snapshot' or 'script', not {settings!r}")
    have, given = optimizer.param_groups, state["param_groups"]
    own = type(optimizer).__name__
    if (kind or own) != own:
        raise ValueError(f"the optimizer of {key!r} is {own}, and the snapshot was saved with {kind}: {_FIX}")
    missing = [name for name in given[0] if name not in have[0] and name != "initial_lr"] if given and have else []
    if kind is None and missing:
        raise ValueError(f"the optimizer of {key!r} ({own}) has no {missing[0]!r}, as the snapshot's had: {_FIX}")
    sizes, saved_sizes = ([len(group["params"]) for group in groups] for groups in (have, given))
    if sizes != saved_sizes:
        raise ValueError(
            f"the optimizer of {key!r} has groups of {sizes} parameters, and the snapshot was saved with "
            f"{saved_sizes}: build it with the same groups"
        )
    script = [{name: _plain(value) for name, value in group.items() if name not in _BOOKKEEPING} for group in have]
    starts = [float(group.get("initial_lr", group["lr"])) for group in have]
    optimizer.load_state_dict(dict(state))
    differing = _differences(script, starts, given)
    if settings == "script":
        for group, wanted, start in zip(optimizer.param_groups, script, starts, strict=True):
            group.update({name: wanted[name] for name in wanted if name in group and name != "lr"})
            _set_lr(group, start)
    elif differing:
        print(
            f"resumed with the snapshot's settings of the optimizer of {key!r}, not the script's: "
            f"{'; '.join(differing)} (settings='script' takes the script's)",
            file=sys.stderr,
        )


_FIX = "go on with the same optimizer, or load the weights alone with snapshot.load_model_state and start afresh"


def _set_lr(group: dict[str, Any], value: float) -> None:
    if isinstance(group["lr"], torch.Tensor):
        group["lr"].fill_(value)
    else:
        group["lr"] = value
    if "initial_lr" in group:
        group["initial_lr"] = value


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, torch.Tensor) and value.numel() == 1 else value


def _differences(script: list[dict[str, Any]], starts: list[float], given: list[dict[str, Any]]) -> list[str]:
    found: dict[str, None] = {}
    for own, start, saved in zip(script, starts, given, strict=True):
        saved_lr = float(saved.get("initial_lr", saved["lr"]))
        if saved_lr != start:
            found[f"lr {saved_lr:g}, not {start:g}"] = None
        for name in own.keys() & saved.keys() - {"lr", *_HOW_COMPUTED}:
            before, now = _plain(saved[name]), own[name]
            if isinstance(now, (int, float, tuple, list)) and _as_list(before) != _as_list(now):
                found[f"{name} {before}, not {now}"] = None
    return list(found)


def _as_list(value: Any) -> Any:
    """A tuple as a list, as files may give it back."""
    return list(value) if isinstance(value, tuple) else value
