"""What does a training loop add to a step? Ours beside a raw loop and the peers, in one run.

    python benchmarks/train_loop.py [--steps 2000] [--repeats 5]

The work is an MLP 784-128-10 on one batch of 32 in memory with SGD, on one thread. The clock sits in the data source,
the same for every loop; loops alternate, in both directions. Quoted are medians over chunks of 50 steps. A peer that is
not installed is left out with a line saying so.
"""

import argparse
import contextlib
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ai.train import Hook, Snapshots, Trainer, opt

CHUNK, WARMUP = 50, 200
CLOCKS = {"wall": time.perf_counter, "cpu": time.thread_time}
clock = time.perf_counter
torch.manual_seed(0)
X, Y = torch.randn(32, 784), torch.randint(0, 10, (32,))


class Source:
    """The same batch again and again, noting the time after every chunk."""

    def __init__(self, steps: int) -> None:
        self.steps, self.times = steps, []

    def __len__(self) -> int:
        return WARMUP + self.steps + 1

    def __iter__(self) -> Iterator[Any]:
        for step in range(len(self)):
            if step >= WARMUP and (step - WARMUP) % CHUNK == 0:
                self.times.append(clock())
            yield X, Y

    def chunks_us(self) -> list[float]:
        """Microseconds per step of each chunk."""
        return [(b - a) / CHUNK * 1e6 for a, b in zip(self.times, self.times[1:], strict=False)]


def mlp() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.01)


def env(model: nn.Module, batch: Any, step: int) -> torch.Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def raw(source: Source) -> None:
    model = mlp()
    optimizer = sgd(model)
    for x, y in source:
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()


def ours(make_opt: Callable[[nn.Module], Any] = sgd, hook: bool = False, **how: Any) -> Callable[[Source], None]:
    """Our trainer; the full hook has logging, progress, validation and snapshots configured, and none of them due."""

    def loop(source: Source) -> None:
        model = mlp()
        with tempfile.TemporaryDirectory() as folder:
            full = Hook(
                log=lambda step, numbers: None,
                log_interval=10**9,
                val_data=[(X, Y)],
                val_interval=10**9,
                snapshots=Snapshots(folder),
                save_interval="1h",
                progress=True,
            )
            trainer = Trainer(env, source, **how)
            trainer.train(model, make_opt(model), full if hook else None, steplimit=len(source) - 1)

    return loop


def fabric(source: Source) -> None:
    from lightning.fabric import Fabric

    with contextlib.redirect_stdout(None):
        runner = Fabric(accelerator="cpu", devices=1)
        runner.launch()
        model, optimizer = runner.setup(model := mlp(), sgd(model))
    for x, y in source:
        runner.backward(F.cross_entropy(model(x), y))
        optimizer.step()
        optimizer.zero_grad()


def ignite(source: Source) -> None:
    from ignite.engine import Engine

    model = mlp()
    optimizer = sgd(model)

    def step(engine: Any, batch: Any) -> torch.Tensor:
        loss = F.cross_entropy(model(batch[0]), batch[1])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss

    Engine(step).run(source, max_epochs=1)


def accelerate(source: Source) -> None:
    from accelerate import Accelerator

    runner = Accelerator(cpu=True)
    model, optimizer = runner.prepare(model := mlp(), sgd(model))
    for x, y in source:
        runner.backward(F.cross_entropy(model(x), y))
        optimizer.step()
        optimizer.zero_grad()


def lightning(source: Source) -> None:
    import lightning.pytorch as pl

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp()

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            return F.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return sgd(self)

    off = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    with contextlib.redirect_stdout(None):
        pl.Trainer(accelerator="cpu", devices=1, max_epochs=1, **off).fit(Module(), source)


def hf_trainer(source: Source) -> None:
    from transformers import Trainer as HfTrainer
    from transformers import TrainingArguments

    class Module(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp()

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"loss": F.cross_entropy(self.net(x), y)}

    class Loop(HfTrainer):
        def get_train_dataloader(self) -> Any:  # ours, as for the other loops
            return Named(source)

    model = Module()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(None):
        off = {"logging_strategy": "no", "save_strategy": "no", "report_to": "none", "disable_tqdm": True}
        how = TrainingArguments(folder, use_cpu=True, max_steps=len(source), max_grad_norm=0.0, **off)
        constant = torch.optim.lr_scheduler.ConstantLR(optimizer := sgd(model), factor=1.0)
        Loop(model, how, train_dataset=[0], optimizers=(optimizer, constant)).train()


