"""Trainers, environments, hooks, optimisers and snapshots for PyTorch."""

from ai.train import opt as opt
from ai.train import snapshot as snapshot
from ai.train.env import Classify as Classify
from ai.train.env import Reconstruct as Reconstruct
from ai.train.env import Regress as Regress
from ai.train.hook import EarlyStopping as EarlyStopping
from ai.train.hook import Hook as Hook
from ai.train.hook import HookInterface as HookInterface
from ai.train.interval import Interval as Interval
from ai.train.interval import every as every
from ai.train.interval import logarithmic as logarithmic
from ai.train.interval import seconds as seconds
from ai.train.record import is_logging as is_logging
from ai.train.record import log as log
from ai.train.run import NonFiniteError as NonFiniteError
from ai.train.run import Run as Run
from ai.train.run import StopTraining as StopTraining
from ai.train.snapshot import Snapshots as Snapshots
from ai.train.trainer import Trainer as Trainer
