"""Deep Q-learning, with its later improvements as options.

Letters: B batch, A actions, Q quantiles, S returns of a support. Batches are draws of `ai.data.ReplayBuffer(n_step=…)`
without values.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ai.model.arguments import check_real, check_whole
from ai.model.wide import widened
from ai.train.engine.log import log
from ai.train.engine.update import begins_update
from ai.train.rl.batch_checks import check_draw, check_rows
from ai.train.rl.beyond import projected, with_beyond


class DQN:
    """The Huber error of the taken action's value against rewards and what a lagged network sees beyond.

    `model.q` is an `ai.model.Lagged` network from observations to values `[B, A]`, to quantiles `[B, A, Q]`, or with a
    `support` to logits `[B, A, S]`; the loss lets its copy follow. The batch holds `obs`, `action`, `n_step_reward`,
    `next_obs` and `next_discount`, from prioritised replay `weight` and `index`, and where there are illegal actions
    `next_legal`, all false at most where `next_discount` is 0.

    Args:
        follow_every: updates between two copies to the lagged network; with `tau` below 1 usually 1.
        tau: share of the way that it follows.
        double: the network chooses the next action and its lagged copy judges it; else the copy does both.
        huber: where the error's square becomes a line; not used with a `support`.
        support: None, or (least, greatest) return; of S evenly spaced from one to the other the network then gives
            chances, as logits, and what lies beyond counts as the end. The model acts by the mean,
            `q.softmax(2) @ torch.linspace(least, greatest, S)`.
        priorities: (index, priority) -> None, such as `loader.update_priorities`, given each draw's error, with a
            `support` its divergence; both lie where the batch does.

    Several steps are the buffer's (`n_step`), duelling heads the model's (`m.duel`). With quantiles the loss is
    that of QR-DQN, with a `support` that of C51; both combine with the rest.

    Source: Mnih et al. 2015, Human-level control through deep reinforcement learning, algorithm 1. `double`: van
    Hasselt, Guez and Silver 2016, Deep reinforcement learning with double Q-learning, equation 4. Quantiles: Dabney et
    al. 2018, Distributional reinforcement learning with quantile regression, equation 10 and algorithm 1. `tau`:
    Lillicrap et al. 2016. `support`: Bellemare, Dabney and Munos 2017, A distributional perspective on reinforcement
    learning, algorithm 1; its priorities: Hessel et al. 2018, Rainbow, section 3. Deviation: errors are Huber's, where
    Mnih et al. clip the derivative, which is the same.

    >>> import ai.model as m
    >>> class Net(m.Model):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.q = m.Lagged(m.fc(2, 3))
    >>> batch = {'obs': torch.zeros(4, 2), 'action': torch.zeros(4, dtype=torch.long), 'n_step_reward': torch.ones(4),
    ...          'next_obs': torch.zeros(4, 2), 'next_discount': torch.zeros(4)}
    >>> float(DQN()(Net().init(seed=0), batch, 0).detach())  # values are 0: half the square of 1
    0.5
    """

    def __init__(
        self,
        *,
        follow_every: int = 1000,
        tau: float = 1.0,
        double: bool = True,
        huber: float = 1.0,
        support: tuple[float, float] | None = None,
        priorities: Callable[[Tensor, Tensor], object] | None = None,
    ) -> None:
        check_whole(follow_every=follow_every)
        check_real(tau=tau, huber=huber)
        if follow_every < 1:
            raise ValueError(f"follow_every must be at least 1, got {follow_every}")
        if not 0 < tau <= 1:
            raise ValueError(f"tau must lie in (0, 1], got {tau}")
        if not huber > 0:
            raise ValueError(f"huber must be positive, got {huber}")
        self.follow_every, self.tau, self.double, self.huber = follow_every, tau, double, huber
        if support is not None:
            two = isinstance(support, Sequence) and len(support) == 2 and None not in support
            check_real(**({f"support[{at}]": end for at, end in enumerate(support)} if two else {}))
            if not two or not -math.inf < support[0] < support[1] < math.inf:
                raise ValueError(f"support must be (least, greatest), finite numbers, got {support}")
        self.support, self.priorities = support, priorities

    def __call__(self, model: Any, batch: Mapping[str, Tensor], step: int) -> Tensor:
        """The mean loss over the batch."""
        if step % self.follow_every == 0 and torch.is_grad_enabled() and begins_update():
            model.q.follow(self.tau)
        check_draw(batch)
        if "legal" in batch and "next_legal" not in batch:
            raise ValueError("a batch with legal must hold next_legal: give ReplayBuffer next_keys=('obs', 'legal')")
        q = widened(model.q(batch["obs"]))
        if q.ndim not in (2, 3):
            raise ValueError(f"model.q must give values (B, A) or quantiles (B, A, Q), got {tuple(q.shape)}")
        if self.support is not None and (q.ndim == 2 or q.shape[2] < 2):
            raise ValueError(f"with a support model.q must give logits (B, A, S), S at least 2, got {tuple(q.shape)}")
        check_rows(batch, ("action", "n_step_reward", "next_discount", "weight"), q.shape[:1])
        if batch["action"].is_floating_point():
            raise TypeError(f"action must be whole numbers, got {batch['action'].dtype}")
        taken = _of(q, batch["action"])
        with torch.no_grad():
            goal = self._goal(model, batch)
        if q.ndim == 2:
            loss = F.huber_loss(taken, goal, reduction="none", delta=self.huber)
        elif self.support is None:
            loss = quantile_huber(taken, goal, self.huber)
        else:
            loss = -(goal * taken.log_softmax(1)).sum(1)
        log("q", lambda: self._means(taken).mean())
        log("td_error", lambda: self._error(taken, goal, loss).mean())
        if self.priorities is not None and torch.is_grad_enabled():
            self.priorities(batch["index"], self._error(taken, goal, loss) + 1e-6)
        return (loss * batch["weight"]).mean() if "weight" in batch else loss.mean()

    @torch.no_grad()
    def _error(self, taken: Tensor, goal: Tensor, loss: Tensor) -> Tensor:
        """How far from its goal each row is: of values or their means, of chances the divergence, at least 0; `[B]`."""
        if taken.ndim == 1:
            return (taken - goal).abs()
        if self.support is None:
            return (taken.mean(1) - goal.mean(1)).abs()
        return (loss + torch.xlogy(goal, goal).sum(1)).abs()

    def _goal(self, model: Any, batch: Mapping[str, Tensor]) -> Tensor:
        """Rewards and what is beyond, by the best next action: value `[B]`, quantiles `[B, Q]` or chances `[B, S]`."""
        beyond = widened(model.q.target(batch["next_obs"]))
        judged = widened(model.q(batch["next_obs"])) if self.double else beyond
        judged = judged if judged.ndim == 2 else self._means(judged)
        if "next_legal" in batch:
            check_rows(batch, ("next_legal",), judged.shape)
            legal = batch["next_legal"].bool()
            judged = judged.masked_fill(~legal, torch.finfo(judged.dtype).min)
            beyond = _none_where_nothing_is_legal(beyond, legal, batch["next_discount"])
        beyond = judged.amax(1) if judged is beyond else _of(beyond, judged.argmax(1))
        if self.support is None:
            return with_beyond(batch, beyond)
        returns = self._returns(beyond)
        later = with_beyond(batch, returns.expand_as(beyond))
        log("beyond_support", lambda: ((later < returns[0]) | (later > returns[-1])).to(later.dtype).mean())
        # After a true end all are the same, whatever their chances.
        chance = torch.where((batch["next_discount"] == 0)[:, None], 1 / len(returns), beyond.softmax(1))
        return projected(chance, later, returns)

    def _means(self, q: Tensor) -> Tensor:
        """Of the last axis' quantiles or logits; of a value itself."""
        return q.mean(-1) if self.support is None else q.softmax(-1) @ self._returns(q)

    def _returns(self, like: Tensor) -> Tensor:
        """The support of the last axis: `[S]`."""
        assert self.support is not None
        return torch.linspace(*self.support, like.shape[-1], device=like.device, dtype=like.dtype)


