import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from ai.game import (
    Augment,
    CachedEvaluator,
    ConnectFour,
    Gumbel,
    NetEvaluator,
    Puct,
    RolloutEvaluator,
    Search,
    SlidingTiles,
    SymmetricEvaluator,
    TicTacToe,
    Twenty48,
    fast,
    solve,
)
from ai.game.search import walk
from ai.game.search.rules.gumbel import halving_sequence
from ai.game.search.rules.puct import puct_params, puct_way
from ai.game.search.tree import new_leaf, new_tree

STORED = np.load(Path(__file__).with_name("mctx_trees.npz"))
BUDGETS = (8, 16, 32, 50)

RAW = Puct(normalize=False, prove=True)


class TableModel:
    """A random Markov decision process as a learned model: an embedding is (row, state)."""

    def __init__(self, budget):
        self.tables = {k: STORED[f"{budget}_{k}"].astype(float) for k in ("reward", "discount", "logits", "value")}
        self.next = STORED[f"{budget}_next"].astype(np.int64)

    def initial(self, observation):
        rows = observation
        state = np.zeros_like(rows)
        return np.stack([rows, state], 1), self.tables["logits"][rows, state], self.tables["value"][rows, state]

    def recurrent(self, embedding, action):
        row, state = embedding.T
        after = self.next[row, state, action]
        t = self.tables
        edge = (row, state, action)
        return (
            np.stack([row, after], 1),
            t["reward"][edge],
            t["discount"][edge],
            t["logits"][row, after],
            t["value"][row, after],
        )


@pytest.mark.parametrize("budget", BUDGETS)
def test_puct_finds_the_visits_of_mctx(engine, budget):
    rule = Puct(dirichlet_alpha=0.3, dirichlet_fraction=0.25)
    search = Search.learned(TableModel(budget), 5, simulations=budget, rule=rule)
    stored = {k: STORED[f"{budget}_{k}"] for k in ("invalid", "puct_noise", "puct_visits", "puct_policy", "puct_value")}
    legal = ~stored["invalid"]
    noise = _noise_over_legal(STORED[f"{budget}_logits"][:, 0].astype(float), stored["puct_noise"], legal, 0.25)
    found = search(np.arange(50), noise=True, legal=legal, noise_values=noise)
    np.testing.assert_array_equal(found.visits, stored["puct_visits"])
    np.testing.assert_allclose(found.policy, stored["puct_policy"], atol=1e-12)
    np.testing.assert_allclose(found.value, stored["puct_value"], atol=1e-12)


def _noise_over_legal(logits, noise, legal, share):
    """mctx mixes the noise in before it masks; returns the noise that gives the same root prior after masking."""
    prior = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    mixed = ((1 - share) * prior + share * noise) * legal
    masked = prior * legal
    return (mixed / mixed.sum(1, keepdims=True) - (1 - share) * masked / masked.sum(1, keepdims=True)) / share


@pytest.mark.parametrize("budget", BUDGETS)
def test_gumbel_finds_the_visits_policy_and_action_of_mctx(engine, budget):
    search = Search.learned(TableModel(budget), 5, simulations=budget, rule=Gumbel(max_considered=4))
    legal = ~STORED[f"{budget}_invalid"]
    found = search(np.arange(50), noise=True, legal=legal, noise_values=STORED[f"{budget}_gumbel_noise"])
    np.testing.assert_array_equal(found.visits, STORED[f"{budget}_gumbel_visits"])
    np.testing.assert_array_equal(found.action, STORED[f"{budget}_gumbel_action"])
    np.testing.assert_allclose(found.policy, STORED[f"{budget}_gumbel_policy"], atol=1e-10)
    np.testing.assert_allclose(found.value, STORED[f"{budget}_gumbel_value"], atol=1e-12)


def linear_evaluator(game, seed=0):
    """A function of each row alone, in float64 and in one order, so that batching cannot change a bit."""
    rng = np.random.default_rng(seed)
    size = int(np.prod(game.observation_shape))
    weights = rng.normal(size=(size, game.num_actions + 1))

    def evaluate(observation):
        flat = observation.numpy().reshape(len(observation), size).astype(float)
        out = np.zeros((len(flat), game.num_actions + 1))
        for k in range(size):
            out += flat[:, k : k + 1] * weights[k]
        return out[:, :-1], out[:, -1] / (1 + np.abs(out[:, -1]))

    return evaluate


def random_positions(game, batch, plies, seed=0):
    rng = np.random.default_rng(seed)
    state = game.init(batch, seed)
    for _ in range(plies):
        move = (game.legal(state) * rng.random((batch, game.num_actions))).argmax(1)
        state = np.where(rng.random(batch) < 0.8, game.step(state, move), state)
    return state[~game.terminal(state)]