class Named:
    """The source's batches under the names that HF's model takes."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        return ({"x": x, "y": y} for x, y in self.source)


def fastai(source: Source) -> None:
    from fastai.data.core import DataLoaders
    from fastai.learner import Learner
    from fastai.optimizer import OptimWrapper

    def torchs_sgd(params: Any, **settings: Any) -> Any:
        return OptimWrapper(params, torch.optim.SGD, lr=0.01)

    data = DataLoaders(source, [(X, Y)], device="cpu")
    learner = Learner(data, mlp(), loss_func=F.cross_entropy, opt_func=torchs_sgd, train_bn=False)
    with learner.no_logging():
        learner.fit(1, lr=0.01)


LOOPS: dict[str, Callable[[Source], None]] = {
    "raw loop": raw,
    "ours, no hook": ours(),
    "ours, full hook": ours(hook=True),
    "ours, accumulate=2 (per batch)": ours(accumulate=2),
    "ours, ema": ours(ema=0.999),
    "ours, on_nan='skip'": ours(on_nan="skip"),
    "ours, clip_norm": ours(lambda model: opt.sgd(model, clip_norm=1.0)),
    "ours, adamw (fused)": ours(opt.adamw),
    "ours, adamw, not fused": ours(lambda model: opt.adamw(model, fused=False)),
    "Ignite Engine": ignite,
    "Fabric": fabric,
    "Accelerate": accelerate,
    "Lightning, all off": lightning,
    "HF Trainer, all off": hf_trainer,
    "fastai, all off": fastai,
}


def main(steps: int, repeats: int, only: list[str]) -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    for name in ("lightning", "lightning.pytorch", "lightning.fabric", "ignite", "accelerate"):
        logging.getLogger(name).setLevel(logging.ERROR)
    chunks: dict[str, list[float]] = {
        name: [] for name in LOOPS if not only or name == "raw loop" or any(o in name for o in only)
    }
    missing: dict[str, str] = {}
    for repeat in range(repeats):
        for name in list(chunks)[:: 1 if repeat % 2 else -1]:
            if name in missing:
                continue
            source = Source(steps)
            try:
                LOOPS[name](source)
            except ImportError as error:
                missing[name] = str(error)
                continue
            chunks[name] += source.chunks_us()
    base = statistics.median(chunks["raw loop"])
    base10 = statistics.quantiles(chunks["raw loop"], n=10)[0]
    print(f"torch {torch.__version__}, {steps} steps x {repeats}, one thread, {clock.__name__}")
    print(f"{'loop':<32}{'us/step':>9}{'over raw':>10}{'':>7}{'p10':>9}{'over raw':>10}")
    for name, found in chunks.items():
        if name in missing:
            print(f"{name:<32}  left out: {missing[name]}")
            continue
        median, p10 = statistics.median(found), statistics.quantiles(found, n=10)[0]
        over = f"{median - base:>+10.1f}{(median / base - 1) * 100:>+6.0f}%"
        print(f"{name:<32}{median:>9.1f}{over}{p10:>9.1f}{p10 - base10:>+10.1f}")
    print_imports()


def print_imports() -> None:
    """Import times in fresh processes, alternating; the least of five."""
    found: dict[str, list[float]] = {"torch": [], "ai.train": []}
    for _ in range(5):
        for module, times in found.items():
            code = f"import time; t = time.perf_counter(); import {module}; print(time.perf_counter() - t)"
            times.append(float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout))
    torch_ms, ours_ms = min(found["torch"]) * 1e3, min(found["ai.train"]) * 1e3
    print(f"import torch {torch_ms:.0f} ms, import ai.train {ours_ms:.0f} ms: {ours_ms - torch_ms:+.0f} ms")


if __name__ == "__main__":
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", nargs="*", default=[], help="just the loops whose names contain one of these")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: this thread's time, for a busy machine")
    args = parser.parse_args()
    clock = CLOCKS[args.clock]
    main(args.steps, args.repeats, args.only)
