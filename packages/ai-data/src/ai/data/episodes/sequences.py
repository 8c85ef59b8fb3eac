"""Episodes cut into sequences of one length, for models with a memory.

Letters: S sequences, L steps of each, R rows of packed episodes.
"""

import numpy as np


def cut(lengths: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the rows `[S, L]` of sequences of up to `length` steps, and the mask `[S, L]` of those that are steps.

    No sequence reaches over an episode's end; a shorter one repeats its last step.

    Args:
        lengths: T + 1 of each packed episode.
        length: L.

    >>> rows, mask = cut(np.array([4, 3]), 2)
    >>> rows.tolist(), mask.tolist()
    ([[0, 1], [2, 2], [4, 5]], [[True, True], [True, False], [True, True]])
    """
    steps = lengths - 1
    per_episode = -(-steps // length)
    first_rows = np.repeat(np.cumsum(lengths) - lengths, per_episode)
    number = np.arange(int(per_episode.sum())) - np.repeat(np.cumsum(per_episode) - per_episode, per_episode)
    offset = number[:, None] * length + np.arange(length)
    last = np.repeat(steps, per_episode)[:, None] - 1
    return first_rows[:, None] + np.minimum(offset, last), offset <= last
