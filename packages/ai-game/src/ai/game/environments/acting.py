"""How a model acts: from what is seen to actions, and whatever else is to be kept of the moment."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ai.game.arguments import check_amount, check_count, check_flag
from ai.model.policy import check_acts

Act: TypeAlias = Callable[[Any, Mapping[str, Tensor], torch.Generator | None, int], Mapping[str, Tensor]]
"""`act(model, seen, generator, n_steps)` returns tensors `[N, …]` by key: `action`, and what else an episode is to
hold, such as `log_prob` and `value`. `seen` has `obs`, and `legal`, `to_play`, `memory` where there are any; `n_steps`
counts the steps taken so far. With a memory it also returns the next `memory`."""


class ByPolicy:
    """Samples from the policy of a model that gives `(policy, value [N])` for `obs`.

    Where `legal` is seen, among the legal actions. With a memory the model is called as `model(obs, memory)` with an
    axis of time, `[N, 1, …]`, and gives `(policy, value, memory)`.

    Args:
        greedy: takes the policy's mode instead.

    >>> import ai.model as m
    >>> model = lambda obs: (m.Categorical(obs), obs.sum(1))
    >>> sorted(ByPolicy(greedy=True)(model, {"obs": torch.eye(3)}, None, 0))
    ['action', 'log_prob', 'value']
    """

    def __init__(self, *, greedy: bool = False) -> None:
        check_flag(greedy=greedy)
        self.greedy = greedy

    def __call__(
        self, model: Any, seen: Mapping[str, Tensor], generator: torch.Generator | None, n_steps: int
    ) -> dict[str, Tensor]:
        """Returns `action`, `log_prob`, `value`, and `memory` where there is one."""
        if "memory" not in seen:
            answer = model(seen["obs"])
            check_acts(answer)
            policy, value = answer
            policy = policy.among(seen["legal"]) if "legal" in seen else policy
            action = policy.mode() if self.greedy else policy.sample(generator)
            return {"action": action, "log_prob": policy.log_prob(action), "value": value}
        answer = model(seen["obs"][:, None], seen["memory"])
        check_acts(answer, ("value", "memory"))
        policy, value, memory = answer
        policy = policy.among(seen["legal"][:, None]) if "legal" in seen else policy
        action = policy.mode() if self.greedy else policy.sample(generator)
        log_prob = policy.log_prob(action)
        return {"action": action[:, 0], "log_prob": log_prob[:, 0], "value": value[:, 0], "memory": memory}


class EpsilonGreedy:
    """Takes the best of the values `model(obs) -> [N, A]`, or with a falling chance any action.

    Args:
        first: the chance at the start.
        last: the chance from `steps` on.
        steps: over which it falls in a straight line; each worker of a loader counts its own.

    Source: Mnih et al. 2015, Human-level control through deep reinforcement learning, methods.

    >>> act = EpsilonGreedy(steps=100, last=0.0)
    >>> act(lambda obs: obs, {"obs": torch.eye(2)}, None, 100)["action"].tolist()
    [0, 1]
    """

    def __init__(self, *, steps: int, first: float = 1.0, last: float = 0.05) -> None:
        check_count(1, steps=steps)
        check_amount(0, 1, first=first, last=last)
        self.first, self.last, self.steps = first, last, steps

    def chance(self, n_steps: int) -> float:
        """Returns the chance of any action after so many steps."""
        return self.first + (self.last - self.first) * min(1.0, n_steps / self.steps)

    def __call__(
        self, model: Any, seen: Mapping[str, Tensor], generator: torch.Generator | None, n_steps: int
    ) -> dict[str, Tensor]:
        """Returns `action`."""
        values = model(seen["obs"])
        if not isinstance(values, Tensor) or values.ndim != 2:
            got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise TypeError(f"the model must give the values of actions, a tensor (N, A), got {got}")
        anything = torch.rand(values.shape, generator=generator, device=values.device)
        if "legal" in seen:
            lowest = torch.finfo(values.dtype).min
            legal = seen["legal"].bool()
            values = torch.where(legal, values, lowest)
            anything = torch.where(legal, anything, -1)
        explores = torch.rand(len(values), generator=generator, device=values.device) < self.chance(n_steps)
        return {"action": torch.where(explores, anything.argmax(1), values.argmax(1))}


class ByActor:
    """Samples from `model.actor(obs)`, a policy in [-1, 1] as of SAC.

    Args:
        random_steps: taken uniformly in [-1, 1] at first, by each worker of a loader.
        greedy: takes the policy's mode instead.

    >>> import ai.model as m
    >>> class Actor(torch.nn.Module):
    ...     def actor(self, obs):
    ...         return m.SquashedGaussian(obs, obs)
    >>> ByActor(random_steps=10)(Actor(), {"obs": torch.zeros(4, 2)}, None, 0)["action"].shape
    torch.Size([4, 2])
    """

    def __init__(self, *, random_steps: int = 0, greedy: bool = False) -> None:
        check_count(0, random_steps=random_steps)
        check_flag(greedy=greedy)
        self.random_steps, self.greedy = random_steps, greedy

    def __call__(
        self, model: Any, seen: Mapping[str, Tensor], generator: torch.Generator | None, n_steps: int
    ) -> dict[str, Tensor]:
        """Returns `action`."""
        policy = model.actor(seen["obs"])
        if self.greedy:
            return {"action": policy.mode()}
        if n_steps < self.random_steps:
            mean = policy.mode()
            return {"action": torch.rand(mean.shape, generator=generator, device=mean.device) * 2 - 1}
        return {"action": policy.sample(generator)}


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Puts a model in evaluation mode, and afterwards each of its modules back in its own."""
    was_training = [module for module in model.modules() if module.training]
    if was_training:
        model.eval()
    try:
        yield
    finally:
        for module in was_training:
            module.training = True


def to_numpy(said: Mapping[str, Tensor]) -> dict[str, NDArray[Any]]:
    """Returns what `act` gave as arrays; bfloat16, which numpy has not, as float32.

    >>> to_numpy({"value": torch.ones(2, dtype=torch.bfloat16)})["value"].dtype
    dtype('float32')
    """
    whole = {key: value.float() if value.dtype == torch.bfloat16 else value for key, value in said.items()}
    return {key: value.cpu().numpy() for key, value in whole.items()}


def device_of(model: nn.Module) -> torch.device:
    """Returns where a model's parameters lie; the CPU where it has none."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))
