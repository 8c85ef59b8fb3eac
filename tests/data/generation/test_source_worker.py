"""What travels together: by steps, or by bytes where the engine says how many a message should hold."""

import itertools

import numpy as np
import pytest

from ai.data.episodes.packing import packed
from ai.data.generation import source_worker


def episode():
    """Of 4 steps and 100 bytes."""
    return {"obs": np.zeros((5, 4), np.float32), "action": np.zeros(4, np.int32), "who": np.int32(1)}


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    monkeypatch.setattr(source_worker, "_CHUNK_S", 600.0)
    monkeypatch.setattr(source_worker, "_CHUNK_STEPS", 10)


@pytest.mark.parametrize(
    ("message_bytes", "n"),
    [(None, 2), (1000, 10), (1099, 10), (1100, 11), (199, 1), (0, 1)],
    ids=["10 steps", "exactly full", "no room for one", "room for one", "one", "never none"],
)
def test_a_message_is_filled_as_far_as_one_more_would_fit(message_bytes, n):
    made, ended = source_worker._chunk(map(lambda _: episode(), itertools.count()), message_bytes)
    assert (len(made), ended) == (n, False)


def test_packed_episodes_count_by_what_they_hold():
    two = packed([episode(), episode()])
    n_bytes = sum(column.nbytes for column in two.columns.values())
    made, _ = source_worker._chunk(itertools.repeat(two), 3 * n_bytes)
    assert len(made) == 3


def test_a_source_that_ends_says_so_with_what_it_made_last():
    made, ended = source_worker._chunk(iter([episode()]), 10_000)
    assert (len(made), ended) == (1, True)
