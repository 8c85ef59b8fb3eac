"""What the actions of a learned model are: numbers, all of which the model scores, or some that its policy proposes.

Letters: R rows asked at once, K actions proposed at a node, D the axes of one action.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ai.game import draws
from ai.game.arguments import check_count
from ai.game.search.device import sent

_STREAM = 0x5A  # so that actions are not drawn by the numbers that noise is drawn by


@runtime_checkable
class Proposes(Protocol):
    """A policy that actions can be proposed by, such as those of `ai.model`: `Gaussian`, `Categorical`, `Mixed`, …."""

    @property
    def width(self) -> int:
        """How many numbers `at` makes an action of, `W`."""
        ...

    def at(self, uniform: Tensor) -> Tensor:
        """Returns the actions `(K, R, *D)` at numbers in (0, 1), `(K, R, W)`."""
        ...

    def log_prob(self, action: Tensor) -> Tensor:
        """Returns the logarithm of the density or probability of each of `action` `(K, R, *D)`, `(K, R)`."""
        ...


class NumberedActions:
    """Actions are the numbers below `num_actions`."""

    offered: NDArray[Any] | None = None

    def __init__(self, num_actions: int) -> None:
        self.num_actions = num_actions

    def begin(self, seeds: NDArray[np.uint64]) -> None:
        """Draws nothing."""

    def allocate(self, batch: int, num_nodes: int) -> None:
        """Keeps nothing."""

    def offer(
        self,
        rows: NDArray[np.int64],
        node: NDArray[np.int64],
        places: tuple[Any, Any],
        logits: Any,
        legal: NDArray[np.bool_] | None = None,
    ) -> Any:
        """Returns the logits as they are."""
        return logits

    def allowed(self, legal: NDArray[np.bool_], rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Returns which edges of the roots of `rows` a mask of actions leaves open."""
        return legal[rows]

    def taken(self, games: Any, node: Any, action: Any) -> Any:
        """Returns the numbers as they are."""
        return action

    def keep(self, source: tuple[Any, Any], to: tuple[Any, Any], shape: tuple[int, int]) -> None:
        """Has nothing to move."""


