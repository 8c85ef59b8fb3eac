"""An environment that has a state of its own: weights of losses, running statistics. It is part of the run."""

from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer


class EnvironmentState:
    """What of an environment's modules changes in training: trained parameters, and buffers.

    Frozen networks in it (a perceptual loss) are left out, since the script makes them anew.

    >>> env = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1))
    >>> _ = env[0].requires_grad_(False)
    >>> sorted(EnvironmentState(env).state_dict())[:2]
    ['1.bias', '1.num_batches_tracked']
    """

    def __init__(self, env: nn.Module) -> None:
        self.env = env

    def state_dict(self) -> dict[str, Any]:
        """The state, by the module's keys."""
        frozen = {name for name, p in self.env.named_parameters(remove_duplicate=False) if not p.requires_grad}
        return {name: value for name, value in self.env.state_dict().items() if name not in frozen}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Put a state back."""
        unknown = self.env.load_state_dict(state, strict=False).unexpected_keys
        if unknown:
            raise ValueError(f"the snapshot's environment has {unknown[0]!r}, which {type(self.env).__name__} lacks")


def outside_parameters(env: Any, model: nn.Module, optimizer: Optimizer) -> list[nn.Parameter]:
    """The parameters that the optimiser trains and that are the environment's, not the model's."""
    if not isinstance(env, nn.Module):
        return []
    own = {id(p) for p in model.parameters()}
    others = {id(p) for p in env.parameters()} - own
    return [p for group in optimizer.param_groups for p in group["params"] if id(p) in others]
