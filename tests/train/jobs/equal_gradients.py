"""Run under torchrun: parameters after steps on several ranks equal those of one process on the same global batches."""

import torch
import torch.nn.functional as F
from torch import nn

from ai.train import Trainer, opt
from ai.train.update import local

# Two micro-batches a step whose parts differ in size between ranks: 5 + 3 rows and 1 + 7 rows.
ROWS = [[5, 3], [1, 7], [4, 4], [2, 6]]


def batches() -> list[list[tuple[torch.Tensor, torch.Tensor]]]:
    generator = torch.Generator().manual_seed(3)
    return [
        [(torch.randn(n, 6, generator=generator), torch.randint(0, 3, (n,), generator=generator)) for n in rows]
        for rows in ROWS
    ]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 16))
        self.head = nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.body(x)))


def env(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor], step: int) -> torch.Tensor:
    assert isinstance(model, Net)  # the user's own object, never a wrapper
    return F.cross_entropy(model(batch[0]), batch[1])


def check(parallel: str) -> None:
    torch.manual_seed(0)
    whole = Net()
    merged = [(torch.cat([a[0] for a in pair]), torch.cat([a[1] for a in pair])) for pair in batches()]
    Trainer(env, merged, accumulate=2, ema=0.9).train(whole, opt.sgd(whole, lr=0.5, momentum=0.9, clip_norm=0.5))
    torch.manual_seed(0)
    model = Net()
    optimizer = opt.sgd(model, lr=0.5, momentum=0.9, clip_norm=0.5)
    trainer = Trainer(env, [], accumulate=2, parallel=parallel, ema=0.9)
    rank = trainer.options.parallel.ranks().rank
    trainer.data = [pair[rank] for pair in batches()]
    steps = trainer.train(model, optimizer)
    assert steps == 2, steps
    for (name, wanted), found in zip(whole.named_parameters(), model.parameters(), strict=True):
        full = found.full_tensor() if hasattr(found, "full_tensor") else found
        difference = float((full.detach() - wanted.detach()).abs().max())
        assert difference < 1e-5, f"{name} differs by {difference}"
    sharded = any(local(p).shape != p.shape for p in model.parameters())
    assert sharded == (parallel == "fsdp"), f"{parallel}: sharded is {sharded}"
    assert list(model.state_dict()) == list(whole.state_dict())
    print(f"{parallel} rank {rank}: equal", flush=True)
