import argparse
import datetime
import gc
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import ai.model as m
from ai.data import Dataset
from ai.lab import OwnedError, Record, Trial
from ai.train import Classify, EarlyStopping, Trainer, opt
from tests import warm_python

SCRIPT = Path(__file__).with_name("resumable_run.py")


def make(seed: int = 0):
    rng = np.random.default_rng(seed)
    data = Dataset({"x": rng.normal(size=(96, 4)).astype("float32"), "y": rng.integers(0, 2, 96).astype("uint8")})
    torch.manual_seed(seed)
    model = nn.Linear(4, 2)
    return model, opt.sgd(model), data.loader(16, "cpu", train=True), data.loader(64, "cpu")


def options(**how):
    return {"progress": False, "system_interval_s": None, "log_interval": 5, "val_interval": 10, **how}


def train(trial: Trial, steps: int = 20, env=None, **how) -> int:
    model, optimizer, loader, _ = make()
    return Trainer(env or Classify(), loader).train(model, optimizer, trial.hook(**how), steplimit=steps)


@dataclass
class Config:
    lr: float = 0.1


def test_a_run_leaves_the_files_that_tell_all_of_it(tmp_path):
    _, _, _, val_data = make()
    trial = Trial(
        tmp_path / "t",
        config=Config(),
        val_data=val_data,
        sampler=lambda model, step: torch.zeros(4, 1, 8, 8),
        task=lambda model, step: {"answer": 42},
        save_snapshots=True,
        **options(sample_interval=10, task_interval=10, save_interval=10),
    )
    assert train(trial) == 20
    assert trial.state == "finished"
    files = {path.name for path in trial.path.iterdir()}
    assert files >= {".ai-lab", "meta.json", "config.yaml", "metrics.jsonl", "log.txt", "snapshots", "samples"}
    metrics = trial.metrics()
    assert metrics["loss"].steps.tolist() == [0, 5, 10, 15, 19]  # every fifth, and the last
    assert metrics["val_loss"].steps.tolist() == [10, 20]
    assert metrics["answer"].values.tolist() == [42, 42]
    assert list(trial.record.samples()) == [10, 20]
    assert list(trial.record.snapshots()) == [10, 20]
    assert trial.record.config == {"lr": 0.1}
    session = trial.record.meta["sessions"][0]
    assert session["argv"][0]
    assert session["packages"]["torch"] == metadata.version("torch")
    assert session["hardware"]["threads"] == os.cpu_count()
    assert session["end"]["step"] == 20
    with Image.open(trial.record.samples()[10]) as page:
        assert page.size == (18, 18)


def test_metrics_make_a_dataframe(tmp_path):
    trial = Trial(tmp_path / "t", **options())
    train(trial, 10)
    frame = trial.metrics().frame()
    assert frame.index.tolist() == [0, 5, 9]
    assert {"loss", "accuracy", "lr"} <= set(frame.columns)
    with pytest.raises(KeyError, match=r"no metric 'los'; recorded are: .*\bloss\b"):
        trial.metrics()["los"]


def run_script(*arguments: object) -> subprocess.CompletedProcess:
    return warm_python.run(SCRIPT, *arguments, folder=Path.cwd())


def rows(folder: Path) -> list[dict]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in ("time", "steps_per_s")} for line in lines]


def test_a_run_killed_and_resumed_equals_one_never_killed_in_weights_and_rows(tmp_path):
    whole = run_script(tmp_path / "whole", -1)
    assert whole.returncode == 0, whole.stderr
    kill_at = random.Random(0).randrange(21, 29)
    assert run_script(tmp_path / "killed", kill_at).returncode == -9
    assert Record(tmp_path / "killed").state == "dead"
    resumed = run_script(tmp_path / "killed", -1, "resume")
    assert resumed.returncode == 0, resumed.stderr
    assert resumed.stdout == whole.stdout.replace("from 0", "from 20")
    assert rows(tmp_path / "killed") == rows(tmp_path / "whole")


def test_killed_before_the_first_snapshot_it_starts_again(tmp_path):
    assert run_script(tmp_path / "t", 7).returncode == -9
    resumed = run_script(tmp_path / "t", -1, "resume")
    assert resumed.returncode == 0, resumed.stderr
    assert resumed.stdout.startswith("from 0")
    steps = [row["step"] for row in rows(tmp_path / "t")]
    assert steps == sorted(steps)
    assert len(steps) == len({(row["step"], "loss" in row) for row in rows(tmp_path / "t")})


