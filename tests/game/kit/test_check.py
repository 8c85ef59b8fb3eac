"""The kit for new games, run against right games that look odd and wrong ones that look right."""

import numpy as np
import pytest

from ai.game import GameError, Othello, ScalarChanceGame, ScalarGame, TicTacToe, check, draws


class Wrong(TicTacToe):
    """Tic-tac-toe with one fault, the methods of a subclass; compiled trees know nothing of it."""


def absolute(state):
    """The first player's stones, then the second's, whoever moves."""
    planes, player = TicTacToe().observe(state), state["player"]
    return np.where((player == 1)[:, None, None, None], planes[:, ::-1], planes)


class AcceptsIllegalMoves(Wrong):
    """step must refuse an illegal action"""

    def step(self, state, action):
        legal = self.legal(state)
        return super().step(state, np.where(legal[np.arange(len(state)), action], action, legal.argmax(1)))


class RefusesLegalMoves(Wrong):
    """step must accept every legal action"""

    def step(self, state, action):
        if ((np.asarray(action) == 8) & (state["over"] == 0)).any():
            raise ValueError("no")
        return super().step(state, action)


class ChangesItsArgument(Wrong):
    """step must not change the state it is given"""

    def step(self, state, action):
        out = super().step(state, action)
        state["own"] = out["own"]
        return out


class ReadsNeighbours(Wrong):
    """must not let rows depend|must not depend on row order"""

    def step(self, state, action):
        out = super().step(state, action)
        if len(state) > 1:
            out["reward"] = np.where((out["over"] == 1) & (state["over"] == 0), out["reward"][0], 0)
        return out


class StartsByPlace(Wrong):
    """init rows must not depend on each other"""

    def init(self, batch, seed=0):
        state = super().init(batch, seed)
        state["player"] = np.arange(batch) % 2
        return state


class StartsAnew(Wrong):
    """init must give the same states for the same seed"""

    calls = 0

    def init(self, batch, seed=0):
        state = super().init(batch, seed)
        StartsAnew.calls += 1
        state["player"] = StartsAnew.calls % 2
        return state


class PaysForever(Wrong):
    """a game that is over must pay nothing more"""

    def step(self, state, action):
        out = super().step(state, action)
        out["reward"] = 0.5
        return out


class PaysTooMuch(Wrong):
    r"""reward of a two-player game must be in \[-1, 1\]"""

    def reward(self, state):
        return 2 * super().reward(state)


class MovesOn(Wrong):
    """a game that is over must stay as it is"""

    def step(self, state, action):
        out = super().step(state, action)
        out["player"] ^= state["over"]
        return out


class MovesAfterTheEnd(Wrong):
    """a game that is over must have no legal action"""

    def legal(self, state):
        return (state["stones"][:, None] >> np.arange(9, dtype=np.uint16)) & 1 == 0


class Stuck(Wrong):
    """a game that is not over must have a legal action"""

    def legal(self, state):
        return super().legal(state) & (np.arange(9) != 8)

    def step(self, state, action):
        if ((np.asarray(action) == 8) & (state["over"] == 0)).any():
            raise ValueError("no")
        return super().step(state, action)


class NeverEnds(Wrong):
    """a game must not come back to a position"""

    def step(self, state, action):
        out = super().step(state, action)
        ended = (out["over"] == 1) & (out["reward"] == 0) & (state["over"] == 0)
        out[ended] = self.init(ended.sum())
        return out


class ManyPlayers(Wrong):
    """to_play must be below num_players"""

    def to_play(self, state):
        return super().to_play(state) + 1


class UnseenNumbers(Wrong):
    """observe must return finite numbers"""

    def observe(self, state):
        return np.where((state["stones"] > 200)[:, None, None, None], np.float32(np.nan), super().observe(state))


class WideNumbers(Wrong):
    """observe must return float32 or uint8"""

    def observe(self, state):
        return super().observe(state).astype(np.float64)


class LooksAndTouches(Wrong):
    """observe must not change the state"""

    def observe(self, state):
        state["over"] = 1
        return super().observe(state)


