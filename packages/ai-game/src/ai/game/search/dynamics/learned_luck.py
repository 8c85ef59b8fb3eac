"""A learned model whose luck is learnt too: an action leads to an afterstate, and a code tells what came about there.

Letters: B rows, A actions, C codes, E stands for the axes of an embedding, R rows asked at once.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ai.game.arguments import check_count
from ai.game.search.actions import NumberedActions
from ai.game.search.device import fetched
from ai.game.search.dynamics.evaluated import Evaluated, checked
from ai.game.search.dynamics.learned_model import Learned, LearnedModel
from ai.game.search.tree import Leaf, Tree


@runtime_checkable
class StochasticModel(LearnedModel, Protocol):
    """A learned model of an environment with luck (stochastic MuZero).

    `recurrent` begins at an afterstate here, and is given codes in place of actions.
    """

    num_codes: int

    def afterstate(self, embedding: Any, action: Any) -> tuple[Any, Any, Any]:
        """Returns the afterstate `[B, *E]`, of the shape of embeddings, logits of codes `[B, C]` and value `[B]`.

        The value is what the action is worth to the player who takes it, before luck has moved.
        """
        ...


class Stochastic(Learned):
    """Edges are actions and codes by turns; nodes hold embeddings and afterstates, where luck moves.

    Codes are visited by their share, as the outcomes of known luck are, where the paper draws them.

    Source: Antonoglou, Schrittwieser, Ozair, Hubert, Silver 2022, "Planning in stochastic environments with a learned
    model", section 4.2.
    """

    model: StochasticModel

    def __init__(self, model: StochasticModel, num_actions: int) -> None:
        check_count(1, num_codes=model.num_codes)
        super().__init__(model, NumberedActions(num_actions))
        self.num_codes = int(model.num_codes)
        self.width = max(num_actions, self.num_codes)
        self.luck = True

    def root(self, tree: Tree, rows: NDArray[np.int64], observation: Any, legal: NDArray[np.bool_] | None) -> Evaluated:
        """Puts the roots of `rows` in place and evaluates them."""
        actions = np.tile(np.arange(self.width) < self.num_actions, (len(rows), 1))
        found = super().root(tree, rows, observation, actions if legal is None else actions & legal)
        return found._replace(logits=self._wide(found.logits))

    def expand(self, tree: Tree, rows: NDArray[np.int64], leaf: Leaf) -> Evaluated:
        """Lets the model take the action or the code of each new edge."""
        luck = tree.chance[rows, leaf.parent]
        taken, fell = np.flatnonzero(~luck), np.flatnonzero(luck)
        answers: list[Any] = []
        if len(taken):
            games, parent, action, node = self._places(rows, leaf, taken)
            after, *said = self.model.afterstate(self._embeddings[games, parent], action)
            self._embeddings[games, node] = after
            answers += said
        if len(fell):
            games, parent, code, node = self._places(rows, leaf, fell)
            embedding, *said = self.model.recurrent(self._embeddings[games, parent], code)
            self._embeddings[games, node] = embedding
            answers += said
        answers = fetched(*answers)
        logits, value = np.full((len(rows), self.width), -np.inf), np.zeros(len(rows))
        if len(taken):
            codes, worth = checked((answers.pop(0), answers.pop(0)), len(taken), self.num_codes)
            self._open_edges(tree, rows[taken], leaf.node[taken], self.num_codes)
            tree.reward[rows[taken], leaf.node[taken]], tree.discount[rows[taken], leaf.node[taken]] = 0.0, 1.0
            logits[taken], value[taken] = self._wide(codes), worth
        if len(fell):
            reward, discount, policy, worth = answers
            self._write_paid(tree, rows[fell], leaf.node[fell], reward, discount)
            policy, worth = checked((policy, worth), len(fell), self.num_actions)
            self._open_edges(tree, rows[fell], leaf.node[fell], self.num_actions)
            logits[fell], value[fell] = self._wide(policy), worth
        tree.chance[rows, leaf.node] = ~luck
        return Evaluated(np.arange(len(rows)), logits, value)

    def check_move(self, tree: Tree, action: NDArray[np.int64]) -> None:
        """Refuses what is no action at a root where a player moves, and no code where luck does.

        A root without anything below is of a row that starts anew, which either may follow.
        """
        count = np.where(tree.chance[:, 0], self.num_codes, self.num_actions)
        if (wrong := (action >= count) & (tree.size > 1)).any():
            row = int(wrong.argmax())
            kind = "a code" if tree.chance[row, 0] else "an action"
            raise ValueError(f"a move must be {kind} in [0, {count[row]}), got {action[row]} in row {row}")

    def _open_edges(self, tree: Tree, rows: NDArray[np.int64], node: NDArray[np.int64], count: int) -> None:
        tree.legal[rows, node] = np.arange(self.width) < count

    def _wide(self, logits: NDArray[np.floating]) -> NDArray[np.floating]:
        """Returns logits with places for all edges of a node, `[R, width]`."""
        missing = self.width - logits.shape[1]
        return np.pad(logits, ((0, 0), (0, missing)), constant_values=-np.inf) if missing else logits