def test_resume_with_nothing_to_resume_returns_0(tmp_path):
    model, optimizer, loader, _ = make()
    assert Trial(tmp_path / "t", save_snapshots=True).resume(model, optimizer, loader) == 0


def test_a_second_run_over_the_first_is_refused_and_leaves_it_alone(tmp_path):
    train(Trial(tmp_path / "t", **options()))
    before = (tmp_path / "t" / "metrics.jsonl").read_bytes()
    again = Trial(tmp_path / "t", **options())
    with pytest.raises(ValueError, match=r"has rows up to step 19 and training would begin at 0: pass clean=True"):
        train(again)
    assert (tmp_path / "t" / "metrics.jsonl").read_bytes() == before
    assert again.state == "finished"
    train(Trial(tmp_path / "t", clean=True, **options()))


@pytest.mark.parametrize(
    ("resumes", "line"),
    [
        (True, ", run the same command to go on"),
        (False, ", to go on from there resume the trial: trial.resume(model, "),
    ],
)
def test_message_after_a_signal_says_what_goes_on(resumes, line, tmp_path, capsys):
    def signalled(model, batch, step):
        signal.raise_signal(signal.SIGTERM)
        return Classify()(model, batch, step)

    model, optimizer, loader, _ = make()
    trial = Trial(tmp_path / "t", save_snapshots=True, **options())
    if resumes:
        trial.resume(model, optimizer, loader)
    with pytest.raises(SystemExit):
        Trainer(signalled, loader).train(model, optimizer, trial.hook())
    assert line in capsys.readouterr().err


def test_training_on_from_where_it_ended_adds_rows(tmp_path):
    model, optimizer, loader, _ = make()
    trial, trainer = Trial(tmp_path / "t", **options()), Trainer(Classify(), loader)
    trainer.train(model, optimizer, trial.hook(), steplimit=10)
    trainer.train(model, optimizer, trial.hook(), step=10, steplimit=20)
    assert trial.metrics()["loss"].steps.tolist() == [0, 5, 9, 10, 15, 19]  # every fifth, and the last of each run
    assert len(trial.record.meta["sessions"]) == 2


def test_while_one_trial_runs_a_second_on_its_folder_is_refused(tmp_path):
    with Trial(tmp_path / "t", **options(capture=False)) as first:
        first.log(0, {"loss": 1.0})
        second = Trial(tmp_path / "t")
        model, optimizer, loader, _ = make()
        message = rf"is being written by process {os.getpid()} on "
        with pytest.raises(OwnedError, match=message):
            train(second)
        with pytest.raises(OwnedError, match=message):
            second.resume(model, optimizer, loader)
        with pytest.raises(OwnedError, match=message):
            Trial(tmp_path / "t", clean=True)
        assert second.state == "running"
        first.log(1, {"loss": 0.5})
    assert second.metrics()["loss"].values.tolist() == [1.0, 0.5]


def test_an_error_is_recorded_and_raised(tmp_path):
    def env(model, batch, step):
        raise ZeroDivisionError("the loss is gone")

    trial = Trial(tmp_path / "t", **options())
    with pytest.raises(ZeroDivisionError):
        train(trial, env=env)
    assert trial.state == "failed"
    assert trial.record.meta["error"] == "ZeroDivisionError: the loss is gone"
    assert "Traceback" in trial.record.log_text()
    Trial(tmp_path / "t", clean=True)  # the folder was given up


def test_what_is_printed_lands_in_the_log_and_on_the_screen(tmp_path, capsys):
    def env(model, batch, step):
        print(f"\r 10%\r 20%\rat {step}")
        return model(batch["x"]).sum() * 0

    trial = Trial(tmp_path / "t", **options())
    before = sys.stdout
    train(trial, 1, env=env)
    assert sys.stdout is before
    assert "at 0" in capsys.readouterr().out
    assert "\nat 0\n" in trial.record.log_text()
    assert "10%" not in trial.record.log_text()


def test_early_stopping_ends_a_run_as_stopped(tmp_path):
    _, _, _, val_data = make()
    trial = Trial(tmp_path / "t", val_data=val_data, stopper=EarlyStopping(patience=0, min_delta=10), **options())
    assert train(trial, 100) == 20
    assert trial.state == "stopped"


