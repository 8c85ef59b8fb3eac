import math
import pickle

import numpy as np
import pytest
import torch

from ai.game import (
    CachedEvaluator,
    ConnectFour,
    Gumbel,
    NetEvaluator,
    Play,
    Puct,
    RolloutEvaluator,
    Rule,
    ScoredRule,
    Search,
    SelfPlay,
    TicTacToe,
    fast,
)
from ai.game.search.rules.rule import Way
from ai.game.search.tree import new_tree


class OwnPuct(ScoredRule):
    """PUCT of raw values, written by a user."""

    constants = (1.25, 19652.0)

    @staticmethod
    def score_edge(visits, mean, prior, node_visits, node_value, constants):
        count = 1.0 + node_visits
        weight = math.sqrt(count) * (constants[0] + math.log((count + constants[1] + 1.0) / constants[1]))
        return (mean if visits > 0 else node_value) + weight * prior / (visits + 1.0)


@pytest.mark.parametrize("noise", [False, True])
def test_a_rule_of_ones_own_searches_as_the_built_in_of_the_same_score(engine, noise):
    game = TicTacToe()
    states, evaluator = game.init(3), RolloutEvaluator(game)
    own = Search(game, evaluator, simulations=40, rule=OwnPuct())(states, noise=noise)
    built_in = Search(game, evaluator, simulations=40, rule=Puct(normalize=False, first_play=0))(states, noise=noise)
    for name in ("visits", "policy", "action", "values", "value"):
        np.testing.assert_array_equal(getattr(own, name), getattr(built_in, name), err_msg=name)


class OneWins:
    """Cell 0 has 97 % of the prior and loses; cell 1 wins."""

    def evaluate(self, state):
        logits = np.full((len(state), 9), -100.0, np.float32)
        logits[:, :2] = np.log([0.97, 0.03])
        first = state["stones"] & 1
        return logits, np.where(state["stones"] == 0, 0.0, np.where(first, 1.0, -1.0)).astype(np.float32)


def test_a_move_that_nobody_tried_counts_as_no_less_than_a_loss(engine):
    search = Search(TicTacToe(), OneWins(), simulations=50, rule=Puct(normalize=False), max_depth=1)
    # all is lost at -1 until 0.97 / (visits + 1) falls below 0.03, at the 32nd visit; the winner has the rest
    np.testing.assert_array_equal(search(TicTacToe().init(1)).visits[0], [32, 18] + [0] * 7)


def test_a_rule_of_ones_own_keeps_trees_plays_itself_and_travels():
    game = TicTacToe()
    search = Search(game, RolloutEvaluator(game), simulations=30, rule=pickle.loads(pickle.dumps(OwnPuct())))
    state = game.init(2)
    found = search(state)
    search.advance(found.action)
    kept = found.visits[np.arange(2), found.action] - 1
    np.testing.assert_array_equal(search(game.step(state, found.action)).visits.sum(axis=1), kept + 30)
    source = SelfPlay(game, evaluator=RolloutEvaluator(game), play=Play(games=2, simulations=4, rule=OwnPuct()))
    source.start(0, 0)
    assert 5 <= len(next(source)["action"]) <= 9


@pytest.mark.parametrize("rule", [Puct(), Gumbel(), OwnPuct()], ids=lambda rule: type(rule).__name__)
def test_no_walk_goes_further_than_the_depth_allows(engine, rule):
    game = TicTacToe()
    for depth in (1, 2):
        search = Search(game, RolloutEvaluator(game), simulations=60, rule=rule, max_depth=depth)
        found = search(game.init(1))
        assert found.visits.sum() == 60
        tree = search.tree
        far = {0: 0}
        for n in range(1, int(tree.size[0])):
            far[n] = far[int(tree.parent[0, n])] + 1
        assert max(far.values()) == depth
        if depth == 1:  # then a move is worth what the evaluator says of the position after it
            for n in range(1, len(far)):
                assert found.values[0, tree.parent_action[0, n]] == pytest.approx(-tree.value[0, n])


def test_a_depth_beyond_all_numbers_of_a_machine_is_no_limit():
    game = TicTacToe()
    deep, free = (Search(game, RolloutEvaluator(game), simulations=9, max_depth=depth) for depth in (1 << 70, None))
    np.testing.assert_array_equal(deep(game.init(1)).visits, free(game.init(1)).visits)


@pytest.mark.parametrize(
    ("how", "match"),
    [
        ({"rule": "puct"}, "rule must be a Rule, such as Puct"),
        ({"max_depth": 1.5}, "max_depth must be a whole number, got 1.5"),
        ({"max_depth": 0}, "max_depth must be at least 1, got 0"),
    ],
)
def test_what_is_no_rule_or_depth_is_refused(how, match):
    game = TicTacToe()
    with pytest.raises((TypeError, ValueError), match=match):
        Search(game, RolloutEvaluator(game), **how)


def test_trees_of_four_thousand_games_fit_in_eight_tenths_of_a_gigabyte():
    search = Search(ConnectFour(), lambda seen: None, simulations=800, rule=Puct(normalize=False, prove=True))
    search._prepare(8)
    held = sum(array.nbytes for array in search.tree) + search._dynamics._states.nbytes
    assert held / 8 * 4096 <= 0.8e9


def test_numbers_of_nodes_fit_their_type():
    assert new_tree(1, 32_767, 1).child.dtype == np.int16
    assert new_tree(1, 32_768, 1).child.dtype == np.int32


