"""What a trial saved last."""

from pathlib import Path

from torch import nn

from ai.lab import Trial
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
    chosen = path or trial.snapshots.latest()
    if chosen is None:
        raise FileNotFoundError(f"trial {trial.path} has no snapshot")
    model.load_state_dict(snapshot.load_model_state(chosen, ema=True))
    model.eval()
