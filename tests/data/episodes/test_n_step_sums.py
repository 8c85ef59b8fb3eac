import copy
import math

import numpy as np
import pytest
import torch

from ai.data import Packed, ReplayBuffer
from ai.data.episodes.packing import pack


def episode(length, seed, *, cut=False, two_players=False):
    """An episode with rewards of its own."""
    rng = np.random.default_rng(seed)
    made = {
        "obs": np.arange(length + 1, dtype=np.float32) + 100 * seed,
        "action": np.zeros(length, np.int64),
        "reward": rng.normal(size=length).astype(np.float32),
        "truncated": np.arange(length) == (length - 1 if cut else -1),
    }
    return made | ({"to_play": np.arange(length + 1) % 2} if two_players else {})


def slow(columns, begin, end, place, n_step, gamma):
    """One row's sum and factor by the definition, a step at a time; rows by their numbers."""
    total, factor, number = 0.0, 1.0, place
    player = columns["to_play"] if "to_play" in columns else np.zeros(len(columns["reward"]))
    while number < end and number < place + n_step:
        total += factor * columns["reward"][number] * (1 if player[number] == player[place] else -1)
        factor *= gamma * columns["discount"][number]
        number += 1
    return total, factor * (1 if player[number] == player[place] else -1)


def check(buffer, n_step, gamma):
    """Every row that is drawn has the sums of the steps after it, as the ring holds them now."""
    batch = buffer.sample(30)
    columns = {key: column.numpy() for key, column in buffer.columns.items()}
    first = max(0, buffer.n_written - buffer.capacity)
    drawn = torch.stack([batch["n_step_reward"], batch["next_discount"]], 1).tolist()
    for index, (reward, discount) in zip(batch["index"].tolist(), drawn, strict=True):
        n_left = len(buffer.episode(index)["index"]) - 1
        at = index - first
        wanted = slow(columns, at, at + n_left, at, n_step, gamma)
        assert (reward, discount) == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("two_players", [False, True])
@pytest.mark.parametrize("n_step", [1, 3, 50])
def test_sums_are_of_what_lies_in_the_ring_now_however_it_was_written(n_step, two_players):
    buffer = ReplayBuffer(41, n_step=n_step, gamma=0.9)
    for seed in range(12):  # around the ring more than once
        buffer.add(episode(3 + 2 * seed % 9, seed, cut=seed % 3 == 0, two_players=two_players))
        if seed % 4 == 3:
            check(buffer, n_step, 0.9)
    numbers = buffer.sample(8)["index"]
    buffer.update(numbers, reward=torch.arange(8.0))
    check(buffer, n_step, 0.9)
    other = ReplayBuffer(41, n_step=n_step, gamma=0.9)
    other.add(episode(5, 99, two_players=two_players))
    other.load_state_dict(buffer.state_dict())
    check(other, n_step, 0.9)
    for each in (buffer, other):
        each.add(episode(7, 50, two_players=two_players))
    other.load_state_dict(buffer.state_dict())
    a, b = buffer.sample(64), other.sample(64)
    assert all(torch.equal(a[key], b[key]) for key in a)  # to the bit


def test_another_discount_or_number_of_steps_holds_from_the_next_draw_on():
    buffer = ReplayBuffer(50, n_step=2, gamma=0.5)
    buffer.add(episode(9, 0, cut=True))
    check(buffer, 2, 0.5)
    buffer.gamma = 0.25
    check(buffer, 2, 0.25)
    buffer.n_step = 4
    check(buffer, 4, 0.25)
    buffer.add(episode(9, 1))
    check(buffer, 4, 0.25)


def test_a_shallow_copy_draws_with_other_numbers_from_the_ring_that_both_write():
    one = ReplayBuffer(41, n_step=2, gamma=0.5)
    one.add(episode(9, 0, cut=True))
    other = copy.copy(one)
    other.n_step, other.gamma = 4, 0.9
    for seed in range(1, 8):
        check(one, 2, 0.5)
        check(other, 4, 0.9)
        writes = other if seed % 2 else one
        writes.add(episode(5, seed))
        check(one, 2, 0.5)
        check(other, 4, 0.9)
        writes.update(one.sample(3)["index"], reward=torch.arange(3.0))


def test_a_sum_is_the_same_to_the_bit_whatever_is_summed_beside_it():
    whole, alone = (ReplayBuffer(400, n_step=7, gamma=0.97) for _ in range(2))
    for seed in range(20):
        whole.add(episode(1 + seed, seed))
    alone.load_state_dict(whole.state_dict())  # all at once, in one call
    a, b = whole.sample(300), alone.sample(300)
    assert all(torch.equal(a[key], b[key]) for key in ("n_step_reward", "next_discount"))