def test_clean_deletes_only_what_the_lab_made(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("kept")
    with pytest.raises(ValueError, match=r"is not empty and was not made by ai\.lab"):
        Trial(tmp_path / "mine", clean=True)
    assert (tmp_path / "mine" / "file").read_text() == "kept"


def test_a_moved_trial_stays_what_it_is(tmp_path):
    trial = Trial(tmp_path / "a", save_snapshots=True, **options())
    train(trial)
    (tmp_path / "a").rename(tmp_path / "b")
    moved = Trial(tmp_path / "b", save_snapshots=True)
    model, optimizer, loader, _ = make()
    assert moved.id == json.loads((tmp_path / "b" / ".ai-lab").read_text())["id"]
    assert moved.resume(model, optimizer, loader) == 20


def test_snapshots_saved_by_hand_come_back(tmp_path):
    model, optimizer, loader, _ = make()
    trial = Trial(tmp_path / "t", **options(capture=False))
    with trial:
        trial.save_snapshot(model, optimizer, 3, loader)
    other, other_optimizer, other_loader, _ = make()
    nn.init.zeros_(other.weight)
    assert trial.load_snapshot(other, other_optimizer, other_loader) == 3
    assert torch.equal(model.weight, other.weight)
    assert trial.model_path(3).name == "model.safetensors"
    with pytest.raises(FileNotFoundError, match="has no snapshot of step 4; it has: 3"):
        trial.model_path(4)


@pytest.mark.parametrize("first", ["log", "keep", "save_snapshot"])
def test_a_loop_of_the_users_own_that_resumes_has_each_row_once(tmp_path, first):
    model, optimizer, _, _ = make()

    def loop(until: int) -> Trial:
        trial = Trial(tmp_path / "t", save_snapshots=True, **options(capture=False))
        begun = trial.resume(model, optimizer)
        with trial:
            if begun and first == "keep":
                trial.keep(begun, "text", "anew")
            if begun and first == "save_snapshot":
                trial.save_snapshot(model, optimizer, begun)
            for step in range(begun + 1, until + 1):
                trial.log(step, {"loss": float(until)})
                trial.keep(step, "said", f"{until}")
                if step == 4:
                    trial.save_snapshot(model, optimizer, step)
        return trial

    loop(3)
    trial = loop(7)  # there was no snapshot: it begins anew
    assert trial.metrics()["loss"].values.tolist() == [7.0] * 7
    trial = loop(9)
    assert trial.metrics()["loss"].steps.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert trial.metrics()["loss"].values.tolist() == [7.0] * 4 + [9.0] * 5
    assert [path.read_text() for path in trial.record.media()["said"].values()] == ["7"] * 4 + ["9"] * 5


def by_hand(folder: Path, until: int, saved: int | None, *, saves_first: bool = False) -> None:
    """A loop without a trainer, killed after `until` steps."""
    model, optimizer, _, _ = make()
    with Trial(folder, **options(capture=False)) as trial:
        for step in range(1, until + 1):
            if saves_first and step == saved:
                trial.save_snapshot(model, optimizer, step)
            trial.log(step, {"loss": float(step)})
            if not saves_first and step == saved:
                trial.save_snapshot(model, optimizer, step)


def resumed_by_hand(folder: Path) -> Trial:
    model, optimizer, _, _ = make()
    trial = Trial(folder, **options(capture=False))
    trial.resume(model, optimizer)
    return trial


@pytest.mark.parametrize("saved", [4, None])
def test_an_evaluation_by_hand_after_a_resume_takes_no_row_away(tmp_path, capsys, saved):
    by_hand(tmp_path / "t", 7, saved)
    for _ in range(2):
        with resumed_by_hand(tmp_path / "t") as trial:
            trial.log(7, {"test": 1.0})
            trial.keep(7, "said", "so")
    assert trial.metrics()["loss"].steps.tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert trial.metrics()["test"].steps.tolist() == [7, 7]
    assert capsys.readouterr().err == ""


def test_what_gives_way_to_a_loop_is_told_and_nothing_for_what_is_refused(tmp_path, capsys):
    by_hand(tmp_path / "t", 7, 4)
    with resumed_by_hand(tmp_path / "t") as trial:
        for wrong in (
            lambda: trial.log(5, {"loss": "x"}),
            lambda: trial.keep(5, "said", object()),
            lambda: trial.save_sample(5, torch.zeros(2)),
            lambda: trial.save_snapshot(nn.Linear(1, 1), None, 5.5),
        ):
            with pytest.raises((TypeError, ValueError)):
                wrong()
        assert trial.metrics()["loss"].steps.tolist() == [1, 2, 3, 4, 5, 6, 7]
        trial.log(5, {"loss": 9.0})
        assert trial.metrics()["loss"].values.tolist() == [1, 2, 3, 4, 9]
    told = "goes on from its snapshot of step 4: what was logged since, up to step 7, was dropped, as step 5 is logged"
    assert capsys.readouterr().err == f"ai.lab: trial {tmp_path / 't'} {told} anew\n"
    by_hand(tmp_path / "u", 3, None)
    resumed_by_hand(tmp_path / "u").log(1, {"loss": 9.0})
    assert "begins anew, as it has no snapshot: what was logged since, up to step 3" in capsys.readouterr().err


def test_threads_that_resume_by_hand_lose_none_of_their_first_rows(tmp_path):
    by_hand(tmp_path / "t", 200, 4)
    together = threading.Barrier(8)

    def log(step: int) -> None:
        together.wait(100)
        trial.log(step, {"loss": 0.0})

    with resumed_by_hand(tmp_path / "t") as trial, ThreadPoolExecutor(8) as pool:
        list(pool.map(log, range(5, 13)))
    assert sorted(trial.metrics()["loss"].steps.tolist()) == list(range(1, 13))


@pytest.mark.parametrize(("begins", "loss"), [(5, [1, 2, 3, 4, 0]), (4, [1, 2, 3, 0])])
def test_a_row_logged_after_its_steps_snapshot_stays_unless_it_is_logged_again(tmp_path, begins, loss):
    by_hand(tmp_path / "t", 7, 4, saves_first=True)
    with resumed_by_hand(tmp_path / "t") as trial:
        trial.log(begins, {"loss": 0.0})
    assert trial.metrics()["loss"].values.tolist() == loss


@pytest.mark.parametrize("place", ["deleted", "moved"])
def test_a_loop_goes_on_though_its_snapshot_went_after_the_resume(tmp_path, place):
    by_hand(tmp_path / "t", 7, 4)
    model, optimizer, _, _ = make()
    with Trial(tmp_path / "t", **options(capture=False)) as trial:
        trial.resume(model, optimizer)
        if place == "deleted":
            shutil.rmtree(tmp_path / "t" / "snapshots")
        else:
            (tmp_path / "t").rename(tmp_path / "u")
        trial.log(5, {"loss": 9.0})
    assert trial.metrics()["loss"].values.tolist() == [1, 2, 3, 4, 9]


@pytest.mark.parametrize("save_interval", [2, None])
def test_what_is_logged_by_hand_between_resume_and_training_stays_and_each_row_is_there_once(tmp_path, save_interval):
    how = options(capture=False, log_interval=1, save_interval=save_interval, save_snapshots=save_interval is not None)
    train(Trial(tmp_path / "t", **how), 5)
    if save_interval is not None:
        shutil.rmtree(tmp_path / "t" / "snapshots" / "000000005")
    trial = Trial(tmp_path / "t", **how)
    model, optimizer, loader, _ = make()
    begun = trial.resume(model, optimizer)
    trial.log(begun, {"parameters": 10})
    Trainer(Classify(), loader).train(model, optimizer, trial.hook(), step=begun, steplimit=7)
    assert begun == (4 if save_interval else 0)
    assert trial.metrics()["loss"].steps.tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert trial.metrics()["parameters"].steps.tolist() == [begun]


def logged_by(script, folder) -> list[str]:
    """The states of the trials `a` and `b` after a script that makes them as `Trial(path("a"), **options)`."""
    head = (
        "import os, sys\nfrom ai.lab import Trial\n"
        f"path, options = {str(folder)!r} + '/{{}}', {{'capture': False, 'system_interval_s': None}}\n"
    )
    subprocess.run([sys.executable, "-c", head + script], stderr=subprocess.DEVNULL, timeout=300)
    return [Record(folder / name).state for name in "ab"]


def test_a_trial_logged_by_hand_ends_with_its_script(tmp_path):
    script = """
def main():
    Trial(path.format("a"), **options).log(0, {"loss": 1.0})

main()
b = Trial(path.format("b"), **options)
b.log(0, {"loss": 1.0})
if os.fork() == 0:
    sys.exit()  # a child's end is none of the trial's
os.wait()
assert b.state == "running"
"""
    assert logged_by(script, tmp_path) == ["finished", "finished"]
    assert Record(tmp_path / "b").metrics()["loss"].values.tolist() == [1.0]
    assert Record(tmp_path / "b").meta["sessions"][0]["end"]["step"] == 0


def test_an_error_that_ends_the_script_fails_the_trial_logged_by_hand(tmp_path):
    script = """
with Trial(path.format("a"), **options):
    pass
b = Trial(path.format("b"), **options)
b.log(0, {"loss": 1.0})
raise ValueError("boom")
"""
    assert logged_by(script, tmp_path) == ["finished", "failed"]
    assert Record(tmp_path / "b").meta["error"] == "ValueError: boom"


def test_a_trial_left_open_whose_folder_is_gone_is_given_up_without_a_word(tmp_path, capfd):
    trial = Trial(tmp_path / "t", **options(capture=False))
    trial.log(0, {"loss": 1.0})
    shutil.rmtree(trial.path)
    del trial
    gc.collect()
    assert capfd.readouterr().err == ""


def test_a_model_made_of_modules_comes_back_from_its_folder_and_is_served_from_it(tmp_path):
    from ai.infer.http.models.model_sources import ModelSource, build

    _, _, loader, _ = make()
    torch.manual_seed(1)
    model = m.Model(m.seq(m.flatten(), m.fc(4, 2)))
    trial = Trial(tmp_path / "t", save_snapshots=True, **options(capture=False))
    Trainer(Classify(), loader).train(model, opt.sgd(model), trial.hook(), steplimit=3)
    x = torch.randn(5, 4)
    loaded = trial.load_model()
    assert torch.equal(loaded(x), model(x))
    assert not loaded.training
    served, inputs = build(ModelSource.parse(f"m={trial.path}"), trust=True)
    assert torch.equal(served(x), model(x))
    assert [spec.describe()["shape"] for spec in inputs] == [[-1, 4]]


@pytest.mark.slow
def test_a_model_whose_class_stands_in_a_script_comes_back_in_another_process(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("""
import sys, torch
from torch import nn
from ai.lab import Trial
from ai.train import opt

class Net(nn.Module):
    def __init__(self, activation):
        super().__init__()
        self.layer, self.activation = nn.Linear(4, 2), activation

    def forward(self, x):
        return self.activation(self.layer(x))

model = Net(lambda x: 2 * x)
nn.init.ones_(model.layer.weight), nn.init.zeros_(model.layer.bias)
with Trial(sys.argv[1], capture=False, system_interval_s=None) as trial:
    trial.save_snapshot(model, opt.sgd(model), 1)
""")
    done = warm_python.run(script, tmp_path / "t", folder=tmp_path, timeout=400)
    assert done.returncode == 0, done.stderr
    assert Trial(tmp_path / "t").load_model()(torch.ones(1, 4)).tolist() == [[8.0, 8.0]]


def test_the_exit_code_says_whether_a_trial_logged_by_hand_failed(tmp_path):
    script = """
for name, code in ("a", 3), ("b", 0):
    if os.fork() == 0:
        trial = Trial(path.format(name), **options)
        trial.log(0, {"loss": 1.0})
        sys.exit(code)
    os.wait()
"""
    assert logged_by(script, tmp_path) == ["failed", "finished"]
    assert Record(tmp_path / "a").meta["error"] == "SystemExit: 3"


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (KeyboardInterrupt(), "interrupted"),
        (SystemExit(3), "failed"),
        (SystemExit(0), "finished"),
        (SystemExit(143), "interrupted"),
        (ZeroDivisionError("x"), "failed"),
    ],
)
def test_what_ends_a_with_block_says_the_state(tmp_path, error, state):
    with pytest.raises(type(error)), Trial(tmp_path / "t", **options(capture=False)):
        raise error
    assert Record(tmp_path / "t").state == state


