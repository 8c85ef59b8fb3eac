"""Searching games whose luck is known, beside exact expectations."""

import numpy as np
import pytest
import torch

from ai.data import Datagen, ReplayBuffer
from ai.game import (
    Gumbel,
    Play,
    Puct,
    RolloutEvaluator,
    Search,
    SelfPlay,
    check,
    fast,
    match,
    random_player,
    solve,
)

FACES = np.array([0.5, 0.2, 0.2, 0.1])


class Pig:
    """Two players throw a loaded die as often as they like: 1 loses the turn's points, `hold` (1) keeps them; 8 wins.

    An outcome k of chance is a throw of k + 1.
    """

    num_actions, num_players, discount, observation_shape = 4, 2, 1.0, (4, 9)
    dtype = np.dtype(
        [("own", "i8"), ("other", "i8"), ("turn", "i8"), ("luck", "i8"), ("player", "i8"), ("reward", "f8")]
    )

    def init(self, batch, seed=0):
        return np.zeros(batch, self.dtype)

    def step(self, state, action):
        out = state.copy()
        out["reward"] = 0
        for row in range(len(state)):
            s, old = out[row], state[row]
            if self.terminal(state[row : row + 1])[0]:
                continue
            if not self.legal(state[row : row + 1])[0, action[row]]:
                raise ValueError("illegal")
            passes = False
            if old["luck"]:
                s["luck"] = 0
                s["turn"] += action[row] + 1
                if action[row] == 0:
                    s["turn"], passes = 0, True
            elif action[row] == 0:
                s["luck"] = 1
            else:
                s["own"], s["turn"], passes = min(8, old["own"] + old["turn"]), 0, True
            if passes:
                s["reward"] = float(s["own"] >= 8)
                s["own"], s["other"], s["player"] = s["other"], s["own"], 1 - s["player"]
        return out

    def observe(self, state):
        shown = [np.eye(9)[np.minimum(state[name], 8)] for name in ("own", "other", "turn", "luck")]
        return np.stack(shown, 1).astype(np.float32)

    def legal(self, state):
        players = np.tile([True, True, False, False], (len(state), 1))
        return np.where((state["luck"] == 1)[:, None], True, players) & ~self.terminal(state)[:, None]

    def terminal(self, state):
        return state["other"] >= 8

    def reward(self, state):
        return state["reward"]

    def to_play(self, state):
        return state["player"]

    def chance(self, state):
        return np.where((state["luck"] == 1)[:, None], FACES, 0.0)


def blind(game):
    return lambda x: (torch.zeros(len(x), game.num_actions), torch.zeros(len(x)))


def test_a_game_of_dice_keeps_the_protocol():
    check(Pig(), batch=8, repeats=True)


@pytest.mark.parametrize("rule", [Puct(), Gumbel()], ids=["puct", "gumbel"])
def test_visits_of_outcomes_stay_within_one_of_their_share(engine, rule):
    game = Pig()
    search = Search(game, blind(game), simulations=200, rule=rule)
    search(game.init(2))
    tree, nodes = search.tree, 0
    for b in range(2):
        for n in range(tree.size[b]):
            if tree.chance[b, n]:
                nodes += 1
                np.testing.assert_allclose(tree.prior[b, n], FACES, atol=1e-12)
                visits = tree.visits[b, n]
                assert np.abs(visits - FACES * visits.sum()).max() <= 1
    assert nodes > 20


def test_a_throw_is_worth_its_mean_and_not_its_best(engine):
    game = Pig()
    state = game.init(1)
    state["own"], state["turn"] = 6, 1  # a throw of 2 or more wins at the next hold, a 1 loses the turn
    state["other"] = 7
    search = Search(game, blind(game), simulations=1500, rule=Puct(normalize=False))
    found = search(state)

    # the exact worth of throwing once and then holding, against an opponent who does the same from 7 + 0
    def chance_to_win(own, other, turn, depth):
        if own + turn >= 8:
            return 1.0  # holds
        if depth == 0:
            return 0.5
        return sum(
            p
            * (
                1 - chance_to_win(other, own, 0, depth - 1)
                if k == 0
                else chance_to_win(own, other, turn + k + 1, depth)
            )
            for k, p in enumerate(FACES)
        )

    exact = 2 * chance_to_win(6, 7, 1, 12) - 1
    assert found.action[0] == 0
    assert found.values[0, 0] == pytest.approx(exact, abs=0.05)
    assert found.values[0, 0] < 0.5  # who saw the throw would always win


def test_a_coin_cannot_be_guessed():
    class Coin(Pig):
        """Guess a fair coin, heads or tails."""

        num_players, observation_shape = 1, (2,)
        dtype = np.dtype([("guess", "i8"), ("over", "i8"), ("reward", "f8")])

        def init(self, batch, seed=0):
            state = np.zeros(batch, self.dtype)
            state["guess"] = -1
            return state

        def step(self, state, action):
            out = state.copy()
            out["reward"] = 0
            live = state["over"] == 0
            thrown = live & (state["guess"] >= 0)
            out["reward"][thrown] = np.where(state["guess"] == action, 1.0, -1.0)[thrown]
            out["over"][thrown] = 1
            out["guess"] = np.where(live & ~thrown, action, state["guess"])
            return out

        def observe(self, state):
            return np.stack([state["guess"], state["over"]], 1).astype(np.float32)

        def legal(self, state):
            return np.tile([True, True, False, False], (len(state), 1)) & (state["over"] == 0)[:, None]

        def terminal(self, state):
            return state["over"] == 1

        def to_play(self, state):
            return np.zeros(len(state), np.int64)

        def chance(self, state):
            return 0.5 * self.legal(state) * (state["guess"] >= 0)[:, None]

    found = Search(Coin(), blind(Coin()), simulations=400, rule=Puct(normalize=False))(Coin().init(10))
    np.testing.assert_allclose(found.values[:, :2], 0, atol=0.1)
    assert (found.visits[:, :2] > 20).all()
    np.testing.assert_allclose(RolloutEvaluator(Coin(), rollouts=400).evaluate(Coin().init(1))[1], 0, atol=0.15)


