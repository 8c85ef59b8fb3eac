import copy
import pickle
import sys

import numpy as np
import pytest

from ai.game import ConnectFour, PgxGame, Puct, RolloutEvaluator, Search, check, draws, match, random_player
from ai.game import search_player as by_search


def test_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pgx", None)
    with pytest.raises(ImportError, match=r"PgxGame needs JAX and pgx: install them with pip install 'packages/ai-g"):
        PgxGame("chess")


class TestWithPgx:
    """What needs pgx and JAX."""

    @pytest.fixture(autouse=True)
    def _installed(self):
        pytest.importorskip("jax")
        pytest.importorskip("pgx")

    @pytest.mark.parametrize("name", ["tic_tac_toe", "connect_four"])
    def test_games_keep_the_protocol(self, name):
        check(PgxGame(name), batch=4)

    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["animal_shogi", "chess", "gardner_chess", "go_9x9", "hex", "othello", "shogi"])
    def test_large_games_keep_the_protocol(self, name):
        check(PgxGame(name), batch=2, max_steps=1100)

    def test_it_is_the_built_in_game(self):
        ours, theirs = ConnectFour(), PgxGame("connect_four")
        x, y, seeds = ours.init(40), theirs.init(40), draws.row_seeds(0, 40)
        for ply in range(42):
            legal, over = ours.legal(x), ours.terminal(x)
            np.testing.assert_array_equal(legal, theirs.legal(y))
            action = draws.choose(draws.fold_in(seeds, ply), np.where(over[:, None], 1.0, legal))
            x, y = ours.step(x, action), theirs.step(y, action)
            np.testing.assert_array_equal(ours.reward(x), theirs.reward(y))
            np.testing.assert_array_equal(ours.terminal(x), theirs.terminal(y))
            live = ~ours.terminal(x)
            np.testing.assert_array_equal(ours.to_play(x)[live], theirs.to_play(y)[live])
            np.testing.assert_array_equal(ours.observe(x)[live, :2], theirs.observe(y)[live])
        assert ours.terminal(x).all()

    def test_copies_and_pickles_play_on(self):
        game = PgxGame("tic_tac_toe")
        state = game.step(game.init(3), np.array([4, 0, 8]))
        for other in (pickle.loads(pickle.dumps(game)), copy.deepcopy(game)):
            np.testing.assert_array_equal(other.observe(state), game.observe(state))
            assert other.step(state, np.array([1, 1, 1])).tobytes() == game.step(state, np.array([1, 1, 1])).tobytes()

    def test_an_illegal_move_is_refused_instead_of_lost(self):
        game = PgxGame("tic_tac_toe")
        state = game.step(game.init(2), np.array([4, 0]))
        with pytest.raises(ValueError, match="action must be legal, got 0 in row 1"):
            game.step(state, np.array([0, 0]))

    def test_a_search_beats_chance(self):
        game = PgxGame("tic_tac_toe")
        search = Search(game, RolloutEvaluator(game), simulations=24, rule=Puct())
        assert match(game, by_search(search), random_player(game), 12, opening_moves=1).points > 0.7

    def test_a_limit_of_moves_is_no_end(self):
        from pgx.tic_tac_toe import TicTacToe

        class Short(TicTacToe):
            def _step(self, state, action, key):
                after = super()._step(state, action, key)
                return after.replace(truncated=after._step_count >= 3)

        game = PgxGame(Short())
        state = game.init(1)
        for cell in (0, 4, 8):
            assert not game.terminal(state)[0]
            state = game.step(state, np.array([cell]))
        assert game.terminal(state)[0]
        assert game.truncated(state)[0]
        assert not game.legal(state).any()

    def test_a_game_where_both_can_win_is_refused(self):
        from pgx.tic_tac_toe import TicTacToe

        class Kind(TicTacToe):
            def _step(self, state, action, key):
                after = super()._step(state, action, key)
                return after.replace(rewards=after.rewards * 0 + 1)

        game = PgxGame(Kind())
        with pytest.raises(ValueError, match=r"one's gain is the other's loss, a move of it earned \[1.0, 1.0\]"):
            game.step(game.init(2), np.array([0, 1]))

    @pytest.mark.parametrize(
        ("name", "rule"),
        [
            ("no_such_game", "game must be one of pgx's, .*chess.*, got 'no_such_game'"),
            ("2048", "game must have no luck, the moves of 2048 have"),
            ("backgammon", "game must have no luck, the moves of backgammon have"),
            ("minatar-breakout", "game must have no luck, the moves of minatar-breakout have"),
            ("kuhn_poker", "game must begin alike each time, kuhn_poker begins by chance"),
            ("sparrow_mahjong", "game must be for one or two, sparrow_mahjong is for 3"),
        ],
    )
    def test_what_it_cannot_play_is_refused(self, name, rule):
        with pytest.raises(ValueError, match=rule):
            PgxGame(name)

    def test_what_is_no_game_is_refused(self):
        with pytest.raises(TypeError, match="game must be a name, such as 'chess', or an environment of pgx, got 3"):
            PgxGame(3)
