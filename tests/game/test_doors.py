"""Every number and switch that a public callable takes is looked at there: what is none is named."""

import inspect
import math
import types
import typing
from typing import Any

import numpy as np
import pytest
import torch

import ai.game
from ai.game import RolloutEvaluator, Search, TicTacToe, random_player
from ai.game.arguments import check_amount

_GAME = TicTacToe()
# What else a callable needs; it is called with one wrong number, which must be found before anything.
_NEEDED: dict[str, dict[str, Any]] = {
    "BySearch": {"search": print},
    "CachedEvaluator": {"evaluator": print},
    "EpsilonGreedy": {"steps": 1},
    "GameEnvironments": {"game": _GAME, "num": 1},
    "GymnasiumEnvironments": {"environment": "CartPole-v1", "num": 1},
    "GymnasiumGame": {"environment": "CartPole-v1"},
    "NetEvaluator": {"model": torch.nn.Linear(1, 1)},
    "OpenSpielGame": {"name": ""},
    "ParallelEnvironments": {"make": print},
    "RolloutEvaluator": {"game": _GAME},
    "Rollouts": {"env": None, "model": None},
    "Score": {"wins": 1, "draws": 0, "losses": 0},
    "Search": {"game": _GAME, "evaluator": RolloutEvaluator(_GAME)},
    "VectorEnvironments": {"environment": "CartPole-v1"},
    "check": {"game": _GAME},
    "evaluate": {"env": None, "model": None},
    "match": {"game": _GAME, "first": random_player(_GAME), "second": random_player(_GAME), "games": 2},
    "ratings": {"scores": {("a", "b"): ai.game.Score(1, 0, 0)}},
    "search_player": {"search": Search(_GAME, RolloutEvaluator(_GAME))},
    "solve": {"game": _GAME},
}
# Results, not arguments; what is looked at further in, and beside environments.
_PASSED_OVER = {
    "Rating",
    "outcome_for",
    "round_robin",
    "decisive_positions",
    "human_player",
}


def _wrong(hint: Any, name: str) -> list[Any]:
    hint = typing.Any if name == "seed" and "uint64" in str(hint) else hint
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if float in kinds:
        return ["3", math.nan, *([] if type(None) in kinds else [None])]
    if bool in kinds:
        return ["no", 1]
    return [1.5, "3", True] if int in kinds and str not in kinds else []


def _doors():
    for public in ai.game.__all__:
        door = getattr(ai.game, public)
        if public in _PASSED_OVER or not (inspect.isclass(door) or inspect.isfunction(door)):
            continue
        shape = inspect.signature(door.__init__ if inspect.isclass(door) else door)
        hints = typing.get_type_hints(door.__init__ if inspect.isclass(door) else door)
        for name in shape.parameters:
            if wrong := _wrong(hints.get(name), name):
                yield f"{public}({name})", (door, name, wrong)


_DOORS = dict(_doors())


@pytest.mark.parametrize("case", _DOORS)
def test_what_is_no_number_is_named_at_the_door(case):
    door, name, wrong = _DOORS[case]
    for value in wrong:
        with pytest.raises((TypeError, ValueError), match=rf"{name}.* must be .*, got {value!r}"):
            door(**{**_NEEDED.get(door.__name__, {}), name: value})


def test_the_doors_are_many():
    assert len(_DOORS) > 60


@pytest.mark.parametrize(
    ("bounds", "value", "match"),
    [
        ({"least": 0, "above": True}, 0, "x must be positive, got 0"),
        ({"least": 1, "above": True}, 1, "x must be above 1, got 1"),
        ({"least": 0, "most": 1}, 1.5, r"x must be in \[0, 1\], got 1.5"),
        ({"least": 0, "most": 1, "above": True}, 0, r"x must be in \(0, 1\], got 0"),
        ({"least": None, "most": 2}, 3, "x must be at most 2, got 3"),
        ({"least": None}, -math.inf, "x must be finite, got -inf"),
    ],
)
def test_bounds_are_told_as_they_are(bounds, value, match):
    with pytest.raises(ValueError, match=match):
        check_amount(**bounds, x=value)
    check_amount(0, 1, finite=False, x=np.float32(0.5))


_ENV = ai.game.GameEnvironments(ai.game.CartPole(), 2)
_NET = torch.nn.Linear(1, 1)
_RANDOM = ai.game.random_player(_GAME)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda game: Search(game, print), "game"),
        (lambda game: ai.game.GameEnvironments(game, 2), "game"),
        (lambda game: ai.game.SelfPlay(game, _NET), "game"),
        (lambda game: ai.game.match(game, print, print, 2), "game"),
        (lambda game: ai.game.random_player(game), "game"),
        (lambda game: ai.game.greedy_player(game, _NET), "game"),
        (lambda game: ai.game.check(game), "game"),
        (lambda game: ai.game.solve(game), "game"),
    ],
)
@pytest.mark.parametrize("game", [TicTacToe, "tictactoe", None, _ENV], ids=["class", "name", "none", "env"])
def test_what_is_no_game_is_named(call, message, game):
    with pytest.raises(TypeError, match=rf"^{message} must be a Game, such as TicTacToe\(\), got "):
        call(game)


