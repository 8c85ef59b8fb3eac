"""A study: a directory of trials, experiments and notes around one question."""

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ai.lab.arguments import check_switch, check_text, check_texts
from ai.lab.experiment import Direction, Experiment
from ai.lab.files.alias import point_alias
from ai.lab.files.folder import find, mark, read_marker, refuse_hidden, resolve
from ai.lab.files.removal import remove_unowned
from ai.lab.record import Record
from ai.lab.report.compare import Comparison, compare
from ai.lab.trial import Trial


class Study:
    """A directory of trials, experiments and anything else. It may be moved and renamed as a whole.

    Args:
        path: The folder; a relative one starts at `$AI_LAB_PATH`, else at `./ai-lab`.
        clean: Delete an earlier study in this folder, with all that it holds.

    Raises:
        ValueError: the folder holds something that the lab did not make, or another kind of record.
        OwnedError: `clean` is asked for and a live process writes a trial in it.

    Example:
        >>> import tempfile
        >>> study = Study(tempfile.mkdtemp() + "/losses")
        >>> for name, loss in {"l1": 0.5, "l2": 0.25}.items():
        ...     with study.trial(name, system_interval_s=None) as trial:
        ...         trial.log(0, {"loss": loss})
        >>> print(study.compare(metrics=["loss"]))
        trial  state     step  loss
        l1     finished  0     0.5
        l2     finished  0     0.25
    """

    def __init__(self, path: str | os.PathLike[str], *, clean: bool = False) -> None:
        check_switch(clean=clean)
        self.path = resolve(path)
        if clean and read_marker(self.path) is not None:
            remove_unowned(self.path)
        self.id = mark(self.path, "study")

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.name

    def trial(self, name: str, **how: Any) -> Trial:
        """Returns the trial of that name in this study, made if missing.

        Args:
            name: The folder inside the study; `'part/name'` makes a sub-folder.
            how: What `Trial` takes.
        """
        return Trial(self._inside(name), **how)

    def experiment(
        self,
        name: str,
        direction: Direction | Mapping[str, Direction] = "min",
        **how: Any,
    ) -> Experiment:
        """Returns the experiment of that name in this study, made if missing; `how` is what `Experiment` takes."""
        return Experiment(self._inside(name), direction, **how)

    def alias(self, name: str, trial: str) -> Path:
        """Makes `@name` in the study's folder lead to one of its trials, and returns that path.

        Wherever a folder is taken, the alias is: `study.trial("@best")`, `ai-lab resume losses@best`,
        `ai-infer serve m=losses/@best`.

        Raises:
            ValueError: the name is no plain word, or the study has no such trial.
        """
        records = self.records()
        if trial not in records:
            raise ValueError(f"trial must be one of {self.path} ({', '.join(records) or 'none'}), got {trial!r}")
        return point_alias(self.path, name, records[trial].path)

    def records(self) -> dict[str, Record]:
        """Returns every trial of the study by its path inside it, those of experiments included."""
        return {str(path.relative_to(self.path)): Record(path) for path in find(self.path, "trial")}

    def ls(self) -> dict[str, str]:
        """Returns what the study holds: `{path inside it: kind, state}`; trials of an experiment are not listed."""
        found = {}
        for path in find(self.path):
            marker = read_marker(path)
            name = path.relative_to(self.path)
            if path == self.path or marker is None or _in_experiment(path, self.path):
                continue
            found[str(name)] = f"trial, {Record(path).state}" if marker["kind"] == "trial" else str(marker["kind"])
        return found

    def compare(
        self,
        names: Sequence[str] = (),
        *,
        metrics: Sequence[str] = (),
        config: Sequence[str] = (),
        over: Sequence[str] = (),
        best: Mapping[str, str] | None = None,
    ) -> Comparison:
        """Returns a table of trials beside each other: `.to_markdown()`, `.to_latex()`, `.to_pandas()`, `.plot()`.

        Args:
            names: Trials, by path inside the study; by default all that belong to no experiment.
            metrics: Columns of last values; all by default.
            config: Columns of configuration; by default those in which the trials differ.
            over: Names of the configuration that only repeat a run, such as `['seed']`: trials that differ in nothing
                else are one row, with mean ± standard deviation.
            best: `'min'` or `'max'` by metric, such as `{"val_loss": "min"}`: a column `best …` more, of the best value
                that each run ever had.
        """
        check_texts(names=names, metrics=metrics, config=config, over=over)
        records = self.records()
        chosen = list(names) or [name for name, record in records.items() if not _in_experiment(record.path, self.path)]
        for name in chosen:
            if name not in records:
                raise ValueError(f"names must be trials of {self.path} ({', '.join(records) or 'none'}), got {name!r}")
        these = {name: records[name] for name in chosen}
        return compare(these, metrics, config, self.path / "comparison.png", over, best)

    def note(self, text: str) -> None:
        """Appends a dated paragraph to the study's `notes.md`."""
        check_text(text=text)
        with open(self.path / "notes.md", "a", encoding="utf-8") as file:
            file.write(f"**{time.strftime('%Y-%m-%d %H:%M')}** {text.strip()}\n\n")

    @property
    def notes(self) -> str:
        """What was noted."""
        path = self.path / "notes.md"
        return path.read_text(encoding="utf-8") if path.exists() else ""

    def _inside(self, name: str) -> Path:
        check_text(name=name)
        path = Path(os.path.normpath(self.path / name))
        if not name or self.path not in path.parents:
            raise ValueError(f"name must be a path inside the study, got {name!r}")
        refuse_hidden("name", path.relative_to(self.path))
        return path

    def __repr__(self) -> str:
        return f"Study({str(self.path)!r})"


def _in_experiment(path: Path, root: Path) -> bool:
    for parent in path.parents:
        if parent == root:
            return False
        marker = read_marker(parent)
        if marker is not None and marker["kind"] == "experiment":
            return True
    return False
