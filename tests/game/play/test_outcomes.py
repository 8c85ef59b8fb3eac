"""Who won, and when a game stops, where players do not simply take turns until one of them makes the last move."""

import numpy as np
import pytest
import torch

from ai.game import (
    Gumbel,
    Play,
    Puct,
    RolloutEvaluator,
    Score,
    Search,
    SelfPlay,
    TicTacToe,
    match,
    outcome_for,
    random_player,
    ratings,
    round_robin,
    search_player,
    solve,
)


class Nim:
    """Take one, two or three sticks; who takes the last one wins, or loses where `misere`; `turns[k]` makes move k."""

    num_actions, num_players, discount, observation_shape = 3, 2, 1.0, (2, 16)
    dtype = np.dtype([("sticks", "i8"), ("move", "i8"), ("reward", "f8")])

    def __init__(self, sticks=9, *, misere=False, turns=(0, 1)):
        self.sticks, self.misere, self.turns = sticks, misere, np.array(turns)

    def init(self, batch, seed=0):
        state = np.zeros(batch, self.dtype)
        state["sticks"] = self.sticks
        return state

    def step(self, state, action):
        out, live = state.copy(), state["sticks"] > 0
        taken = np.where(live, np.asarray(action) + 1, 0)
        if (taken > state["sticks"]).any():
            raise ValueError("there are not so many sticks")
        out["sticks"] -= taken
        out["move"] += live
        out["reward"] = live * (out["sticks"] == 0) * (-1 if self.misere else 1)
        return out

    def observe(self, state):
        return np.stack([np.eye(16)[state["sticks"]], np.eye(16)[state["move"] % len(self.turns)]], 1).astype("f4")

    def legal(self, state):
        return np.arange(1, 4) <= state["sticks"][:, None]

    def terminal(self, state):
        return state["sticks"] == 0

    def reward(self, state):
        return state["reward"]

    def to_play(self, state):
        return self.turns[state["move"] % len(self.turns)]


class Idle(Nim):
    """Nim with a fourth action that passes: play need not end."""

    num_actions = 4

    def step(self, state, action):
        passes = np.asarray(action) == 3
        out = super().step(state, np.where(passes, -1, action))
        return out

    def legal(self, state):
        return np.append(super().legal(state), state["sticks"][:, None] > 0, axis=1)


def sure(game):
    """Perfect knowledge as an evaluator of states."""
    solution = solve(game)

    class Sure:
        def evaluate(self, state):
            scores = solution.score(state)
            return np.where(scores > -9, 4 * scores, -50), scores.max(axis=1)

    return Sure()


def played(game, count=60, **play):
    source = SelfPlay(game, evaluator=sure(game), play=Play(games=8, simulations=24, temperature=0.0, **play))
    source.start(0, 0)
    return source, [next(source) for _ in range(count)]


VARIANTS = [Nim(), Nim(misere=True), Nim(turns=(0, 1, 1, 0)), Nim(turns=(0, 1, 1, 0), misere=True)]


@pytest.mark.parametrize("game", VARIANTS, ids=["nim", "misere", "double", "double misere"])
def test_who_gives_up_loses_whoever_moved_last(game):
    _, episodes = played(game, opening_share=1.0, opening_moves=4, resign_below=-0.9, resign_check=0.0)
    given_up = twice = 0
    for episode in episodes:
        if episode["obs"][-1, 0, 0]:  # no stick is left
            continue
        given_up += 1
        loser = episode["to_play"][-1]
        twice += episode["to_play"][-2] == loser
        assert outcome_for(loser, episode["reward"], episode["to_play"][:-1]).sum() == -1
        assert episode["discount"][-1] == 0
    assert given_up > 5
    assert (twice > 0) == (len(game.turns) == 4)


