"""An evaluator that looks at each position from all sides of a symmetric game."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ai.game.protocol import SymmetricGame, action_places, check_game
from ai.game.search.dynamics.evaluated import checked
from ai.game.search.evaluator import Evaluation, NetEvaluator, check_evaluator, evaluating


class SymmetricEvaluator:
    """Asks an evaluator about each position as it is seen from every side of a game, and answers with the mean.

    A network errs from each side a little differently, so the mean of logits and of values errs less. It costs as many
    evaluations as the game has sides.

    Args:
        game: with symmetries.
        evaluator: a module, or a function of observations.

    Raises:
        TypeError: the game has no symmetries, or the evaluator looks at states and not at observations.

    >>> from ai.game import ConnectFour
    >>> evaluator = SymmetricEvaluator(ConnectFour(), lambda seen: (seen[:, 0, 0], seen[:, 0, 0, 0]))
    >>> corner = torch.zeros(1, 2, 6, 7)
    >>> corner[0, 0, 0, 0] = 1.0
    >>> [answer.tolist() for answer in evaluator(corner)]
    [[[1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]], [0.5]]
    """

    def __init__(self, game: SymmetricGame, evaluator: Any) -> None:
        check_game(game)
        if not isinstance(game, SymmetricGame):
            raise TypeError(f"game must have num_symmetries and transform, {type(game).__name__} has not")
        check_evaluator(evaluator)
        if not callable(evaluator):
            raise TypeError(f"evaluator must be a module or a function of observations, got {evaluator!r}")
        self.game = game
        self.evaluator = NetEvaluator(evaluator) if isinstance(evaluator, nn.Module) else evaluator
        self._places = action_places(game)

    @property
    def rule(self) -> Any:
        """That of the evaluator behind, which a search takes where it is given none."""
        return getattr(self.evaluator, "rule", None)

    def evaluating(self) -> AbstractContextManager[None]:
        """Returns the context in which the evaluator behind does not learn."""
        return evaluating(self.evaluator)

    def __call__(self, observation: Tensor) -> Evaluation:
        """Returns the mean logits, `[B, A]`, and values, `[B]` or `[B, players]`, in float32.

        Raises:
            TypeError: the evaluator does not answer with logits and values.
            ValueError: they are not `[sides * B, A]` and `[sides * B]`, or `[sides * B, players]` of more than two.
        """
        (sides, actions), batch = self._places.shape, len(observation)
        seen = np.asarray(observation, np.float32)
        which = np.repeat(np.arange(sides), batch)
        blank = np.zeros((sides * batch, actions), np.float32)
        turned, _ = self.game.transform(np.tile(seen, (sides, *[1] * (seen.ndim - 1))), blank, which)
        answer = self.evaluator(torch.from_numpy(np.ascontiguousarray(turned)))
        logits, values = checked(answer, sides * batch, actions, self.game.num_players)
        found, worth = logits.astype(np.float32, copy=False), values.astype(np.float32, copy=False)
        back = np.take_along_axis(found.reshape(sides, batch, actions), self._places[:, None], axis=2)
        return back.mean(axis=0), worth.reshape(sides, batch, *worth.shape[1:]).mean(axis=0)
