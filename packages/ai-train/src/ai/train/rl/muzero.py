"""A model of the rules, learnt along unrolled steps with a policy and a value.

Letters: B batch, A actions, K steps unrolled, S bins of a support. Batches are draws of `ai.data.ReplayBuffer`.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ai.model.arguments import check_real
from ai.model.policy import Categorical
from ai.model.wide import widened
from ai.train.engine.log import is_logging, log
from ai.train.rl.batch_checks import check_weights
from ai.train.rl.support import Support
from ai.train.rl.uncounted import policy_cross_entropy, where_counts


class MuZero:
    """Reward, value and policy along K unrolled steps of a learned model.

    The model has `represent(obs) -> state`, `dynamics(state, action) -> (state, reward)` and
    `predict(state) -> (policy logits [B, A], value)`; reward and value are logits `[B, S]` with a support, else `[B]`.
    The batch is an unrolled draw: `obs [B, ...]` (in `first_only`) or `[B, K+1, ...]`, `action [B, K+1]`,
    `reward [B, K+1]`, `policy [B, K+1, A]`, `target [B, K+1]`, `mask [B, K+1]`, and `weight [B]` if prioritised. Past
    an episode's end the policy is not learnt, and value and reward are learnt as they stand in the draw (0 after a true
    end).

    A model whose luck is learnt too (stochastic MuZero) has `chance_code(obs, following) -> scores [B, C]`, which tells
    by the highest of C what came about between two observations; `afterstate_dynamics(state, action) -> afterstate` and
    `afterstate_prediction(afterstate) -> (logits of codes [B, C], value)`; and its `dynamics(afterstate, code)` is
    given codes as ones and zeros `[B, C]`, through which the gradient goes straight to the scores. Codes are learnt
    where a step was taken, and past a true end, as what comes about where nothing does. It needs `obs_unrolled`.

    Where actions are sampled, `predict` gives a policy of `ai.model` in place of logits; then the batch also has the
    actions that the search sampled, `sampled [B, K+1, A, ...]`, which `policy` weighs.

    Args:
        support: of values and rewards; None for squared errors.
        value_weight: of the values' errors.
        entropy_weight: of the policy's entropy, which it is paid for; keeps one that is sampled from growing narrow
            before the values are right.
        obs_unrolled: whether `obs` has the axis of unrolled steps.
        commitment_weight: of the squared distance between a code's scores and the code, where luck is learnt.
        consistency_weight: of the mean squared distance between each unrolled state and the one that the model sees in
            the observation made then, through which no gradient flows; needs `obs_unrolled`.
        priorities: (index, priority) -> None, such as `loader.update_priorities`, given each draw's value error; both
            lie where the batch does.

    Source: Schrittwieser et al. 2020, Mastering Atari, Go, chess and shogi by planning with a learned model, equation 1
    and appendix G: the K steps' losses scaled by 1/K, the gradient halved at each dynamics call. Consistency: Ye et al.
    2021, Mastering Atari games with limited data, section 4.1, here without its projections. Sampled actions: Hubert et
    al. 2021, Learning and planning in complex action spaces, section 4.3: the divergence from the improved policy,
    over its samples. Luck: Antonoglou et al. 2022, Planning in stochastic environments with a learned model, equations
    6 and 7, section 4.3: codes are the corners of a simplex, chosen by the highest score, straight through.

    Raises:
        ValueError: `consistency_weight`, or a model that learns luck, without `obs_unrolled`.
    """

    def __init__(
        self,
        support: Support | None = None,
        *,
        value_weight: float = 1.0,
        entropy_weight: float = 0.0,
        obs_unrolled: bool = False,
        commitment_weight: float = 1.0,
        consistency_weight: float = 0.0,
        priorities: Callable[[Tensor, Tensor], object] | None = None,
    ) -> None:
        weights = {"value_weight": value_weight, "entropy_weight": entropy_weight}
        weights |= {"commitment_weight": commitment_weight, "consistency_weight": consistency_weight}
        check_real(**weights)
        check_weights(**weights)
        if consistency_weight and not obs_unrolled:
            raise ValueError(f"consistency_weight ({consistency_weight}) needs obs_unrolled=True")
        self.support, self.value_weight, self.obs_unrolled = support, value_weight, obs_unrolled
        self.consistency_weight, self.entropy_weight = consistency_weight, entropy_weight
        self.commitment_weight = commitment_weight
        self.priorities = priorities

    def __call__(self, model: Any, batch: Mapping[str, Tensor], step: int) -> Tensor:
        """The mean loss over the batch."""
        obs = batch["obs"][:, 0] if self.obs_unrolled else batch["obs"]
        if (lucky := hasattr(model, "chance_code")) and not self.obs_unrolled:
            raise ValueError(
                "obs_unrolled must be True for a model with chance_code, which is asked of two observations"
            )
        n_unroll = batch["action"].shape[1] - 1
        mask, target, reward = batch["mask"].float(), widened(batch["target"]), widened(batch["reward"])
        state = model.represent(obs)
        policy_loss = reward_loss = value_loss = torch.zeros(len(target), device=target.device)
        chance_loss = consistency_loss = policy_loss
        seen = self._seen(model, batch["obs"]) if self.consistency_weight else None
        for k in range(n_unroll + 1):
            scale = 1.0 if k == 0 else 1.0 / n_unroll
            if k > 0:
                if lucky:
                    state, predicted, worth, told = self._through_luck(model, state, batch, k)
                    value_loss = value_loss + scale * self._scalar_loss(worth, target[:, k - 1])
                    # past a true end nothing comes about, which a search that goes on there has to foresee as well
                    known = torch.where(target[:, k - 1] == 0, 1.0, mask[:, k - 1])
                    chance_loss = chance_loss + scale * known * told
                else:
                    state, predicted = model.dynamics(state, batch["action"][:, k - 1])
                reward_loss = reward_loss + scale * self._scalar_loss(predicted, reward[:, k - 1])
                if seen is not None:
                    taken = batch["mask"][:, k - 1]
                    apart = where_counts(taken, widened(state) - seen[:, k - 1]).square().flatten(1).mean(1)
                    consistency_loss = consistency_loss + scale * apart
                state = halve_gradient(state)
            policy, value = model.predict(state)
            if k == 0 and self.priorities is not None and torch.is_grad_enabled():
                error = (self._to_scalar(value.detach()) - target[:, 0]).abs()
                self.priorities(batch["index"], error + 1e-6)
            policy_loss = policy_loss + scale * self._policy_loss(policy, batch, k)
            value_loss = value_loss + scale * self._scalar_loss(value, target[:, k])
        if is_logging():
            for name, part in (("policy_loss", policy_loss), ("value_loss", value_loss), ("reward_loss", reward_loss)):
                log(name, part.mean())
            if lucky:
                log("chance_loss", chance_loss.mean())
            if seen is not None:
                log("consistency_loss", consistency_loss.mean())
        loss = policy_loss + reward_loss + self.value_weight * value_loss + chance_loss
        loss = loss + self.consistency_weight * consistency_loss
        return (loss * batch["weight"]).mean() if "weight" in batch else loss.mean()

    def _through_luck(
        self, model: Any, state: Tensor, batch: Mapping[str, Tensor], k: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns state and reward after `k` steps, what the afterstate is worth, and the loss of its luck, `[B]`."""
        obs = batch["obs"]
        afterstate = model.afterstate_dynamics(state, batch["action"][:, k - 1])
        foreseen, worth = model.afterstate_prediction(afterstate)
        scores = widened(model.chance_code(obs[:, k - 1], obs[:, k]))
        which = scores.argmax(1)
        code = F.one_hot(which, scores.shape[1]).to(scores.dtype)
        loss = F.cross_entropy(widened(foreseen), which, reduction="none")
        loss = loss + self.commitment_weight * (scores - code).square().sum(1)
        straight = code + scores - scores.detach()
        following, reward = model.dynamics(afterstate, straight.to(state.dtype))
        return following, reward, worth, loss

    def _policy_loss(self, policy: Any, batch: Mapping[str, Tensor], k: int) -> Tensor:
        """Returns how unlike the search's policy after `k` steps one is, less what its entropy is paid, `[B]`.

        0 where no step was taken.
        """
        taken = batch["mask"][:, k]
        wanted = where_counts(taken, batch["policy"][:, k])
        if isinstance(policy, Tensor):
            loss = policy_cross_entropy(policy, wanted)
            policy = Categorical(policy)
        elif not hasattr(policy, "log_prob"):
            raise TypeError(f"predict must give logits or a policy of ai.model, got {type(policy).__name__}")
        elif "sampled" not in batch:
            raise ValueError(f"batch must have 'sampled', the actions that 'policy' weighs, got {sorted(batch)}")
        else:
            sampled = where_counts(taken, batch["sampled"][:, k])
            log_prob = policy.log_prob(sampled.transpose(0, 1)).T
            # A weight of 0 asks nothing, of -inf neither.
            loss = -torch.where(wanted != 0, wanted * log_prob, 0.0).sum(1)
        if not self.entropy_weight:
            return loss
        return loss - self.entropy_weight * where_counts(taken, policy.entropy())

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


def halve_gradient(x: Tensor) -> Tensor:
    """The same values, half the gradient.

    >>> x = torch.ones(1, requires_grad=True)
    >>> halve_gradient(x).sum().backward()
    >>> float(x.grad)
    0.5
    """
    return x * 0.5 + x.detach() * 0.5