def test_unrolled_draws_have_the_sums_of_each_of_their_rows():
    buffer = ReplayBuffer(60, n_step=2, gamma=0.5, unroll=3)
    for seed in range(8):
        buffer.add(episode(4 + seed, seed, cut=seed % 2 == 0))
    batch = buffer.sample(50)
    first = max(0, buffer.n_written - buffer.capacity)
    columns = {key: column.numpy() for key, column in buffer.columns.items()}
    for row, index in enumerate(batch["index"].tolist()):
        end = int(buffer.episode(index)["index"][-1])
        for k in range(4):
            at = min(index + k, end)
            if at == end:  # nothing is gained, and nothing beyond a true end
                factor = 1.0 if columns["discount"][end - first - 1] else 0.0
                wanted = 0.0, factor
            else:
                wanted = slow(columns, None, end - first, at - first, 2, 0.5)
            assert (float(batch["n_step_reward"][row, k]), float(batch["next_discount"][row, k])) == pytest.approx(
                wanted
            )


def test_an_end_that_is_rewritten_holds_for_the_moment_after_it():
    buffer = ReplayBuffer(20, n_step=1, unroll=1)
    buffer.add({"obs": np.zeros(2), "action": np.zeros(1), "reward": np.ones(1), "discount": np.ones(1)})
    assert buffer.sample(1)["next_discount"].tolist() == [[1.0, 1.0]]
    buffer.update(torch.tensor([0]), discount=torch.zeros(1))
    assert buffer.sample(1)["next_discount"].tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize(
    "cut", [True, 1.0, 2, np.array([False, False, True]), [0, 0, 1], [0.0, 0.0, 1.0], [0, 0, 0, 3]]
)
def test_a_cut_is_a_cut_whether_the_episode_says_so_or_its_last_step(cut):
    buffer = ReplayBuffer(20, n_step=5, gamma=0.5)
    buffer.add({"obs": np.zeros(4), "action": np.zeros(3), "reward": np.ones(3), "truncated": cut})
    batch = buffer.sample(20)
    assert {*zip(batch["index"].tolist(), batch["next_discount"].tolist(), strict=True)} == {
        (0, 0.125),
        (1, 0.25),
        (2, 0.5),
    }


def test_an_episode_that_goes_on_after_a_cut_is_refused_and_one_without_discounts_too():
    buffer = ReplayBuffer(20, n_step=5)
    one = {"obs": np.zeros(4), "action": np.zeros(3), "reward": np.ones(3)}
    with pytest.raises(ValueError, match=r"truncated must be true at an episode's last step .*, episode 1 of 2 goes"):
        pack([{**one, "truncated": [0, 0, 1]}, {**one, "truncated": [0, 1, 0]}])
    columns = {key: column for key, column in pack([one]).columns.items() if key != "discount"}
    with pytest.raises(ValueError, match=r"n_step \(5\) needs a discount of packed episodes"):
        buffer.extend(Packed(columns, np.array([4])))
    assert (buffer.n_written, buffer.n_bytes) == (0, 0)


@pytest.mark.parametrize("two_players", [False, True])
def test_rows_that_are_rewritten_alone_or_many_at_once_reach_every_sum_they_are_part_of(two_players):
    rng, random = np.random.default_rng(0), torch.Generator().manual_seed(0)
    buffer = ReplayBuffer(64, n_step=6, gamma=0.9)
    for seed in range(14):
        buffer.add(episode(2 + seed % 9, seed, cut=seed % 2 == 0, two_players=two_players))
        for number in (np.arange(buffer.n_written), rng.integers(0, buffer.n_written, 3), np.array([-1])):
            at = torch.from_numpy(number)
            rewritten = {
                "reward": torch.randn(len(at), generator=random),
                "discount": torch.randint(0, 2, at.shape, generator=random),
            }
            if two_players:
                rewritten["to_play"] = torch.randint(0, 2, at.shape, generator=random)
            assert buffer.update(at, **rewritten) == int(((at >= max(0, buffer.n_written - 64)) & (at >= 0)).sum())
            check(buffer, 6, 0.9)


def test_all_rewards_to_the_end_need_no_sums():
    buffer = ReplayBuffer(20, n_step=math.inf)
    buffer.add(episode(4, 0))
    assert "n_step_reward" not in buffer.sample(2)
