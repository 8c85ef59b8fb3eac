"""The built-in board games, move for move beside OpenSpiel's."""

import numpy as np
import pytest

from ai.game import Breakthrough, ConnectFour, Gomoku, Hex, Othello, TicTacToe, Twenty48, draws, fast

pyspiel = pytest.importorskip("pyspiel")
pytestmark = pytest.mark.skipif(not fast.available(), reason="numba is not installed")


def same(action, player):
    return action


def hex_cell(action, player):
    """The second player sees the board mirrored at its diagonal."""
    return action if player == 0 else action % 7 * 7 + action // 7


def breakthrough_move(action, player):
    """The first player, who goes down there, sees the board turned round; a move there also says whether it takes."""
    cell, way = divmod(action, 3)
    row, column, right = cell // 8, cell % 8, way - 1
    if player == 0:
        row, column, right = 7 - row, 7 - column, -right
    direction = right + 1 if player == 0 else right + 4
    return ((row * 8 + column) * 6 + direction) * 2


PAIRS = [
    (TicTacToe(), "tic_tac_toe", same),
    (ConnectFour(), "connect_four", same),
    (Othello(), "othello", same),
    (Gomoku(), "gomoku", same),
    (Hex(7), "hex(board_size=7)", hex_cell),
    (Breakthrough(), "breakthrough", breakthrough_move),
]


@pytest.mark.parametrize(("game", "name", "theirs"), PAIRS, ids=[name for _, name, _ in PAIRS])
def test_a_game_is_that_of_open_spiel(game, name, theirs):
    play_beside(game, name, theirs, games=6)


@pytest.mark.slow
@pytest.mark.parametrize(("game", "name", "theirs"), PAIRS, ids=[name for _, name, _ in PAIRS])
def test_many_games_are_those_of_open_spiel(game, name, theirs):
    play_beside(game, name, theirs, games=100, seed=1)


def play_beside(game, name, theirs, *, games, seed=0):
    rules = pyspiel.load_game(name)
    peers = [rules.new_initial_state() for _ in range(games)]
    seeds = draws.row_seeds(seed, games)
    state, ply = game.init(games, seeds), 0
    while not game.terminal(state).all():
        over, mover, legal = game.terminal(state), game.to_play(state), game.legal(state)
        weights = np.where(over[:, None], 1.0, legal)
        action = draws.choose(draws.fold_in(seeds, ply), weights)
        for row in np.flatnonzero(~over):
            peer = peers[row]
            ours = sorted(theirs(int(a), mover[row]) for a in np.flatnonzero(legal[row]))
            taking = 2 if name == "breakthrough" else 1
            expected = sorted(a // taking * taking for a in peer.legal_actions())
            assert ours == expected, f"{name}, ply {ply}"
            move = theirs(int(action[row]), mover[row])
            assert peer.current_player() == mover[row]
            peer.apply_action(move if move in peer.legal_actions() else move + 1)
        state = game.step(state, action)
        ply += 1
        for row in np.flatnonzero(~over):
            assert game.terminal(state)[row] == peers[row].is_terminal(), f"{name}, ply {ply}"
            if peers[row].is_terminal():
                assert game.reward(state)[row] == peers[row].returns()[mover[row]]


def slid(board, way):
    """A slide of 2048 by lists, and what it pays."""
    turned, paid = np.rot90(board, {0: 1, 1: 2, 2: 3, 3: 0}[way]).tolist(), 0  # the way is now to the left
    for line in turned:
        tiles, out = [t for t in line if t], []
        while tiles:
            tile = tiles.pop(0)
            if tiles and tiles[0] == tile:
                tile, _ = tile + 1, tiles.pop(0)
                paid += 2**tile
            out.append(tile)
        line[:] = out + [0] * (4 - len(out))
    return np.rot90(np.array(turned), -{0: 1, 1: 2, 2: 3, 3: 0}[way]), paid


def test_2048_is_that_of_a_slow_reference_and_of_open_spiel():
    assert play_2048_beside(games=6) > 300


@pytest.mark.slow
def test_many_games_of_2048_are_those_of_a_slow_reference_and_of_open_spiel():
    assert play_2048_beside(games=100, seed=1) > 5000


def play_2048_beside(*, games, seed=0):
    """Returns how many slides both made alike.

    OpenSpiel leaves some slides out that join two tiles at the edge: where both allow one, one of these is made.
    """
    game, rules = Twenty48(), pyspiel.load_game("2048(max_tile=131072)")
    peers = [rules.new_initial_state() for _ in range(games)]
    seeds, state, total = draws.row_seeds(seed, games), game.init(games), np.zeros(games)
    live, ply, both = np.arange(games), 0, 0
    while len(live):
        chance, legal = game.chance(state), game.legal(state)
        lucky, allowed = chance.any(axis=1), np.zeros(legal.shape)
        for i, row in enumerate(live):
            peer, shown = peers[row], state["board"][i]
            ours = np.flatnonzero(legal[i]).tolist()
            if lucky[i]:
                assert dict(peer.chance_outcomes()) == pytest.approx({a: chance[i, a] for a in ours})
                allowed[i] = chance[i]
            else:
                assert ours == [way for way in range(4) if (slid(shown, way)[0] != shown).any()]
                allowed[i, [way for way in ours if way in peer.legal_actions()]] = 1
        playing = allowed.any(axis=1)
        live, state, lucky, allowed = live[playing], state[playing], lucky[playing], allowed[playing]
        action = draws.choose(draws.fold_in(seeds[live], ply), allowed)
        after = game.step(state, action)
        reward, over = game.reward(after), np.zeros(len(live), bool)
        total[live] += reward
        for i, row in enumerate(live):
            if not lucky[i]:
                board, paid = slid(state["board"][i], action[i])
                np.testing.assert_array_equal(after["board"][i], board)
                assert reward[i] == paid
                both += 1
            peers[row].apply_action(int(action[i]))
            assert total[row] == peers[row].returns()[0]
            over[i] = peers[row].is_terminal()
            assert over[i] or not game.terminal(after)[i]
        live, state, ply = live[~over], after[~over], ply + 1
    return both
