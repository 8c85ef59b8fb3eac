"""A test kit for a new game: random play that looks for the faults which ruin a search silently."""

from __future__ import annotations

import numpy as np

from ai.game import draws
from ai.game.arguments import check_count, check_flag
from ai.game.kit.mistakes import GameError, History, Moment, find_mistakes
from ai.game.kit.sides import unlike_symmetries
from ai.game.protocol import Game, Seed, State, SymmetricGame, chances, check_game, move_weights, state_keys

_READERS = ("observe", "legal", "terminal", "reward", "to_play")


def _readers(game: Game) -> tuple[str, ...]:
    """Returns what tells something of a state, those that only some games have among them."""
    return (*_READERS, *(name for name in ("chance", "truncated") if hasattr(game, name)))


def check(game: Game, *, batch: int = 16, seed: int = 0, max_steps: int = 1000, repeats: bool = False) -> None:
    """Plays `batch` random games to the end and raises at the first rule that `game` breaks.

    It finds: wrong shapes and types; a step that changes the state it was given; rows that influence each other;
    illegal moves accepted; games that are over and still move or pay; positions that come back; and the classic
    mistakes, each by its name: rewards from one player's view, a `to_play` that never changes, observations that do not
    tell the mover, luck kept in the state, symmetries that turn board and policy differently.

    Args:
        game: the game.
        batch: how many games.
        seed: of the games.
        max_steps: within which random play must end.
        repeats: allow a game to come back to a position. Random play ends even so, good play need not: give `match`,
            `Play` and `RolloutEvaluator` a limit of moves.

    Raises:
        GameError: with the rule broken, the step and the row.
        ValueError: the game's states cannot be copied, as those of `GymnasiumGame`: the kit needs to go back to them.

    >>> from ai.game import TicTacToe
    >>> check(TicTacToe())
    """
    check_count(1, batch=batch, max_steps=max_steps)
    check_count(0, seed=seed)
    check_flag(repeats=repeats)
    check_game(game)
    if not getattr(game, "copyable", True):
        raise ValueError(f"game must have states that can be copied, those of {type(game).__name__} cannot")
    seeds = draws.row_seeds(seed, batch)
    _check_dtype(game)
    state = _started(game, batch, seeds)
    _check_readers(game, state, 0)
    _check_shapes(game, state, batch)
    _same(game.init(batch, seeds), state, "init must give the same states for the same seed", 0)
    _started(game, batch, seed)
    for row in range(min(batch, 4)):
        _same(game.init(1, seeds[row : row + 1]), state[row : row + 1], "init rows must not depend on each other", 0)
    history: History = []
    met = [{key} for key in state_keys(state)]
    for step in range(max_steps + 1):
        over = game.terminal(state)
        _check_legal(game, state, over, step)
        if over.all():
            find_mistakes(game, history, seeds)
            if isinstance(game, SymmetricGame):
                unlike_symmetries(game, history, seeds)
            _check_outside_refused(game, history)
            return
        if step == max_steps:
            break
        legal = game.legal(state)
        _check_illegal_refused(game, state, legal, step)
        action = draws.choose(draws.fold_in(seeds, step), np.where(over[:, None], 1.0, move_weights(game, state)))
        following = _play(game, state, action, step)
        _check_own_arrays(game, state, following, step)
        _check_rows(game, state, action, following, step)
        _check_end(game, state, following, step)
        _check_rewards(game, following, step)
        _check_readers(game, following, step)
        history.append(Moment(state, ~over, action, following))
        if not repeats:
            _check_repeats(following, met, ~over, step)
        state = following
    raise GameError(f"every game must end within max_steps ({max_steps}) random moves; raise max_steps if it is longer")


def _started(game: Game, batch: int, seed: Seed) -> State:
    try:
        return game.init(batch, seed)
    except Exception as error:
        kind = "a number" if isinstance(seed, int) else "numbers, one a row,"
        raise GameError(f"init must take {kind} as its seed: {type(error).__name__}: {error}") from error