@pytest.mark.parametrize("rule", [Puct(), Puct(normalize=False), Gumbel()], ids=["puct", "puct-raw", "gumbel"])
@pytest.mark.parametrize("game", [TicTacToe(), ConnectFour(), SlidingTiles()], ids=lambda g: type(g).__name__)
def test_many_games_search_like_one_bit_for_bit(engine, game, rule):
    states = random_positions(game, 64, 4)
    seeds = np.arange(len(states), dtype=np.uint64) + np.uint64(7)
    search = Search(game, linear_evaluator(game), simulations=24, rule=rule)
    together = search(states, seeds, noise=True)
    fields = ("action", "policy", "visits", "values", "value", "prior")
    kept = {name: getattr(together, name).copy() for name in fields}
    for row in range(0, len(states), 1 if engine == "numba" else 5):
        alone = Search(game, linear_evaluator(game), simulations=24, rule=rule)(
            states[row : row + 1], seeds[row : row + 1], noise=True
        )
        for name in fields:
            np.testing.assert_array_equal(getattr(alone, name)[0], kept[name][row], err_msg=f"{name} of row {row}")


@pytest.mark.parametrize(
    "rule",
    [Puct(), Puct(normalize=False), Puct(prove=True), Puct(normalize=False, prove=True), Gumbel()],
    ids=["puct", "puct-raw", "puct-proofs", "puct-raw-proofs", "gumbel"],
)
def test_compiled_and_numpy_trees_agree(rule, monkeypatch):
    if not fast.available():
        pytest.skip("numba is not installed")
    game = ConnectFour()
    states = random_positions(game, 40, 14)
    compiled = Search(game, linear_evaluator(game), simulations=40, rule=rule)(states, 3, noise=True)
    monkeypatch.setattr(fast, "available", lambda: False)
    plain = Search(game, linear_evaluator(game), simulations=40, rule=rule)(states, 3, noise=True)
    np.testing.assert_array_equal(compiled.visits, plain.visits)
    np.testing.assert_allclose(compiled.policy, plain.policy, atol=1e-12)
    np.testing.assert_allclose(compiled.values, plain.values, atol=1e-12)


@pytest.mark.parametrize("game", [TicTacToe(), ConnectFour()], ids=lambda g: type(g).__name__)
def test_a_step_in_trees_writes_what_the_rules_say(game):
    if not fast.available():
        pytest.skip("numba is not installed")
    states = random_positions(game, 64, 7)
    search = Search(game, linear_evaluator(game), simulations=60, rule=Puct(normalize=False))
    search(states)
    tree, held = search.tree, search._dynamics._states
    ends = 0
    for b in range(len(states)):
        for n in range(1, tree.size[b]):
            parent, action = tree.parent[b, n], tree.parent_action[b, n]
            after = game.step(held[b, parent : parent + 1], np.array([action]))
            for name in game.dtype.names:
                assert held[b, n][name] == after[name][0], name
            over = game.terminal(after)[0]
            ends += over
            assert tree.terminal[b, n] == over
            assert tree.reward[b, n] == game.reward(after)[0]
            assert tree.discount[b, n] == (0 if over else -1)
            np.testing.assert_array_equal(tree.legal[b, n], game.legal(after)[0])
    assert ends > 20


def test_a_search_goes_on_after_an_evaluator_failed():
    game = TicTacToe()
    sound = linear_evaluator(game)
    calls = []

    def fails_once(observation):
        calls.append(1)
        logits, value = sound(observation)
        return (logits * np.nan, value) if len(calls) == 5 else (logits, value)

    search = Search(game, fails_once, simulations=16)
    with pytest.raises(ValueError, match="finite logits and values"):
        search(game.init(3))
    expected = Search(game, sound, simulations=16)(game.init(3))
    np.testing.assert_array_equal(search(game.init(3)).visits, expected.visits)


@pytest.mark.parametrize("rule", [Puct(), Gumbel()], ids=["puct", "gumbel"])
def test_only_legal_moves_are_tried_and_every_simulation_counts(rule):
    game = ConnectFour()
    states = random_positions(game, 64, 30, seed=1)
    found = Search(game, linear_evaluator(game), simulations=30, rule=rule)(states, 0, noise=True)
    legal = game.legal(states)
    assert (found.visits[~legal] == 0).all()
    assert (found.policy[~legal] == 0).all()
    assert legal[np.arange(len(states)), found.action].all()
    np.testing.assert_array_equal(found.visits.sum(1), 30)


@pytest.mark.parametrize("rule", [Puct(), Gumbel()], ids=["puct", "gumbel"])
def test_a_win_in_one_and_a_block_are_found(rule):
    game = TicTacToe()
    flat = lambda x: (torch.zeros(len(x), 9), torch.zeros(len(x)))  # noqa: E731
    state = game.init(2)
    # row 0: X holds 0 and 1, and O 3 and 4: X wins at 2; row 1: X holds 0 and 5, and O 4 and 8, nobody threatens yet
    for moves in ([0, 0], [3, 4], [1, 5], [4, 8]):
        state = game.step(state, np.array(moves))
    # then X at 1 threatens 2, where O must block and wins nowhere itself
    threatened = game.step(state[1:], np.array([1]))
    assert game.legal(threatened)[0].sum() == 4
    found = Search(game, flat, simulations=200, rule=rule)(np.concatenate([state[:1], threatened]))
    np.testing.assert_array_equal(found.action, [2, 2])
    assert found.values[0, 2] == 1.0
    # every other move loses to 2, which the search has seen
    losing = game.legal(threatened)[0] & (np.arange(9) != 2)
    assert (found.values[1, losing] < found.values[1, 2]).all()


