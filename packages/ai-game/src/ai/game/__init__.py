"""Batch-first games and batched tree search over arrays."""

from ai.game.adapters.gymnasium_game import GymnasiumGame as GymnasiumGame
from ai.game.adapters.open_spiel_game import OpenSpielGame as OpenSpielGame
from ai.game.adapters.pgx_game import PgxGame as PgxGame
from ai.game.environments.acting import ByActor as ByActor
from ai.game.environments.acting import ByPolicy as ByPolicy
from ai.game.environments.acting import BySearch as BySearch
from ai.game.environments.acting import EpsilonGreedy as EpsilonGreedy
from ai.game.environments.evaluation import evaluate as evaluate
from ai.game.environments.games import GameEnvironments as GameEnvironments
from ai.game.environments.gymnasium_environments import GymnasiumEnvironments as GymnasiumEnvironments
from ai.game.environments.parallel_environments import ParallelEnvironments as ParallelEnvironments
from ai.game.environments.protocol import Environments as Environments
from ai.game.environments.rollouts import Rollouts as Rollouts
from ai.game.environments.vector_environments import VectorEnvironments as VectorEnvironments
from ai.game.games.breakthrough import Breakthrough as Breakthrough
from ai.game.games.cartpole import CartPole as CartPole
from ai.game.games.connect4 import ConnectFour as ConnectFour
from ai.game.games.gomoku import Gomoku as Gomoku
from ai.game.games.hex import Hex as Hex
from ai.game.games.hog import Hog as Hog
from ai.game.games.othello import Othello as Othello
from ai.game.games.sliding import SlidingTiles as SlidingTiles
from ai.game.games.tictactoe import TicTacToe as TicTacToe
from ai.game.games.twenty48 import Twenty48 as Twenty48
from ai.game.kit.check import check as check
from ai.game.kit.mistakes import GameError as GameError
from ai.game.kit.scalar import ScalarChanceGame as ScalarChanceGame
from ai.game.kit.scalar import ScalarGame as ScalarGame
from ai.game.play.arena import Rating as Rating
from ai.game.play.arena import Score as Score
from ai.game.play.arena import match as match
from ai.game.play.arena import ratings as ratings
from ai.game.play.arena import round_robin as round_robin
from ai.game.play.augment import Augment as Augment
from ai.game.play.options import Play as Play
from ai.game.play.players import Player as Player
from ai.game.play.players import greedy_player as greedy_player
from ai.game.play.players import human_player as human_player
from ai.game.play.players import perfect_player as perfect_player
from ai.game.play.players import random_player as random_player
from ai.game.play.players import search_player as search_player
from ai.game.play.selfplay import SelfPlay as SelfPlay
from ai.game.protocol import ChanceGame as ChanceGame
from ai.game.protocol import Game as Game
from ai.game.protocol import SymmetricGame as SymmetricGame
from ai.game.protocol import outcome_for as outcome_for
from ai.game.search.dynamics.learned_luck import StochasticModel as StochasticModel
from ai.game.search.dynamics.learned_model import LearnedModel as LearnedModel
from ai.game.search.evaluator import CachedEvaluator as CachedEvaluator
from ai.game.search.evaluator import NetEvaluator as NetEvaluator
from ai.game.search.evaluator import RolloutEvaluator as RolloutEvaluator
from ai.game.search.evaluator import StateEvaluator as StateEvaluator
from ai.game.search.found import Found as Found
from ai.game.search.rules.gumbel import Gumbel as Gumbel
from ai.game.search.rules.puct import Puct as Puct
from ai.game.search.rules.rule import Rule as Rule
from ai.game.search.rules.rule import ScoredRule as ScoredRule
from ai.game.search.search import Search as Search
from ai.game.search.sides import SymmetricEvaluator as SymmetricEvaluator
from ai.game.solvers.connect4_solver import ConnectFourSolver as ConnectFourSolver
from ai.game.solvers.connect4_solver import decisive_positions as decisive_positions
from ai.game.solvers.exhaustive import Solution as Solution
from ai.game.solvers.exhaustive import solve as solve
from ai.game.solvers.hog_solver import HogSolver as HogSolver

__all__ = [
    "Augment",
    "Breakthrough",
    "ByActor",
    "ByPolicy",
    "BySearch",
    "CachedEvaluator",
    "CartPole",
    "ChanceGame",
    "ConnectFour",
    "ConnectFourSolver",
    "Environments",
    "EpsilonGreedy",
    "Found",
    "Game",
    "GameEnvironments",
    "GameError",
    "Gomoku",
    "Gumbel",
    "GymnasiumEnvironments",
    "GymnasiumGame",
    "Hex",
    "Hog",
    "HogSolver",
    "LearnedModel",
    "NetEvaluator",
    "OpenSpielGame",
    "Othello",
    "ParallelEnvironments",
    "PgxGame",
    "Play",
    "Player",
    "Puct",
    "Rating",
    "RolloutEvaluator",
    "Rollouts",
    "Rule",
    "ScalarChanceGame",
    "ScalarGame",
    "Score",
    "ScoredRule",
    "Search",
    "SelfPlay",
    "SlidingTiles",
    "Solution",
    "StateEvaluator",
    "StochasticModel",
    "SymmetricEvaluator",
    "SymmetricGame",
    "TicTacToe",
    "Twenty48",
    "VectorEnvironments",
    "check",
    "decisive_positions",
    "evaluate",
    "greedy_player",
    "human_player",
    "match",
    "outcome_for",
    "perfect_player",
    "random_player",
    "ratings",
    "round_robin",
    "search_player",
    "solve",
]
