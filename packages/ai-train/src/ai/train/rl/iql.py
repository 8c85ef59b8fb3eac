"""Implicit Q-learning: a policy from what others did and was stored, and from no other action.

Letters: B batch. Batches are draws of `ai.data.ReplayBuffer(n_step=…)` without values, such as `ai.data.Draws`.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ai.model.arguments import check_real
from ai.model.wide import widened
from ai.train.engine.log import log
from ai.train.engine.update import begins_update
from ai.train.rl.batch_checks import check_draw, check_rows, check_weights
from ai.train.rl.beyond import with_beyond


class IQL:
    """The critics' squared error, the value's expectile error, and the policy's likelihood of what turned out well.

    The model has `critics`, an `ai.model.Lagged` network `(obs, action) -> [2, B]`; `value(obs) -> [B]`; and
    `actor(obs)`, a policy with `log_prob`. One optimiser serves all three: each part of the loss gives gradients to its
    own parameters alone. The batch holds `obs`, `action`, `n_step_reward`, `next_obs` and `next_discount`, from
    prioritised replay `weight`, which weighs all three.

    Args:
        expectile: of the actions' values that the value is: 0.5 is their mean, near 1 their best.
        temperature: how much more an action counts for being better than the value; 0 is imitation.
        tau: share of the way that the lagged critics follow at each update.
        most: how much an action counts at most.

    Source: Kostrikov, Nair and Levine 2021, Offline reinforcement learning with implicit Q-learning, equations 5 to 7,
    and appendix B for `most`. Deviation: all three losses are of the same parameters, where the authors update one
    after the other.

    >>> import ai.model as m
    >>> class Critics(torch.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.net = m.fc(4, 2)
    ...     def forward(self, obs, action):
    ...         return self.net(torch.cat([obs, action[:, None]], 1)).T
    >>> class Net(m.Model):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.body, self.worth, self.critics = m.fc(3, 2), m.fc(3, 1), m.Lagged(Critics())
    ...     def actor(self, obs):
    ...         return m.Categorical(self.body(obs))
    ...     def value(self, obs):
    ...         return self.worth(obs)[:, 0]
    >>> batch = {'obs': torch.zeros(4, 3), 'action': torch.zeros(4, dtype=torch.long), 'n_step_reward': torch.zeros(4),
    ...          'next_obs': torch.zeros(4, 3), 'next_discount': torch.zeros(4)}
    >>> round(float(IQL()(Net().init(seed=0), batch, 0).detach()), 4)  # all values are 0: the policy's -log 1/2 is left
    0.6931
    """

    def __init__(
        self, *, expectile: float = 0.7, temperature: float = 3.0, tau: float = 0.005, most: float = 100.0
    ) -> None:
        check_real(expectile=expectile, temperature=temperature, tau=tau, most=most)
        check_weights(temperature=temperature)
        if not 0 < expectile < 1:
            raise ValueError(f"expectile must lie in (0, 1), got {expectile}")
        if not temperature >= 0:
            raise ValueError(f"temperature must be at least 0, got {temperature}")
        if not 0 < tau <= 1:
            raise ValueError(f"tau must lie in (0, 1], got {tau}")
        if not most > 0:
            raise ValueError(f"most must be positive, got {most}")
        self.expectile, self.temperature, self.tau, self.most = expectile, temperature, tau, most

    def __call__(self, model: Any, batch: Mapping[str, Tensor], step: int) -> Tensor:
        """The sum of the three mean losses over the batch."""
        if torch.is_grad_enabled() and begins_update():
            model.critics.follow(self.tau)
        check_draw(batch)
        obs, action = batch["obs"], batch["action"]
        values, value = widened(model.critics(obs, action)), widened(model.value(obs))
        rows = batch["n_step_reward"].shape
        if values.ndim != 2 or values.shape[1:] != rows or value.shape != rows:
            raise ValueError(
                f"critics must give (2, B) and value (B,) with rewards of shape (B,), got {tuple(values.shape)}, "
                f"{tuple(value.shape)} and {tuple(rows)}"
            )
        check_rows(batch, ("next_discount", "weight"), value.shape)
        with torch.no_grad():
            goal = with_beyond(batch, widened(model.value(batch["next_obs"])))
            judged = widened(model.critics.target(obs, action)).min(0).values
        weight = batch.get("weight", 1.0)
        critic_loss = (weight * (values - goal).square()).mean(1).sum()
        better = judged - value
        share = torch.where(better.detach() < 0, 1 - self.expectile, self.expectile)
        value_loss = (weight * share * better.square()).mean()
        counts = (self.temperature * better.detach()).exp().clamp_max(self.most)
        log_prob = model.actor(obs).log_prob(action)
        check_rows({"the actor's log_prob": log_prob}, ("the actor's log_prob",), value.shape)
        actor_loss = -(weight * counts * log_prob).mean()
        log("critic_loss", critic_loss)
        log("value_loss", value_loss)
        log("actor_loss", actor_loss)
        log("advantage", lambda: better.mean())
        log("q", lambda: values.mean())
        loss: Tensor = critic_loss + value_loss + actor_loss
        return loss