@pytest.mark.parametrize("normalize", [False, True])
def test_what_is_proven_in_tic_tac_toe_is_true(engine, normalize):
    game = TicTacToe()
    solution = solve(game)
    chosen = slice(0, None, 4 if engine == "numba" else 40)
    states, scores = solution.states[chosen], solution.scores[chosen]
    rule = Puct(normalize=normalize, prove=True)
    search = Search(game, linear_evaluator(game), simulations=120, rule=rule)
    found = search(states)
    proof = search.tree.proof[:, 0]
    known = ~np.isnan(proof)
    np.testing.assert_array_equal(proof[known], scores[known])
    assert known.any(axis=1).mean() > 0.8
    best = scores.max(axis=1)
    # a proven win is made, and all that is learnt; a proven loss only where there is nothing else
    wins = (proof >= 1).any(axis=1)
    assert wins.mean() > 0.3
    assert (best[wins] == 1).all()
    assert (found.value[wins] == 1).all()
    np.testing.assert_array_equal(found.policy[wins] > 0, proof[wins] >= 1)
    assert (scores[wins, found.action[wins]] == 1).all()
    hopeful = game.legal(states) & ~(proof <= -1)
    some = hopeful.any(axis=1)
    assert (found.policy[some][~hopeful[some]] == 0).all()
    lost = ~some
    assert lost.any()
    assert (best[lost] == -1).all()
    assert (found.value[lost] == -1).all()
    # where all is lost, the moves still share the simulations
    several = lost & (game.legal(states).sum(axis=1) > 2)
    assert (found.policy[several].max(axis=1) < 0.95).mean() > 0.7
    np.testing.assert_allclose(found.policy.sum(axis=1), 1)
    assert (found.visits.sum(axis=1) == 120).all()
    wrong = (scores[np.arange(len(states)), found.action] < best).mean()
    plain = Search(game, linear_evaluator(game), simulations=120, rule=Puct(normalize=normalize))(states).action
    assert wrong < (scores[np.arange(len(states)), plain] < best).mean()


def test_a_lost_position_is_played_as_the_network_likes(engine):
    game = ConnectFour()
    state = game.positions(["33442"])  # three in a row, open at both ends
    likes = torch.tensor([0.0, 1, 0, 2, 0, 1, 0])
    search = Search(game, lambda x: (likes.expand(len(x), 7), torch.zeros(len(x))), simulations=400, rule=RAW)
    found = search(state)
    assert found.value[0] == -1
    assert found.action[0] == 3
    assert found.policy[0].argmax() == 3
    assert found.policy[0].max() < 0.6


def test_what_is_proven_stays_so_when_the_tree_moves_on(engine):
    game = TicTacToe()
    solution = solve(game)
    search = Search(game, linear_evaluator(game), simulations=400, rule=Puct(prove=True))
    state = game.step(game.init(1), np.array([0]))
    for reply in (1, 3, 4):  # a corner is answered badly; the first player wins by force
        search(state)
        search.advance(np.array([reply]))
        state = game.step(state, np.array([reply]))
        row = int(np.flatnonzero(solution.states == state)[0])
        proof = search.tree.proof[0, 0]
        known = ~np.isnan(proof)
        np.testing.assert_array_equal(proof[known], solution.scores[row][known])
        legal = game.legal(state)
        legal[0, np.flatnonzero(known)] = False
        if known.any() and legal.any():  # a move that is forbidden proves nothing
            assert (search(state, legal=legal).policy[0, known] == 0).all()
            assert np.isnan(search.tree.proof[0, 0, known]).all()
            return
    pytest.fail("nothing was proven")


@pytest.mark.parametrize("rule", [Puct(), Gumbel()], ids=["puct", "gumbel"])
def test_where_a_limit_of_moves_cuts_a_game_off_the_evaluator_tells_what_comes_after(engine, rule):
    game = SlidingTiles(max_steps=1)
    state = game.init(6, 3)
    values = lambda x: (torch.zeros(len(x), 4), torch.full((len(x),), 0.75))  # noqa: E731
    found = Search(game, values, simulations=12, rule=rule)(state)
    assert game.truncated(game.step(state, game.legal(state).argmax(axis=1))).all()
    # no move solves it: what each is worth is what the evaluator sees there
    np.testing.assert_allclose(found.values[game.legal(state)], 0.75 * game.discount)


def test_budgets_of_rows_are_kept():
    game = TicTacToe()
    budget = np.array([5, 17, 32, 1])
    found = Search(game, linear_evaluator(game), simulations=32)(game.init(4), simulations=budget)
    np.testing.assert_array_equal(found.visits.sum(1), budget)


@pytest.mark.parametrize("rule", [Puct(), Gumbel()], ids=["puct", "gumbel"])
def test_a_row_of_a_smaller_budget_is_searched_as_by_a_search_of_that_budget(engine, rule):
    game = ConnectFour()
    states = random_positions(game, 12, 4)
    seeds = np.arange(len(states), dtype=np.uint64)
    budget = np.resize([6, 32, 17], len(states))
    mixed = Search(game, linear_evaluator(game), simulations=32, rule=rule)
    found = mixed(states, seeds, noise=True, simulations=budget)
    for count in (6, 17, 32):
        rows = budget == count
        own = Search(game, linear_evaluator(game), simulations=count, rule=rule)(states[rows], seeds[rows], noise=True)
        for name in ("action", "visits", "policy", "value"):
            np.testing.assert_array_equal(getattr(found, name)[rows], getattr(own, name), err_msg=f"{name} of {count}")


