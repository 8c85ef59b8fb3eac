"""A test kit for a new game: random play that looks for the faults which ruin a search silently."""

from __future__ import annotations

import numpy as np

from ai.game import draws
from ai.game.protocol import Game, State


class GameError(AssertionError):
    """A game breaks the protocol; the message names the rule."""


def check(game: Game, *, batch: int = 16, seed: int = 0, max_steps: int = 1000) -> None:
    """Plays `batch` random games to the end and raises at the first rule that `game` breaks.

    It finds: wrong shapes and types; a step that changes the state it was given; rows that influence each other;
    illegal moves accepted; games that are over and still move or pay; rewards of a two-player game outside [-1, 1] or
    paid before its end; observations that are not finite, or (two planes) whose sides do not follow the mover.

    Raises:
        GameError: with the rule broken, the step and the row.
        ValueError: the game's states cannot be copied, as those of `GymnasiumGame`: the kit needs to go back to them.

    >>> from ai.game import TicTacToe
    >>> check(TicTacToe())
    """
    if not getattr(game, "copyable", True):
        raise ValueError(f"game must have states that can be copied, those of {type(game).__name__} cannot")
    seeds = draws.row_seeds(seed, batch)
    state = game.init(batch, seeds)
    _check_shapes(game, state, batch)
    _same(game.init(batch, seeds), state, "init must give the same states for the same seed", 0)
    for row in range(min(batch, 4)):
        _same(game.init(1, seeds[row : row + 1]), state[row : row + 1], "init rows must not depend on each other", 0)
    for step in range(max_steps):
        over = game.terminal(state)
        legal = game.legal(state)
        _rule(not legal[over].any(), "a game that is over must have no legal action", step, over)
        _rule(bool(legal[~over].any(axis=1).all()), "a game that is not over must have a legal action", step, ~over)
        if over.all():
            return
        _check_illegal_refused(game, state, legal, step)
        weights = np.where(over[:, None], 1.0, legal.astype(np.float64))
        action = draws.choose(draws.fold_in(seeds, step), weights)
        before = state.copy()
        try:
            following = game.step(state, action)
        except ValueError as error:
            raise GameError(f"step must accept every legal action: {step=}: {error}") from error
        _same(state, before, "step must not change the state it is given", step)
        _check_rows(game, state, action, following, step)
        _check_rewards(game, state, following, step)
        _check_players(game, state, following, step)
        observed = game.observe(following)
        _rule(bool(np.isfinite(observed).all()), "observe must return finite numbers", step)
        state = following
    raise GameError(f"every game must end within max_steps ({max_steps}) random moves; raise max_steps if it is longer")


def _check_shapes(game: Game, state: State, batch: int) -> None:
    _rule(state.dtype == game.dtype and state.shape == (batch,), "init must return [batch] states of game.dtype", 0)
    observation = game.observe(state)
    _rule(
        observation.shape == (batch, *game.observation_shape) and observation.dtype == np.float32,
        f"observe must return float32 [B, {', '.join(map(str, game.observation_shape))}], got "
        f"{observation.dtype} {observation.shape}",
        0,
    )
    legal = game.legal(state)
    _rule(legal.shape == (batch, game.num_actions) and legal.dtype == bool, "legal must return bool [B, A]", 0)
    for name in ("terminal", "reward", "to_play"):
        _rule(getattr(game, name)(state).shape == (batch,), f"{name} must return one number a game", 0)
    _rule(game.num_players in (1, 2), f"num_players must be 1 or 2, got {game.num_players}", 0)
    _rule(0 < game.discount <= 1, f"discount must be in (0, 1], got {game.discount}", 0)


def _check_illegal_refused(game: Game, state: State, legal: np.ndarray, step: int) -> None:
    live = ~game.terminal(state)
    rows, actions = np.nonzero(~legal & live[:, None])
    if len(rows):
        row, action = rows[:1], actions[:1]
        try:
            game.step(state[row], action)
        except ValueError:
            return
        where = f"action {action[0]}, row {row[0]}, {step=}"
        raise GameError(f"step must refuse an illegal action with ValueError: {where}")


def _check_rows(game: Game, state: State, action: np.ndarray, following: State, step: int) -> None:
    for row in {0, step % len(state), len(state) - 1}:
        one = slice(row, row + 1)
        alone = game.step(state[one], action[one])
        _same(alone, following[one], "step must not let rows depend on each other", step)
        for name in ("observe", "legal", "reward"):
            whole = getattr(game, name)(following)[one]
            _rule(np.array_equal(getattr(game, name)(alone), whole), f"{name} must not let rows depend on others", step)
    shuffled = np.random.default_rng(step).permutation(len(state))
    _same(game.step(state[shuffled], action[shuffled]), following[shuffled], "step must not depend on row order", step)


def _check_rewards(game: Game, state: State, following: State, step: int) -> None:
    over = game.terminal(state)
    reward = game.reward(following)
    _rule(bool(np.isfinite(reward).all()), "reward must be finite", step)
    _rule(bool((reward[over] == 0).all()), "a game that is over must pay nothing more", step, over)
    _rule(bool(game.terminal(following)[over].all()), "a game that is over must stay over", step, over)
    if game.num_players == 2:
        _rule(bool((np.abs(reward) <= 1).all()), "reward of a two-player game must be in [-1, 1]", step)
        ended = game.terminal(following)
        _rule(bool((reward[~ended] == 0).all()), "reward of a two-player game must come with its end", step)


def _check_players(game: Game, state: State, following: State, step: int) -> None:
    players = game.to_play(following)
    _rule(bool(((players >= 0) & (players < game.num_players)).all()), "to_play must be below num_players", step)
    planes = game.observation_shape[0] if len(game.observation_shape) == 3 else 0
    live = ~game.terminal(following) & (game.to_play(state) != players)
    if game.num_players == 2 and planes == 2 and live.any():
        # the sides change places when the turn does: a plane looks most like the other plane of the state before
        before, after = game.observe(state)[live], game.observe(following)[live]
        crossed = (before * after[:, ::-1]).sum()
        straight = (before * after).sum()
        _rule(bool(straight <= crossed), "observe must show the mover's own side first, whoever moves", step)


def _same(left: State, right: State, rule: str, step: int) -> None:
    for name in left.dtype.names or ():
        different = np.reshape(left[name] != right[name], (len(left), -1)).any(axis=1)
        if different.any():
            raise GameError(f"{rule}: field {name!r}, row {int(different.argmax())}, {step=}")


def _rule(holds: bool, rule: str, step: int, rows: np.ndarray | None = None) -> None:
    if not holds:
        where = "" if rows is None else f", among rows {np.flatnonzero(rows)[:8].tolist()}"
        raise GameError(f"{rule}: {step=}{where}")
