"""Episodes brought to one form: rows of T + 1 moments, many episodes in one array a key.

Letters: E episodes, T steps of one, R = sum of (T + 1) rows of all.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

Episode: TypeAlias = Mapping[str, Any]
"""One episode of T steps: a dict of arrays over time. Keys that the library knows:

- `obs` `[T+1, ...]`: what was seen before each step, and at the end.
- `action` `[T]` or `[T, ...]`.
- `reward` `[T]`: float, from the view of the player who moved.
- `discount` `[T]`: float, 0 only where the episode truly ends. Default: 1, and 0 at the last step unless `truncated`.
- `truncated`: bool, the episode was cut off and did not end; or `[T]`, true at the step that it was cut off at.
  Default: False.
- `policy` `[T, A]`: the search's probabilities. `value` `[T]` or `[T+1]`: the search's values, from the mover's view.
- `to_play` `[T+1]` or `[T]`: int, the player to move. Default: one player.
- `version`: int, of the parameters that it was made with.
- `episode_return`, `episode_length`: numbers for the log (`data_return`, `data_length`); they are not stored.

Any other key passes through: arrays with T or T+1 entries go along with the steps, anything else is given to each step
of the episode. A constant array that has T or T+1 entries in one episode by chance is told by the other episodes that
travel with it; where each may come alone, or all have one T, give such a constant another length. All
episodes of a source have the same keys, dtypes and shapes apart from T.
"""

# The first of these that an episode has tells its number of steps.
_TELLS_STEPS = ("action", "reward", "policy", "value", "discount")
_OVER_TIME = {*_TELLS_STEPS, "obs", "to_play"}
READINGS = "an array with T or T + 1 entries in every episode goes along with the steps, any other is a constant"


@dataclass
class Packed:
    """Episodes, one after the other.

    Args:
        columns: `[R, ...]` by key. The last row of each episode is the moment after its last step: its `obs`, `value`
            and `to_play` hold, the rest is zero.
        lengths: `[E]` int64, T + 1 of each.
        drawable: `[R]` bool, which steps may be the first of a draw; None for all. The others are context: steps
            that another fragment of the same episode has too.
        finished: figures of the episodes that ended in here, for the log: `episode_return` and `episode_length`.

    Raises:
        ValueError: an episode without a step, or columns of other lengths than all rows together.
    """

    columns: dict[str, np.ndarray]
    lengths: np.ndarray
    drawable: np.ndarray | None = None
    finished: dict[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n_rows = int(self.lengths.sum())
        if len(self.lengths) == 0 or int(self.lengths.min()) < 2:
            raise ValueError(f"lengths must be T + 1 of at least one episode of a step or more, got {self.lengths}")
        wrong = {key: column.shape for key, column in self.columns.items() if column.shape[:1] != (n_rows,)}
        if wrong:
            raise ValueError(f"columns must have {n_rows} rows, the sum of lengths, got the shapes {wrong}")
        if self.drawable is not None and self.drawable.shape != (n_rows,):
            raise ValueError(f"drawable must have the shape ({n_rows},), got {self.drawable.shape}")

    @property
    def n_episodes(self) -> int:
        """E."""
        return len(self.lengths)

    @property
    def n_steps(self) -> int:
        """Steps of all episodes, each counted once: context is not."""
        if self.drawable is not None:
            return int(self.drawable.sum())
        return int(self.lengths.sum()) - len(self.lengths)

    @property
    def is_step(self) -> np.ndarray:
        """`[R]` bool, False at the moment after each episode's last step."""
        steps = np.ones(int(self.lengths.sum()), bool)
        steps[np.cumsum(self.lengths) - 1] = False
        return steps


_FINISHED = ("episode_return", "episode_length")
# Of each moment, for an episode that does not say; see `_with_defaults`.
_DEFAULT_BYTES = {"truncated": 1, "version": 8, "discount": 4}
_LENGTH_BYTES = 8


