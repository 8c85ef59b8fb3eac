"""What a public callable is given is looked at there: what is none is named with its rule, before any folder exists."""

import copy
import inspect
import math
import os
import pickle
import re
from pathlib import Path

import numpy as np
import optuna
import pytest
import torch

from ai.lab import (
    Alerts,
    Audio,
    Confusion,
    Experiment,
    Histogram,
    Metrics,
    PrecisionRecall,
    Record,
    Rows,
    Study,
    Trial,
    Video,
)
from ai.lab.cli import main
from ai.lab.config import override
from ai.lab.page.server import serve
from ai.lab.recording.options import HookOptions, SessionOptions, TrialOptions
from ai.lab.report.table import Table
from ai.train import EarlyStopping, Snapshots

NAN, INF = math.nan, math.inf
TRIAL = {
    "path": [None, 3, b"t", "", ["t"]],
    "clean": ["no", 1, None],
    "config": [3, [1], "lr=0.1"],
    "loggers": ["tensorboard", 3, [3], ["nope"], [Alerts]],
    "keep_last": [0, -1, 1.5, "3", NAN, True],
    "system_interval_s": [0, -1, NAN, INF, "5s", True],
    "capture": ["no", 1, None],
    "progress": ["no", 1, None],
    "save_snapshots": ["yes", 3, None, Snapshots],
    "stopper": [3, EarlyStopping],
    "sampler": [3, Alerts],
    "task": [3, Alerts],
    "val_data": [3, list],
    "stateful": [3, [3], "x", [Trial]],
    **{
        f"{name}_interval": [0, -1, 1.5, "soon", "0s", NAN, True, []]
        for name in ("log", "val", "sample", "task", "save")
    },
}
EXPERIMENT = {
    **{name: TRIAL[name] for name in ("path", "clean", *HookOptions.__annotations__)},
    "direction": [3, "up", None, {}, {"a": 3}],
    "search": [3, None, "grid", {}, {"a": []}, {"a": 3}, {"a": "abc"}, {"a": {1, 2}}, {3: [1]}],
    "pruner": [3, "best", optuna.pruners.MedianPruner],
    "prune_by": [3],
    "prune_direction": ["up", 3],
    "seed": [-1, 1.5, "3", NAN, True],
    "seeds": [0, -1, 1.5, "3", NAN, True],
    "storage": [3],
}
RUN = {
    "n": [0, -1, 1.5, "3", NAN],
    "fn": [3, None, Trial],
    "n_jobs": [0, -1, 1.5, "2"],
    "catch": ["x", [3], (3,), 3, (print,)],
    "callbacks": [print, [3], "x", [Trial]],
    "timeout_s": [0, -1, NAN, "5", True],
    "devices": ["cuda", [3], 3],
    "engine": [3, "ray"],
    "progress": ["no", 1],
}
NAMED = {
    "n": "n( and n_jobs)?",
    "n_jobs": "n(_jobs| and n_jobs)",
    "direction": "direction",
    "search": "search",
}


def cases(table):
    return [pytest.param(name, value, id=f"{name}={value!r:.30}") for name, values in table.items() for value in values]


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("AI_LAB_PATH", str(tmp_path / "lab"))
    return tmp_path / "lab"


def refused(name, value, call):
    """One sentence: the argument, its rule, and what was given."""
    with pytest.raises((TypeError, ValueError)) as caught:
        call()
    text = str(caught.value)
    assert re.match(rf"{NAMED.get(name, name)}\b", text), text
    assert " must " in text, text
    last = value
    while isinstance(last, dict | list | tuple) and last and repr(value) not in text:
        last = next(iter(last.values())) if isinstance(last, dict) else last[0]
    shown = [repr(last), str(last), f"the class {getattr(last, '__name__', None)}", "an empty string"]
    shown += map(repr, value) if isinstance(value, dict) else []
    assert any(one in text for one in shown), text


@pytest.mark.parametrize(("name", "value"), cases(TRIAL))
def test_a_trial_refuses_before_its_folder_exists(name, value, home):
    refused(name, value, lambda: Trial(**{"path": "t", name: value}))
    assert not home.exists()


