"""Play against a network in the browser or at the terminal: `ai-examples play connect4`.

Command: `ai-examples play tictactoe`, `connect4` or `othello6`, for which small trained networks ship; or the import
path of any game for two, `ai.game:Hex(size=7)` or your own, with `--trial` for a network that `ai-examples alphazero
--game …` learnt, or without for a search by random games. `--terminal` asks here, `--level` says how many positions the
search looks at before each move, from 0 (the network alone) to 800.
"""

from __future__ import annotations

import socket
import sys
import webbrowser
from collections.abc import Callable
from contextlib import ExitStack
from typing import Literal, Unpack

import torch
from torch import nn

from ai.examples.alphazero.main import PRESETS
from ai.examples.play.nets import GAMES, load, rule
from ai.examples.play.server import PlayApp
from ai.examples.play.table import MOST_SIMULATIONS, Table, TableOptions
from ai.examples.play.view import as_text
from ai.examples.selflearn import make_game
from ai.game import Game, NetEvaluator
from ai.infer import Inferencer
from ai.lab import Trial


def opponent(game: str, trial: str | None = None) -> tuple[Game, nn.Module | None]:
    """Returns a game and the network that plays it: one that ships, a trial's best, or None.

    Raises:
        ValueError: there is no such game.
    """
    if trial is not None:
        return make_game(PRESETS[GAMES[game].preset].game if game in GAMES else game), Trial(trial).load_model().eval()
    if game in GAMES:
        return load(game)
    return make_game(game), None


def serve(
    game: Game, network: nn.Module | None, *, host: str, port: int, open_page: bool, **how: Unpack[TableOptions]
) -> None:
    """Serves the page, and the network by the inference server's own paths, until Ctrl-C."""
    import uvicorn

    from ai.infer.http import app

    with ExitStack() as stack:
        models = {} if network is None else {"network": stack.enter_context(Inferencer(network, timeout_s=30))}
        table = Table(game, models["network"].create_client() if models else None, **how)
        behind = app(models) if models else None
        if behind is not None:
            stack.callback(behind.close)

        class Server(uvicorn.Server):
            """Says where it listens, once it does."""

            async def startup(self, sockets: list[socket.socket] | None = None) -> None:
                await super().startup(sockets)
                if self.started:
                    at = f"http://{host}:{self.servers[0].sockets[0].getsockname()[1]}/"
                    print(f"play {table.title} at {at} (Ctrl-C ends)", flush=True)
                    if open_page:
                        webbrowser.open(at)

        lifespan: Literal["on", "off"] = "off" if behind is None else "on"
        Server(
            uvicorn.Config(PlayApp(table, behind), host=host, port=port, log_level="warning", lifespan=lifespan)
        ).run()


def at_the_terminal(
    table: Table,
    *,
    level: int,
    second: bool = False,
    read: Callable[[str], str] = input,
    write: Callable[[str], None] = print,
) -> float:
    """Plays one game; returns what the person has earned."""
    person, moves = int(second), list[int]()
    while True:
        seen = table.ask(moves, level)
        write(as_text(table.game, table.replayed(moves)[0]))
        if seen["over"]:
            earned: float = seen["outcome"] if person == 0 else -seen["outcome"]
            write("You win." if earned > 0 else "You lose." if earned < 0 else "A draw.")
            return earned
        if seen["player"] == person:
            moves.append(_asked(seen["legal"], read, write))
        else:
            told = [
                f"{name} {seen[key]:+.2f}"
                for name, key in (("network", "value"), ("search", "search_value"))
                if seen[key] is not None
            ]
            write(f"The machine plays {seen['best']} ({', '.join(told) or 'at random'}, of the first player).")
            moves.append(seen["best"])


def _asked(legal: list[int], read: Callable[[str], str], write: Callable[[str], None]) -> int:
    while True:
        answer = read(f"your move, one of {legal}: ").strip()
        if answer in map(str, legal):
            return int(answer)
        write(f"a move must be one of {legal}, got {answer!r}")


def run(
    game: str = "connect4",
    *,
    trial: str | None = None,
    terminal: bool = False,
    level: int = 100,
    second: bool = False,
    host: str = "127.0.0.1",
    port: int = 8765,
    browser: bool = False,
) -> None:
    """Plays.

    Args:
        game: tictactoe, connect4, othello6, or the import path of a game for two.
        trial: A trial of `ai-examples alphazero` whose network plays.
        terminal: Ask here and not in a browser.
        level: Positions that the search looks at, 0 to 800; the page has a slider.
        second: Let the machine begin, at the terminal.
        host: Address to listen at; 0.0.0.0 lets a phone on the same network play.
        port: To listen at; 0 takes a free one.
        browser: Open the page.
    """
    torch.set_num_threads(1)
    if not 0 <= level <= MOST_SIMULATIONS:
        raise SystemExit(f"level must be in [0, {MOST_SIMULATIONS}], got {level}")
    if not 0 <= port < 1 << 16:
        raise SystemExit(f"port must be in [0, 65535], got {port}")
    how: TableOptions = {"rule": rule(game), "title": GAMES[game].title} if game in GAMES else {}
    try:
        rules, network = opponent(game, trial)
        table = Table(rules, None if network is None else NetEvaluator(network), **how)
    except (ValueError, TypeError, FileNotFoundError) as error:
        raise SystemExit(str(error)) from error
    if terminal:
        try:
            at_the_terminal(table, level=level, second=second)
        except (EOFError, KeyboardInterrupt):
            raise SystemExit("the game was left before its end") from None
    else:
        serve(rules, network, host=host, port=port, open_page=browser, **how)


def main() -> None:
    """Runs the example with a typed command line, whose first word may be the game."""
    import tyro

    arguments = sys.argv[1:]
    if arguments and not arguments[0].startswith("-"):
        arguments.insert(0, "--game")
    tyro.cli(run, args=arguments, description=__doc__)
