"""Targets of old games, found again by the newest model.

Source: Schrittwieser et al. 2020, "Mastering Atari, Go, chess and shogi by planning with a learned model", appendix H;
here the moves drawn for an update are searched again after it, and the buffer's policy and value rewritten.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ai.data.datagen import DatagenLoader
from ai.game import LearnedModel, Rule, Search
from ai.train import MuZero


class Reanalyse:
    """A loss that also renews the targets of what it is given, every so many updates.

    Args:
        loss: The loss itself.
        loader: Whose buffer the batches are drawn from.
        num_actions: Of the game.
        interval: Updates between two renewals.
        simulations: Of the search.
        rule: Of the search.
    """

    def __init__(
        self,
        loss: MuZero,
        loader: DatagenLoader,
        num_actions: int,
        *,
        interval: int,
        simulations: int,
        rule: Rule | None = None,
    ) -> None:
        if interval < 1:
            raise ValueError(f"interval must be at least 1, got {interval}")
        self.loss, self.loader, self.interval = loss, loader, interval
        self.renewed = 0
        self._num_actions, self._simulations, self._rule = num_actions, simulations, rule
        self._search: Search | None = None

    def __call__(self, model: nn.Module, batch: dict[str, Tensor], step: int) -> Tensor:
        """Returns the loss of a batch."""
        if step % self.interval == 0 and torch.is_grad_enabled():
            self.renew(model, batch)
        return self.loss(model, batch, step)

    def renew(self, model: nn.Module, batch: dict[str, Tensor]) -> int:
        """Searches the batch's first moments again; returns how many of them the buffer still held."""
        if self._search is None:
            assert isinstance(model, LearnedModel)
            self._search = Search.learned(model, self._num_actions, simulations=self._simulations, rule=self._rule)
        obs = batch["obs"][:, 0] if self.loss.obs_unrolled else batch["obs"]
        found = self._search(obs, legal=batch["legal"][:, 0].bool().cpu().numpy())
        policy, value = torch.from_numpy(found.policy), torch.from_numpy(found.value)
        with self.loader.locked():
            renewed = self.loader.buffer.update(batch["index"], policy=policy, value=value)
        self.renewed += renewed
        return renewed
