"""Draws from a buffer that is not added to."""

import numpy as np
import pytest
import torch

from ai.data import Draws, ReplayBuffer


def filled(n=20, **how):
    buffer = ReplayBuffer(100, n_step=1, seed=3, **how)
    buffer.add({"obs": np.arange(n + 1), "action": np.zeros(n), "reward": np.arange(n, dtype=np.float32)})
    return buffer


def test_draws_go_on_from_a_position_that_holds_no_rows():
    first, second = Draws(filled(), 8), Draws(filled(), 8)
    for _ in range(3):
        next(first)
    state = first.state_dict()
    assert "columns" not in state
    second.load_state_dict(state)
    for _ in range(3):
        a, b = next(first), next(second)
        assert torch.equal(a["obs"], b["obs"])
    assert second.buffer.n_drawn == 48
    assert (a["next_obs"] == a["obs"] + 1).all()


def test_ranks_draw_apart_and_their_batches_are_changed_apart():
    def of_rank(rank):
        return Draws(filled(), 8, postprocess=lambda b, generator: {**b, "r": torch.rand(1, generator=generator)})

    ranks = [of_rank(rank).shard(rank, 2) for rank in (0, 1, 1)]
    zero, one, same = (next(rank) for rank in ranks)
    assert zero["obs"].tolist() != one["obs"].tolist() == same["obs"].tolist()
    assert zero["r"] != one["r"] == same["r"]
    other = of_rank(1).shard(1, 2)
    other.load_state_dict(ranks[1].state_dict())
    assert next(other)["obs"].tolist() == next(ranks[1])["obs"].tolist()


def test_a_position_in_another_buffer_is_refused():
    with pytest.raises(ValueError, match="the state is of a buffer with 21 rows, this one has 31"):
        Draws(filled(30), 8).load_state_dict(Draws(filled(), 8).state_dict())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Draws(filled(), 0), "batch_size must be at least 1, got 0"),
        (lambda: Draws(ReplayBuffer(10), 4), "buffer must hold steps that may be drawn, it holds none"),
        (lambda: Draws(filled(alpha=0.6), 4), "must draw uniformly .* got alpha 0.6 and max_reuse None"),
        (lambda: Draws(filled(max_reuse=2), 4), "must draw uniformly .* got alpha None and max_reuse 2"),
    ],
)
def test_buffers_of_which_a_position_does_not_tell_all_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
