"""Every check that needs two ranks and leaves them alive, in one job: starting a job takes longer than all of them."""

import contextlib
import os
import sys
from pathlib import Path

import ends_and_noise
import environment
import equal_gradients
import evaluated_averages
import every_trainer
import failed_write
import frozen_between_steps
import nan_on_one_rank
import resumed_ranks
import stop_on_one_rank
import torch
import torch.distributed as dist
import whole_set_metrics

folder = Path(sys.argv[1])
KINDS = ("ddp",) if torch.__version__ < "2.7" else ("ddp", "fsdp")  # torch 2.6 shards on GPUs alone
# A file for each rank: lines that two processes write to one pipe may run into each other.
with open(folder / f"rank-{os.environ['RANK']}.txt", "w", encoding="utf-8") as out, contextlib.redirect_stdout(out):
    for parallel in KINDS:
        equal_gradients.check(parallel)
        for on_nan in ("raise", "skip"):
            nan_on_one_rank.check(parallel, on_nan)
    stop_on_one_rank.check()
    stop_on_one_rank.check_signal()
    for parallel in KINDS:
        resumed_ranks.check(parallel, folder)
    if "fsdp" in KINDS:
        every_trainer.check_fsdp()
        evaluated_averages.check()
    every_trainer.check_multi(KINDS)
    every_trainer.check_rl()
    for parallel in KINDS:
        ends_and_noise.check(parallel)
    ends_and_noise.check_noise()
    environment.check(folder / "environment")
    environment.check_refusal()
    for parallel in KINDS:
        frozen_between_steps.check(parallel)
        whole_set_metrics.check(parallel)
        for asynchronous in (False, True):
            failed_write.check(parallel, folder / f"full-{parallel}-{asynchronous}", asynchronous)
dist.destroy_process_group()
