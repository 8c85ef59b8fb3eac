"""Rewards and what a network sees beyond them, put together.

Letters: B batch, S returns of a support. Batches are draws of `ai.data.ReplayBuffer(n_step=…)` without values.
"""

from collections.abc import Mapping

from torch import Tensor


def with_beyond(batch: Mapping[str, Tensor], beyond: Tensor) -> Tensor:
    """Rewards plus the discounted `beyond` `[B, …]`; nothing beyond a true end, whatever a network says of it.

    >>> import torch
    >>> batch = {"n_step_reward": torch.ones(2), "next_discount": torch.tensor([0.5, 0.0])}
    >>> with_beyond(batch, torch.tensor([4.0, torch.nan]))
    tensor([3., 1.])
    """
    reward, discount = batch["n_step_reward"], batch["next_discount"]
    if beyond.ndim > 1:
        reward, discount = (column.reshape(-1, *(1,) * (beyond.ndim - 1)) for column in (reward, discount))
    return reward + (discount * beyond).masked_fill(discount == 0, 0)


def projected(chance: Tensor, returns: Tensor, support: Tensor) -> Tensor:
    """The chances `[B, S]` of `returns` `[B, S]`, each shared by the two of an even `support` `[S]` around it.

    What lies beyond the support counts as its end.

    Source: Bellemare, Dabney and Munos 2017, A distributional perspective on reinforcement learning, equation 7.

    >>> import torch
    >>> projected(torch.tensor([[0.5, 0.5]]), torch.tensor([[0.25, 9.0]]), torch.tensor([0.0, 1.0]))
    tensor([[0.3750, 0.6250]])
    """
    apart = returns.clamp(support[0], support[-1])[:, :, None] - support  # [B, S, S]
    share = (1 - (apart / (support[1] - support[0])).abs()).clamp_min(0)
    return (chance[:, :, None] * share).sum(1)