def test_every_option_of_a_trial_is_walked():
    assert set(TRIAL) == {"path", "clean", "config", "loggers", *TrialOptions.__annotations__}
    assert set(TRIAL) >= set(SessionOptions.__annotations__)
    parameters = set(inspect.signature(Experiment).parameters) - {"trial_options"}
    assert set(EXPERIMENT) == parameters | set(HookOptions.__annotations__)
    assert set(RUN) == set(inspect.signature(Experiment.run).parameters) - {"self"}


@pytest.mark.parametrize(("name", "value"), cases({name: TRIAL[name] for name in ("stopper", "val_interval", "task")}))
def test_a_hook_refuses_what_a_trial_does(name, value, tmp_path):
    refused(name, value, lambda: Trial(tmp_path / "t").hook(**{name: value}))


@pytest.mark.parametrize(("name", "value"), cases(EXPERIMENT))
def test_an_experiment_refuses_before_its_folder_exists(name, value, home):
    refused(name, value, lambda: Experiment(**{"path": "e", name: value}))
    assert not home.exists()


@pytest.mark.parametrize(("name", "value"), cases(RUN))
def test_a_search_refuses_before_a_trial_begins(name, value, tmp_path):
    experiment = Experiment(tmp_path / "e", search="random")
    refused(name, value, lambda: experiment.run(**{"n": 1, "fn": lambda trial: 1.0, name: value}))
    if name in ("n", "fn", "catch", "callbacks"):
        refused(name, value, lambda: experiment.offer(**{"n": 1, "fn": lambda trial: 1.0, name: value}))
    assert sorted(path.name for path in experiment.path.iterdir()) == [".ai-lab", "experiment.json"]


@pytest.mark.parametrize(
    ("choose", "named"),
    [
        (lambda hp: hp.lin("a", NAN, 1), "low of 'a' must be a number, got nan"),
        (lambda hp: hp.lin("a", 0, INF), "high of 'a' must be a number, got inf"),
        (lambda hp: hp.lin("a", "0", 1), "low of 'a' must be a number, got '0'"),
        (lambda hp: hp.lin("a", 0, 1, step=NAN), "step of 'a' must be a number, got nan"),
        (lambda hp: hp.lin("a", 0, 1, step=0), "step of 'a' must be positive, got 0"),
        (lambda hp: hp.lin("a", 1, 0), "low of 'a' must not exceed high, got 1 and 0"),
        (lambda hp: hp.lin(3, 0, 1), "name must be text, got 3"),
        (lambda hp: hp.log("a", 0, 1), "low of 'a' must be positive on a logarithmic scale, got 0"),
        (lambda hp: hp.log("a", True, 1), "low of 'a' must be a number, got True"),
        (lambda hp: hp.int("a", 1.5, 3), "low of 'a' must be a whole number, got 1.5"),
        (lambda hp: hp.int("a", 1, 3, step=1.5), "step of 'a' must be a whole number, got 1.5"),
        (lambda hp: hp.int("a", np.zeros(2, int), 3), "low of 'a' must be a whole number, got array([0, 0])"),
        (lambda hp: hp.lin("a", 0.0, np.ones(2)), "high of 'a' must be a number, got array([1., 1.])"),
        (lambda hp: hp.int("a", 1, 3, step=0), "step of 'a' must be at least 1, got 0"),
        (lambda hp: hp.int("a", 1, 3, log="yes"), "log must be True or False, got 'yes'"),
        (lambda hp: hp.lst("a", "abc"), "choices of 'a' must be a list, got 'abc'"),
        (lambda hp: hp.lst("a", {1, 2}), "choices of 'a' must be a list, got {1, 2}"),
        (lambda hp: hp.lst("a", []), "choices of 'a' must not be empty"),
        (lambda hp: hp.lst("a", [1, 1]), r"choices of 'a' must differ, got [1, 1]"),
    ],
)
def test_a_choice_among_what_is_none_is_named(choose, named, tmp_path):
    from ai.lab.search.hyperparameters import HyperParameters

    with pytest.raises((TypeError, ValueError), match=f"^{re.escape(named)}$"):
        choose(HyperParameters(optuna.trial.FixedTrial({"a": 0})))


