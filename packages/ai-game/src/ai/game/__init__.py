"""Batch-first games and batched tree search over arrays."""

from ai.game.arena import Rating as Rating
from ai.game.arena import Score as Score
from ai.game.arena import match as match
from ai.game.arena import ratings as ratings
from ai.game.arena import round_robin as round_robin
from ai.game.augment import Augment as Augment
from ai.game.cartpole import CartPole as CartPole
from ai.game.check import GameError as GameError
from ai.game.check import check as check
from ai.game.connect4 import ConnectFour as ConnectFour
from ai.game.connect4_solver import ConnectFourSolver as ConnectFourSolver
from ai.game.connect4_solver import decisive_positions as decisive_positions
from ai.game.dynamics import LearnedModel as LearnedModel
from ai.game.evaluator import CachedEvaluator as CachedEvaluator
from ai.game.evaluator import NetEvaluator as NetEvaluator
from ai.game.evaluator import RolloutEvaluator as RolloutEvaluator
from ai.game.evaluator import StateEvaluator as StateEvaluator
from ai.game.gumbel import Gumbel as Gumbel
from ai.game.gymnasium_game import GymnasiumGame as GymnasiumGame
from ai.game.perfect import Solution as Solution
from ai.game.perfect import solve as solve
from ai.game.players import Player as Player
from ai.game.players import greedy_player as greedy_player
from ai.game.players import human_player as human_player
from ai.game.players import perfect_player as perfect_player
from ai.game.players import random_player as random_player
from ai.game.players import search_player as search_player
from ai.game.protocol import Game as Game
from ai.game.protocol import SymmetricGame as SymmetricGame
from ai.game.puct import Puct as Puct
from ai.game.search import Found as Found
from ai.game.search import Search as Search
from ai.game.selfplay import Play as Play
from ai.game.selfplay import SelfPlay as SelfPlay
from ai.game.sliding import SlidingTiles as SlidingTiles
from ai.game.tictactoe import TicTacToe as TicTacToe

__all__ = [
    "Augment",
    "CachedEvaluator",
    "CartPole",
    "ConnectFour",
    "ConnectFourSolver",
    "Found",
    "Game",
    "GameError",
    "Gumbel",
    "GymnasiumGame",
    "LearnedModel",
    "NetEvaluator",
    "Play",
    "Player",
    "Puct",
    "Rating",
    "RolloutEvaluator",
    "Score",
    "Search",
    "SelfPlay",
    "SlidingTiles",
    "Solution",
    "StateEvaluator",
    "SymmetricGame",
    "TicTacToe",
    "check",
    "decisive_positions",
    "greedy_player",
    "human_player",
    "match",
    "perfect_player",
    "random_player",
    "ratings",
    "round_robin",
    "search_player",
    "solve",
]