class SampledActions:
    """Each node has K actions that were drawn for it; what a tree numbers are their places.

    The prior of each is the policy's density over that of what proposed it, times how often it was drawn: of an action
    drawn twice the second place is closed. So the prior stands for the policy, whatever proposes.

    Args:
        samples: K.
        proposal: what proposes in place of a node's policy, given that policy; None for the policy itself.

    Source: Hubert, Schrittwieser, Antonoglou, Barekatain, Schmitt, Silver 2021, "Learning and planning in complex
    action spaces", section 4.2 (the sample-based policy) and 5.1 (its prior in the search).
    """

    def __init__(self, samples: int, proposal: Callable[[Any], Proposes] | None = None) -> None:
        check_count(1, samples=samples)
        if proposal is not None and not callable(proposal):
            raise TypeError(f"proposal must be a function of a policy, or None, got {proposal!r}")
        self.num_actions = samples
        self.offered: NDArray[Any] | None = None  # [B, K, *D] at the roots
        self._proposal = proposal
        self._seeds = np.zeros(0, np.uint64)
        self._shape = (0, 0)
        self._actions: Tensor | None = None  # [B, N, K, *D]

    def begin(self, seeds: NDArray[np.uint64]) -> None:
        """Takes the seeds of a search: what is proposed at a node is a function of its row's and its number."""
        self._seeds = draws.fold_in(seeds, _STREAM)

    def allocate(self, batch: int, num_nodes: int) -> None:
        """Remembers how much room the actions will need."""
        if self._shape != (batch, num_nodes):
            self._actions = None
        self._shape = (batch, num_nodes)

    def offer(
        self,
        rows: NDArray[np.int64],
        node: NDArray[np.int64],
        places: tuple[Any, Any],
        policy: Any,
        legal: NDArray[np.bool_] | None = None,
    ) -> Tensor:
        """Draws the actions of one node a row, and returns their logits `[R, K]`, -inf where a place is closed.

        Args:
            rows: of the trees.
            node: of each.
            places: the two, where the model is.
            policy: the model's, of R rows.
            legal: which choices there are, `[R, …]`, of a policy that can be held to them.

        Raises:
            TypeError: the policy is none that can propose, or be held to what is legal.
            ValueError: its answers are not of R rows.
        """
        if legal is not None:
            if not hasattr(policy, "among"):
                raise TypeError(f"legal must be None for movements, which {type(policy).__name__} gives")
            policy = policy.among(sent(torch.from_numpy(legal), _device_of(policy)))
        proposal = policy if self._proposal is None else self._proposal(policy)
        for name, one in (("policy", policy), ("proposal", proposal)):
            if not isinstance(one, Proposes):
                raise TypeError(
                    f"{name} must have width, at and log_prob, as ai.model.Gaussian has, got {type(one).__name__}"
                )
        count, drawn = len(rows), self.num_actions
        numbers = draws.uniform(draws.fold_in(self._seeds[rows], node), drawn * proposal.width)
        uniform = torch.from_numpy(numbers.reshape(count, drawn, proposal.width)).transpose(0, 1)
        actions = proposal.at(sent(uniform, _device_of(policy)))
        if actions.shape[:2] != (drawn, count):
            raise ValueError(f"policy must propose actions of shape ({drawn}, {count}, …), got {tuple(actions.shape)}")
        of_each = actions.transpose(0, 1)
        first, times = _repeated(of_each.reshape(count, drawn, -1))
        logits = times.double().log()
        if self._proposal is not None:
            logits = logits + (policy.log_prob(actions) - proposal.log_prob(actions)).transpose(0, 1)
        self._store(places, of_each)
        if not node.any():
            self._show(rows, of_each)
        return torch.where(first, logits, -torch.inf)

    def allowed(self, legal: NDArray[np.bool_], rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Returns which edges of the roots of `rows` a mask of choices leaves open.

        Raises:
            ValueError: it has not a column for each choice.
        """
        assert self.offered is not None
        offered = self.offered[rows]
        if offered.ndim != 2 or offered.dtype.kind not in "iu" or offered.max() >= legal.shape[1]:
            raise ValueError(f"legal must have a column for each choice, got shape {legal.shape}")
        return np.take_along_axis(legal[rows], offered, axis=1)

    def taken(self, games: Any, node: Any, action: Any) -> Tensor:
        """Returns the actions at places of nodes, `[R, *D]`."""
        assert self._actions is not None
        return self._actions[games, node, action]

    def keep(self, source: tuple[Any, Any], to: tuple[Any, Any], shape: tuple[int, int]) -> None:
        """Moves the actions of nodes to other ones, in room of this shape."""
        assert self._actions is not None
        kept = self._actions[source]
        if self._shape != shape:
            self._shape = shape
            self._actions = self._actions.new_zeros((*shape, *self._actions.shape[2:]))
        self._actions[to] = kept
        self.offered = self._actions[:, 0].numpy(force=True).copy()

    def _store(self, places: tuple[Any, Any], actions: Tensor) -> None:
        if self._actions is None:
            self._actions = actions.new_zeros((*self._shape, *actions.shape[1:]))
        self._actions[places] = actions

    def _show(self, rows: NDArray[np.int64], actions: Tensor) -> None:
        new = actions.numpy(force=True)
        if len(rows) == self._shape[0]:
            self.offered = new.copy()
        else:  # the others kept their trees
            assert self.offered is not None
            self.offered = self.offered.copy()  # the one before may be in somebody's hands
            self.offered[rows] = new


def _repeated(actions: Tensor) -> tuple[Tensor, Tensor]:
    """Returns which places of `[R, K, W]` show an action first in their row, and how often it is there, `[R, K]` each.

    >>> [part.tolist() for part in _repeated(torch.tensor([[[2], [0], [2]]]))]
    [[[True, True, False]], [[2, 1, 2]]]
    """
    rows, drawn, width = actions.shape
    order = torch.arange(drawn, device=actions.device).expand(rows, drawn)
    for axis in reversed(range(width)):  # each sort keeps the order of those before it, and at last of the places
        order = order.gather(1, actions[..., axis].gather(1, order).argsort(dim=1, stable=True))
    ordered = actions.gather(1, order[..., None].expand_as(actions))
    begins = torch.ones_like(order, dtype=torch.bool)
    begins[:, 1:] = (ordered[:, 1:] != ordered[:, :-1]).any(-1)
    group = begins.cumsum(1) - 1
    size = torch.zeros_like(order).scatter_add_(1, group, torch.ones_like(order))
    first = torch.zeros_like(begins).scatter_(1, order, begins)
    return first, torch.zeros_like(order).scatter_(1, order, size.gather(1, group))


def _device_of(policy: Any) -> torch.device:
    """Returns where a policy's numbers lie: those of its parts, in whatever they are nested."""
    pending = list(policy) if isinstance(policy, tuple) else list(vars(policy).values())
    for part in pending:
        if isinstance(part, Tensor):
            return part.device
        if isinstance(part, tuple):
            pending.extend(part)
    return torch.device("cpu")