class Objects(Wrong):
    """dtype must hold numbers alone"""

    dtype = np.dtype([("own", "u2"), ("stones", "u2"), ("player", "i1"), ("over", "i1"), ("reward", "f4"), ("x", "O")])


class Dice(Wrong):
    """step must give the same states for the same moves"""

    rng = np.random.default_rng(0)

    def step(self, state, action):
        out = super().step(state, action)
        out["reward"] *= self.rng.random(len(out))
        return out


class RewardOfTheFirstPlayer(Wrong):
    """reward must be from the view of the player who moved: player 0 wins all"""

    def reward(self, state):
        return super().reward(state) * np.where(state["player"] == 1, 1, -1)  # 1 is to move: 0 moved


class RewardOfTheSecondPlayer(Wrong):
    """reward must be from the view of the player who moved: player 1 wins all"""

    def reward(self, state):
        return super().reward(state) * np.where(state["player"] == 1, -1, 1)


class OneMover(Wrong):
    """to_play must tell who moves: it is 0 at all"""

    def to_play(self, state):
        return np.zeros(len(state), np.int64)


class AbsolutePlanes(Wrong):
    """observe must tell the mover: show the mover's own side first"""

    def observe(self, state):
        return absolute(state)


class AbsoluteSigns(Wrong):
    """observe must tell the mover: show the mover's own side first"""

    observation_shape = (9,)

    def observe(self, state):
        planes = absolute(state)
        return (planes[:, 0] - planes[:, 1]).reshape(len(state), 9)


class ThreeAbsolutePlanes(Wrong):
    """observe must tell the mover: show the mover's own side first"""

    observation_shape = (3, 3, 3)

    def observe(self, state):
        planes = absolute(state)
        return np.concatenate([planes, 1 - planes.sum(1, keepdims=True)], axis=1)


class SeededCoin(Wrong):
    """luck must not be drawn from the state"""

    dtype = np.dtype([*((name, TicTacToe.dtype[name]) for name in TicTacToe.dtype.names), ("seed", "u8")])

    def init(self, batch, seed=0):
        state = np.zeros(batch, self.dtype)
        state["seed"] = seed if isinstance(seed, np.ndarray) else np.arange(batch) + seed
        return state

    def step(self, state, action):
        plain = np.zeros(len(state), TicTacToe.dtype)
        for name in plain.dtype.names:
            plain[name] = state[name]
        # one seed in two slips onto the next free cell
        legal = self.legal(plain)
        if not (legal[np.arange(len(state)), action] | (state["over"] != 0)).all():
            raise ValueError("illegal")
        other = legal.argmax(1)
        after = super().step(plain, np.where(state["seed"] >> np.uint64(7) & np.uint64(1), other, action))
        out = state.copy()
        for name in plain.dtype.names:
            out[name] = after[name]
        return out


class TurnsTheBoardAlone(Wrong):
    """transform must turn the policy as it turns the observation"""

    def transform(self, observation, policy, which):
        return super().transform(observation, policy, which)[0], policy


class TurnsThePolicyAlone(Wrong):
    """transform must turn the policy as it turns the observation"""

    def transform(self, observation, policy, which):
        return observation, super().transform(observation, policy, which)[1]


class TurnsBackwards(Wrong):
    """transform must turn the policy as it turns the observation"""

    def transform(self, observation, policy, which):
        back = np.array([0, 3, 2, 1, 4, 5, 6, 7])[which]
        return super().transform(observation, policy, which)[0], super().transform(observation, policy, back)[1]


class LosesAnEntry(Wrong):
    """transform must give each of the policy's entries a place of its own"""

    def transform(self, observation, policy, which):
        board, policy = super().transform(observation, policy, which)
        return board, np.where((which == 3)[:, None], policy[:, :1], policy)


class TurnsAlways(Wrong):
    """transform must change nothing where which is 0"""

    def transform(self, observation, policy, which):
        return super().transform(observation, policy, (which + 1) % 8)


class OverwritesWhatItShowed(Wrong):
    """observe must return an array of its own"""

    room = np.zeros((16, 2, 3, 3), np.float32)

    def observe(self, state):
        self.room[: len(state)] = super().observe(state)
        return self.room[: len(state)]


