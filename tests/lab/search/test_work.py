import hashlib
import json
import signal
import threading
import types
from pathlib import Path

import pytest
from torch import nn

from ai.lab import Experiment, Record, cli
from ai.lab.search import beats, work
from ai.lab.search.loop import Run
from ai.lab.search.losses import MAX_LOSSES
from ai.lab.search.offer import take_offer
from ai.train import opt
from tests import warm_python
from tests.lab.search.trained import OPTIONS, train

QUIET = {"progress": False}
WORK = "import sys; from ai.lab.cli import main; sys.exit(main(['work', *sys.argv[1:]]))"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Returns the rows of a search that nothing disturbs."""
    experiment = Experiment(tmp_path_factory.mktemp("whole") / "e", **OPTIONS)
    return [row[:4] for row in experiment.run(3, train, **QUIET).trials()]


@pytest.mark.parametrize(("number", "begins"), [(signal.SIGKILL, 20), (signal.SIGTERM, 26)])
def test_a_trial_whose_worker_is_gone_goes_on_elsewhere_bit_for_bit(tmp_path, whole, capsys, number, begins):
    ends = (str(tmp_path / "flag"), int(number))
    experiment = Experiment(tmp_path / "e", **OPTIONS)
    experiment.offer(3, lambda trial: train(trial, ends))
    if number == signal.SIGKILL:
        (tmp_path / "work.py").write_text(WORK)
        assert warm_python.run(tmp_path / "work.py", tmp_path / "e", folder=tmp_path).returncode == -9
    else:
        with pytest.raises(SystemExit) as ended:
            cli.main(["work", str(tmp_path / "e")])
        assert ended.value.code == 0
    capsys.readouterr()
    assert cli.main(["work", str(tmp_path / "e")]) == 0
    lines = [line.split()[:3] for line in capsys.readouterr().out.splitlines() if line.startswith("trial")]
    assert lines == [["trial", "1", "finished"], ["trial", "2", "finished"]]
    assert [row[:4] for row in experiment.trials()] == whole
    record = Record(experiment.trial_path(1))
    assert len(record.meta["sessions"]) == 2
    assert record.meta["started_step"] == begins
    steps = record.metrics()["loss"].steps.tolist()
    assert steps == sorted(set(steps))


def test_a_lost_trial_that_never_resumes_begins_anew_in_a_clean_folder(tmp_path, whole):
    experiment = Experiment(tmp_path / "e", **OPTIONS)
    with pytest.raises(SystemExit):
        experiment.run(3, lambda trial: train(trial, (tmp_path / "flag", signal.SIGINT), resumes=False), **QUIET)
    assert experiment.trials()[1].state == "interrupted"
    assert sorted(Record(experiment.trial_path(1)).snapshots())
    experiment.run(3, lambda trial: train(trial, resumes=False), **QUIET)
    assert [row[:4] for row in experiment.trials()] == whole
    record = Record(experiment.trial_path(1))
    assert record.meta["started_step"] == 0
    assert record.metrics()["loss"].steps.tolist() == [0, 5, 10, 15, 20, 25, 29]
    assert sorted(record.snapshots()) == [10, 20, 30]


def test_a_trial_that_takes_every_process_with_it_counts_as_failed_and_the_search_goes_on(tmp_path):
    experiment = Experiment(tmp_path / "e", search="random")
    for _ in range(MAX_LOSSES + 1):
        assert not experiment._search.has(1)
        asked = experiment.study.ask()
        experiment._search.note(asked)
        assert asked.number == 0
    assert experiment._search.has(1)
    assert [row.state for row in experiment.trials()] == ["dead"]
    assert [row.state for row in experiment.run(2, lambda trial: 1.0, **QUIET).trials()] == ["dead", "finished"]


def test_a_trial_that_gets_on_between_its_losses_is_not_given_up(tmp_path):
    experiment = Experiment(tmp_path / "e", search="random")
    for step in range(MAX_LOSSES + 1):
        assert not experiment._search.has(1)
        asked = experiment.study.ask()
        experiment._search.note(asked)
        trial = experiment._search.begin(asked)
        trial.resume(model := nn.Linear(1, 1), optimizer := opt.sgd(model))
        trial.save_snapshot(model, optimizer, step)
        trial._writer.end("running")
    assert not experiment._search.has(1)
    assert experiment.study.trials[0].user_attrs["losses"] == [1, MAX_LOSSES]


def test_who_stays_takes_up_what_another_loses_later(tmp_path, monkeypatch):
    experiment, other = Experiment(tmp_path / "e", search="random"), Experiment(tmp_path / "e", search="random")
    asked = other.study.ask()
    other._search.note(asked)
    held = other._search.begin(asked)
    run, rows = Run(2, lambda trial: trial.hp.lin("x", 0, 1)), []
    work.work_on(experiment._search, run, rows.append)
    assert [row.number for row in rows] == [1]
    looks = []

    def lose_it(seconds) -> None:
        looks.append(seconds)
        if len(looks) == 3:
            held._writer.end("running")

    monkeypatch.setattr(work, "time", types.SimpleNamespace(sleep=lose_it))
    work.work_on(experiment._search, run, rows.append, stay=True)
    assert [row.number for row in rows] == [1, 0]
    assert len(looks) == 3


def test_without_a_folder_the_database_tells_what_is_offered_and_who_lives(tmp_path, monkeypatch, capsys):
    url = f"sqlite:///{tmp_path}/search.db"
    offering = Experiment(tmp_path / "there" / "e", storage=url, search="random")
    offering.offer(2, lambda trial: trial.hp.lin("x", 0, 1) + len("x" * 50_000))
    elsewhere = offering.study.ask()
    monkeypatch.setenv("AI_LAB_PATH", str(tmp_path / "here"))
    monkeypatch.setenv("AI_LAB_STORAGE", url)
    monkeypatch.setattr(work, "_LOOK_S", 0.01)
    with beats.Beat(elsewhere):
        assert cli.main(["work", "e"]) == 0
    monkeypatch.setattr(beats, "BEAT_S", 0.002)
    assert capsys.readouterr().out.startswith("trial 1 finished 5000")
    assert (tmp_path / "here" / "e" / "trials" / "00001" / "meta.json").exists()
    assert cli.main(["work", "e", "--stay"]) == 0  # its beat stands still
    assert capsys.readouterr().out.startswith("trial 0 finished 5000")
    assert [row.state for row in offering.trials()] == ["finished", "finished"]
    assert "search.db" not in (tmp_path / "there" / "e" / "work.job").read_text(errors="replace")
    offering.study._storage._backend.engine.dispose()


def test_what_cannot_be_worked_on_is_said_in_one_sentence(tmp_path, capsys):
    def says(*arguments) -> str:
        assert cli.main(["work", *arguments]) == 1
        return capsys.readouterr().err

    path, url = str(tmp_path / "e"), f"sqlite:///{tmp_path}/search.db"
    experiment = Experiment(path)
    assert f"nothing is offered in {path}: experiment.offer(n, fn) of a script" in says(path)
    assert f"storage must be a database that is there, and there is no {tmp_path}/search.db" in says(
        path, "--storage", url
    )
    Experiment(path, storage=url).study._storage._backend.engine.dispose()
    assert "nothing is offered in the study 'ai-lab-e' of the database" in says(path, "--storage", url)
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        experiment.offer(0, train)
    lock = threading.Lock()
    with pytest.raises(TypeError, match=r"cannot be given this function or source: .*lock"):
        experiment.offer(1, lambda trial: lock.acquire())
    assert not (tmp_path / "e" / "work.job").exists()
    experiment.offer(1, lambda trial: 0.0)
    header, _, payload = (tmp_path / "e" / "work.job").read_bytes().partition(b"\n")
    other = json.loads(header)
    other["versions"]["code of ai-lab"] = "0123456789"  # a checkout that was edited since
    (tmp_path / "e" / "work.job").write_bytes(json.dumps(other).encode() + b"\n" + payload)
    with pytest.warns(UserWarning, match="the code of ai-lab is another one than where e was offered, though the ver"):
        take_offer(Path(path), None)
    other["versions"]["ai-lab"] = "9.9"
    (tmp_path / "e" / "work.job").write_bytes(json.dumps(other).encode() + b"\n" + payload)
    assert "but 9.9 where e was offered: install the same version" in says(path)
    for damaged in (b"{", b"[]\nx", b"{}\nx", header + b"\n" + payload[:-9]):
        (tmp_path / "e" / "work.job").write_bytes(damaged)
        assert f"what is offered in {path} is damaged, or is just being offered: try again" in says(path)
    payload = b"cnowhere\nfunction\n."
    whole = json.loads(header) | {"sha256": hashlib.sha256(payload).hexdigest()}
    (tmp_path / "e" / "work.job").write_bytes(json.dumps(whole).encode() + b"\n" + payload)
    assert f"what is offered in {path} cannot be read here: ModuleNotFoundError: No module named 'nowhere'" in says(
        path
    )
    through = Experiment(tmp_path / "d", storage=url).offer(1, lambda trial: 0.0)
    assert "is searched through a database: say which by --storage, or $AI_LAB_STORAGE" in says(str(tmp_path / "d"))
    through.study._storage._backend.engine.dispose()
    Experiment(path, clean=True)
    assert not (tmp_path / "e.kept").exists()
