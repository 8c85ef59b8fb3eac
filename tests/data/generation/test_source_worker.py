"""What travels together: by steps, or by bytes where the engine says how many a message should hold."""

import itertools

import numpy as np
import pytest
import torch

from ai.data.episodes.packing import Packed, n_packed_bytes, packed
from ai.data.generation import source_worker


def episode():
    """Of 4 steps: 5 moments of 16, 4 and 4 bytes, and 13 of what it does not say; its length takes 8."""
    return {"obs": np.zeros((5, 4), np.float32), "action": np.zeros(4, np.int32), "who": np.int32(1)}


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    monkeypatch.setattr(source_worker, "_CHUNK_S", 600.0)
    monkeypatch.setattr(source_worker, "_CHUNK_STEPS", 10)


@pytest.mark.parametrize(
    ("message_bytes", "n"),
    [(None, 3), (1930, 10), (2122, 10), (2123, 11), (385, 1), (0, 1)],
    ids=["10 steps", "exactly full", "no room for one", "room for one", "one", "never none"],
)
def test_a_message_is_filled_as_far_as_one_more_would_fit(message_bytes, n):
    made, ended = source_worker._chunk(map(lambda _: episode(), itertools.count()), message_bytes)
    assert (len(made), ended) == (n, False)


def held(made: Packed) -> int:
    kept = [*made.columns.values(), made.lengths, *([] if made.drawable is None else [made.drawable])]
    return sum(array.nbytes for array in kept)


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"context": np.zeros(1000)},  # which stands at each moment
        {"reward": [0.0] * 4, "to_play": [0, 1, 0, 1, 0], "policy": torch.zeros(4, 9)},
        {"truncated": True, "version": 3, "discount": np.ones(4, np.float32)},
        {"nothing": np.zeros((4, 0)), "episode_return": 2.0, "episode_length": 4},
    ],
    ids=["little", "a constant", "lists and tensors", "what need not be said", "empty and for the log"],
)
def test_an_episode_counts_by_what_it_takes_packed(more):
    assert n_packed_bytes({**episode(), **more}) == held(packed([{**episode(), **more}]))


def test_packed_episodes_count_by_what_they_hold():
    columns = {"obs": np.zeros((10, 4), np.float32), "action": np.zeros(10, np.int32)}
    two = Packed(columns, np.array([5, 5]), np.arange(10) % 5 < 2)
    assert n_packed_bytes(two) == held(packed([two]))
    made, _ = source_worker._chunk(itertools.repeat(two), 3 * n_packed_bytes(two))
    assert len(made) == 3


@pytest.mark.parametrize("message_bytes", [None, 1000])
@pytest.mark.parametrize("made", [[1, 2], None, 3])
def test_what_is_no_episode_is_told_as_such(made, message_bytes):
    with pytest.raises(TypeError, match=f"an episode must be a dict of arrays over time, got {type(made).__name__}"):
        source_worker._chunk(itertools.repeat(made), message_bytes)


@pytest.mark.parametrize("is_packed", [False, True])
def test_a_source_may_write_to_what_it_gave_again(is_packed):
    """As an emulator does to its frames: in this process each episode is stored before the next one is made."""
    obs, action = np.zeros((5, 4), np.float32), torch.zeros(4, dtype=torch.int32)
    drawable, lengths = np.ones(5, bool), np.array([5])

    def source():
        for n in range(3):
            obs[:], action[:], drawable[:] = n, n, n == 1
            made = {"obs": obs, "action": action, "who": np.int32(n)}
            yield (
                made
                if not is_packed
                else Packed({"obs": obs, "action": packed([made]).columns["action"]}, lengths, drawable)
            )

    made = packed(source_worker._chunk(source(), 10_000)[0])
    assert made.columns["obs"][:, 0].tolist() == sorted(5 * [0, 1, 2])
    assert made.columns["action"][made.is_step].tolist() == sorted(4 * [0, 1, 2])
    if is_packed:
        assert made.drawable.tolist() == 5 * [False] + 5 * [True] + 5 * [False]


def test_a_source_that_ends_says_so_with_what_it_made_last():
    made, ended = source_worker._chunk(iter([episode()]), 10_000)
    assert (len(made), ended) == (1, True)
