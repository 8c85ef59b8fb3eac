"""Training on many devices: the same script under `torchrun`, with `parallel='ddp'` or `'fsdp'`.

Both are applied in place: the environment, the hook and the user keep their own objects. An optimiser that was made
before sharding stays valid: its groups are bound anew, by name. Without `torchrun` either does nothing.
"""

from typing import Any

import torch

from ai.train.distributed.ddp import Ddp as Ddp
from ai.train.distributed.fsdp import Fsdp as Fsdp
from ai.train.distributed.process_group import own_device

Parallel = Ddp | Fsdp


def device() -> torch.device:
    """The device of this rank under `torchrun`, its GPU if there are any: for models and loaders, before they are made.

    Afterwards plain `'cuda'` means it too. Without `torchrun` it is the first GPU, or the CPU.

    >>> device().type in ('cuda', 'cpu')
    True
    """
    return own_device()


def as_parallel(value: Any) -> Parallel:
    """`Ddp()` for `'ddp'`, `Fsdp()` for `'fsdp'`, or the object itself.

    Raises:
        ValueError: anything else.

    >>> as_parallel('ddp')
    Ddp(find_unused=False, timeout_s=600.0)
    """
    if isinstance(value, (Ddp, Fsdp)):
        return value
    if value == "ddp":
        return Ddp()
    if value == "fsdp":
        return Fsdp()
    raise ValueError(f"parallel must be None, 'ddp', 'fsdp', or a Ddp or Fsdp of ai.train.parallel, not {value!r}")
