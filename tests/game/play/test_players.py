import numpy as np
import pytest
import torch

from ai.game import (
    CartPole,
    ConnectFour,
    ConnectFourSolver,
    Hog,
    HogSolver,
    RolloutEvaluator,
    Score,
    Search,
    TicTacToe,
    decisive_positions,
    fast,
    greedy_player,
    human_player,
    match,
    perfect_player,
    random_player,
    ratings,
    round_robin,
    search_player,
    solve,
)

needs_numba = pytest.mark.skipif(not fast.available(), reason="numba is not installed")


@pytest.fixture(scope="module")
def solution():
    return solve(TicTacToe())


def test_tic_tac_toe_has_4520_positions_and_is_a_draw(solution):
    assert len(solution.states) == 4520
    np.testing.assert_array_equal(solution.scores[0], 0)


def test_perfect_players_draw_and_never_lose_to_chance(solution):
    game = TicTacToe()
    perfect = perfect_player(solution)
    assert match(game, perfect, perfect, 50) == Score(0, 50, 0)
    score = match(game, perfect, random_player(game), 200, seed=1)
    assert score.losses == 0
    assert score.wins > 150
    assert sum((score.wins, score.draws, score.losses)) == 200


def test_a_match_counts_wins_for_whoever_wins_from_either_seat(solution):
    game = TicTacToe()
    forward = match(game, perfect_player(solution), random_player(game), 100, seed=3)
    backward = match(game, random_player(game), perfect_player(solution), 100, seed=3)
    assert forward.losses == 0 == backward.wins
    assert backward.losses > 70


def test_search_by_rollouts_beats_chance():
    game = TicTacToe()
    search = Search(game, RolloutEvaluator(game, rollouts=4), simulations=64)
    score = match(game, search_player(search), random_player(game), 60, seed=2)
    assert score.points > 0.9


def test_openings_come_in_pairs_and_end_no_game():
    game = ConnectFour()
    seen = []

    def spy(state, seed):
        seen.append(state.copy())
        return random_player(game)(state, seed)

    match(game, spy, spy, 40, seed=0, opening_moves=10)
    first = np.concatenate(seen[:2])  # the first moves of the 40 games
    assert len(first) == 40
    _, counts = np.unique(first[["own", "stones"]], return_counts=True)
    assert (counts % 2 == 0).all()


def test_greedy_plays_the_likeliest_legal_move():
    game = TicTacToe()
    prefers_centre = lambda x: (torch.eye(9)[4].repeat(len(x), 1), torch.zeros(len(x)))  # noqa: E731
    player = greedy_player(game, prefers_centre)
    seeds = np.zeros(1, np.uint64)
    state = game.init(1)
    assert player(state, seeds)[0] == 4
    assert player(game.step(state, np.array([4])), seeds)[0] == 0


def test_a_search_player_of_infinite_temperature_plays_what_the_search_tried():
    game = TicTacToe()
    search = Search(game, RolloutEvaluator(game), simulations=4)
    seeds = np.arange(200, dtype=np.uint64)
    moves = search_player(search, temperature=float("inf"))(game.init(200), seeds)
    assert set(moves) == set(np.flatnonzero(search(game.init(1)).policy[0]))


def test_a_person_is_shown_the_board_and_asked_until_the_move_is_legal():
    game = TicTacToe()
    answers, shown = iter(["x", "4", "1" * 5000, "0"]), []
    search = Search(game, RolloutEvaluator(game), simulations=8)
    player = human_player(game, search, read=lambda prompt: next(answers), write=shown.append)
    state = game.step(game.init(1), np.array([4]))
    assert player(state, np.zeros(1, np.uint64)).tolist() == [0]
    assert "0 1 2\n3 X 5\n6 7 8" in shown
    assert any("visits" in line for line in shown)
    assert sum("must be one of" in line for line in shown) == 3


def test_elo_of_two_players_is_the_logistic_of_their_score():
    table = ratings({("a", "b"): Score(60, 20, 20)}, prior_games=1e-6)
    assert table["a"].elo - table["b"].elo == pytest.approx(400 * np.log10(0.7 / 0.3), abs=1e-2)


