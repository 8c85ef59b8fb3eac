"""Training steps: our trainers beside a loop written by hand over the same objects, with memory and MFU."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ai.train import Classify, Diffusion, MultiTrainer, Trainer, opt
from gpu_parts.machine import Chunks, Job, Machine, Row


@dataclass(frozen=True)
class Case:
    """One model and its work. `unit` is what is counted, `per_item` how many of them lie in one row of a batch."""

    name: str
    make: Callable[[], nn.Module]
    batch: Callable[[torch.device], Any]
    env: Callable[..., Any]
    unit: str = "images/s"
    per_item: int = 1
    image: bool = True
    small: bool = False  # launching takes longer than computing


def cases(quick: bool) -> list[Case]:
    """The published sizes, or the same code with nothing in it."""
    side, n, nc = (32, 2, 8) if quick else (224, 128, 128)
    tokens, rows, n_codes = (16, 2, 64) if quick else (1024, 16, 50257)
    size = 8 if quick else 32

    def labelled(size: int, rows: int, classes: int) -> Callable[[torch.device], Any]:
        return lambda device: {
            "x": torch.randn(rows, 3, size, size, device=device),
            "y": torch.randint(0, classes, (rows,), device=device),
        }

    def text(device: torch.device) -> Any:
        codes = torch.randint(0, n_codes, (rows, tokens + 1), device=device)
        return {"x": codes[:, :-1], "y": codes[:, 1:]}

    def next_code(model: nn.Module, batch: Any, step: int) -> torch.Tensor:
        return F.cross_entropy(model(batch["x"]).flatten(0, 1), batch["y"].flatten())

    def gpt() -> nn.Module:
        from ai.examples.gpt.model import Model as Gpt

        how = {"dim": 16, "depth": 1, "num_heads": 2} if quick else {"dim": 768, "depth": 12, "num_heads": 12}
        return Gpt(n_codes, context=tokens, positions="learned", **how).init(seed=0)

    def resnet() -> nn.Module:
        from torchvision.models import resnet18, resnet50

        torch.manual_seed(0)
        return (resnet18 if quick else resnet50)(num_classes=1000)

    def vit() -> nn.Module:
        from ai.examples.vit.model import Model as Vit

        how = {"dim": 24, "depth": 1, "num_heads": 2} if quick else {"dim": 384, "depth": 12, "num_heads": 6}
        return Vit(side, 16, **how).init(seed=0)

    def edm() -> nn.Module:
        from ai.examples.diffusion.model import UNet
        from ai.model import DiffusionModel

        how = {"nc_mult": (1, 1), "n_blocks": 1} if quick else {}
        return DiffusionModel(UNet(size, nc=nc, **how), [3, size, size]).init(seed=0)

    def mnist() -> nn.Module:
        from ai.examples.mnist.model import ConvNet

        return ConvNet().init(seed=0)

    def digits(device: torch.device) -> Any:
        x = torch.randn(64, 1, 28, 28, device=device)
        return {"x": x, "y": torch.randint(0, 10, (len(x),), device=device)}

    return [
        Case("GPT-2 124M", gpt, text, next_code, "tokens/s", tokens, image=False),
        Case("ResNet-50", resnet, labelled(side, n, 1000), Classify()),
        Case("ViT-S/16", vit, labelled(side, n, 1000), Classify()),
        Case("EDM UNet CIFAR", edm, labelled(size, n, 10), Diffusion()),
        Case("MNIST network", mnist, digits, Classify(), small=True),
    ]


# Those that were never measured come first.
MODES: dict[str, dict[str, Any]] = {
    "fp32, CUDA graphs": {"compile": "graphs"},
    "bf16, channels_last": {"precision": "bf16", "channels_last": True},
    "fp32": {},
    "bf16, compile": {"precision": "bf16", "compile": True},
    "bf16": {"precision": "bf16"},
}


def rows(machine: Machine) -> Iterator[Job]:
    """StyleGAN2 with few rounds, every case in every mode that there is time for, and StyleGAN2 with a whole cycle."""
    few, whole = (1, 1) if machine.quick else (4, 16)
    yield Job(f"StyleGAN2 256², G and D, bf16, {few} rounds", partial(stylegan2, machine, few), 40)
    for mode, how in MODES.items():
        if machine.quick and (mode == "fp32" or "compile" in how):
            continue
        for case in cases(machine.quick):
            if ("channels_last" in how and not case.image) or (how.get("compile") == "graphs" and not case.small):
                continue
            run = partial(compared, machine, case, dict(how))
            yield Job(f"{case.name}, {mode}", run, 45 if "compile" in how else 12)
    if not machine.quick:
        # As many as lie between two penalties of the discriminator: with warming up 36 rounds and second derivatives.
        yield Job(f"StyleGAN2 256², G and D, bf16, {whole} rounds", partial(stylegan2, machine, whole), 60)


def compared(machine: Machine, case: Case, how: dict[str, Any]) -> Row:
    """Ours and the hand-written loop, in turns: rates, their ratio, peaks of memory, MFU."""
    chunks, steps = (1, 1) if machine.quick else (3, 5)
    form = torch.channels_last if how.pop("channels_last", False) else torch.preserve_format
    batch = case.batch(machine.device)
    if form == torch.channels_last:
        batch["x"] = batch["x"].to(memory_format=form)
    seconds: dict[str, list[float]] = {"ours": [], "by hand": []}
    peaks: dict[str, float | None] = {}
    for loop in (ours, by_hand, by_hand, ours)[: 2 if machine.quick or how.get("compile") else 4]:
        model = case.make().to(machine.device, memory_format=form)
        source = Chunks(machine, batch, 1 if machine.quick else 5, chunks, steps)
        machine.forget_peak()
        loop(model, case.env, source, **how)
        seconds[NAMES[loop]].append(source.seconds_a_step())
        peaks[NAMES[loop]] = machine.peak_mib()
        del model
        torch._dynamo.reset()
    items = len(batch["x"]) * case.per_item
    best = {name: min(times) for name, times in seconds.items()}
    row: Row = {
        f"ours, {case.unit}": items / best["ours"],
        f"by hand, {case.unit}": items / best["by hand"],
        "ours / by hand": best["by hand"] / best["ours"],
        "peak MiB, ours": peaks["ours"],
        "peak MiB, by hand": peaks["by hand"],
    }
    if (peak := machine.peak_flops()) is not None and how.get("precision") == "bf16":
        work = flops(machine, case, batch)
        row |= {"MFU, ours": work / best["ours"] / peak, "MFU, by hand": work / best["by hand"] / peak}
    return row


def flops(machine: Machine, case: Case, batch: Any) -> float:
    """Of one forward and backward pass: what matrix products, convolutions and attention do, as torch counts them."""
    model = case.make().to(machine.device)
    with FlopCounterMode(display=False) as counter:
        case.env(model, batch, 0).backward()
    return float(counter.get_total_flops())


def ours(model: nn.Module, env: Callable[..., Any], source: Chunks, **how: Any) -> None:
    Trainer(env, source, **how).train(model, opt.adamw(model, lr=1e-4))


def by_hand(
    model: nn.Module,
    env: Callable[..., Any],
    source: Chunks,
    precision: str | None = None,
    compile: bool | str = False,
) -> None:
    device = source.machine.device
    on_cuda = device.type == "cuda"
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 1e-2}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-4, fused=True if on_cuda else None)
    model.train()
    if compile:
        model.compile(mode="reduce-overhead" if compile == "graphs" else None)
    cast = torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()
    for step, batch in enumerate(source):
        if compile == "graphs":
            torch.compiler.cudagraph_mark_step_begin()
        with cast:
            loss = env(model, batch, step)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


NAMES = {ours: "ours", by_hand: "by hand"}


def stylegan2(machine: Machine, rounds: int) -> Row:
    """One round of both networks with their lazy regularisers, as published at 256², after two that warm up."""
    from ai.examples.stylegan2.loss import StyleGAN2Loss
    from ai.examples.stylegan2.model import Discriminator, Generator

    size, n, how = (8, 2, {"nc_max": 8}) if machine.quick else (256, 16, {})
    batch = {"x": torch.rand(n, 3, size, size, device=machine.device) * 2 - 1}
    seconds: dict[str, float] = {}
    peaks: dict[str, float | None] = {}
    for name, loop in {"ours": gan_ours, "by hand": gan_by_hand}.items():
        networks: dict[str, nn.Module] = {
            "d": Discriminator(size, **how).init(seed=1).to(machine.device),
            "g": Generator(size, **how).init(seed=0).to(machine.device),
        }
        opts = {key: opt.adam(network, lr=2e-3, betas=(0.0, 0.99)) for key, network in networks.items()}
        source = Chunks(machine, batch, 1 if machine.quick else 2, 1, rounds)
        machine.forget_peak()
        loop(networks, opts, StyleGAN2Loss(), source)
        seconds[name], peaks[name] = source.seconds_a_step(), machine.peak_mib()
    return {
        "ours, images/s": n / seconds["ours"],
        "by hand, images/s": n / seconds["by hand"],
        "ours / by hand": seconds["by hand"] / seconds["ours"],
        "peak MiB, ours": peaks["ours"],
        "peak MiB, by hand": peaks["by hand"],
    }


def gan_ours(networks: Mapping[str, nn.Module], opts: Mapping[str, Any], env: Any, source: Chunks) -> None:
    MultiTrainer(env, source, precision="bf16").train(networks, opts)


def gan_by_hand(networks: Mapping[str, nn.Module], opts: Mapping[str, Any], env: Any, source: Chunks) -> None:
    for step, batch in enumerate(source):
        for key, network in networks.items():
            for other in networks.values():
                other.requires_grad_(other is network)
            with torch.autocast(source.machine.device.type, torch.bfloat16):
                loss = env(key, networks, batch, step)
            loss.backward()
            opts[key].step()
            opts[key].zero_grad()
