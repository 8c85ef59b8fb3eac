"""What a game is: pure functions over structured arrays with one row a game.

Axis letters in this package: `B` games, `N` tree nodes, `A` actions, `T` moves.

A state is one structured numpy array of shape `[B]` (`game.dtype`), so that a tree can hold `[B, N]` of them and gather
any of them at once. A game never changes the array that it is given, and no row reads another.
"""

from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ai.game.arguments import check_has

State: TypeAlias = NDArray[np.void]
Actions: TypeAlias = NDArray[np.int64]
Seed: TypeAlias = int | NDArray[np.uint64]


@runtime_checkable
class Game(Protocol):
    """A game or puzzle whose rules are known, played many at a time.

    It may also have `truncated(state) -> [B]`: which games a limit of moves ended that is not in the observation, so
    that the last position has a value beyond.

    Attributes:
        num_actions: how many actions there are, `A`; illegal ones included.
        num_players: 1, 2 or more. With two, every value and reward is from the view of the player who moves or just
            moved. With more, both tell of each player, `[B, num_players]`, in the order of their numbers.
        dtype: the structured dtype of one state.
        observation_shape: shape of one observation.
        discount: what a later reward is worth a step earlier, in (0, 1].
    """

    num_actions: int
    num_players: int
    dtype: np.dtype[Any]
    observation_shape: tuple[int, ...]
    discount: float

    def init(self, batch: int, seed: Seed = 0) -> State:
        """Returns `batch` starting states; row `b` is drawn from `row_seeds(seed, batch)[b]` alone."""
        ...

    def step(self, state: State, action: Actions) -> State:
        """Returns the states after `action[B]`; rows that are over stay as they are, with reward 0.

        Raises:
            ValueError: an action is illegal in a row that is not over, or none of 0 to `num_actions - 1`.
        """
        ...

    def observe(self, state: State) -> NDArray[Any]:
        """Returns what the player to move sees, `[B, *observation_shape]`: float32, or uint8 of frames."""
        ...

    def legal(self, state: State) -> NDArray[np.bool_]:
        """Returns which actions are legal, `[B, A]`; none where the game is over."""
        ...

    def terminal(self, state: State) -> NDArray[np.bool_]:
        """Returns which games are over, `[B]`."""
        ...

    def reward(self, state: State) -> NDArray[np.float64]:
        """Returns what the last move earned the player who made it, `[B]`; of more than two, each, `[B, players]`."""
        ...

    def to_play(self, state: State) -> NDArray[np.int64]:
        """Returns who moves next, `[B]`, below `num_players`."""
        ...


@runtime_checkable
class ChanceGame(Game, Protocol):
    """A game with luck: at some states no player moves, but chance, by probabilities that are known.

    An outcome of chance is an action like any other: `step` plays it, `legal` lists those that can happen, and
    `to_play` names a player by whose view values and rewards are told there. Chance is asked by whoever plays the game,
    and luck is never part of a state: a search that could read it would see the future.
    """

    def chance(self, state: State) -> NDArray[np.float64]:
        """Returns the probability of each outcome, `[B, A]`; rows of zeros where a player moves or the game is over."""
        ...


