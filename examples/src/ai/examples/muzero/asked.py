"""A learned model that lives in an inferencer: both of a search's questions as requests of one module."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ai.examples.muzero.model import Model
from ai.infer import NodeInferencer


class Requests(nn.Module):
    """Runs the model where it is asked: observations alone begin a search, embeddings with actions go on.

    Args:
        model: the learned model.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, action: Tensor | None = None) -> tuple[Tensor, ...]:
        """Returns what `Model.initial` or, with actions, `Model.recurrent` returns."""
        return self.model.initial(x) if action is None else self.model.recurrent(x, action)


class Asked:
    """An `ai.game` `LearnedModel` that asks.

    Args:
        node: runs `Requests`.
    """

    def __init__(self, node: NodeInferencer) -> None:
        self.node = node

    def initial(self, observation: Any) -> Any:
        """Returns embedding, logits and value of a root."""
        return self.node(torch.as_tensor(observation, device="cpu"))

    def recurrent(self, embedding: Any, action: Any) -> Any:
        """Returns the next embedding, reward, discount, logits and value."""
        return self.node(embedding, torch.as_tensor(action, device="cpu"))

    def update_params(self, state_dict: Mapping[str, Tensor], version: int) -> None:
        """Takes the learned model's parameters."""
        self.node.update_params({f"model.{name}": value for name, value in state_dict.items()}, version)

    @property
    def version(self) -> int:
        """The newest version that has answered."""
        return self.node.version
