"""Whether numbers are finite: of one update without a wait for its device, of a whole module by name."""

import cmath
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ai.train.engine.gradients import by_kind
from ai.train.state.shards import local

Saved = list[tuple[Tensor, Tensor]]


def not_finite(loss: Tensor, grads: Iterable[Tensor]) -> Tensor:
    """1 where the loss or a gradient is not finite, else 0, on the loss's device; nobody waits for a GPU.

    >>> not_finite(torch.tensor(1.0), [torch.tensor([0.0, -torch.inf])])
    tensor(1.)
    """
    bad = torch.zeros((), device=loss.device)
    for alike in by_kind([loss, *(grad for grad in grads if grad.numel())]):  # an empty shard has no norm
        if alike[0].device.type == "cpu":
            if not all(map(_is_finite, alike)):
                bad.fill_(1.0)
        else:  # one kernel for all of them
            bad = torch.maximum(bad, (~torch.isfinite(torch.nn.utils.get_total_norm(alike, torch.inf))).to(bad))
    return bad


def _is_finite(tensor: Tensor) -> bool:
    # A sum is finite of finite numbers only, and takes a twentieth of the time of a look at each, which is needed
    # where it is not: finite numbers may add up to more than their type holds.
    if cmath.isfinite(tensor.sum().item()):
        return True
    values = tensor if tensor.layout == torch.strided else tensor.coalesce().values()
    return bool(torch.isfinite(values).all())


def skips_on_device(optimizer: Optimizer) -> bool:
    """Whether it leaves everything as it was where `found_inf` says so."""
    # Only Adam's fused kernel does; fused SGD would keep an uninitialised momentum.
    return (
        isinstance(optimizer, torch.optim.Adam)
        and bool(getattr(optimizer, "_step_supports_amp_scaling", False))
        and optimizer.param_groups[0]["params"][0].is_cuda
    )


def copies_of_buffers(modules: Iterable[nn.Module]) -> Saved:
    """Each buffer, and a copy of it."""
    return [(buffer, buffer.clone()) for module in modules for buffer in module.buffers()]


def put_back(buffers: Saved, bad: Tensor) -> None:
    """Where `bad` is not 0, undo what a forward pass has left in statistics."""
    for buffer, before in buffers:
        buffer.copy_(torch.where(bad.to(buffer.device) > 0, before, buffer))


class StaysFinite:
    """What must stay finite of modules: their parameters, and the buffers that were so when the run began.

    Args:
        modules: those of one update.

    >>> net = nn.BatchNorm1d(1)
    >>> check = StaysFinite([net])
    >>> _ = net.running_mean.fill_(torch.nan)
    >>> check.find()
    "buffer 'running_mean'"
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self._modules = list(modules)
        # Buffers that held infinities, such as masks, are meant to.
        self._unbounded = {name for name, buffer in self._buffers() if not bool(torch.isfinite(buffer).all())}

    def find(self) -> str | None:
        """The first of them that is not finite, None if all is well; waits for the device."""
        for module in self._modules:
            for name, param in module.named_parameters():
                if not bool(torch.isfinite(local(param.detach())).all()):
                    return f"parameter {name!r}"
        for name, buffer in self._buffers():
            if name not in self._unbounded and not bool(torch.isfinite(buffer).all()):
                return f"buffer {name!r}"
        return None

    def _buffers(self) -> list[tuple[str, Tensor]]:
        found = [item for module in self._modules for item in module.named_buffers()]
        return [(name, local(buffer)) for name, buffer in found if buffer.is_floating_point()]
