"""A network beside an earlier self, to be judged by what it said then."""

import copy
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ai.model.arguments import check_module, check_real
from ai.model.wide import kept_wide, widened


class Lagged(nn.Module):
    """A network and a copy of it that follows at a distance: the target network of value learning.

    Both live in the model, so that snapshots, pushed parameters and servers carry both, and a resumed run goes on
    exactly. Calling it calls the network itself; `target` asks the copy, which is never trained, always in evaluation
    mode, and equal to the network after `Model.init`. Of a network in half precision the copy's parameters are kept in
    float32, where small steps add up, and rounded to the network's type where it is asked.

    Args:
        net: the network.

    Source: Mnih et al., 2015, Human-level control through deep reinforcement learning (a copy now and then);
    Lillicrap et al., 2016, Continuous control with deep reinforcement learning, section 3 (a step of `tau` each time).

    >>> q = Lagged(nn.Linear(2, 1))
    >>> x = torch.ones(1, 2)
    >>> bool((q(x) == q.target(x)).all())
    True
    >>> with torch.no_grad():
    ...     _ = q.net.bias.add_(1.0)
    >>> q.follow(0.25)
    >>> round((q(x) - q.target(x)).item(), 4)
    0.75
    """

    def __init__(self, net: nn.Module) -> None:
        check_module(net=net)
        super().__init__()
        self.net = net
        self.lagged = copy.deepcopy(net).requires_grad_(False).eval()
        for p in self.lagged.parameters():
            p.data = widened(p.data)

    def forward(self, *args: Any, **kwargs: Any) -> Any:  # whatever the network takes and returns
        """Asks the network."""
        return self.net(*args, **kwargs)

    @torch.no_grad()
    def target(self, *args: Any, **kwargs: Any) -> Any:
        """Asks the copy, without gradients."""
        if _types_are_alike(self.lagged, self.net):
            return self.lagged(*args, **kwargs)
        both = zip(self.lagged.named_parameters(), self.net.parameters(), strict=False)
        narrow = {name: ours.to(theirs.dtype) for (name, ours), theirs in both if ours.dtype != theirs.dtype}
        return functional_call(self.lagged, narrow, args, kwargs)

    @torch.no_grad()
    def follow(self, tau: float = 1.0) -> None:
        """Moves the copy's parameters by the share `tau` of the way to the network's; its buffers become the network's.

        Raises:
            ValueError: `tau` is outside [0, 1], or the network was given other parameters since.
        """
        check_real(tau=tau)
        if not 0 <= tau <= 1:
            raise ValueError(f"tau must lie in [0, 1], got {tau}")
        behind: list[Tensor] = list(self.lagged.parameters())
        ahead = [widened(p.detach()) for p in self.net.parameters()]
        if [p.shape for p in behind] != [p.shape for p in ahead]:
            raise ValueError(
                f"the network has {len(ahead)} parameters and its copy {len(behind)}, or of other shapes: it was "
                "changed after Lagged(net), make a new Lagged of it"
            )
        if behind:
            torch._foreach_lerp_(behind, ahead, tau)
        for ours, theirs in zip(self.lagged.buffers(), self.net.buffers(), strict=True):
            ours.copy_(theirs)

    def init_params(self, generator: torch.Generator | None) -> None:
        """Makes the copy equal to the network, which was drawn before."""
        if not any(p.is_meta for p in self.parameters()):
            self.follow(1.0)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = [p.detach() for p in self.lagged.parameters()]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for p, held in zip(self.lagged.parameters(), before, strict=True):
            p.data = kept_wide(p.data, held)
        return self

    def train(self, mode: bool = True) -> "Lagged":
        """Sets the network's mode; the copy stays in evaluation mode."""
        super().train(mode)
        self.lagged.eval()
        return self


def _types_are_alike(ours: nn.Module, theirs: nn.Module) -> bool:
    """Whether parameters have the types of those in the same place; without their names, which take half a forward."""
    if theirs._parameters:
        for p, q in zip(ours._parameters.values(), theirs._parameters.values(), strict=False):
            if p is not None and q is not None and p.dtype is not q.dtype:
                return False
    if theirs._modules:
        for a, b in zip(ours._modules.values(), theirs._modules.values(), strict=False):
            if a is not None and b is not None and not _types_are_alike(a, b):
                return False
    return True
