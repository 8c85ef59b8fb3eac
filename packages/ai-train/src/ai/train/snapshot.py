"""Snapshots: everything a run needs to continue bit for bit, in a folder that is whole or not there.

A snapshot is a folder named by its step:

    000001000/
        model.safetensors   the model's parameters and buffers (of several models: `name.` before each key)
        ema.safetensors     the moving average, if there is one: averaged parameters and the model's buffers
        state.pt            optimisers, random states, data position and every other state
        manifest.json       format, step, how to build the model, its inputs and outputs, metrics, sha256 of each file

It is written under another name, flushed to disk, and renamed: the rename commits it. Nothing in it is run when it is
read. Under sharding `dcp/` takes the place of the tensors' files, and each rank's own states lie in `rank-R.pt`.
"""

import os
import shutil
import threading
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from ai.train.host_copies import HostCopies
from ai.train.run import Run, Stateful, keep_for_training
from ai.train.snapshot_files import (
    FORMAT,
    MANIFEST,
    SnapshotError,
    commit,
    read_manifest,
    read_state,
    verify,
    write_files,
)

__all__ = ["FORMAT", "SnapshotError", "Snapshots", "load_model_state", "read", "restore", "verify"]


class Snapshots:
    """The snapshots of one run, in one folder.

    Args:
        folder: made when the first snapshot is saved.
        keep_last: how many of the newest are kept; None keeps all.
        keep_best: how many of the best are kept besides, by `best_by`.
        best_by: the metric that decides, as the hook logs it.
        mode: `'min'` or `'max'`.
        asynchronous: write in a thread, so that training waits only for a copy in memory; that memory is kept until
            the run is over, since a second copy into it takes a fraction of the first's time.
        pickle_model: also store the model object itself (`model.pkl`, by cloudpickle), for classes that no import
            path leads to. Reading that file runs code from it.

    >>> import tempfile
    >>> run = Run({'model': nn.Linear(2, 1)}, {}, data=[])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     snapshots = Snapshots(folder)
    ...     path = snapshots.save(run, 7)
    ...     path.name, snapshots.load(run)
    ('000000007', 7)
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        keep_last: int | None = 3,
        keep_best: int = 1,
        best_by: str = "val_loss",
        mode: str = "min",
        asynchronous: bool = False,
        pickle_model: bool = False,
    ) -> None:
        if keep_last is not None and keep_last < 1:
            raise ValueError(f"keep_last must be at least 1 or None, not {keep_last}")
        if keep_best < 0:
            raise ValueError(f"keep_best must not be negative, not {keep_best}")
        if mode not in ("min", "max"):
            raise ValueError(f"mode must be 'min' or 'max', not {mode!r}")
        self.folder = Path(folder)
        self.keep_last, self.keep_best, self.best_by, self.mode = keep_last, keep_best, best_by, mode
        self.asynchronous, self.pickle_model = asynchronous, pickle_model
        self._writer: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._copies = HostCopies()

    def save(self, run: Run, step: int, metrics: Mapping[str, float] | None = None) -> Path:
        """Save the run; where the snapshot is, or with `asynchronous` will be.

        Raises:
            OSError: it cannot be written; with `asynchronous` raised by the next `save` or `wait`.
        """
        self.wait()
        target = self.folder / f"{step:09d}"
        if run.ranks.world > 1:
            from ai.train.sharded import save_ranks

            save_ranks(self, run, target, dict(metrics or {}))
            return target
        state = run.state_dict()
        state["step"] = step
        content = (state, run.models, dict(run.specs), dict(metrics or {}))
        if not self.asynchronous:
            self._write(target, *content)
            return target
        content = (self._copies.take(state), *content[1:])  # the writing before is over

        def write() -> None:
            try:
                self._write(target, *content)
            except BaseException as error:
                self._failure = error

        # Not a daemon: the interpreter's exit waits for the file.
        self._writer = threading.Thread(target=write, name="snapshot-writer")
        self._writer.start()
        return target

    def wait(self) -> None:
        """Wait until what is being written is on disk.

        Raises:
            OSError: the writing failed.
        """
        if self._writer is not None:
            self._writer.join()
            self._writer = None
        if self._failure is not None:
            error, self._failure = self._failure, None
            raise error

    def _write(self, target: Path, state: Any, models: Any, specs: Any, metrics: dict[str, float]) -> None:
        def fill(folder: Path) -> None:
            write_files(folder, state, models, specs, metrics, pickle_model=self.pickle_model)

        commit(target, fill)
        self.prune()

    # -- what is there

    def all(self) -> list[Path]:
        """Every committed snapshot, oldest first; whether they are whole is not looked at."""
        if not self.folder.is_dir():
            return []
        return sorted(p for p in self.folder.iterdir() if p.name.isdigit() and (p / MANIFEST).is_file())

    def latest(self) -> Path | None:
        """The newest snapshot whose files all have their checksums; a damaged one is passed over with a warning."""
        self.wait()
        for path in reversed(self.all()):
            problem = verify(path)
            if problem is None:
                return path
            warnings.warn(
                f"snapshot {path} is damaged ({problem}); trying the one before", RuntimeWarning, stacklevel=2
            )
        return None

    def best(self) -> Path | None:
        """The snapshot with the best `best_by`, or None if none has it."""
        self.wait()
        ranked = self._ranked()
        return ranked[0] if ranked else None

    def _ranked(self) -> list[Path]:
        scored = []
        for path in self.all():
            value = read_manifest(path).get("metrics", {}).get(self.best_by)
            if value is not None and value == value:
                scored.append((value if self.mode == "min" else -value, path.name, path))
        return [path for _, _, path in sorted(scored)]

    def prune(self) -> None:
        """Delete what neither `keep_last` nor `keep_best` keeps."""
        if self.keep_last is None:
            return
        paths = self.all()
        kept = {*paths[-self.keep_last :], *self._ranked()[: self.keep_best]}
        for path in paths:
            if path not in kept:
                # The manifest goes first: half a folder must not pass for a snapshot.
                (path / MANIFEST).unlink()
                shutil.rmtree(path)

    # -- back

    def load(self, run_or_parts: Run | Mapping[str, Any], path: str | os.PathLike[str] | None = None) -> int:
        """Put a snapshot back into a run, or into parts of one; the step it was taken at.

        Args:
            run_or_parts: a `Run`, or a dict whose keys are those of `Run.state_dict` (`'models'`, `'optimizers'`: a
                dict of objects each; `'data'`: an object), of which just those given are filled; `'model'` and
                `'optimizer'` stand for the only one.
            path: which snapshot; None for the newest that is whole.

        Raises:
            FileNotFoundError: there is none.
            SnapshotError: it is damaged, or of a newer format.
        """
        self.wait()
        chosen = Path(path) if path is not None else self.latest()
        if chosen is None:
            raise FileNotFoundError(f"there is no snapshot in {self.folder}")
        if isinstance(run_or_parts, Run):
            if run_or_parts.ranks.world > 1 or (chosen / "dcp").is_dir():
                from ai.train.sharded import load_ranks

                load_ranks(run_or_parts, chosen)
                return run_or_parts.step
            run_or_parts.load_state_dict(read(chosen, run_or_parts.models))
            return run_or_parts.step
        return _load_parts(dict(run_or_parts), read(chosen, None))


def read(path: str | os.PathLike[str], models: Mapping[str, nn.Module] | None = None) -> dict[str, Any]:
    """A snapshot's state, as `Run.load_state_dict` takes it; every checksum is compared first.

    Raises:
        FileNotFoundError: there is no snapshot at `path`.
        SnapshotError: it is damaged, or of a newer format.
    """
    folder = Path(path)
    if not (folder / MANIFEST).is_file():
        raise FileNotFoundError(f"there is no snapshot at {folder}: it has no {MANIFEST}")
    problem = verify(folder)
    if problem is not None:
        raise SnapshotError(f"snapshot {folder} is damaged: {problem}")
    return read_state(folder)


def load_model_state(path: str | os.PathLike[str], *, ema: bool = False, key: str | None = None) -> dict[str, Any]:
    """The state dict of a snapshot's model, for `model.load_state_dict`.

    Args:
        path: the snapshot.
        ema: the moving average rather than the model, where there is one.
        key: which model, of several.
    """
    state = read(path)
    models: dict[str, Any] = state["models"]
    name = key or next(iter(models))
    if name not in models:
        raise KeyError(f"the snapshot holds the models {sorted(models)}, not {name!r}")
    found: dict[str, Any] = models[name]
    return {**found, **state["ema"].get(name, {})} if ema else found


def restore(
    path: str | os.PathLike[str],
    model: nn.Module | Mapping[str, nn.Module],
    opt: Optimizer | Mapping[str, Optimizer],
    *stateful: Stateful,
) -> int:
    """Fill a model, its optimiser and further objects from a snapshot before training; the step to continue at.

    The rest (random states, moving average, scaler, data position, hook) is kept for the next `train` of this model,
    which must be given the returned step. A loader passed here is at its position afterwards.

    Args:
        path: one snapshot's folder, or a folder of snapshots, of which the newest whole one is taken.
        model: a module, or the dict of modules of a `MultiTrainer`.
        opt: its optimiser, or the dict of optimisers.
        stateful: the objects that the saved hook held as `stateful`, in the same order; if it held none, the loader.

    Raises:
        FileNotFoundError: there is no snapshot.
        SnapshotError: it is damaged, or of a newer format.
        ValueError: the names of models or optimisers, or the number of stateful objects, differ from the saved.
    """
    chosen: Path | None = Path(path)
    if not Path(path, MANIFEST).is_file():
        chosen = Snapshots(path).latest()
    if chosen is None:
        raise FileNotFoundError(f"there is no snapshot in {path}")
    models = dict(model) if isinstance(model, Mapping) else {"model": model}
    optimizers = dict(opt) if isinstance(opt, Mapping) else {"model": opt}
    if (chosen / "dcp").is_dir():
        raise SnapshotError(
            f"snapshot {chosen} is sharded: continue with Hook(snapshots=..., resume=True) under torchrun, or export "
            "it to one file with ai.train.export"
        )
    state = read(chosen, models)
    run = Run(models, optimizers, data=())
    held = [state["states"].get(f"stateful.{index}") for index in range(len(stateful))]
    if stateful and "stateful.0" not in state["states"] and state["data"] is not None:
        held[0] = state["data"]
    for index, (one, part) in enumerate(zip(stateful, held, strict=True)):
        if part is None:
            raise ValueError(f"the snapshot holds no state for stateful[{index}] ({type(one).__name__})")
    run.load_state_dict({key: state[key] for key in ("step", "models", "optimizers")})
    for one, part in zip(stateful, held, strict=True):
        one.load_state_dict(part)
    keep_for_training(next(iter(models.values())), state)
    from ai.train.random_state import set_random_state

    set_random_state(state["random"])
    return int(state["step"])


def _load_parts(parts: dict[str, Any], state: dict[str, Any]) -> int:
    for short, long in (("model", "models"), ("optimizer", "optimizers")):
        if short in parts:
            parts[long] = {next(iter(state[long])): parts.pop(short)}
    for name, part in parts.items():
        if name not in state:
            raise KeyError(f"a snapshot has no part {name!r}; its parts are {sorted(state)}")
        if isinstance(part, Mapping):
            for key, one in part.items():
                if key not in state[name]:
                    raise KeyError(f"the snapshot's {name} are {sorted(state[name])}, not {key!r}")
                one.load_state_dict(state[name][key])
        else:
            part.load_state_dict(state[name])
    return int(state["step"])