class _Drawn:
    """Of the members of a game those that each door uses, and no others."""

    def __init__(self, *names):
        for name in names:
            setattr(self, name, getattr(_GAME, name))


_PLAYED = ("num_players", "num_actions", "init", "step", "terminal", "reward")


@pytest.mark.parametrize(
    ("call", "members"),
    [
        (ai.game.random_player, ["legal"]),
        (lambda game: ai.game.greedy_player(game, print), ["num_players", "num_actions", "legal"]),
        (lambda game: ai.game.match(game, _RANDOM, _RANDOM, 2), [*_PLAYED, "to_play"]),
        (lambda game: ai.game.solve(game), [*_PLAYED, "to_play", "legal", "discount"]),
        (
            lambda game: ai.game.GameEnvironments(game, 2, mask=False).reset(0),
            [*_PLAYED, "to_play", "observe", "observation_shape"],
        ),
    ],
)
def test_a_game_of_ones_own_needs_what_is_used_of_it_and_the_first_that_it_lacks_is_named(call, members):
    call(_Drawn(*members))
    for lacking in members:
        if lacking == "to_play" and "observe" in members:  # of a game for one it is not asked
            continue
        less = _Drawn(*(name for name in members if name != lacking))
        with pytest.raises(TypeError, match=rf"^game must be a Game, .*, got _Drawn, which lacks {lacking}$"):
            call(less)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ai.game.Rollouts(_NET, _ENV), r"env must be environments, such as .*, got Linear, which lacks num"),
        (
            lambda: ai.game.Rollouts(ai.game.CartPole(), _NET),
            r"env must be environments, such as .*, got CartPole, which lacks num",
        ),
        (lambda: ai.game.Rollouts(_ENV, torch.nn.Linear), r"model must be an instance: Linear\(...\), not the class.*"),
        (lambda: ai.game.evaluate(_NET, _ENV), r"env must be environments, such as .*, got Linear, which lacks num"),
        (lambda: ai.game.evaluate(_ENV, torch.nn.Linear), r"model must be an instance: .*"),
        (lambda: ai.game.SelfPlay(_GAME, _NET, {"games": 2}), r"play must be a Play, such as .*, got {'games': 2}"),
        (lambda: ai.game.match(_GAME, None, print, 2), r"first must be a player, such as .*, got None"),
        (lambda: ai.game.match(_GAME, print, _GAME, 2), r"second must be a player, such as .*, got .*TicTacToe.*"),
        (lambda: ai.game.round_robin(_GAME, [print], 2), "players must be a dict by name, got list"),
        (lambda: ai.game.greedy_player(_GAME, _GAME), r"evaluator must be a module, a function or .*, got .*"),
        (lambda: Search(_GAME, torch.nn.Linear), r"evaluator must be an instance: Linear\(...\), not the class.*"),
        (lambda: _GAME.init("3"), "batch must be a whole number, got '3'"),
        (lambda: ai.game.CartPole().init(3.0), "batch must be a whole number, got 3.0"),
        (lambda: ai.game.SlidingTiles().init(None), "batch must be a whole number, got None"),
        (lambda: ai.game.Play(games=np.zeros(2, int)), r"games must be a whole number, got array\(\[0, 0\]\)"),
        (lambda: ai.game.Puct(torch.ones(2)), r"c_init must be a number, got a tensor of shape \(2,\)"),
        (
            lambda: ai.game.perfect_player(_GAME),
            r"judgement must be what knows the best moves, .*, got TicTacToe, which lacks best",
        ),
        (lambda: ai.game.search_player(print), "search must be a Search, such as .*, got <built-in function print>"),
        (lambda: ai.game.human_player("chess"), "game must be a Game, .*, got 'chess'"),
        (lambda: ai.game.human_player(_GAME, _GAME), "search must be a Search, such as .*, or None, got .*TicTacToe.*"),
        (lambda: ai.game.decisive_positions(None, 1), r"solver must be a ConnectFourSolver\(\), got None"),
    ],
)
def test_what_stands_in_another_place_is_named(call, message):
    with pytest.raises(TypeError, match=rf"^{message}$"):
        call()


def test_fewer_games_than_none_are_refused():
    with pytest.raises(ValueError, match=r"^batch must be at least 0, got -1$"):
        _GAME.init(-1)
    assert len(_GAME.init(0)) == 0
