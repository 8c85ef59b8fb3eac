"""Trainers, environments, hooks, optimisers and snapshots for PyTorch."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ai.train import loss as loss
from ai.train import opt as opt
from ai.train import schedule as schedule
from ai.train import snapshot as snapshot
from ai.train.diffusion import Diffusion as Diffusion
from ai.train.ema import Ema as Ema
from ai.train.env import Classify as Classify
from ai.train.env import Reconstruct as Reconstruct
from ai.train.env import Regress as Regress
from ai.train.gan import AdversarialAutoencoder as AdversarialAutoencoder
from ai.train.gan import Gan as Gan
from ai.train.hook import EarlyStopping as EarlyStopping
from ai.train.hook import Hook as Hook
from ai.train.hook import HookInterface as HookInterface
from ai.train.interval import Interval as Interval
from ai.train.interval import every as every
from ai.train.interval import logarithmic as logarithmic
from ai.train.interval import seconds as seconds
from ai.train.multi_trainer import MultiTrainer as MultiTrainer
from ai.train.record import is_logging as is_logging
from ai.train.record import log as log
from ai.train.rl import RL as RL
from ai.train.rl import MuZero as MuZero
from ai.train.rl import Support as Support
from ai.train.rl_trainer import RLTrainer as RLTrainer
from ai.train.run import NonFiniteError as NonFiniteError
from ai.train.run import Run as Run
from ai.train.run import StopTraining as StopTraining
from ai.train.snapshot import Snapshots as Snapshots
from ai.train.trainer import Trainer as Trainer

if TYPE_CHECKING:
    from ai.train import parallel as parallel
    from ai.train.lr_search import find_lr as find_lr
    from ai.train.profiling import profile as profile
    from ai.train.sharded import export as export


if not TYPE_CHECKING:  # seen by a type checker, a module __getattr__ would type every misspelling as Any

    def __getattr__(name: str) -> Any:
        # torch.distributed and the profiler take longer to import than everything above together.
        if name == "parallel":
            return import_module("ai.train.parallel")
        if name not in _LAZY:
            raise AttributeError(f"module 'ai.train' has no attribute {name!r}")
        value = getattr(import_module(f"ai.train.{_LAZY[name]}"), name)
        globals()[name] = value
        return value

    _LAZY = {"export": "sharded", "find_lr": "lr_search", "profile": "profiling"}
