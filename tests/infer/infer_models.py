"""Models that the tests of ai.infer ship to workers."""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn


@dataclass
class Heads:
    policy: Tensor
    value: Tensor
    note: str = "heads"


class Pair(NamedTuple):
    first: Tensor
    second: Tensor


class Mlp(nn.Module):
    def __init__(self, n_in: int = 8, n_out: int = 3) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(n_in, 16), nn.ReLU(), nn.Linear(16, n_out))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Versatile(nn.Module):
    """Does what its keyword says, so that one worker serves many tests."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 4)
        self.register_buffer("shift", torch.zeros(()))

    def forward(self, x, y=None, *, do="fc", **rest):
        if do == "fc":
            return self.fc(x) + self.shift
        if do == "add":
            return x + y
        if do == "tuple":
            return self.fc(x), x.sum(1)
        if do == "dict":
            return {"a": x * 2, "b": [x.long(), {"c": x > 0}], "n": None, "k": 3}
        if do == "heads":
            return Heads(policy=self.fc(x), value=x.mean(1))
        if do == "pair":
            return Pair(x, -x)
        if do == "mean":
            return x.mean()
        if do == "rows":
            return torch.full((len(x),), len(x))
        if do == "same":
            return x
        if do == "flags":  # of modules that have classes of their own
            with torch.backends.cudnn.flags(enabled=False), torch.backends.mkldnn.flags(enabled=False):
                return torch.ops.aten.add(x, 1)
        if do == "nothing":
            return 7
        if do == "grow":
            return x.repeat(1, 40000)
        if do == "many":
            return {f"output {i}": x for i in range(5000)}
        if do == "raise":
            raise ValueError("this model was asked to fail")
        if do == "poison":
            if (x == 13).any():
                raise RuntimeError("a 13 was in the batch")
            return x + 1
        if do == "training":
            return torch.full((len(x),), float(self.training or torch.is_grad_enabled()))
        if do == "pid":
            return torch.full((len(x),), os.getpid())
        if do == "wait":  # until the file is gone
            Path(rest["path"]).with_suffix(".begun").touch()
            while os.path.exists(rest["path"]):
                time.sleep(0.001)
            return x
        if do == "count":
            self.n_calls = getattr(self, "n_calls", 0) + 1
            return torch.full((len(x),), self.n_calls)
        if do == "die":
            os._exit(3)
        if do == "object":
            return object()
        raise AssertionError(do)
