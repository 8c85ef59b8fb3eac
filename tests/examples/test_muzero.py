from dataclasses import replace

import numpy as np
import pytest
import torch

from ai.examples.muzero import Model, run
from ai.examples.muzero.main import PRESETS, Judge, mean_return
from ai.game import CartPole, Search, TicTacToe


@pytest.mark.slow
@pytest.mark.parametrize("game", ["tictactoe", "cartpole"])
def test_the_tiny_preset_trains_and_is_measured(game, tmp_path):
    found = run(replace(PRESETS["tiny"], game=game, trial=str(tmp_path / "trial")))
    assert {"seconds", "environment_steps", "wrong_32" if game == "tictactoe" else "return_32"} <= found.keys()


def test_embeddings_lie_in_the_unit_interval_and_every_part_learns():
    model = Model().init(seed=0)
    obs, action = torch.randn(6, 2, 3, 3), torch.arange(6)
    state, reward = model.dynamics(model.represent(obs), action)
    assert float(state.detach().min()) == 0
    assert float(state.detach().max()) == pytest.approx(1)
    logits, value = model.predict(state)
    (logits.square().mean() + value.square().mean() + reward.square().mean()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_the_action_changes_what_the_model_expects():
    model = Model().init(seed=0)
    state = model.represent(torch.randn(1, 2, 3, 3)).expand(9, -1)
    following, _ = model.dynamics(state, torch.arange(9))
    assert len(torch.unique(following.detach(), dim=0)) == 9


def test_the_search_sees_the_observation_and_the_legal_moves_only():
    game = TicTacToe()
    model = Model().init(seed=0).eval()
    state = game.step(game.init(4), np.array([0, 1, 2, 3]))
    found = Search.learned(model, 9, simulations=16)(game.observe(state), legal=game.legal(state))
    assert (found.visits[np.arange(4), np.arange(4)] == 0).all()
    assert (found.visits.sum(1) == 16).all()


def test_the_mean_return_counts_the_steps_of_cartpole():
    game = CartPole()
    always_left = lambda state: np.zeros(len(state), np.int64)  # noqa: E731
    assert 8 <= mean_return(game, always_left, 20) <= 11
    assert mean_return(CartPole(max_steps=3), Judge(game, Model((4,), 2).init(seed=0), 0), 5) == 3