@pytest.mark.parametrize("game", VARIANTS, ids=["nim", "misere", "double", "double misere"])
def test_giving_up_a_lost_game_is_never_counted_as_wrong(game):
    source, _ = played(game, opening_share=1.0, opening_moves=4, resign_below=-0.9, resign_check=1.0)
    assert source.stats["resign_checked"] > 10
    assert source.stats["resign_wrong"] == 0


def test_giving_up_a_won_game_is_counted_as_wrong():
    game = Nim()
    lies = lambda x: (torch.zeros(len(x), 3), torch.full((len(x),), 0.99))  # noqa: E731
    source = SelfPlay(game, evaluator=lies, play=Play(games=4, simulations=1, resign_below=-0.5, resign_check=1.0))
    source.start(0, 0)
    for _ in range(20):
        next(source)
    assert source.stats["resign_wrong"] > 0


@pytest.mark.parametrize("misere", [False, True])
def test_a_match_credits_the_winner_of_a_misere_game(misere):
    game = Nim(misere=misere)
    best = lambda state, seed: solve(game).score(state).argmax(axis=1)  # noqa: E731
    assert match(game, best, random_player(game), 40, seed=1).points > 0.75


@pytest.mark.parametrize("game", VARIANTS, ids=["nim", "misere", "double", "double misere"])
def test_rollouts_are_worth_what_an_independent_walk_finds(game):
    def exact(state):
        if game.terminal(state)[0]:
            return 0.0
        worth = []
        for action in np.flatnonzero(game.legal(state)[0]):
            after = game.step(state, np.array([action]))
            same = game.to_play(after)[0] == game.to_play(state)[0]
            worth.append(game.reward(after)[0] + (1 if same else -1) * exact(after))
        return np.mean(worth)

    state = game.init(1)
    _, value = RolloutEvaluator(game, rollouts=4000).evaluate(state)
    assert value[0] == pytest.approx(exact(state), abs=0.06)


def test_a_search_by_rollouts_finds_more_by_their_own_rule_which_is_its_default():
    game = Nim(15)
    states = game.init(9)
    states["sticks"] = [5, 6, 7, 9, 10, 11, 13, 14, 15]  # to leave a multiple of four wins
    right = {}
    for rule in (None, Gumbel()):
        searches = [Search(game, RolloutEvaluator(game, seed=s), simulations=200, rule=rule) for s in range(4)]
        right[rule] = np.mean([search(states).action == states["sticks"] % 4 - 1 for search in searches])
    assert right[None] > 0.7  # of what chance would find a third of
    assert right[Gumbel()] < 0.6
    for simulations in (8, 200):
        assert Search(game, RolloutEvaluator(game), simulations=simulations).rule == RolloutEvaluator.rule
        assert Search(game, sure(game), simulations=simulations).rule == (Gumbel() if simulations == 8 else Puct())
    net = torch.nn.Flatten()
    net.rule = "of the network, and none of ours"
    assert Search(game, net, simulations=8).rule == Gumbel()


def test_a_rollout_depends_on_the_position_and_the_seed_alone():
    game = TicTacToe()
    state = game.step(game.init(9), np.arange(9))
    values = RolloutEvaluator(game, rollouts=2).evaluate(state)[1]
    order = np.random.default_rng(0).permutation(9)
    evaluator = RolloutEvaluator(game, rollouts=2)
    evaluator.evaluate(state[:3])
    np.testing.assert_array_equal(evaluator.evaluate(state[order])[1], values[order])
    assert (RolloutEvaluator(game, rollouts=2, seed=1).evaluate(state)[1] != values).any()


def test_a_game_that_can_repeat_stops_at_a_limit_of_moves():
    game = Idle()
    idle = lambda state, seed: np.full(len(state), 3)  # noqa: E731
    assert match(game, idle, idle, 4, max_moves=50) == Score(0, 4, 0)
    taker = lambda state, seed: np.minimum(state["sticks"] - 1, 2)  # noqa: E731
    assert match(game, taker, idle, 4, max_moves=50) == Score(4, 0, 0)
    value = RolloutEvaluator(game, max_moves=1).evaluate(game.init(3))[1]
    np.testing.assert_array_equal(value, 0)
    with pytest.raises(ValueError, match="max_moves must be at least 1, got 0"):
        match(game, idle, idle, 4, max_moves=0)
    with pytest.raises(ValueError, match="game must end however it is played, Walk can come back"):
        solve(Walk())


