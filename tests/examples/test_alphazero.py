import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from ai.examples.alphazero import MLP, ResNet, run
from ai.examples.alphazero.loss import AlphaZero
from ai.examples.alphazero.main import PRESETS
from ai.examples.alphazero.truth import Judge, lost_lines, wrong_moves
from ai.game import TicTacToe, solve


@pytest.fixture(scope="module")
def solution():
    return solve(TicTacToe())


@pytest.mark.slow
def test_the_tiny_preset_trains_and_is_measured(tmp_path):
    found = run(replace(PRESETS["tiny"], trial=str(tmp_path / "trial")))
    assert {"wrong_0", "lost_0", "wrong_32", "lost_32", "seconds"} <= found.keys()
    assert (tmp_path / "trial" / "metrics.jsonl").exists()


@pytest.mark.slow
def test_a_resumed_run_ends_as_one_never_stopped(tmp_path):
    config = replace(PRESETS["tiny"], steps=6, save_interval=3)
    whole = run(replace(config, trial=str(tmp_path / "whole")))
    parts = replace(config, trial=str(tmp_path / "parts"))
    # a copy of the snapshot at 3 stands for a run that was killed there
    run(parts)
    snapshots = sorted((tmp_path / "parts" / "snapshots").iterdir())
    shutil.rmtree(snapshots[-1])
    again = run(replace(parts, resume=True))
    assert {k: v for k, v in again.items() if k != "seconds"} == {k: v for k, v in whole.items() if k != "seconds"}


def test_networks_have_the_shapes_of_their_games():
    for model, shape, actions in ((MLP(), (2, 3, 3), 9), (ResNet(nc=8, n_blocks=1), (2, 6, 7), 7)):
        logits, value = model.init(seed=0)(torch.randn(5, *shape))
        assert logits.shape == (5, actions)
        assert value.shape == (5,)
        assert value.abs().max() <= 1


def batch(n=4):
    generator = torch.Generator().manual_seed(0)
    legal = torch.rand(n, 9, generator=generator) < 0.6
    legal[:, 0] = True
    policy = torch.rand(n, 9, generator=generator) * legal
    return {
        "obs": torch.randn(n, 2, 3, 3, generator=generator),
        "legal": legal,
        "policy": policy / policy.sum(1, keepdim=True),
        "target": torch.tensor([1.0, -1.0, 0.0, 1.0]),
        "value": torch.tensor([0.5, 0.5, -0.5, 0.0]),
        "full": torch.tensor([1.0, 0.0, 1.0, 0.0]),
    }


def test_the_loss_is_the_published_one_over_legal_moves():
    data = batch()
    logits = torch.randn(4, 9, generator=torch.Generator().manual_seed(1))
    value = torch.tensor([0.1, 0.2, 0.3, 0.4])
    model = lambda x: (logits, value)  # noqa: E731
    found = AlphaZero(value_weight=2.0, search_share=0.25, fast_weight=0.5)(model, data, 0)
    policy_loss = weights = 0.0
    for row in range(4):
        legal = data["legal"][row]
        log_p = logits[row][legal].double().log_softmax(0)
        weight = 1.0 if data["full"][row] else 0.5
        policy_loss -= weight * float((data["policy"][row][legal] * log_p).sum())
        weights += weight
    target = 0.75 * data["target"] + 0.25 * data["value"]
    expected = policy_loss / weights + 2.0 * float(((value - target) ** 2).mean())
    assert float(found) == pytest.approx(expected, abs=1e-5)


def test_shares_outside_their_range_are_refused():
    with pytest.raises(ValueError, match=r"search_share must be in \[0, 1\], got 2"):
        AlphaZero(search_share=2)


class Oracle(torch.nn.Module):
    """Knows the truth, or its opposite."""

    def __init__(self, solution, sign):
        super().__init__()
        self.table = {}
        observed = solution.game.observe(solution.states)
        for key, score in zip(observed, solution.scores, strict=True):
            self.table[key.tobytes()] = np.where(score > -9, sign * score, -9)

    def forward(self, x):
        scores = np.array([self.table[row.numpy().tobytes()] for row in x])
        return torch.from_numpy(scores * 50), torch.from_numpy(scores.max(1))


def test_the_truth_finds_no_fault_with_perfect_play_and_many_with_the_worst(solution):
    game = TicTacToe()
    perfect = Judge(game, Oracle(solution, 1.0), 0)
    assert wrong_moves(solution, perfect) == 0
    assert lost_lines(game, perfect) == 0
    worst = Judge(game, Oracle(solution, -1.0), 0)
    assert wrong_moves(solution, worst) > 2000
    assert lost_lines(game, worst) > 10
