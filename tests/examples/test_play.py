import asyncio
import io
import json

import numpy as np
import pytest
import torch

from ai.examples.alphazero.truth import Judge, lost_lines, wrong_moves
from ai.examples.play.main import at_the_terminal, main, run
from ai.examples.play.nets import _HERE, GAMES, load
from ai.examples.play.server import PlayApp
from ai.examples.play.table import Table
from ai.examples.play.view import View, view_of
from ai.game import Breakthrough, ConnectFour, Gomoku, Hex, Othello, SlidingTiles, TicTacToe, Twenty48, solve


def liking(action, value, num_actions=9, *, by=5.0):
    """A network that prefers one action everywhere and gives the mover one value."""
    logits = torch.zeros(num_actions)
    logits[action] = by
    return lambda seen: (logits.expand(len(seen), -1), torch.full((len(seen),), value))


@pytest.mark.parametrize(
    ("game", "view"),
    [
        (TicTacToe(), View("cells", 3, 3)),
        (ConnectFour(), View("columns", 6, 7)),
        (Othello(6), View("cells", 6, 6, passes=True)),
        (Gomoku(9), View("cells", 9, 9)),
        (Hex(4), View("text")),  # its board is turned for the other player
        (Breakthrough(), View("text")),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_game_is_drawn_as_its_stones_lie(game, view):
    assert view_of(game) == view


def test_stones_are_whose_they_are_and_values_are_the_first_players():
    table = Table(TicTacToe(), liking(8, 0.5))
    first, second = table.ask([4, 0], 0), table.ask([4], 0)
    assert first["cells"] == [[2, 0, 0], [0, 1, 0], [0, 0, 0]]
    assert second["cells"] == [[0, 0, 0], [0, 1, 0], [0, 0, 0]]
    assert (first["player"], first["value"]) == (0, 0.5)
    assert (second["player"], second["value"]) == (1, -0.5)
    assert first["best"] == second["best"] == 8


def test_the_network_alone_likes_no_illegal_move():
    answer = Table(TicTacToe(), liking(4, 0.0)).ask([4], 0)
    assert answer["policy"][4] == 0
    assert answer["best"] != 4
    assert sum(answer["policy"]) == pytest.approx(1, abs=1e-3)


def test_a_search_finds_what_the_network_misses():
    table = Table(TicTacToe(), liking(8, 0.0, by=1.0))
    answer = table.ask([0, 3, 1, 4], 64)  # 2 wins
    assert answer["best"] == 2
    assert sum(answer["visits"]) == 64
    assert answer["search_value"] > 0.5


def test_an_end_tells_what_the_first_player_earned_and_no_move():
    answer = Table(TicTacToe()).ask([8, 0, 3, 1, 4, 2], 8)
    assert answer["over"]
    assert answer["outcome"] == -1
    assert answer["legal"] == []
    assert "best" not in answer


@pytest.mark.parametrize(
    ("moves", "level", "match"),
    [
        ([9], 0, r"moves\[0\] must be legal, got 9"),
        ([4, 4], 0, r"moves\[1\] must be legal, got 4"),
        ([-1], 0, r"moves\[0\] must be legal, got -1"),
        ([0, 3, 1, 4, 2, 5], 0, "moves must end with the game, which was over after 5"),
        ([], 801, r"level must be in \[0, 800\], got 801"),
    ],
)
def test_what_cannot_be_played_is_refused(moves, level, match):
    with pytest.raises(ValueError, match=match):
        Table(TicTacToe()).ask(moves, level)


@pytest.mark.parametrize("game", [SlidingTiles(), Twenty48()], ids=lambda g: type(g).__name__)
def test_a_game_that_is_not_for_two_is_refused(game):
    with pytest.raises(ValueError, match="two players and without luck"):
        Table(game)


def asked(app, method, path, *chunks):
    """Sends one request to an ASGI application; returns the status and the body."""
    arriving = [{"type": "http.request", "body": c, "more_body": True} for c in chunks]
    arriving.append({"type": "http.request", "body": b""})
    sent = []

    async def receive():
        return arriving.pop(0) if arriving else {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    asyncio.run(app({"type": "http", "method": method, "path": path, "headers": []}, receive, send))
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent)


def test_without_a_network_nothing_lies_behind():
    assert asked(PlayApp(Table(TicTacToe())), "GET", "/v2/models/network")[0] == 404


async def behind(scope, receive, send):
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body", "body": scope["path"].encode()})


@pytest.fixture(scope="module")
def app():
    return PlayApp(Table(ConnectFour()), behind)


def test_the_page_the_game_and_a_position_are_served_and_the_rest_lies_behind(app):
    status, page = asked(app, "GET", "/")
    assert status == 200
    assert b"http" not in page.replace(b"http-equiv", b"")  # nothing is asked of another host
    status, game = asked(app, "GET", "/game")
    assert (status, json.loads(game)["kind"]) == (200, "columns")
    status, answer = asked(app, "POST", "/play", b'{"moves": [3,', b' 3], "level": 4}')
    assert status == 200
    assert json.loads(answer)["cells"][5][3] == 1
    assert asked(app, "GET", "/v2/models/network") == (204, b"/v2/models/network")


@pytest.mark.parametrize(
    ("body", "match"),
    [
        (b"", "must be JSON"),
        (b"[" * 50_000, "must be JSON"),
        (b'"moves"', "must be JSON"),
        (b'{"moves": 3, "level": 1}', "whole number"),
        (b'{"moves": [1.5], "level": 1}', "whole number"),
        (b'{"moves": [true], "level": 1}', "whole number"),
        (b'{"moves": [], "level": null}', "whole number"),
        (b'{"moves": [99], "level": 1}', "must be legal"),
        (b" " * 70_000, "at most 65536 bytes"),
    ],
)
def test_a_question_that_is_none_is_told_so(app, body, match):
    status, answer = asked(app, "POST", "/play", body)
    assert status == 400
    assert match in json.loads(answer)["error"]


@pytest.mark.parametrize(("second", "end"), [(False, "You lose."), (True, "You win.")])
def test_a_game_at_the_terminal_is_played_to_its_end(second, end):
    # the machine plays 8, then the lowest free cell, as the person does
    shown, answers = [], iter(["here", "9" * 5000])

    def read(prompt):
        return next(answers, None) or prompt.split("[")[1].split(",")[0].rstrip("]: ")

    earned = at_the_terminal(Table(TicTacToe(), liking(8, 0.0)), level=0, second=second, read=read, write=shown.append)
    assert shown[-1] == end
    assert earned == (1 if second else -1)
    assert sum("a move must be one of" in line for line in shown) == 2
    assert sum("The machine plays 8" in line for line in shown) == 1


@pytest.mark.parametrize("name", GAMES)
def test_a_network_ships_that_is_small_and_fits_its_game(name):
    game, model = load(name)
    assert (_HERE / f"{name}.safetensors").stat().st_size < 1_000_000
    logits, value = model(torch.from_numpy(game.observe(game.init(2))))
    assert logits.shape == (2, game.num_actions)
    assert torch.isfinite(logits).all()
    assert (value.abs() <= 1).all()


def test_the_network_of_tic_tac_toe_makes_no_mistake():
    game, model = load("tictactoe")
    judge = Judge(game, model, 0)
    assert wrong_moves(solve(game), judge) == 0
    assert lost_lines(game, judge) == 0


def test_the_network_of_connect_four_completes_a_column():
    game, model = load("connect4")
    logits, value = model(torch.from_numpy(game.observe(game.positions(["030303"]))))
    assert logits.argmax().item() == 0
    assert value.item() > 0


class TwoAtOnce(TicTacToe):
    """Who is second moves twice after the first stone."""

    def to_play(self, state):
        stones = 9 - self.legal(state).sum(axis=1) - 9 * self.terminal(state)
        return np.where(stones == 2, 1, super().to_play(state))


def test_who_made_each_move_is_asked_and_not_counted():
    assert Table(TwoAtOnce()).ask([4, 0, 1], 0)["movers"] == [0, 1, 1]


@pytest.mark.parametrize(
    ("network", "error", "match"),
    [
        (liking(0, 0.0, 7), ValueError, r"network must give 9 logits a position of TicTacToe, got \(7,\)"),
        (lambda seen: torch.nn.Linear(4, 9)(seen), ValueError, "network must take observations of TicTacToe"),
        (liking(0, float("nan")), RuntimeError, "its policy and value are no finite numbers"),
    ],
    ids=["actions", "observations", "nan"],
)
def test_a_network_of_another_game_or_of_no_numbers_is_refused(network, error, match):
    with pytest.raises(error, match=match):
        Table(TicTacToe(), network)


@pytest.mark.parametrize(
    ("how", "match"),
    [
        ({"level": 801}, r"level must be in \[0, 800\], got 801"),
        ({"port": 70_000}, r"port must be in \[0, 65535\], got 70000"),
        ({"game": "chess"}, "game must be one of tictactoe"),
        ({"game": "ai.game:SlidingTiles"}, "game must be for two players"),
        ({"trial": "never/recorded"}, "never/recorded has no snapshot"),
    ],
    ids=lambda value: "" if isinstance(value, str) else next(iter(value)),
)
def test_what_cannot_be_played_ends_in_one_sentence(how, match):
    with pytest.raises(SystemExit, match=match):
        run(**{"game": "tictactoe", "terminal": True} | how)


def test_weights_of_another_network_are_refused():
    with pytest.raises(ValueError, match="weights must be of the network that plays connect4"):
        load("connect4", _HERE / "tictactoe.safetensors")
    with pytest.raises(ValueError, match="name must be one of tictactoe, connect4, othello6, got 'go'"):
        load("go")


def test_leaving_the_terminal_ends_in_one_sentence(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(""))  # as Ctrl-D does
    with pytest.raises(SystemExit, match="the game was left before its end"):
        run("tictactoe", terminal=True, level=0)


@pytest.mark.parametrize("named", [["tictactoe"], ["--game", "tictactoe"]])
def test_the_first_word_of_the_command_is_the_game(named, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["ai-examples play", *named, "--terminal", "--level", "0"])
    monkeypatch.setattr("sys.stdin", io.StringIO("4\n"))
    with pytest.raises(SystemExit, match="the game was left before its end"):
        main()
    assert "The machine plays" in capsys.readouterr().out