def packed(made: Sequence[Episode | Packed], version: int = 0) -> Packed:
    """Returns what sources gave, single episodes or packed ones, as one.

    Args:
        made: at least one.
        version: of the parameters, for those that do not say.

    Raises:
        ValueError: as of `pack`.
    """
    if not any(isinstance(one, Packed) for one in made):
        return pack(made, version)  # type: ignore[arg-type]
    parts = [_completed(one, version) if isinstance(one, Packed) else pack([one], version) for one in made]
    if len(parts) == 1:
        return parts[0]
    for part in parts:
        if part.columns.keys() != parts[0].columns.keys():
            raise ValueError(
                f"episodes must have equal keys, got {sorted(parts[0].columns)} and {sorted(part.columns)}"
            )
    drawable = None
    if any(part.drawable is not None for part in parts):
        drawable = np.concatenate([part.is_step if part.drawable is None else part.drawable for part in parts])
    return Packed(
        {key: np.concatenate([part.columns[key] for part in parts]) for key in parts[0].columns},
        np.concatenate([part.lengths for part in parts]),
        drawable,
        {
            key: np.concatenate([part.finished[key] for part in parts if key in part.finished])
            for key in _FINISHED
            if any(key in part.finished for part in parts)
        },
    )


def pack(episodes: Sequence[Episode], version: int = 0) -> Packed:
    """Returns the episodes in one array a key.

    Args:
        episodes: at least one; all with equal keys.
        version: of the parameters, for episodes that do not say.

    Raises:
        ValueError: an episode without steps, with anything but numbers, or with keys or shapes unlike the first one's.
    """
    n_steps = np.array([n_steps_of(episode) for episode in episodes])
    lengths = n_steps + 1
    last_rows = np.cumsum(lengths) - 1
    is_step = np.ones(last_rows[-1] + 1, bool)
    is_step[last_rows] = False
    for episode in episodes:
        if episode.keys() != episodes[0].keys():
            raise ValueError(f"episodes must have equal keys, got {sorted(episodes[0])} and {sorted(episode)}")
    columns = {
        key: _column(key, [np.asarray(e[key]) for e in episodes], n_steps, is_step, last_rows)
        for key in episodes[0]
        if key not in _FINISHED
    }
    finished = {key: np.array([float(e[key]) for e in episodes], np.float32) for key in _FINISHED if key in episodes[0]}
    columns = _with_defaults(columns, is_step, version)
    if "value" in columns and len(episodes[0]["value"]) == n_steps[0]:
        # Nothing was said of the last moment: where it goes on, the value before it stands in,
        # seen by whoever moves there.
        value, goes_on = columns["value"], columns["discount"][last_rows - 1] != 0
        value[last_rows] = np.where(goes_on, value[last_rows - 1], 0)
        if "to_play" in columns:
            changed = columns["to_play"][last_rows] != columns["to_play"][last_rows - 1]
            value[last_rows] *= np.where(changed, -1, 1).astype(value.dtype)
    return Packed(columns, lengths, finished=finished)


def owned(made: Episode | Packed) -> Episode | Packed:
    """Returns what a source gave in arrays that nobody else writes to."""
    if not isinstance(made, Packed):
        return {key: np.asarray(value).copy() for key, value in made.items()}
    return Packed(
        {key: column.copy() for key, column in made.columns.items()},
        made.lengths.copy(),
        None if made.drawable is None else made.drawable.copy(),
        {key: figures.copy() for key, figures in made.finished.items()},
    )


