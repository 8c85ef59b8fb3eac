import numpy as np
import pytest

from ai.game import (
    Breakthrough,
    CartPole,
    ConnectFour,
    Gomoku,
    Hex,
    Hog,
    HogSolver,
    Othello,
    SlidingTiles,
    TicTacToe,
    Twenty48,
    check,
    fast,
    match,
    perfect_player,
)
from ai.game.games.connect4 import FULL, four_in_a_row
from ai.game.protocol import Game, SymmetricGame

GAMES = [TicTacToe(), ConnectFour(), CartPole(max_steps=60), SlidingTiles()]
SCALAR = [Othello(4), Gomoku(5, connect=4), Hex(4), Breakthrough(5), Twenty48()]


@pytest.mark.parametrize("game", GAMES, ids=lambda g: type(g).__name__)
def test_games_keep_the_protocol(engine, game):
    assert isinstance(game, Game)
    for seed in range(3):
        check(game, seed=seed)


@pytest.mark.parametrize("game", SCALAR, ids=lambda g: type(g).__name__)
def test_games_of_one_row_keep_the_protocol(engine, game):
    assert isinstance(game, Game)
    if game.num_players == 2 or engine == "numba":
        check(game, batch=8, repeats=game.num_players == 1)


@pytest.mark.parametrize("game", [*GAMES[:2], *SCALAR[:4]], ids=lambda g: type(g).__name__)
def test_compiled_and_numpy_rules_agree(game, monkeypatch):
    if not fast.available():
        pytest.skip("numba is not installed")
    rng = np.random.default_rng(0)
    batch = 200 if game in GAMES else 5
    state = game.init(batch)
    while not game.terminal(state).all():
        move = (game.legal(state) * rng.random((batch, game.num_actions))).argmax(1)
        compiled = [f(s) for s in (state, game.step(state, move)) for f in (game.observe, game.legal, game.reward)]
        after = game.step(state, move)
        with monkeypatch.context() as patch:
            patch.setattr(fast, "available", lambda: False)
            plain = [f(s) for s in (state, game.step(state, move)) for f in (game.observe, game.legal, game.reward)]
            same = game.step(state, move)
        for left, right in zip(compiled, plain, strict=True):
            np.testing.assert_array_equal(left, right)
        for name in game.dtype.names:
            np.testing.assert_array_equal(after[name], same[name])
        state = after


def test_four_in_a_row_is_found_wherever_a_slow_search_finds_it():
    rng = np.random.default_rng(0)
    boards = rng.random((3000, 6, 7)) < 0.45

    def slow(board):
        for r in range(6):
            for c in range(7):
                for dr, dc in ((0, 1), (1, 0), (1, 1), (1, -1)):
                    cells = [(r + k * dr, c + k * dc) for k in range(4)]
                    if all(0 <= y < 6 and 0 <= x < 7 and board[y, x] for y, x in cells):
                        return True
        return False

    bits = np.zeros(len(boards), np.uint64)
    for r in range(6):
        for c in range(7):
            bits |= boards[:, r, c].astype(np.uint64) << np.uint64(7 * c + r)
    np.testing.assert_array_equal(four_in_a_row(bits), [slow(b) for b in boards])


def test_connect_four_counts_its_lines():
    # the number of games of n moves: https://oeis.org/A212693 counts positions; lines of play are counted here
    game = ConnectFour()
    state = game.init(1)
    counts = []
    for _ in range(5):
        row, action = np.nonzero(game.legal(state))
        state = game.step(state[row], action)
        counts.append(len(state))
    assert counts == [7, 49, 343, 2401, 16807]
    row, action = np.nonzero(game.legal(state))
    assert len(game.step(state[row], action)) == 7**6
    unique = np.unique(np.stack([state["own"], state["stones"]], 1), axis=0)
    assert len(unique) == 4263  # A212693: 1, 7, 49, 238, 1120, 4263


def test_cartpole_follows_gymnasium_number_for_number():
    gymnasium = pytest.importorskip("gymnasium")
    env = gymnasium.make("CartPole-v1").unwrapped
    game = CartPole()
    rng = np.random.default_rng(0)
    for seed in range(5):
        env.reset(seed=seed)
        state = game.init(1, seed)
        env.state = tuple(state["body"][0])
        for _ in range(200):
            action = int(rng.integers(2))
            _, reward, over, _, _ = env.step(action)
            state = game.step(state, np.array([action]))
            np.testing.assert_allclose(state["body"][0], env.state, rtol=1e-12, atol=1e-14)
            assert game.reward(state)[0] == reward
            assert bool(game.terminal(state)[0]) == over
            if over:
                break


