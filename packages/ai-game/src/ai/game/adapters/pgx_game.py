"""Any game of pgx without luck whose players see everything, as a batch-first game; JAX plays the rows in one call.

A state holds what pgx's own does, field by field, observations apart: they are made when they are asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ai.game.protocol import Actions, Seed, State, check_actions, illegal_action

_INSTALL = "PgxGame needs JAX and pgx: install them with pip install 'packages/ai-game[pgx]'"
_MOST_ROWS = 1024  # that JAX is handed at once
_STARTS = 64  # that are compared: one card dealt by chance is overlooked once in 2^62


class PgxGame:
    """A game of pgx for one or two players, by its name or as an environment.

    Player 0 begins. An observation is pgx's as float32, channels first where it has three axes. JAX compiles the
    rules for each power of two of rows anew, so that the first calls take seconds.

    Args:
        game: such as 'chess' or 'go_9x9', or an environment of pgx whose players see everything, which pgx cannot tell.

    Raises:
        ImportError: JAX or pgx is not installed.
        TypeError: `game` is neither a name nor an environment.
        ValueError: there is no such game, it has luck, in its moves or at its start, or more than two players.
    """

    discount = 1.0

    def __init__(self, game: str | Any) -> None:
        self.game = game
        jax, self._env = _jax(), _load(game)
        name = game if isinstance(game, str) else self._env.id
        if self._env.num_players > 2:
            raise ValueError(f"game must be for one or two, {name} is for {self._env.num_players}")
        if _has_luck(self._env):
            raise ValueError(f"game must have no luck, the moves of {name} have: pgx does not tell its probabilities")
        begun = _start(self._env, name)
        start, self._tree = jax.tree_util.tree_flatten(begun)
        self.num_players, self.num_actions = int(self._env.num_players), int(self._env.num_actions)
        shape = tuple(int(length) for length in self._env.observation_shape)
        self.observation_shape = (shape[-1], *shape[:-1]) if len(shape) == 3 else shape
        # each begins with a dot, so that none is one of ours
        names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_flatten_with_path(begun)[0]]
        self._names = [name for name in names if name != ".observation"]
        self._blank = np.zeros(shape, start[names.index(".observation")].dtype)
        leaves = {name: np.asarray(leaf) for name, leaf in zip(names, start, strict=True) if name in self._names}
        fields = [(name, leaf.dtype, leaf.shape) for name, leaf in leaves.items()]
        self.dtype: np.dtype[Any] = np.dtype([*fields, ("mover", "i1"), ("earned", "f8")], align=True)
        self._first = np.zeros(1, self.dtype)
        for name, leaf in leaves.items():
            self._first[name] = leaf
        self._play, self._see = self._compiled(names)

    def init(self, batch: int, seed: Seed = 0) -> State:
        """Returns `batch` starting states; nothing is drawn, so `seed` changes nothing."""
        return self._first.repeat(batch)

    def step(self, state: State, action: Actions) -> State:
        """Returns the states after `action[B]`.

        Raises:
            ValueError: an action is illegal, or what one player of two earned is not what the other lost.
        """
        action, out = check_actions(action, len(state), self.num_actions), state.copy()
        out["earned"] = 0
        live = np.flatnonzero(~self.terminal(state))
        allowed = state[".legal_action_mask"][live, action[live]]
        if not allowed.all():
            raise illegal_action(action, int(live[allowed.argmin()]))
        if len(live) == 0:
            return out
        after = state[live]
        for rows, leaves in self._asked(self._play, state[live], action[live].astype(np.int32)):
            for name, leaf in zip(self._names, leaves, strict=True):
                after[name][rows] = leaf
        if self.num_players == 2 and (earned := after[".rewards"])[earned.sum(axis=1) != 0].size:
            unlike = earned[earned.sum(axis=1) != 0][0].tolist()
            raise ValueError(f"game must be one where one's gain is the other's loss, a move of it earned {unlike}")
        after["mover"] = state[".current_player"][live]
        after["earned"] = after[".rewards"][np.arange(len(live)), after["mover"]]
        out[live] = after
        return out

    def observe(self, state: State) -> NDArray[np.float32]:
        """Returns what the players to move see, `[B, *observation_shape]`."""
        out = np.empty((len(state), *self._blank.shape), np.float32)
        for rows, (seen,) in self._asked(self._see, state):
            out[rows] = seen
        return np.ascontiguousarray(np.moveaxis(out, -1, 1)) if out.ndim == 4 else out

    def legal(self, state: State) -> NDArray[np.bool_]:
        """Returns which actions are legal, `[B, A]`."""
        open_moves: NDArray[np.bool_] = state[".legal_action_mask"] & ~self.terminal(state)[:, None]
        return open_moves

    def terminal(self, state: State) -> NDArray[np.bool_]:
        """Returns which games are over, `[B]`, those that a limit cut off among them."""
        over: NDArray[np.bool_] = state[".terminated"] | state[".truncated"]
        return over

    def truncated(self, state: State) -> NDArray[np.bool_]:
        """Returns which games a limit cut off, `[B]`."""
        cut: NDArray[np.bool_] = state[".truncated"] & ~state[".terminated"]
        return cut

    def reward(self, state: State) -> NDArray[np.float64]:
        """Returns what the last move earned who made it, `[B]`."""
        return state["earned"].astype(np.float64)

    def to_play(self, state: State) -> NDArray[np.int64]:
        """Returns who moves next, `[B]`; where the game is over, who moved last."""
        return np.where(self.terminal(state), state["mover"], state[".current_player"]).astype(np.int64)

    def _compiled(self, names: list[str]) -> tuple[Callable[..., Any], Callable[..., Any]]:
        """Returns the rules for many rows: `play(leaves, action) -> leaves` and `see(leaves) -> (observation,)`."""
        jax, tree, env, blank = _jax(), self._tree, self._env, self._blank
        hidden = names.index(".observation")

        def whole(leaves: list[Any]) -> Any:
            return tree.unflatten([*leaves[:hidden], jax.numpy.asarray(blank), *leaves[hidden:]])

        def play(leaves: list[Any], action: Any) -> list[Any]:
            after = jax.tree_util.tree_leaves(env.step(whole(leaves), action))
            return [*after[:hidden], *after[hidden + 1 :]]

        def see(leaves: list[Any]) -> tuple[Any]:
            return (env.observe(whole(leaves)),)

        return jax.jit(jax.vmap(play)), jax.jit(jax.vmap(see))

    def _asked(self, function: Callable[..., Any], state: State, *more: NDArray[Any]) -> list[tuple[slice, list[Any]]]:
        """Returns what a function answers of all rows, part by part, each with the rows that it is about."""
        answers = []
        for first in range(0, len(state), _MOST_ROWS):
            rows = slice(first, min(first + _MOST_ROWS, len(state)))
            count = rows.stop - rows.start
            # few sizes, since each is compiled; what fills a part up is forgotten again
            full = np.minimum(np.arange(1 << (count - 1).bit_length()), count - 1) + first
            answer = function([state[name][full] for name in self._names], *(x[full] for x in more))
            answers.append((rows, [np.asarray(leaf)[:count] for leaf in answer]))
        return answers

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.game,)


def _start(env: Any, name: str) -> Any:
    """Returns the state where player 0 begins; refuses a game where more than who begins is drawn."""
    jax = _jax()
    starts = jax.vmap(env.init)(jax.random.split(jax.random.PRNGKey(0), _STARTS))
    first = np.asarray(starts.current_player)
    for player in set(first.tolist()):
        of_player = np.flatnonzero(first == player)
        for leaf in jax.tree_util.tree_leaves(starts):
            if (leaf[of_player] != leaf[of_player[:1]]).any():
                raise ValueError(f"game must begin alike each time, {name} begins by chance, perhaps with hidden cards")
    zero = int((first == first.min()).argmax())
    return jax.tree_util.tree_map(lambda leaf: leaf[zero], starts)


def _has_luck(env: Any) -> bool:
    """Returns whether what follows a move depends on the random key that it is given, by the program that JAX made."""
    jax = _jax()
    from jax.interpreters.partial_eval import dce_jaxpr  # type: ignore[import-not-found, unused-ignore]

    key = jax.random.PRNGKey(0)
    program = jax.make_jaxpr(env.step)(env.init(key), jax.numpy.int32(0), key).jaxpr
    _, used = dce_jaxpr(program, [True] * len(program.outvars))
    return bool(used[-1])


def _load(game: Any) -> Any:
    try:
        import pgx  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        raise ImportError(_INSTALL) from error
    if isinstance(game, pgx.Env):
        return game
    if not isinstance(game, str):
        raise TypeError(f"game must be a name, such as 'chess', or an environment of pgx, got {game!r}")
    if game not in pgx.available_envs():
        raise ValueError(f"game must be one of pgx's, {', '.join(pgx.available_envs())}, got {game!r}")
    return pgx.make(game)


def _jax() -> Any:
    try:
        import jax  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        raise ImportError(_INSTALL) from error
    return jax