def test_evaluation_has_no_noise_and_ignores_the_seed():
    game = TicTacToe()
    search = Search(game, linear_evaluator(game), simulations=16, rule=Puct())
    first, second = search(game.init(3), 0).visits, search(game.init(3), 1).visits
    np.testing.assert_array_equal(first, second)
    assert (search(game.init(3), 1, noise=True).visits != first).any()


@pytest.mark.parametrize("game", [TicTacToe(), ConnectFour()], ids=lambda g: type(g).__name__)
def test_a_kept_subtree_has_the_statistics_it_had(engine, game):
    search = Search(game, linear_evaluator(game), simulations=60, rule=Puct())
    states = random_positions(game, 12, 2)
    found = search(states)
    rows = np.arange(len(states))
    before = search.tree
    child = before.child[rows, 0, found.action]
    visits = before.visits[rows, child].copy()
    total = before.total[rows, child].copy()
    search.advance(found.action)
    np.testing.assert_array_equal(search.tree.visits[:, 0], visits)
    np.testing.assert_array_equal(search.tree.total[:, 0], total)
    after = search(game.step(states, found.action))
    np.testing.assert_array_equal(after.visits.sum(1), visits.sum(1) + 60)
    # an edge's visits are one for its node and those of the node's own edges
    tree = search.tree
    for b in rows:
        for n in range(tree.size[b]):
            for a in range(game.num_actions):
                if (c := tree.child[b, n, a]) >= 0 and not tree.terminal[b, c]:
                    assert tree.visits[b, n, a] == 1 + tree.visits[b, c].sum()


def test_a_kept_root_obeys_the_legal_moves_of_the_next_call(engine):
    game = TicTacToe()
    search = Search(game, linear_evaluator(game), simulations=60, rule=Puct())
    states = game.init(3)
    action = search(states).action
    search.advance(action)
    after = game.step(states, action)
    legal = np.zeros((3, 9), bool)
    row, only = np.arange(3), game.legal(after).argmax(1)
    legal[row, only] = True
    kept = search.tree.visits[row, 0, only].copy()
    found = search(after, legal=legal, noise=True)
    np.testing.assert_array_equal(found.action, only)
    np.testing.assert_array_equal(found.policy, legal)
    np.testing.assert_array_equal(found.visits, legal * (kept + 60)[:, None])
    search.advance(found.action)  # what was forbidden is gone from the tree, whose edges still add up
    assert (search.tree.size <= search.tree.child.shape[1] - 60).all()
    assert (search(game.step(after, only)).visits.sum(1) >= 60).all()


def test_a_kept_root_is_for_its_own_positions_only():
    game = TicTacToe()
    search = Search(game, linear_evaluator(game), simulations=30, rule=Puct())
    states = game.init(3)
    action = search(states).action
    search.advance(action)
    after = game.step(states, action)
    with pytest.raises(ValueError, match="positions must be the 3 after the moves given to advance, got 2"):
        search(after[:2])
    other = after.copy()
    other[1] = game.step(states[:1], (action[:1] + 1) % 9)[0]
    with pytest.raises(ValueError, match="positions must be those after the moves given to advance, row 1 is not"):
        search(other)
    with pytest.raises(ValueError, match="legal must allow a move in every row, row 0 has none"):
        search(after, legal=np.zeros((3, 9), bool))
    assert (search(after).visits.sum(1) > 30).all()  # a refusal changes nothing


def test_sequential_halving_spends_its_budget_as_published():
    assert halving_sequence(16, 32).tolist() == [0] * 16 + [1] * 8 + [2] * 4 + [3] * 4
    assert halving_sequence(4, 8).tolist() == [0, 0, 0, 0, 1, 1, 2, 2]
    assert halving_sequence(1, 3).tolist() == [0, 1, 2]


@pytest.mark.parametrize("rule", [Gumbel(value_scale=20), Puct()], ids=["gumbel", "puct"])
def test_values_however_far_apart_leave_legal_moves_and_a_policy(engine, rule):
    game = ConnectFour()
    state = game.positions(["010101232323454545101010323232545454"])  # column 6 alone has room
    legal = game.legal(state)
    search = Search(game, lambda x: (torch.zeros(len(x), 7), torch.full((len(x),), 0.9)), simulations=64, rule=rule)
    found = search(state, legal=legal)
    assert found.action[0] == 6
    np.testing.assert_array_equal(found.policy, legal.astype(float))
    assert not ((search.tree.child >= 0) & ~search.tree.legal).any()


@pytest.mark.parametrize("normalize", [False, True])
def test_moves_that_all_lose_are_tried_as_the_prior_says(engine, normalize):
    tree, leaf = new_tree(1, 8, 3), new_leaf(1)
    tree.size[:], tree.value[:] = 4, -1
    tree.child[0, 0], tree.parent[0, 1:4], tree.parent_action[0, 1:4] = [1, 2, 3], 0, [0, 1, 2]
    tree.legal[:], tree.prior[0, 0] = True, [0.1, 0.7, 0.2]
    tree.visits[0, 0], tree.total[0, 0], tree.proof[0, 0] = 1, -1, -1
    walk.select(tree, np.zeros(1, np.int64), puct_way(puct_params(Puct(normalize=normalize, prove=True), 8)), leaf)
    assert leaf.action[0] == 1


