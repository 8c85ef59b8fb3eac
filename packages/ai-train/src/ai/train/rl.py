"""Environments of `RLTrainer`: policies and values learnt from played games.

Letters: B batch, A actions, K steps unrolled, S bins of a support. Batches are draws of `ai.data.ReplayBuffer`.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ai.train.engine.log import is_logging, log

Batch = Mapping[str, Tensor]


class RL:
    """Cross-entropy of a policy against a search's, plus squared error of a value against its target.

    `model(obs)` gives `(logits [B, A], value [B] or [B, 1])`. The batch holds `obs`, `policy [B, A]`, `target [B]` and,
    from prioritised replay, `weight [B]`.

    Args:
        value_weight: of the value's error.
        entropy: a bonus for the policy's entropy.

    Source: Silver et al. 2017, Mastering the game of Go without human knowledge, equation 1 (weight decay is the
    optimiser's).

    >>> model = lambda obs: (obs, obs[:, 0])
    >>> batch = {'obs': torch.zeros(4, 2), 'policy': torch.full((4, 2), 0.5), 'target': torch.ones(4)}
    >>> round(float(RL()(model, batch, 0)), 4)
    1.6931
    """

    def __init__(self, *, value_weight: float = 1.0, entropy: float = 0.0) -> None:
        self.value_weight, self.entropy = value_weight, entropy

    def __call__(self, model: Callable[[Tensor], tuple[Tensor, Tensor]], batch: Batch, step: int) -> Tensor:
        """The mean loss over the batch."""
        logits, value = model(batch["obs"])
        value = widened(value.flatten())
        target = batch["target"].to(value.dtype)
        if value.shape != target.shape:
            raise ValueError(f"the model's value {tuple(value.shape)} and target {tuple(target.shape)} must agree")
        policy_loss = F.cross_entropy(logits, batch["policy"].to(logits.dtype), reduction="none")
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


class Support:
    """Scalars as probabilities over the integers from -size to size, after h(x) = sign(x)(√(abs(x)+1) - 1) + εx.

    Args:
        size: the largest transformed value; S = 2 · size + 1.
        epsilon: keeps the transform invertible.

    Source: Schrittwieser et al. 2020, MuZero, appendix F; Pohlen et al. 2018, proposition A.2.

    >>> support = Support(10)
    >>> x = torch.tensor([-30.0, 0.0, 2.5])
    >>> bool(torch.allclose(support.to_scalar(support.to_probabilities(x).log()), x, atol=1e-3))
    True
    """

    def __init__(self, size: int, epsilon: float = 0.001) -> None:
        if size < 1:
            raise ValueError(f"size must be at least 1, not {size}")
        self.size, self.epsilon = size, epsilon

    def to_probabilities(self, x: Tensor) -> Tensor:
        """Two neighbouring bins share the weight: `[...]` -> `[..., S]`."""
        h = (x.sign() * ((x.abs() + 1).sqrt() - 1) + self.epsilon * x).clamp(-self.size, self.size)
        low = h.floor()
        share = (h - low)[..., None]
        index = (low + self.size).long()[..., None]
        out = torch.zeros(*x.shape, 2 * self.size + 1, device=x.device, dtype=h.dtype)
        out.scatter_(-1, index, 1 - share)
        return out.scatter_add_(-1, (index + 1).clamp_max(2 * self.size), share)

    def to_scalar(self, logits: Tensor) -> Tensor:
        """The expected value: `[..., S]` -> `[...]`."""
        wide = widened(logits)
        bins = torch.arange(-self.size, self.size + 1, device=logits.device, dtype=wide.dtype)
        h = (wide.softmax(-1) * bins).sum(-1)
        eps = self.epsilon
        root = ((1 + 4 * eps * (h.abs() + 1 + eps)).sqrt() - 1) / (2 * eps)
        return h.sign() * (root.square() - 1)


class MuZero:
    """Reward, value and policy along K unrolled steps of a learned model.

    The model has `represent(obs) -> state`, `dynamics(state, action) -> (state, reward)` and
    `predict(state) -> (policy logits [B, A], value)`; reward and value are logits `[B, S]` with a support, else `[B]`.
    The batch is an unrolled draw: `obs [B, ...]` (in `first_only`) or `[B, K+1, ...]`, `action [B, K+1]`,
    `reward [B, K+1]`, `policy [B, K+1, A]`, `target [B, K+1]`, `mask [B, K+1]`, and `weight [B]` if prioritised. Past
    an episode's end the policy is not learnt, and value and reward are learnt as they stand in the draw (0 after a true
    end).

    Args:
        support: of values and rewards; None for squared errors.
        value_weight: of the values' errors.
        obs_unrolled: whether `obs` has the axis of unrolled steps.
        consistency_weight: of the mean squared distance between each unrolled state and the one that the model sees in
            the observation made then, through which no gradient flows; needs `obs_unrolled`.
        priorities: (index, priority) -> None, such as `loader.update_priorities`, given each draw's value error.

    Source: Schrittwieser et al. 2020, Mastering Atari, Go, chess and shogi by planning with a learned model, equation 1
    and appendix G: the K steps' losses scaled by 1/K, the gradient halved at each dynamics call. Consistency: Ye et al.
    2021, Mastering Atari games with limited data, section 4.1, here without its projections.

    Raises:
        ValueError: `consistency_weight` without `obs_unrolled`.
    """

    def __init__(
        self,
        support: Support | None = None,
        *,
        value_weight: float = 1.0,
        obs_unrolled: bool = False,
        consistency_weight: float = 0.0,
        priorities: Callable[[Tensor, Tensor], object] | None = None,
    ) -> None:
        if consistency_weight and not obs_unrolled:
            raise ValueError(f"consistency_weight ({consistency_weight}) needs obs_unrolled=True")
        self.support, self.value_weight, self.obs_unrolled = support, value_weight, obs_unrolled
        self.consistency_weight = consistency_weight
        self.priorities = priorities

    def __call__(self, model: Any, batch: Batch, step: int) -> Tensor:
        """The mean loss over the batch."""
        obs = batch["obs"][:, 0] if self.obs_unrolled else batch["obs"]
        n_unroll = batch["action"].shape[1] - 1
        mask, target, reward = batch["mask"].float(), widened(batch["target"]), widened(batch["reward"])
        state = model.represent(obs)
        policy_loss = reward_loss = value_loss = consistency_loss = torch.zeros(len(target), device=target.device)
        seen = self._seen(model, batch["obs"]) if self.consistency_weight else None
        for k in range(n_unroll + 1):
            scale = 1.0 if k == 0 else 1.0 / n_unroll
            if k > 0:
                state, predicted = model.dynamics(state, batch["action"][:, k - 1])
                reward_loss = reward_loss + scale * self._scalar_loss(predicted, reward[:, k - 1])
                if seen is not None:
                    apart = (widened(state) - seen[:, k - 1]).square().flatten(1).mean(1)
                    consistency_loss = consistency_loss + scale * mask[:, k - 1] * apart
                state = halve_gradient(state)
            logits, value = model.predict(state)
            if k == 0 and self.priorities is not None and torch.is_grad_enabled():
                error = (self._to_scalar(value.detach()) - target[:, 0]).abs()
                self.priorities(batch["index"], error.cpu() + 1e-6)
            wanted = batch["policy"][:, k].to(logits.dtype)
            policy_loss = policy_loss + scale * mask[:, k] * F.cross_entropy(logits, wanted, reduction="none")
            value_loss = value_loss + scale * self._scalar_loss(value, target[:, k])
        if is_logging():
            for name, part in (("policy_loss", policy_loss), ("value_loss", value_loss), ("reward_loss", reward_loss)):
                log(name, part.mean())
            if seen is not None:
                log("consistency_loss", consistency_loss.mean())
        loss = policy_loss + reward_loss + self.value_weight * value_loss + self.consistency_weight * consistency_loss
        return (loss * batch["weight"]).mean() if "weight" in batch else loss.mean()

    @staticmethod
    @torch.no_grad()
    def _seen(model: Any, obs: Tensor) -> Tensor:
        """Returns the states that the model sees in the later observations, `[B, K, ...]`."""
        later = obs[:, 1:]
        states = widened(model.represent(later.flatten(0, 1)))
        return states.reshape(*later.shape[:2], *states.shape[1:])

    def _scalar_loss(self, predicted: Tensor, target: Tensor) -> Tensor:
        predicted = widened(predicted)
        target = target.to(predicted.dtype)
        if self.support is None:
            return (predicted.flatten() - target).square()
        return F.cross_entropy(predicted, self.support.to_probabilities(target), reduction="none")

    def _to_scalar(self, value: Tensor) -> Tensor:
        return widened(value.flatten()) if self.support is None else self.support.to_scalar(value)


def widened(x: Tensor) -> Tensor:
    """At least float32: half precision would round what is summed and compared.

    >>> [widened(torch.ones((), dtype=dtype)).dtype for dtype in (torch.bfloat16, torch.float64)]
    [torch.float32, torch.float64]
    """
    return x.to(torch.promote_types(x.dtype, torch.float32))


def halve_gradient(x: Tensor) -> Tensor:
    """The same values, half the gradient.

    >>> x = torch.ones(1, requires_grad=True)
    >>> halve_gradient(x).sum().backward()
    >>> float(x.grad)
    0.5
    """
    return x * 0.5 + x.detach() * 0.5
