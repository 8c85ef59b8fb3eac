"""Trainers, environments, hooks, optimisers and snapshots for PyTorch."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ai.train import loss, opt, schedule, snapshot
from ai.train.contrastive import Contrastive
from ai.train.diffusion import Diffusion
from ai.train.early_stopping import EarlyStopping
from ai.train.ema import Ema
from ai.train.engine.log import is_logging, log
from ai.train.engine.ranks import rank
from ai.train.engine.run import NonFiniteError, Run, StopTraining
from ai.train.engine.whole_set import measure
from ai.train.env import Classify, Distill, NextToken, Reconstruct, Regress
from ai.train.gan import AdversarialAutoencoder, Gan
from ai.train.hook import Hook, HookInterface
from ai.train.hooks.interval import Interval, epochs, every, logarithmic, seconds
from ai.train.loop.options import TrainOptions
from ai.train.multi_trainer import MultiTrainer
from ai.train.rl.dqn import DQN
from ai.train.rl.iql import IQL
from ai.train.rl.muzero import MuZero
from ai.train.rl.ppo import PPO
from ai.train.rl.sac import SAC
from ai.train.rl.search_targets import RL
from ai.train.rl.support import Support
from ai.train.rl_trainer import RLTrainer
from ai.train.snapshot import Snapshots
from ai.train.trainer import Trainer

if TYPE_CHECKING:
    from ai.train import parallel as parallel
    from ai.train.distributed.sharded import export as export
    from ai.train.lr_search import find_lr as find_lr
    from ai.train.planning import plan as plan
    from ai.train.profiling import profile as profile

__all__ = [
    "DQN",
    "IQL",
    "PPO",
    "RL",
    "SAC",
    "AdversarialAutoencoder",
    "Classify",
    "Contrastive",
    "Diffusion",
    "Distill",
    "EarlyStopping",
    "Ema",
    "Gan",
    "Hook",
    "HookInterface",
    "Interval",
    "MuZero",
    "MultiTrainer",
    "NextToken",
    "NonFiniteError",
    "RLTrainer",
    "Reconstruct",
    "Regress",
    "Run",
    "Snapshots",
    "StopTraining",
    "Support",
    "TrainOptions",
    "Trainer",
    "epochs",
    "every",
    "export",
    "find_lr",
    "is_logging",
    "log",
    "logarithmic",
    "loss",
    "measure",
    "opt",
    "parallel",
    "plan",
    "profile",
    "rank",
    "schedule",
    "seconds",
    "snapshot",
]


if not TYPE_CHECKING:  # seen by a type checker, a module __getattr__ would type every misspelling as Any

    def __getattr__(name: str) -> Any:
        # torch.distributed and the profiler take longer to import than everything above together.
        if name == "parallel":
            return import_module("ai.train.parallel")
        if name not in _LAZY:
            hint = f": what others call so is {_ELSEWHERE[name]}" if name in _ELSEWHERE else ""
            raise AttributeError(f"module 'ai.train' has no attribute {name!r}{hint}")
        value = getattr(import_module(f"ai.train.{_LAZY[name]}"), name)
        globals()[name] = value
        return value

    # What Lightning and Keras call a thing -> ours, for whoever asks by their name.
    _ELSEWHERE = {
        "Callback": "ai.train.HookInterface",
        "LightningModule": "a function env(model, batch, step) that returns the loss",
        "ModelCheckpoint": "ai.Trial(path, save_snapshots=True)",
        "TensorBoardLogger": "an ai.Trial, and ai-lab export PATH --to tensorboard",
        "optim": "ai.opt",
    }
    _LAZY = {"export": "distributed.sharded", "find_lr": "lr_search", "plan": "planning", "profile": "profiling"}

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