@pytest.mark.parametrize(("loaded", "state"), [(True, "interrupted"), (False, "failed")])
def test_a_sigterm_that_rays_handler_turns_into_an_exit_is_an_interruption(tmp_path, monkeypatch, loaded, state):
    monkeypatch.delitem(sys.modules, "ray", raising=False)
    if loaded:
        monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SystemExit), Trial(tmp_path / "t", **options(capture=False)):
        sys.exit(signal.SIGTERM)
    assert Record(tmp_path / "t").state == state


def test_a_notebook_cell_can_be_run_again_with_clean(tmp_path):
    def cell() -> Trial:
        trial = Trial(tmp_path / "t", clean=True, **options(capture=False))
        trial.log(0, {"loss": 1.0})
        return trial

    old = cell()
    new = cell()  # the old object is still there, and open
    assert new.id != old.id or new is not old
    assert new.state == "running"
    new.log(1, {"loss": 0.5})
    new.close()
    assert new.metrics()["loss"].values.tolist() == [1.0, 0.5]
    old.close()
    assert new.state == "finished"


@dataclass
class Wide:
    device: torch.device
    dtype: torch.dtype = torch.float16


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"net": {"actv": torch.relu}}, "got builtin_function_or_method at net.actv"),
        ({"x": {1: "a", "1": "b"}}, "config x has two keys that are both '1' as text"),
        ({"mean": np.zeros(5000)}, "config mean must be a value to read, got 5000 numbers; keep their file's path"),
        ({"items": [0, object()]}, r"got object at items\[1\]"),
        ({"x": 1j}, "got complex at x"),
        (3, "config must be a dataclass or a dict, got int: 3"),
        ([1], r"config must be a dataclass or a dict, got list: \[1\]"),
    ],
)
def test_a_configuration_without_a_readable_form_is_refused_before_there_is_a_folder(tmp_path, config, message):
    with pytest.raises((TypeError, ValueError), match=message):
        Trial(tmp_path / "t", config=config)
    assert not (tmp_path / "t").exists()