class Walk(Idle):
    """Passes leave no trace, so positions come back."""

    def step(self, state, action):
        out = super().step(state, action)
        out["move"] = 0
        return out

    def to_play(self, state):
        return np.zeros(len(state), np.int64)


def passes(observation):
    return torch.tensor([0.0, 0, 0, 60]).expand(len(observation), 4), torch.full((len(observation),), 0.25)


@pytest.mark.parametrize("at_limit", ["truncate", "draw"])
def test_self_play_ends_at_a_limit_and_says_how(at_limit):
    play = Play(games=2, simulations=2, max_moves=7, at_limit=at_limit, temperature=0.0)
    source = SelfPlay(Idle(), evaluator=passes, play=play)
    source.start(0, 0)
    episode = next(source)
    cut = at_limit == "truncate"
    assert len(episode["action"]) == 7
    assert episode["truncated"] == cut
    assert episode["discount"][-1] == cut
    assert len(episode["value"]) == 8
    assert episode["value"][-1] == (0.25 if cut else 0)  # of the position itself, not of the one before
    assert (episode["reward"] == 0).all()


def test_openings_that_end_every_game_are_refused():
    class Over(Nim):
        def init(self, batch, seed=0):
            return np.zeros(batch, self.dtype)

    over = SelfPlay(Over(), evaluator=passes)
    with pytest.raises(ValueError, match=r"opening_moves \(1\) must leave games to play"):
        over.start(0, 0)


def test_copies_of_a_game_are_no_evidence():
    game = TicTacToe()
    flat = lambda x: (torch.zeros(len(x), 9), torch.zeros(len(x)))  # noqa: E731
    one, other = (search_player(Search(game, flat, simulations=n, rule=Puct())) for n in (40, 4))
    copies, more = (match(game, one, other, n) for n in (20, 200))
    assert copies.distinct == more.distinct == 2
    few, many = ratings({("a", "b"): copies}), ratings({("a", "b"): more})
    assert few["a"] == many["a"]
    assert few["a"].margin > 200
    varied = round_robin(game, {"a": one, "b": other}, 40)["a", "b"]
    assert varied.distinct > 15
    assert ratings({("a", "b"): varied})["a"].margin < few["a"].margin
    assert (
        ratings({("a", "b"): Score(10, 0, 10)})["a"].margin == ratings({("a", "b"): Score(10, 0, 10, 20)})["a"].margin
    )


def test_what_a_game_tells_may_be_a_view_into_its_states():
    class Viewed(TicTacToe):
        def to_play(self, state):
            return state["player"]

        def reward(self, state):
            return state["reward"]

        def terminal(self, state):
            return state["over"] != 0

    plain, viewed = TicTacToe(), Viewed()
    state = plain.step(plain.init(9), np.arange(9))
    for found in zip(*(RolloutEvaluator(game, rollouts=4).evaluate(state) for game in (plain, viewed)), strict=True):
        np.testing.assert_array_equal(*found)
    scores = [match(game, random_player(game), random_player(game), 60, seed=1) for game in (plain, viewed)]
    assert scores[0] == scores[1]
    flat = lambda x: (torch.zeros(len(x), 9), torch.zeros(len(x)))  # noqa: E731
    sources = [SelfPlay(game, evaluator=flat, play=Play(games=4, simulations=4)) for game in (plain, viewed)]
    for source in sources:
        source.start(0, 0)
    for _ in range(6):
        one, other = (next(source) for source in sources)
        for key in one:
            np.testing.assert_array_equal(one[key], other[key])