def test_sliding_tiles_start_unsolved_and_a_walk_back_solves_them():
    game = SlidingTiles(size=2, scramble=1)
    state = game.init(8, 3)
    assert (state["board"] != game._solved).any(axis=(1, 2)).all()
    # one move from the solution: one of the moves pays 1 and ends the game
    paid = np.zeros(8)
    for action in range(4):
        ok = game.legal(state)[:, action]
        after = game.step(state[ok], np.full(ok.sum(), action))
        paid[ok] += game.reward(after)
        assert (game.terminal(after) == (game.reward(after) == 1)).all()
    np.testing.assert_array_equal(paid, 1)


@pytest.mark.parametrize("game", GAMES[:2], ids=lambda g: type(g).__name__)
def test_symmetries_commute_with_play(game):
    assert isinstance(game, SymmetricGame)
    rng = np.random.default_rng(0)
    batch = 64
    state = game.init(batch)
    for _ in range(5):
        state = game.step(state, (game.legal(state) * rng.random((batch, game.num_actions))).argmax(1))
    which = rng.integers(0, game.num_symmetries, batch)
    one_hot = np.eye(game.num_actions, dtype=np.float32)
    for action in range(game.num_actions):
        ok = game.legal(state)[:, action] & ~game.terminal(state)
        chosen = np.full(ok.sum(), action)
        # turning the board and then showing where the stone fell equals turning what was seen after
        seen = game.observe(game.step(state[ok], chosen))[:, 1] - game.observe(state[ok])[:, 0]
        before, policy = game.transform(game.observe(state[ok]), one_hot[chosen], which[ok])
        after, _ = game.transform(game.observe(game.step(state[ok], chosen)), one_hot[chosen], which[ok])
        np.testing.assert_array_equal((after[:, 1] - before[:, 0]).sum(axis=(1, 2)), seen.sum(axis=(1, 2)))
        stone = (after[:, 1] - before[:, 0]).reshape(ok.sum(), -1).argmax(1)
        expected = stone if game.num_actions == 9 else stone % 7
        np.testing.assert_array_equal(policy.argmax(1), expected)


@pytest.mark.parametrize("game", GAMES[:2], ids=lambda g: type(g).__name__)
def test_bad_actions_are_refused(engine, game):
    state = game.init(3)
    with pytest.raises(ValueError, match=rf"action must be in \[0, {game.num_actions}\), got 99 in row 1"):
        game.step(state, np.array([0, 99, 0]))
    with pytest.raises(ValueError, match=r"one entry a game, shape \(3,\), got \(2,\)"):
        game.step(state, np.array([0, 1]))
    with pytest.raises(TypeError, match="action must hold integers, got float64"):
        game.step(state, np.array([0.0, 1.0, 2.0]))
    for _ in range(6 if game.num_actions == 7 else 1):
        state = game.step(state, np.array([0, 1, 2]))
    with pytest.raises(ValueError, match="action must be legal, got 1 in row 1"):
        game.step(state, np.array([3, 1, 3]))


def test_a_solution_and_a_fall_are_ends_and_a_limit_of_moves_is_none():
    tiles = SlidingTiles(size=2, scramble=1, max_steps=1)
    start = np.repeat(tiles.init(1, 0), 2)
    moves = np.flatnonzero(tiles.legal(start)[0])
    after = tiles.step(start, moves)
    assert tiles.terminal(after).all()
    np.testing.assert_array_equal(tiles.truncated(after), tiles.reward(after) == 0)
    assert sorted(tiles.truncated(after)) == [False, True]
    np.testing.assert_array_equal(tiles.truncated(tiles.step(after, moves)), tiles.truncated(after))
    for limit, cut in ((3, True), (500, False)):  # always to the left, a pole stands 3 steps and falls before 500
        pole = CartPole(max_steps=limit)
        state = pole.init(4)
        while not pole.terminal(state).all():
            assert not pole.truncated(state)[~pole.terminal(state)].any()
            state = pole.step(state, np.zeros(4, np.int64))
        assert (pole.truncated(state) == cut).all()


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="max_steps must be at least 1, got 0"):
        CartPole(max_steps=0)
    with pytest.raises(ValueError, match=r"discount must be in \(0, 1\], got 0"):
        SlidingTiles(discount=0)
    for made, rule in (
        (lambda: Othello(5), "size must be even and at least 4, got 5"),
        (lambda: Gomoku(4), r"connect must be in \[2, size \(4\)\], got 5"),
        (lambda: Hex(1), "size must be at least 2, got 1"),
        (lambda: Breakthrough(4), "size must be at least 5, got 4"),
        (lambda: Twenty48(discount=0), r"discount must be in \(0, 1\], got 0"),
    ):
        with pytest.raises(ValueError, match=rule):
            made()
    with pytest.raises(ValueError, match="size must be at least 2, got 1"):
        SlidingTiles(size=1)
    with pytest.raises(ValueError, match="size must be at most 11, whose tiles have numbers of one byte, got 12"):
        SlidingTiles(size=12)
    assert SlidingTiles(size=11).observe(SlidingTiles(size=11).init(1)).sum() == 121
    with pytest.raises(ValueError, match=r"seed must be an int or hold one seed a game, shape \(4,\)"):
        CartPole().init(4, np.zeros(3, np.uint64))
    with pytest.raises(ValueError, match=r"moves\[0\] must end with its game"):
        ConnectFour().positions(["01010101"])