def test_elo_recovers_known_strengths_within_its_intervals():
    rng = np.random.default_rng(0)
    truth = {"a": -150.0, "b": -50.0, "c": 0.0, "d": 200.0}
    truth = {k: v - np.mean(list(truth.values())) for k, v in truth.items()}
    names = list(truth)
    inside = total = 0
    for _ in range(40):
        scores = {}
        for i, one in enumerate(names):
            for other in names[i + 1 :]:
                wins = rng.binomial(300, 1 / (1 + 10 ** ((truth[other] - truth[one]) / 400)))
                scores[one, other] = Score(int(wins), 0, int(300 - wins))
        for name, rating in ratings(scores, prior_games=0.1).items():
            inside += abs(rating.elo - truth[name]) <= rating.margin
            total += 1
    assert 0.9 < inside / total < 0.99


def test_round_robin_ranks_perfect_over_search_over_chance(solution):
    game = TicTacToe()
    players = {
        "random": random_player(game),
        "rollouts": search_player(Search(game, RolloutEvaluator(game), simulations=24)),
        "perfect": perfect_player(solution),
    }
    table = ratings(round_robin(game, players, 40, opening_moves=1))
    assert table["perfect"].elo > table["rollouts"].elo > table["random"].elo


def test_matches_of_neighbouring_seeds_and_those_of_a_round_robin_share_no_luck():
    drawn = []

    class Noted(TicTacToe):
        def init(self, batch, seed=0):
            drawn.append(set(seed.tolist()))  # of the openings and the game's own luck
            return super().init(batch, seed)

    game = Noted()

    def noted(state, seed):
        drawn[-1] |= set(seed.tolist())
        return random_player(game)(state, seed)

    for seed in range(3):
        match(game, noted, noted, 4, seed=seed)
        round_robin(game, {"a": noted, "b": noted, "c": noted}, 4, seed=seed)
    assert len(drawn) == 12
    assert len(set.union(*drawn)) == sum(map(len, drawn))


@needs_numba
def test_solver_agrees_with_brute_force_on_late_positions():
    game, solver = ConnectFour(), ConnectFourSolver(table_bits=16)
    rng = np.random.default_rng(0)
    memo = {}

    def brute(state):
        key = (int(state["own"][0]), int(state["stones"][0]))
        if key not in memo:
            row, action = np.nonzero(game.legal(state))
            after = game.step(state[row], action)
            ends, pays = game.terminal(after), game.reward(after)
            memo[key] = max(pays[i] if ends[i] else -brute(after[i : i + 1]) for i in range(len(action)))
        return memo[key]

    checked = 0
    while checked < 25:
        state = game.init(1)
        for _ in range(34):
            if (legal := np.flatnonzero(game.legal(state)[0])).size:
                state = game.step(state, rng.choice(legal, 1))
        if not game.terminal(state)[0]:
            assert solver.score(state).max() == brute(state)
            checked += 1


@needs_numba
def test_decisive_positions_have_better_and_worse_moves():
    solver = ConnectFourSolver(table_bits=18)
    states, scores = decisive_positions(solver, 10, plies=(20, 25), seed=1)
    allowed = scores > -9
    np.testing.assert_array_equal(allowed, ConnectFour().legal(states))
    assert (scores.max(1) > np.where(allowed, scores, 9).min(1)).all()
    assert len(np.unique(states[["own", "stones"]])) == 10


@needs_numba
def test_in_quiet_positions_no_move_wins_at_once():
    game, solver = ConnectFour(), ConnectFourSolver(table_bits=18)
    wins = {}
    for quiet in (False, True):
        states, scores = decisive_positions(solver, 12, plies=(20, 25), quiet=quiet, seed=2)
        row, column = np.nonzero(scores > -9)
        wins[quiet] = (game.reward(game.step(states[row], column)) > 0).sum()
    assert wins[False] > 0 == wins[True]


