"""Forward + backward time of ours beside plain torch and timm, one thread: `python benchmarks/model.py [--seconds S]`.

A round runs ours, theirs, theirs, ours, so that a drift of the machine cancels, and counts the thread's own processor
time, which others on the machine do not add to. Rounds repeat until the median of their ratios, theirs over ours (1 is
equal, above 1 ours is faster), is known to ± 0.01, for S seconds at most and 7 rounds at least. A line gives medians in
ms, the median ratio and the half width of its 95 % interval by order statistics. The modulated convolution stands
beside two ways of writing it.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ai.model as m

Case = tuple[str, nn.Module, nn.Module | Callable[..., Tensor], list[Tensor]]


class ResBlock(nn.Module):
    """A residual block of plain torch."""

    def __init__(self, nc: int):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(nc, nc, 3, padding=1, bias=False), nn.BatchNorm2d(nc)
        self.conv2, self.norm2 = nn.Conv2d(nc, nc, 3, padding=1, bias=False), nn.BatchNorm2d(nc)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the shape of x."""
        return F.relu(x + self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))))


def grouped(layer: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """The modulated convolution as a grouped one, with a weight for each sample."""

    def forward(x: Tensor, z: Tensor) -> Tensor:
        weight = layer.weight * layer.style(z)[:, None, :, None, None]
        weight = weight * (weight.square().sum((2, 3, 4), keepdim=True) + 1e-8).rsqrt()
        out = F.conv2d(x.reshape(1, -1, *x.shape[2:]), weight.flatten(0, 1), padding=1, groups=len(x))
        return out.view(len(x), -1, *x.shape[2:]) + layer.bias.view(1, -1, 1, 1)

    return forward


def scaled(layer: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """The modulated convolution by scaling input and output."""

    def forward(x: Tensor, z: Tensor) -> Tensor:
        style = layer.style(z)
        out = F.conv2d(x * style[:, :, None, None], layer.weight, padding=1)
        scale = (style.square() @ layer.weight.square().sum((2, 3)).T + 1e-8).rsqrt()
        return out * scale[:, :, None, None] + layer.bias.view(1, -1, 1, 1)

    return forward


def cases() -> list[Case]:
    image = torch.randn(8, 64, 32, 32)
    found: list[Case] = [
        ("fc 1024, relu, batch 256", m.fc(1024, 1024, actv="relu"), nn.Sequential(nn.Linear(1024, 1024), nn.ReLU()),
         [torch.randn(256, 1024)]),
        ("conv 64, batch norm, relu, 32²", m.conv(64, 64, norm="batch", actv="relu"),
         nn.Sequential(nn.Conv2d(64, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU()), [image]),
        ("residual net, 4 blocks of 64, 32²",
         m.repeat(4, lambda: m.resblk(64, 64, actv="relu", se=False)), nn.Sequential(*(ResBlock(64) for _ in range(4))),
         [image]),
    ]  # fmt: skip
    try:
        from timm.models.vision_transformer import Block
    except ImportError:
        print("timm is not installed: no line for ViT-S")
    else:
        theirs = nn.Sequential(*(Block(384, 6, qkv_bias=True) for _ in range(12)), nn.LayerNorm(384))
        found.append(("ViT-S, 197 tokens, batch 1", m.tx_enc(12, 384, 6), theirs, [torch.randn(1, 197, 384)]))
    for batch, nc, size in ((16, 512, 8), (16, 128, 32), (2, 64, 64)):
        layer = m.modconv(nc, nc, 64)
        inputs = [torch.randn(batch, nc, size, size, requires_grad=True), torch.randn(batch, 64)]
        name = f"modconv {batch} × {nc}, {size}²"
        found.append((f"{name} / scaled in and out", layer, scaled(layer), inputs))
        found.append((f"{name} / grouped", layer, grouped(layer), inputs))
    return found


def seconds(module: Callable[..., Tensor], inputs: list[Tensor]) -> float:
    start = time.thread_time()
    module(*inputs).sum().backward()
    return time.thread_time() - start


def interval(ratios: list[float]) -> float:
    """Half the width of the median's 95 % interval, free of any assumption about the ratios' distribution."""
    ranked, n = sorted(ratios), len(ratios)
    rank = max(0, math.floor((n - 1.96 * n**0.5) / 2))
    return (ranked[n - 1 - rank] - ranked[rank]) / 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--case", default="", help="only those whose name contains this")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"{'case':48} {'ours ms':>9} {'theirs ms':>9} {'theirs / ours':>13} {'± 95 %':>7} {'rounds':>6}")
    for name, ours, theirs, inputs in cases():
        if options.case not in name:
            continue
        for _ in range(2):  # warms up
            seconds(ours, inputs), seconds(theirs, inputs)
        times: list[tuple[float, float]] = []
        end = time.perf_counter() + options.seconds
        while len(times) < 7 or (time.perf_counter() < end and interval([b / a for a, b in times]) > 0.01):
            a1, b1, b2, a2 = (seconds(module, inputs) for module in (ours, theirs, theirs, ours))
            times.append(((a1 + a2) / 2, (b1 + b2) / 2))
        own, other = (statistics.median(side) * 1e3 for side in zip(*times, strict=True))
        ratios = [b / a for a, b in times]
        found = f"{statistics.median(ratios):13.3f} {interval(ratios):7.3f} {len(times):6}"
        print(f"{name:48} {own:9.1f} {other:9.1f} {found}", flush=True)


if __name__ == "__main__":
    main()
