"""Several optimisers over one model, as one: Muon for matrices, AdamW for the rest."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ai.model.arguments import check_instance


class Together(Optimizer):
    """Steps each of several optimisers, whose groups and state it shows as its own; made by `together`.

    Args:
        optimizers: over different parameters.

    Attributes:
        optimizers: those.
    """

    def __init__(self, *optimizers: Optimizer) -> None:
        if not optimizers:
            raise ValueError("together needs at least one optimizer")
        for index, one in enumerate(optimizers):
            check_instance(**{f"optimizers[{index}]": one})
            if not isinstance(one, Optimizer):
                raise TypeError(f"together takes optimizers, not {type(one).__name__}")
            if isinstance(one, torch.optim.LBFGS):
                raise ValueError("an LBFGS steps by closure and cannot step together with others")
        params = [p for one in optimizers for group in one.param_groups for p in group["params"]]
        if len(set(params)) < len(params):
            raise ValueError("together needs optimizers of different parameters: one of them is in two")
        self.optimizers = optimizers
        super().__init__(params, {})

    @property
    def kind(self) -> str:
        """Its name in a snapshot, which refuses others."""
        return f"Together({', '.join(type(one).__name__ for one in self.optimizers)})"

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of all, as they are now."""
        return [group for one in self.optimizers for group in one.param_groups]

    @param_groups.setter
    def param_groups(self, value: Any) -> None:
        pass  # torch's own initialisation sets it

    @property
    def state(self) -> defaultdict[Tensor, Any]:
        """The states of all, as they are now."""
        return defaultdict(dict, {param: state for one in self.optimizers for param, state in one.state.items()})

    @state.setter
    def state(self, value: Any) -> None:
        pass

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refused: it would have to be told to which of them it is added.

        Raises:
            TypeError: always, once it is made.
        """
        if "_ready" in self.__dict__:
            raise TypeError("add the group to one of .optimizers: Together does not know which is meant")
        self._ready = True

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step each, in order."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for one in self.optimizers:
            one.step()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Each one's."""
        for one in self.optimizers:
            one.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """Each one's state, and the groups of all for a look at them."""
        parts = [one.state_dict() for one in self.optimizers]
        return {"parts": parts, "param_groups": [group for part in parts for group in part["param_groups"]]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put each one's back.

        Raises:
            ValueError: it is the state of another number of optimisers.
        """
        parts = state_dict.get("parts", [])
        if len(parts) != len(self.optimizers):
            raise ValueError(f"the state is of {len(parts)} optimizers together, and these are {len(self.optimizers)}")
        for one, part in zip(self.optimizers, parts, strict=True):
            one.load_state_dict(part)

    def __reduce__(self) -> Any:
        return Together, self.optimizers, {"defaults": self.defaults}


def together(*optimizers: Optimizer) -> Together:
    """One optimiser that steps all of these, for `Trainer.train(model, opt)`.

    >>> import ai.train.opt as opt
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
    >>> both = together(opt.sgd(model[0], lr=0.1), opt.adam(model[1], lr=0.001))
    >>> [group['lr'] for group in both.param_groups]
    [0.1, 0.001]
    """
    return Together(*optimizers)