class OverwritesItsStates(Wrong):
    """step must return an array of its own"""

    room = np.zeros(16, TicTacToe.dtype)

    def step(self, state, action):
        self.room[: len(state)] = super().step(state, action)
        return self.room[: len(state)]


class TurnsInPlace(Wrong):
    """transform must not change the arrays it is given"""

    def transform(self, observation, policy, which):
        observation[:], policy[:] = super().transform(observation, policy, which)
        return observation, policy


class TakesTheLastForMinusOne(Wrong):
    """step must refuse an illegal action with ValueError: action -1, where there are 0 to 8"""

    def step(self, state, action):
        return super().step(state, np.asarray(action) % 9)


class TellsTheMoverByFractions(Wrong):
    """to_play must return integers"""

    def to_play(self, state):
        return super().to_play(state).astype(float)


class TellsTheMoverByTheBatch(Wrong):
    """to_play must not let rows depend on others"""

    def to_play(self, state):
        return super().to_play(state) if len(state) > 1 else 1 - super().to_play(state)


class EndsByTheBatch(Wrong):
    """terminal must not let rows depend on others"""

    def terminal(self, state):
        return super().terminal(state) & (len(state) > 1)


class CutsByNumbers(Wrong):
    """truncated must return bool"""

    def truncated(self, state):
        return np.zeros(len(state))


class CutsWhatGoesOn(Wrong):
    """a game that goes on must not be truncated"""

    def truncated(self, state):
        return np.ones(len(state), bool)


class CutsAndTouches(Wrong):
    """truncated must not change the state it is given"""

    def truncated(self, state):
        state["player"] = 1
        return np.zeros(len(state), bool)


class OneChanceTooFew(Wrong):
    """chance must return one probability an action"""

    def chance(self, state):
        return np.zeros((len(state), 8))


class HasNoSides(Wrong):
    """num_symmetries must count the side that changes nothing, got 0"""

    num_symmetries = 0


class ShowsNothing(Wrong):
    """observe must show the position: it is the same at all"""

    def observe(self, state):
        return np.zeros((len(state), 2, 3, 3), np.float32)


class WantsNumbersAsSeed(Wrong):
    """init must take a number as its seed"""

    def init(self, batch, seed=0):
        return super().init(batch, seed[0])


class WantsANumberAsSeed(Wrong):
    """init must take numbers, one a row, as its seed"""

    def init(self, batch, seed=0):
        return super().init(batch, max(seed, 0))


@pytest.mark.parametrize("game", Wrong.__subclasses__(), ids=lambda g: g.__name__)
def test_a_wrong_game_is_refused_by_the_name_of_its_mistake(game):
    with pytest.raises(GameError, match=game.__doc__):
        check(game())


def test_a_side_is_held_against_the_others_where_no_game_starts_alike():
    game = Othello(4)  # a quarter turn of its start is none
    transform = game.transform
    check(game)

    def turns_the_board_alone(observation, policy, which):
        board, turned = transform(observation, policy, which)
        return board, np.where((which % 2 == 1)[:, None], policy, turned)

    game.transform = turns_the_board_alone
    with pytest.raises(GameError, match="transform must turn the policy as it turns the observation: side 1 and then"):
        check(game)


class Misere(TicTacToe):
    """Who makes three in a row loses."""

    def reward(self, state):
        return -super().reward(state)


class Pays(TicTacToe):
    """The centre pays at once."""

    def step(self, state, action):
        out = super().step(state, action)
        out["reward"] += 0.5 * ((state["over"] == 0) & (np.asarray(action) == 4) & (out["reward"] == 0))
        return out


class ColourPlane(TicTacToe):
    """Sides keep their planes, and a third says who moves."""

    observation_shape = (3, 3, 3)

    def observe(self, state):
        planes = absolute(state)
        colour = np.broadcast_to(state["player"][:, None, None, None], (len(state), 1, 3, 3))
        return np.concatenate([planes, colour], axis=1).astype(np.float32)


class TurnedBoard(TicTacToe):
    """The board is turned round for the other player, who sits across it."""

    num_symmetries = 1

    def observe(self, state):
        planes = super().observe(state)
        return np.where((state["player"] == 1)[:, None, None, None], planes[:, :, ::-1, ::-1], planes)

    def transform(self, observation, policy, which):
        return observation, policy


