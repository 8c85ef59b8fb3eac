"""Which rows of a trial stay when its training begins: those of a run that goes on, up to where it goes on."""

from pathlib import Path
from typing import TYPE_CHECKING

from ai.lab.media.kept import drop_media
from ai.lab.recording.session import Session

if TYPE_CHECKING:
    from ai.train import Run


class MetricsPosition:
    """How long the metrics file was when a snapshot was taken: saved with it, cut to when it is put back."""

    def __init__(self, session: Session) -> None:
        self._metrics = session.metrics
        self.was_cut = False

    def state_dict(self) -> dict[str, int]:
        """Returns the length in bytes."""
        return {"metrics_bytes": self._metrics.end}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Drops what was written after the snapshot."""
        self.was_cut = self._metrics.cut(state["metrics_bytes"])


def take_up(session: Session, run: "Run", *, starts_again: bool) -> None:
    """Makes a trial's rows those of a run that begins at `run.step`.

    Args:
        session: The trial's, open.
        run: The run that begins.
        starts_again: Whether there was a `resume` that found no snapshot: a run killed before its first one.

    Raises:
        ValueError: there are rows of later steps, and the run is no continuation.
    """
    if starts_again and run.step == 0 and not run.resumed:
        session.metrics.cut(0)
        drop_media(session.record.path, -1)
    position = MetricsPosition(session)
    run.add_state("trial", position)  # cuts the rows, where a snapshot was put back
    if run.resumed:
        if not position.was_cut:
            session.metrics.drop_from(run.step)
        drop_media(session.record.path, run.step)
        session.event(f"resumed at step {run.step}")
    else:
        last = session.record.last().get("step", -1)
        if last > run.step:
            raise ValueError(
                f"trial {session.record.path} has rows up to step {int(last)} and training would begin at {run.step}: "
                "pass clean=True to start over, or call trial.resume(model, opt, loader) to go on"
            )
        session.event(f"started at step {run.step}")
    session.rewound()
    session.update(steplimit=run.steplimit, started_step=run.step)


def take_up_by_hand(session: Session, step: int, snapshot: Path | None) -> None:
    """Makes a trial's rows those up to a snapshot, for a loop without a trainer; none where there was no snapshot."""
    position = MetricsPosition(session)
    if snapshot is not None:
        from ai.train.saving.files import read_state

        if (state := read_state(snapshot)["states"].get("trial")) is not None:
            position.load_state_dict(state)
        if not position.was_cut:
            session.metrics.drop_from(step)
        drop_media(session.record.path, step)
    else:
        session.metrics.cut(0)
        drop_media(session.record.path, -1)
    session.event(f"resumed at step {step}" if snapshot is not None else f"started at step {step}")
    session.rewound()
    session.update(started_step=step)
