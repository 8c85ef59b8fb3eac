"""Soft actor-critic: critics, actor and temperature in one loss.

Letters: B batch, A axes of an action. Batches are draws of `ai.data.ReplayBuffer(n_step=…)` without values.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ai.model.arguments import check_real
from ai.model.wide import widened
from ai.train.engine.log import log
from ai.train.engine.update import begins_update
from ai.train.rl.batch_checks import check_draw, check_rows, check_weights
from ai.train.rl.beyond import with_beyond


class SAC:
    """The critics' squared error, the actor's value less its entropy, and a temperature that holds the entropy.

    The model has `actor(obs)`, a policy with `sample_with_log_prob` such as `ai.model.SquashedGaussian`; `critics`, an
    `ai.model.Lagged` network `(obs, action) -> [2, B]`; and the parameter `log_alpha`. One optimiser serves all three:
    each part of the loss gives gradients to its own parameters alone. The batch holds `obs`, `action`,
    `n_step_reward`, `next_obs` and `next_discount`, from prioritised replay `weight`.

    Args:
        tau: share of the way that the lagged critics follow at each update.
        entropy: what the policy's entropy is held at; None for -A.
        alpha: a fixed temperature; `log_alpha` is then neither used nor needed.

    Source: Haarnoja et al. 2018, Soft actor-critic algorithms and applications, equations 5, 7 and 18, and appendix D.
    Deviations: the temperature's loss is log α · (entropy - wanted), not α · (…), as in the authors' code; all three
    losses are of the same batch and the same parameters, where the authors update one after the other.

    >>> import ai.model as m
    >>> class Net(m.Model):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.body, self.log_alpha = m.fc(3, 2), nn.Parameter(torch.zeros(()))
    ...         self.critics = m.Lagged(Critics())
    ...     def actor(self, obs):
    ...         return m.SquashedGaussian(*self.body(obs).chunk(2, 1))
    >>> class Critics(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.net = m.fc(4, 2)
    ...     def forward(self, obs, action):
    ...         return self.net(torch.cat([obs, action], 1)).T
    >>> batch = {'obs': torch.zeros(8, 3), 'action': torch.zeros(8, 1), 'n_step_reward': torch.ones(8),
    ...          'next_obs': torch.zeros(8, 3), 'next_discount': torch.full((8,), 0.99)}
    >>> SAC()(Net().init(seed=0), batch, 0).shape
    torch.Size([])
    """

    def __init__(self, *, tau: float = 0.005, entropy: float | None = None, alpha: float | None = None) -> None:
        check_real(tau=tau)
        check_real(or_none=True, entropy=entropy, alpha=alpha)
        check_weights(entropy=entropy, alpha=alpha)
        if not 0 < tau <= 1:
            raise ValueError(f"tau must lie in (0, 1], got {tau}")
        if alpha is not None and alpha < 0:
            raise ValueError(f"alpha must be at least 0 or None, got {alpha}")
        self.tau, self.entropy, self.alpha = tau, entropy, alpha

    def __call__(self, model: Any, batch: Mapping[str, Tensor], step: int) -> Tensor:
        """The sum of the three mean losses over the batch."""
        if torch.is_grad_enabled() and begins_update():
            model.critics.follow(self.tau)
        check_draw(batch)
        obs, after = batch["obs"], batch["next_obs"]
        alpha: Any = model.log_alpha.detach().exp() if self.alpha is None else self.alpha
        values = widened(model.critics(obs, batch["action"]))
        if values.ndim != 2 or values.shape[1:] != batch["n_step_reward"].shape:
            raise ValueError(
                f"critics must give (2, B) with rewards of shape (B,), got {tuple(values.shape)} and "
                f"{tuple(batch['n_step_reward'].shape)}"
            )
        check_rows(batch, ("next_discount", "weight"), batch["n_step_reward"].shape)
        with torch.no_grad():
            action, log_prob = model.actor(after).sample_with_log_prob()
            check_rows({"the actor's log_prob": log_prob}, ("the actor's log_prob",), batch["n_step_reward"].shape)
            beyond = widened(model.critics.target(after, action)).min(0).values - alpha * log_prob
            goal = with_beyond(batch, beyond)
        weight = batch.get("weight", 1.0)
        critic_loss = (weight * 0.5 * (values - goal).square()).mean(1).sum()
        action, log_prob = model.actor(obs).sample_with_log_prob()
        with frozen(model.critics):
            actor_loss = (alpha * log_prob - widened(model.critics(obs, action)).min(0).values).mean()
        loss: Tensor = critic_loss + actor_loss
        log("critic_loss", critic_loss)
        log("actor_loss", actor_loss)
        log("entropy", lambda: -log_prob.mean())
        log("q", lambda: values.mean())
        if self.alpha is None:
            wanted = -float(action.shape[-1]) if self.entropy is None else self.entropy
            loss = loss - (model.log_alpha * (log_prob.detach() + wanted)).mean()
            log("alpha", alpha)
        return loss


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """What is computed inside gives the module's parameters no gradient; what flows through it goes on."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    for p in parameters:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in parameters:
            p.requires_grad_(True)
