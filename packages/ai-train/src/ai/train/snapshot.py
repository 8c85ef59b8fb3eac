"""Snapshots: everything a run needs to continue bit for bit, in a folder that is whole or not there.

A snapshot is a folder named by its step:

    000001000/
        model.safetensors   the model's parameters and buffers (of several models: `name.` before each key)
        ema.safetensors     the moving average, if there is one: averaged parameters and the model's buffers
        state.pt            optimisers, random states, data position and every other state
        structure.pkl       the modules, pickled without weights, where class and arguments do not say how to build one
        manifest.json       format, step, how to build the model, its inputs and outputs, metrics, sha256 of each file

It is written under another name, flushed to disk, and renamed: the rename commits it. A run goes on from it without
running anything in it; only what builds a model from the folder alone unpickles `structure.pkl`. Under sharding `dcp/`
takes the place of the tensors' files, and each rank's own states lie in `rank-R.pt`.
"""

import math
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ai.model.arguments import as_path
from ai.model.arguments import check_whole as check_whole_number
from ai.model.saved import (
    FORMAT,
    MANIFEST,
    SnapshotError,
    committed,
    line_of,
    newest,
    read_manifest,
    sequence_of,
    verify,
)
from ai.train.early_stopping import direction
from ai.train.engine.run import Run
from ai.train.saving.atomic_folder import commit, one_clear_error
from ai.train.saving.background import Background
from ai.train.saving.files import read_state, replace_manifest, write_files
from ai.train.saving.host_copies import HostCopies
from ai.train.saving.ownership import Ownership, place_aside
from ai.train.saving.restore import check_whole, load_model_state, load_parts, read, restore

if TYPE_CHECKING:
    from ai.train.distributed.sharded import RanksWriter

__all__ = ["FORMAT", "SnapshotError", "Snapshots", "load_model_state", "read", "restore", "verify"]


