"""Searches on an engine, whose workers are threads of this process: what is said, kept, lost and gone on from."""

import _thread
import contextlib
import errno
import json
import os
import pickle
import queue
import shutil
import tempfile
import time
import types
from functools import partial
from pathlib import Path

import numpy as np
import optuna
import pytest
import torch
from torch import nn

from ai.data import Dataset
from ai.data.workers.in_process import InProcess
from ai.data.workers.pickle_by_value import ship
from ai.lab import Experiment, Record
from ai.lab.files.folder import mark, write_json
from ai.lab.files.marks import change_marks, load_marks
from ai.lab.files.ownership import Owner
from ai.lab.files.removal import remove_unowned
from ai.lab.search.elsewhere import file_parts, mirror, trial_copy, trials
from ai.lab.search.elsewhere.driver import _copied
from ai.lab.search.elsewhere.meeting import invite, meet, met
from ai.lab.search.elsewhere.mirror import Mirror
from ai.lab.search.elsewhere.trial_copy import Copy
from ai.lab.search.elsewhere.trials import _remove_litter, serve_trials
from ai.lab.search.losses import MAX_LOSSES
from ai.train import Classify, Trainer, opt

QUIET = {"progress": False}
OPTIONS = {"search": "random", "save_snapshots": True, "save_interval": 10, "log_interval": 5}


@pytest.fixture(autouse=True)
def often(monkeypatch):
    monkeypatch.setattr(mirror, "SYNC_S", 0.005)


@pytest.fixture(autouse=True)
def apart(request, monkeypatch, tmp_path):
    """Has workers see none of the search's folders, unless a test says False; or, once they have met, another disk."""
    where = getattr(request, "param", True)
    if where == "another disk":
        mark(tmp_path / "another", "trial")
        monkeypatch.setattr(trials, "meet", lambda meeting, tell: meet(meeting, tell) and tmp_path / "another")
    elif where:
        monkeypatch.setattr(trials, "meet", lambda meeting, tell: meet(tmp_path / "of another machine", tell))


def train(trial, flag=None) -> float:
    """Trains with dropout for 30 steps; at step 25 of trial 1 it is lost, once `flag` says so."""
    rng = np.random.default_rng(0)
    data = Dataset({"x": rng.normal(size=(80, 8)).astype("float32"), "y": rng.integers(0, 3, 80).astype("uint8")})
    torch.manual_seed(trial.number)
    model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.3), nn.ReLU(), nn.Linear(8, 3))
    optimizer = opt.adamw(model, lr=trial.hp.log("lr", 1e-3, 1e-1))
    loader = data.loader(16, "cpu", train=True, seed=1)
    classify = Classify()
    step = trial.resume(model, optimizer, loader)

    def env(model, batch, step_now):
        if flag and trial.number == 1 and step == 0 and step_now == 25:
            deadline = time.monotonic() + 100
            while not Path(flag).exists():
                assert time.monotonic() < deadline
                time.sleep(0.001)
            raise SystemExit("lost")
        return classify(model, batch, step_now)

    Trainer(env, loader).train(model, optimizer, trial.hook(), step=step, steplimit=30)
    trial.save_sample(30, torch.zeros(1, 3, 4, 4))
    return float(torch.cat([p.detach().flatten() for p in model.parameters()]).double().norm())


