"""Rank 1 is killed mid-run; rank 0 must end soon and say which rank it was."""

import os
import signal
import sys
import traceback

import torch
import torch.distributed as dist
from torch import nn

from ai.train import Trainer, opt
from ai.train.parallel import Ddp


def env(model: nn.Module, batch: torch.Tensor, step: int) -> torch.Tensor:
    if step == 3 and dist.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return model(batch).mean()


signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun ends the others; here rank 0 is to notice by itself
model = nn.Linear(2, 1)
try:
    Trainer(env, [torch.ones(2, 2)] * 100, parallel=Ddp(timeout_s=20)).train(model, opt.sgd(model))
except Exception:
    traceback.print_exc()
    sys.stderr.flush()
    os._exit(1)
sys.exit(0)