def test_a_configuration_that_holds_itself_is_refused(tmp_path):
    config: dict = {}
    config["me"] = config
    with pytest.raises(ValueError, match="config is nested without an end"):
        Trial(tmp_path / "t", config=config)
    assert not (tmp_path / "t").exists()


@pytest.mark.parametrize("config", [{1: "a", "1": "b"}, {"a.1": "a", "a": {1: "b"}}])
def test_two_values_of_one_name_are_refused_before_there_is_a_folder(tmp_path, config):
    with pytest.raises(ValueError, match=r"config has two (keys|values) that are both '(a\.)?1'"):
        Trial(tmp_path / "t", config=config)
    assert not (tmp_path / "t").exists()


def test_what_a_person_reads_of_a_configuration_is_kept(tmp_path):
    config = {
        "wide": Wide(torch.device("cuda:1")), "out": Path("a") / "b", "day": datetime.date(2026, 1, 2),
        "mean": np.array([0.5, 1.5]), "std": torch.tensor([0.25]), "n": np.int64(3), "lr": np.float32(0.5),
        "tags": {"b", "a"},
        "kind": np.dtype("int8"),
        "args": argparse.Namespace(seed=1), "steps": range(3), "on": np.bool_(True), "name": np.str_("x"),
    }  # fmt: skip
    kept = Trial(tmp_path / "t", config=config).record.config
    assert kept == {
        "wide": {"device": "cuda:1", "dtype": "torch.float16"}, "out": "a/b", "day": "2026-01-02", "mean": [0.5, 1.5],
        "std": [0.25], "n": 3, "lr": 0.5, "tags": ["a", "b"], "kind": "int8", "args": {"seed": 1}, "steps": [0, 1, 2],
        "on": True, "name": "x",
    }  # fmt: skip


