"""Two ranks: a run that is stopped in the middle of an epoch and continued ends in the bits of one that is not."""

from pathlib import Path

import resumable
import torch.distributed as dist


def check(case: str, folder: Path) -> None:
    whole = resumable.run(folder / f"{case}-whole", case, 12)
    resumable.run(folder / f"{case}-cut", case, 12, limit=7)
    resumed = resumable.run(folder / f"{case}-cut", case, 12)
    assert whole == resumed, case
    print(f"{case} rank {dist.get_rank()}: resumed", flush=True)