class Twice(TicTacToe):
    """The first player moves once, then each moves twice."""

    def to_play(self, state):
        moves = np.array([bin(x).count("1") for x in state["stones"]])
        return np.where((moves + 1) // 2 % 2 == 1, 1, 0)


class StartsOver(TicTacToe):
    """Some games are over before their first move, where any action is none."""

    def init(self, batch, seed=0):
        state = super().init(batch, seed)
        seeds = draws.row_seeds(seed, batch)
        state["over"] = seeds % 2 == draws.row_seeds(0, 1) % 2
        return state


@pytest.mark.parametrize("game", [Misere, Pays, ColourPlane, TurnedBoard, StartsOver], ids=lambda g: g.__name__)
def test_a_right_game_that_looks_odd_passes(game):
    for seed in range(4):
        check(game(), seed=seed)


class AnyOfThree(ScalarGame):
    """Three actions do the same, and two of the sides exchange two of them: one after the other is no side."""

    num_actions, observation_shape, num_symmetries = 3, (4,), 3
    dtype = np.dtype([("moves", "i1"), ("player", "i1"), ("over", "i1"), ("reward", "f4")])

    @staticmethod
    def play_row(s, action):
        s["moves"] += 1
        s["player"] = 1 - s["player"]
        s["over"] = s["reward"] = s["moves"] == 3

    @staticmethod
    def legal_row(s, out):
        out[:3] = True

    @staticmethod
    def observe_row(s, out):
        out[s["moves"]] = 1

    def transform(self, observation, policy, which):
        return observation, np.take_along_axis(policy, np.array([[0, 1, 2], [1, 0, 2], [0, 2, 1]])[which], 1)


class OneThrow(ScalarChanceGame):
    """One chooses a coin, and it falls: there is nothing to see."""

    num_players, num_actions, observation_shape = 1, 3, (1,)
    dtype = np.dtype([("coin", "i1"), ("player", "i1"), ("over", "i1"), ("reward", "f4")])

    @staticmethod
    def play_row(s, action):
        if s["coin"] == 0:
            s["coin"] = action + 1
        else:
            s["over"], s["reward"] = 1, action

    @staticmethod
    def legal_row(s, out):
        out[: 3 if s["coin"] == 0 else 2] = True

    @staticmethod
    def chance_row(s, out):
        if s["coin"] > 0:
            out[0] = 0.25 * s["coin"]
            out[1] = 1 - out[0]

    @staticmethod
    def observe_row(s, out):
        out[0] = 1


@pytest.mark.parametrize("game", [AnyOfThree, OneThrow], ids=lambda g: g.__name__)
def test_a_right_game_of_alike_moves_or_one_decision_passes(game):
    check(game())


class Walk:
    """One walks on a ring of five and is done at the fourth step to the right of the start: it can repeat."""

    num_actions, num_players, discount, observation_shape = 2, 1, 0.9, (5,)
    dtype = np.dtype([("at", "i8"), ("over", "i1"), ("reward", "f8")])

    def init(self, batch, seed=0):
        return np.zeros(batch, self.dtype)

    def step(self, state, action):
        if not np.isin(action, (0, 1)).all():
            raise ValueError("action must be 0 or 1")
        out, live = state.copy(), state["over"] == 0
        out["at"] = np.where(live, (state["at"] + np.where(action == 1, 1, -1)).clip(0, 4), state["at"])
        out["over"] = out["at"] == 4
        out["reward"] = live & (out["at"] == 4)
        return out

    def observe(self, state):
        return np.eye(5, dtype=np.float32)[state["at"]]

    def legal(self, state):
        return np.repeat((state["over"] == 0)[:, None], 2, axis=1)

    def terminal(self, state):
        return state["over"] != 0

    def reward(self, state):
        return state["reward"]

    def to_play(self, state):
        return np.zeros(len(state), np.int64)


def test_a_game_that_can_repeat_is_refused_unless_it_is_allowed_to():
    with pytest.raises(GameError, match=r"must not come back to a position.*repeats=True"):
        check(Walk())
    check(Walk(), repeats=True)
