import numpy as np
import pytest

from ai.examples import twenty48
from ai.examples.twenty48 import SPREAD, Tuples, played, reproduce
from ai.game import fast, greedy_player


@pytest.fixture
def tuples(monkeypatch):
    monkeypatch.setattr(fast, "available", lambda: False)  # it runs as it stands: to compile it takes seconds
    return Tuples()


def position(tuples, board):
    state = tuples.game.init(1)
    state["waiting"], state["board"][0] = 0, board
    return state


def test_a_place_shares_its_table_with_those_turned_and_mirrored(tuples):
    tuples.tables[:] = np.random.default_rng(0).random(tuples.tables.shape)
    board = np.array([[1, 2, 3, 4], [0, 1, 0, 2], [0, 0, 6, 0], [5, 0, 0, 1]])
    seen = [np.rot90(side, turn) for side in (board, board.T) for turn in range(4)]
    values = [tuples.evaluate(position(tuples, side))[1][0] for side in seen]
    np.testing.assert_allclose(values, values[0])
    assert tuples.places.shape == (40, 4)
    corner = (tuples.places == 0).any(axis=1)
    assert corner.reshape(5, 8).sum(axis=1).tolist() == [4, 0, 2, 0, 0]  # a row's, and two squares' of eight


def test_logits_and_values_are_what_slides_pay_and_lead_to(tuples):
    board = [[1, 1, 0, 0], [2, 3, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    logits, value = tuples.evaluate(position(tuples, board))  # nothing is learnt: only what is paid counts
    assert value[0] == 4
    np.testing.assert_allclose(logits[0, 1:4] * SPREAD, [0, -4, 0])  # up may not be made
    tuples.tables[0, 0] = 3.0  # of an empty row or column at the edge, and its eight places
    assert tuples.evaluate(position(tuples, board))[1][0] > 4


def test_it_learns_what_is_to_be_earned_and_plays_to_the_end(tuples):
    assert tuples.learn(1, rate=0.5, luck=np.random.default_rng(0)) > 100
    assert (tuples.tables > 0).sum() > 100
    score, tile, slides = played(greedy_player(tuples.game, tuples), 2, np.random.default_rng(0))
    assert (score > 0).all()
    assert set(tile) <= {2**k for k in range(3, 12)}
    assert slides > 60


def test_neighbouring_seeds_learn_and_play_by_other_luck(tuples, monkeypatch):
    drawn, clock = [], iter(np.arange(99) * 20.0)  # a minute is over after three rounds
    monkeypatch.setattr(twenty48.time, "process_time", lambda: next(clock))
    monkeypatch.setattr(Tuples, "learn", lambda self, games, rate, luck: drawn.append(luck.random()) or 0.0)
    monkeypatch.setattr(
        twenty48, "played", lambda player, games, luck: drawn.append(luck.random()) or (np.zeros(1), np.ones(1), 1)
    )
    for seed in range(3):
        reproduce(seed=seed, minutes=1, games=1, simulations=())
    learnt_and_played = np.reshape(drawn, (3, -1))
    assert (learnt_and_played[:, -1] == learnt_and_played[:, -2]).all()  # the players meet the same tiles
    assert len(np.unique(drawn)) == learnt_and_played[:, 1:].size


@pytest.mark.parametrize("wrong", [{"games": 0}, {"minutes": 0}])
def test_numbers_that_leave_nothing_to_do_are_refused(wrong):
    with pytest.raises(ValueError, match="games and minutes must be above 0"):
        reproduce(**wrong)