def n_packed_bytes(made: Episode | Packed) -> int:
    """Returns how many bytes what a source gave takes in `packed`, where a constant stands at each moment.

    Raises:
        ValueError: an episode without steps.
    """
    said: Mapping[str, Any] = made.columns if isinstance(made, Packed) else made
    if isinstance(made, Packed):
        rows = int(made.lengths.sum())
        n_bytes = sum(column.nbytes for column in made.columns.values()) + made.lengths.nbytes
        n_bytes += 0 if made.drawable is None else made.drawable.nbytes
    else:
        rows, n_bytes = n_steps_of(made) + 1, _LENGTH_BYTES
        for key, value in said.items():
            if key not in _FINISHED:
                array = np.asarray(value)
                along = array.ndim and len(array) in (rows - 1, rows)
                n_bytes += rows * (array.nbytes // len(array) if along else array.nbytes)
    return n_bytes + rows * sum(size for key, size in _DEFAULT_BYTES.items() if key not in said)


def _completed(episodes: Packed, version: int) -> Packed:
    columns = _with_defaults(dict(episodes.columns), episodes.is_step, version)
    return Packed(columns, episodes.lengths, episodes.drawable, episodes.finished)


def _with_defaults(columns: dict[str, np.ndarray], is_step: np.ndarray, version: int) -> dict[str, np.ndarray]:
    """Adds what an episode need not say: that it was not cut off, that its last step ended it, and its version."""
    truncated = columns.setdefault("truncated", np.zeros(len(is_step), bool))
    columns.setdefault("version", np.full(len(is_step), version, np.int64))
    if "discount" not in columns:
        last_rows = np.flatnonzero(~is_step)
        columns["discount"] = is_step.astype(np.float32)
        cut = (truncated[last_rows - 1] != 0) | (truncated[last_rows] != 0)  # as the last step says, or the episode
        passed_over = np.logical_or.reduceat(truncated != 0, np.append(0, last_rows[:-1] + 1)) & ~cut
        if passed_over.any():
            raise ValueError(
                f"truncated must be true at an episode's last step or nowhere, episode {passed_over.argmax()} of "
                f"{len(cut)} goes on after a step that cut it off: give what follows as an episode of its own"
            )
        columns["discount"][last_rows - 1] = cut
    return columns


def n_steps_of(episode: Episode | Packed) -> int:
    """Returns T of an episode, or the steps of packed ones.

    Raises:
        TypeError: it is no dict.
        ValueError: it has no steps.
    """
    if isinstance(episode, Packed):
        return episode.n_steps
    if not isinstance(episode, Mapping):
        raise TypeError(f"an episode must be a dict of arrays over time, got {type(episode).__name__}")
    for key in _TELLS_STEPS:
        if key in episode:
            if len(episode[key]) == 0:
                raise ValueError(f"an episode must have at least one step, got an empty {key!r}")
            return len(episode[key])
    raise ValueError(f"an episode needs one of the keys {_TELLS_STEPS} to tell its steps, got {sorted(episode)}")


def _column(
    key: str, values: Sequence[np.ndarray], n_steps: np.ndarray, is_step: np.ndarray, last_rows: np.ndarray
) -> np.ndarray:
    """Returns one key of all episodes as rows."""
    first = values[0]
    if first.dtype.kind not in "biufc":
        raise ValueError(f"{key!r} must hold numbers, got the dtype {first.dtype}: encode text and objects as numbers")
    extra = len(first) - int(n_steps[0]) if first.ndim else -1
    along = extra in (0, 1) and all(v.ndim and len(v) == n + extra for v, n in zip(values, n_steps, strict=True))
    if along or (extra in (0, 1) and key in _OVER_TIME):
        for value, n in zip(values, n_steps, strict=True):
            if value.ndim == 0 or len(value) != n + extra or value.shape[1:] != first.shape[1:]:
                raise ValueError(
                    f"{key!r} must have {'T + 1' if extra else 'T'} entries of shape {first.shape[1:]} as in the first "
                    f"episode, got shape {value.shape} for T = {n}"
                )
        joined = np.concatenate(values)
        if extra:
            return joined
        column = np.zeros((len(is_step), *first.shape[1:]), joined.dtype)
        column[is_step] = joined
        if key == "to_play":  # whoever moved last stands in for the moment after
            column[last_rows] = column[last_rows - 1]
        return column
    for value, n in zip(values, n_steps, strict=True):
        if value.shape != first.shape:
            raise ValueError(
                f"{key!r} must have T or T + 1 entries, or one shape in all episodes, got {value.shape} for T = {n} "
                f"and {first.shape} for T = {n_steps[0]}: {READINGS}"
            )
    return np.repeat(np.stack(values), n_steps + 1, axis=0)
