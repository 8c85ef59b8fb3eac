"""Searching models whose luck is learnt, beside the game's own rules and by hand."""

import numpy as np
import pytest
import torch

from ai.game import Gumbel, Hog, HogSolver, Play, Puct, Search, SelfPlay, StochasticModel, draws

GAME = Hog(goal=6, dice=2, faces=3)  # sums of 0, 2, 3 and 4 to 6


class Told:
    """A model that has learnt the rules of Hog by heart; a code is a sum, and an afterstate has dice that lie.

    Embeddings are own and other points, dice that lie and whether it is over.
    """

    def __init__(self, value=0.0, actions=2):
        self.num_codes, self.value, self.actions = GAME.num_actions, value, actions

    def initial(self, observation):
        points = observation.numpy()
        own, other = points[:, :7].argmax(1), points[:, 7:14].argmax(1)
        state = np.stack([own, other, 0 * own, 0 * own], 1)
        return state, np.zeros((len(state), self.actions)), np.full(len(state), self.value)

    def afterstate(self, embedding, action):
        after = embedding.copy()
        after[:, 2] = np.minimum(action + 1, 2)
        with np.errstate(divide="ignore"):
            logits = np.log(GAME.odds[after[:, 2]])
        return after, np.maximum(logits, -1e9), np.full(len(after), self.value)

    def recurrent(self, embedding, action):
        own, other, _, over = embedding.T
        total = np.where(over, 0, own + action)
        won = total >= GAME.goal
        after = np.stack([other, total, 0 * own, over | won], 1)
        value = np.where(over | won, 0.0, self.value)
        return after, won.astype(float), np.where(over | won, 0.0, -1.0), np.zeros((len(own), self.actions)), value


class AnySum(Hog):
    """Hog in which any number of dice may also show any sum, so that codes and outcomes take turns alike."""

    @property
    def odds(self):
        odds = 0.9 * super().odds
        odds[1:] += 0.1 / self.num_actions
        return odds


class ByTheRules:
    """A model that is the rules of Hog themselves, with what `evaluate` says of observations.

    Args:
        worth: states with dice that lie -> values of these; None for what the search of known luck takes first, the
            value of one outcome.
    """

    def __init__(self, game, evaluate, worth=None):
        self.game, self.num_codes, self.evaluate, self.worth = game, game.num_actions, evaluate, worth

    def told(self, embedding):
        state = self.game.init(len(embedding))
        state["own"], state["other"], state["thrown"], state["over"], state["player"] = embedding.T
        return state

    @staticmethod
    def embedded(state):
        return np.stack([state[name] for name in ("own", "other", "thrown", "over", "player")], 1).astype(int)

    def initial(self, observation):
        points = np.asarray(observation)[:, : -self.game.dice].reshape(len(observation), 2, -1).argmax(2)
        return np.pad(points, ((0, 0), (0, 3))), *self.evaluate(observation)

    def afterstate(self, embedding, action):
        lie = self.game.step(self.told(embedding), action)
        odds = np.where(lie["over"][:, None], 1.0, self.game.chance(lie))  # past an end anything comes to nothing
        if self.worth is not None:
            return self.embedded(lie), np.log(odds), np.where(lie["over"], 0.0, self.worth(lie))
        _, reward, discount, _, value = self.recurrent(self.embedded(lie), draws.choose(draws.digest(lie), odds))
        return self.embedded(lie), np.log(odds), reward + discount * value

    def recurrent(self, embedding, code):
        state = self.game.step(self.told(embedding), code)
        logits, value = self.evaluate(self.game.observe(state))
        going = state["over"] == 0
        return self.embedded(state), self.game.reward(state), np.where(going, -1.0, 0.0), logits, value * going


def most(search):
    return search.tree.visits[:, 0].argmax(1)


def position(own, other):
    state = GAME.init(len(own))
    state["own"], state["other"] = own, other
    return state


def test_it_finds_what_each_number_of_dice_is_worth():
    state = position([0, 3, 5], [0, 1, 4])
    found = Search.learned(Told(), 2, simulations=600, rule=Puct(normalize=False, c_init=3.0))(GAME.observe(state))
    assert found.policy.shape == found.visits.shape == found.prior.shape == found.values.shape == (3, 2)
    np.testing.assert_allclose(found.values, HogSolver(GAME).score(state)[:, :2], atol=0.1)
    np.testing.assert_allclose(found.policy.sum(1), 1)