def test_a_win_by_the_last_stone_is_no_draw():
    game, state = ConnectFour(), ConnectFour().init(1)
    for column in "100020305461234566543216543211234566543210":
        state = game.step(state, np.array([int(column)]))
    assert game.terminal(state)[0]
    assert state["stones"][0] == FULL
    assert game.reward(state)[0] == 1


def test_a_board_of_2048_that_cannot_slide_left_forbids_it():
    game = Twenty48()
    state = game.init(1)
    state["waiting"] = 0
    state["board"][0] = [[3, 1, 0, 0], [3, 0, 0, 0], [3, 0, 0, 0], [3, 0, 0, 0]]
    np.testing.assert_array_equal(game.legal(state)[0, :4], [True, True, True, False])


def test_hog_keeps_the_protocol_and_its_odds_are_those_of_all_throws():
    game = Hog(goal=9, dice=2, faces=4)
    check(game, batch=8, repeats=True)
    throws = [(a, b) for a in range(1, 5) for b in range(1, 5)]
    counted = np.bincount([0 if 1 in throw else sum(throw) for throw in throws], minlength=9) / 16
    np.testing.assert_allclose(game.chance(game.step(game.init(1), np.array([1])))[0], counted)


def test_hog_pays_who_reaches_the_goal_and_turns_the_points():
    game = Hog(goal=5, dice=2)
    state = game.step(game.step(game.init(2), np.array([0, 1])), np.array([3, 0]))
    assert state[["own", "other", "player"]].tolist() == [(0, 3, 1), (0, 0, 1)]
    state = game.step(game.step(state, np.array([1, 0])), np.array([5, 4]))
    assert game.terminal(state).tolist() == [True, False]
    assert game.reward(state).tolist() == [1, 0]
    with pytest.raises(ValueError, match="action must be legal, got 2 in row 1"):
        game.step(state, np.array([0, 2]))
    far = Hog(goal=40_000)  # more points than 16 bits hold
    state = far.init(1)
    state["own"] = 39_990
    ended = far.step(far.step(state, np.array([5])), np.array([36]))
    assert ended["other"] == 40_026
    assert far.terminal(ended)[0]
    with pytest.raises(ValueError, match="faces must be at least 2, got 1"):
        Hog(faces=1)


def test_hog_is_solved_as_an_independent_recursion_and_played_matches_say():
    game = Hog(goal=5, dice=2, faces=3)
    solver = HogSolver(game)

    def best(own, other, depth):
        """The value of the best number of dice, of throws that are followed for so long."""
        if depth == 0:
            return 0.0
        worth = []
        for throws in ([(a,) for a in range(1, 4)], [(a, b) for a in range(1, 4) for b in range(1, 4)]):
            sums = [0 if 1 in throw else sum(throw) for throw in throws]
            each = {s: 1.0 if own + s >= 5 else -best(other, own + s, depth - 1) for s in set(sums)}
            worth.append(sum(each[s] for s in sums) / len(sums))
        return max(worth)

    for own, other in ((4, 4), (3, 4), (4, 0)):
        assert solver.values[own, other].max() == pytest.approx(best(own, other, 7), abs=0.06)
    # one die from 4 : 4 wins with p = 2/3, two with 4/9; who begins wins p / (1 - (1 - p)^2) of the games
    assert solver.values[4, 4].max() == pytest.approx(2 * (2 / 3) / (1 - (1 / 3) ** 2) - 1)
    one = lambda state: np.zeros(len(state), int)  # noqa: E731
    assert solver.points(lambda state: solver.best(state).argmax(1)) == pytest.approx(0.5)
    player = lambda state, seed: one(state)  # noqa: E731
    played = match(game, player, perfect_player(solver), 2000, max_moves=200).points
    assert solver.points(one) == pytest.approx(played, abs=0.04)
    lies = game.step(game.init(1), np.array([0]))
    with pytest.raises(ValueError, match="state must hold positions where a player is to throw"):
        solver.score(lies)
    with pytest.raises(TypeError, match="game must be a Hog, got TicTacToe"):
        HogSolver(TicTacToe())
