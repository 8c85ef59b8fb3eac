"""A run that may kill itself: `resumable_run.py FOLDER KILL_AT [resume]`; prints the first step and the weights."""

import os
import signal
import sys
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from ai.data import Dataset
from ai.lab import Trial
from ai.train import Classify, Trainer, opt


def run(folder: str, kill_at: int, resume: bool, logger: Callable | None = None) -> tuple[int, dict[str, list]]:
    rng = np.random.default_rng(0)
    data = Dataset({"x": rng.normal(size=(200, 8)).astype("float32"), "y": rng.integers(0, 3, 200).astype("uint8")})
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.3), nn.ReLU(), nn.Linear(16, 3))
    optimizer = opt.adamw(model)
    loader = data.loader(16, "cpu", train=True, seed=1)
    classify = Classify()

    def env(model: nn.Module, batch: object, step: int) -> object:
        if step == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return classify(model, batch, step)

    trial = Trial(
        folder,
        val_data=data.loader(64, "cpu"),
        save_snapshots=True,
        log_interval=5,
        val_interval=10,
        save_interval=10,
        loggers=[logger] if logger else [],
        system_interval_s=None,
        progress=False,
    )
    step = trial.resume(model, optimizer, loader) if resume else 0
    Trainer(env, loader).train(model, optimizer, trial.hook(), step=step, steplimit=40)
    return step, {name: value.tolist() for name, value in model.state_dict().items()}


if __name__ == "__main__":
    print("from", *run(sys.argv[1], int(sys.argv[2]), "resume" in sys.argv))