def test_what_optuna_takes_and_arrays_of_choices_are_taken(tmp_path):
    def fn(trial) -> float:
        lr, width = trial.hp.lst("lr", np.array([0.1, 0.2])), trial.hp.lst("width", torch.tensor([8]))
        assert (type(lr), type(width)) == (float, int)
        if trial.number == 0:
            raise KeyError
        return lr * width

    seen = []
    callbacks = (one for one in [lambda study, trial: seen.append(trial.number)])
    search = {"lr": np.array([0.1, 0.2]), "width": torch.tensor([8])}
    experiment = Experiment(tmp_path / "e", search=search)
    experiment.run(2, fn, catch=[KeyError], callbacks=callbacks, progress=False)
    assert (sorted(row.state for row in experiment.trials()), seen) == (["failed", "finished"], [0, 1])
    assert experiment.best_score in (0.8, 1.6)
    assert [type(value) for value in experiment.best_trial.meta["hparams"].values()] == [float, int]
    single = Experiment(tmp_path / "single").run(1, fn, catch=KeyError, progress=False)
    assert [row.state for row in single.trials()] == ["failed"]


def test_a_path_may_be_of_any_kind_that_names_text(tmp_path):
    with Trial(tmp_path / "t", system_interval_s=None, capture=False) as trial:
        trial.log(0, {"loss": 1.0})
    (entry,) = os.scandir(tmp_path)
    assert Trial(entry, system_interval_s=None).path == tmp_path / "t"


@pytest.mark.parametrize("name", ["names", "metrics", "config", "over"])
@pytest.mark.parametrize("value", ["loss", 3, [3], (one for one in ["loss"])])
def test_a_comparison_takes_lists_of_texts(name, value, tmp_path):
    refused(name, value, lambda: Study(tmp_path / "s").compare(**{name: value}))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Study(3), "path must be text or a pathlib.Path, got 3"),
        (lambda: Study("s", clean="no"), "clean must be True or False, got 'no'"),
        (lambda: Alerts(3), "to must be a callable or an address such as 'https://host/path', got 3"),
        (lambda: Alerts(print, ends=3), "ends must be a tuple of states, such as ('failed',), got 3"),
        (
            lambda: Alerts(print, ends=("lost",)),
            "ends must be of finished, stopped, pruned, interrupted, failed, got lost",
        ),
        (lambda: serve(Path(), port=-1), "port must be a whole number from 0, got -1"),
        (lambda: serve(Path(), port=70_000), "port must be at most 65535, got 70000"),
        (lambda: serve(Path(), port="80"), "port must be a whole number from 0, got '80'"),
        (lambda: serve(Path(), host=3), "host must be text, got 3"),
        (lambda: serve(Path(), token=3), "token must be text or None, got 3"),
        (lambda: Histogram([1.0], bins=1.5).to_json(), "bins must be a whole number from 1, got 1.5"),
        (lambda: Histogram([1.0], bins=10**9).to_json(), "bins must be at most 10000, got 1000000000"),
        (lambda: Histogram("abc").to_json(), "values must be numbers, got 'abc'"),
        (lambda: Histogram(None).to_json(), "values must be numbers, got None"),
        (lambda: Histogram([[1.0], []]).to_json(), "values must be numbers, got [[1.0], []]"),
        (lambda: PrecisionRecall([0], ["a"]).to_json(), "scores must be numbers, got ['a']"),
        (lambda: PrecisionRecall([0], [1j]).to_json(), "scores must be numbers, got [1j]"),
        (lambda: Rows(["a"], None).to_json(), "rows must be a list of rows, got None"),
        (lambda: Table(["a"], [[1]]).to_markdown(best=3), "best must be a dict of 'min' or 'max' by name, got 3"),
        (lambda: Table(["a"], [[1]]).to_latex(best={"a": "up"}), "best of 'a' must be 'min' or 'max', got 'up'"),
        (lambda: override({}, 3), "an override must be text that reads name=value, got 3"),
        (lambda: Record(None), "path must be text or a pathlib.Path, got None"),
        (lambda: Metrics(3), "columns must be arrays of steps, times and values by name, got 3"),
        (
            lambda: Metrics({"a": ([0], [1])}),
            "columns['a'] must be steps, times and values of one length, got ([0], [1])",
        ),
        (
            lambda: Metrics({"a": ([0], [1], [])}),
            "columns['a'] must be steps, times and values of one length, got ([0], [1], [])",
        ),
        (lambda: Rows("ab", []).to_json(), "columns must be a list of texts, got 'ab'"),
    ],
)
def test_what_is_none_is_named(call, message, home):
    with pytest.raises((TypeError, ValueError), match=f"^{re.escape(message)}$"):
        call()
    assert not home.exists()