def test_threads_share_an_evaluator():
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.modes = torch.nn.Linear(18, 10), []

        def forward(self, x):
            self.modes.append(self.training)
            out = self.linear(x.flatten(1))
            return out[:, :9], out[:, 9]

    net, x = Net(), torch.zeros(2, 2, 3, 3)
    evaluator = NetEvaluator(net)
    with ThreadPoolExecutor(1) as other:
        with evaluator.evaluating():
            logits, _ = other.submit(evaluator, x).result()
            assert not logits.requires_grad
            theirs = evaluator.evaluating()
            other.submit(theirs.__enter__).result()
        evaluator(x)  # they are not done
        other.submit(theirs.__exit__, None, None, None).result()
    assert net.modes == [False, False]
    assert net.training


@pytest.mark.parametrize("name", ["reward", "discount"])
def test_a_learned_model_must_stay_finite(name):
    model = TableModel(8)
    model.tables[name] = np.full_like(model.tables[name], np.nan)
    with pytest.raises(ValueError, match=f"model must return finite {name}s, got NaN or infinity"):
        Search.learned(model, 5, simulations=8)(np.arange(3))


def test_bad_input_is_refused_in_one_sentence():
    game = TicTacToe()
    uniform = lambda x: (torch.zeros(len(x), 9), torch.zeros(len(x)))  # noqa: E731
    with pytest.raises(ValueError, match="simulations must be at least 1, got 0"):
        Search(game, uniform, simulations=0)
    search = Search(game, uniform, simulations=4)
    for empty in (search, Search(game, uniform, rule=Puct())):
        with pytest.raises(ValueError, match="positions must hold at least one game, got none"):
            empty(game.init(0))
    over = game.init(2)
    for cells in ([0, 0], [3, 3], [1, 1], [4, 4], [2, 8]):
        over = game.step(over, np.array(cells))
    with pytest.raises(ValueError, match="states must not be over, row 0 is"):
        search(over)
    with pytest.raises(ValueError, match="legal must allow a move in every row, row 1 has none"):
        search(game.init(2), legal=np.array([[True] * 9, [False] * 9]))
    with pytest.raises(ValueError, match=r"simulations must hold one budget in \[1, 4\] a row"):
        search(game.init(2), simulations=np.array([1, 5]))
    with pytest.raises(ValueError, match="advance needs rule=Puct"):
        search.advance(np.array([0, 0]))
    with pytest.raises(ValueError, match=r"evaluator must return logits of shape \(2, 9\), got \(2, 7\)"):
        Search(game, lambda x: (torch.zeros(len(x), 7), torch.zeros(len(x))))(game.init(2))
    with pytest.raises(ValueError, match="finite logits and values"):
        Search(game, lambda x: (torch.full((len(x), 9), torch.nan), torch.zeros(len(x))))(game.init(2))
    with pytest.raises(ValueError, match=r"rule.prove must be False without the rules of an undiscounted game of two"):
        Search(SlidingTiles(), uniform, rule=Puct(prove=True))
    with pytest.raises(ValueError, match="c_init must be positive, got 0"):
        Puct(c_init=0)
    with pytest.raises(ValueError, match="max_considered must be at least 1, got 0"):
        Gumbel(max_considered=0)
    with pytest.raises(ValueError, match="chunk must be at least 1, got 0"):
        NetEvaluator(torch.nn.Identity(), chunk=0)


def test_a_training_network_is_evaluated_in_eval_mode_and_left_as_it_was(any_device):
    game = TicTacToe()

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(0.5), torch.nn.Linear(18, 10))

        def forward(self, x):
            out = self.net(x)
            return out[:, :9], out[:, 9]

    torch.manual_seed(0)
    net = Net().to(any_device)
    search = Search(game, net, simulations=8)
    state = game.step(game.init(4), np.array([4] * 4))
    np.testing.assert_array_equal(search(state).prior[0], search(state).prior[1])
    assert net.training


def test_a_search_in_use_refuses_a_second_call():
    game = TicTacToe()

    def evaluator(observation):
        with ThreadPoolExecutor(1) as other:
            with pytest.raises(RuntimeError, match="one call at a time"):
                other.submit(search, game.init(2)).result()
            with pytest.raises(RuntimeError, match="one call at a time"):
                other.submit(search.advance, np.zeros(2, int)).result()
        return torch.zeros(len(observation), 9), torch.zeros(len(observation))

    search = Search(game, evaluator, simulations=3, rule=Puct())
    assert (search(game.init(2)).visits.sum(1) == 3).all()
    assert (search(game.init(3)).visits.sum(1) == 3).all()  # and is free again
    copied = pickle.loads(pickle.dumps(Search(game, linear_evaluator_of_tictactoe, simulations=3)))
    np.testing.assert_array_equal(
        copied(game.init(2)).visits, Search(game, linear_evaluator_of_tictactoe, simulations=3)(game.init(2)).visits
    )


def linear_evaluator_of_tictactoe(observation):
    return linear_evaluator(TicTacToe())(observation)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64, np.float32, torch.uint8])
