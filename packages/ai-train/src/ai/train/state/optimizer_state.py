"""An optimiser's state put back: into one of the same class, and with the settings of the side that is to win."""

import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch.optim import Optimizer

_BOOKKEEPING = ("params", "param_names", "initial_lr")
_HOW_COMPUTED = ("fused", "foreach", "capturable", "differentiable")


Settings = list[dict[str, Any]]


def load_optimizer(key: str, optimizer: Optimizer, state: Mapping[str, Any], kind: str | None, settings: str) -> None:
    """Load `state` into an optimiser.

    Args:
        key: the name of its model.
        optimizer: what is filled.
        state: of an optimiser's `state_dict`.
        kind: the class of the optimiser that it was taken from; None where that is not known.
        settings: whose learning rate, momentum and the like hold afterwards, `'snapshot'`'s or `'script'`'s.

    Raises:
        ValueError: the optimiser is of another class, or has other groups.
    """
    have, given = optimizer.param_groups, state["param_groups"]
    check_kind(key, optimizer, kind)
    missing = [name for name in given[0] if name not in have[0] and name != "initial_lr"] if given and have else []
    if kind is None and missing:
        own = type(optimizer).__name__
        raise ValueError(f"the optimizer of {key!r} ({own}) has no {missing[0]!r}, as the snapshot's had: {_FIX}")
    sizes, saved_sizes = ([len(group["params"]) for group in groups] for groups in (have, given))
    if sizes != saved_sizes:
        raise ValueError(
            f"the optimizer of {key!r} has groups of {sizes} parameters, and the snapshot was saved with "
            f"{saved_sizes}: build it with the same groups"
        )
    script = optimizer_settings(optimizer)
    optimizer.load_state_dict(_computed_here(optimizer, state))
    choose_settings(key, optimizer, script, settings)


def _computed_here(optimizer: Optimizer, state: Mapping[str, Any]) -> dict[str, Any]:
    """The state for kernels such as the optimiser was made with: it may have been saved on another kind of device."""
    if "parts" in state:  # of several together, which say so themselves where there are more or fewer
        parts = zip(getattr(optimizer, "optimizers", ()), state["parts"], strict=False)
        made = [_computed_here(one, part) for one, part in parts]
        return {**state, "parts": made + state["parts"][len(made) :]}
    groups = [
        saved | {name: own[name] for name in _HOW_COMPUTED if name in own} | {"lr": _rate_as(own["lr"], saved["lr"])}
        for own, saved in zip(optimizer.param_groups, state["param_groups"], strict=True)
    ]
    return {**state, "param_groups": groups}


def _rate_as(own: Any, saved: Any) -> Any:
    """The saved learning rate as a tensor where the script's is one, which compiled steps read, else as a number."""
    if isinstance(own, torch.Tensor):
        return torch.full_like(own, float(saved))
    return float(saved) if isinstance(saved, torch.Tensor) else saved


def check_settings(settings: str) -> None:
    """Raise if it names no side."""
    if settings not in ("snapshot", "script"):
        raise ValueError(f"settings must be 'snapshot' or 'script', not {settings!r}")


def kind_of(optimizer: Optimizer) -> str:
    """The class of an optimiser, and of those that it holds together."""
    return str(getattr(optimizer, "kind", type(optimizer).__name__))


def check_kind(key: str, optimizer: Optimizer, kind: str | None) -> None:
    """Raise if the snapshot was saved with an optimiser of another class."""
    own = kind_of(optimizer)
    if (kind or own) != own:
        raise ValueError(f"the optimizer of {key!r} is {own}, and the snapshot was saved with {kind}: {_FIX}")


def optimizer_settings(optimizer: Optimizer) -> Settings:
    """What each group is set to: the learning rate before any schedule, momentum and the like."""
    return [
        {name: _plain(value) for name, value in group.items() if name not in _BOOKKEEPING}
        | {"lr": float(group.get("initial_lr", group["lr"]))}
        for group in optimizer.param_groups
    ]


def choose_settings(key: str, optimizer: Optimizer, script: Settings, settings: str) -> None:
    """After a state was loaded: put the script's settings back, or say where the snapshot's differ from them.

    Args:
        key: the name of its model.
        optimizer: what was filled.
        script: `optimizer_settings` as they were before.
        settings: `'snapshot'` or `'script'`.
    """
    differing: dict[str, None] = {}
    for group, saved, own in zip(optimizer.param_groups, optimizer_settings(optimizer), script, strict=True):
        for name in sorted(own.keys() & saved.keys()):
            if own[name] != saved[name] and name not in _HOW_COMPUTED:
                differing[f"{name} {saved[name]}, not {own[name]}"] = None
                if settings == "script":
                    _set(group, name, own[name])
    if differing and settings == "snapshot":
        print(
            f"resumed with the snapshot's settings of the optimizer of {key!r}, not the script's: "
            f"{'; '.join(differing)} (settings='script' takes the script's)",
            file=sys.stderr,
        )


_FIX = "go on with the same optimizer, or load the weights alone with snapshot.load_model_state and start afresh"


def _set(group: dict[str, Any], name: str, value: Any) -> None:
    if isinstance(group[name], torch.Tensor):
        group[name].fill_(value)
    else:
        group[name] = value
    if name == "lr" and "initial_lr" in group:
        group["initial_lr"] = value


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.item()
    return tuple(value) if isinstance(value, list) else value  # as files may give a tuple back
