"""Searching games of more than two players, beside an enumeration of all their lines."""

import numpy as np
import pytest
import torch

from ai.game import (
    CachedEvaluator,
    GameEnvironments,
    GameError,
    Gumbel,
    Puct,
    RolloutEvaluator,
    ScalarGame,
    Search,
    SelfPlay,
    TicTacToe,
    check,
    draws,
    fast,
    greedy_player,
    match,
    random_player,
    solve,
)

TURNS = np.array([0, 1, 2, 1, 0, 2])


class Draft:
    """Three players draft five things, each worth something else to each, in the order 0, 1, 2, 1, 0.

    Who does not take a thing earns a quarter of what it is worth to them.
    """

    num_actions, num_players, discount, observation_shape = 5, 3, 1.0, (24,)
    dtype = np.dtype([("worth", "f8", (5, 3)), ("taken", "?", 5), ("reward", "f8", 3)])

    def init(self, batch, seed=0):
        state = np.zeros(batch, self.dtype)
        state["worth"] = draws.uniform(draws.row_seeds(seed, batch), 15).reshape(batch, 5, 3)
        return state

    def step(self, state, action):
        out = state.copy()
        out["reward"] = 0
        for row in np.flatnonzero(~self.terminal(state)):
            if not 0 <= action[row] < 5 or state["taken"][row, action[row]]:
                raise ValueError("illegal")
            out["taken"][row, action[row]] = True
            out["reward"][row] = state["worth"][row, action[row]] / 4
            mover = self.to_play(state[row : row + 1])[0]
            out["reward"][row, mover] = state["worth"][row, action[row], mover]
        return out

    def observe(self, state):
        turn = np.eye(4)[np.where(self.terminal(state), 3, self.to_play(state))]
        shown = [state["worth"].reshape(len(state), 15), state["taken"], turn]
        return np.concatenate(shown, axis=1).astype(np.float32)

    def legal(self, state):
        return ~state["taken"]

    def terminal(self, state):
        return state["taken"].all(axis=1)

    def reward(self, state):
        return state["reward"]

    def to_play(self, state):
        return TURNS[state["taken"].sum(axis=1)]


class CoinDraft(Draft):
    """A coin after the first thing: on tails (4), nobody may take the second free one any more."""

    dtype = np.dtype([*Draft.dtype.descr, ("tossed", "?")])

    def tossing(self, state):
        return (state["taken"].sum(axis=1) == 1) & ~state["tossed"]

    def step(self, state, action):
        tossing = self.tossing(state)
        out = state.copy()
        out[~tossing] = super().step(state[~tossing], action[~tossing])
        for row in np.flatnonzero(tossing):
            if action[row] not in (0, 4):
                raise ValueError("illegal")
            out["reward"][row], out["tossed"][row] = 0, True
            if action[row] == 4:
                gone = np.flatnonzero(~state["taken"][row])[1]
                out["taken"][row, gone] = True
                out["reward"][row] = [0.3, -0.2, 0.1]
        return out

    def observe(self, state):
        shown = super().observe(state)
        shown[:, -1] -= self.tossing(state)
        return shown

    def legal(self, state):
        return np.where(self.tossing(state)[:, None], np.arange(5) % 4 == 0, super().legal(state))

    def chance(self, state):
        return np.where(self.tossing(state)[:, None], [0.75, 0, 0, 0, 0.25], 0.0)


def exact(game, state):
    """What each player earns from one state on, `[3]`, where all choose the best for themselves."""
    if game.terminal(state)[0]:
        return np.zeros(3)
    outcomes = {}
    for action in np.flatnonzero(game.legal(state)[0]):
        after = game.step(state, np.array([action]))
        outcomes[action] = game.reward(after)[0] + exact(game, after)
    chance = game.chance(state)[0] if hasattr(game, "chance") else np.zeros(5)
    if chance.any():
        return sum(chance[action] * outcome for action, outcome in outcomes.items())
    return max(outcomes.values(), key=lambda outcome: outcome[game.to_play(state)[0]])


class Table:
    """The evaluator that knows."""

    def __init__(self, game):
        self.game = game

    def evaluate(self, state):
        values = [exact(self.game, state[row : row + 1]) for row in range(len(state))]
        return np.zeros((len(state), 5)), np.array(values)


@pytest.mark.parametrize("game", [Draft(), CoinDraft()], ids=lambda game: type(game).__name__)
def test_a_game_for_three_keeps_the_protocol(game):
    check(game, batch=4)


