"""Proximal policy optimisation.

Letters: B batch, A actions, L steps of a sequence. Batches are those of `ai.data.Datagen.passes`.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ai.model.arguments import check_real
from ai.model.policy import asked, check_acts
from ai.model.wide import widened
from ai.train.engine.log import is_logging, log
from ai.train.rl.batch_checks import check_holds, check_rows, check_weights
from ai.train.rl.uncounted import where_counts

Batch = Mapping[str, Tensor]
_ROUNDING = 8.0  # units in the last place that a mean of equal numbers may be off: 3.6 were seen of up to a million
_MOST = 20.0  # of the logarithm of a ratio: its exponential times an advantage must stay a number
Forward = Callable[[Any, Batch], tuple[Any, Tensor]]


def policy_and_value(model: Any, batch: Batch) -> tuple[Any, Tensor]:
    """The policy and the value of a batch, as `ai.game.ByPolicy` acts: `model(obs)`, or `model(obs, memory)`.

    Where the batch has `legal`, the policy is restricted to these actions; where it has `memory` `[B, L, …]`, what the
    sequence began with is given to the model, whose last result is not looked at.

    Raises:
        ValueError: the batch has a memory, but is of single steps.
        TypeError: the model gives something else, or a policy that cannot be restricted.
    """
    if "memory" in batch:
        if "target" in batch and batch["target"].ndim < 2:
            raise ValueError(
                "a batch with memory must be of sequences: give Datagen.passes a sequence, got single steps"
            )
        said = asked(model, batch["obs"], batch["memory"][:, 0])
    else:
        said = asked(model, batch["obs"])
    check_acts(said)
    policy, value = said[:2]
    if "legal" not in batch:
        return policy, value
    if not hasattr(policy, "among"):
        raise TypeError(
            f"a batch with legal needs a policy of one choice, such as Categorical, got {type(policy).__name__}"
        )
    return policy.among(batch["legal"]), value


class PPO:
    """The clipped surrogate of the policy, a squared error of the value, and a bonus for entropy.

    `model(obs)` gives `(policy, value [B])`; a policy has `log_prob(action)` and `entropy()`, as those of `ai.model`.
    The batch holds `obs`, `action`, `log_prob`, `advantage`, `target`, from sequences `mask [B, L]`, and with
    `clip_value` the old `value`.

    Args:
        clip: how far the ratio of probabilities may pay; a number, or a function of the step.
        value_weight: of the value's squared error.
        entropy: weight of the entropy; a number, or a function of the step.
        clip_value: None, or how far a value may move from the old one, as Engstrom et al. describe.
        normalize: whether advantages get mean 0 and deviation 1 within a batch; that of a single step stays as it is,
            equal ones count for nothing.
        forward: from model and batch to policy and value.

    On logged steps also `kl` (an estimate of what the policy moved), `clipped` (share of ratios beyond `clip`) and
    `explained` (share of the target's variance that the value explains).

    Source: Schulman et al. 2017, Proximal policy optimization algorithms, equations 7 and 9. Deviations: advantages are
    normalised by batch, and the value has no loss in common with the policy but the trunk; both as in the authors' code
    (Huang et al. 2022, The 37 implementation details of proximal policy optimization, details 7 and 9); a ratio counts
    as e^20 at most. `kl`: Schulman
    2020, Approximating KL divergence, the estimator (r - 1) - log r. `clip_value`: Engstrom et al. 2020, Implementation
    matters in deep policy gradients, section 3.

    >>> import ai.model as m
    >>> model = lambda obs: (m.Categorical(obs), obs.sum(1))
    >>> batch = {'obs': torch.zeros(2, 2), 'action': torch.tensor([0, 1]), 'log_prob': torch.full((2,), 0.5).log(),
    ...          'advantage': torch.tensor([1.0, 3.0]), 'target': torch.tensor([2.0, 0.0])}
    >>> float(PPO(normalize=False)(model, batch, 0))  # -(1 + 3) / 2 + 0.5 (4 + 0) / 2
    -1.0
    """

    def __init__(
        self,
        *,
        clip: float | Callable[[int], float] = 0.2,
        value_weight: float = 0.5,
        entropy: float | Callable[[int], float] = 0.0,
        clip_value: float | None = None,
        normalize: bool = True,
        forward: Forward = policy_and_value,
    ) -> None:
        check_real(value_weight=value_weight)
        check_real(or_none=True, clip_value=clip_value)
        check_real(**{name: given for name, given in (("clip", clip), ("entropy", entropy)) if not callable(given)})
        check_weights(value_weight=value_weight, entropy=None if callable(entropy) else entropy)
        if not callable(clip) and not clip > 0:
            raise ValueError(f"clip must be positive, got {clip}")
        if clip_value is not None and not clip_value > 0:
            raise ValueError(f"clip_value must be positive or None, got {clip_value}")
        self.clip, self.value_weight, self.entropy = clip, value_weight, entropy
        self.clip_value, self.normalize, self.forward = clip_value, normalize, forward

    def __call__(self, model: Any, batch: Batch, step: int) -> Tensor:
        """The mean loss over the steps of the batch."""
        keys = ("log_prob", "advantage", "target", *(() if self.clip_value is None else ("value",)))
        check_holds(batch, ("action", *keys), "act as ai.game.ByPolicy does, and learn from Datagen.passes")
        policy, value = self.forward(model, batch)
        target, value = batch["target"], widened(value)
        if value.shape != target.shape:
            raise ValueError(f"the model's value {tuple(value.shape)} and target {tuple(target.shape)} must agree")
        check_rows(batch, (*keys, "mask"), target.shape)
        mask = batch.get("mask")
        if mask is not None:  # whose mean leaves the padding out; what is infinite there would still reach gradients
            batch = {**batch, **{key: where_counts(mask, batch[key]) for key in keys}}
            target = batch["target"]
        mean = _mean_over(mask)
        advantage = widened(batch["advantage"])
        if self.normalize:
            advantage = _normalized(advantage, mask)
        log_prob = policy.log_prob(batch["action"])
        check_rows({"the policy's log_prob": log_prob}, ("the policy's log_prob",), target.shape)
        # From e^88 on a ratio is infinite, and its gradient NaN even where it is clipped and has none.
        log_ratio = log_prob - torch.maximum(batch["log_prob"], log_prob.detach() - _MOST)
        ratio = log_ratio.exp()
        clip = self.clip(step) if callable(self.clip) else self.clip
        gain, clipped = ratio * advantage, ratio.detach().clamp(1 - clip, 1 + clip) * advantage
        policy_gain = mean(torch.where(clipped < gain, clipped, gain))  # the lesser; what is clipped has no gradient
        error = F.mse_loss(value, target, reduction="none")
        if self.clip_value is not None:
            near = batch["value"] + (value - batch["value"]).clamp(-self.clip_value, self.clip_value)
            error = torch.max(error, (near - target).square())
        value_loss = mean(error)
        loss = self.value_weight * value_loss - policy_gain
        weight = self.entropy(step) if callable(self.entropy) else self.entropy
        if weight or is_logging():
            entropy = mean(policy.entropy())
            loss = loss - weight * entropy if weight else loss
            log("entropy", entropy)
        if is_logging():
            with torch.no_grad():
                log("policy_loss", -policy_gain)
                log("value_loss", value_loss)
                log("kl", mean(ratio - 1 - log_ratio))
                log("clipped", mean(((ratio - 1).abs() > clip).to(ratio.dtype)))
                spread = mean((target - mean(target)).square())
                log("explained", 1 - mean((target - value).square()) / spread.clamp_min(1e-12))
        return loss


def _normalized(advantage: Tensor, mask: Tensor | None) -> Tensor:
    """Advantages of mean 0 and deviation 1; equal ones are 0, that of a single step stays as it is."""
    if mask is None and advantage.numel() < 2:
        return advantage
    mean = _mean_over(mask)
    centred = advantage - mean(advantage)
    variance = mean(centred.square())
    if mask is None:
        variance = variance * advantage.numel() / (advantage.numel() - 1)
    else:
        n = mask.sum()
        variance = variance * n / (n - 1).clamp_min(1)
    spread = variance.sqrt()
    # Of equal advantages rounding leaves some units in the last place, which division would make 1 of.
    equal = spread <= _ROUNDING * torch.finfo(spread.dtype).eps * mean(advantage.abs())
    scaled = centred / (spread + 1e-8).masked_fill(equal, torch.inf)
    return scaled if mask is None else torch.where(n > 1, scaled, advantage)


def _mean_over(mask: Tensor | None) -> Callable[[Tensor], Tensor]:
    """The mean of a tensor over the steps that count."""
    if mask is None:
        return torch.mean
    counts = mask.bool()
    return lambda x: torch.where(counts, x, 0).sum() / counts.sum()
