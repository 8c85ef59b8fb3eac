"""Play against a network, in the browser or at the terminal; small trained networks of three games ship with it."""

from ai.examples.play.nets import GAMES, load

__all__ = ["GAMES", "load"]