def clear():
    """Positions with 24 lines, player 1 to move, where each choice is worth 0.09 or more to its mover."""
    game = Draft()
    return game.step(game.init(4, np.array([107, 757, 1671, 1888], np.uint64)), np.zeros(4, np.int64))


def worth_of_moves(game, state):
    """What each move is worth to its mover by all lines, `[5]`."""
    worth = np.full(5, -np.inf)
    for action in np.flatnonzero(game.legal(state)[0]):
        after = game.step(state, np.array([action]))
        worth[action] = (game.reward(after)[0] + exact(game, after))[game.to_play(state)[0]]
    return worth


def test_each_plays_for_itself_as_an_enumeration_of_all_lines_does(engine):
    game, state = Draft(), clear()
    blind = lambda seen: (torch.zeros(len(seen), 5), torch.zeros(len(seen), 3))  # noqa: E731
    found = Search(game, blind, simulations=1600, rule=Puct(normalize=False))(state)
    worth = np.array([worth_of_moves(game, state[row : row + 1]) for row in range(4)])
    best = worth.argmax(axis=1)
    np.testing.assert_array_equal(found.action, best)
    np.testing.assert_allclose(found.values[np.arange(4), best], worth.max(axis=1), atol=0.06)
    assert (best != np.where(state["taken"], -1, state["worth"][:, :, 1]).argmax(axis=1)).any()  # greed is not enough


@pytest.mark.parametrize("rule", [Puct(), Gumbel(max_considered=5)], ids=["puct", "gumbel"])
def test_every_rule_chooses_for_the_mover(engine, rule):
    game, state = Draft(), clear()
    found = Search(game, Table(game), simulations=150, rule=rule)(state)
    best = [worth_of_moves(game, state[row : row + 1]).argmax() for row in range(4)]
    np.testing.assert_array_equal(found.action, best)


@pytest.mark.parametrize("game", [Draft(), CoinDraft()], ids=lambda game: type(game).__name__)
def test_an_edge_followed_once_is_worth_what_the_evaluator_says_the_mover_gets(engine, game):
    state = game.init(3, seed=5)
    search = Search(game, Table(game), simulations=5, rule=Puct(normalize=False, first_play=100), max_depth=1)
    found = search(state)
    np.testing.assert_allclose(search.value(state), [exact(game, state[row : row + 1]) for row in range(3)])
    np.testing.assert_allclose(found.raw_value, search.value(state)[:, 0])
    for row, action in zip(*np.nonzero(found.visits), strict=True):
        after = game.step(state[row : row + 1], np.array([action]))
        if not hasattr(game, "chance"):  # where luck moves, the first value is that of one outcome
            expected = (game.reward(after)[0] + exact(game, after))[0]
            assert found.values[row, action] == pytest.approx(expected)


def test_luck_is_shared_out_to_all_players(engine):
    game = CoinDraft()
    state = game.init(1, seed=1)
    search = Search(game, Table(game), simulations=400, max_depth=2, rule=Puct())
    found = search(state)
    best = found.action[0]
    after = game.step(state, np.array([best]))
    assert found.values[0, best] == pytest.approx((game.reward(after)[0] + exact(game, after))[0], abs=0.02)


