"""Evaluations between steps, which leave a sharded model's parameters gathered, change neither weights nor averages."""

import torch
import torch.distributed as dist
from equal_gradients import Net, assert_close, batches, env, whole
from torch import nn

from ai.train import Hook, Trainer, opt
from ai.train.parallel import Fsdp


def _train(parallel: Fsdp | None) -> tuple[nn.Module, dict[str, torch.Tensor], list[float]]:
    torch.manual_seed(0)
    model, losses = Net(), []
    pairs = [(torch.cat([a[0] for a in pair]), torch.cat([a[1] for a in pair])) for pair in batches()]
    data = pairs if parallel is None else [pair[dist.get_rank()] for pair in batches()]

    def task(model: nn.Module, step: int) -> dict[str, float]:
        losses.append(float(env(model, pairs[0], step)))
        return {"seen": losses[-1]}

    trainer = Trainer(env, data, ema=0.5, parallel=parallel)
    trainer.train(model, opt.sgd(model, lr=0.5), Hook(task=task, task_interval=1))
    with trainer.averaged(model):
        averages = {name: whole(p.detach()).clone() for name, p in model.named_parameters()}
    return model, averages, losses


def check() -> None:
    alone, averages, losses = _train(None)
    model, found, seen = _train(Fsdp(reshard=False))
    assert_close("what is measured", torch.tensor(seen), torch.tensor(losses))
    for (name, wanted), param in zip(alone.named_parameters(), model.parameters(), strict=True):
        assert_close(name, whole(param.detach()), wanted.detach())
        assert_close(f"the average of {name}", found[name], averages[name])
    print(f"evaluated rank {dist.get_rank()}: equal", flush=True)