def _none_where_nothing_is_legal(beyond: Tensor, legal: Tensor, discount: Tensor) -> Tensor:
    """Values `[B, A, …]` beyond; on a GPU, which is not waited for, NaN where an episode goes on without an action.

    Raises:
        ValueError: elsewhere, there is such a row.
    """
    stuck = ~legal.any(1) & (discount != 0)
    if stuck.is_cuda:
        return beyond.masked_fill(stuck.view(-1, *(1,) * (beyond.ndim - 1)), torch.nan)
    if bool(stuck.any()):
        raise ValueError(
            "next_legal must allow an action wherever next_discount is not 0, "
            f"row {int(stuck.nonzero()[0, 0])} allows none: what was cut off or goes on shows what may be done there"
        )
    return beyond


def _of(q: Tensor, action: Tensor) -> Tensor:
    """What belongs to each row's action: `[B, A, …]` to `[B, …]`; bytes are numbers here, not a mask."""
    index = action.long()[:, None]
    if q.ndim > 2:
        index = index[:, :, None].expand(-1, 1, q.shape[2])
    return q.gather(1, index).squeeze(1)


def quantile_huber(predicted: Tensor, goal: Tensor, huber: float = 1.0) -> Tensor:
    """The quantile Huber loss of each row: `[B, Q]` and `[B, Q']` to `[B]`.

    >>> quantile_huber(torch.tensor([[0.0, 0.0]]), torch.tensor([[2.0]]))  # at quantiles 1/4 and 3/4: 1.5 each
    tensor([1.5000])
    """
    n = predicted.shape[1]
    level = (torch.arange(n, device=predicted.device, dtype=predicted.dtype) + 0.5) / n
    apart = goal[:, None, :] - predicted[:, :, None]  # [B, Q, Q']
    size = F.huber_loss(apart, torch.zeros_like(apart), reduction="none", delta=huber)
    return ((level[:, None] - (apart.detach() < 0).to(apart.dtype)).abs() * size / huber).mean(2).sum(1)
