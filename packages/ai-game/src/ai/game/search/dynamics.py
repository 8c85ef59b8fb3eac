"""What lies behind an edge of the tree: the known rules of a game and an evaluator, or a learned model.

A search asks the same three questions of either: evaluate the roots, follow edges, keep what the new nodes hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ai.game import draws
from ai.game.protocol import Game, State, chances, reward_of_each
from ai.game.search.actions import NumberedActions, SampledActions
from ai.game.search.device import fetched, sent
from ai.game.search.evaluator import Evaluation, NetEvaluator, StateEvaluator, evaluating
from ai.game.search.expand import row_kernel
from ai.game.search.tree import Leaf, Shares, Tree, new_shares

Evaluator = Callable[[Tensor], Evaluation] | StateEvaluator | nn.Module


class Evaluated(NamedTuple):
    """What an evaluator says of `K` nodes; `live[K]` tells which of the rows they belong to."""

    live: NDArray[np.int64]
    logits: NDArray[np.floating]
    value: NDArray[np.floating]


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


class Rules:
    """Edges are moves of a game; nodes hold its states."""

    def __init__(self, game: Game, evaluator: Evaluator) -> None:
        self.game = game
        self.num_actions = self.width = game.num_actions
        self.luck = hasattr(game, "chance")
        self._evaluator = NetEvaluator(evaluator) if isinstance(evaluator, nn.Module) else evaluator
        self._on_states = isinstance(evaluator, StateEvaluator)
        self._row_kernel = None if self._on_states else row_kernel(game)
        self._truncated = getattr(game, "truncated", None)
        self._states: State = np.zeros((0, 0), game.dtype)
        self._players = game.num_players
        self.shares: Shares | None = None  # of more than two players
        self.actions = NumberedActions(game.num_actions)

    def begin(self, seeds: NDArray[np.uint64]) -> None:
        """Draws nothing by the seeds of a search."""

    def evaluating(self) -> AbstractContextManager[None]:
        """Returns a context in which a network does not learn."""
        return evaluating(self._evaluator)

    def allocate(self, batch: int, num_nodes: int) -> None:
        """Makes room for one state a node."""
        if self._states.shape != (batch, num_nodes):
            self._states = np.zeros((batch, num_nodes), self.game.dtype)
            self.shares = new_shares(batch, num_nodes, self._players) if self._players > 2 else None

    def root(self, tree: Tree, rows: NDArray[np.int64], state: State, legal: NDArray[np.bool_] | None) -> Evaluated:
        """Puts the roots of `rows` in place and evaluates them."""
        self.check(state)
        where = _whole(rows, tree)
        self._states[where, 0] = state
        allowed = self.game.legal(state)
        tree.legal[where, 0] = allowed if legal is None else allowed & legal
        if self.shares is not None:
            self.shares.mover[rows, 0] = self._mover(state)
        return self._shared(rows, np.zeros(len(rows), np.int64), self._evaluate(rows, state))

    def check(self, state: State) -> None:
        """Refuses states in which no player of this game is to move.

        Raises:
            ValueError: they are of another game, a game is over, or luck moves.
        """
        if not isinstance(state, np.ndarray) or state.ndim != 1:
            found = f"{type(state).__name__} of shape {np.shape(state)}"
            raise ValueError(f"states must be an array with one row a game, such as game.init(8), got {found}")
        if state.dtype != self.game.dtype and _fields(state.dtype) != _fields(self.game.dtype):
            raise ValueError(f"states must be of the game's dtype {self.game.dtype}, got {state.dtype}")
        over = self.game.terminal(state)
        if over.any():
            raise ValueError(f"states must not be over, row {int(over.argmax())} is")
        if (chance := chances(self.game, state)) is not None and chance.any():
            lucky = np.asarray(chance.any(axis=1))
            raise ValueError(f"states must be a player's to move, in row {int(lucky.argmax())} luck moves")

    def check_move(self, tree: Tree, action: NDArray[np.int64]) -> None:
        """Refuses nothing: an action that is illegal leads nowhere."""

    def value(self, state: State) -> NDArray[np.floating]:
        """Returns the evaluator's value of each state, `[B]`; of more than two players each one's, `[B, players]`."""
        return self._evaluate(np.arange(len(state)), state).value

    def expand(self, tree: Tree, rows: NDArray[np.int64], leaf: Leaf) -> Evaluated:
        """Plays the move of each new edge, writes down what the rules say, and evaluates where the game goes on.

        Where a limit of moves cut the game off it is evaluated as well: nothing is played there, but it has a value.
        """
        game = self.game
        if self._row_kernel is not None:
            seen, live = np.zeros((len(rows), *game.observation_shape), np.float32), np.empty(len(rows), np.int64)
            written = tree.reward, tree.discount, tree.terminal, tree.legal
            count = self._row_kernel(self._states, *written, rows, tuple(leaf), seen, live, game.discount)
            if count == 0:
                return self._nothing()
            return Evaluated(live[:count], *self._ask(torch.from_numpy(seen[:count]), count))
        fresh = np.flatnonzero(leaf.fresh)
        if len(fresh) == 0:
            return self._nothing()
        games, parent, action, node = rows[fresh], leaf.parent[fresh], leaf.action[fresh], leaf.node[fresh]
        before = self._states[games, parent]
        state = game.step(before, action)
        self._states[games, node] = state
        over = game.terminal(state)
        # a walk ends where a limit of moves cut the game off, but the position has a value
        cut = self._truncated(state) if self._truncated is not None else np.zeros(len(state), bool)
        chance = chances(game, state)
        # luck takes no time: what follows it is discounted once, for the move before it
        sign = np.where(tree.chance[games, parent], 1.0, game.discount)
        if game.num_players == 2:
            sign[game.to_play(state) != game.to_play(before)] *= -1
        if self.shares is None:
            tree.reward[games, node] = game.reward(state)
        else:
            self.shares.reward[games, node], self.shares.value[games, node] = reward_of_each(game, state), 0.0
            self.shares.mover[games, node] = self._mover(state)
        tree.discount[games, node] = np.where(over & ~cut, 0.0, sign)
        tree.terminal[games, node] = over
        tree.legal[games, node] = game.legal(state)
        live = np.flatnonzero(~over | cut)
        if len(live) == 0:
            return self._nothing()
        if chance is None:
            return self._shared(games[live], node[live], self._evaluate(fresh[live], state[live]))
        tree.chance[games, node] = chance.any(axis=1)
        return self._shared(games[live], node[live], self._evaluate_luck(fresh[live], state[live], chance[live]))

    def _mover(self, state: State) -> NDArray[np.int64]:
        """Returns whose share counts at states: of -1 numpy would make the last player's."""
        mover = self.game.to_play(state)
        if ((mover < 0) | (mover >= self._players)).any():
            raise ValueError(f"{type(self.game).__name__}.to_play must be in [0, {self._players}), got {mover}")
        return mover

    def _shared(self, games: NDArray[np.int64], node: NDArray[np.int64], found: Evaluated) -> Evaluated:
        """Writes what each of more than two players expects at nodes, and returns the mover's share as the value."""
        if self.shares is None:
            return found
        self.shares.value[games, node] = found.value
        return found._replace(value=found.value[np.arange(len(games)), self.shares.mover[games, node]])

    def at_root(self, state: State) -> NDArray[np.bool_]:
        """Returns which of the states are those at the roots, `[B]`."""
        same = np.ones(len(state), bool)
        for name in self.game.dtype.names or ():
            same &= np.reshape(self._states[name][:, 0] == state[name], (len(state), -1)).all(axis=1)
        return same

    def keep(self, kept: NDArray[np.bool_], num_nodes: int) -> None:
        """Moves the nodes that are `kept [B, N]` to the first places, in their order, in room for `num_nodes`."""
        row, old = np.nonzero(kept)
        new = (kept.cumsum(axis=1) - 1)[row, old]
        states = self._states[row, old]
        parts = None if self.shares is None else [array[row, old] for array in self.shares]
        self.allocate(len(kept), num_nodes)
        self._states[row, new] = states
        for array, part in zip(self.shares or (), parts or (), strict=True):
            array[row, new] = part

    def _evaluate(self, rows: NDArray[np.int64], state: State) -> Evaluated:
        if self._on_states:
            outcome = self._evaluator.evaluate(state)  # type: ignore[union-attr]
            return Evaluated(rows, *checked(outcome, len(state), self.num_actions, self._players))
        return Evaluated(rows, *self._ask(torch.from_numpy(self.game.observe(state)), len(state)))

    def _evaluate_luck(self, rows: NDArray[np.int64], state: State, chance: NDArray[np.float64]) -> Evaluated:
        """Evaluates states where luck may move: the first value of such a one is that of an outcome drawn for it.

        What is drawn is told by the state alone; the visits that follow are shared by probability, without any draw.
        """
        game, lucky = self.game, np.asarray(chance.any(axis=1))
        many = self._players > 2
        ahead, factor = state.copy(), np.ones((len(state), 1))
        worth = np.zeros((len(state), self._players if many else 1))
        pending, weights = np.flatnonzero(lucky), chance[lucky]
        while len(pending):
            before = ahead[pending]
            after = game.step(before, draws.choose(draws.digest(before), weights))
            paid = reward_of_each(game, after) if many else game.reward(after)[:, None]
            worth[pending] += factor[pending] * paid
            turned = False if many else game.to_play(after) != game.to_play(before)
            factor[pending] *= (np.where(turned, -1.0, 1.0) * ~game.terminal(after))[:, None]
            ahead[pending] = after
            weights = game.chance(after)  # type: ignore[attr-defined]
            again = np.asarray(weights.any(axis=1))
            pending, weights = pending[again], weights[again]
        _, logits, value = self._evaluate(rows, ahead)
        with np.errstate(divide="ignore"):
            logits = np.where(lucky[:, None], np.log(chance), logits)
        value = worth + factor * np.reshape(value, (len(state), -1))
        return Evaluated(rows, logits, value if many else value[:, 0])

    def _ask(self, observation: Tensor, batch: int) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
        return checked(self._evaluator(observation), batch, self.num_actions, self._players)  # type: ignore[operator]

    def _nothing(self) -> Evaluated:
        return Evaluated(np.zeros(0, np.int64), np.zeros((0, self.num_actions), np.float32), np.zeros(0, np.float32))


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
            numbers = _array(outcome).reshape(len(rows))
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


