"""Rank 1 alone wants to stop, or has a signal; both must end at the same step, and not ask one another at each."""

import signal
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import nn

from ai.train import HookInterface, Run, Trainer, opt
from ai.train.distributed import process_group


class Impatient(HookInterface):
    def step(self, step: int) -> bool:
        return step == 5 and dist.get_rank() == 1


def check() -> None:
    model = nn.Linear(2, 1)
    trainer = Trainer(lambda model, batch, step: model(batch).mean(), [torch.ones(2, 2)] * 100, parallel="ddp")
    step = trainer.train(model, opt.sgd(model), Impatient())
    print(f"rank {dist.get_rank()} stopped at {step}", flush=True)


class Signalled(HookInterface):
    def setup(self, run: Run) -> None:
        self.run = run

    def step(self, step: int) -> None:
        if step == 5 and dist.get_rank() == 1:
            signal.raise_signal(signal.SIGTERM)


def check_signal() -> None:
    model, hook = nn.Linear(2, 1), Signalled()
    data = Endless()
    trainer = Trainer(lambda model, batch, step: model(batch).mean(), data, parallel="ddp")
    asked, reduce = 0, dist.all_reduce

    def counted(tensor: torch.Tensor, *args: object, **kwargs: object) -> object:
        nonlocal asked
        asked += tensor.dtype == torch.float64  # the votes; gradients are others
        return reduce(tensor, *args, **kwargs)

    dist.all_reduce = counted
    slow_s, process_group._POLL_S = process_group._POLL_S, 1e6  # whatever the system lets stand still is no slow step
    try:
        trainer.train(model, opt.sgd(model), hook)
    except SystemExit as end:
        print(f"rank {dist.get_rank()} signalled at {hook.run.step} status {end.code} asked {asked}", flush=True)
    finally:
        dist.all_reduce, process_group._POLL_S = reduce, slow_s


class Endless:
    """Says so, as a training loader does: nobody needs to ask whether it goes on."""

    train = True

    def __iter__(self) -> Iterator[torch.Tensor]:
        while True:
            yield torch.ones(2, 2)