def test_bad_input_is_refused(solution):
    game = TicTacToe()
    player = random_player(game)
    with pytest.raises(ValueError, match="game must be for two players, CartPole is for 1"):
        match(CartPole(), player, player, 2)
    with pytest.raises(ValueError, match="games must be at least 1, got 0"):
        match(game, player, player, 0)
    with pytest.raises(ValueError, match="scores must hold at least one match"):
        ratings({})
    with pytest.raises(ValueError, match="prior_games must be positive, got 0"):
        ratings({("a", "b"): Score(1, 0, 0)}, prior_games=0)
    with pytest.raises(ValueError, match="table_bits must be at least 10, got 3"):
        ConnectFourSolver(table_bits=3)
    with pytest.raises(ValueError, match=r"max_positions \(10\)"):
        solve(game, max_positions=10)
    with pytest.raises(ValueError, match="temperature must be at least 0, got -1"):
        search_player(Search(game, RolloutEvaluator(game)), temperature=-1)
    over = game.init(1)
    for cell in (0, 3, 1, 4, 2):
        over = game.step(over, np.array([cell]))
    with pytest.raises(ValueError, match="row 0 is over or out of reach"):
        solution.score(over)
    strange = ConnectFour().init(1)
    for judge in (solution, HogSolver(Hog(goal=3, dice=1)), *([ConnectFourSolver()] if fast.available() else [])):
        with pytest.raises(ValueError, match="states must be of the game's dtype"):
            judge.score(strange if judge is solution else game.init(1))


@needs_numba
@pytest.mark.parametrize(
    ("count", "how", "error", "match"),
    [
        (0, {}, ValueError, "count must be at least 1, got 0"),
        (1, {"plies": (20, 10)}, ValueError, "plies must be at least 20, got 10"),
        (1, {"plies": 20}, TypeError, "plies must be the least and the greatest number of stones, got 20"),
        (
            1,
            {"plies": (43, 50)},
            ValueError,
            r"plies \(43, 50\) must have 1 positions to decide: 1000 random games in a",
        ),
        (9, {"plies": (0, 1)}, ValueError, r"have 9 positions .* in a row led to no other than 8"),
    ],
)
def test_positions_that_there_are_none_of_are_refused(count, how, error, match):
    with pytest.raises(error, match=match):
        decisive_positions(Judge(), count, **how)


class Judge(ConnectFourSolver):
    """Finds every position of few stones worth deciding, at once."""

    def score(self, state):
        return np.arange(7.0)[None]


@pytest.mark.parametrize(
    ("moves", "said"),
    [
        (lambda state, seed: np.zeros(1, np.int64), r"one entry a game, shape \(4,\), got \(1,\)"),
        (lambda state, seed: np.zeros(len(state)), "action must hold integers, got float64"),
    ],
)
def test_a_player_that_does_not_move_in_every_game_is_refused(moves, said):
    game = TicTacToe()
    with pytest.raises((TypeError, ValueError), match=said):
        match(game, moves, random_player(game), 8)


@pytest.mark.parametrize(
    ("rate", "match"),
    [
        (lambda: ratings({("a", "a"): Score(1, 0, 0)}), "scores must be of two players each, 'a' plays itself"),
        (lambda: ratings([("a", "b")]), "scores must be a dict of Score by pair of names, got list"),
        (lambda: ratings({"ab": Score(1, 0, 0)}), "scores must be a dict of Score by pair of names, got .* by 'ab'"),
        (lambda: ratings({("a", "b"): (1, 0, 0)}), r"scores must be a dict .*, got \(1, 0, 0\) by \('a', 'b'\)"),
        (
            lambda: ratings({("a", "b"): Score(10, 0, 0)}, prior_games=1e-300),
            r"prior_games \(1e-300\) must be larger beside these scores",
        ),
        (lambda: Score(-1, 0, 0), "wins must be at least 0, got -1"),
        (lambda: Score(2, 0, 1, 4), "distinct must be at most the 3 games, got 4"),
    ],
)
def test_scores_that_cannot_be_are_refused(rate, match):
    with pytest.raises((TypeError, ValueError), match=match):
        rate()


def test_greedy_refuses_no_numbers_and_moves_where_all_is_masked():
    game = TicTacToe()
    state = game.step(game.init(1), np.array([0]))
    with pytest.raises(ValueError, match="evaluator must return numbers as logits of legal actions, got NaN"):
        greedy_player(game, lambda seen: (torch.full((len(seen), 9), float("nan")), torch.zeros(len(seen))))(
            state, None
        )
    masked = greedy_player(game, lambda seen: (torch.full((len(seen), 9), -torch.inf), torch.zeros(len(seen))))
    assert masked(state, None).tolist() == [1]
