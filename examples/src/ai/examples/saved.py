"""What a trial saved last."""

import os
from pathlib import Path

from torch import nn

from ai.lab import Trial
from ai.model.saved import build
from ai.train import snapshot


def load_averaged(model: nn.Module, trial: Trial, path: Path | None = None) -> None:
    """Gives `model` the weights of one of a trial's snapshots, averaged where there are averages, for evaluation.

    Args:
        model: Of the shape that was saved.
        trial: Any trial with snapshots.
        path: The snapshot; None for the newest.

    Raises:
        FileNotFoundError: There is no snapshot.
    """
    model.load_state_dict(snapshot.load_model_state(path or _newest(trial), ema=True))
    model.eval()


def averaged_model(path: str | os.PathLike[str], *, key: str | None = None) -> nn.Module:
    """Returns the model of a trial's newest snapshot as the snapshot says that it was built, for evaluation.

    Args:
        path: The trial's folder.
        key: Which of its models; None for the only one. Its weights are averaged where there are averages.

    Raises:
        FileNotFoundError: There is no snapshot.
    """
    newest = _newest(Trial(path))
    model = build(newest, key=key)
    model.load_state_dict(snapshot.load_model_state(newest, ema=True, key=key))
    return model.eval()


def _newest(trial: Trial) -> Path:
    chosen = trial.snapshots.latest()
    if chosen is None:
        raise FileNotFoundError(f"trial {trial.path} has no snapshot")
    return chosen
