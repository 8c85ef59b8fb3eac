"""How a model acts: from what is seen to actions, and whatever else is to be kept of the moment."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ai.game import draws
from ai.game.arguments import check_amount, check_count, check_flag
from ai.game.search.search import Search
from ai.model.policy import asked, check_acts

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
            answer = asked(model, seen["obs"])
            check_acts(answer)
            if len(answer) > 2:
                raise TypeError(f"without memory the model must give (policy, value), got {len(answer)} parts")
            policy, value = answer
            policy = policy.among(seen["legal"]) if "legal" in seen else policy
            action = policy.mode() if self.greedy else policy.sample(generator)
            return {"action": action, "log_prob": policy.log_prob(action), "value": value}
        answer = asked(model, seen["obs"][:, None], seen["memory"])
        check_acts(answer, ("value", "memory"))
        policy, value, memory = answer
        policy = policy.among(seen["legal"][:, None]) if "legal" in seen else policy
        action = policy.mode() if self.greedy else policy.sample(generator)
        log_prob = policy.log_prob(action)
        return {"action": action[:, 0], "log_prob": log_prob[:, 0], "value": value[:, 0], "memory": memory}


class EpsilonGreedy:
    """Takes the best of the values `model(obs) -> [N, A]`, or with a falling chance any action.

    Where `legal` is seen, among the legal actions; where none is, among all, as `ByPolicy` does.

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
            legal = seen["legal"].bool()
            legal = legal | ~legal.any(1, keepdim=True)
            values = torch.where(legal, values.clamp_min(torch.finfo(values.dtype).min), -torch.inf)
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


class BySearch:
    """Acts by a search in the learned model that is given, and tells what a `MuZero` loss learns from.

    Args:
        search: makes one for a model, such as `lambda model: Search.sampled(model, samples=16)`.
        temperature: of the draw among what the search prefers; 0 takes its move. Noise is on where it is not 0.

    >>> import ai.model as m
    >>> from ai.game.search.search import Search
    >>> class Still:
    ...     def initial(self, obs):
    ...         return obs, m.Gaussian(obs, torch.zeros(2)), obs[:, 0]
    ...     def recurrent(self, state, action):
    ...         return state, -action.square().sum(1), torch.ones(len(state)), *self.initial(state)[1:]
    >>> act = BySearch(lambda model: Search.sampled(model, samples=4, simulations=8))
    >>> {key: tuple(value.shape) for key, value in act(Still(), {"obs": torch.zeros(3, 2)}, None, 0).items()}
    {'action': (3, 2), 'policy': (3, 4), 'value': (3,), 'sampled': (3, 4, 2)}
    """

    def __init__(self, search: Callable[[Any], Search], *, temperature: float = 1.0) -> None:
        if not callable(search):
            raise TypeError(f"search must be a function of a model that makes a Search, got {search!r}")
        check_amount(0, temperature=temperature)
        self.search, self.temperature = search, temperature

    def __call__(
        self, model: Any, seen: Mapping[str, Tensor], generator: torch.Generator | None, n_steps: int
    ) -> dict[str, Tensor]:
        """Returns `action`, `policy`, `value`, and of a search that samples its actions as `sampled`."""
        if "memory" in seen:
            raise ValueError("memory must be None: the state of a model that is searched begins with what is seen")
        obs = seen["obs"]
        device = obs.device
        seeds = torch.randint(1 << 62, (len(obs),), generator=generator, device=device).cpu().numpy()
        legal = seen["legal"].cpu().numpy() if "legal" in seen else None
        found = self.search(model)(obs, seeds, noise=self.temperature > 0, legal=legal)
        number = found.action
        if self.temperature > 0:
            likely = found.policy / found.policy.max(axis=1, keepdims=True)
            number = draws.choose(draws.fold_in(seeds, 1), likely ** (1 / self.temperature))
        said = {"action": found.chosen(number), "policy": found.policy, "value": found.value}
        if found.actions is not None:
            said["sampled"] = found.actions
        return {
            key: torch.from_numpy(column.astype(np.float32) if column.dtype.kind == "f" else column).to(device)
            for key, column in said.items()
        }


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