def test_self_play_records_the_players_moves_and_what_luck_paid():
    game = Pig()
    play = SelfPlay(game, evaluator=blind(game), play=Play(games=4, simulations=8, max_moves=60))
    with Datagen(play).loader(16, n_workers=0, buffer=ReplayBuffer(500, n_step=float("inf"))) as loader:
        assert next(iter(loader))["policy"].shape == (16, 4)
    episodes = [next(play) for _ in range(6)]
    for episode in episodes:
        assert (episode["action"] < 2).all()
        assert episode["obs"][:-1, 3, 0].all()  # luck is never to move
        assert episode["reward"].sum() in (0, 1)
    again = SelfPlay(game, evaluator=blind(game), play=play.play)
    again.start(1, 0)
    again.load_state_dict(play.state_dict())
    for _ in range(4):
        one, other = next(play), next(again)
        np.testing.assert_array_equal(one["obs"], other["obs"])


def test_matches_draw_the_same_luck_for_both_seats_and_better_play_wins():
    game = Pig()
    wise = lambda state, seed: np.where((state["turn"] >= 2) | (state["own"] + state["turn"] >= 8), 1, 0)  # noqa: E731
    score = match(game, wise, random_player(game), 20, max_moves=100)
    assert score.games == 20
    assert score.points > 0.6
    assert match(game, wise, random_player(game), 20, max_moves=100) == score
    assert match(game, wise, wise, 20, max_moves=100).points == 0.5  # each pair of games has one luck


def test_luck_is_no_part_of_proofs_solutions_and_roots():
    game = Pig()
    with pytest.raises(ValueError, match="two players and no luck"):
        Search(game, blind(game), rule=Puct(prove=True))
    with pytest.raises(ValueError, match="game must have no luck to be solved, Pig has chance"):
        solve(game)
    with pytest.raises(ValueError, match="states must be a player's to move, in row 0 luck moves"):
        Search(game, blind(game))(game.step(game.init(1), np.array([0])))


def test_a_tree_is_kept_over_a_move_and_its_luck(engine):
    game = Pig()
    search = Search(game, blind(game), simulations=120, rule=Puct())
    state = game.init(2)
    search(state)
    throw, face = np.zeros(2, int), np.array([1, 2])
    search.advance(throw)
    with pytest.raises(ValueError, match="states must be a player's to move, in row 0 luck moves"):
        search(game.step(state, throw))  # a kept root is no other than a fresh one
    search.advance(face)
    kept = search.tree.visits[:, 0].sum(1)
    assert (kept > 3).all()
    after = game.step(game.step(state, throw), face)
    np.testing.assert_array_equal(search(after).visits.sum(1), kept + 120)


class Card:
    """One may keep 0.5 (action 1) or draw (0) one of ten cards, which pay 0.1 to 1 and are alike."""

    num_actions, num_players, discount, observation_shape = 10, 1, 1.0, (1,)
    dtype = np.dtype([("drawing", "?"), ("over", "?"), ("reward", "f8")])

    def init(self, batch, seed=0):
        return np.zeros(batch, self.dtype)

    def step(self, state, action):
        if not (self.legal(state)[np.arange(len(state)), action] | state["over"]).all():
            raise ValueError("illegal")
        out, live = state.copy(), ~state["over"]
        paid = np.where(state["drawing"], (action + 1) / 10, np.where(action == 1, 0.5, 0.0))
        out["reward"] = np.where(live, paid, 0.0)
        out["over"] |= state["drawing"] | (action == 1)
        out["drawing"] = live & ~out["over"]
        return out

    def observe(self, state):
        return state["drawing"][:, None].astype(np.float32)

    def legal(self, state):
        choice = np.arange(10) < 2
        return np.where(state["drawing"][:, None], True, choice) & ~state["over"][:, None]

    def terminal(self, state):
        return state["over"]

    def reward(self, state):
        return state["reward"]

    def to_play(self, state):
        return np.zeros(len(state), np.int64)

    def chance(self, state):
        return np.where(state["drawing"][:, None], 0.1, 0.0) * np.ones((1, 10))


@pytest.mark.parametrize("numba", [pytest.param(True, id="numba"), pytest.param(False, id="numpy")])
def test_a_few_visits_see_outcomes_from_all_over(monkeypatch, numba):
    if not numba:
        monkeypatch.setattr(fast, "available", lambda: False)
    elif not fast.available():
        pytest.skip("numba is not installed")
    game = Card()
    check(game)
    flat = lambda seen: (np.zeros((len(seen), 10)), np.full(len(seen), 0.55))  # noqa: E731
    allowed = (np.arange(10) == 0)[None]
    for simulations in (2, *range(4, 24)):  # one of them comes to the draw, each other to a card
        found = Search(game, flat, simulations=simulations, rule=Puct())(game.init(1), legal=allowed)
        assert abs(found.values[0, 0] - 0.55) < 0.09, simulations  # of the five lowest cards it is 0.3