def test_steps_of_numpy_are_steps_and_numbers_too_large_are_refused(tmp_path):
    with Trial(tmp_path / "t", **options(capture=False)) as trial:
        trial.log(np.int64(7), {"loss": 1.0})
        with pytest.raises(ValueError, match="metric 'n' must be a number that a float holds, got one of 1329 bits"):
            trial.log(8, {"n": 10**400})
        with pytest.raises(ValueError, match=f"step must have at most 64 bits, got {2**63}"):
            trial.log(2**63, {"loss": 1.0})
    assert trial.metrics()["loss"].steps.tolist() == [7]


def test_an_unknown_option_of_a_trial_is_refused_before_there_is_a_folder(tmp_path):
    with pytest.raises(TypeError, match=r"trial options must be of val_data, .*keep_last; got val_dat"):
        Trial(tmp_path / "t", val_dat=[])
    assert not (tmp_path / "t").exists()


def test_no_snapshot_says_how_to_get_one(tmp_path):
    with pytest.raises(FileNotFoundError, match="record it with save_snapshots=True"):
        Trial(tmp_path / "t").model_path()


def test_an_unknown_hook_option_is_refused(tmp_path):
    with pytest.raises(TypeError, match=r"hook options must be of val_data, .*; got val_dat"):
        Trial(tmp_path / "t").hook(val_dat=[])