def _check_dtype(game: Game) -> None:
    dtype = np.dtype(game.dtype)
    _rule(dtype.names is not None, f"dtype must be structured, with a name for each field, got {dtype}", 0)
    _rule(not dtype.hasobject, f"dtype must hold numbers alone, so that states can be copied, got {dtype}", 0)
    _rule(game.num_players >= 1, f"num_players must be at least 1, got {game.num_players}", 0)
    _rule(0 < game.discount <= 1, f"discount must be in (0, 1], got {game.discount}", 0)


def _check_shapes(game: Game, state: State, batch: int) -> None:
    _rule(state.dtype == game.dtype and state.shape == (batch,), "init must return [batch] states of game.dtype", 0)
    observation = game.observe(state)
    _rule(
        observation.shape == (batch, *game.observation_shape) and observation.dtype in (np.float32, np.uint8),
        f"observe must return float32 or uint8 [B, {', '.join(map(str, game.observation_shape))}], got "
        f"{observation.dtype} {observation.shape}",
        0,
    )
    legal = game.legal(state)
    _rule(legal.shape == (batch, game.num_actions) and legal.dtype == bool, "legal must return bool [B, A]", 0)
    for name in ("terminal", "reward", "to_play"):
        each = name == "reward" and game.num_players > 2
        shape = (batch, game.num_players) if each else (batch,)
        what = f"one number for each of {game.num_players} players, [B, players]" if each else "one number a game"
        _rule(getattr(game, name)(state).shape == shape, f"{name} must return {what}", 0)
    _rule(game.terminal(state).dtype == bool, "terminal must return bool [B]", 0)
    _rule(np.asarray(game.to_play(state)).dtype.kind in "iu", "to_play must return integers [B]", 0)
    chance, truncated = chances(game, state), getattr(game, "truncated", None)
    if chance is not None:
        _rule(chance.shape == (batch, game.num_actions), "chance must return one probability an action, [B, A]", 0)
    if truncated is not None:
        cut = np.asarray(truncated(state))
        _rule(cut.shape == (batch,) and cut.dtype == bool, "truncated must return bool [B]", 0)


def _check_legal(game: Game, state: State, over: np.ndarray, step: int) -> None:
    legal = game.legal(state)
    _rule(not legal[over].any(), "a game that is over must have no legal action", step, over)
    _rule(bool(legal[~over].any(axis=1).all()), "a game that is not over must have a legal action", step, ~over)
    chance = chances(game, state)
    if chance is None:
        return
    lucky = np.asarray(chance.any(axis=1))
    _rule(not lucky[over].any(), "a game that is over must have no chance", step, over)
    fair = np.isclose(chance[lucky].sum(axis=1), 1).all() and (chance >= 0).all()
    _rule(bool(fair), "chance must return probabilities that sum to 1, or a row of zeros", step, lucky)
    _rule(bool(((chance > 0) == legal)[lucky].all()), "legal must list the outcomes of chance", step, lucky)


def _check_illegal_refused(game: Game, state: State, legal: np.ndarray, step: int) -> None:
    live = ~game.terminal(state)
    rows, actions = np.nonzero(~legal & live[:, None])
    if len(rows):
        _refused(game, state[rows[:1]], int(actions[0]), f"row {rows[0]}, {step=}")


def _check_outside_refused(game: Game, history: History) -> None:
    for moment in history[:1]:
        for action in (-1, game.num_actions):  # numpy takes the first for the last action
            _refused(game, moment.state[moment.live][:1], action, f"where there are 0 to {game.num_actions - 1}")


def _refused(game: Game, state: State, action: int, where: str) -> None:
    try:
        game.step(state, np.array([action]))
    except (ValueError, IndexError):
        return
    raise GameError(f"step must refuse an illegal action with ValueError: action {action}, {where}")


def _play(game: Game, state: State, action: np.ndarray, step: int) -> State:
    before = state.copy()
    try:
        following = game.step(state, action)
    except ValueError as error:
        raise GameError(f"step must accept every legal action: {step=}: {error}") from error
    _same(state, before, "step must not change the state it is given", step)
    _same(
        game.step(state, action), following, "step must give the same states for the same moves, luck is chance's", step
    )
    return following