@runtime_checkable
class SymmetricGame(Game, Protocol):
    """A game that looks the same from several sides, which multiplies its training data."""

    num_symmetries: int

    def transform(
        self, observation: NDArray[np.float32], policy: NDArray[np.float32], which: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Returns observations `[B, …]` and policies `[B, A]` seen from side `which[B]` (0: unchanged)."""
        ...


def action_places(game: SymmetricGame) -> NDArray[np.int64]:
    """Returns where each action stands in a policy that is seen from each side, `[num_symmetries, A]`.

    >>> from ai.game import ConnectFour
    >>> action_places(ConnectFour()).tolist()
    [[0, 1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1, 0]]
    """
    sides, actions = game.num_symmetries, game.num_actions
    number = np.broadcast_to(np.arange(actions, dtype=np.float32), (sides, actions))
    blank = np.zeros((sides, *game.observation_shape), np.float32)
    was = game.transform(blank, np.ascontiguousarray(number), np.arange(sides))[1]
    places: NDArray[np.int64] = was.argsort(axis=1)
    return places


_NEEDS = (*Game.__annotations__, "init", "step", "observe", "legal", "terminal", "reward", "to_play")


def check_game(game: Any, *needs: str) -> None:
    """Raises `TypeError` for what is no game, such as its class or its name, or lacks what is needed of it.

    Args:
        game: asked.
        needs: the members that will be used; all of `Game` where none is named.

    >>> from ai.game import TicTacToe
    >>> check_game(TicTacToe())
    """
    check_has(needs or _NEEDS, "a Game, such as TicTacToe()", game=game)


def chances(game: Game, state: State) -> NDArray[np.float64] | None:
    """Returns the probabilities of `ChanceGame.chance`, or None of a game without luck."""
    chance = getattr(game, "chance", None)  # asking the protocol takes as long as stepping a batch
    return None if chance is None else chance(state)


def move_weights(game: Game, state: State) -> NDArray[np.float64]:
    """Returns how likely each action is in random play, `[B, A]`: legal moves alike, outcomes of chance as they are."""
    weights = game.legal(state).astype(np.float64)
    chance = chances(game, state)
    if chance is None:
        return weights
    return np.where(chance.any(axis=1, keepdims=True), chance, weights)


def outcome_for(
    player: int | NDArray[np.integer], reward: NDArray[np.floating], mover: NDArray[np.integer]
) -> NDArray[np.floating]:
    """Returns what rewards are worth to `player`, where each is seen by the `mover` who earned it.

    Whoever asks who won asks here: the sum over a game's moves is that player's outcome, whatever the order of turns
    and whoever made the last move.

    >>> won_by_the_last_move, lost_by_it = np.array([1.0]), np.array([-1.0])
    >>> outcome_for(0, won_by_the_last_move, np.array([0])), outcome_for(0, lost_by_it, np.array([1]))
    (array([1.]), array([1.]))
    """
    return np.where(np.equal(mover, player), reward, -reward)


def reward_of_each(game: Game, state: State) -> NDArray[np.floating]:
    """Returns `game.reward` of a game for more than two players, `[B, num_players]`.

    Raises:
        ValueError: it has another shape, which numpy would repeat for every player where the sizes coincide.
    """
    reward, shape = game.reward(state), (len(state), game.num_players)
    if np.shape(reward) != shape:
        raise ValueError(
            f"{type(game).__name__}.reward must return one number for each of {game.num_players} players, shape "
            f"{shape}, got {np.shape(reward)}"
        )
    return reward


def state_bytes(state: State) -> NDArray[np.uint8]:
    """Returns each state as bytes, `[B, itemsize]`, without padding, whose content numpy leaves open."""
    names = state.dtype.names or ()
    packed = np.zeros(len(state), np.dtype([(name, state.dtype[name]) for name in names]))
    for name in names:
        packed[name] = state[name]
    return packed.view(np.uint8).reshape(len(state), packed.dtype.itemsize)


def state_keys(state: State) -> list[bytes]:
    """Returns a key for each state, `B` of them: equal states have equal keys."""
    return [row.tobytes() for row in state_bytes(state)]


def check_states(game: Game, state: Any) -> None:
    """Raises `ValueError` for what holds no states of this game, one a row: bytes of another's may look like them."""
    if not isinstance(state, np.ndarray) or state.ndim != 1:
        found = f"{type(state).__name__} of shape {np.shape(state)}"
        raise ValueError(f"states must be an array with one row a game, such as game.init(8), got {found}")
    if state.dtype != game.dtype and _fields(state.dtype) != _fields(game.dtype):
        raise ValueError(f"states must be of the game's dtype {game.dtype}, got {state.dtype}")


def _fields(dtype: np.dtype[Any]) -> list[tuple[str, np.dtype[Any]]]:
    """Returns a dtype's fields without their places, which numpy chooses anew where it joins arrays."""
    return [(name, dtype[name]) for name in dtype.names or ()]


def check_actions(action: NDArray[Any], batch: int, num_actions: int) -> Actions:
    """Returns `action` as int64 `[batch]`.

    Raises:
        ValueError: its shape is not `[batch]`, or an entry is outside `[0, num_actions)`.
        TypeError: it does not hold integers.
    """
    array = np.asarray(action)
    if array.dtype.kind not in "iu":
        raise TypeError(f"action must hold integers, got {array.dtype}")
    if array.shape != (batch,):
        raise ValueError(f"action must have one entry a game, shape ({batch},), got {array.shape}")
    numbers = array.astype(np.int64, copy=False)
    unsigned = numbers.view(np.uint64)  # in which what is negative is too large: one pass finds both
    if np.maximum.reduce(unsigned, initial=0) >= num_actions:
        row = int((unsigned >= num_actions).argmax())
        raise ValueError(f"action must be in [0, {num_actions}), got {array[row]} in row {row}")
    return numbers


def illegal_action(action: Actions, row: int) -> ValueError:
    """Returns the error for an action that the rules forbid."""
    return ValueError(f"action must be legal, got {action[row]} in row {row}; game.legal(state) tells which are")
