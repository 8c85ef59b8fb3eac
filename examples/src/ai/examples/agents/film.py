"""An agent at work, in pictures."""

from contextlib import closing
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ai.game import GymnasiumEnvironments
from ai.game.environments.acting import Act, device_of, evaluating


def frames(
    env: str, model: nn.Module, act: Act, *, memory: tuple[int, ...] | None = None, seed: int = 0, most: int = 1000
) -> list[NDArray[np.uint8]]:
    """Returns the pictures `[height, width, 3]` of one episode.

    Args:
        env: A name of Gymnasium whose instances render.
        model: Acts in evaluation mode; afterwards its mode is as before.
        act: How, see `ai.game.Rollouts`.
        memory: As of `ai.game.Rollouts`.
        seed: Of the environment.
        most: Steps after which the film ends.
    """
    world = GymnasiumEnvironments(env, 1, render_mode="rgb_array")
    device = device_of(model)
    generator = torch.Generator(device).manual_seed(seed)
    seen, held = world.reset(seed), None if memory is None else torch.zeros(1, *memory, device=device)
    pictures: list[NDArray[np.uint8]] = []
    with closing(world), evaluating(model):
        for _ in range(most):
            pictures.append(np.asarray(world.render(), np.uint8))
            shown: dict[str, Any] = {"obs": torch.from_numpy(np.asarray(seen)).to(device)}
            if held is not None:
                shown["memory"] = held
            with torch.inference_mode():
                said = act(model, shown, generator, len(pictures))
            held = said.get("memory")
            seen, _, ended, cut = world.step(said["action"].cpu().numpy())
            if ended[0] or cut[0]:
                break
    return pictures


def strip(pictures: list[NDArray[np.uint8]], n: int = 8) -> torch.Tensor:
    """Returns `n` pictures `(n, 3, height, width)` spread over a film, as a trial keeps them."""
    chosen = np.linspace(0, len(pictures) - 1, n).round().astype(int)
    return torch.from_numpy(np.stack([pictures[k] for k in chosen])).permute(0, 3, 1, 2)
