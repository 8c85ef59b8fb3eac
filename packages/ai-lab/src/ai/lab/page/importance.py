"""How much each hyper-parameter of a search decides its score, as Optuna judges it from the search's own journal."""

import threading
from pathlib import Path
from typing import Any

JOURNAL = "optuna.log"
FEWEST = 8
"""Of fewer scored trials nothing is told."""


class Importances:
    """The importances of searches, worked out again when their journals have grown."""

    def __init__(self) -> None:
        self._known: dict[Path, tuple[int, dict[str, Any]]] = {}
        self._lock = threading.Lock()  # Optuna's storages are read by one thread at a time

    def of(self, folder: Path, identity: str) -> dict[str, Any]:
        """Returns `parameters`, a share each that sum to 1, those of every trial; or `reason`, why there are none.

        Nothing is written, whoever searches meanwhile.

        Args:
            folder: The experiment's.
            identity: The experiment's.
        """
        journal = folder / JOURNAL
        with self._lock:
            try:
                size = journal.stat().st_size
            except OSError:
                return {"reason": "this search keeps its trials in a database: ask Optuna there"}
            if self._known.get(folder, (-1,))[0] != size:
                self._known[folder] = (size, _importance(journal, f"ai-lab-{identity}"))
            return self._known[folder][1]


def _importance(journal: Path, name: str) -> dict[str, Any]:
    import warnings

    import optuna
    from optuna.storages.journal import JournalFileBackend

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of how Optuna feels about its own evaluator
        try:
            study = optuna.load_study(
                study_name=name, storage=optuna.storages.JournalStorage(JournalFileBackend(str(journal)))
            )
            if len(study.directions) > 1:
                return {"reason": "this search has several objectives"}
            trials = study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.COMPLETE])
            if len(trials) < FEWEST:
                return {"reason": f"{FEWEST} scored trials are needed, there are {len(trials)}"}
            found = optuna.importance.get_param_importances(study)
        except (ValueError, KeyError, RuntimeError, OSError) as error:
            return {"reason": str(error)}
    return {"parameters": {key: float(share) for key, share in found.items()}}
