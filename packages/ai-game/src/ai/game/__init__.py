"""Batch-first games and batched tree search over arrays."""

from ai.game.cartpole import CartPole as CartPole
from ai.game.check import GameFault as GameFault
from ai.game.check import check as check
from ai.game.connect4 import ConnectFour as ConnectFour
from ai.game.protocol import Game as Game
from ai.game.sliding import SlidingTiles as SlidingTiles
from ai.game.tictactoe import TicTacToe as TicTacToe

__all__ = ["CartPole", "ConnectFour", "Game", "GameFault", "SlidingTiles", "TicTacToe", "check"]
