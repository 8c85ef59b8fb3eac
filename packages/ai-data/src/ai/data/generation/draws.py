"""Batches from a replay buffer that is not added to: learning from what was stored."""

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from ai.data.arguments import check_at_least, check_state
from ai.data.batch.device import checked_device
from ai.data.batch.postprocess import Finish
from ai.data.batch.transform import Transform
from ai.data.replay_buffer import ReplayBuffer


class Draws:
    """Endless uniform draws from a buffer, for a `Trainer` that learns offline.

    Its state is the position among the draws alone, so that snapshots do not repeat what is stored.

    Args:
        buffer: what was stored; one that `load_state_dict` filled, or that was filled by `add`.
        batch_size: steps in a batch.
        device: where batches go.
        postprocess: called on each batch on its device, as of `Dataset`.
        pin: move through page-locked memory; None means where `device` is CUDA.

    Raises:
        ValueError: the batch size is below 1, nothing can be drawn, or the buffer has priorities or counts uses, which
            a position does not tell.

    >>> buffer = ReplayBuffer(100, n_step=1)
    >>> buffer.add({"obs": torch.arange(4), "action": torch.zeros(3), "reward": torch.ones(3)})
    >>> next(Draws(buffer, 8))["next_obs"].shape
    torch.Size([8])
    """

    train = True  # endless, as loaders that are given it: refused where an end is needed

    def __init__(
        self,
        buffer: ReplayBuffer,
        batch_size: int,
        device: str | torch.device = "cpu",
        *,
        postprocess: Transform | None = None,
        pin: bool | None = None,
    ) -> None:
        check_at_least(1, batch_size=batch_size)
        if not isinstance(buffer, ReplayBuffer):
            raise TypeError(f"buffer must be a ReplayBuffer, got {type(buffer).__name__}")
        if buffer.alpha is not None or buffer.max_reuse is not None:
            raise ValueError(
                f"buffer must draw uniformly and without end, got alpha {buffer.alpha} and max_reuse {buffer.max_reuse}"
            )
        if not len(buffer):
            raise ValueError("buffer must hold steps that may be drawn, it holds none")
        self.buffer, self.batch_size, self.device = buffer, batch_size, checked_device(device)
        self._finish = Finish(postprocess, self.device, pin)
        self._rank: tuple[int, ...] = ()

    def __repr__(self) -> str:
        return f"Draws(batches of {self.batch_size} on {self.device}, of {self.buffer!r})"

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        """Returns the next batch."""
        return self._finish(self.buffer.sample(self.batch_size), self.buffer.n_drawn, *self._rank)

    def shard(self, rank: int, world: int) -> "Draws":
        """Returns the draws of one rank, for which the buffer draws from now on."""
        self.buffer.draw_apart(rank, world)
        other = copy.copy(self)
        other._rank = rank, world
        return other

    def state_dict(self) -> dict[str, Any]:
        """Returns the position among the draws, and how much was stored."""
        return {"n_written": self.buffer.n_written, **self.buffer.position()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a position.

        Raises:
            ValueError: it is one in another buffer.
        """
        check_state(state, "Draws", {"n_written", "n_drawn", "generator"})
        if state["n_written"] != self.buffer.n_written:
            raise ValueError(
                f"the state is of a buffer with {state['n_written']} rows, this one has {self.buffer.n_written}"
            )
        self.buffer.go_on(state)