def test_a_mask_of_any_type_allows_the_same_moves(engine, dtype):
    game = TicTacToe()
    mask = np.zeros((3, 9), bool)
    mask[:, [1, 4, 8]] = True
    given = torch.from_numpy(mask).to(dtype) if dtype is torch.uint8 else mask.astype(dtype)
    search = Search(game, linear_evaluator(game), simulations=20, rule=Puct())
    expected = Search(game, linear_evaluator(game), simulations=20, rule=Puct())(game.init(3), legal=mask)
    action = search(game.init(3), legal=given).action
    np.testing.assert_array_equal(action, expected.action)
    # and at kept roots, where others' trees stay as they are
    search.advance(action)
    states = game.step(game.init(3), action)
    before = search.tree.visits[1].copy()
    later = game.legal(states)
    later[0, 0] = False
    found = search(states, legal=torch.from_numpy(later).to(dtype) if dtype is torch.uint8 else later.astype(dtype))
    assert found.visits[0, 0] == 0
    assert (search.tree.visits[1, 0] >= before[0]).all()
    assert before[0].sum() > 0


@pytest.mark.parametrize("mask", [np.full((2, 9), 2), np.full((2, 8), True), np.full(9, True), np.full((2, 9), -1.0)])
def test_what_is_no_mask_is_refused(mask):
    game = TicTacToe()
    search = Search(game, linear_evaluator(game), simulations=4)
    with pytest.raises(ValueError, match=r"legal must be a mask of booleans, or of 0 and 1, of shape \(2, 9\), got"):
        search(game.init(2), legal=mask)


def test_a_finished_or_unexplored_move_starts_its_row_anew(engine):
    game = TicTacToe()
    search = Search(game, linear_evaluator(game), simulations=40, rule=Puct())
    states = game.init(3)
    for cell in (0, 3, 1, 4):  # row 0 is about to win
        states[0] = game.step(states[:1], np.array([cell]))[0]
    tried = search(states).visits
    action = np.array([2, tried[1].argmax(), tried[2].argmax()])
    search.advance(action)
    kept = search.tree.visits[:, 0].sum(1)
    assert kept[0] == 0
    assert (kept[1:] > 0).all()
    after = game.step(states, action)
    after[0] = game.init(1)[0]  # a new game in the row of the one that ended
    found = search(after)
    np.testing.assert_array_equal(found.visits.sum(1), kept + 40)
    alone = Search(game, linear_evaluator(game), simulations=40, rule=Puct())(game.init(1))
    np.testing.assert_array_equal(found.visits[0], alone.visits[0])
    np.testing.assert_array_equal(found.policy[0], alone.policy[0])
    unexplored = Search(game, linear_evaluator(game), simulations=2, rule=Puct())
    visits = unexplored(game.init(1)).visits[0]
    cell = int(np.flatnonzero(visits == 0)[0])
    unexplored.advance(np.array([cell]))
    assert unexplored(game.step(game.init(1), np.array([cell]))).visits.sum() == 2
    with pytest.raises(ValueError, match=r"action must be in \[0, 9\), got 9 in row 0"):
        unexplored.advance(np.array([9]))


def test_trees_of_a_search_that_failed_are_not_kept(engine):
    game, plain, calls = TicTacToe(), linear_evaluator(TicTacToe()), []

    def failing(observation):
        calls.append(observation)
        if len(calls) == 10:
            raise RuntimeError("the network is gone")
        return plain(observation)

    search = Search(game, failing, simulations=40, rule=Puct())
    with pytest.raises(RuntimeError, match="the network is gone"):
        search(game.init(2))
    with pytest.raises(ValueError, match="advance needs a search before it, one that came to its end"):
        search.advance(np.array([0, 0]))
    found = search(game.init(2))
    expected = Search(game, plain, simulations=40, rule=Puct())(game.init(2))
    np.testing.assert_array_equal(found.visits, expected.visits)
    search.advance(found.action)


class Third(TicTacToe):
    """Shows the free cells as well, by a function of the batch; a win pays a half."""

    observation_shape = (3, 3, 3)

    def observe(self, state):
        planes = super().observe(state)[:, :2]
        return np.concatenate([planes, 1 - planes.sum(axis=1, keepdims=True)], axis=1)

    def reward(self, state):
        return super().reward(state) / 2


def test_a_subclass_that_speaks_for_the_batch_is_searched_by_its_word(engine):
    game, free = Third(), []

    def evaluator(observation):
        assert observation.shape[1:] == (3, 3, 3)
        free.extend(observation[:, 2].sum(dim=(1, 2)).tolist())
        return torch.zeros(len(observation), 9), torch.zeros(len(observation))

    state = game.init(1)
    for cell in (0, 3, 1, 4):
        state = game.step(state, np.array([cell]))
    found = Search(game, evaluator, simulations=64, rule=Puct())(state)
    assert set(free) <= {5, 4, 3, 2, 1}
    assert max(free[1:]) == 4
    assert found.values[0, 2] == 0.5
    assert not game.rules_by_row
    assert TicTacToe().rules_by_row


def test_states_of_another_game_are_refused():
    game = TicTacToe()  # whose fields have the names of Connect Four's
    search = Search(game, linear_evaluator(game), simulations=4, rule=Puct())
    with pytest.raises(ValueError, match="states must be of the game's dtype"):
        search(ConnectFour().init(2))
    packed = game.init(2).astype([(name, game.dtype[name]) for name in game.dtype.names])
    assert packed.dtype != game.dtype  # the same fields in other places are no other game
    search.advance(search(packed).action)
    with pytest.raises(ValueError, match="states must be of the game's dtype"):
        search(ConnectFour().init(2))


