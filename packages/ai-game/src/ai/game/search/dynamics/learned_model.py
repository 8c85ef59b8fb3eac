"""Dynamics that are learnt: a model of an environment in a space of its own.

Letters: B rows, A actions, R rows asked at once, N nodes; D the axes of a sampled action, E those of an embedding.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ai.game.search.actions import NumberedActions, SampledActions
from ai.game.search.device import fetched, sent
from ai.game.search.dynamics.evaluated import Evaluated, as_array, checked, checked_value
from ai.game.search.tree import Leaf, Shares, Tree


@runtime_checkable
class LearnedModel(Protocol):
    """A model of an environment in a space of its own (MuZero). `E` stands for the axes of an embedding.

    For `Search.sampled` it gives a policy of `ai.model`, or another that `Proposes`, in place of logits, and is given
    actions of that policy, `[B, *D]` as a tensor, in place of numbers.
    """

    def initial(self, observation: Any) -> tuple[Any, Any, Any]:
        """Returns embedding `[B, *E]`, logits `[B, A]` and value `[B]` of what is seen, as tensors or arrays."""
        ...

    def recurrent(self, embedding: Any, action: Any) -> tuple[Any, Any, Any, Any, Any]:
        """Returns the next embedding `[B, *E]`, reward `[B]`, discount `[B]`, logits `[B, A]` and value `[B]`.

        Actions `[B]` come as an array, or where embeddings lie on an accelerator as a tensor there.
        The discount is what the next value is worth to the player who takes the action: negative where players
        alternate.
        """
        ...


class Learned:
    """Edges are a learned model's steps; nodes hold embeddings. Legal actions are known at the root only."""

    def __init__(self, model: LearnedModel, actions: NumberedActions | SampledActions) -> None:
        self.model = model
        self.actions = actions
        self.num_actions = actions.num_actions
        self.width = self.num_actions  # edges of a node
        self.luck = False
        self.shares: Shares | None = None
        self._embeddings: Any = None
        self._shape = (0, 0)

    def begin(self, seeds: NDArray[np.uint64]) -> None:
        """Takes the seeds of a search."""
        self.actions.begin(seeds)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Holds the model in eval mode, and gradients off."""
        training = isinstance(self.model, nn.Module) and self.model.training
        if training:
            self.model.eval()  # type: ignore[attr-defined]
        try:
            with torch.inference_mode():
                yield
        finally:
            if training:
                self.model.train()  # type: ignore[attr-defined]

    def allocate(self, batch: int, num_nodes: int) -> None:
        """Remembers how much room the embeddings will need."""
        if self._shape != (batch, num_nodes):
            self._embeddings = None
        self._shape = (batch, num_nodes)
        self.actions.allocate(batch, num_nodes)

    def root(self, tree: Tree, rows: NDArray[np.int64], observation: Any, legal: NDArray[np.bool_] | None) -> Evaluated:
        """Puts the roots of `rows` in place and evaluates them."""
        embedding, policy, value = self.model.initial(self._seen(observation))
        if self._embeddings is None:
            shape = (*self._shape, *embedding.shape[1:])
            torch_made = isinstance(embedding, Tensor)
            self._embeddings = embedding.new_zeros(shape) if torch_made else np.zeros(shape, embedding.dtype)
        at: Any = rows
        if isinstance(self._embeddings, Tensor) and self._embeddings.device.type != "cpu":
            at = sent(torch.from_numpy(rows), self._embeddings.device)
        self._embeddings[at, 0] = embedding
        offered = self.actions.offer(rows, np.zeros(len(rows), np.int64), (at, 0), policy, legal)
        logits, value = checked((offered, value), len(rows), self.num_actions)
        tree.legal[rows, 0] = self._open(logits) if legal is None or self.actions.offered is not None else legal
        return Evaluated(rows, logits, value)

    def value(self, observation: Any) -> NDArray[np.floating]:
        """Returns the model's value of each observation, `[B]`."""
        _, _, value = self.model.initial(self._seen(observation))
        return checked_value(value, len(observation))

    def _seen(self, observation: Any) -> Any:
        """Returns observations where the model is, as floats; arrays of anything but frames and floats stay."""
        if isinstance(observation, np.ndarray) and (observation.dtype.kind == "f" or observation.dtype == np.uint8):
            observation = torch.from_numpy(observation)
        if not isinstance(observation, Tensor):
            return observation
        first = next(self.model.parameters(), None) if isinstance(self.model, nn.Module) else None
        if first is not None:
            observation = sent(observation, first.device)
        return observation if observation.is_floating_point() else observation.float()

    def expand(self, tree: Tree, rows: NDArray[np.int64], leaf: Leaf) -> Evaluated:
        """Lets the model take the action of each new edge from its parent's embedding."""
        games, parent, action, node = self._places(rows, leaf)
        taken = self.actions.taken(games, parent, action)
        embedding, reward, discount, policy, value = self.model.recurrent(self._embeddings[games, parent], taken)
        offered = self.actions.offer(rows, leaf.node, (games, node), policy)
        reward, discount, logits, value = fetched(reward, discount, offered, value)
        batch = len(rows)
        self._write_paid(tree, rows, leaf.node, reward, discount)
        self._embeddings[games, node] = embedding
        logits, value = checked((logits, value), batch, self.num_actions)
        tree.legal[rows, leaf.node] = self._open(logits)
        return Evaluated(np.arange(batch), logits, value)

    def _places(self, rows: NDArray[np.int64], leaf: Leaf, which: NDArray[np.int64] | None = None) -> tuple[Any, ...]:
        """Returns games, parents, edges and nodes of the walks that are meant, where the embeddings are."""
        # no node of a learned model is terminal, so that every walk ends at a new edge
        meant: Any = slice(None) if which is None else which
        games, parent, action, node = rows[meant], leaf.parent[meant], leaf.action[meant].copy(), leaf.node[meant]
        if isinstance(self._embeddings, Tensor) and self._embeddings.device.type != "cpu":
            places = torch.from_numpy(np.stack([games, parent, action, node]).astype(np.int64))
            return tuple(sent(places, self._embeddings.device))
        return games, parent, action, node

    @staticmethod
    def _write_paid(tree: Tree, rows: NDArray[np.int64], node: NDArray[np.int64], reward: Any, discount: Any) -> None:
        """Writes what the model says that the edges to nodes pay, and what these are worth to who took them."""
        for name, outcome, nodes in (("rewards", reward, tree.reward), ("discounts", discount, tree.discount)):
            numbers = as_array(outcome).reshape(len(rows))
            if not np.isfinite(numbers).all():
                raise ValueError(f"model must return finite {name}, got NaN or infinity")
            nodes[rows, node] = numbers

    def _open(self, logits: NDArray[np.floating]) -> NDArray[np.bool_] | bool:
        """Returns which actions may be taken, `[R, A]`: of those sampled, each once.

        Raises:
            ValueError: none of a row's.
        """
        if self.actions.offered is None:
            return True
        legal: NDArray[np.bool_] = logits != -np.inf
        if not legal.any(axis=1).all():
            raise ValueError("proposal must propose actions that the policy may take, in one row it proposed none")
        return legal

    def check(self, observation: Any) -> None:
        """Refuses nothing: what a model takes is for it to say."""

    def check_move(self, tree: Tree, action: NDArray[np.int64]) -> None:
        """Refuses nothing: every action is one of the model's."""

    def at_root(self, observation: Any) -> NDArray[np.bool_]:
        """Returns True for every row: an embedding does not tell what will be seen."""
        return np.ones(len(observation), bool)

    def keep(self, kept: NDArray[np.bool_], num_nodes: int) -> None:
        """Moves the nodes that are `kept [B, N]` to the first places, in their order, in room for `num_nodes`."""
        row, old = np.nonzero(kept)
        new = (kept.cumsum(axis=1) - 1)[row, old]
        embeddings = self._embeddings
        if self._shape != (len(kept), num_nodes):
            self._shape = (len(kept), num_nodes)
            shape = (*self._shape, *embeddings.shape[2:])
            torch_made = isinstance(embeddings, Tensor)
            self._embeddings = embeddings.new_zeros(shape) if torch_made else np.zeros(shape, embeddings.dtype)
        if isinstance(embeddings, Tensor) and embeddings.device.type != "cpu":
            row, old, new = sent(torch.from_numpy(np.stack([row, old, new])), embeddings.device)
        self._embeddings[row, new] = embeddings[row, old]
        self.actions.keep((row, old), (row, new), (len(kept), num_nodes))