class Curriculum:
    """Something of the user's own that goes with a run."""

    def __init__(self) -> None:
        self.level = 0

    def state_dict(self) -> dict[str, int]:
        return {"level": self.level}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.level = state["level"]


def test_what_the_user_brings_goes_into_the_snapshots_and_comes_back(tmp_path):
    model, optimizer, loader, _ = make()
    trial, brought = Trial(tmp_path / "t", save_snapshots=True, **options()), Curriculum()
    brought.level = 7
    hook = trial.hook(stateful=[loader, brought])
    Trainer(Classify(), loader).train(model, optimizer, hook, steplimit=10)
    model, optimizer, loader, _ = make()
    again, fresh = Trial(tmp_path / "t", save_snapshots=True, **options()), Curriculum()
    assert again.resume(model, optimizer, loader, fresh) == 10
    assert fresh.level == 7
    Trainer(Classify(), loader).train(model, optimizer, again.hook(stateful=[loader, fresh]), step=10, steplimit=12)
    assert again.state == "finished"


def test_a_metric_logged_long_ago_is_among_the_last_values(tmp_path):
    with Trial(tmp_path / "t", **options(capture=False)) as trial:
        trial.log(0, {"rare": 0.25})
        for step in range(2000):
            trial.log(step, {"loss": 1.0})
    assert trial.record.last()["rare"] == 0.25
    with trial:
        assert trial.record.last()["rare"] == 0.25
        trial._writer._session.metrics.cut(0)  # as a resumed run does
        assert trial.record.last() == {}
        trial.log(0, {"rare": 0.5})
    assert trial.record.last()["rare"] == 0.5


def test_what_a_killed_process_left_half_written_is_cleared_away(tmp_path):
    trial = Trial(tmp_path / "t", **options(capture=False))
    (trial.path / ".write-abc").write_text("half")
    (trial.path / "mine.txt").write_text("kept")
    with trial:
        pass
    assert not (trial.path / ".write-abc").exists()
    assert (trial.path / "mine.txt").exists()


def test_threads_that_log_at_once_are_one_writer(tmp_path):
    trial, ready = Trial(tmp_path / "t", system_interval_s=None, capture=False), threading.Barrier(8)

    def log(number: int) -> None:
        ready.wait(100)
        for step in range(50):
            trial.log(step, {f"of/{number}": float(step)})

    with ThreadPoolExecutor(8) as threads:
        for done in [threads.submit(log, number) for number in range(8)]:
            done.result()
    trial.close()
    metrics = trial.metrics()
    assert all(metrics[f"of/{number}"].steps.tolist() == [*range(50)] for number in range(8))


def test_a_trial_that_its_stopper_had_ended_keeps_each_row_once_when_it_is_resumed(tmp_path):
    def train(end):
        torch.manual_seed(0)
        model = nn.Linear(1, 1, bias=False)
        optimizer = opt.sgd(model)
        trial = Trial(
            tmp_path / "t",
            save_snapshots=True,
            task=lambda model, step: {"score": float(step)},
            task_interval=5,
            stopper=lambda step, metrics: step >= end,
            system_interval_s=None,
            capture=False,
        )
        step = trial.resume(model, optimizer)
        trainer = Trainer(lambda model, batch, step: model(batch).mean(), [torch.ones(1, 1)] * 30)
        step = trainer.train(model, optimizer, trial.hook(), step=step)
        return step, model.weight.item(), trial.state, trial.metrics()["score"].steps.tolist()

    ended = train(15)
    assert (ended[0], *ended[2:]) == (15, "stopped", [5, 10, 15])
    assert train(15) == ended
    assert train(20)[3] == [5, 10, 15, 20]