@pytest.mark.parametrize("noise", [np.full((2, 9), np.nan), np.zeros((2, 8)), np.zeros(9)])
def test_noise_that_is_no_number_a_move_is_refused(noise):
    search = Search(TicTacToe(), linear_evaluator(TicTacToe()), simulations=4)
    with pytest.raises(ValueError, match=r"noise_values must hold a number a move, shape \(2, 9\)"):
        search(TicTacToe().init(2), noise=True, noise_values=noise)


def test_simulations_are_whole_numbers():
    game = TicTacToe()
    with pytest.raises(TypeError, match=r"simulations must be a whole number, got 2\.5"):
        Search(game, linear_evaluator(game), simulations=2.5)
    with pytest.raises(ValueError, match=r"simulations must hold one budget in \[1, 4\] a row"):
        Search(game, linear_evaluator(game), simulations=4)(game.init(2), simulations=np.array([1.5, 2.0]))


@pytest.mark.parametrize("rule", [Puct(), Gumbel()], ids=["puct", "gumbel"])
def test_a_network_may_mask_illegal_moves_itself(engine, rule):
    game = ConnectFour()
    states = game.positions(["333333", "012"])
    plain = linear_evaluator(game)

    def masked(observation):
        logits, value = plain(observation)
        full = observation[:, :, 0].sum(1).numpy() > 0  # the top row
        return np.where(full, -np.inf, logits), value

    found = Search(game, masked, simulations=30, rule=rule)(states)
    expected = Search(game, plain, simulations=30, rule=rule)(states)
    np.testing.assert_array_equal(found.visits, expected.visits)
    np.testing.assert_array_equal(found.policy, expected.policy)
    with pytest.raises(ValueError, match="finite logits and values for legal actions"):
        Search(game, lambda x: (np.full((len(x), 7), -np.inf), np.zeros(len(x))), simulations=4, rule=rule)(states)


@pytest.mark.parametrize(
    ("ask", "match"),
    [
        (
            lambda game, search: Search(TicTacToe, search),
            r"game must be a Game, such as TicTacToe\(\), got the class TicTacToe",
        ),
        (lambda game, search: Search(game, None), "evaluator must be a module, a function or have evaluate"),
        (lambda game, search: search([0, 1]), "states must be an array with one row a game.*got list of shape"),
        (lambda game, search: search(game.init(2).reshape(2, 1)), r"got ndarray of shape \(2, 1\)"),
        (lambda game, search: search(game.init(2), noise=np.ones(3, bool)), "noise must be True, False or a boolean a"),
        (lambda game, search: search(game.init(2), noise="no"), "noise must be True, False or a boolean a row"),
        (lambda game, search: Search(game, lambda x: x)(game.init(2)), r"must return \(logits, value\), got Tensor"),
        (
            lambda game, search: Search(game, lambda x: (np.zeros((2, 9), complex), np.zeros(2)))(game.init(2)),
            "evaluator must return real numbers, got complex128",
        ),
    ],
)
def test_what_cannot_be_searched_is_named(ask, match):
    game = TicTacToe()
    with pytest.raises((TypeError, ValueError), match=match):
        ask(game, Search(game, RolloutEvaluator(game), simulations=2))


def test_a_cache_is_for_one_game():
    cached = CachedEvaluator(lambda seen: (torch.zeros(len(seen), 9), torch.zeros(len(seen))), capacity=16)
    assert cached(torch.zeros(0, 2, 3, 3))[0].shape == (0, 9)
    cached(torch.zeros(2, 2, 3, 3))
    with pytest.raises(ValueError, match="must have the 18 numbers a row of those before, got 32"):
        cached(torch.zeros(2, 2, 4, 4))


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize(
    ("rows", "actions", "match"),
    [
        (1, 9, "one value a position to be remembered, got 1 for 3"),
        (3, 4, r"logits of shape \(3, 9\), got \(3, 4\)"),
        (3, 40, r"logits of shape \(3, 9\), got \(3, 40\)"),
    ],
)
def test_a_cache_reads_nothing_that_was_not_answered(monkeypatch, compiled, rows, actions, match):
    if not compiled:
        monkeypatch.setattr(fast, "available", lambda: False)
    answers = iter([(torch.zeros(1, 9), torch.zeros(1)), (torch.zeros(rows, actions), torch.zeros(rows))])
    cached = CachedEvaluator(lambda seen: next(answers), capacity=16)
    with pytest.raises(ValueError, match=f"evaluator must return {match}"):
        cached(torch.arange(54.0).reshape(3, 2, 3, 3))


def test_a_cache_takes_a_network_as_it_is():
    game = TicTacToe()
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(18, 10))
    split = PolicyValue(net)
    state = game.init(2)
    plain, cached = (Search(game, of, simulations=9)(state) for of in (split, CachedEvaluator(split, capacity=16)))
    np.testing.assert_array_equal(plain.visits, cached.visits)
    assert split.training
    with pytest.raises(TypeError, match="evaluator must be a module or a function of observations"):
        CachedEvaluator(RolloutEvaluator(game))


