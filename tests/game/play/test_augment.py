import numpy as np
import pytest
import torch

from ai.data import Datagen, ReplayBuffer
from ai.game import Augment, ConnectFour, Play, SelfPlay, TicTacToe


def uniform(game):
    return lambda x: (torch.zeros(len(x), game.num_actions), torch.zeros(len(x)))


def batch(game, unroll=None, size=64, **buffer):
    source = SelfPlay(game, evaluator=uniform(game), play=Play(games=8, simulations=4))
    kept = ReplayBuffer(4000, unroll=unroll, n_step=5, **buffer)
    with Datagen(source).loader(size, n_workers=0, buffer=kept, min_steps=200) as loader:
        return next(iter(loader))


@pytest.mark.parametrize("game", [TicTacToe(), ConnectFour()], ids=lambda g: type(g).__name__)
def test_a_turned_row_is_a_legal_move_of_the_turned_board(game):
    plain = batch(game)
    turned = Augment(game)(plain)
    sides = set()
    for row in range(64):
        obs, policy = plain["obs"][row : row + 1].numpy(), plain["policy"][row : row + 1].numpy()
        one_hot = np.eye(game.num_actions, dtype=np.float32)[plain["action"][row : row + 1].numpy()]
        fits = []
        for side in range(game.num_symmetries):
            seen, expected = game.transform(obs, policy, np.array([side]))
            _, action = game.transform(obs, one_hot, np.array([side]))
            _, legal = game.transform(obs, plain["legal"][row : row + 1].numpy().astype("f4"), np.array([side]))
            fits.append(
                np.array_equal(seen[0], turned["obs"][row])
                and np.array_equal(expected[0], turned["policy"][row])
                and np.array_equal(legal[0], turned["legal"][row])
                and action[0].argmax() == turned["action"][row]
            )
        assert any(fits)
        sides.add(fits.index(True))
    assert len(sides) > 1
    assert turned["action"].dtype == plain["action"].dtype
    assert not torch.equal(turned["action"], plain["action"])


@pytest.mark.parametrize("first_only", [(), ("obs",)])
def test_all_moments_of_an_unrolled_row_are_turned_alike(first_only):
    game = TicTacToe()
    plain = batch(game, unroll=3, first_only=first_only)
    turned = Augment(game)(plain)
    assert turned["action"].shape == plain["action"].shape == (64, 4)
    for row in range(64):
        # played out from the turned position, the turned actions meet the turned legal moves
        obs = turned["obs"][row] if first_only else turned["obs"][row, 0]
        state = game.init(1)
        state["own"] = sum(1 << k for k in range(9) if obs[0].flatten()[k])
        state["stones"] = sum(1 << k for k in range(9) if obs.sum(0).flatten()[k])
        for k in range(4):
            if not plain["mask"][row, k]:
                break
            np.testing.assert_array_equal(game.legal(state)[0], turned["legal"][row, k])
            if not first_only:
                np.testing.assert_array_equal(game.observe(state)[0], turned["obs"][row, k])
            state = game.step(state, turned["action"][row, k : k + 1].numpy())


@pytest.mark.parametrize("moments", [(), (3,)], ids=["rows", "unrolled"])
def test_a_batch_of_no_rows_stays_one(moments):
    empty = {"index": torch.zeros(0, dtype=torch.int64), "obs": torch.zeros(0, *moments, 2, 3, 3)}
    assert Augment(TicTacToe())(empty)["obs"].shape == (0, *moments, 2, 3, 3)


def test_observations_of_another_game_are_refused():
    with pytest.raises(ValueError, match=r"obs must be \[B, …\] or \[B, K \+ 1, …\] of \(2, 6, 7\)"):
        Augment(ConnectFour())(batch(TicTacToe()))
