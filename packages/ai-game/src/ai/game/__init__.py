"""Batch-first games and batched tree search over arrays."""

from ai.game.augment import Augment as Augment
from ai.game.cartpole import CartPole as CartPole
from ai.game.check import GameError as GameError
from ai.game.check import check as check
from ai.game.connect4 import ConnectFour as ConnectFour
from ai.game.dynamics import LearnedModel as LearnedModel
from ai.game.evaluator import CachedEvaluator as CachedEvaluator
from ai.game.evaluator import NetEvaluator as NetEvaluator
from ai.game.evaluator import RolloutEvaluator as RolloutEvaluator
from ai.game.evaluator import StateEvaluator as StateEvaluator
from ai.game.gumbel import Gumbel as Gumbel
from ai.game.perfect import Solution as Solution
from ai.game.perfect import solve as solve
from ai.game.protocol import Game as Game
from ai.game.protocol import SymmetricGame as SymmetricGame
from ai.game.puct import Puct as Puct
from ai.game.search import Found as Found
from ai.game.search import Search as Search
from ai.game.selfplay import Play as Play
from ai.game.selfplay import SelfPlay as SelfPlay
from ai.game.sliding import SlidingTiles as SlidingTiles
from ai.game.tictactoe import TicTacToe as TicTacToe
