"""Rows around drawn ones, none of them of another episode: those before and after, and frames stacked up to each.

Letters: B batch, K steps unrolled. Rows are named by their numbers, as of `Ring`.
"""

import numpy as np
import torch
from torch import Tensor

from ai.data.episodes.ring import Ring


def unrolled(ring: Ring, first: Tensor, n_before: int, n_steps: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns the numbers of the rows from `n_before` before the `first` to `n_steps` after, `[B, n_before + K + 1]`.

    With them comes `mask`, whether a step was taken there, and with rows before `context [B, n_before]`, whether these
    are there. As far as the episode goes: beyond, its last row is repeated, and its first that is still there.
    """
    place = first % ring.capacity
    ahead = torch.arange(-n_before, n_steps + 1, device="cpu")
    steps_left = (ring.end.index_select(0, place) - first)[:, None]
    steps_back = (first - ring.begin[place].clamp(min=ring.oldest))[:, None]
    known = {"mask": (ahead >= 0) & (ahead < steps_left)}
    if n_before:
        known["context"] = -ahead[:n_before] <= steps_back
    return first[:, None] + torch.maximum(torch.minimum(ahead, steps_left), -steps_back), known


def stacked(ring: Ring, number: Tensor, n_frames: int, pad: str) -> Tensor:
    """Returns `obs` at rows of any shape as stacks of the frames up to there, the oldest first: `[…, n_frames, …]`.

    Before the first of an episode come `"zeros"`, or with `pad` `"first"` that frame.
    """
    wanted = number[..., None] - torch.arange(n_frames - 1, -1, -1, device="cpu")
    begin = ring.begin[number % ring.capacity][..., None]
    found = ring.rows("obs", torch.maximum(wanted, begin) % ring.capacity)
    if pad == "zeros":
        found[wanted < begin] = 0
    return found


def cut_stacks(ring: Ring, n_frames: int) -> np.ndarray:
    """Returns the places of live rows whose stack has lost a frame to the rows that were written over it."""
    if n_frames == 1 or ring.oldest == 0:
        return np.zeros(0, np.int64)
    places = np.arange(ring.oldest, min(ring.oldest + n_frames - 1, ring.n_written)) % ring.capacity
    return places[ring.begin[places].numpy() < ring.oldest]
