"""From a snapshot back to objects: a state to read, a model's weights, or what a run is made of before it starts."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from ai.model.arguments import as_path
from ai.model.saved import MANIFEST, SnapshotError, line_of, load_weights, newest, read_manifest, verify
from ai.train.engine.argument_checks import check_to_restore
from ai.train.engine.run import Run
from ai.train.saving.files import read_state
from ai.train.state.beside_models import load_beside
from ai.train.state.between_runs import Continuation, fingerprint, leave
from ai.train.state.random_state import set_random_state
from ai.train.state.stateful import Stateful


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A snapshot's state, as `Run.load_state_dict` takes it; every checksum is compared first.

    Raises:
        FileNotFoundError: there is no snapshot at `path`.
        SnapshotError: it is damaged, or of a newer format.
    """
    folder = as_path(path)
    check_whole(folder)
    return read_state(folder)


def check_whole(folder: Path) -> None:
    """Compare every checksum; raise as `read` does."""
    if not (folder / MANIFEST).is_file():
        raise FileNotFoundError(f"there is no snapshot at {folder}: it has no {MANIFEST}")
    problem = verify(folder)
    if problem is not None:
        raise SnapshotError(f"snapshot {folder} is damaged: {problem}")


def load_model_state(path: str | os.PathLike[str], *, ema: bool = False, key: str | None = None) -> dict[str, Any]:
    """The state dict of a snapshot's model, for `model.load_state_dict`.

    Args:
        path: the snapshot.
        ema: the moving average rather than the model, where there is one.
        key: which model, of several.

    Raises:
        FileNotFoundError: there is no snapshot.
        KeyError: it holds no model `key`.
        SnapshotError: it is damaged, of a newer format, or sharded.
    """
    models = read_manifest(path)["models"]
    averaged = all(about["ema"] is not None for about in models.values())
    return load_weights(path, key=key, ema=ema and averaged)


def restore(
    path: str | os.PathLike[str],
    model: nn.Module | Mapping[str, nn.Module],
    opt: Optimizer | Mapping[str, Optimizer],
    *stateful: Stateful,
    settings: str = "snapshot",
) -> int:
    """Fill a model, its optimiser and further objects from a snapshot before training; the step to continue at.

    The rest (random states, moving average, scaler, data position, hook) is kept for the next `train` of this model,
    which must be given the returned step. A loader passed here is at its position afterwards.

    Args:
        path: one snapshot's folder, or a folder of snapshots, of which the newest whole one is taken.
        model: a module, or the dict of modules of a `MultiTrainer`.
        opt: its optimiser, or the dict of optimisers.
        stateful: the objects that the saved hook held as `stateful`, in the same order; if it held none, the loader.
        settings: whose learning rate and other settings the optimiser has afterwards: `'snapshot'`'s, or `'script'`'s,
            those it was made with.

    Raises:
        FileNotFoundError: there is no snapshot.
        SnapshotError: it is damaged, or of a newer format.
        ValueError: the names of models or optimisers, or the number of stateful objects, differ from the saved.
    """
    check_to_restore(model, opt)
    folder = as_path(path)
    chosen: Path | None = folder
    if (folder / MANIFEST).is_file():
        check_whole(folder)
    else:
        chosen = newest(folder)
    if chosen is None:
        raise FileNotFoundError(f"there is no snapshot in {path}")
    models = dict(model) if isinstance(model, Mapping) else {"model": model}
    optimizers = dict(opt) if isinstance(opt, Mapping) else {"model": opt}
    if (chosen / "dcp").is_dir():
        raise SnapshotError(
            f"snapshot {chosen} is sharded: continue with Hook(snapshots=..., resume=True) under torchrun, or export "
            "it to one file with ai.train.export"
        )
    state = read_state(chosen)
    run = Run(models, optimizers, data=())
    held = [state["states"].get(f"stateful.{index}") for index in range(len(stateful))]
    if stateful and "stateful.0" not in state["states"] and state["data"] is not None:
        held[0] = state["data"]
    for index, (one, part) in enumerate(zip(stateful, held, strict=True)):
        if part is None:
            kept = sum(name.startswith("stateful.") for name in state["states"])
            fix = (
                f"its hook held {kept} as stateful: give these, in order, without the loader, which keeps its place"
                if kept
                else "its hook held none as stateful: at most the loader can be given"
            )
            raise ValueError(f"the snapshot holds no state for stateful[{index}] ({type(one).__name__}); {fix}")
    parts = ("step", "models", "optimizers", "optimizer_kinds")
    run.load_state_dict({key: state[key] for key in parts if key in state}, settings=settings)
    for one, part in zip(stateful, held, strict=True):
        load_beside(models.values(), one, part)
    rest: dict[str, Any] = {"line": line_of(chosen), "restored_from": str(chosen)}
    rest |= {key: value for key, value in state.items() if key not in ("models", "optimizers")}
    for index, (key, one_model) in enumerate(models.items()):
        averages = state["ema"].get(key, {})
        leave(
            one_model,
            Continuation(
                step=int(state["step"]),
                averages=averages,
                rest=rest if index == 0 else None,
                weights=fingerprint(one_model) if averages else None,
                trained=key in optimizers,
            ),
        )
    set_random_state(state["random"])
    return int(state["step"])


def load_parts(parts: dict[str, Any], state: dict[str, Any]) -> int:
    """Fill the objects given, by the names of `Run.state_dict`; the step of the state."""
    for short, long in (("model", "models"), ("optimizer", "optimizers")):
        if short in parts:
            parts[long] = {next(iter(state[long])): parts.pop(short)}
    if unknown := sorted(parts.keys() - state.keys()):
        raise KeyError(f"a snapshot has no part {unknown[0]!r}; its parts are {sorted(state)}")
    for name, part in sorted(parts.items(), key=lambda item: item[0] != "data"):  # whose source may act with the model
        if isinstance(part, Mapping):
            for key, one in part.items():
                if key not in state[name]:
                    raise KeyError(f"the snapshot's {name} are {sorted(state[name])}, not {key!r}")
                one.load_state_dict(state[name][key])
        else:
            part.load_state_dict(state[name])
    return int(state["step"])
