"""Errors whose own words raise: what they ended says their type, and nothing is raised in their place."""

import pytest

from ai.data.workers.error_text import LONGEST
from ai.lab import Alerts, Experiment, Record, Trial

HOW = {"system_interval_s": None, "progress": False}
TOLD = "BrokenError, which cannot be told"


class BrokenError(ValueError):
    """As of an error that was given an object which cannot be shown."""

    def __str__(self) -> str:
        raise AttributeError("no words")

    __repr__ = __str__


class BrokenLineError(SyntaxError):
    """Whose traceback cannot be made: Python takes a syntax error's line for text."""

    def __init__(self) -> None:
        super().__init__("bad", ("f.py", 1, 1, 5))


def fail(*_: object) -> float:
    raise BrokenError


@pytest.mark.parametrize(
    ("kind", "told"), [(BrokenError, TOLD), (BrokenLineError, "BrokenLineError: bad (f.py, line 1)")]
)
def test_a_trial_records_what_ended_it_and_raises_that(kind, told, tmp_path):
    alerts = []
    with pytest.raises(kind), Trial(tmp_path / "t", loggers=[Alerts(alerts.append)], **HOW) as trial:
        raise kind
    assert trial.record.meta["error"] == told
    assert trial.state == "failed"
    assert [one.text for one in alerts] == [f"t: failed by {told}"]
    assert kind.__name__ in (tmp_path / "t" / "log.txt").read_text()


def test_a_logger_or_receiver_that_raises_one_costs_itself_alone(tmp_path, capsys):
    with Trial(tmp_path / "t", loggers=[fail, Alerts(fail)], **HOW) as trial:
        for step in range(2):
            trial.log(step, {"loss": 1.0})
        with pytest.raises(ValueError, match=f"^note 'x' must be what JSON can hold: {TOLD}$"):
            trial.note(x=type("Value", (), {"__str__": fail})())
    assert trial.metrics()["loss"].steps.tolist() == [0, 1]
    said = capsys.readouterr().err
    assert f"a logger failed and gets no more rows: {TOLD}" in said
    assert f"an alert was not taken: {TOLD}" in said


def test_an_end_that_cannot_be_recorded_is_not_raised_in_its_place(tmp_path, capsys, monkeypatch):
    trial = Trial(tmp_path / "t", **HOW)
    trial.log(0, {"loss": 1.0})
    monkeypatch.setattr("ai.lab.recording.session.describe_end", fail)
    with pytest.raises(BrokenError), trial:
        raise BrokenError
    assert f"could not be recorded: {TOLD}" in capsys.readouterr().err


def test_a_search_raises_what_its_objective_or_callback_did(tmp_path):
    experiment = Experiment(tmp_path / "e", search="random")
    with pytest.raises(BrokenError):
        experiment.run(1, fail, progress=False)
    with pytest.raises(BrokenError):
        experiment.run(2, lambda trial: 1.0, callbacks=[fail], progress=False)
    # What was raised counts as no trial that was asked for, what is caught does.
    experiment.run(3, fail, catch=(BrokenError,), progress=False)
    ends = [(row.state, Record(row.path).meta.get("error")) for row in experiment.trials()]
    assert ends == [("failed", TOLD), ("finished", None), ("failed", TOLD), ("failed", TOLD)]


def test_of_very_long_words_the_beginning_is_recorded_and_the_log_has_them_whole(tmp_path):
    alerts = []
    with pytest.raises(ValueError, match="x"), Trial(tmp_path / "t", loggers=[Alerts(alerts.append)], **HOW) as trial:
        raise ValueError("x" * 1_000_000)
    told = f"ValueError: {'x' * LONGEST}… (1,000,000 characters)"
    assert trial.record.meta["error"] == told
    assert [one.text for one in alerts] == [f"t: failed by {told}"]
    assert "x" * 1_000_000 in (tmp_path / "t" / "log.txt").read_text()
