"""Rank 1 of 2 is killed mid-accumulation; the job started again ends in the bits of one that was not."""

import signal
import sys
from pathlib import Path

import forked


def check(folder: Path, case: str) -> None:
    whole = forked.Job(folder / "whole", case, 12)
    statuses = whole.wait()
    assert statuses == [0, 0], (statuses, (folder / "whole" / "log-0.txt").read_text())
    cut = forked.Job(folder / "cut", case, 12, rank=1, at=11, number=signal.SIGKILL)
    statuses = cut.wait()
    assert statuses == [1, -signal.SIGKILL], statuses  # rank 0 noticed by itself
    log = (folder / "cut" / "log-0.txt").read_text()
    assert "on rank 0: rank 1 (pid" in log, log[-3000:]
    # The next save waits for the writing of the one before; that of step 10 may or may not have come to its end.
    assert (folder / "cut" / "snapshots" / "000000005").is_dir()
    resumed = forked.Job(folder / "cut", case, 12)
    statuses = resumed.wait()
    assert statuses == [0, 0], (statuses, (folder / "cut" / "log-0.txt").read_text())
    assert whole.digests() is not None
    assert resumed.digests() == whole.digests()
    print(case, "resumed")


for name in sys.argv[2:]:
    check(Path(sys.argv[1]) / name, name)