def _check_own_arrays(game: Game, state: State, following: State, step: int) -> None:
    """Finds answers that the next call overwrites."""
    readers = _readers(game)
    told, states = {name: getattr(game, name)(state) for name in readers}, (state.copy(), following.copy())
    before = {name: answer.copy() for name, answer in told.items()}
    for name in readers:
        getattr(game, name)(following)
        kept = np.array_equal(told[name], before[name])
        _rule(kept, f"{name} must return an array of its own: the next call changes the last answer", step)
    over, legal = game.terminal(following), game.legal(following)
    if (over | legal.any(axis=1)).all():
        game.step(following.copy(), legal.argmax(axis=1))
    for given, left in zip((state, following), states, strict=True):
        _same(given, left, "step must return an array of its own, the next call changes the last answer", step)


def _check_rows(game: Game, state: State, action: np.ndarray, following: State, step: int) -> None:
    for row in {0, step % len(state), len(state) - 1}:
        one = slice(row, row + 1)
        alone = game.step(state[one], action[one])
        _same(alone, following[one], "step must not let rows depend on each other", step)
        for name in _readers(game):
            whole = getattr(game, name)(following)[one]
            _rule(np.array_equal(getattr(game, name)(alone), whole), f"{name} must not let rows depend on others", step)
    shuffled = np.random.default_rng(step).permutation(len(state))
    _same(game.step(state[shuffled], action[shuffled]), following[shuffled], "step must not depend on row order", step)


def _check_end(game: Game, state: State, following: State, step: int) -> None:
    over = game.terminal(state)
    _rule(bool((game.reward(following)[over] == 0).all()), "a game that is over must pay nothing more", step, over)
    _rule(bool(game.terminal(following)[over].all()), "a game that is over must stay over", step, over)
    again = game.step(following[over], np.zeros(over.sum(), np.int64))
    _same(again, following[over], "a game that is over must stay as it is", step)
    if (truncated := getattr(game, "truncated", None)) is not None:
        live = ~game.terminal(following)
        _rule(not truncated(following)[live].any(), "a game that goes on must not be truncated", step, live)


def _check_rewards(game: Game, following: State, step: int) -> None:
    reward = game.reward(following)
    _rule(bool(np.isfinite(reward).all()), "reward must be finite", step)
    if game.num_players == 2:
        _rule(bool((np.abs(reward) <= 1).all()), "reward of a two-player game must be in [-1, 1]", step)
    players = game.to_play(following)
    _rule(bool(((players >= 0) & (players < game.num_players)).all()), "to_play must be below num_players", step)


def _check_readers(game: Game, state: State, step: int) -> None:
    before = state.copy()
    _rule(bool(np.isfinite(game.observe(state)).all()), "observe must return finite numbers", step)
    for name in _readers(game):
        getattr(game, name)(state)
        _same(state, before, f"{name} must not change the state it is given", step)


def _check_repeats(following: State, met: list[set[bytes]], live: np.ndarray, step: int) -> None:
    for row, key in enumerate(state_keys(following)):
        if live[row] and key in met[row]:
            raise GameError(
                f"a game must not come back to a position, or play need not end: row {row}, {step=}; count the moves "
                "in the state and end it at a limit, or check(…, repeats=True) and limit the moves where it is played"
            )
        met[row].add(key)


def _same(left: State, right: State, rule: str, step: int) -> None:
    for name in left.dtype.names or ():
        unlike = left[name] != right[name]
        different = unlike.any(axis=tuple(range(1, unlike.ndim)))
        if different.any():
            raise GameError(f"{rule}: field {name!r}, row {int(different.argmax())}, {step=}")


def _rule(holds: bool, rule: str, step: int, rows: np.ndarray | None = None) -> None:
    if not holds:
        where = "" if rows is None else f", among rows {np.flatnonzero(rows)[:8].tolist()}"
        raise GameError(f"{rule}: {step=}{where}")