class Snapshots:
    """The snapshots of one run, in one folder.

    Args:
        folder: made when a run begins, or the first snapshot is saved; one run at a time writes there.
        keep_last: how many of the newest are kept, of those of this run; None keeps all. Those that another run has
            left in the folder stay; one of the same step as a new one is renamed, `000000100` to `000000100.LINE`.
        keep_best: how many of the best are kept besides, by `best_by`.
        best_by: the metric that decides, as the hook logs it.
        mode: whether it is better low (`'min'`) or high (`'max'`); None: what its name says.
        asynchronous: write in a thread, so that training waits only for a copy in memory. That memory is kept, since
            a copy into it takes a fraction of the time of one into fresh memory; a hook has it made ready in a thread,
            too, after the first step.
        pickle_model: store the modules by value too (`structure.pkl`, by cloudpickle, without weights) where the class
            and its arguments do not say how to build the model: one made of other modules, or of a class that no import
            leads to. `Trial.load_model` and `ai-infer serve` read it, which runs code from it, under the same minor
            version of Python. Sharded runs store none.

    >>> import tempfile, torch
    >>> run = Run({'model': torch.nn.Linear(2, 1)}, {}, data=[])
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
        mode: str | None = None,
        asynchronous: bool = False,
        pickle_model: bool = True,
    ) -> None:
        check_whole_number(keep_best=keep_best)
        check_whole_number(or_none=True, keep_last=keep_last)
        if keep_last is not None and keep_last < 1:
            raise ValueError(f"keep_last must be at least 1 or None, not {keep_last}")
        if keep_best < 0:
            raise ValueError(f"keep_best must not be negative, not {keep_best}")
        self.folder = as_path(folder, "folder", "folder")
        self.keep_last, self.keep_best, self.best_by = keep_last, keep_best, best_by
        self.mode = direction(best_by, mode)
        self.asynchronous, self.pickle_model = asynchronous, pickle_model
        self._background = Background("snapshot-writer")
        self._copies = HostCopies()
        self._ranks_writer: RanksWriter | None = None
        self._ownership = Ownership(self.folder)

    # -- of one run

    def own(self, run: Run) -> None:
        """Take the folder for a run, until `disown`; of several ranks all call it.

        Raises:
            BlockingIOError: another run writes there.
            OSError: nothing can be written there.
        """
        failure: OSError | None = None
        if run.ranks.rank == 0:
            try:
                self._ownership.take()
            except OSError as error:
                failure = error
        if run.ranks.any(failure is not None):
            raise failure or OSError(f"rank 0 cannot write in {self.folder}")

    def disown(self) -> None:
        """Give the folder up."""
        self._ownership.give_up()

    def check_metric(self, found: Mapping[str, float]) -> None:
        """Refuse a `best_by` that is not among the metrics that a run measures.

        Raises:
            KeyError: it is not; the one that everybody has by default is passed over.
        """
        if self.keep_best and self.best_by != _USUAL and self.best_by not in found:
            raise KeyError(f"best_by is {self.best_by!r}, and the metrics are {sorted(found)}")

    def note(self, path: str | os.PathLike[str], metrics: Mapping[str, float]) -> None:
        """Add metrics to a snapshot that was saved before they were measured; prune by them."""
        self.wait()
        manifest = read_manifest(path)
        manifest["metrics"] |= {key: float(value) for key, value in metrics.items()}
        replace_manifest(as_path(path), manifest)
        self.prune()

    def save(self, run: Run, step: int, metrics: Mapping[str, float] | None = None) -> Path:
        """Save the run; where the snapshot is, or with `asynchronous` will be. Of several ranks all call it.

        Raises:
            OSError: it cannot be written; with `asynchronous` raised by the next `save` or `wait`.
        """
        self.wait()  # the memory of the copy is in use until then
        target = self.folder / f"{step:09d}"
        write = self._prepare(run, step, target, dict(metrics or {}))
        if self.asynchronous:
            self._background.start(write)
        else:
            write()
        return target

    def _prepare(self, run: Run, step: int, target: Path, metrics: dict[str, float]) -> Callable[[], None]:
        """Take the run's state; what writes it."""
        if run.ranks.world > 1:
            order = self._order_of(run) if run.ranks.rank == 0 else {}
            return self._writer_of(run).prepare(run, step, target, metrics, self._structures_of(run), order)
        structures, order = self._structures_of(run), self._order_of(run)
        state, specs = {**run.state_dict(), "step": step}, dict(run.specs)
        if self.asynchronous:
            state = self._copies.take(state)

        def write() -> None:
            with one_clear_error(target):
                commit(
                    target,
                    lambda f: write_files(f, state, run.models, specs, metrics, structures, order),
                    aside=place_aside(target, order["line"]),
                )
            self.prune()

        return write

    def _order_of(self, run: Run) -> dict[str, Any]:
        """What tells this snapshot's place among the others: steps do not, where a run went back or another began."""
        return {
            "sequence": 1 + max((int(n) for path in self.all() if (n := sequence_of(path)) < math.inf), default=0),
            "line": run.line,
        }

    def _structures_of(self, run: Run) -> dict[str, bytes]:
        """What `structure.pkl` is to hold, made now: while it is written training may go on."""
        if not self.pickle_model or run.sharded or run.ranks.rank > 0:
            return {}
        from ai.train.saving.structure import structures_of

        return structures_of(run)

    def _writer_of(self, run: Run) -> "RanksWriter":
        if self._ranks_writer is None:
            from ai.train.distributed.sharded import RanksWriter

            self._ranks_writer = RanksWriter(run, copies=self._copies if self.asynchronous else None, prune=self.prune)
        return self._ranks_writer

    def make_ready(self, run: Run) -> None:
        """With `asynchronous`: have memory for the copies of this run's tensors made ready in the background.

        Optimisers have no state before their first step: call it after that. Of several ranks all call it.
        """
        if not self.asynchronous:
            return
        if run.ranks.world > 1:
            self._background.start(self._writer_of(run).prepare_memory(run))
        else:
            state = run.state_of_tensors()
            self._background.start(lambda: self._copies.make_ready(state))

    def wait(self) -> None:
        """Wait until what is being written is on disk.

        Raises:
            OSError: the writing failed.
        """
        self._background.wait()

    # -- what is there

    def all(self) -> list[Path]:
        """Every committed snapshot in the order in which they were saved; whether they are whole is not looked at."""
        return committed(self.folder)

    def latest(self) -> Path | None:
        """The newest snapshot whose files all have their checksums; a damaged one is passed over with a warning."""
        self.wait()
        return newest(self.folder)

    def best(self) -> Path | None:
        """The snapshot with the best `best_by` among those of the newest one's run, or None if none has it."""
        self.wait()
        ranked = self._ranked(self._of_newest_run())
        return ranked[0] if ranked else None

    def _of_newest_run(self) -> list[Path]:
        """Those of the run that was saved last, in the order of saving; damaged ones are nobody's."""
        paths = [path for path in self.all() if sequence_of(path) < math.inf]
        return [path for path in paths if line_of(path) == line_of(paths[-1])]

    def _ranked(self, paths: list[Path]) -> list[Path]:
        scored = []
        for path in paths:
            value = read_manifest(path).get("metrics", {}).get(self.best_by)
            if value is not None and value == value:
                scored.append((value if self.mode == "min" else -value, path.name, path))
        return [path for _, _, path in sorted(scored)]

    def prune(self) -> None:
        """Delete what neither `keep_last` nor `keep_best` keeps, of the run that was saved last."""
        if self.keep_last is None:
            return
        paths = self._of_newest_run()
        kept = {*paths[-self.keep_last :], *self._ranked(paths)[: self.keep_best]}
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
        chosen = as_path(path) if path is not None else self.latest()
        if chosen is None:
            raise FileNotFoundError(f"there is no snapshot in {self.folder}")
        if path is not None:  # the newest has been looked at already
            check_whole(chosen)
        if isinstance(run_or_parts, Run):
            _fill(run_or_parts, chosen)
            return run_or_parts.step
        return load_parts(dict(run_or_parts), read_state(chosen))

    def load_newest(self, run: Run, *, settings: str = "snapshot") -> Path | None:
        """Put the newest snapshot that is whole back into a run; which that was, or None where there is none.

        Args:
            run: what is filled.
            settings: as `Run.load_state_dict` takes it.
        """
        latest = self.latest()
        if latest is not None:
            _fill(run, latest, settings)
        return latest


def _fill(run: Run, path: Path, settings: str = "snapshot") -> None:
    if run.ranks.world > 1 or (path / "dcp").is_dir():
        from ai.train.distributed.sharded import load_ranks

        load_ranks(run, path, settings)
    else:
        run.load_state_dict(read_state(path), settings=settings)
    run.line = line_of(path)


_USUAL = "val_loss"
