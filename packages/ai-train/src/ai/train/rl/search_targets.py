"""A policy learnt from a search's, beside a value.

Letters: B batch, A actions. Batches are draws of `ai.data.ReplayBuffer`.
"""

from collections.abc import Callable, Mapping

from torch import Tensor

from ai.model.arguments import check_real
from ai.model.wide import widened
from ai.train.engine.log import is_logging, log
from ai.train.rl.uncounted import policy_cross_entropy


class RL:
    """Cross-entropy of a policy against a search's, plus squared error of a value against its target.

    `model(obs)` gives `(logits [B, A], value [B] or [B, 1])`. The batch holds `obs`, `policy [B, A]`, `target [B]` and,
    from prioritised replay, `weight [B]`.

    Args:
        value_weight: of the value's error.
        entropy: a bonus for the policy's entropy.

    Source: Silver et al. 2017, Mastering the game of Go without human knowledge, equation 1 (weight decay is the
    optimiser's).

    >>> import torch
    >>> model = lambda obs: (obs, obs[:, 0])
    >>> batch = {'obs': torch.zeros(4, 2), 'policy': torch.full((4, 2), 0.5), 'target': torch.ones(4)}
    >>> round(float(RL()(model, batch, 0)), 4)
    1.6931
    """

    def __init__(self, *, value_weight: float = 1.0, entropy: float = 0.0) -> None:
        check_real(value_weight=value_weight, entropy=entropy)
        self.value_weight, self.entropy = value_weight, entropy

    def __call__(
        self, model: Callable[[Tensor], tuple[Tensor, Tensor]], batch: Mapping[str, Tensor], step: int
    ) -> Tensor:
        """The mean loss over the batch."""
        logits, value = model(batch["obs"])
        value = widened(value.flatten())
        target = batch["target"].to(value.dtype)
        if value.shape != target.shape:
            raise ValueError(f"the model's value {tuple(value.shape)} and target {tuple(target.shape)} must agree")
        policy_loss = policy_cross_entropy(logits, batch["policy"])
        value_loss = (value - target).square()
        loss = policy_loss + self.value_weight * value_loss
        if self.entropy or is_logging():
            log_p = widened(logits).log_softmax(1)
            # An illegal move's logit may be -inf: 0 · log 0 counts as 0.
            entropy = -(log_p.exp() * log_p.clamp_min(-1e9)).sum(1)
            loss = loss - self.entropy * entropy if self.entropy else loss
            log("policy_loss", policy_loss.mean())
            log("value_loss", value_loss.mean())
            log("entropy", entropy.mean())
        return (loss * batch["weight"]).mean() if "weight" in batch else loss.mean()
