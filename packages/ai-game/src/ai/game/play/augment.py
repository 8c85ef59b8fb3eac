"""Batches seen from a random side of a symmetric game."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ai.game import draws
from ai.game.protocol import SymmetricGame, action_places, check_game


class Augment:
    """Turns each row of a batch to a random symmetry: `obs`, `action`, and the axis A of `policy` and `legal`.

    All moments of an unrolled row are turned alike. The sides are a function of the batch's `index`, which its sampler
    drew; nothing here needs saving.

    Args:
        game: with symmetries.

    Raises:
        TypeError: the game has none.
    """

    def __init__(self, game: SymmetricGame) -> None:
        check_game(game)
        if not isinstance(game, SymmetricGame):
            raise TypeError(f"game must have num_symmetries and transform, {type(game).__name__} has not")
        self.game = game
        # where each action went in a turned policy, and which action each of its entries was
        self._became = action_places(game)
        self._was = self._became.argsort(axis=1)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Returns the batch with new `obs`, `action`, `policy` and `legal`; other keys as they were.

        Raises:
            ValueError: `obs` has neither the axes of a row nor those of an unrolled one.
        """
        which = self._sides(batch["index"].cpu().numpy().astype(np.uint64))
        out = dict(batch)
        if "obs" in batch:
            out["obs"] = self._turned(batch["obs"], which)
        for name in ("policy", "legal"):
            if name in batch:
                out[name] = _by_row(batch[name], self._was[which])
        if "action" in batch:
            action = batch["action"]
            became = torch.from_numpy(self._became[which]).to(action.device)
            moved = became.gather(1, action.reshape(len(action), -1).long())
            out["action"] = moved.reshape(action.shape).to(action.dtype)
        return out

    def _sides(self, index: np.ndarray) -> np.ndarray:
        weights = np.arange(1, 2 * len(index), 2, dtype=np.uint64)
        seed = draws.fold_in(np.array([(index * weights).sum()], np.uint64), 0)
        sides: np.ndarray = (draws.uniform(seed, len(index))[0] * self.game.num_symmetries).astype(np.int64)
        return sides

    def _turned(self, obs: Tensor, which: np.ndarray) -> Tensor:
        shape = self.game.observation_shape
        moments = obs.dim() - len(shape) - 1
        if moments not in (0, 1) or tuple(obs.shape[1 + moments :]) != tuple(shape):
            raise ValueError(f"obs must be [B, …] or [B, K + 1, …] of {shape}, got {tuple(obs.shape)}")
        rows = obs.cpu().numpy().reshape(-1, *shape)
        sides = which.repeat(obs.shape[1] if moments else 1)
        turned, _ = self.game.transform(rows, np.zeros((len(rows), self.game.num_actions), np.float32), sides)
        return torch.from_numpy(np.ascontiguousarray(turned)).reshape(obs.shape).to(obs.device, obs.dtype)


def _by_row(values: Tensor, was: np.ndarray) -> Tensor:
    """Returns values `[B, …, A]` whose entry j was entry `was[b, j]`."""
    places = torch.from_numpy(was).to(values.device)
    places = places.reshape(len(was), *[1] * (values.dim() - 2), was.shape[1])
    return values.gather(-1, places.expand(values.shape))
