"""Pictures that more than one example makes: grids, animations, attention maps."""

from ai.examples.figures.animation import interpolate, save_animation
from ai.examples.figures.attention import save_attention
from ai.examples.figures.grid import grid, save_grid

__all__ = ["grid", "interpolate", "save_animation", "save_attention", "save_grid"]