@pytest.mark.parametrize("rule", [Puct(), Puct(normalize=False), Gumbel()], ids=["puct", "puct_raw", "gumbel"])
def test_a_model_that_is_the_rules_is_searched_as_the_rules_are(engine, rule):
    game, weights = AnySum(goal=6, dice=3, faces=4), np.random.default_rng(0)
    state = HogSolver(game).positions()
    policy, value = (weights.normal(size=(*game.observation_shape, n)) for n in (game.num_actions, 1))

    def evaluate(observation):
        seen = np.asarray(observation, float)
        return np.where(np.arange(game.num_actions) < 3, seen @ policy, -1e9), np.tanh(seen @ value)[:, 0]

    learned = Search.learned(ByTheRules(game, evaluate), game.num_actions, simulations=50, rule=rule)
    found = learned(game.observe(state), legal=game.legal(state))
    known = Search(game, evaluate, simulations=50, rule=rule)(state)
    for name in ("action", "policy", "visits", "values", "value", "prior", "raw_value"):
        np.testing.assert_array_equal(getattr(found, name), getattr(known, name), name)


def test_a_search_with_true_odds_and_values_finds_those_of_the_solver_and_plays_as_well():
    game = Hog(goal=8, dice=3, faces=4)
    solver = HogSolver(game)
    state, worth = solver.positions(), np.zeros((40, 40, game.dice))  # with room for what lies past the goal
    worth[: game.goal, : game.goal] = solver.values

    def evaluate(observation, sure=1000.0):
        own, other = np.asarray(observation)[:, : -game.dice].reshape(len(observation), 2, -1).argmax(2).T
        return sure * worth[own, other], worth[own, other].max(1)

    class Possible(ByTheRules):
        def afterstate(self, embedding, action):
            with np.errstate(divide="ignore"):
                after, logits, value = super().afterstate(embedding, action)
            return after, np.maximum(logits, -1e9), value

    model = Possible(game, evaluate, worth=lambda lie: worth[lie["own"], lie["other"], lie["thrown"] - 1])
    for simulations, apart in ((20, 0.15), (100, 0.05), (300, 0.03)):
        search = Search.learned(model, game.dice, simulations=simulations, rule=Puct(normalize=False))
        found = search(game.observe(state))
        np.testing.assert_allclose(found.value, solver.values.max(2).ravel(), atol=apart)
    # now nothing but values and odds tell what is best
    model.evaluate = lambda observation: evaluate(observation, sure=0.0)
    search = Search.learned(model, game.dice, simulations=60, rule=Puct(normalize=False))
    assert solver.points(lambda state: search(game.observe(state)).action) > 0.499


@pytest.mark.parametrize("rule", [Puct(), Gumbel()], ids=["puct", "gumbel"])
def test_codes_are_visited_by_their_share_and_nodes_take_turns(engine, rule):
    search = Search.learned(Told(), 2, simulations=120, rule=rule)
    search(GAME.observe(position([0, 2], [0, 1])))
    tree, lucky = search.tree, 0
    for b in range(2):
        for n in range(1, tree.size[b]):
            assert tree.chance[b, n] != tree.chance[b, tree.parent[b, n]]
            if tree.chance[b, n]:
                lucky += 1
                dice = tree.parent_action[b, n] + 1
                np.testing.assert_allclose(tree.prior[b, n], GAME.odds[dice], atol=1e-12)
                assert np.abs(tree.visits[b, n] - GAME.odds[dice] * tree.visits[b, n].sum()).max() <= 1
            else:
                assert (tree.visits[b, n, 2:] == 0).all()  # a player has two actions
    assert lucky > 10


def test_the_value_of_an_afterstate_is_the_movers_and_an_outcome_pays_once():
    model = Told(value=0.25)
    found = Search.learned(model, 2, simulations=1, rule=Puct())(GAME.observe(position([0], [0])))
    assert found.values[0, found.action[0]] == 0.25  # of the afterstate, with no sign turned
    # two walks: the afterstate, then a sum that wins at 5 points as one die shows it
    found = Search.learned(model, 2, simulations=2, rule=Puct())(
        GAME.observe(position([5], [0])), legal=np.array([[1, 0]])
    )
    assert found.values[0, 0] == pytest.approx((0.25 + 1.0) / 2)


