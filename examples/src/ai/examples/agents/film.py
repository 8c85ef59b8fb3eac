"""An agent at work, in pictures."""

from contextlib import closing
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ai.examples.agents.worlds import world
from ai.game.environments.acting import Act, device_of, evaluating
from ai.game.environments.protocol import by_key


def frames(
    env: str, model: nn.Module, act: Act, *, memory: tuple[int, ...] | None = None, seed: int = 0, most: int = 1000
) -> list[NDArray[np.uint8]]:
    """Returns the pictures `[height, width, 3]` of one episode.

    Args:
        env: A name, see `world`, whose instances render; those of `ALE/…` show what they are shown.
        model: Acts in evaluation mode; afterwards its mode is as before.
        act: How, see `ai.game.Rollouts`.
        memory: As of `ai.game.Rollouts`.
        seed: Of the environment.
        most: Steps after which the film ends.

    Raises:
        ValueError: The environment renders no pictures.
    """
    has_frames = env.startswith("ALE/")  # which shows them, and renders none
    acted_in = world(env, 1) if has_frames else world(env, 1, render_mode="rgb_array")
    device = device_of(model)
    generator = torch.Generator(device).manual_seed(seed)
    seen, held = acted_in.reset(seed), None if memory is None else torch.zeros(1, *memory, device=device)
    pictures: list[NDArray[np.uint8]] = []
    with closing(acted_in), evaluating(model):
        for _ in range(most):
            picture = _newest(seen) if has_frames else acted_in.render()  # type: ignore[union-attr]
            if picture is None:
                raise ValueError(
                    f"env must render pictures, by render_mode='rgb_array', to be filmed: {env} gives none"
                )
            pictures.append(np.asarray(picture, np.uint8))
            shown: dict[str, Any] = {
                key: torch.from_numpy(np.asarray(value)).to(device) for key, value in by_key(seen).items()
            }
            if held is not None:
                shown["memory"] = held
            with torch.inference_mode():
                said = act(model, shown, generator, len(pictures))
            held = said.get("memory")
            seen, _, ended, cut = acted_in.step(said["action"].cpu().numpy())
            if ended[0] or cut[0]:
                break
    return pictures


def strip(pictures: list[NDArray[np.uint8]], n: int = 8) -> torch.Tensor:
    """Returns `n` pictures `(n, 3, height, width)` spread over a film, as a trial keeps them."""
    chosen = np.linspace(0, len(pictures) - 1, n).round().astype(int)
    return torch.from_numpy(np.stack([pictures[k] for k in chosen])).permute(0, 3, 1, 2)


def _newest(seen: Any) -> NDArray[np.uint8]:
    """Returns the last of the frames `[1, frames, height, width]` in three equal colours."""
    return np.repeat(np.asarray(seen)[0, -1][..., None], 3, -1)
