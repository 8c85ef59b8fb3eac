"""One process of many on an offered search: takes trials, and takes up what others lost."""

import signal
import time
from types import FrameType

from ai.lab.search.loop import Report, Run, Search

_LOOK_S = 2.0


def work_on(search: Search, run: Run, report: Report, *, stay: bool = False) -> None:
    """Runs trials until there are enough, or, to `stay`, until all have ended; SIGTERM leaves one to be taken up.

    Raises:
        SystemExit: SIGTERM came; the trial is interrupted, and its number, choices and folder are the next one's.
    """
    before = signal.signal(signal.SIGTERM, _leave)
    try:
        enough = search.work(run, report)
        while stay and enough and search.is_under_way():
            time.sleep(_LOOK_S)
            enough = search.work(run, report)
    finally:
        signal.signal(signal.SIGTERM, before)


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
