"""AlphaZero's loss: the policy follows the search, the value follows the outcome.

Source: Silver et al. 2018, "A general reinforcement learning algorithm that masters chess, shogi, and Go through
self-play", equation 1; playout-cap randomisation: Wu 2020, "Accelerating self-play learning in Go", section 3.1.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ai.train import log


class AlphaZero:
    """Cross-entropy over legal moves with the search's policy, and the error of the value.

    The batch holds `obs`, `policy [B, A]`, `legal [B, A]`, `target [B]` (the outcome for the mover), `value [B]` (the
    search's), and `full [B]` (1 where the search was a full one). Where there is `greedy_return [B]`, it
    is the outcome.

    Args:
        value_weight: of the value's error.
        search_share: how much of the value's target is the search's value; the rest is the outcome.
        fast_weight: of the policy's error at moves that a fast search made.
        value_error: `"squared"`, or `"entropy"`: the cross-entropy of the chance to win that a value tells,
            (1 + value) / 2, by which a value that lies wrongly at an end of its tanh goes on learning; for outcomes in
            [-1, 1].

    Raises:
        ValueError: a share is not in [0, 1], or there is no such error.
    """

    def __init__(
        self,
        *,
        value_weight: float = 1.0,
        search_share: float = 0.0,
        fast_weight: float = 1.0,
        value_error: Literal["squared", "entropy"] = "squared",
    ) -> None:
        for name, share in (("search_share", search_share), ("fast_weight", fast_weight)):
            if not 0 <= share <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {share}")
        if value_error not in ("squared", "entropy"):
            raise ValueError(f"value_error must be 'squared' or 'entropy', got {value_error!r}")
        self.value_error = value_error
        self.value_weight, self.search_share, self.fast_weight = value_weight, search_share, fast_weight

    def __call__(self, model: nn.Module, batch: dict[str, Tensor], step: int) -> Tensor:
        """Returns the loss of a batch."""
        logits, value = model(batch["obs"])
        # a finite floor: 0 (the search's share of an illegal move) times -inf is not a number
        logits = logits.float().masked_fill(~batch["legal"].bool(), -1e4)
        weight = self.fast_weight + (1 - self.fast_weight) * batch["full"].float()
        policy_loss = F.cross_entropy(logits, batch["policy"], reduction="none")
        policy_loss = (policy_loss * weight).sum() / weight.sum().clamp(min=1e-6)
        target = torch.lerp(batch.get("greedy_return", batch["target"]), batch["value"], self.search_share)
        value_loss = self._value_loss(value.float().flatten(), target)
        log("policy_loss", lambda: policy_loss.detach())
        log("value_loss", lambda: value_loss.detach())
        return policy_loss + self.value_weight * value_loss

    def _value_loss(self, value: Tensor, target: Tensor) -> Tensor:
        if self.value_error == "squared":
            return F.mse_loss(value, target)
        # a model may give values of half precision, which has none between 1 and 0.996
        chance = (1 + value) / 2
        chance = chance + (chance.clamp(1e-4, 1 - 1e-4) - chance).detach()  # whose gradient goes on beyond
        wanted = (1 + target) / 2
        return -(wanted * chance.log() + (1 - wanted) * (1 - chance).log()).mean()
