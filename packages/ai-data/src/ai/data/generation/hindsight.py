"""Hindsight: what was achieved, taken for what was wanted.

Letters: T steps of an episode, R rows of packed episodes.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from ai.data.arguments import check_at_least, check_callable
from ai.data.batch.seeds import derive_seed
from ai.data.episodes.packing import Packed, packed
from ai.data.generation.begun import began, check_begun

if TYPE_CHECKING:
    from ai.data.episodes.packing import Episode
    from ai.data.generation.source import Source

Reward = Callable[[np.ndarray, np.ndarray], np.ndarray]


class Hindsight:
    """A source that gives each episode again, as if what it came to had been the goal.

    Each episode, with the keys `goal` and `achieved` (at every moment, T + 1 rows), comes with `copies` more of it. A
    copy ends at a moment that is drawn evenly from those after the first; its goal is what was achieved there, and its
    rewards follow from that.

    Args:
        source: makes the episodes, single or packed.
        reward: (achieved after each step `[T, …]`, goal `[T, …]`) -> rewards `[T]`, as the environment gives them.
        ends: (the same) -> bool `[T]`, which steps reach the goal and so truly end the episode; None: none does, and a
            copy is cut off at its last moment.
        copies: of each episode.

    Source: Andrychowicz et al., 2017, Hindsight experience replay, section 3.3, the strategy "future". Deviation: the
    goal is drawn for a stretch of steps, not for each step, so that draws of several steps and sequences stay whole.

    Raises:
        ValueError: `copies` is below 1.

    >>> class Walks:
    ...     def start(self, seed, worker): pass
    ...     def update_params(self, state_dict, version): pass
    ...     def __next__(self):
    ...         wanted, came_to = np.full(3, 9), np.arange(3)
    ...         return {"action": np.ones(2), "reward": np.full(2, -1.0), "goal": wanted, "achieved": came_to}
    >>> source = Hindsight(Walks(), lambda achieved, goal: -(achieved != goal).astype(np.float32), copies=1)
    >>> source.start(0, 0)
    >>> made = next(source).columns
    >>> made["goal"].tolist()[:3], set(made["goal"].tolist()[3:]) <= {1, 2}
    ([9, 9, 9], True)
    """

    def __init__(self, source: "Source", reward: Reward, *, ends: Reward | None = None, copies: int = 4) -> None:
        check_at_least(1, copies=copies)
        check_callable(reward=reward, **({} if ends is None else {"ends": ends}))
        for method in ("start", "__next__", "update_params"):
            if not callable(getattr(source, method, None)):
                raise TypeError(f"source must have the method {method}, {type(source).__name__} has none")
        self.source, self.reward, self.ends, self.copies = source, reward, ends, copies
        self._mark: object = None

    def begin_at(self, n_steps: int) -> None:
        """Tells the source what was made already, where it asks for it."""
        if hasattr(self.source, "begin_at"):
            self.source.begin_at(n_steps)

    def start(self, seed: int, worker: int) -> None:
        """Starts the source; the goals drawn are a function of `seed` too."""
        self.source.start(seed, worker)
        self._random = np.random.default_rng(derive_seed(seed, worker, 1))
        self._mark = began(self.source)

    def update_params(self, state_dict: Mapping[str, Any], version: int) -> None:
        """Hands the parameters on."""
        self.source.update_params(state_dict, version)

    def __next__(self) -> Packed:
        """Returns what the source gives next, and its copies.

        Raises:
            RuntimeError: it was not started, or another has begun its source anew.
            ValueError: an episode has no `goal` or `achieved`, or does not tell what was achieved at its last moment.
        """
        if self._mark is None:
            raise RuntimeError("start(seed, worker) must be called before the first episode")
        check_begun(self.source, self._mark, "source")
        made: Episode | Packed = next(self.source)
        whole = packed([made])
        if missing := sorted({"goal", "achieved"} - whole.columns.keys()):
            raise ValueError(f"hindsight needs episodes with goal and achieved, {missing} are not in it")
        if not isinstance(made, Packed) and len(made["achieved"]) != whole.lengths[0]:
            raise ValueError(
                f"achieved must have T + 1 entries, one a moment, got {len(made['achieved'])} for T = "
                f"{whole.lengths[0] - 1}"
            )
        if "version" not in (made.columns if isinstance(made, Packed) else made):
            whole.columns.pop("version")  # whoever takes it knows better
        firsts = np.cumsum(whole.lengths) - whole.lengths
        parts = [whole]
        for _ in range(self.copies):
            steps = self._random.integers(1, whole.lengths)  # of each copy: at least one
            parts.append(self._relabelled(whole, firsts, steps))
        columns = {key: np.concatenate([part.columns[key] for part in parts]) for key in whole.columns}
        lengths = np.concatenate([part.lengths for part in parts])
        drawable = None
        if whole.drawable is not None:
            drawable = np.concatenate([cast("np.ndarray", part.drawable) for part in parts])
        return Packed(columns, lengths, drawable, whole.finished)

    def _relabelled(self, whole: Packed, firsts: np.ndarray, steps: np.ndarray) -> Packed:
        """Returns every episode up to `steps[e]`, with what was achieved there as its goal."""
        lengths = steps + 1
        within = np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        rows = np.repeat(firsts, lengths) + within
        last = np.cumsum(lengths) - 1
        columns = {key: column[rows] for key, column in whole.columns.items()}
        goal = columns["goal"] = np.repeat(whole.columns["achieved"][firsts + steps], lengths, axis=0)
        step = within < np.repeat(steps, lengths)
        after = whole.columns["achieved"][rows[step] + 1]
        reward = np.zeros(len(rows), whole.columns["reward"].dtype)
        reward[step] = _each("reward", self.reward(after, goal[step]), after, reward.dtype)
        ended = np.zeros(len(rows), bool)
        if self.ends is not None:
            ended[step] = _each("ends", self.ends(after, goal[step]), after, ended.dtype)
        columns["reward"] = reward
        columns["discount"] = np.where(step & ~ended, 1, 0).astype(whole.columns["discount"].dtype)
        columns["truncated"] = np.repeat(~ended[last - 1], lengths)
        drawable = None if whole.drawable is None else whole.drawable[rows] & step
        return Packed(columns, lengths, drawable)

    def state_dict(self) -> dict[str, Any]:
        """Returns the source's state, where it has one, and that of the goals drawn."""
        state_of = getattr(self.source, "state_dict", None)
        return {"source": None if state_of is None else state_of(), "random": self._random.bit_generator.state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a state."""
        self._random.bit_generator.state = state["random"]
        if state["source"] is not None:
            cast("Any", self.source).load_state_dict(state["source"])


def _each(name: str, given: Any, after: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    """Returns what a function gave for each step, as the episodes hold it.

    Raises:
        ValueError: it is not one number a step, or none that the episodes' type holds.
    """
    values = np.asarray(given)
    if values.shape != (len(after),):
        raise ValueError(f"{name} must give one number a step, shape ({len(after)},), got {values.shape}")
    with np.errstate(invalid="ignore"):
        held = values.astype(dtype)
    if dtype.kind in "iu" and (held != values).any():
        raise ValueError(
            f"{name} must give whole numbers where the episodes' rewards are {dtype}, got {values[held != values][0]}"
        )
    return held
