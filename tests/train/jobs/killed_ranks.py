"""Rank 1 of 2 is killed mid-accumulation; the job started again ends in the bits of one that was not."""

import signal
import sys
from pathlib import Path

import forked

folder, case = Path(sys.argv[1]), sys.argv[2]
whole = forked.Job(folder / "whole", case, 12)
statuses = whole.wait()
assert statuses == [0, 0], (statuses, (folder / "whole" / "log-0.txt").read_text())
cut = forked.Job(folder / "cut", case, 12, at=9, suicide=1)
statuses = cut.wait()
assert statuses == [1, -signal.SIGKILL], statuses  # rank 0 noticed by itself
print("snapshots", sorted(path.name for path in (folder / "cut" / "snapshots").glob("0*")))
resumed = forked.Job(folder / "cut", case, 12)
statuses = resumed.wait()
assert statuses == [0, 0], (statuses, (folder / "cut" / "log-0.txt").read_text())
assert resumed.digests() == whole.digests()
assert len(set(whole.digests())) == 1  # both ranks hold the same model
print(case, "resumed")