@pytest.mark.parametrize("value", [0, -1, NAN, "5", True, 1e9])
def test_a_stall_is_a_time(value):
    refused("stall_after_s", value, lambda: Alerts(print, stall_after_s=value))


def test_what_is_written_by_hand_is_named(tmp_path):
    study = Study(tmp_path / "s")
    with pytest.raises(TypeError, match=r"^text must be text, got 3$"):
        study.note(3)
    with pytest.raises(TypeError, match=r"^name must be text, got None$"):
        study.trial(None)
    with Trial(tmp_path / "t", system_interval_s=None, capture=False) as trial:
        for values in ([], "x", 3, None, [("loss", 1.0)]):
            with pytest.raises(TypeError, match=re.escape(f"values must be a dict of numbers by name, got {values!r}")):
                trial.log(0, values)
        with pytest.raises(TypeError, match=r"^name must be text, got 3$"):
            trial.keep(0, 3, "said")
        with pytest.raises(TypeError, match=r"^layout must be text or None, got 3$"):
            trial.keep(0, "words", "said", layout=3)
    assert trial.record.metrics().last() == {}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["serve", "--port", "-1"], "port must be a whole number from 0, got -1"),
        (["serve", "--port", "70000"], "port must be at most 65535, got 70000"),
        (["serve", "--host", "0.0.0.0"], "host 0.0.0.0 can be reached from other machines: pass --token"),
        (["ls", "nope"], "'nope' is nothing that the lab recorded"),
        (["compare", "nope"], "'nope' is nothing that the lab recorded"),
        (["show", ""], "'' is nothing that the lab recorded"),
        (["publish", "nope", "out"], "'nope' is nothing that the lab recorded"),
        (["work", "nope"], "'nope' is nothing that the lab recorded"),
    ],
)
def test_the_command_line_says_it_in_one_line(arguments, said, home, capsys):
    assert main(arguments) == 1
    out, error = capsys.readouterr()
    assert (out, error.count("\n")) == ("", 1)
    assert error.startswith(f"ai-lab: {said}")
    assert not home.exists()


@pytest.mark.parametrize("arguments", [["serve"], ["ls"], ["ls", "x"], ["show", "x"], ["work", "x"]])
def test_a_wrong_root_is_wrong_usage_of_the_command_line(arguments, tmp_path, monkeypatch, capsys):
    root = tmp_path / "notes.txt"
    root.write_text("")
    monkeypatch.setenv("AI_LAB_PATH", str(root))
    assert main(arguments) == 2
    assert capsys.readouterr().err == f"ai-lab: AI_LAB_PATH ({root}) must be a folder, and {root} is none\n"


def test_a_model_and_its_optimizer_that_are_swapped_are_named_before_there_is_a_snapshot(tmp_path):
    net = torch.nn.Linear(1, 1)
    with pytest.raises(TypeError, match=r"^'model' is given an optimizer \(SGD\) for its model: the model comes first"):
        Trial(tmp_path / "swapped").resume(torch.optim.SGD(net.parameters()), net)
    assert Trial(tmp_path / "swapped").resume(net, torch.optim.SGD(net.parameters())) == 0


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_what_has_ended_is_copied_and_pickled_and_what_is_written_has_one_writer(again, tmp_path):
    with Trial(tmp_path / "t", config={"lr": 0.1}, system_interval_s=None, capture=False) as trial:
        trial.log(0, {"loss": 2.0})
    assert again(trial).id == again(trial.record).id == trial.id
    assert again(trial.metrics()).last() == {"loss": 2.0}
    assert again(Study(tmp_path / "s")).path == tmp_path / "s"
    experiment = Experiment(tmp_path / "e", search="random").run(1, lambda trial: 3.0, progress=False)
    assert again(experiment).best_score == 3.0
    for one in (
        Histogram([1.0, 2.0]),
        Rows(["a"], [[1]]),
        Confusion([0, 1], [1, 0]),
        PrecisionRecall([0, 1], [0.2, 0.8]),
    ):
        assert again(one).to_json() == one.to_json()
    for one in (Audio(np.zeros(9), rate=8000), Video(np.zeros((2, 4, 4, 3), "uint8"))):
        assert again(one).to_file() == one.to_file()
    told = again(Alerts(print, ends=("failed",)))
    assert vars(told).keys() == vars(Alerts(print)).keys()
    if again is not copy.copy:
        with Trial(tmp_path / "open", system_interval_s=None, capture=False) as trial:
            trial.log(0, {"loss": 1.0})
            with pytest.raises(TypeError, match="has one writer, and cannot be copied or pickled"):
                again(trial)
            trial.log(1, {"loss": 0.5})
        assert trial.metrics()["loss"].values.tolist() == [1.0, 0.5]


