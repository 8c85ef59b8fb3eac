import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from ai.game import (
    ConnectFour,
    OpenSpielGame,
    Play,
    Puct,
    RolloutEvaluator,
    Search,
    SelfPlay,
    check,
    draws,
    match,
    random_player,
    search_player,
)

pyspiel = pytest.importorskip("pyspiel")


@pytest.mark.parametrize("name", ["connect_four", "hex(board_size=3)", "pig(winscore=8)", "go(board_size=3)"])
def test_games_keep_the_protocol(name):
    check(OpenSpielGame(name), batch=4)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "moves"), [("chess", 120), ("go(board_size=9)", 400), ("backgammon", 200)])
def test_large_games_keep_the_protocol(name, moves):
    check(OpenSpielGame(name, max_moves=moves), batch=2)


def test_it_is_the_built_in_game():
    ours, theirs = ConnectFour(), OpenSpielGame("connect_four")
    x, y, seeds = ours.init(8), theirs.init(8), draws.row_seeds(0, 8)
    for ply in range(42):
        legal = ours.legal(x)
        np.testing.assert_array_equal(legal, theirs.legal(y))
        action = draws.choose(draws.fold_in(seeds, ply), np.where(legal.any(1, keepdims=True), legal, 1.0))
        x, y = ours.step(x, action), theirs.step(y, action)
        np.testing.assert_array_equal(ours.reward(x), theirs.reward(y))
        np.testing.assert_array_equal(ours.terminal(x), theirs.terminal(y))
        live = ~ours.terminal(x)
        np.testing.assert_array_equal(ours.to_play(x)[live], theirs.to_play(y)[live])


def test_a_state_is_its_moves_and_survives_a_pickle_and_a_short_memory():
    game = OpenSpielGame("connect_four", keep=2)
    state = game.init(3)
    for column in (3, 3, 2, 4):
        state = game.step(state, np.full(3, column))
    for other in (pickle.loads(pickle.dumps(game)), copy.deepcopy(game), OpenSpielGame("connect_four")):
        np.testing.assert_array_equal(other.observe(state), game.observe(state))
        assert other.render(state) == game.render(state)


def test_threads_share_a_game():
    game = OpenSpielGame("connect_four", keep=5)

    def play(seed):
        return match(game, random_player(game), random_player(game), 6, seed=seed)

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(play, range(8)))
    assert together == [play(seed) for seed in range(8)]


def test_luck_is_played_and_searched():
    game = OpenSpielGame("pig(winscore=12)")
    start = game.init(2)
    assert not game.chance(start).any()
    rolled = game.step(start, np.zeros(2, int))
    np.testing.assert_allclose(game.chance(rolled)[0, :6], 1 / 6)
    flat = lambda x: (torch.zeros(len(x), game.num_actions), torch.zeros(len(x)))  # noqa: E731
    found = Search(game, flat, simulations=20, rule=Puct())(start)
    assert found.visits.sum() == 40
    play = SelfPlay(game, evaluator=flat, play=Play(games=2, simulations=4))
    play.start(0, 0)
    assert next(play)["reward"].sum() in (1, -1)


def test_a_search_beats_chance_at_a_game_it_was_never_told_of():
    game = OpenSpielGame("hex(board_size=3)")
    search = Search(game, RolloutEvaluator(game), simulations=24, rule=Puct())
    assert match(game, search_player(search), random_player(game), 12, opening_moves=1).points > 0.7


def test_what_it_cannot_play_is_refused():
    for name, rule in (
        ("no_such_game", "name must be of a game of OpenSpiel, got 'no_such_game'"),
        ("goofspiel", "whose players take turns, those of goofspiel move at once"),
        ("kuhn_poker", "whose players see everything, those of kuhn_poker do not"),
        ("chinese_checkers(players=3)", "for one or two"),
    ):
        if name.partition("(")[0] in [*pyspiel.registered_names(), "no_such_game"]:
            with pytest.raises(ValueError, match=rule):
                OpenSpielGame(name)
    with pytest.raises(ValueError, match="max_moves must be at least 1, got 0"):
        OpenSpielGame("hex", max_moves=0)