class Broken(ScoredRule):
    """Scores every edge that was followed once by no number."""

    @staticmethod
    def score_edge(visits, mean, prior, node_visits, node_value, constants):
        return math.nan if visits == 1 else prior - visits


class Hopeless(ScoredRule):
    """Expects nothing of any move."""

    @staticmethod
    def score_edge(visits, mean, prior, node_visits, node_value, constants):
        return -math.inf


class Proving(ScoredRule):
    """Carries up what is certain."""

    prove = True
    score_edge = OwnPuct.__dict__["score_edge"]
    constants = OwnPuct.constants


class Divides(ScoredRule):
    """Divides by the visits, which are none at first."""

    @staticmethod
    def score_edge(visits, mean, prior, node_visits, node_value, constants):
        return prior / visits + mean


class Misspelt(ScoredRule):
    """Names what there is not."""

    @staticmethod
    def score_edge(visits, mean, prior, node_visits, node_value, constants):
        return mean + bonus  # noqa: F821


class OneConstant(OwnPuct):
    """Forgot the comma."""

    constants = 1.25


class Uncompiled(Rule):
    """Tries moves in turn, by numpy alone."""

    def begin(self, roots):
        return Way((), None, lambda tree, rows, node, at_root: -tree.visits[rows, node].astype(float))


class Bound(ScoredRule):
    """Its score is a method of an instance."""

    def score_edge(self, visits, mean, prior, node_visits, node_value, constants):
        return mean


class Unfinished(Rule):
    """Has no way."""


def test_a_score_that_is_no_number_is_refused(engine):
    game = TicTacToe()
    search = Search(game, RolloutEvaluator(game), simulations=20, rule=Broken())
    with pytest.raises(ValueError, match="a rule must score legal moves by numbers, got NaN"):
        search(game.init(1))


def test_of_hopeless_moves_a_legal_one_is_followed(engine):
    game = TicTacToe()
    state = game.step(game.init(1), np.array([0]))
    assert Search(game, RolloutEvaluator(game), simulations=7, rule=Hopeless())(state).visits[0, 1] == 7


def test_a_proving_rule_of_ones_own_grows_the_same_tree_compiled_or_not(monkeypatch):
    if not fast.available():
        pytest.skip("numba is not installed")
    game, trees = TicTacToe(), []
    state = game.init(1)
    for cell in (0, 3, 1):
        state = game.step(state, np.array([cell]))
    for compiled in (True, False):
        if not compiled:
            monkeypatch.setattr(fast, "available", lambda: False)
        search = Search(game, RolloutEvaluator(game), simulations=200, rule=Proving())
        search(state)
        trees.append(search.tree)
    for name in ("size", "parent", "parent_action", "visits", "proof"):
        one, other = (getattr(tree, name) for tree in trees)
        np.testing.assert_array_equal(one, other, err_msg=name)


def test_dividing_by_no_visits_is_infinite_by_numpy_as_in_a_kernel(monkeypatch):
    monkeypatch.setattr(fast, "available", lambda: False)
    game = TicTacToe()
    found = Search(game, RolloutEvaluator(game), simulations=9, rule=Divides())(game.init(2))
    np.testing.assert_array_equal(found.visits, np.ones((2, 9)))


def test_what_cannot_be_compiled_is_named_with_its_reason():
    if not fast.available():
        pytest.skip("numba is not installed")
    game = TicTacToe()
    with pytest.raises(TypeError, match=r"^score_edge must be written as numba compiles it: .*'bonus' is not defined"):
        Search(game, RolloutEvaluator(game), rule=Misspelt())(game.init(1))


def test_a_rule_without_a_kernel_is_walked_by_its_scores(engine):
    game = TicTacToe()
    found = Search(game, RolloutEvaluator(game), simulations=18, rule=Uncompiled())(game.init(2))
    np.testing.assert_array_equal(found.visits, np.full((2, 9), 2))


@pytest.mark.parametrize(
    ("rule", "match"),
    [
        (Bound(), "rule must have score_edge as a static method, Bound has not"),
        (ScoredRule(), "rule must have score_edge as a static method, ScoredRule has not"),
        (OneConstant(), r"constants must be a tuple of numbers, such as \(1.4,\), got 1.25"),
        (Unfinished(), r"Unfinished must have begin\(roots\) -> Way"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_rule_that_cannot_search_is_named(rule, match):
    game = TicTacToe()
    with pytest.raises((TypeError, NotImplementedError), match=match):
        Search(game, RolloutEvaluator(game), rule=rule)(game.init(1))


class Ruled(torch.nn.Module):
    def __init__(self, rule):
        super().__init__()
        self.rule = rule

    def forward(self, x):
        return torch.zeros(len(x), 9), torch.zeros(len(x))


def test_an_evaluators_own_rule_is_a_searchs_whatever_wraps_it():
    game, own = TicTacToe(), Puct(c_init=3.0)
    for evaluator in (Ruled(own), NetEvaluator(Ruled(own)), CachedEvaluator(Ruled(own))):
        assert Search(game, evaluator).rule is own
        assert Search(game, evaluator, rule=Gumbel()).rule == Gumbel()
    source = SelfPlay(game, Ruled(own), Play(games=1, simulations=2, cache=4))
    source.start(seed=0, worker=0)
    assert source._search.rule is own
    assert Search(game, CachedEvaluator(Ruled(torch.nn.Identity()))).rule == Gumbel()
    with pytest.raises(TypeError, match=r"rule must be a Rule, such as Puct\(\), got <class"):
        Search(game, Ruled(Puct))