class Losing(InProcess):
    """Ends a worker when its snapshot of step 20 has come, and then does `also`."""

    def __init__(self, flag, also=lambda: None):
        super().__init__()
        self.flag, self.also = flag, also

    def start(self, payload, on_message, on_exit):
        def heard(message):
            on_message(message)
            if message[0] == "call" and message[3][:2] == ("commit", "snapshots/000000020") and not self.flag.exists():
                if "00001" in os.listdir(self.flag.parent / "e" / "trials"):
                    self.workers[-1].close()
                    self.also()
                    self.flag.touch()

        return super().start(payload, heard, on_exit)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Returns a search of one process of this machine."""
    return Experiment(tmp_path_factory.mktemp("whole") / "e", **OPTIONS).run(3, train, **QUIET)


def wait_for_workers(engine) -> None:
    """Waits for the workers of a search that has ended: threads of one process draw from one generator."""
    for worker in engine.workers:
        worker.thread.join(100)
        assert not worker.thread.is_alive()


def check_equal(experiment, whole) -> None:
    assert [row[:4] for row in experiment.trials()] == [row[:4] for row in whole.trials()]
    for here, there in zip(experiment.trials(), whole.trials(), strict=True):
        mine, others = Record(here.path), Record(there.path)
        assert mine.state == "finished"
        assert mine.meta["score"] == here.score
        assert mine.meta["sessions"][-1]["argv"] == others.meta["sessions"][-1]["argv"]
        assert list(mine.snapshots()) == list(others.snapshots()) == [10, 20, 30]
        assert mine.metrics()["loss"].values.tolist() == others.metrics()["loss"].values.tolist()
        assert mine.metrics()["loss"].steps.tolist() == others.metrics()["loss"].steps.tolist()
        for step, folder in mine.snapshots().items():
            assert (folder / "model.safetensors").read_bytes() == (
                others.snapshots()[step] / "model.safetensors"
            ).read_bytes()
        assert list(mine.samples()) == list(others.samples()) == [30]
        assert not list(here.path.rglob("*.partial"))


@pytest.mark.parametrize(
    "apart", [True, False, "another disk"], indirect=True, ids=["apart", "one disk", "another since"]
)
def test_what_runs_elsewhere_is_recorded_here_as_if_it_had_run_here(tmp_path, whole, capsys, monkeypatch, request):
    said, take = set(), Copy.take
    monkeypatch.setattr(Copy, "take", lambda self, kind, *what: (said.add(kind), take(self, kind, *what)))
    engine = InProcess()
    experiment = Experiment(tmp_path / "e", **OPTIONS).run(3, train, engine=engine)
    check_equal(experiment, whole)
    assert len(engine.workers) == 1  # it stayed between its trials
    assert "commit" in said
    assert ("part" in said) == ("one disk" not in request.node.name)
    assert [line.split()[:3] for line in capsys.readouterr().out.splitlines() if line.startswith("trial")] == [
        ["trial", str(number), "finished"] for number in range(3)
    ]
    assert experiment.best_trial.path == (tmp_path / "e" / "@best").resolve()


@pytest.mark.parametrize("apart", [True, False], indirect=True, ids=["apart", "one disk"])
def test_a_lost_trial_keeps_its_number_and_goes_on_from_the_copy_bit_for_bit(tmp_path, whole):
    engine = Losing(tmp_path / "flag")
    experiment = Experiment(tmp_path / "e", **OPTIONS).run(
        3, lambda trial: train(trial, tmp_path / "flag"), engine=engine, **QUIET
    )
    check_equal(experiment, whole)
    assert len(engine.workers) == 2
    record = Record(experiment.trial_path(1))
    assert record.meta["started_step"] == 20
    assert len(record.meta["sessions"]) == 2


def test_a_driver_that_is_started_again_goes_on_with_what_was_under_way(tmp_path, whole):
    engine = Losing(tmp_path / "flag", _thread.interrupt_main)
    experiment = Experiment(tmp_path / "e", **OPTIONS)
    with pytest.raises(KeyboardInterrupt):
        experiment.run(3, lambda trial: train(trial, tmp_path / "flag"), engine=engine, **QUIET)
    wait_for_workers(engine)
    assert experiment.trials()[0].state == "finished"
    experiment = Experiment(tmp_path / "e", **OPTIONS).run(3, train, engine=InProcess(), **QUIET)
    check_equal(experiment, whole)
    # 30 where another worker had ended it before this process heard of its interruption
    assert Record(experiment.trial_path(1)).meta["started_step"] in (20, 30)


def test_several_workers_run_as_many_trials_as_were_asked_for(tmp_path):
    def objective(trial) -> float:
        x = trial.hp.lin("x", 0, 1)
        trial.log(0, {"x": x})
        if trial.number == 3:
            raise optuna.TrialPruned
        if trial.number == 4:
            raise ZeroDivisionError
        trial.optuna.set_user_attr("seen", trial.optuna.params["x"])
        return x

    engine, seen = InProcess(), []
    experiment = Experiment(tmp_path / "e", search="random")
    experiment.run(
        12,
        objective,
        n_jobs=3,
        engine=engine,
        catch=(ZeroDivisionError,),
        callbacks=[lambda study, trial: seen.append(trial.number)],
        **QUIET,
    )
    rows = experiment.trials()
    assert sorted(seen) == [row.number for row in rows] == list(range(12))
    assert [row.state for row in rows] == [*["finished"] * 3, "pruned", "failed", *["finished"] * 7]
    assert [Record(row.path).state for row in rows] == [row.state for row in rows]
    assert all(Record(row.path).last()["x"] == row.hparams["x"] for row in rows)
    assert experiment.study.trials[0].user_attrs["seen"] == rows[0].hparams["x"]
    assert len(engine.workers) <= 3
    assert optuna.logging.get_verbosity() == optuna.logging.INFO


def test_an_error_that_does_not_travel_is_caught_by_its_own_class(tmp_path):
    class RefusedError(Exception):
        def __init__(self, *, status):  # pickle gives it no status back
            super().__init__(f"refused with {status}")

    def objective(trial):
        if trial.number == 0:
            raise RefusedError(status=503)
        return 1.0

    experiment = Experiment(tmp_path / "e", search="random")
    experiment.run(2, objective, engine=InProcess(), catch=RefusedError, **QUIET)
    assert [row.state for row in experiment.trials()] == ["failed", "finished"]
    assert Record(experiment.trial_path(0)).meta["error"] == "RefusedError: refused with 503"


def test_each_of_several_seeds_runs_elsewhere(tmp_path):
    experiment = Experiment(tmp_path / "e", search={"a": [1, 2]}, seeds=2)
    experiment.run(2, lambda trial: trial.hp.lst("a", [1, 2]) + trial.seed, engine=InProcess(), **QUIET)
    assert sorted(row.runs for row in experiment.trials()) == [((1.0,), (2.0,)), ((2.0,), (3.0,))]
    assert [record.meta["seed"] for record in experiment.best_runs] == [0, 1]


def test_an_error_of_the_objective_is_raised_here_and_its_trial_failed(tmp_path):
    def objective(trial) -> float:
        raise KeyError("no such thing")

    experiment = Experiment(tmp_path / "e", search="random")
    with pytest.raises(KeyError, match="no such thing") as caught:
        experiment.run(4, objective, n_jobs=2, engine=InProcess(), **QUIET)
    assert "in objective" in "".join(caught.value.__notes__)
    assert "failed" in [row.state for row in experiment.trials()]
    assert "KeyError" in Record(experiment.trials()[0].path).meta["error"]


class Deadly(InProcess):
    """Its workers end at their first word of a trial."""

    def start(self, payload, on_message, on_exit):
        def heard(message):
            on_message(message)
            if message[0] == "call":
                self.workers[-1].close()

        return super().start(payload, heard, on_exit)


@pytest.mark.parametrize(("max_deaths", "n"), [(None, 4), (0, 1), (5, 6)])
def test_a_trial_that_takes_every_worker_with_it_is_named(tmp_path, max_deaths, n):
    experiment = Experiment(tmp_path / "e", search="random")
    engine = Deadly()
    if max_deaths is not None:
        engine.max_deaths = max_deaths
    with pytest.raises(
        RuntimeError, match=rf"trial 0 of .* was lost {n} times in a row, the last time with a worker that"
    ):
        experiment.run(1, lambda trial: trial.hp.lin("x", 0, 1), engine=engine, **QUIET)
    assert len(engine.workers) in (n, n + 1)  # the next may have begun before the search heard of it
    wait_for_workers(engine)


def test_a_full_disk_here_ends_the_search_at_once_and_its_trial_goes_on_later(tmp_path, whole, monkeypatch):
    taken = []

    def full(self, kind, name, *content):
        taken.append(name)
        if kind == "commit" and "00001" in str(self._folder) and name.endswith("20"):
            raise OSError(28, "No space left on device", name)
        take(self, kind, name, *content)

    take = Copy.take
    engine, experiment = InProcess(), Experiment(tmp_path / "e", **OPTIONS)
    with monkeypatch.context() as patched:
        patched.setattr(Copy, "take", full)
        with pytest.raises(OSError, match="No space left on device: 'snapshots/000000020'"):
            experiment.run(3, train, engine=engine, **QUIET)
        assert taken[-1] == "snapshots/000000020"
        wait_for_workers(engine)
    check_equal(experiment.run(3, train, engine=InProcess(), **QUIET), whole)
    assert Record(experiment.trial_path(1)).meta["started_step"] == 10


def test_several_workers_with_a_sampler_of_the_users_own_do_not_draw_the_same(tmp_path):
    def draws(n_jobs) -> list[float]:
        experiment = Experiment(tmp_path / str(n_jobs), search=optuna.samplers.RandomSampler(seed=1))
        experiment.run(6, lambda trial: trial.hp.lin("x", 0, 1), n_jobs=n_jobs, engine=InProcess(), **QUIET)
        return [row.score for row in experiment.trials()]

    assert len(set(draws(3))) == 6
    alone = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    alone.optimize(lambda trial: trial.suggest_float("x", 0, 1), 6)
    assert draws(1) == [trial.value for trial in alone.trials]


def test_several_workers_take_each_point_of_a_grid_once(tmp_path):
    experiment = Experiment(tmp_path / "e", search={"x": [1, 2, 3, 4, 5]})
    experiment.run(20, lambda trial: trial.hp.lst("x", [1, 2, 3, 4, 5]), n_jobs=3, engine=InProcess(), **QUIET)
    assert sorted(row.score for row in experiment.trials()) == [1, 2, 3, 4, 5]


def test_a_worker_that_cannot_serve_says_why_and_ends_with_its_search(tmp_path, monkeypatch):
    def fail():
        raise OSError("no room for a trial")

    monkeypatch.setattr(trials, "_remove_litter", fail)
    engine = InProcess()
    with pytest.raises(OSError, match="no room for a trial"):
        Experiment(tmp_path / "e", search="random").run(1, lambda trial: 1.0, engine=engine, **QUIET)
    wait_for_workers(engine)


def test_a_worker_that_cannot_read_what_it_is_told_says_so_and_ends_with_its_search(tmp_path):
    class Garbling(InProcess):
        def start(self, payload, on_message, on_exit):
            worker = super().start(payload, on_message, on_exit)
            worker._link.inbox.put(b"no pickle")
            return worker

    engine = Garbling()
    with pytest.raises(pickle.UnpicklingError):
        Experiment(tmp_path / "e", search="random").run(1, lambda trial: 1.0, engine=engine, **QUIET)
    wait_for_workers(engine)


def test_what_starts_no_workers_is_no_engine(tmp_path):
    with pytest.raises(TypeError, match=r"engine must start workers, as ai.data.Ray\(\) does, got 5"):
        Experiment(tmp_path / "e").run(1, train, engine=5)


def test_a_worker_that_is_ended_while_it_waits_for_a_trial_has_made_no_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(trials.tempfile, "TemporaryDirectory", None)
    said, ended = queue.SimpleQueue(), queue.SimpleQueue()
    worker = InProcess().start(ship(partial(serve_trials, None, None)), said.put, ended.put)
    assert said.get(timeout=100) == ("free",)
    worker.close()
    assert ended.get(timeout=100) == "was closed"
    assert said.empty()


def test_litter_of_killed_workers_is_removed_and_a_live_ones_folder_is_not(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name in ("dead", "live", "new"):
        (tmp_path / f"ai-lab-work-{name}").mkdir()
    with Owner(tmp_path / "ai-lab-work-dead"):
        left = (tmp_path / "ai-lab-work-dead" / "owner.json").read_bytes()
    (tmp_path / "ai-lab-work-dead" / "owner.json").write_bytes(left)  # as a kill leaves it
    with Owner(tmp_path / "ai-lab-work-live"):
        _remove_litter()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["ai-lab-work-live", "ai-lab-work-new"]


def test_a_driver_that_dies_again_and_again_counts_no_loss_of_a_trial_that_waits_for_a_worker(tmp_path):
    experiment = Experiment(tmp_path / "e", search="random")
    driven = _copied(experiment._search, types.SimpleNamespace(n=1))
    for _ in range(MAX_LOSSES + 2):  # each driver is killed before a worker has come
        assert not driven.has(1)
        asked = driven.study.ask()
        assert asked.number == 0
        driven.note(asked)
    rows = experiment.run(1, lambda trial: trial.hp.lin("x", 0, 1), engine=InProcess(), **QUIET).trials()
    assert [row.state for row in rows] == ["finished"]


def test_a_worker_that_cannot_read_an_answer_in_the_midst_of_a_trial_says_so_and_ends(tmp_path):
    class Garbling(InProcess):
        def start(self, payload, on_message, on_exit):
            def heard(message):
                if message[0] == "call" and message[2] == "report":
                    self.workers[-1]._link.inbox.put(b"no pickle")
                else:
                    on_message(message)

            return super().start(payload, heard, on_exit)

    def objective(trial) -> float:
        for step in range(3):  # what fails is asked for once more
            with contextlib.suppress(Exception):
                trial.report(step, 1.0)
        return 1.0

    engine = Garbling()
    with pytest.raises(pickle.UnpicklingError):
        Experiment(tmp_path / "e", search="random").run(1, objective, engine=engine, **QUIET)
    wait_for_workers(engine)


def test_devices_are_the_engines(tmp_path):
    with pytest.raises(ValueError, match="devices must be empty with an engine, which shows each worker its own"):
        Experiment(tmp_path / "e").run(1, train, devices=["cuda:0"], engine=InProcess())


# -- the copy of a folder


@pytest.fixture
def by_hand(monkeypatch):
    """Has mirrors look when they are told to, and at their end."""
    monkeypatch.setattr(mirror, "SYNC_S", 1000)


@pytest.mark.usefixtures("by_hand")
def test_rows_that_were_cut_and_have_grown_again_are_copied_anew(tmp_path):
    there, here = tmp_path / "there", tmp_path / "here"
    there.mkdir()
    here.mkdir()
    copy = Copy(here)
    mirrored = Mirror(there, copy.take)
    rows = there / "metrics.jsonl"
    for text in ("a" * 300, "a" * 500, "a" * 100 + "b" * 600, "", "c"):
        rows.write_text(text)
        mirrored.sync()
        assert (here / "metrics.jsonl").read_text() == text
    (there / "samples").mkdir()
    (there / "samples" / "1.png").write_bytes(b"x")
    (there / "samples" / ".write-1").write_bytes(b"half")
    mirrored.sync()
    assert [path.name for path in (here / "samples").iterdir()] == ["1.png"]
    (there / "samples" / "1.png").unlink()
    mirrored.close()
    assert not list((here / "samples").iterdir())


@pytest.mark.usefixtures("by_hand")
@pytest.mark.parametrize("gone", ["snapshots/.000000020.1.partial", "media/images"])
def test_a_folder_that_goes_while_it_is_looked_through_ends_no_trial(tmp_path, monkeypatch, gone):
    there, here = tmp_path / "there", tmp_path / "here"
    (there / gone).mkdir(parents=True)
    (there / gone / "model.safetensors").touch()
    (there / "notes").mkdir()
    here.mkdir()
    mirrored = Mirror(there, Copy(here).take)
    (there / "notes" / "one.txt").write_text("1")
    list_folder = os.scandir

    def list_what_is_left(path):
        if not isinstance(path, int) and Path(path) == there / gone:
            shutil.rmtree(path)
        return list_folder(path)

    monkeypatch.setattr(os, "scandir", list_what_is_left)
    mirrored.sync()
    monkeypatch.undo()
    mirrored.close()
    assert (here / "notes" / "one.txt").read_text() == "1"


def write_snapshot(trial, step, weights=b"", metrics=()) -> Path:
    folder = trial / "snapshots" / f"{step:09d}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_bytes(weights)
    write_json(folder / "manifest.json", {"metrics": dict(metrics), "files": {"model": len(weights)}})
    return folder


@pytest.mark.usefixtures("by_hand")
def test_what_is_noted_in_a_snapshot_later_comes_too_and_one_written_anew_comes_whole(tmp_path):
    there, here, said = tmp_path / "there", tmp_path / "here", []
    there.mkdir()
    here.mkdir()
    copy = Copy(here)

    def take(*what):
        said.append(what)
        copy.take(*what)

    def synced() -> tuple[list[str], dict, bytes]:
        said.clear()
        mirrored.sync()
        found = here / "snapshots" / "000000010"
        metrics = json.loads((found / "manifest.json").read_bytes())["metrics"]
        return [what[0] for what in said], metrics, (found / "model.safetensors").read_bytes()

    mirrored = Mirror(there, take)
    write_snapshot(there, 10, b"first")
    assert synced() == (["part", "part", "commit"], {}, b"first")
    write_snapshot(there, 10, b"first", {"val_loss": 0.5})
    assert synced() == (["note"], {"val_loss": 0.5}, b"first")
    assert synced() == ([], {"val_loss": 0.5}, b"first")
    write_snapshot(there, 10, b"second one")
    assert synced() == (["part", "part", "commit"], {}, b"second one")
    for folder in (here, there):
        (folder / "snapshots" / "000000010" / "manifest.json").write_text("damaged")
    mirrored.close()
    mirrored = Mirror(there, take)
    write_snapshot(there, 10, b"third", {"val_loss": 0.25})
    assert synced() == (["part", "part", "commit"], {"val_loss": 0.25}, b"third")
    shutil.rmtree(there / "snapshots" / "000000010")
    mirrored.close()
    assert list((here / "snapshots").iterdir()) == []


@pytest.fixture
def two_sides(tmp_path):
    """Returns a trial's folder on its worker's side, its copy, and a mirror between them."""
    there, here = tmp_path / "there", tmp_path / "here"
    for folder in (there, here):
        mark(folder, "trial")
    return there, here, Mirror(there, Copy(here).take)


UNREADABLE = Path("/proc/self/mem")  # whose reading fails, whoever reads
needs_unreadable = pytest.mark.skipif(not UNREADABLE.exists(), reason="no file here is unreadable for everybody")


@needs_unreadable
@pytest.mark.usefixtures("by_hand")
def test_a_file_that_cannot_be_read_there_is_told_once_in_the_trials_log_and_the_others_come(two_sides):
    there, here, mirrored = two_sides
    (there / "a.bin").symlink_to(UNREADABLE)
    (there / "b.txt").write_text("whole")
    broken = there / "snapshots" / "000000010"
    broken.mkdir(parents=True)
    (broken / "model.safetensors").symlink_to(UNREADABLE)
    (broken / "manifest.json").write_text('{"files": {}}')
    (there / "log.txt").write_text("before\n")
    mirrored.sync()
    mirrored.sync()
    (there / "meta.json").write_text("{}")
    mirrored.close()
    assert (here / "log.txt").read_text().splitlines() == [
        "before",
        "ai.lab: a.bin cannot be read and is not copied: Input/output error",
        "ai.lab: snapshots/000000010 cannot be read and is not copied: Input/output error",
    ]
    assert (here / "b.txt").read_text() == "whole"
    assert (here / "meta.json").read_text() == "{}"
    assert not (here / "a.bin").exists()
    assert list((here / "snapshots").iterdir()) == []


@needs_unreadable
def test_a_file_that_cannot_be_read_here_is_told_once_in_the_log_that_who_goes_on_is_given(tmp_path):
    for name in ("a.bin", "snapshots/000000010/model.safetensors"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).symlink_to(UNREADABLE)
    (tmp_path / "z.txt").write_text("whole")
    copy = Copy(tmp_path)
    for _ in range(2):
        given = {name: data.decode() for name, _, data in copy.parts()}
        assert given == {
            "z.txt": "whole",
            "log.txt": "ai.lab: a.bin cannot be read and is not handed to who goes on: Input/output error\n"
            "ai.lab: snapshots/000000010/model.safetensors cannot be read and is not handed to who goes on: "
            "Input/output error\n",
        }


def test_a_file_that_is_cut_while_it_is_handed_over_is_handed_over_again_as_it_is_then(tmp_path, monkeypatch):
    monkeypatch.setattr(file_parts, "PART_BYTES", 10)
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    (here / "a.bin").write_bytes(bytes(range(25)))
    given = []
    for part in Copy(here).parts():
        given.append(part)
        trials.write_given(there, *part)
        if len(given) == 1:
            os.truncate(here / "a.bin", 12)
    assert [(at, data and len(data)) for _, at, data in given] == [(0, 10), (10, 2), (0, None), (0, 10), (10, 2)]
    assert (there / "a.bin").read_bytes() == bytes(range(12))


def test_a_file_that_fails_half_way_twice_is_taken_back_and_told_of(tmp_path, monkeypatch):
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    (here / "a.bin").write_bytes(bytes(25))
    (here / "b.txt").write_text("whole")
    whole = trial_copy.parts

    def parts(path):
        if path.name != "a.bin":
            yield from whole(path)
            return
        yield 0, bytes(10)
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(trial_copy, "parts", parts)
    for part in Copy(here).parts():
        trials.write_given(there, *part)
    assert sorted(path.name for path in there.iterdir()) == ["b.txt", "log.txt"]
    assert (there / "log.txt").read_text() == (
        "ai.lab: a.bin cannot be read and is not handed to who goes on: Input/output error\n"
    )


@pytest.mark.usefixtures("by_hand")
def test_rows_that_are_cut_while_they_are_read_end_no_look(two_sides, monkeypatch):
    there, here, mirrored = two_sides
    rows = there / "metrics.jsonl"
    rows.write_text("1\n2\n3\n")
    monkeypatch.setattr(mirror, "PART_BYTES", 2)
    take, cut = mirrored._hand_over, []

    def hand_over(*what):
        take(*what)
        if not cut:
            cut.append(os.truncate(rows, 2))

    mirrored._hand_over = hand_over
    mirrored.sync()
    mirrored.close()
    assert (here / "metrics.jsonl").read_text() == "1\n"


def keep_what_cannot_be_read(trial) -> float:
    (trial.path / "dump.bin").symlink_to(UNREADABLE)
    return trial.hp.log("lr", 1e-3, 1e-1)


@needs_unreadable
def test_an_unreadable_file_of_a_trial_ends_no_search(tmp_path):
    experiment = Experiment(tmp_path / "e", search="random").run(
        2, keep_what_cannot_be_read, engine=InProcess(), **QUIET
    )
    assert [row.state for row in experiment.trials()] == ["finished", "finished"]
    for row in experiment.trials():
        assert "dump.bin cannot be read and is not copied" in Record(row.path).log_text()


@pytest.mark.usefixtures("by_hand")
def test_what_cannot_be_sent_is_no_file_that_cannot_be_read(tmp_path):
    mark(tmp_path, "trial")

    def send(*what):
        raise ConnectionResetError("the link is gone")

    mirrored = Mirror(tmp_path, send)
    (tmp_path / "a.txt").write_text("whole")
    with pytest.raises(ConnectionResetError, match="the link is gone"):
        mirrored.close()
    assert not (tmp_path / "log.txt").exists()


@pytest.mark.usefixtures("by_hand")
@pytest.mark.parametrize("is_seen", [False, True])
@pytest.mark.parametrize("replaced_after", ["manifest.json", "model.safetensors"])
def test_a_snapshot_that_is_replaced_while_it_is_sent_is_never_half_of_each(two_sides, replaced_after, is_seen):
    there, here, mirrored = two_sides
    mirrored._seen = here if is_seen else None
    copied = here / "snapshots" / "000000010"
    part, replaced, seen = mirrored._part, [], []

    def take(name, *content):
        part(name, *content)
        if name.endswith(replaced_after) and not replaced:
            replaced.append(name)
            shutil.rmtree(there / "snapshots" / "000000010")
            write_snapshot(there, 10, b"the second")
        seen.append(copied.exists())

    mirrored._part = take
    write_snapshot(there, 10, b"first")
    mirrored.sync()
    assert not any(seen)
    assert not list((here / "snapshots").iterdir())
    mirrored.close()
    assert (copied / "model.safetensors").read_bytes() == b"the second"
    assert json.loads((copied / "manifest.json").read_bytes())["files"] == {"model": 10}
    assert [path.name for path in (here / "snapshots").iterdir()] == ["000000010"]


@pytest.mark.usefixtures("by_hand")
def test_a_note_to_a_snapshot_that_was_deleted_here_makes_no_snapshot(two_sides):
    there, here, mirrored = two_sides
    write_snapshot(there, 10, b"x")
    mirrored.sync()
    shutil.rmtree(here / "snapshots" / "000000010")
    write_snapshot(there, 10, b"x", {"val_loss": 0.5})
    mirrored.close()
    assert Record(here).snapshots() == {}
    assert not list((here / "snapshots").iterdir())


@pytest.mark.usefixtures("by_hand")
@pytest.mark.parametrize("text", ["", "[]", '{"files": NaN}', "[" * 100_000])
def test_a_snapshot_with_a_damaged_manifest_is_copied_as_it_is_and_once(two_sides, text):
    there, here, mirrored = two_sides
    (write_snapshot(there, 10, b"x") / "manifest.json").write_text(text)
    mirrored.sync()
    assert (here / "snapshots" / "000000010" / "manifest.json").read_text() == text
    mirrored._send = None  # which nobody calls
    mirrored.close()


@pytest.mark.usefixtures("by_hand")
def test_what_is_marked_here_and_what_is_marked_there_stand_together(two_sides):
    there, here, mirrored = two_sides
    Record(there).tag("tried", "good")
    mirrored.sync()
    change_marks(here, add=["pinned"], remove=["tried"], note="figure 2")
    Record(there).tag("better", remove=["good"])
    mirrored.sync()
    assert load_marks(here)[0] == {"tags": ["pinned", "better"], "note": "figure 2"}
    Copy(here).clear()  # it begins anew, elsewhere
    assert load_marks(here)[0] == {"tags": ["pinned", "better"], "note": "figure 2"}
    assert [name for name, *_ in Copy(here).parts()] == [".ai-lab", "marks.json"]  # and no lock
    (there / "marks.json").write_text("damaged")
    mirrored.close()
    assert Record(here).tags == ["pinned", "better"]


@pytest.mark.usefixtures("by_hand")
def test_a_file_may_become_a_folder_and_a_folder_a_file(two_sides):
    there, here, mirrored = two_sides
    (there / "a").write_text("file")
    mirrored.sync()
    (there / "a").unlink()
    (there / "a").mkdir()
    (there / "a" / "b").write_text("in it")
    mirrored.sync()
    assert (here / "a" / "b").read_text() == "in it"
    shutil.rmtree(there / "a")
    (there / "a").write_text("file again")
    mirrored.close()
    assert (here / "a").read_text() == "file again"


@pytest.mark.usefixtures("by_hand")
@pytest.mark.parametrize("ends_at", ["log.txt", "metrics.jsonl", "samples/1.png", "snapshots/.000000010."])
def test_a_trial_is_never_told_finished_before_all_of_it_has_come(tmp_path, ends_at):
    there, here = tmp_path / "there", tmp_path / "here"
    for folder in (there / "samples", there / "snapshots", here):
        folder.mkdir(parents=True)
    mark(here, "trial")
    write_json(there / "meta.json", {"state": "running"})
    copy, states = Copy(here), []

    def take(kind, name, *content):
        if name.startswith(ends_at) and not (there / "snapshots/000000020").exists():  # ends while others are copied
            write_snapshot(there, 20)
            (there / "metrics.jsonl").write_text("a\nb\n")
            write_json(there / "meta.json", {"state": "finished", "score": 1.0})
        copy.take(kind, name, *content)
        states.append(Record(here).meta.get("state"))
        if states[-1] == "finished":
            assert list(Record(here).snapshots()) == [10, 20]
            assert (here / "metrics.jsonl").read_text() == "a\nb\n"

    mirrored = Mirror(there, take)
    write_snapshot(there, 10)
    (there / "log.txt").write_text("said")
    (there / "metrics.jsonl").write_text("a\n")
    (there / "samples/1.png").write_bytes(b"x")
    mirrored.sync()
    assert "finished" not in states
    mirrored.close()
    assert states[-1] == "finished"


@pytest.mark.usefixtures("by_hand")
def test_a_snapshot_is_there_whole_or_not_at_all(tmp_path, monkeypatch):
    monkeypatch.setattr(file_parts, "PART_BYTES", 10)
    there, here = tmp_path / "there", tmp_path / "here"
    write_snapshot(there, 10, bytes(range(45)))
    (there / "snapshots" / "000000010" / "empty").touch()
    (there / "snapshots" / "000000010" / ".metadata").write_bytes(b"which rank has what")
    (there / "snapshots" / "000000010" / ".manifest.json.x1").write_bytes(b"a note that is being wri")
    here.mkdir()
    copy, said = Copy(here), []
    mirrored = Mirror(there, lambda *what: said.append(what))  # what is there at first came from here
    assert said == []
    (there / "snapshots" / "000000010").rename(there / "snapshots" / "000000020")
    mirrored.close()
    *parts, commit, removal = said
    assert [what[0] for what in (commit, removal)] == ["commit", "remove"]
    assert {(what[0], Path(what[1]).name) for what in parts} == {
        ("part", name) for name in (".metadata", "empty", "manifest.json", "model.safetensors")
    }
    assert sum("model" in what[1] for what in parts) == 5
    for what in parts:
        copy.take(*what)
    assert not list((here / "snapshots").glob("0*"))
    copy.take(*commit)
    assert (here / "snapshots" / "000000020" / "model.safetensors").read_bytes() == bytes(range(45))
    assert dict.fromkeys(name for name, *_ in copy.parts()) == dict.fromkeys(
        [f"snapshots/000000020/{name}" for name in (".metadata", "empty", "manifest.json", "model.safetensors")]
    )
    with pytest.raises(ValueError, match=r"'../x' must lie in the trial's folder"):
        copy.take("whole", "../x", b"")


def test_a_folder_is_one_for_both_sides_where_each_finds_what_the_other_has_just_left(tmp_path):
    here = tmp_path / "here"
    mark(here, "trial")
    copy = Copy(here)

    def seen(seen_there) -> tuple[Path | None, list[str]]:
        meeting = invite(here)
        return meet(seen_there(meeting), partial(met, meeting)), [path.name for path in here.iterdir()]

    left = [".ai-lab"]
    assert seen(lambda meeting: meeting) == (here, left)
    assert seen(lambda meeting: tmp_path / "nowhere" / "snapshots" / meeting.name) == (None, left)

    def copied(meeting) -> Path:  # under the same name, as of a disk that follows this one
        return Path(shutil.copytree(here, tmp_path / meeting.name), meeting.relative_to(here))

    assert seen(copied) == (None, left)

    meeting = invite(here)
    assert meet(meeting, lambda name, said: met(meeting, name, "something else")) is None
    assert [path.name for path in here.iterdir()] == left
    meeting = invite(here)  # where what the worker leaves cannot be deleted, by another user's right
    assert meet(meeting, lambda name, said: False) is None
    assert not list(meeting.iterdir())
    copy.forget_unfinished()
    (here / "snapshots").rmdir()
    assert [path.name for path in here.iterdir()] == left
    with pytest.raises(ValueError, match="must lie in the folder of the meeting"):
        met(meeting, "../../../x", "")
    invite(here)  # of a search that is killed now
    remove_unowned(here)
    assert not list(tmp_path.glob("here*"))


@pytest.mark.usefixtures("by_hand")
def test_where_the_copy_is_written_to_no_longer_it_is_sent_and_no_folder_is_made(tmp_path):
    there, here, said = tmp_path / "there", tmp_path / "here", []
    for folder in (there, here):
        mark(folder, "trial")
    copy, seen = Copy(here), here

    def take(*what):
        said.append(what[0])
        copy.take(*what)

    mirrored = Mirror(there, take, seen)
    write_snapshot(there, 10, b"straight")
    mirrored.sync()
    assert said == ["commit"]
    mirrored._seen = tmp_path / "deleted"
    write_snapshot(there, 20, b"sent")
    mirrored.sync()
    assert said[1:] == ["remove", "part", "part", "commit"]
    assert not (tmp_path / "deleted").exists()
    for late in (None, b"the"):  # what comes of it here: nothing, or less than was written
        mirrored._seen, n_said = tmp_path / "another", len(said)
        mark(mirrored._seen, "trial")
        folder = write_snapshot(there, 10, b"the next one" + (late or b""))
        if late:
            partial = here / "snapshots" / f".{folder.name}.{mirrored._token}.partial"
            (partial / "model.safetensors").parent.mkdir()
            (partial / "model.safetensors").write_bytes(late)
            shutil.copy(folder / "manifest.json", partial)
        mirrored.sync()
        assert said[n_said:] == ["commit", "remove", "part", "part", "commit"]
        assert not list((tmp_path / "another" / "snapshots").iterdir())
    mirrored.close()
    assert {step: (at / "model.safetensors").read_bytes() for step, at in Record(here).snapshots().items()} == {
        10: b"the next onethe",
        20: b"sent",
    }
    assert not list((here / "snapshots").glob(".*"))
