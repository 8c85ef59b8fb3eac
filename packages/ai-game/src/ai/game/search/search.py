"""Batched tree search: many games, one leaf a game a simulation, one call of the evaluator a simulation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ai.game import draws
from ai.game.arguments import check_count
from ai.game.protocol import Game, Seed, check_actions, check_game
from ai.game.search import walk
from ai.game.search.actions import NumberedActions, Proposes, SampledActions
from ai.game.search.dynamics.evaluated import Evaluated
from ai.game.search.dynamics.known_rules import Evaluator, Rules
from ai.game.search.dynamics.learned_luck import Stochastic, StochasticModel
from ai.game.search.dynamics.learned_model import Learned, LearnedModel
from ai.game.search.evaluator import check_evaluator
from ai.game.search.found import Found, found
from ai.game.search.rules.gumbel import Gumbel
from ai.game.search.rules.puct import Puct
from ai.game.search.rules.rule import Roots, Rule, Way
from ai.game.search.tree import UNVISITED, Tree, move_subtrees, new_leaf, new_tree
from ai.game.search.turn import Turn


class Search:
    """Searches positions of a game whose rules are known, or in a learned model of it.

    A search holds its trees, so it serves one call at a time and refuses a second; searches may share an evaluator.

    Args:
        game: the rules.
        evaluator: model, inference client or function from observations to `(logits, value)`; see `evaluator`.
        simulations: leaves a search visits per position.
        rule: `Gumbel()`, `Puct()` or a `Rule` of your own; None takes that of the evaluator, where this has a `rule`
            as a `RolloutEvaluator` has, else Gumbel up to 32 simulations and PUCT above.
        max_depth: how many moves ahead a walk goes at most, those of luck included; None for no bound.

    Example:
        >>> from ai.game import RolloutEvaluator, TicTacToe
        >>> game = TicTacToe()
        >>> search = Search(game, RolloutEvaluator(game), simulations=64)
        >>> state = game.init(1)
        >>> for cell in (0, 3, 1, 4):  # X holds 0 and 1 and is to move
        ...     state = game.step(state, np.array([cell]))
        >>> int(search(state).action[0])
        2
    """

    def __init__(
        self,
        game: Game,
        evaluator: Evaluator,
        *,
        simulations: int = 32,
        rule: Rule | None = None,
        max_depth: int | None = None,
    ) -> None:
        check_game(game)
        check_evaluator(evaluator)
        own: Any = getattr(evaluator, "rule", None)  # a network may call anything so
        meant = isinstance(own, Rule) or (isinstance(own, type) and issubclass(own, Rule))
        self._setup(Rules(game, evaluator), simulations, own if rule is None and meant else rule, max_depth)

    @classmethod
    def learned(
        cls,
        model: LearnedModel,
        num_actions: int,
        *,
        simulations: int = 32,
        rule: Rule | None = None,
        max_depth: int | None = None,
    ) -> Search:
        """Returns a search in a learned model, to be called with observations instead of states.

        In a `StochasticModel` luck moves after every action: its codes are visited by their share, each within one
        visit of it.
        """
        search = cls.__new__(cls)
        if isinstance(model, StochasticModel):
            dynamics: Learned = Stochastic(model, num_actions)
        else:
            dynamics = Learned(model, NumberedActions(num_actions))
        search._setup(dynamics, simulations, rule, max_depth)
        return search

    @classmethod
    def sampled(
        cls,
        model: LearnedModel,
        *,
        samples: int = 20,
        proposal: Callable[[Any], Proposes] | None = None,
        simulations: int = 32,
        rule: Rule | None = None,
        max_depth: int | None = None,
    ) -> Search:
        """Returns a search in a learned model whose actions are too many to number, such as movements.

        Each node has `samples` actions, drawn from the model's policy there by the seed that the search is called
        with, or from what `proposal` makes of that policy; either way the prior stands for the policy. A seed draws the
        same quantiles at every position, as it draws the same noise: give each search its own. What was found tells
        the actions as `actions`, and what to do as `chosen()`. A `rule` of None is Gumbel over all samples: their
        priors are nearly equal, by which PUCT hardly tells what is worth a try.

        Source: Hubert et al. 2021, "Learning and planning in complex action spaces".

        >>> import torch
        >>> import ai.model as m
        >>> class Bowl:  # one step, which costs the more the further it goes from 0.3; the policy knows nothing of that
        ...     def initial(self, observation):
        ...         return observation, m.Gaussian(torch.zeros(len(observation), 1), torch.zeros(1)), observation[:, 0]
        ...     def recurrent(self, embedding, action):
        ...         _, policy, nothing = self.initial(torch.zeros_like(embedding))
        ...         return embedding, -(action[:, 0] - 0.3) ** 2, nothing, policy, nothing
        >>> found = Search.sampled(Bowl(), samples=20, simulations=40)(torch.zeros(4, 1))
        >>> bool((abs(found.chosen() - 0.3) < 0.15).all())
        True
        """
        check_count(1, samples=samples)
        rule = Gumbel(max_considered=samples) if rule is None else rule
        search = cls.__new__(cls)
        search._setup(Learned(model, SampledActions(samples, proposal)), simulations, rule, max_depth)
        return search

    def _setup(self, dynamics: Rules | Learned, simulations: int, rule: Rule | None, max_depth: int | None) -> None:
        check_count(1, simulations=simulations, **({} if max_depth is None else {"max_depth": max_depth}))
        if rule is not None and not isinstance(rule, Rule):
            raise TypeError(f"rule must be a Rule, such as Puct(), got {rule}")
        self.simulations = simulations
        self.rule: Rule = rule if rule is not None else (Gumbel() if simulations <= 32 else Puct())
        self.rule.check(dynamics.game if isinstance(dynamics, Rules) else None)
        self.max_depth = walk.UNLIMITED if max_depth is None else min(max_depth, walk.UNLIMITED)
        self.tree: Tree | None = None
        self._dynamics = dynamics
        self._turn = Turn()
        self._kept: NDArray[np.bool_] | None = None  # which trees `advance` kept
        self._searched = False  # whether the trees are those of a search that came to its end
        self._memory: dict[Any, Any] = {}  # the rule's
        self._leaf = new_leaf(0)

    def __call__(
        self,
        positions: Any,
        seed: Seed = 0,
        *,
        noise: bool | NDArray[np.bool_] = False,
        legal: NDArray[np.bool_] | None = None,
        simulations: NDArray[np.int64] | None = None,
        noise_values: NDArray[np.float64] | None = None,
    ) -> Found:
        """Searches `B` positions.

        No row's result depends on the others, to the last bit, where no row of the evaluator's does. A network rounds
        by the size of its batch, so that equal rows of other batches may differ in their last digits, and a search
        with them; `NetEvaluator(model, chunk=1)` asks row by row.

        Args:
            positions: states of the game, or observations for a learned model.
            seed: of the noise: an int, or one seed a row.
            noise: Dirichlet or Gumbel noise at the root, for all rows or `[B]`; for self-play, not for matches.
            legal: `[B, A]` moves to allow at the root, as booleans or as 0 and 1; where choices are sampled, of all of
                them, and of movements None.
            simulations: `[B]` a budget for each row, at most the search's own (playout-cap randomisation).
            noise_values: `[B, A]` to use in place of drawn noise.

        Raises:
            ValueError: there is no position; a game is over, has no legal move, or a budget is outside
                `[1, simulations]`; `legal` is no mask; after `advance`, the positions are not those that it leads to.
            RuntimeError: the search is in use, by another thread or by its own evaluator.
        """
        with self._turn:
            return self._search(positions, seed, noise, legal, simulations, noise_values)

    def value(self, positions: Any) -> NDArray[np.float64]:
        """Returns the evaluator's own value of each position, `[B]`, without search; of more than two players, each."""
        with self._turn, self._dynamics.evaluating():
            return self._dynamics.value(positions).astype(np.float64)

    def _search(
        self,
        positions: Any,
        seed: Seed,
        noise: bool | NDArray[np.bool_],
        legal: NDArray[np.bool_] | None,
        simulations: NDArray[np.int64] | None,
        noise_values: NDArray[np.float64] | None,
    ) -> Found:
        batch = len(positions)
        if batch == 0:
            raise ValueError("positions must hold at least one game, got none")
        rows = np.arange(batch)
        seeds = draws.row_seeds(seed, batch)
        budget = self._budget(simulations, batch)
        legal = self._mask(legal, batch)
        self._dynamics.begin(seeds)
        if self._kept is None:
            self._prepare(batch)
            self._root(positions, legal, rows)
        else:
            kept = self._kept
            self._check_kept(positions, kept)
            kept = self._narrow(legal, kept)
            if not kept.all():
                self._root(positions, legal, np.flatnonzero(~kept))
        assert self.tree is not None
        self._kept, self._searched = None, False
        prior = self.tree.prior[:, 0].copy()
        way = self.rule.begin(self._roots(budget, seeds, noise, noise_values))
        shortest, longest = int(budget.min()), int(budget.max())
        with self._dynamics.evaluating():
            for simulation in range(longest):
                self._simulate(rows if simulation < shortest else np.flatnonzero(budget > simulation), way)
        self._searched = True
        dynamics = self._dynamics
        return found(self.tree, self.rule, way, prior, dynamics.num_actions, dynamics.actions.offered)

    def advance(self, action: NDArray[np.int64]) -> None:
        """Keeps the part of the trees below the moves made, as the start of the next search (not by Gumbel's rule).

        The next call must be for the positions after `action[B]`; its budget comes on top of what is kept. Where luck
        follows a move, its outcomes, of a `StochasticModel` its codes, are given to a second `advance`. A row whose
        move ended its game, or was not explored, starts from a fresh tree, at whatever position comes next. A learned
        model's tree goes on from what the model foresaw: what is then seen counts in the fresh rows alone.

        Raises:
            ValueError: the rule is Gumbel, whose halving needs fresh roots; or nothing was searched, or the search
                failed; or there is not one action of the game a row.
            RuntimeError: the search is in use.
        """
        with self._turn:
            self._advance(action)

    def _advance(self, action: NDArray[np.int64]) -> None:
        if not self.rule.keeps_trees:
            raise ValueError("advance needs rule=Puct(...): sequential halving starts from a fresh root")
        if self.tree is None or not self._searched:
            raise ValueError("advance needs a search before it, one that came to its end")
        tree = self.tree
        action = check_actions(action, len(tree.size), self._dynamics.width)
        self._dynamics.check_move(tree, action)
        rows = np.arange(len(action))
        child = tree.child[rows, 0, action].astype(np.int64)
        kept = (child >= 0) & ~tree.terminal[rows, np.maximum(child, 0)]
        num_nodes = 2 * self.simulations + 1  # room for a whole budget besides what is kept
        below = walk.subtree(tree, np.where(kept, child, UNVISITED))
        below &= below.cumsum(axis=1) <= num_nodes - self.simulations
        to = tree if tree.value.shape[1] == num_nodes else self._new_tree(len(rows), num_nodes)
        self.tree = move_subtrees(tree, below, to)
        self._dynamics.keep(below, num_nodes)
        self._reset(np.flatnonzero(~kept))
        self._kept = kept

    def _simulate(self, rows: NDArray[np.int64], way: Way) -> None:
        """Adds one leaf to the tree of each of `rows`."""
        assert self.tree is not None
        leaf = self._leaf = self._leaf if len(self._leaf.node) == len(rows) else new_leaf(len(rows))
        walk.select(self.tree, rows, way, leaf, luck=self._dynamics.luck, max_depth=self.max_depth)
        evaluated = self._dynamics.expand(self.tree, rows, leaf)
        if (shares := self._dynamics.shares) is None:
            finite = walk.settle(self.tree, rows, leaf, *evaluated, self.rule.prove)
        else:
            finite = walk.settle_shares(self.tree, rows, leaf, *evaluated, shares)
        if not finite:
            raise _not_finite()

    def _root(self, positions: Any, legal: NDArray[np.bool_] | None, rows: NDArray[np.int64]) -> None:
        """Puts the positions of `rows` at the roots of fresh trees and evaluates them."""
        assert self.tree is not None
        whole = len(rows) == len(positions)
        with self._dynamics.evaluating():
            root: Evaluated = self._dynamics.root(
                self.tree, rows, positions if whole else positions[rows], None if legal is None else legal[rows]
            )
        _check_open(self.tree.legal[:, 0])
        if not walk.evaluate(self.tree, rows, np.zeros(len(rows), np.int64), root.logits, root.value):
            raise _not_finite()

    def _check_kept(self, positions: Any, kept: NDArray[np.bool_]) -> None:
        """Refuses positions that are not at the roots of the kept trees."""
        assert self.tree is not None
        if len(positions) != len(self.tree.size):
            raise ValueError(
                f"positions must be the {len(self.tree.size)} after the moves given to advance, got {len(positions)}"
            )
        self._dynamics.check(positions)
        if (lucky := self.tree.chance[:, 0] & kept).any():
            raise ValueError(f"advance needs what luck did as well, in row {int(lucky.argmax())} luck moves")
        same = self._dynamics.at_root(positions) | ~kept
        if not same.all():
            raise ValueError(f"positions must be those after the moves given to advance, row {same.argmin()} is not")

    def _narrow(self, legal: NDArray[np.bool_] | None, kept: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Forbids moves at kept roots, and takes back what was tried of them.

        Returns:
            Which trees are still kept, `[B]`: not those where none of the sampled choices may be taken.
        """
        assert self.tree is not None
        if legal is None or not kept.any():
            return kept
        tree, rows = self.tree, np.flatnonzero(kept)
        allowed = tree.legal[rows, 0] & self._dynamics.actions.allowed(legal, rows)
        if self._dynamics.actions.offered is None:
            _check_open(allowed)
        else:
            _check_open(legal)
            useful = allowed.any(axis=1)
            self._reset(rows[~useful])
            rows, allowed = rows[useful], allowed[useful]
        tree.legal[rows, 0] = allowed
        prior = np.where(allowed, tree.prior[rows, 0] + 1e-300, 0.0)
        tree.prior[rows, 0] = prior / prior.sum(axis=1, keepdims=True)
        row, action = np.nonzero(~allowed)
        forbidden = rows[row], 0, action
        tree.child[forbidden] = UNVISITED
        tree.visits[forbidden] = tree.total[forbidden] = 0
        if self.rule.prove:
            tree.proof[forbidden] = np.nan
        still = np.zeros_like(kept)
        still[rows] = True
        return still

    def _mask(self, legal: Any, batch: int) -> NDArray[np.bool_] | None:
        """Returns a mask of moves as booleans; numbers are 0 and 1."""
        if legal is None:
            return None
        mask = legal.numpy(force=True) if isinstance(legal, Tensor) else np.asarray(legal)
        sampled = isinstance(self._dynamics.actions, SampledActions)  # of all choices, which are the policy's to count
        shape: tuple[int, ...] = (batch, *mask.shape[1:]) if sampled else (batch, self._dynamics.num_actions)
        if mask.shape != shape or (mask.dtype != bool and not np.isin(mask, (0, 1)).all()):
            raise ValueError(
                f"legal must be a mask of booleans, or of 0 and 1, of shape {shape}, got {mask.dtype} {mask.shape}"
            )
        return mask.astype(bool) if sampled else _wide(mask.astype(bool), self._dynamics.width)

    def _prepare(self, batch: int) -> None:
        num_nodes = self.simulations + 1
        if self.tree is None or self.tree.value.shape[0] != batch or self.tree.value.shape[1] < num_nodes:
            self.tree = self._new_tree(batch, num_nodes)
        self._dynamics.allocate(*self.tree.value.shape)
        self._reset(slice(None))

    def _new_tree(self, batch: int, num_nodes: int) -> Tree:
        return new_tree(batch, num_nodes, self._dynamics.width, proves=self.rule.prove)

    def _reset(self, rows: NDArray[np.int64] | slice) -> None:
        """Leaves an empty root in the trees of `rows`."""
        assert self.tree is not None
        self.tree.size[rows] = 1
        self.tree.terminal[rows, 0] = self.tree.chance[rows, 0] = False
        self.tree.child[rows, 0] = UNVISITED
        self.tree.visits[rows, 0] = self.tree.total[rows, 0] = 0
        self.tree.proof[rows, 0] = np.nan  # of no action, where nothing is proven

    def _budget(self, simulations: NDArray[np.int64] | None, batch: int) -> NDArray[np.int64]:
        if simulations is None:
            return np.full(batch, self.simulations)
        budget = np.asarray(simulations)
        if (
            budget.dtype.kind not in "iu"
            or budget.shape != (batch,)
            or (budget < 1).any()
            or (budget > self.simulations).any()
        ):
            raise ValueError(f"simulations must hold one budget in [1, {self.simulations}] a row, got {simulations}")
        return budget

    def _roots(
        self,
        budget: NDArray[np.int64],
        seeds: NDArray[np.uint64],
        noise: bool | NDArray[np.bool_],
        noise_values: NDArray[np.float64] | None,
    ) -> Roots:
        """Returns what the rule begins with."""
        assert self.tree is not None
        batch, num_actions = len(budget), self._dynamics.num_actions
        given = np.asarray(noise)
        if given.dtype != bool or given.shape not in ((), (batch,)):
            raise ValueError(f"noise must be True, False or a boolean a row, shape ({batch},), got {noise!r}")
        noisy = np.broadcast_to(given, (batch,))
        if noise_values is not None and (
            np.shape(noise_values) != (batch, num_actions) or np.isnan(noise_values).any()
        ):
            raise ValueError(
                f"noise_values must hold a number a move, shape {(batch, num_actions)}, got {noise_values}"
            )
        drawn = None if noise_values is None else _wide(np.asarray(noise_values), self._dynamics.width)
        return Roots(self.tree, self.simulations, budget, seeds, noisy, drawn, self._memory)


def _wide(of_actions: NDArray[Any], width: int) -> NDArray[Any]:
    """Returns what stands for each action with zeros for all other edges of a node, `[B, width]`.

    >>> _wide(np.ones((1, 2)), 3)
    array([[1., 1., 0.]])
    """
    missing = width - of_actions.shape[1]
    return np.pad(of_actions, ((0, 0), (0, missing))) if missing > 0 else of_actions


def _check_open(legal: NDArray[np.bool_]) -> None:
    open_rows = legal.any(axis=1)
    if not open_rows.all():
        raise ValueError(f"legal must allow a move in every row, row {int(open_rows.argmin())} has none")


def _not_finite() -> ValueError:
    return ValueError("evaluator must return finite logits and values for legal actions, got NaN or infinity")
