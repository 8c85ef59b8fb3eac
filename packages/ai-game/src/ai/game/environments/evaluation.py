"""What a model earns where nothing is explored and nothing learnt."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ai.data.generation.begun import began
from ai.game.arguments import check_count
from ai.game.environments.acting import Act, ByPolicy, device_of, evaluating, to_numpy
from ai.game.environments.protocol import Environments, Seen, by_key, check_environments, stepped


def evaluate(
    env: Environments,
    model: nn.Module,
    act: Act | None = None,
    *,
    episodes: int = 100,
    seed: int = 0,
    memory: tuple[int, ...] | None = None,
    max_steps: int = 1_000_000,
) -> NDArray[np.float64]:
    """Returns the sum of rewards of each of `episodes` episodes, `[episodes]`.

    Every environment plays as many as the others, so that short episodes do not count more often than long ones.

    Args:
        env: N environments of one player; begun anew, so not those that a source acts in.
        model: acts in evaluation mode; afterwards its mode is as before.
        act: how; None takes the mode of the policy of `model(obs) -> (policy, value)`.
        episodes: how many; a multiple of N, else the rest is left out by row.
        seed: of the environments, and of an `act` that draws.
        memory: as of `Rollouts`.
        max_steps: after so many steps of each environment an episode that never ends is an error.

    Raises:
        RuntimeError: `max_steps` were not enough.
        ValueError: `episodes` is below 1, or two players take turns.

    >>> import ai.model as m
    >>> from ai.game import CartPole, GameEnvironments
    >>> model = m.Model(m.fc(4, 2)).init(seed=0)
    >>> left = lambda model, seen, generator, n_steps: {"action": torch.zeros(len(seen["obs"]), dtype=torch.long)}
    >>> float(evaluate(GameEnvironments(CartPole(), 4), model, left, episodes=8).mean()) < 12
    True
    """
    check_count(1, episodes=episodes, max_steps=max_steps)
    check_count(0, seed=seed)
    check_environments(env, model)
    wanted = np.full(env.num, episodes // env.num) + (np.arange(env.num) < episodes % env.num)
    act = ByPolicy(greedy=True) if act is None else act
    device = device_of(model)
    generator = torch.Generator(device).manual_seed(seed)
    found: list[list[float]] = [[] for _ in range(env.num)]
    total, over = np.zeros(env.num), np.zeros(env.num, bool)
    held = None if memory is None else torch.zeros(env.num, *memory, device=device)
    with evaluating(model):
        began(env)
        seen = env.reset(seed)
        if "to_play" in by_key(seen):
            raise ValueError("env must be of one player, got one with to_play: two players' rewards sum to nothing")
        for n in range(max_steps):
            if all(len(own) >= count for own, count in zip(found, wanted, strict=True)):
                return np.array([value for own, count in zip(found, wanted, strict=True) for value in own[:count]])
            with torch.inference_mode():
                said = act(model, _tensors(seen, held, device), generator, n * env.num)
            if held is not None:
                fresh = torch.from_numpy(over).to(device).reshape(-1, *(1,) * (held.ndim - 1))
                held = torch.where(fresh, 0, said["memory"])
            seen, reward, ended, cut = stepped(env, to_numpy({"action": said["action"]})["action"])
            waiting, over = over, ended | cut
            total += reward
            for row in np.flatnonzero(over & ~waiting):
                found[row].append(float(total[row]))
            total[over | waiting] = 0
        raise RuntimeError(f"max_steps ({max_steps}) steps were not enough for {episodes} episodes")


def _tensors(seen: Seen, memory: torch.Tensor | None, device: torch.device) -> dict[str, Any]:
    tensors = {key: torch.from_numpy(np.array(value)).to(device) for key, value in by_key(seen).items()}  # copies
    return tensors if memory is None else {**tensors, "memory": memory}
