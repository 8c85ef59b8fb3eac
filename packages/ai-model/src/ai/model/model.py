"""The class that the rest of the library works with: a module that can be drawn, saved, loaded and described."""

import os
from fnmatch import fnmatchcase
from typing import Any, Self

import torch
from torch import nn

from ai.model.init import init_module
from ai.model.state import load_into, load_state, save_state


class Model(nn.Module):
    """A top-level module: a wrapper around `net`, or the base of a class that implements `forward`.

    Args:
        net: The module to wrap. Leave it out when the subclass has a `forward` of its own.

    Example:
        >>> import ai.model as m
        >>> model = Model(m.seq(m.flatten(), m.fc(8, 4))).init(seed=0)
        >>> model(torch.zeros(2, 2, 4)).shape, model.n_params
        (torch.Size([2, 4]), 36)
    """

    def __init__(self, net: nn.Module | None = None):
        super().__init__()
        if net is not None:
            self.net = net

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the wrapped module."""
        if "net" not in self._modules:
            raise NotImplementedError(f"{type(self).__name__} needs a net (Model(net)) or a forward method of its own")
        return self.net(*args, **kwargs)

    def init(self, path: str | os.PathLike[str] | None = None, *, seed: int | None = None, strict: bool = True) -> Self:
        """Draws all parameters, or loads them; returns the model itself.

        Args:
            path: A `.safetensors` file, or a state dict saved by torch (read with `weights_only=True`). None draws.
            seed: Of the draw; None takes one from torch's global generator.
            strict: With False, loads what fits and prints what did not.

        Raises:
            ValueError: The file's names or shapes do not fit; the message lists them.
        """
        if path is None:
            return init_module(self, seed=seed)
        load_into(self, load_state(path), strict=strict, source=os.fspath(path))
        return self

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the parameters and buffers: `.safetensors`, else torch's format. A crash leaves the old file whole."""
        save_state(self.state_dict(), path)

    @property
    def n_params(self) -> int:
        """Number of parameters; tied ones count once."""
        return sum(parameter.numel() for parameter in self.parameters())

    @property
    def device(self) -> torch.device:
        """Where the first parameter or buffer lies; the CPU for a model without any."""
        for tensor in (*self.parameters(), *self.buffers()):
            return tensor.device
        return torch.device("cpu")

    def set_req_grad(self, required: bool, pattern: str = "*") -> Self:
        """Freezes or thaws the parameters whose names match a shell pattern such as `encode.*`; returns the model."""
        names = [name for name, _ in self.named_parameters() if fnmatchcase(name, pattern)]
        if not names:
            raise ValueError(f"pattern ({pattern!r}) must match a parameter of {type(self).__name__}")
        for name, parameter in self.named_parameters():
            if fnmatchcase(name, pattern):
                parameter.requires_grad_(required)
        return self
