"""Which rows of a ring are drawn next: alike, by priority, or a bounded number of times."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ai.data.episodes.sum_tree import SumTree


class Drawing:
    """The places that may be drawn, and how they are.

    Args:
        capacity: places.
        alpha: None draws alike; else in proportion to priority ** alpha.
        max_reuse: how often a place may be drawn; None for any number.
        seed: of the draws.
    """

    def __init__(self, capacity: int, alpha: float | None, max_reuse: int | None, seed: int) -> None:
        self._alpha = alpha
        self._max_reuse = max_reuse
        self._generator = torch.Generator().manual_seed(seed)
        self.n_drawn = 0
        self.n_open = 0
        self.is_open = np.zeros(capacity, bool)  # may be the first row of a draw
        self._uses = np.zeros(capacity, np.int32)
        # Where steps are not drawn alike, or none twice; without alpha every step that may be drawn has the priority 1.
        self._tree = None if alpha is None and max_reuse is None else SumTree(capacity)
        self._top_priority = 1.0

    @property
    def n_bytes(self) -> int:
        """Memory in bytes, without the tree of priorities."""
        return self.is_open.nbytes + self._uses.nbytes

    def write(self, places: np.ndarray, may_be_drawn: np.ndarray) -> None:
        """Begins anew at places that were written; a new step has the highest priority so far."""
        self.n_open += int(np.count_nonzero(may_be_drawn)) - int(np.count_nonzero(self.is_open[places]))
        self.is_open[places] = may_be_drawn
        self._uses[places] = 0
        if self._tree is not None:
            self._tree.set(places, np.where(may_be_drawn, self._top_priority, 0))

    def close(self, places: np.ndarray) -> None:
        """Lets nothing be drawn at places any more."""
        places = places[self.is_open[places]]
        if not len(places):
            return
        self.is_open[places] = False
        self.n_open -= len(places)
        if self._tree is not None:
            self._tree.set(places, np.zeros(len(places)))

    def draw(self, n: int, n_live: int, beta: float) -> tuple[np.ndarray, Tensor | None]:
        """Returns `n` places and, with priorities, their importance weights.

        Args:
            n: how many; with `max_reuse` they differ.
            n_live: places that were written so far.
            beta: exponent of the weights.

        Raises:
            ValueError: no place may be drawn, or with `max_reuse` fewer than `n`.
        """
        if self.n_open == 0 or (self._max_reuse is not None and self.n_open < n):
            raise ValueError(f"{self.n_open} steps may be drawn, batch_size is {n}")
        places = self._places(n, n_live)
        np.add.at(self._uses, places, 1)
        self.n_drawn += n
        spent = places[:0] if self._max_reuse is None else places[self._uses[places] >= self._max_reuse]
        weight = None
        if self._tree is not None and self._alpha is not None:
            share = torch.from_numpy(self._tree.get(places)) / self._tree.total
            weight = (share * max(self.n_open - len(spent), 1)) ** -beta
            weight = (weight / weight.max()).to(torch.float32)
        if self._max_reuse is not None:
            self.close(spent)
        return places, weight

    def set_priorities(self, places: np.ndarray, is_alive: np.ndarray, priorities: np.ndarray) -> None:
        """Sets the priorities of the places that live and may be drawn."""
        assert self._tree is not None
        assert self._alpha is not None
        usable = is_alive & self.is_open[places]
        powered = np.maximum((priorities + 1e-6) ** self._alpha, np.finfo(np.float64).tiny)
        if usable.any():
            self._top_priority = max(self._top_priority, float(powered[usable].max()))
        self._tree.set(places[usable], powered[usable])

    def state_dict(self, live: np.ndarray) -> dict[str, Any]:
        """Returns what later draws depend on, at the live places."""
        by_priority = self._tree is not None and self._alpha is not None
        return {
            "open": torch.from_numpy(self.is_open[live]),
            "uses": torch.from_numpy(self._uses[live]),
            "priority": torch.from_numpy(self._tree.get(live)) if self._tree is not None and by_priority else None,
            "top_priority": self._top_priority,
            **self.position(),
        }

    def position(self) -> dict[str, Any]:
        """Returns how far the draws are, without what they are made of."""
        return {"n_drawn": self.n_drawn, "generator": self._generator.get_state()}

    def go_on(self, position: Mapping[str, Any]) -> None:
        """Draws as from a `position` on."""
        self.n_drawn = int(position["n_drawn"])
        self._generator.set_state(position["generator"])

    def draw_by(self, seed: int) -> None:
        """Draws on from a seed."""
        self._generator.manual_seed(seed)

    def restored(self, state: dict[str, Any], live: np.ndarray) -> "Drawing":
        """Returns draws like these in a state.

        Raises:
            ValueError: the state is damaged.
        """
        capacity = len(self.is_open)
        other = Drawing(capacity, self._alpha, self._max_reuse, 0)
        parts = {name: state[name] for name in ("open", "uses", "priority") if state[name] is not None}
        for name, rows in parts.items():
            if len(rows) != len(live):
                raise ValueError(f"{name!r} must hold the {len(live)} live rows, it holds {len(rows)}")
        other.is_open[live] = state["open"].numpy()
        other._uses[live] = state["uses"].numpy()
        if other._tree is not None:
            alike = other.is_open[live].astype(np.float64)
            other._tree.set(live, alike if self._alpha is None else state["priority"].numpy())
        other.go_on(state)
        other._top_priority = float(state["top_priority"])
        other.n_open = int(np.count_nonzero(other.is_open))
        return other

    def _places(self, n: int, n_live: int) -> np.ndarray:
        if self._tree is not None and self._max_reuse is not None:
            return self._distinct(n, self._tree)
        if self._tree is not None:
            spots = (
                torch.arange(n, dtype=torch.float64, device="cpu")
                + torch.rand(n, generator=self._generator, device="cpu")
            ) / n
            return self._tree.find(spots.numpy() * self._tree.total)
        drawn = np.empty(0, np.int64)
        while len(drawn) < n:  # few rows are closed: an episode's last, and context
            tried = torch.randint(n_live, (2 * n,), generator=self._generator, device="cpu").numpy()
            drawn = np.concatenate([drawn, tried[self.is_open[tried]]])
        return drawn[:n]

    def _distinct(self, n: int, tree: SumTree) -> np.ndarray:
        """Returns n different places, each the next by priority among those that are left."""
        drawn: list[np.ndarray] = []
        shares: list[np.ndarray] = []
        n_left = n
        while n_left:
            found = tree.find(
                torch.rand(n_left, generator=self._generator, dtype=torch.float64, device="cpu").numpy() * tree.total
            )
            new = found[np.sort(np.unique(found, return_index=True)[1])]
            drawn.append(new)
            shares.append(tree.get(new))
            tree.set(new, np.zeros(len(new)))
            n_left -= len(new)
        places = np.concatenate(drawn)
        tree.set(places, np.concatenate(shares))
        return places