def test_compiled_and_plain_trees_of_three_players_agree(monkeypatch):
    if not fast.available():
        pytest.skip("numba is not installed")
    game = CoinDraft()
    state, found = game.init(3, seed=2), []
    for compiled in (True, False):
        if not compiled:
            monkeypatch.setattr(fast, "available", lambda: False)
        search = Search(game, RolloutEvaluator(game), simulations=60, rule=Puct())
        first = search(state)
        search.advance(first.action)
        lucky = game.step(state, first.action)
        search.advance(np.zeros(3, np.int64))
        found.append((first, search(game.step(lucky, np.zeros(3, np.int64)))))
    for one, other in zip(*found, strict=True):
        for name in ("visits", "values", "value", "policy"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
    assert (found[0][1].visits.sum(axis=1) > 60).all()  # some of the tree was kept


def test_rollouts_tell_what_each_player_earns():
    game = Draft()
    state = game.init(1, seed=7)
    for action in (0, 1, 2, 3):  # one line is left
        state = game.step(state, np.array([action]))
    last = game.step(state, np.array([4]))
    np.testing.assert_allclose(RolloutEvaluator(game).evaluate(state)[1], game.reward(last))


def test_what_is_for_two_players_refuses_three():
    game = Draft()
    evaluator, player = RolloutEvaluator(game), random_player(game)
    for refused in (
        lambda: match(game, player, player, 2),
        lambda: solve(game),
        lambda: SelfPlay(game, evaluator=evaluator),
        lambda: GameEnvironments(game, 2),
    ):
        with pytest.raises(ValueError, match=r"game must be for (one or )?two players, Draft is for 3"):
            refused()
    with pytest.raises(ValueError, match=r"rule.prove must be False without the rules"):
        Search(game, evaluator, rule=Puct(prove=True))
    one = lambda seen: (torch.zeros(len(seen), 5), torch.zeros(len(seen)))  # noqa: E731
    for asked in (Search(game, one), greedy_player(game, one)):
        with pytest.raises(ValueError, match=r"evaluator must return a value a player, shape \(2, 3\), got \(2,\)"):
            asked(game.init(2), *(() if isinstance(asked, Search) else (None,)))
    nan = lambda seen: (torch.zeros(len(seen), 5), torch.full((len(seen), 3), torch.nan))  # noqa: E731
    with pytest.raises(ValueError, match="evaluator must return finite values of all players"):
        Search(game, nan)(game.init(2))
    with pytest.raises(ValueError, match="must return one value a position to be remembered, got 3"):
        Search(game, CachedEvaluator(lambda seen: (torch.zeros(len(seen), 5), torch.zeros(len(seen), 3))))(game.init(2))


@pytest.mark.parametrize("batch", [1, 3])  # sizes at which numpy would give all three what one earned
def test_a_reward_of_the_mover_alone_is_refused_at_every_size(batch):
    class Mine(CoinDraft):
        def reward(self, state):
            return super().reward(state)[:, 0]

    game = Mine()
    state = game.init(batch)
    blind = lambda seen: (torch.zeros(len(seen), 5), torch.zeros(len(seen), 3))  # noqa: E731
    for asked in (Search(game, blind), RolloutEvaluator(game).evaluate):
        with pytest.raises(ValueError, match=rf"Mine.reward must return .* shape \({batch}, 3\), got \({batch},\)"):
            asked(state)


@pytest.mark.parametrize("shift", [-1, 1])
def test_a_mover_that_there_is_not_is_refused(shift):
    class Elsewhere(Draft):
        def to_play(self, state):
            return super().to_play(state) + shift

    game = Elsewhere()
    with pytest.raises(ValueError, match=r"Elsewhere.to_play must be in \[0, 3\)"):
        Search(game, lambda seen: (torch.zeros(len(seen), 5), torch.zeros(len(seen), 3)))(game.init(1))


class Race(ScalarGame):
    """Three take one or two of nine; who takes the last earns 1, the others lose a half."""

    num_players, num_actions, observation_shape = 3, 2, (13,)
    dtype = np.dtype([("left", "i1"), ("player", "i1"), ("over", "i1"), ("reward", "f4", 3)])

    @staticmethod
    def start_row(s, luck):
        s["left"] = 9

    @staticmethod
    def play_row(s, action):
        s["left"] -= action + 1
        s["over"] = s["left"] == 0
        for player in range(3):
            s["reward"][player] = 0 if s["left"] > 0 else 1 if player == s["player"] else -0.5
        s["player"] = (s["player"] + 1) % 3

    @staticmethod
    def legal_row(s, out):
        out[0] = True
        out[1] = s["left"] > 1

    @staticmethod
    def observe_row(s, out):
        out[s["left"]] = out[10 + s["player"]] = 1


def test_rules_for_one_state_pay_three_players(engine):
    game = Race()
    check(game, batch=2)
    state = game.init(2)
    for action in ([1, 1], [1, 1], [0, 1], [0, 0]):  # player 1 is to move, 3 and 2 are left
        state = game.step(state, np.array(action))
    assert state["left"].tolist() == [3, 2]
    found = Search(game, RolloutEvaluator(game), simulations=60, rule=Puct())(state)
    assert found.action[1] == 1
    assert found.value[0] < -0.3 < 0.9 < found.value[1]
    end = game.step(game.step(state, np.array([1, 1])), np.array([0, 0]))
    assert game.reward(end).tolist() == [[-0.5, -0.5, 1], [0, 0, 0]]


class ForThree(TicTacToe):
    """Says that it is for three, and pays as for two."""

    num_players = 3


def test_the_kit_wants_a_reward_for_each_of_three():
    with pytest.raises(GameError, match="reward must return one number for each of 3 players"):
        check(ForThree())
