"""Every check that needs two ranks and leaves them alive, in one job: starting a job takes longer than all of them."""

import contextlib
import os
import sys
from pathlib import Path

import ends_and_noise
import environment
import equal_gradients
import every_trainer
import failed_write
import nan_on_one_rank
import resumed_ranks
import stop_on_one_rank
import torch.distributed as dist
import whole_set_metrics

folder = Path(sys.argv[1])
# A file for each rank: lines that two processes write to one pipe may run into each other.
with open(folder / f"rank-{os.environ['RANK']}.txt", "w", encoding="utf-8") as out, contextlib.redirect_stdout(out):
    equal_gradients.check("ddp")
    equal_gradients.check("fsdp")
    nan_on_one_rank.check("ddp", "raise")
    nan_on_one_rank.check("fsdp", "raise")
    nan_on_one_rank.check("ddp", "skip")
    nan_on_one_rank.check("fsdp", "skip")
    stop_on_one_rank.check()
    stop_on_one_rank.check_signal()
    resumed_ranks.check("ddp", folder)
    resumed_ranks.check("fsdp", folder)
    every_trainer.check_fsdp()
    every_trainer.check_multi()
    every_trainer.check_rl()
    ends_and_noise.check("ddp")
    ends_and_noise.check("fsdp")
    ends_and_noise.check_noise()
    environment.check(folder / "environment")
    environment.check_refusal()
    whole_set_metrics.check("ddp")
    whole_set_metrics.check("fsdp")
    for parallel in ("ddp", "fsdp"):
        for asynchronous in (False, True):
            failed_write.check(parallel, folder / f"full-{parallel}-{asynchronous}", asynchronous)
dist.destroy_process_group()
