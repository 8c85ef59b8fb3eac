"""Worked examples, each imported on first use."""

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ai.examples import alphazero as alphazero
    from ai.examples import autoencoder as autoencoder
    from ai.examples import diffusion as diffusion
    from ai.examples import dqn as dqn
    from ai.examples import figures as figures
    from ai.examples import gpt as gpt
    from ai.examples import metrics as metrics
    from ai.examples import mnist as mnist
    from ai.examples import muzero as muzero
    from ai.examples import play as play
    from ai.examples import ppo as ppo
    from ai.examples import sac as sac
    from ai.examples import sampled_muzero as sampled_muzero
    from ai.examples import stylegan2 as stylegan2
    from ai.examples import vit as vit

__all__ = [
    "alphazero",
    "autoencoder",
    "diffusion",
    "dqn",
    "figures",
    "gpt",
    "metrics",
    "mnist",
    "muzero",
    "play",
    "ppo",
    "sac",
    "sampled_muzero",
    "stylegan2",
    "vit",
]

if not TYPE_CHECKING:  # seen by a type checker, a module __getattr__ would type every misspelling as Any

    def __getattr__(name: str) -> ModuleType:
        if name in __all__:
            return import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
