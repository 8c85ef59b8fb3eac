"""What lies behind an edge of the tree: the known rules of a game and an evaluator, or a learned model.

A search asks the same three questions of either: evaluate the roots, follow edges, keep what the new nodes hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ai.game.evaluator import CachedEvaluator, Evaluation, NetEvaluator, StateEvaluator
from ai.game.protocol import Game, State

Evaluator = Callable[[Tensor], Evaluation] | StateEvaluator | nn.Module


class Expansion(NamedTuple):
    """What is known of `R` nodes once they are evaluated; `reward` and `discount` are of the edges that led there."""

    logits: NDArray[np.float64]
    value: NDArray[np.float64]
    legal: NDArray[np.bool_]
    terminal: NDArray[np.bool_]
    reward: NDArray[np.float64]
    discount: NDArray[np.float64]


@runtime_checkable
class LearnedModel(Protocol):
    """A model of an environment in a space of its own (MuZero). `E` stands for the axes of an embedding."""

    def initial(self, observation: Any) -> tuple[Any, Any, Any]:
        """Returns embedding `[B, *E]`, logits `[B, A]` and value `[B]` of what is seen, as tensors or arrays."""
        ...

    def recurrent(self, embedding: Any, action: Any) -> tuple[Any, Any, Any, Any, Any]:
        """Returns the next embedding `[B, *E]`, reward `[B]`, discount `[B]`, logits `[B, A]` and value `[B]`.

        The discount is what the next value is worth to the player who takes the action: negative where players
        alternate.
        """
        ...


class Rules:
    """Edges are moves of a game; nodes hold its states."""

    def __init__(self, game: Game, evaluator: Evaluator) -> None:
        self.game = game
        self.num_actions = game.num_actions
        self._evaluator = NetEvaluator(evaluator) if isinstance(evaluator, nn.Module) else evaluator
        self._on_states = isinstance(evaluator, StateEvaluator)
        self._states: State = np.zeros((0, 0), game.dtype)

    def evaluating(self) -> AbstractContextManager[None]:
        """Returns a context in which a network does not learn."""
        if isinstance(self._evaluator, (NetEvaluator, CachedEvaluator)):
            return self._evaluator.evaluating()
        return nullcontext()

    def allocate(self, batch: int, num_nodes: int) -> None:
        """Makes room for one state a node."""
        if self._states.shape != (batch, num_nodes):
            self._states = np.zeros((batch, num_nodes), self.game.dtype)

    def root(self, state: State, legal: NDArray[np.bool_] | None) -> Expansion:
        """Evaluates the roots.

        Raises:
            ValueError: a game is over.
        """
        over = self.game.terminal(state)
        if over.any():
            raise ValueError(f"states must not be over, row {int(over.argmax())} is")
        self._states[:, 0] = state
        allowed = self.game.legal(state)
        logits, value = self._evaluate(state)
        zeros = np.zeros(len(state))
        return Expansion(logits, value, allowed if legal is None else allowed & legal, over, zeros, zeros)

    def expand(
        self, rows: NDArray[np.int64], parent: NDArray[np.int64], action: NDArray[np.int64], node: NDArray[np.int64]
    ) -> Expansion:
        """Plays `action` in the state of each `parent` node and evaluates where the game goes on."""
        game = self.game
        before = self._states[rows, parent]
        state = game.step(before, action)
        self._states[rows, node] = state
        over = game.terminal(state)
        if over.any():
            logits, value = np.zeros((len(rows), self.num_actions)), np.zeros(len(rows))
            live = np.flatnonzero(~over)
            if len(live):
                logits[live], value[live] = self._evaluate(state[live])
        else:
            logits, value = self._evaluate(state)
        if game.num_players == 2:
            sign = np.where(game.to_play(state) == game.to_play(before), game.discount, -game.discount)
        else:
            sign = np.full(len(rows), game.discount)
        return Expansion(logits, value, game.legal(state), over, game.reward(state), np.where(over, 0.0, sign))

    def keep(self, order: NDArray[np.int64]) -> None:
        """Renumbers the nodes: new node i was `order[B, i]`."""
        self._states = np.take_along_axis(self._states, order, axis=1)

    def _evaluate(self, state: State) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        if self._on_states:
            outcome = self._evaluator.evaluate(state)  # type: ignore[union-attr]
        else:
            outcome = self._evaluator(torch.from_numpy(self.game.observe(state)))  # type: ignore[operator]
        return checked(outcome, len(state), self.num_actions)


class Learned:
    """Edges are a learned model's steps; nodes hold embeddings. Legal actions are known at the root only."""

    def __init__(self, model: LearnedModel, num_actions: int) -> None:
        self.model = model
        self.num_actions = num_actions
        self._embeddings: Any = None
        self._shape = (0, 0)

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

    def root(self, observation: Any, legal: NDArray[np.bool_] | None) -> Expansion:
        """Evaluates the roots."""
        if isinstance(observation, np.ndarray) and observation.dtype.kind == "f":
            observation = torch.from_numpy(observation)
        embedding, logits, value = self.model.initial(observation)
        batch = self._shape[0]
        if self._embeddings is None:
            shape = (*self._shape, *embedding.shape[1:])
            torch_made = isinstance(embedding, Tensor)
            self._embeddings = embedding.new_zeros(shape) if torch_made else np.zeros(shape, embedding.dtype)
        self._embeddings[:, 0] = embedding
        zeros = np.zeros(batch)
        allowed = np.ones((batch, self.num_actions), bool) if legal is None else legal
        return Expansion(*checked((logits, value), batch, self.num_actions), allowed, zeros.astype(bool), zeros, zeros)

    def expand(
        self, rows: NDArray[np.int64], parent: NDArray[np.int64], action: NDArray[np.int64], node: NDArray[np.int64]
    ) -> Expansion:
        """Lets the model take `action` from each `parent` node's embedding."""
        embedding, reward, discount, logits, value = self.model.recurrent(self._embeddings[rows, parent], action)
        self._embeddings[rows, node] = embedding
        batch = len(rows)
        return Expansion(
            *checked((logits, value), batch, self.num_actions),
            np.ones((batch, self.num_actions), bool),
            np.zeros(batch, bool),
            _array(reward).reshape(batch),
            _array(discount).reshape(batch),
        )

    def keep(self, order: NDArray[np.int64]) -> None:
        """Renumbers the nodes: new node i was `order[B, i]`."""
        self._embeddings = self._embeddings[np.arange(len(order))[:, None], order]


def checked(outcome: Evaluation, batch: int, num_actions: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns an evaluator's answer as float64 arrays.

    Raises:
        ValueError: its shapes are not `[batch, num_actions]` and `[batch]`, or a number is not finite.
    """
    logits, value = _array(outcome[0]), _array(outcome[1])
    if logits.shape != (batch, num_actions):
        raise ValueError(f"evaluator must return logits of shape ({batch}, {num_actions}), got {logits.shape}")
    if value.size != batch:
        raise ValueError(f"evaluator must return one value a row, shape ({batch},), got {value.shape}")
    # one NaN or infinity anywhere makes a sum that is not finite
    if not np.isfinite(logits.sum() + value.sum()):
        raise ValueError("evaluator must return finite logits and values, got NaN or infinity")
    return logits, value.reshape(batch)


def _array(x: Any) -> NDArray[np.float64]:
    return (x.detach().cpu().numpy() if isinstance(x, Tensor) else np.asarray(x)).astype(np.float64)