def test_a_score_that_no_float_holds_fails_in_one_sentence(tmp_path):
    experiment = Experiment(tmp_path / "e", search="random")
    with pytest.raises(
        ValueError, match=r"^the objective must return a score that a float holds, got one of 1329 bits$"
    ):
        experiment.run(1, lambda trial: 10**400, progress=False)
    assert [row.state for row in experiment.trials()] == ["failed"]


HELD = {}
HELD["held"] = HELD


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (10**5000, "note 'x' must be what JSON can hold: Exceeds the limit"),
        ([{"y": 10**5000}], "note 'x' must be what JSON can hold: Exceeds the limit"),
        (HELD, "note 'x' must be what JSON can hold: Circular reference detected"),
        ({(0, 1): 2}, "note 'x' must be what JSON can hold: keys must be str"),
        ({"a": {1: 2, "1": 3}}, "note 'x' must be what JSON can hold: has two keys that are the same as text"),
    ],
    ids=["number", "number inside", "itself", "key", "keys"],
)
def test_a_note_that_no_file_holds_is_named_and_the_trial_goes_on(value, said, tmp_path):
    with Trial(tmp_path / "t", system_interval_s=None, capture=False) as trial:
        trial.note(before=1)
        with pytest.raises((TypeError, ValueError), match=f"^{re.escape(said)}"):
            trial.note(x=value)
        trial.note(after=Path("a"))
    assert trial.record.meta["notes"] == {"before": 1, "after": "a"}


def test_what_is_done_to_a_note_afterwards_is_none(tmp_path):
    results = {"fid": 9.5}
    with Trial(tmp_path / "t", system_interval_s=None, capture=False) as trial:
        trial.note(results=results)
        results["itself"] = results
        trial.note(more=[1, 2])
    assert trial.record.meta["notes"] == {"results": {"fid": 9.5}, "more": [1, 2]}


@pytest.mark.parametrize("config", [{"x": 10**5000}, {"x": [1, {"y": -(10**5000)}]}], ids=["x", "y"])
def test_a_number_that_python_does_not_write_is_refused_before_there_is_a_folder(config, tmp_path):
    with pytest.raises(ValueError, match=r"^config x.* must be a whole number of at most 14000 bits, got one of 16610"):
        Trial(tmp_path / "t", config=config)
    assert not list(tmp_path.iterdir())
    kept = Trial(tmp_path / "t", config={"x": 2**14_000 - 1}, system_interval_s=None, capture=False)
    assert kept.record.config == {"x": 2**14_000 - 1}


def test_what_is_reported_to_a_search_is_a_number_at_a_step(tmp_path):
    def objective(trial) -> float:
        for step, score, error, said in (
            ("a", 1, TypeError, "step must be an int, got 'a'"),
            (None, 1, TypeError, "step must be an int, got None"),
            (10**5000, 1, ValueError, "step must have at most 64 bits, got one of 16610"),
            (1, "3", TypeError, "metric 'score' must be one number, got '3'"),
            (1, 10**400, ValueError, "metric 'score' must be a number that a float holds, got one of 1329 bits"),
        ):
            with pytest.raises(error, match=f"^{re.escape(said)}$"):
                trial.report(step, score)
        trial.report(np.int64(3), np.float32(0.5))
        return 0.0

    experiment = Experiment(tmp_path / "e", search="random", seeds=2).run(1, objective, progress=False)
    assert experiment.study.trials[0].intermediate_values == {3: 0.5}


def test_a_picture_is_kept_at_a_path(tmp_path):
    with Trial(tmp_path / "t", system_interval_s=None, capture=False) as trial:
        trial.log(0, {"loss": 1.0})
    with pytest.raises(TypeError, match=r"^path must be text or a pathlib.Path, got 3$"):
        trial.plot(path=3)
