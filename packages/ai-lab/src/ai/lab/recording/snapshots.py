"""A trial's snapshots: saved beside its rows, put back with them."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ai.lab.files.metrics_writer import as_step
from ai.lab.files.ownership import Owner
from ai.lab.record import Record
from ai.lab.recording.resumed_rows import MetricsPosition
from ai.lab.recording.writer import TrialWriter, rank

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

    from ai.train import Snapshots
    from ai.train.engine.run import Stateful

    Models = nn.Module | Mapping[str, nn.Module]
    Optimizers = Optimizer | Mapping[str, Optimizer]


class TrialSnapshots:
    """The snapshots in a trial's folder.

    Args:
        writer: Who writes the trial's folder.
        given: What the user gave as `save_snapshots`.
        keep_last: How many of the newest are kept.
    """

    def __init__(self, writer: TrialWriter, given: "bool | Snapshots", keep_last: int | None) -> None:
        self._writer = writer
        self.given, self._keep_last = given, keep_last

    @property
    def store(self) -> "Snapshots":
        """The snapshots as `ai.train` sees them."""
        from ai.lab.recording.followed_snapshots import FollowedSnapshots
        from ai.train import Snapshots

        if isinstance(self.given, Snapshots):
            return self.given
        return FollowedSnapshots(self._writer, keep_last=self._keep_last)

    def resume(self, model: "Models", opt: "Optimizers", stateful: "tuple[Stateful, ...]") -> int:
        """See `Trial.resume`."""
        from ai.train import snapshot
        from ai.train.engine.argument_checks import check_to_restore

        if rank() == 0 and not self._writer.is_open:
            Owner(self._writer.path).release()  # refuses while another process writes
        check_to_restore(model, opt)
        newest = self.store.latest()
        step = snapshot.restore(newest, model, opt, *stateful) if newest is not None else 0
        self._writer.resumed(step, newest)
        return step

    def save(self, model: "Models", opt: "Optimizers", step: int, stateful: "tuple[Stateful, ...]") -> Path:
        """See `Trial.save_snapshot`."""
        from ai.train import Run

        step = as_step(step)
        models = dict(model) if isinstance(model, Mapping) else {"model": model}
        optimizers = dict(opt) if isinstance(opt, Mapping) else {"model": opt}
        run = Run(models, optimizers, data=(), step=step)
        for index, one in enumerate(stateful):
            run.add_state(f"stateful.{index}", one)
        self._writer.go_on_by_hand(step, set())
        run.add_state("trial", MetricsPosition(self._writer.open()))
        return self.store.save(run, step)

    def load(self, model: "Models", opt: "Optimizers", stateful: "tuple[Stateful, ...]", step: int | None) -> int:
        """See `Trial.load_snapshot`."""
        from ai.train import snapshot

        return snapshot.restore(self.at(step), model, opt, *stateful)

    def at(self, step: int | None) -> Path:
        """Returns the snapshot of `step`, or the newest whole one.

        Raises:
            FileNotFoundError: there is none.
        """
        if step is None:
            found = self.store.latest()
            if found is None:
                raise FileNotFoundError(
                    f"trial {self._writer.path} has no snapshot; record it with save_snapshots=True"
                )
            return found
        known = Record(self._writer.path).snapshots()
        if step not in known:
            steps = ", ".join(map(str, known)) or "none"
            raise FileNotFoundError(f"trial {self._writer.path} has no snapshot of step {step}; it has: {steps}")
        return known[step]
