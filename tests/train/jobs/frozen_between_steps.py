"""A layer is frozen and another unfrozen at a step: under FSDP as in one process, under DDP refused by name."""

import torch
import torch.distributed as dist
from equal_gradients import Net, assert_close, batches, whole
from torch import nn

from ai.train import HookInterface, Trainer, opt


class Switch(HookInterface):
    """At step 2 the one layer is frozen, the other no longer."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def step(self, step: int) -> None:
        if step == 2:
            for param in self.model.parameters():
                param.requires_grad_(not param.requires_grad)


def _train(parallel: str | None) -> Net:
    torch.manual_seed(0)
    model = Net()
    for name, param in model.named_parameters():
        param.requires_grad_(name.startswith("head"))
    pairs = [(torch.cat([a[0] for a in pair]), torch.cat([a[1] for a in pair])) for pair in batches()]
    data = pairs if parallel is None else [pair[dist.get_rank()] for pair in batches()]

    def env(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor], step: int) -> torch.Tensor:
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    Trainer(env, data, parallel=parallel).train(model, opt.sgd(model, lr=0.1), Switch(model), steplimit=4)
    return model


def check(parallel: str) -> None:
    head = f"{parallel} switched rank {dist.get_rank()}:"
    try:
        model = _train(parallel)
    except ValueError as error:
        print(head, error, flush=True)
        return
    for (name, wanted), param in zip(_train(None).named_parameters(), model.parameters(), strict=True):
        assert_close(name, whole(param.detach()), wanted.detach())
    print(head, "equal", flush=True)
