"""Which rows of a trial stay when its training begins: those of a run that goes on, up to where it goes on."""

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

from ai.lab.files.metrics_file import each_row
from ai.lab.media.kept import drop_media, kept_after
from ai.lab.record import METRICS
from ai.lab.recording.session import Session

if TYPE_CHECKING:
    from ai.train import Run


@dataclass(frozen=True)
class Resumed:
    """Where a `resume` put a trial back.

    Attributes:
        step: Of the snapshot; 0 without one.
        has_snapshot: Whether there was one.
        metrics_bytes: How long the metrics file was then; None where the snapshot does not tell.
    """

    step: int
    has_snapshot: bool
    metrics_bytes: int | None

    @classmethod
    def at(cls, step: int, snapshot: Path | None) -> Self:
        """Reads where a trial was when a snapshot was taken."""
        if snapshot is None:
            return cls(step, False, 0)
        from ai.model.saved import STATE, load_pt

        position = load_pt(snapshot / STATE, mmap=True)["states"].get("trial", {})
        return cls(step, True, position.get("metrics_bytes"))


class ByHand(NamedTuple):
    """Where rows that are logged by hand after a `resume` begin.

    Attributes:
        snapshot: How long the metrics file was when the snapshot was taken; 0 where that is not known.
        start: And when the first of them was logged.
    """

    snapshot: int
    start: int


class MetricsPosition:
    """How long the metrics file was when a snapshot was taken: saved with it, cut to when it is put back."""

    def __init__(self, session: Session, *, is_there: bool = False) -> None:
        self._metrics = session.metrics
        self.was_cut = is_there

    def state_dict(self) -> dict[str, int]:
        """Returns the length in bytes."""
        return {"metrics_bytes": self._metrics.end}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Drops what was written after the snapshot, unless that is done."""
        self.was_cut = self.was_cut or self._metrics.cut(state["metrics_bytes"])


def take_up(session: Session, run: "Run", *, starts_again: bool, by_hand: ByHand | None = None) -> None:
    """Makes a trial's rows those of a run that begins at `run.step`.

    Args:
        session: The trial's, open.
        run: The run that begins.
        starts_again: Whether there was a `resume` that found no snapshot: a run killed before its first one.
        by_hand: What was logged by hand in between, which stays up to the step where the run begins.

    Raises:
        ValueError: there are rows of later steps, and the run is no continuation.
    """
    if by_hand is not None:
        session.metrics.drop_from(run.step, by_hand.snapshot, by_hand.start)
        session.metrics.drop_from(run.step + 1, by_hand.snapshot)
    elif starts_again and run.step == 0 and not run.resumed:
        start_anew(session)
    position = MetricsPosition(session, is_there=by_hand is not None)
    run.add_state("trial", position)  # cuts the rows, where a snapshot was put back
    if run.resumed:
        if not position.was_cut:
            session.metrics.drop_from(run.step)
        drop_media(session.folder, run.step)
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


def start_anew(session: Session) -> None:
    """Drops every row, and all that was kept."""
    folder = session.folder  # where it was moved to
    session.metrics.cut(0)
    drop_media(folder, -1)


def give_way(session: Session, resumed: Resumed, step: int, said: set[str]) -> ByHand:
    """Has what came after a snapshot give way to a loop without a trainer that begins there again.

    That is told by its first word: of a step before the last one, or of the only one, saying again what was said of it.
    What goes on from the last step, such as an evaluation at the end, takes nothing away.

    Args:
        session: The trial's, open.
        resumed: Where it was put back.
        step: Of the first word.
        said: What it says: `row.KEY` for each number, `kept.NAME` for a file.

    Returns:
        Where what is logged by hand begins.
    """
    known = resumed.metrics_bytes
    start = known if known is not None and session.metrics.had_length(known) else None
    first, last, is_said_again = math.inf, -math.inf, False
    for later, words in _since(session, resumed, start):
        first, last = min(first, later), max(last, later)
        is_said_again |= later == step and not said.isdisjoint(words)
    if step < last or (step == first == last and is_said_again):
        _drop(session, resumed, start, stays=first <= resumed.step and not (step <= resumed.step and is_said_again))
        if resumed.has_snapshot:
            begins = f"goes on from its snapshot of step {resumed.step}"
        else:
            begins = "begins anew, as it has no snapshot"
        dropped = f"what was logged since, up to step {last}, was dropped, as step {step} is logged anew"
        session.event(f"{begins}: {dropped}")
        print(f"ai.lab: trial {session.folder} {begins}: {dropped}", file=sys.stderr)
    return ByHand(start or 0, session.metrics.end)


def _drop(session: Session, resumed: Resumed, start: int | None, *, stays: bool) -> None:
    """Drops what came after a snapshot; of its own step, what was said after it was saved may stay.

    A loop that begins there says that again, one that begins at the next step does not.
    """
    if not resumed.has_snapshot:
        start_anew(session)
    else:
        if stays or start is None:
            session.metrics.drop_from(resumed.step + stays, start or 0)
        else:
            session.metrics.cut(start)
        drop_media(session.folder, resumed.step)
    session.rewound()
    session.update(started_step=resumed.step)


def _since(session: Session, resumed: Resumed, start: int | None) -> Iterator[tuple[int, set[str]]]:
    """Yields each step after a snapshot of which there are rows or files, with what they say."""
    folder = session.folder
    for row in each_row(folder / METRICS, start or 0):
        if start is not None or row["step"] >= resumed.step:
            yield int(row["step"]), {f"row.{key}" for key in row}
    for step, place in kept_after(folder, resumed.step if resumed.has_snapshot else -1):
        yield step, {f"kept.{path.stem}" for path in place.iterdir()}
