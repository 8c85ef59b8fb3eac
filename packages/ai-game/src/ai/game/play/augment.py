"""Batches seen from a random side of a symmetric game."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ai.game import draws
from ai.game.protocol import SymmetricGame


class Augment:
    """Turns each row of a batch to a random symmetry of the game: `obs`, and the action axes of `policy` and `legal`.

    The sides are a function of the batch's `index`, which its sampler drew; nothing here needs saving.

    Args:
        game: with symmetries.

    Raises:
        TypeError: the game has none.
    """

    def __init__(self, game: SymmetricGame) -> None:
        if not isinstance(game, SymmetricGame):
            raise TypeError(f"game must have num_symmetries and transform, {type(game).__name__} has not")
        self.game = game

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Returns the batch with new `obs`, `policy` and `legal`; other keys as they were."""
        index = batch["index"].cpu().numpy().astype(np.uint64)
        weights = np.arange(1, 2 * len(index), 2, dtype=np.uint64)
        seed = draws.fold_in(np.array([(index * weights).sum()], np.uint64), 0)
        which = (draws.uniform(seed, len(index))[0] * self.game.num_symmetries).astype(np.int64)
        out = dict(batch)
        obs = batch["obs"].cpu().numpy()
        for name in ("policy", "legal"):
            if name in batch:
                array = batch[name]
                obs_turned, turned = self.game.transform(obs, array.cpu().numpy().astype(np.float32), which)
                out[name] = _like(turned, array)
                out["obs"] = _like(obs_turned, batch["obs"])
        return out


def _like(array: np.ndarray, tensor: Tensor) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(tensor.device, tensor.dtype)
