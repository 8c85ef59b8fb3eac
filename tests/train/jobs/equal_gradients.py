"""Run under torchrun: gradients, losses and parameters on several ranks equal those of one process on the same rows."""

import torch
import torch.nn.functional as F
from torch import nn

from ai.train import HookInterface, Run, Trainer, opt
from ai.train.state.shards import local

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


class Lines(HookInterface):
    """Keeps the losses of every step, and the run."""

    log_interval = 1

    def __init__(self) -> None:
        self.losses: list[float] = []

    def setup(self, run: Run) -> None:
        self.run = run

    def step(self, step: int) -> None:
        pass

    def log(self, key: str, value: float) -> None:
        if key == "loss":
            self.losses.append(value)


def whole(value: torch.Tensor) -> torch.Tensor:
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def half_each_step(step: int) -> float:
    return 0.5**step


def gradients_of(trainer: Trainer) -> list[torch.Tensor]:
    """What the optimiser is given at each step, unclipped."""
    torch.manual_seed(0)
    model = Net()
    optimizer = opt.sgd(model, lr=0.5)
    found: list[torch.Tensor] = []

    def note(optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:
        found.extend(whole(p.grad).detach().clone() for p in model.parameters())

    optimizer.register_step_pre_hook(note)
    trainer.train(model, optimizer)
    return found


def check(parallel: str) -> None:
    torch.manual_seed(0)
    alone = Net()
    merged = [(torch.cat([a[0] for a in pair]), torch.cat([a[1] for a in pair])) for pair in batches()]
    lines = Lines()
    optimizer = opt.sgd(alone, lr=0.5, momentum=0.9, clip_norm=0.5)
    Trainer(env, merged, accumulate=2, ema=0.9).train(alone, optimizer, lines, schedule=half_each_step)
    torch.manual_seed(0)
    model = Net()
    optimizer = opt.sgd(model, lr=0.5, momentum=0.9, clip_norm=0.5)
    trainer = Trainer(env, [], accumulate=2, parallel=parallel, ema=0.9)
    rank = trainer.options.parallel.ranks().rank
    trainer.data = [pair[rank] for pair in batches()]
    ranks_lines = Lines()
    steps = trainer.train(model, optimizer, ranks_lines, schedule=half_each_step)
    assert steps == 2, steps
    assert optimizer.param_groups[0]["lr"] == 0.25  # the schedule counts updates, not updates × ranks
    averages, ranks_averages = lines.run.ema["model"].state_dict(), ranks_lines.run.ema["model"].state_dict()
    for (name, wanted), found in zip(alone.named_parameters(), model.parameters(), strict=True):
        assert_close(name, whole(found.detach()), wanted.detach())
        average = ranks_averages[name]
        assert local(average).shape == local(found).shape, f"the average of {name} is not sharded as it is"
        assert_close(f"the average of {name}", whole(average), averages[name])
    assert_close("loss", torch.tensor(ranks_lines.losses), torch.tensor(lines.losses))
    gradients = gradients_of(Trainer(env, merged, accumulate=2))
    ranks_gradients = gradients_of(Trainer(env, trainer.data, accumulate=2, parallel=parallel))
    assert len(gradients) == 2 * len(list(alone.parameters()))
    for index, (wanted, found) in enumerate(zip(gradients, ranks_gradients, strict=True)):
        assert_close(f"gradient {index}", found, wanted)
    sharded = any(local(p).shape != p.shape for p in model.parameters())
    assert sharded == (parallel == "fsdp"), f"{parallel}: sharded is {sharded}"
    assert list(model.state_dict()) == list(alone.state_dict())
    print(f"{parallel} rank {rank}: equal", flush=True)


def assert_close(name: str, found: torch.Tensor, wanted: torch.Tensor) -> None:
    difference = float((found - wanted).abs().max())
    assert difference < 1e-5, f"{name} differs by {difference}"
