"""Trials, experiments and studies: recorded, comparable, resumable, from plain files.

Nothing heavy is imported before it is used: reading records needs neither torch nor Optuna nor matplotlib.
"""

from ai.lab.config import Config as Config
from ai.lab.experiment import Experiment as Experiment
from ai.lab.files.ownership import OwnedError as OwnedError
from ai.lab.media.classification import Confusion as Confusion
from ai.lab.media.classification import PrecisionRecall as PrecisionRecall
from ai.lab.media.clips import Audio as Audio
from ai.lab.media.clips import Video as Video
from ai.lab.media.kept import Histogram as Histogram
from ai.lab.media.kept import Rows as Rows
from ai.lab.record import Metrics as Metrics
from ai.lab.record import Record as Record
from ai.lab.recording.alerts import Alert as Alert
from ai.lab.recording.alerts import Alerts as Alerts
from ai.lab.search.experiment_trial import ExperimentTrial as ExperimentTrial
from ai.lab.study import Study as Study
from ai.lab.trial import Trial as Trial

__all__ = [
    "Alert",
    "Alerts",
    "Audio",
    "Config",
    "Confusion",
    "Experiment",
    "ExperimentTrial",
    "Histogram",
    "Metrics",
    "OwnedError",
    "PrecisionRecall",
    "Record",
    "Rows",
    "Study",
    "Trial",
    "Video",
]