def _fields(dtype: np.dtype[Any]) -> list[tuple[str, np.dtype[Any]]]:
    """Returns a dtype's fields without their places, which numpy chooses anew where it joins arrays."""
    return [(name, dtype[name]) for name in dtype.names or ()]


def _whole(rows: NDArray[np.int64], tree: Tree) -> NDArray[np.int64] | slice:
    """Returns rows as an index; all of them as a slice, which numpy follows faster."""
    return slice(None) if len(rows) == len(tree.size) else rows


def checked(
    outcome: Evaluation, batch: int, num_actions: int, players: int = 1
) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """Returns an evaluator's answer as contiguous arrays of floats.

    Raises:
        ValueError: its shapes are not `[batch, num_actions]` and `[batch]`, or `[batch, players]` of more than two.
    """
    if not isinstance(outcome, (tuple, list)) or len(outcome) != 2:
        raise TypeError(f"evaluator must return (logits, value), got {type(outcome).__name__}")
    answers = fetched(*outcome) if isinstance(outcome[0], Tensor) else outcome
    logits, value = _array(answers[0]), _array(answers[1])
    if logits.shape != (batch, num_actions):
        raise ValueError(f"evaluator must return logits of shape ({batch}, {num_actions}), got {logits.shape}")
    if players > 2:
        if value.shape != (batch, players):
            raise ValueError(f"evaluator must return a value a player, shape ({batch}, {players}), got {value.shape}")
        if not np.isfinite(value).all():
            raise ValueError("evaluator must return finite values of all players, got NaN or infinity")
        return logits, value
    return logits, checked_value(value, batch)


def checked_value(outcome: Any, batch: int) -> NDArray[np.floating]:
    """Returns an evaluator's values as a contiguous array of floats.

    Raises:
        ValueError: they are not one a row.
    """
    value = _array(outcome)
    if value.size != batch:
        raise ValueError(f"evaluator must return one value a row, shape ({batch},), got {value.shape}")
    return value.reshape(batch)


def _array(x: Any) -> NDArray[np.floating]:
    if isinstance(x, Tensor):
        x = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
        array = x.numpy(force=True)
    else:
        array = np.asarray(x)
    # the compiled kernels exist for these two
    return np.ascontiguousarray(array, np.float32 if array.dtype == np.float32 else np.float64)
