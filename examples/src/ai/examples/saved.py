"""What a trial saved last."""

from torch import nn

from ai.lab import Trial
from ai.train import snapshot


def load_averaged(model: nn.Module, trial: Trial) -> None:
    """Gives `model` the weights of a trial's newest snapshot, averaged where there are averages, for evaluation.

    Args:
        model: Of the shape that was saved.
        trial: Any trial with snapshots.

    Raises:
        FileNotFoundError: There is no snapshot.
    """
    newest = trial.snapshots.latest()
    if newest is None:
        raise FileNotFoundError(f"trial {trial.path} has no snapshot")
    model.load_state_dict(snapshot.load_model_state(newest, ema=True))
    model.eval()
