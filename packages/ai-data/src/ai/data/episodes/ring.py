"""The rows of the last episodes, in tensors that are written around."""

from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ai.data.episodes.packing import READINGS


class Ring:
    """The last `capacity` rows, numbered from the first ever written; row p lies at place p % capacity.

    Args:
        capacity: rows kept. Memory is allocated with the first rows.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.columns: dict[str, Tensor] = {}
        self.n_written = 0
        self.n_changes = 0  # writes and rewrites, for who keeps what is made of the rows
        # By place: the numbers of its episode's first row, and of its last.
        self.begin = torch.zeros(capacity, dtype=torch.int64, device="cpu")
        self.end = torch.zeros(capacity, dtype=torch.int64, device="cpu")

    @property
    def n_bytes(self) -> int:
        """Memory in bytes."""
        return sum(column.nbytes for column in self.columns.values()) + self.begin.nbytes + self.end.nbytes

    @property
    def oldest(self) -> int:
        """The number of the oldest live row."""
        return max(0, self.n_written - self.capacity)

    def live(self) -> np.ndarray:
        """Returns the places of the live rows, oldest first."""
        return np.arange(self.oldest, self.n_written) % self.capacity

    def is_alive(self, number: Tensor) -> Tensor:
        """Returns which rows, by their numbers, were not overwritten."""
        return (number >= self.oldest) & (number < self.n_written)

    def number_at(self, place: np.ndarray) -> np.ndarray:
        """Returns the numbers of the live rows at places."""
        # The newest row is number n_written - 1, so every live row's number follows from its place.
        return self.n_written - 1 - (self.n_written - 1 - place) % self.capacity

    def rows(self, key: str, places: Tensor) -> Tensor:
        """Returns a key at places of any shape."""
        column = self.columns[key]
        if places.ndim == 1:
            return column.index_select(0, places)
        return column.index_select(0, places.reshape(-1)).view(*places.shape, *column.shape[1:])

    def check(self, columns: dict[str, np.ndarray]) -> None:
        """Allocates the ring for the first rows, or compares later ones with it.

        Raises:
            ValueError: rows unlike those before in keys, shapes or dtypes.
        """
        if not self.columns:
            self.columns = {
                key: torch.zeros((self.capacity, *c.shape[1:]), dtype=torch.from_numpy(c[:0]).dtype, device="cpu")
                for key, c in columns.items()
            }
        if columns.keys() != self.columns.keys():
            raise ValueError(f"episodes must have the keys {sorted(self.columns)}, got {sorted(columns)}")
        for key, column in columns.items():
            ours = self.columns[key]
            same_shape = column.shape[1:] == ours.shape[1:]
            if not same_shape or torch.from_numpy(column[:0]).dtype != ours.dtype:
                raise ValueError(
                    f"{key!r} must be {ours.dtype} of shape {tuple(ours.shape[1:])} a row as in the first episode, got "
                    f"{column.dtype} of shape {column.shape[1:]}{'' if same_shape else f': {READINGS}'}"
                )

    def write(self, columns: dict[str, np.ndarray], lengths: np.ndarray) -> tuple[slice, np.ndarray, np.ndarray]:
        """Writes episodes over the oldest rows.

        Args:
            columns: that were checked, one episode after the other.
            lengths: rows of each.

        Returns:
            Which of the rows given were written, the last ones where there are more than fit; their places; and for
            all rows given whether a step was taken there, that is all but each episode's last.
        """
        n_rows = int(lengths.sum())
        ends = self.n_written - 1 + np.cumsum(lengths)
        end_of_row = np.repeat(ends, lengths)
        begin_of_row = np.repeat(ends - lengths + 1, lengths)
        kept = slice(max(0, n_rows - self.capacity), n_rows)
        places = np.arange(self.n_written + kept.start, self.n_written + n_rows) % self.capacity
        for first, last in _runs(places):
            source = slice(kept.start + first, kept.start + last)
            target = slice(int(places[first]), int(places[first]) + last - first)
            for key, column in self.columns.items():
                column[target] = torch.from_numpy(np.ascontiguousarray(columns[key][source]))
            self.begin[target] = torch.from_numpy(begin_of_row[source])
            self.end[target] = torch.from_numpy(end_of_row[source])
        is_step = np.arange(self.n_written, self.n_written + n_rows) < end_of_row
        self.n_written += n_rows
        self.n_changes += 1
        return kept, places, is_step

    def state_dict(self) -> dict[str, Any]:
        """Returns the live rows, oldest first."""
        live = self.live()
        return {
            "columns": {key: column[live] for key, column in self.columns.items()},
            "begin": self.begin[live],
            "end": self.end[live],
            "n_written": self.n_written,
        }

    @classmethod
    def restored(cls, capacity: int, state: dict[str, Any]) -> "Ring":
        """Returns the ring that a state was taken of.

        Raises:
            ValueError: the state is damaged.
        """
        ring = cls(capacity)
        ring.n_written = int(state["n_written"])
        live = ring.live()
        for name, rows in {**state["columns"], "end": state["end"]}.items():
            if len(rows) != len(live):
                raise ValueError(f"{name!r} must hold the {len(live)} live rows, it holds {len(rows)}")
        ring.end[live] = state["end"]
        ring.begin[live] = state["begin"] if "begin" in state else _begins(state["end"], ring.n_written)
        for key, rows in state["columns"].items():
            ring.columns[key] = torch.zeros((capacity, *rows.shape[1:]), dtype=rows.dtype, device="cpu")
            ring.columns[key][live] = rows
        return ring


def _runs(places: np.ndarray) -> list[tuple[int, int]]:
    """Returns the stretches of consecutive places: one, or two where the ring wraps around."""
    wrap = np.flatnonzero(np.diff(places) < 0)
    bounds = [0, *(wrap + 1).tolist(), len(places)]
    return [(a, b) for a, b in pairwise(bounds) if b > a]


def _begins(end: Tensor, n_written: int) -> Tensor:
    """Returns where each live row's episode begins, for a state that says only where it ends."""
    numbers = torch.arange(n_written - len(end), n_written, device="cpu")
    is_first = torch.ones(len(end), dtype=torch.bool, device="cpu")
    is_first[1:] = end[1:] != end[:-1]
    return torch.where(is_first, numbers, 0).cummax(0).values
