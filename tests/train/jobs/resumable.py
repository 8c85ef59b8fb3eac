"""A run with everything that a resume could get wrong; run again with the same folder it goes on, and prints a digest.

    python tests/train/jobs/resumable.py FOLDER CASE [--steps N] [--signal KILL --at STEP]

Under torchrun the same, with CASE ddp or fsdp. In every case an update is made of two micro-batches, and an epoch has
`EPOCH` steps.
"""

import argparse
import hashlib
import os
import random
import signal
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ai.data import Datagen, Dataset, ReplayBuffer
from ai.train import RL, Classify, Gan, Hook, MultiTrainer, RLTrainer, Run, Snapshots, Trainer, opt, schedule

CASES = ("plain", "workers", "bf16", "fp16", "multi", "rl", "ddp", "fsdp")
EPOCH = 6


def noisy(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Augmentation in workers, whose draws must not depend on when they run."""
    return x + 0.1 * torch.randn(x.shape, generator=generator)


class Coins:
    """A generator whose games depend on its parameters and its own random state."""

    def start(self, seed: int, worker: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.bias = 0.0

    def __next__(self) -> dict[str, Any]:
        obs = self.rng.normal(size=(6, 6)).astype(np.float32) + self.bias
        policy = self.rng.dirichlet(np.ones(3), 5).astype(np.float32)
        return {"obs": obs, "action": policy.argmax(1), "reward": obs[:5, 0], "value": np.zeros(5), "policy": policy}

    def update_params(self, state_dict: dict[str, torch.Tensor], version: int) -> None:
        self.bias = float(next(iter(state_dict.values())).mean())

    def state_dict(self) -> dict[str, Any]:
        return {"rng": self.rng.bit_generator.state, "bias": self.bias}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rng.bit_generator.state = state["rng"]
        self.bias = state["bias"]


class PolicyValue(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(6, 4)

    def forward(self, obs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        out = F.dropout(self.net(obs), 0.1, self.training)
        return out[:, :3], out[:, 3]


class Kept(Hook):
    """Keeps the run for a look at its end."""

    def setup(self, run: Run) -> None:
        self.kept = run
        super().setup(run)


def digests(run: Run) -> dict[str, str]:
    """Hashes of everything that the run would save, by name: every tensor's exact bytes, every state."""
    found = {}
    for name, value in _flat("", run.state_dict()):
        if name != ".data.generation":  # how often a generator was continued
            data = value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode()
            found[name] = hashlib.sha256(data).hexdigest()
    return found


def _flat(prefix: str, value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, dict):
        return [item for key, part in value.items() for item in _flat(f"{prefix}.{key}", part)]
    if isinstance(value, (list, tuple)):
        return [item for key, part in enumerate(value) for item in _flat(f"{prefix}.{key}", part)]
    if hasattr(value, "full_tensor"):
        value = value.full_tensor()
    return [(prefix, value.detach().contiguous().numpy() if isinstance(value, torch.Tensor) else value)]


def run(
    folder: Path,
    case: str,
    steps: int,
    *,
    at: int | None = None,
    part: int = 1,
    number: int = signal.SIGKILL,
    limit: int | None = None,
) -> dict[str, str] | None:
    """Train to `steps`, from the newest snapshot in `folder`.

    Args:
        folder: where the snapshots lie.
        case: one of `CASES`.
        steps: the step to end at.
        at: the step at which this process signals itself.
        part: the micro-batch of that step at which it does: 0 is its beginning, 1 the middle of an accumulation.
        number: the signal.
        limit: a step to stop at in good order.

    Returns:
        The digests of the whole run; None where it ended before `steps`.
    """
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    validating: dict[str, Any] = {}
    if case not in ("multi", "rl"):
        validating = {"val_data": [(torch.ones(4, 6), torch.zeros(4, dtype=torch.uint8))], "val_interval": 4}
    hook = Kept(
        snapshots=Snapshots(folder, asynchronous=case != "fp16"),
        save_interval=5,
        **validating,
        log=lambda step, numbers: None,
        log_interval=3,
        resume=True,
    )
    net = nn.Sequential(nn.Linear(6, 16), nn.Dropout(0.3), nn.ReLU(), nn.Linear(16, 3))
    x = torch.randn(100, 6)
    y = (x[:, 0] > 0).to(torch.uint8) + (x[:, 1] > 0).to(torch.uint8)
    calls = 0

    def watched(env: Any) -> Any:
        def call(*arguments: Any) -> Any:
            nonlocal calls
            if arguments[-1] == at and torch.is_grad_enabled():
                if calls == part:
                    os.kill(os.getpid(), number)
                calls += 1
            return env(*arguments)

        return call

    rate = schedule.cosine(steps, warmup=5)
    if case == "multi":
        nets = {"d": nn.Linear(6, 1), "g": nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.2))}
        opts = {key: opt.adam(module, lr=0.01) for key, module in nets.items()}
        loader = Dataset(x).loader(8, train=True)
        multi = MultiTrainer(watched(Gan(4, r1=0.1, r1_interval=3)), loader, repeats={"d": 2}, accumulate=2, ema=0.9)
        step = multi.train(nets, opts, hook, steplimit=limit or steps, schedule=rate)
    elif case == "rl":
        model: nn.Module = PolicyValue()
        generator = Datagen(Coins()).loader(8, n_workers=0, buffer=ReplayBuffer(200, n_step=3))
        rl = RLTrainer(watched(RL()), generator, push_interval=7, accumulate=2, ema=0.9)
        step = rl.train(model, opt.adam(model, lr=0.01), hook, steplimit=limit or steps, schedule=rate)
    else:
        in_workers = case in ("workers", "bf16", "fp16")
        data = Dataset({"x": x, "y": y}, preprocess={"x": noisy} if in_workers else None)
        kind = "process" if case == "workers" else "thread"
        trainer = Trainer(
            watched(Classify()),
            data.loader(8, train=True, **({"n_workers": 2, "worker": kind} if in_workers else {})),
            accumulate=2,
            ema=0.9,
            precision=case if case in ("bf16", "fp16") else None,
            parallel=case if case in ("ddp", "fsdp") else None,
        )
        optimizer = opt.adamw(net, lr=0.01, clip_norm=1.0)
        step = trainer.train(net, optimizer, hook, steplimit=limit or steps, schedule=rate)
    return digests(hook.kept) if step == steps else None


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--signal", default="KILL")
    parser.add_argument("--at", type=int)
    args = parser.parse_args()
    result = run(args.folder, args.case, args.steps, at=args.at, number=signal.Signals[f"SIG{args.signal}"])
    whole = None if result is None else hashlib.sha256(repr(sorted(result.items())).encode()).hexdigest()
    print("digest", whole, flush=True)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
