"""A run with everything that a resume could get wrong; run again with the same folder it goes on, and prints a digest.

    python tests/train/jobs/resumable.py FOLDER CASE [--steps N] [--signal KILL --at STEP]

Under torchrun the same, with CASE ddp or fsdp.
"""

import argparse
import hashlib
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ai.data import Datagen, Dataset
from ai.train import Classify, Gan, Hook, MultiTrainer, RLTrainer, Snapshots, Trainer, opt, schedule

CASES = ("plain", "workers", "bf16", "fp16", "multi", "rl", "ddp", "fsdp")


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
        return {"obs": obs, "action": policy.argmax(1), "reward": obs[:5, 0], "policy": policy}

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


def digest(*objects: Any) -> str:
    """A hash of every tensor's exact bytes."""
    found = hashlib.sha256()
    for state in objects:
        for name, value in sorted(_flat("", state)):
            found.update(name.encode())
            found.update(
                value.contiguous().numpy().tobytes() if isinstance(value, torch.Tensor) else repr(value).encode()
            )
    return found.hexdigest()


def _flat(prefix: str, value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, dict):
        return [item for key, part in value.items() for item in _flat(f"{prefix}.{key}", part)]
    if isinstance(value, (list, tuple)):
        return [item for key, part in enumerate(value) for item in _flat(f"{prefix}.{key}", part)]
    if hasattr(value, "full_tensor"):
        value = value.full_tensor()
    return [(prefix, value.detach().float() if isinstance(value, torch.Tensor) else value)]


def run(
    folder: Path,
    case: str,
    steps: int,
    at: int | None = None,
    number: int = signal.SIGKILL,
    limit: int | None = None,
) -> str:
    """Train to `steps`, from the newest snapshot in `folder`; signal this process inside step `at`, stop at `limit`."""
    torch.manual_seed(1)
    hook = Hook(
        snapshots=Snapshots(folder, asynchronous=case in ("plain", "workers")),
        save_interval=5,
        val_data=[(torch.ones(4, 6), torch.zeros(4, dtype=torch.uint8))] if case not in ("multi", "rl") else None,
        val_interval=4,
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
            calls += 1
            if at is not None and arguments[-1] == at and (number != signal.SIGKILL or calls % 2 == 0):
                os.kill(os.getpid(), number)  # at an even call: in the middle of an accumulation
            return env(*arguments)

        return call

    rate = schedule.cosine(steps, warmup=5)
    if case == "multi":
        nets = {"d": nn.Linear(6, 1), "g": nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.2))}
        opts = {key: opt.adam(module, lr=0.01) for key, module in nets.items()}
        loader = Dataset(x).loader(8, train=True)
        multi = MultiTrainer(watched(Gan(4, r1=0.1, r1_interval=3)), loader, repeats={"d": 2}, ema=0.9)
        multi.train(nets, opts, hook, steplimit=limit or steps, schedule=rate)
        return digest(*(m.state_dict() for m in nets.values()), *(o.state_dict() for o in opts.values()))
    if case == "rl":
        from ai.train import RL

        model: nn.Module = PolicyValue()
        generator = Datagen(Coins()).loader(8, n_workers=0, buffer=_buffer())
        optimizer = opt.adam(model, lr=0.01)
        RLTrainer(watched(RL()), generator, push_interval=7).train(model, optimizer, hook, steplimit=limit or steps)
        return digest(model.state_dict(), optimizer.state_dict())
    model = net
    optimizer = opt.adamw(model, lr=0.01, clip_norm=1.0)
    data = Dataset({"x": x, "y": y}, preprocess={"x": noisy} if case == "workers" else None)
    trainer = Trainer(
        watched(Classify()),
        data.loader(8, train=True, **({"n_workers": 2, "worker": "thread"} if case == "workers" else {})),
        accumulate=2,
        ema=0.9,
        precision=case if case in ("bf16", "fp16") else None,
        parallel=case if case in ("ddp", "fsdp") else None,
    )
    trainer.train(model, optimizer, hook, steplimit=limit or steps, schedule=rate)
    return digest(model.state_dict(), optimizer.state_dict())


def _buffer() -> Any:
    from ai.data import ReplayBuffer

    return ReplayBuffer(200, n_step=3)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--signal", default="KILL")
    parser.add_argument("--at", type=int)
    args = parser.parse_args()
    result = run(args.folder, args.case, args.steps, args.at, signal.Signals[f"SIG{args.signal}"])
    print("digest", result, flush=True)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
