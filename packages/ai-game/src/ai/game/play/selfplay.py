"""Self-play: games in lock-step, each finished one an episode for `ai.data.Datagen`."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from inspect import signature
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ai.game import draws
from ai.game.play.history import History, greedy_return, states_from_bytes, states_to_bytes
from ai.game.play.openings import opened
from ai.game.play.options import Play
from ai.game.protocol import Game, State, check_game, outcome_for
from ai.game.search.dynamics.known_rules import Evaluator
from ai.game.search.dynamics.learned_model import LearnedModel
from ai.game.search.evaluator import CachedEvaluator, NetEvaluator
from ai.game.search.found import Found
from ai.game.search.search import Search

# What a row's luck is for: streams of its seed that never meet.
_OPENING, _BUDGET, _NOISE, _MOVE, _RESIGN, _RANDOM, _LUCK = range(7)


class SelfPlay:
    """A source of episodes: a search plays against itself.

    An episode has `obs`, `action`, `reward`, `discount`, `policy`, `value [T + 1]`, `to_play`, `legal`, `version`,
    `truncated` and `full` (1 where the search was a full one); the last value is the evaluator's of the position where
    the episode was cut off, or 0. Luck is drawn between the moves: what it earns is part of the move's reward. With
    `play.tolerance` there is also `greedy_return`, the return as if no move had explored: where one did, the value of
    the search's own choice stands for all that came of it, or the outcome where that is better (Watkins 1989, "Learning
    from delayed rewards", cuts returns so).

    Args:
        game: the rules.
        model: from observations to `(logits, value)`, or a `LearnedModel`, which is searched in its own space; each
            worker plays with its own copy. Or None, with `evaluator`.
        play: how to play.
        evaluator: to use in place of `model`, such as an inference client that all workers share, or what asks one as a
            `LearnedModel`. Parameters go to it where it has `update_params`, as an `Inferencer` in this process, and
            with their version where that takes a `version`, as a `NodeInferencer`'s; a client has none, so they are to
            be sent to the inferencer that it asks. An episode's `version` is the evaluator's, where it tells one: the
            newest that had answered when the first move was made.
        wrap: from the model to its evaluator, such as `NetEvaluator.tuned` with its options filled in.

    Raises:
        ValueError: more than two players; neither or both of `model` and `evaluator`; resigning in a one-player game; a
            cache before an evaluator whose parameters others renew, or before a `LearnedModel`.
        TypeError: `model` is no module.

    Example:
        >>> from ai.data import Datagen
        >>> from ai.game import TicTacToe
        >>> uniform = lambda obs: (torch.zeros(len(obs), 9), torch.zeros(len(obs)))
        >>> source = SelfPlay(TicTacToe(), evaluator=uniform, play=Play(games=4, simulations=8))
        >>> batch = next(iter(Datagen(source).loader(16, n_workers=0)))
        >>> batch["policy"].shape
        torch.Size([16, 9])
    """

    def __init__(
        self,
        game: Game,
        model: nn.Module | None = None,
        play: Play | None = None,
        *,
        evaluator: Evaluator | LearnedModel | None = None,
        wrap: Callable[[nn.Module], Any] | None = None,
    ) -> None:
        if (model is None) == (evaluator is None):
            raise ValueError("exactly one of model and evaluator must be given")
        if model is not None and not isinstance(model, (nn.Module, LearnedModel)):
            raise TypeError(
                f"model must be a module, got {type(model).__name__}: give functions and clients as evaluator"
            )
        if not isinstance(play, Play | None):
            raise TypeError(f"play must be a Play, such as Play(games=64), got {play!r}")
        check_game(
            game, "num_players", "num_actions", "dtype", "discount", "init", "step", "legal", "terminal", "reward"
        )
        if game.num_players > 2:
            raise ValueError(f"game must be for one or two players, {type(game).__name__} is for {game.num_players}")
        play = Play() if play is None else play
        if play.resign_below is not None and game.num_players != 2:
            raise ValueError("resign_below needs a game of two players")
        if play.cache and hasattr(evaluator, "version") and not _takes_version(evaluator):
            raise ValueError(f"cache must be 0 with an evaluator whose parameters others renew, got {play.cache}")
        if play.cache and isinstance(evaluator if model is None else model, LearnedModel):
            raise ValueError(
                f"cache must be 0 with a LearnedModel, which sees no positions but the first, got {play.cache}"
            )
        self.game, self.model, self.play = game, model, play
        self._given, self._wrap = evaluator, wrap
        self._started = False

    def start(self, seed: int, worker: int) -> None:
        """Sets up the games; every draw that follows is a function of `seed`."""
        play = self.play
        self._cache: CachedEvaluator | None = None
        self._search: Search
        learned = self._given if self.model is None else self.model
        self._learned = isinstance(learned, LearnedModel)
        if isinstance(learned, LearnedModel):
            actions = self.game.num_actions
            self._search = Search.learned(learned, actions, simulations=play.simulations, rule=play.rule)
        else:
            evaluator: Any = self._given
            if self.model is not None:
                evaluator = self._wrap(self.model) if self._wrap else NetEvaluator(self.model)
            self._cache = CachedEvaluator(evaluator, capacity=play.cache) if play.cache else None
            self._search = Search(self.game, self._cache or evaluator, simulations=play.simulations, rule=play.rule)
        batch = play.games
        self._seeds = draws.row_seeds(seed, batch)
        self._number = np.zeros(batch, np.int64)  # games begun in this row
        self._length = np.zeros(batch, np.int64)
        self._states = np.zeros(batch, self.game.dtype)
        self._history = History(self.game, batch)
        self._gives_up = np.zeros((batch, 2), bool)
        self._version = self._cached_version = 0
        self._born = np.zeros(batch, np.int64)
        self._draws = np.zeros(batch, np.int64)  # of chance, in this game
        self._done: deque[dict[str, Any]] = deque()
        self.stats = {"games": 0, "moves": 0, "resigned": 0, "resign_checked": 0, "resign_wrong": 0}
        self._begin(np.arange(batch))
        self._started = True

    def __next__(self) -> dict[str, Any]:
        """Returns the next finished game, in the order of their ends."""
        while (episode := self.poll()) is None:
            pass
        return episode

    def poll(self) -> dict[str, Any] | None:
        """Returns the next finished game; where there is none, plays a move in each and returns what it ended, or None.

        Whoever has a deadline asks this: games may be long.
        """
        self._check_started()
        if not self._done:
            with _one_thread():
                self._move()
        return self._done.popleft() if self._done else None

    def update_params(self, state_dict: Mapping[str, Any], version: int) -> None:
        """Takes new parameters; games under way go on with them.

        Raises:
            TypeError: the evaluator takes none, so that old ones would go on playing.
        """
        if self.model is not None:
            self.model.load_state_dict(state_dict)
        elif callable(getattr(self._given, "update_params", None)):
            given: Any = self._given
            if _takes_version(given):
                given.update_params(state_dict, version=version)
            else:
                given.update_params(state_dict)
        else:
            raise TypeError(
                f"evaluator must have update_params to take parameters, {type(self._given).__name__} has none: send "
                "them to the inferencer that it asks, or give SelfPlay the model"
            )
        if self._cache is not None:
            self._cache.clear()
        self._version = version

    def state_dict(self) -> dict[str, Any]:
        """Returns all that later games depend on, parameters apart."""
        self._check_started()
        arrays = {name: getattr(self, name).copy() for name in _STATE}
        arrays["_states"] = states_to_bytes(arrays["_states"])
        done = [dict(episode) for episode in self._done]
        return {
            **arrays,
            "history": self._history.state_dict(),
            "done": done,
            "version": self._version,
            "stats": dict(self.stats),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where `state_dict` was taken; call after `start`.

        A game that cannot be copied (`copyable` False) begins its games anew.

        Raises:
            RuntimeError: `start` was not called.
            ValueError: the state is of another number of games, or of another game.
        """
        self._check_started()
        self._check_of(state)
        if not getattr(self.game, "copyable", True):
            self._seeds, self._number = np.array(state["_seeds"]), np.array(state["_number"])
            self._done = deque(dict(episode) for episode in state["done"])
            self._version, self.stats = state["version"], dict(state["stats"])
            self._begin(np.arange(self.play.games))
            return
        for name in _STATE:
            value = state.get(name, self._draws)  # a state that an older version wrote lacks what came later
            setattr(self, name, states_from_bytes(value, self.game) if name == "_states" else np.array(value))
        self._history.load_state_dict(state["history"])
        self._done = deque(dict(episode) for episode in state["done"])
        self._version, self.stats = state["version"], dict(state["stats"])
        if self._cache is not None:
            self._cache.clear()

    def _check_started(self) -> None:
        if not self._started:
            raise RuntimeError("start(seed, worker) must be called before the first episode")

    def _check_of(self, state: Mapping[str, Any]) -> None:
        """Refuses what another game or another number of games has left."""
        if (count := len(state["_seeds"])) != self.play.games:
            raise ValueError(f"state must be of {self.play.games} games, as play has them, got {count}")
        size, actions = np.shape(state["_states"])[-1], np.shape(state["history"]["policy"])[-1]
        if (size, actions) != (self.game.dtype.itemsize, self.game.num_actions):
            raise ValueError(
                f"state must be of {type(self.game).__name__}, with {self.game.dtype.itemsize} bytes a state and "
                f"{self.game.num_actions} actions, got {size} and {actions}"
            )

    def _move(self) -> None:
        """Searches all games once, plays one move in each, and collects those that ended."""
        play, game = self.play, self.game
        rows = np.arange(play.games)
        self._forget_older()
        full = draws.uniform(self._row_luck(_BUDGET), 1)[:, 0] < play.full_share
        budget = None if play.full_share >= 1 else np.where(full, play.simulations, play.fast_simulations)
        positions = game.observe(self._states) if self._learned else self._states
        legal = game.legal(self._states)
        found = self._search(positions, self._row_luck(_NOISE), noise=full, simulations=budget, legal=legal)
        self._born = np.where(self._length == 0, self._playing_version(), self._born)
        given_up = self._resigning(found)
        action = self._choose(found, legal)
        after = game.step(self._states, action)
        reward = game.reward(after)
        after, lucky = self._after_luck(after, rows)
        reward = reward + outcome_for(game.to_play(self._states), lucky, np.zeros(play.games, np.int64))
        self._record(rows, action, reward, after, found, full)
        self._states = after
        self._length += 1
        self.stats["moves"] += play.games
        ended = game.terminal(after) | given_up | (self._length >= play.max_moves)
        for row in np.flatnonzero(ended):
            self._done.append(self._episode(int(row), bool(given_up[row])))
        if ended.any():
            self._begin(np.flatnonzero(ended))

    def _after_luck(self, state: State, rows: NDArray[np.int64]) -> tuple[State, NDArray[np.float64]]:
        """Returns the states of games `rows` where a player moves or all is over, and what luck paid player 0."""

        def luck(lucky: NDArray[np.bool_]) -> NDArray[np.uint64]:
            games = rows[lucky]
            seeds = draws.fold_in(self._seeds[games], self._number[games], _LUCK, self._draws[games])
            self._draws[games] += 1
            return seeds

        return draws.after_luck(self.game, state, luck)

    def _forget_older(self) -> None:
        """Clears the cache where the evaluator has answered with newer parameters since the last move."""
        if self._cache is not None and self._playing_version() != self._cached_version:
            self._cached_version = self._playing_version()
            self._cache.clear()

    def _playing_version(self) -> int:
        return int(getattr(self._given, "version", self._version))

    def _choose(self, found: Found, legal: NDArray[np.bool_]) -> NDArray[np.int64]:
        play = self.play
        early = self._length < play.temperature_moves
        temperature = np.where(early, play.temperature, play.late_temperature)[:, None]
        warm = temperature > 0
        weights = draws.tempered(found.policy, np.where(warm, temperature, 1.0))
        action = np.where(warm[:, 0], draws.choose(self._row_luck(_MOVE), weights), found.action)
        if play.random_share == 0:
            return action
        luck = self._row_luck(_RANDOM)
        anywhere = draws.choose(draws.fold_in(luck, 0), legal.astype(np.float64))
        return np.where(draws.uniform(luck, 1)[:, 0] < play.random_share, anywhere, action)

    def _resigning(self, found: Found) -> NDArray[np.bool_]:
        """Returns which rows give up now; notes who would have in the games that are played out."""
        play, rows = self.play, np.arange(self.play.games)
        if play.resign_below is None:
            return np.zeros(play.games, bool)
        # the value of the move that the search prefers: the root's mean also holds the moves it tried and dropped
        hopeless = (found.values[rows, found.action] < play.resign_below) & (self._length > 0)
        checked = self._checked()
        self._gives_up[rows[hopeless], self.game.to_play(self._states)[hopeless]] = True
        given_up: NDArray[np.bool_] = hopeless & ~checked
        return given_up

    def _checked(self) -> NDArray[np.bool_]:
        seeds = draws.fold_in(self._seeds, self._number, _RESIGN)
        return draws.uniform(seeds, 1)[:, 0] < self.play.resign_check

    def _record(
        self,
        rows: NDArray[np.int64],
        action: NDArray[np.int64],
        reward: NDArray[np.float64],
        after: State,
        found: Found,
        full: NDArray[np.bool_],
    ) -> None:
        preferred = found.visits[rows, found.action] > 0
        best = np.where(preferred, found.values[rows, found.action], found.value)
        tried = found.values[rows, action]
        explored = (tried < best - (self.play.tolerance or 0.0)) | (found.visits[rows, action] == 0)
        self._history.record(
            self._length,
            after,
            action=action,
            reward=reward,
            policy=found.policy,
            value=found.value,
            full=full,
            best=best,
            explored=explored,
        )

    def _episode(self, row: int, given_up: bool) -> dict[str, Any]:
        """Returns the game of a row as an episode; a game given up ends with the move before, whoever made it."""
        length = int(self._length[row]) - given_up
        self.stats["games"] += 1
        self.stats["resigned"] += given_up
        states = self._history.states(row, length)
        action, policy, value, full = self._history.moves(row, length, "action", "policy", "value", "full")
        reward = self._history.moves(row, length, "reward")[0].astype(np.float32)
        to_play = self.game.to_play(states)
        if given_up:
            reward[-1] += outcome_for(to_play[-2:-1], np.full(1, -1.0), to_play[-1:])[0]
        elif self.play.resign_below is not None:
            self._count_wrong(row, reward, to_play[:-1])
        discount = np.full(length, self.game.discount, np.float32)
        truncated = not given_up and self._is_cut(states[-1:])
        beyond = np.zeros(1)  # an episode cut off by a limit has a value there
        if truncated:
            last = states[-1:]
            beyond = self._search.value(self.game.observe(last) if self._learned else last)
        else:
            discount[-1] = 0.0
        greedy: dict[str, Any] = {}
        if self.play.tolerance is not None:
            best, explored = self._history.moves(row, length, "best", "explored")
            greedy["greedy_return"] = greedy_return(reward, discount, to_play, best, explored, beyond=float(beyond[0]))
        return {
            "obs": self.game.observe(states),
            "action": action,
            "reward": reward,
            "discount": discount,
            "policy": policy.astype(np.float32),
            "value": np.append(value, beyond).astype(np.float32),
            "to_play": to_play,
            "legal": self.game.legal(states[:length]),
            "full": full.astype(np.float32),
            **greedy,
            "truncated": np.bool_(truncated),
            "version": np.int64(self._born[row]),
        }

    def _is_cut(self, state: State) -> bool:
        """Returns whether the episode of one state, `[1]`, was cut off and did not end."""
        if not self.game.terminal(state)[0]:
            return self.play.at_limit == "truncate"
        cut = getattr(self.game, "truncated", None)
        return cut is not None and bool(cut(state)[0])

    def _count_wrong(self, row: int, reward: NDArray[np.float32], mover: NDArray[np.int64]) -> None:
        for player in np.flatnonzero(self._gives_up[row]):
            self.stats["resign_checked"] += 1
            self.stats["resign_wrong"] += not outcome_for(int(player), reward, mover).sum() < 0

    def _begin(self, rows: NDArray[np.int64]) -> None:
        """Starts new games in `rows`, some from random positions."""
        play, game = self.play, self.game
        if (release := getattr(game, "release", None)) is not None:
            release(self._states[rows])
        self._number[rows] += 1
        self._gives_up[rows] = False
        self._draws[rows] = 0
        luck = lambda games, attempt: draws.fold_in(self._seeds[games], self._number[games], _OPENING, attempt)  # noqa: E731
        settle = lambda state, games: self._after_luck(state, games)[0]  # noqa: E731
        self._states[rows] = opened(game, play, luck, rows, settle)
        self._length[rows] = 0
        self._born[rows] = self._version
        self._history.begin(rows, self._states[rows])

    def _row_luck(self, stream: int) -> NDArray[np.uint64]:
        """Returns each row's seed for one purpose at this move of this game."""
        return draws.fold_in(self._seeds, self._number, stream, self._length)


def _takes_version(evaluator: Any) -> bool:
    """Returns whether an evaluator is told which parameters it is given, and so has them from here alone."""
    update = getattr(evaluator, "update_params", None)
    return callable(update) and "version" in signature(update).parameters


_STATE = ("_seeds", "_number", "_length", "_states", "_gives_up", "_born", "_draws")


@contextmanager
def _one_thread() -> Iterator[None]:
    """Play is many small batches, to which a second thread of torch costs more than it brings; training has its own."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