def test_a_tree_is_kept_over_an_action_and_its_code(engine):
    search = Search.learned(Told(), 2, simulations=150, rule=Puct())
    seen = GAME.observe(position([0, 2], [0, 1]))
    search(seen)
    with pytest.raises(ValueError, match=r"a move must be an action in \[0, 2\), got 3 in row 1"):
        search.advance(np.array([1, 3]))
    search.advance(most(search))
    with pytest.raises(ValueError, match="advance needs what luck did as well, in row 0 luck moves"):
        search(seen)
    with pytest.raises(ValueError, match=r"action must be in \[0, 7\), got 7 in row 1"):
        search.advance(np.array([4, 7]))
    search.advance(most(search))
    kept = search.tree.visits[:, 0].sum(1)
    assert (kept > 3).all()
    after = GAME.observe(position([0, 1], [4, 2]))
    found = search(after, legal=np.array([[1, 1], [0, 1]]))
    assert found.visits[1, 0] == 0
    assert found.visits[0].sum() == kept[0] + 150


def test_self_play_asks_it_and_a_row_does_not_depend_on_others():
    play = SelfPlay(GAME, evaluator=Told(actions=GAME.num_actions), play=Play(games=4, simulations=12, max_moves=40))
    play.start(0, 0)
    episode = next(play)
    assert episode["policy"].shape[1] == GAME.num_actions
    assert (episode["policy"][:, 2:] == 0).all()
    seen = GAME.observe(position([0, 3, 5], [0, 1, 4]))
    search = Search.learned(Told(), 2, simulations=40)
    together = search(seen, seed=np.arange(3, dtype=np.uint64), noise=True)
    for row in range(3):
        alone = search(seen[row : row + 1], seed=np.full(1, row, np.uint64), noise=True)
        np.testing.assert_array_equal(alone.policy[0], together.policy[row])


def test_what_a_model_says_wrongly_is_named():
    class Short(Told):
        def afterstate(self, embedding, action):
            after, logits, value = super().afterstate(embedding, action)
            return after, logits[:, :-1], value

    class Endless(Told):
        def recurrent(self, embedding, action):
            after, reward, *rest = super().recurrent(embedding, action)
            return after, reward * np.nan, *rest

    class Codeless(Told):
        num_codes = property(lambda self: 0, lambda self, value: None)

    seen = GAME.observe(position([0], [0]))
    assert isinstance(Told(), StochasticModel)
    with pytest.raises(ValueError, match=r"logits of shape \(1, 7\), got \(1, 6\)"):
        Search.learned(Short(), 2, simulations=4)(seen)
    with pytest.raises(ValueError, match="finite rewards, got NaN"):
        Search.learned(Endless(), 2, simulations=4)(seen)
    with pytest.raises(ValueError, match="num_codes must be at least 1, got 0"):
        Search.learned(Codeless(), 2)


def test_networks_are_searched_as_tensors_with_one_wait_a_simulation(any_device):
    class Net(torch.nn.Module):
        num_codes = 5

        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(()))

        def initial(self, observation):
            state = observation[:, :3] * self.scale
            return state, state[:, :2], state[:, 0]

        def afterstate(self, embedding, action):
            action = torch.as_tensor(action, device=embedding.device)
            after = embedding.roll(1, 1) + action[:, None]
            return after, after.repeat(1, 2)[:, :5], after[:, 0].tanh()

        def recurrent(self, embedding, action):
            action = torch.as_tensor(action, device=embedding.device)
            state = (embedding + action[:, None]).sin()
            return state, state[:, 0], -torch.ones_like(state[:, 0]), state[:, :2], state[:, 1]

    seen = GAME.observe(position([0, 3], [0, 1]))
    found = Search.learned(Net().to(any_device), 2, simulations=20, rule=Puct())(seen)
    there = Search.learned(Net(), 2, simulations=20, rule=Puct())(seen)
    np.testing.assert_array_equal(found.visits, there.visits)
    assert found.visits.sum(1).tolist() == [20, 20]