class PolicyValue(torch.nn.Module):
    """Nine logits and a value of one network."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        out = self.net(x)
        return out[:, :9], out[:, 9].tanh()


@pytest.mark.parametrize("game", [ConnectFour(), TicTacToe()])
def test_evaluations_from_all_sides_are_the_mean_and_turn_as_the_board_does(game):
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(game.num_actions + 1), torch.nn.Tanh())
    net(torch.zeros(1, *game.observation_shape))
    evaluator = SymmetricEvaluator(game, lambda seen: (net(seen)[:, :-1].detach(), net(seen)[:, -1].detach()))
    states = game.step(game.step(game.init(3), np.array([0, 1, 2])), np.array([3, 4, 4]))
    seen = game.observe(states)
    logits, values = evaluator(torch.from_numpy(seen))
    expected_logits, expected_values = np.zeros_like(logits), np.zeros_like(values)
    blank = np.zeros((3, game.num_actions), np.float32)
    for side in range(game.num_symmetries):
        which = np.full(3, side)
        turned = torch.from_numpy(np.ascontiguousarray(game.transform(seen, blank, which)[0]))
        answer = net(turned).detach().numpy()
        for action in range(game.num_actions):  # where the action stands as seen from the side
            chosen = blank.copy()
            chosen[:, action] = 1
            expected_logits[:, action] += (answer[:, :-1] * game.transform(seen, chosen, which)[1]).sum(axis=1)
        expected_values += answer[:, -1]
        turned_logits, turned_values = evaluator(turned)
        np.testing.assert_allclose(turned_logits, game.transform(seen, logits, which)[1], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(turned_values, values, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(logits, expected_logits / game.num_symmetries, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(values, expected_values / game.num_symmetries, rtol=1e-5, atol=1e-6)
    assert evaluator(torch.zeros(0, *game.observation_shape))[0].shape == (0, game.num_actions)


def test_a_network_asked_from_all_sides_does_not_learn_and_keeps_its_rule():
    game, net = ConnectFour(), Normed()
    net.train()
    found = Search(game, SymmetricEvaluator(game, net), simulations=8)(game.init(2))
    assert net.training
    assert net.norm.num_batches_tracked == 0
    np.testing.assert_array_equal(found.prior[:, ::-1], found.prior)  # an empty board is its mirror image
    net.rule = Gumbel()
    assert Search(game, CachedEvaluator(SymmetricEvaluator(game, net)), simulations=100).rule == Gumbel()


def test_an_evaluator_from_all_sides_names_what_it_cannot_use():
    with pytest.raises(TypeError, match="game must have num_symmetries and transform, Twenty48 has not"):
        SymmetricEvaluator(Twenty48(), lambda seen: seen)
    with pytest.raises(TypeError, match=r"game must be a Game, such as TicTacToe\(\)"):
        SymmetricEvaluator(TicTacToe, lambda seen: seen)
    with pytest.raises(TypeError, match=r"game must be a Game, such as TicTacToe\(\)"):
        Augment(TicTacToe)
    with pytest.raises(TypeError, match=r"evaluator must be a module or a function of observations, got <ai\.game"):
        SymmetricEvaluator(TicTacToe(), RolloutEvaluator(TicTacToe()))
    evaluator = SymmetricEvaluator(ConnectFour(), lambda seen: (torch.zeros(len(seen), 6), torch.zeros(len(seen))))
    with pytest.raises(ValueError, match=r"evaluator must return logits of shape \(4, 7\), got \(4, 6\)"):
        evaluator(torch.zeros(2, 2, 6, 7))
    evaluator = SymmetricEvaluator(ConnectFour(), lambda seen: (torch.zeros(len(seen), 7), torch.zeros(3)))
    with pytest.raises(ValueError, match=r"evaluator must return one value a row, shape \(4,\), got \(3,\)"):
        evaluator(torch.zeros(2, 2, 6, 7))
    with pytest.raises(TypeError, match=r"evaluator must return \(logits, value\), got Tensor"):
        SymmetricEvaluator(ConnectFour(), lambda seen: seen)(torch.zeros(2, 2, 6, 7))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_evaluator_from_all_sides_takes_what_a_search_takes(dtype):
    game, net = ConnectFour(), torch.nn.Linear(84, 8).to(dtype)

    def asked(seen):  # with gradients, and values [B, 1]
        answer = net(seen.flatten(1).to(dtype))
        return answer[:, :7], answer[:, 7:]

    seen = torch.from_numpy(game.observe(game.step(game.init(2), np.array([0, 5]))))
    logits, values = SymmetricEvaluator(game, asked)(seen)
    expected = [asked(seen), asked(seen.flip(3))]
    np.testing.assert_allclose(
        logits, (expected[0][0] + expected[1][0].flip(1)).detach().float() / 2, rtol=0.02, atol=0.02
    )
    np.testing.assert_allclose(
        values, (expected[0][1] + expected[1][1])[:, 0].detach().float() / 2, rtol=0.02, atol=0.02
    )


class Normed(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = torch.nn.BatchNorm2d(2)

    def forward(self, seen):
        seen = self.norm(seen)
        return seen.mean(dim=2).mean(dim=1), seen.mean(dim=(1, 2, 3))
