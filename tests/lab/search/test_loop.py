import os
import signal
import sys

import optuna
import pytest
import torch
from torch import nn

from ai.lab import Experiment, Record
from ai.lab.search.loop import Run
from ai.train import Regress, Trainer, opt

QUIET = {"progress": False}
GRID = {"a": [1, 2, 3], "b": [10, 20, 30, 40]}


def point(trial) -> float:
    return trial.hp.int("a", 1, 3) + trial.hp.int("b", 10, 40)


def points(experiment) -> list[tuple]:
    return sorted(tuple(row.hparams.values()) for row in experiment.trials() if row.state == "finished")


WHOLE = sorted((a, b) for a in GRID["a"] for b in GRID["b"])


@pytest.mark.parametrize(
    "search",
    [GRID, optuna.samplers.GridSampler(GRID), lambda seed: optuna.samplers.GridSampler(GRID, seed=seed)],
    ids=["dict", "sampler", "function"],
)
def test_a_grid_is_walked_whole_and_ends_there(tmp_path, search):
    experiment = Experiment(tmp_path / "e", search=search).run(20, point, **QUIET)
    assert points(experiment) == WHOLE
    assert points(experiment.run(20, point, **QUIET)) == WHOLE  # asked again, it begins no second walk


def test_a_search_in_which_no_trial_keeps_its_constraints_ends_and_says_so(tmp_path):
    def breaks(trial) -> float:
        trial.optuna.set_constraint("size", 1.0)
        return point(trial)

    experiment = Experiment(tmp_path / "e").run(2, breaks, **QUIET)
    with pytest.raises(ValueError, match="no finished trial that keeps its constraints"):
        experiment.best_row  # noqa: B018
    assert not (tmp_path / "e" / "@best").exists()


@pytest.mark.parametrize(("file", "text"), [("experiment.json", "{"), ("experiment.json", "{}"), ("optuna.log", "{\n")])
def test_a_damaged_file_of_a_search_is_named(tmp_path, file, text):
    Experiment(tmp_path / "e").run(1, point, **QUIET)
    (tmp_path / "e" / file).write_text(text)
    with pytest.raises(ValueError, match=f"{file}.* is damaged"):
        Experiment(tmp_path / "e").trials()


def test_a_grid_interrupted_again_and_again_is_still_walked_whole(tmp_path):
    broken = {2, 5, 6}

    def fn(trial) -> float:
        if trial.number in broken:
            broken.remove(trial.number)
            raise ZeroDivisionError if trial.number == 5 else KeyboardInterrupt
        return point(trial)

    for _ in range(3):
        with pytest.raises((KeyboardInterrupt, ZeroDivisionError)):
            Experiment(tmp_path / "e", search=GRID).run(12, fn, **QUIET)
    assert points(Experiment(tmp_path / "e", search=GRID).run(12, fn, **QUIET)) == WHOLE


def test_what_is_queued_runs_first_with_what_it_was_given(tmp_path):
    experiment = Experiment(tmp_path / "e", search="random")
    for x in (0.25, -0.5):
        experiment.study.enqueue_trial({"x": x})
    experiment.run(3, lambda trial: trial.hp.lin("x", -1, 1), **QUIET)
    assert [row.score for row in experiment.trials()][:2] == [0.25, -0.5]
    assert len(experiment.trials()) == 3


def test_trial_pruned_raised_by_the_objective_is_a_pruned_trial(tmp_path):
    def fn(trial) -> float:
        if trial.number == 1:
            raise optuna.TrialPruned
        return 1.0

    experiment = Experiment(tmp_path / "e").run(3, fn, **QUIET)
    assert [row.state for row in experiment.trials()] == ["finished", "pruned", "finished"]
    assert Record(experiment.trials()[1].path).state == "pruned"


def test_callbacks_are_called_after_each_trial_and_may_stop_the_search(tmp_path):
    seen = []

    def callback(study, trial) -> None:
        seen.append((trial.number, trial.state.name))
        if len(seen) == 2:
            study.stop()

    experiment = Experiment(tmp_path / "e").run(9, lambda trial: 0.0, callbacks=[callback], **QUIET)
    assert seen == [(0, "COMPLETE"), (1, "COMPLETE")]
    assert len(experiment.trials()) == 2
    assert len(experiment.run(4, lambda trial: 0.0, **QUIET).trials()) == 4  # asked again, it goes on


def test_the_time_limit_begins_no_further_trial(tmp_path):
    experiment = Experiment(tmp_path / "e").run(1000, lambda trial: 0.0, timeout_s=0.05, **QUIET)
    begun = len(experiment.trials())  # on a busy machine none
    assert begun < 1000
    assert len(experiment.run(begun + 2, lambda trial: 0.0, timeout_s=1e6, **QUIET).trials()) == begun + 2
    with pytest.raises(ValueError, match="timeout_s must be a positive number of seconds or None, got 0"):
        experiment.run(1, lambda trial: 0.0, timeout_s=0)


@pytest.mark.parametrize("search", ["tpe", "random"])
def test_a_search_that_lost_trials_chooses_what_a_whole_one_does(tmp_path, search):
    def fn(trial) -> float:
        x, choice = trial.hp.lin("x", -1, 1), trial.hp.lst("choice", list("abc"))
        return x + "abc".index(choice)

    def loses(trial) -> float:
        trial.hp.lin("x", -1, 1)
        raise KeyboardInterrupt

    whole = Experiment(tmp_path / "a", search=search, seed=3).run(14, fn, **QUIET)
    for n in (1, 5, 14):
        with pytest.raises(KeyboardInterrupt):
            Experiment(tmp_path / "b", search=search, seed=3).run(n, loses, **QUIET)
        Experiment(tmp_path / "b", search=search, seed=3).run(n, fn, **QUIET)
    lost = Experiment(tmp_path / "b", search=search, seed=3).trials()
    assert [row[:4] for row in lost] == [row[:4] for row in whole.trials()]


def test_a_score_that_was_recorded_before_the_process_died_is_kept(tmp_path):
    experiment = Experiment(tmp_path / "e", search="random")
    asked = experiment.study.ask()
    trial = experiment._search.begin(asked)
    assert experiment._search.score(trial, Run(1, lambda trial: 0.5)) == [0.5]
    experiment._search._release()  # as its death before Optuna was told does
    assert [row.score for row in experiment.run(1, lambda trial: 9.0, **QUIET).trials()] == [0.5]


def test_a_trial_that_ended_is_not_taken_for_dead_before_optuna_knows(tmp_path):
    experiment, other = Experiment(tmp_path / "e", search="random"), Experiment(tmp_path / "e", search="random")
    seen = []

    class Slow(optuna.samplers.RandomSampler):
        def after_trial(self, study, trial, state, values) -> None:
            seen.append(other._search.has(1))  # another process looks, between the end and the word of it

    Experiment(tmp_path / "e", search=Slow()).run(1, lambda trial: trial.hp.lin("x", 0, 1), **QUIET)
    assert seen == [True]
    assert [row.state for row in experiment.trials()] == ["finished"]
    assert experiment.best_score == experiment.best_hparams["x"]


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (SystemExit(3), "failed"),
        (SystemExit(0), "interrupted"),
        (SystemExit(128 + signal.SIGTERM), "interrupted"),
        (KeyboardInterrupt(), "interrupted"),
        (ZeroDivisionError("x"), "failed"),
    ],
)
def test_what_ends_the_objective_is_raised_and_says_the_state(tmp_path, error, state):
    def fn(trial) -> float:
        raise error

    experiment = Experiment(tmp_path / "e")
    with pytest.raises(type(error)):
        experiment.run(1, fn, **QUIET)
    assert [row.state for row in experiment.trials()] == [state]
    assert Record(experiment.trials()[0].path).state == state


def test_a_search_whose_folder_is_moved_says_so_and_goes_on_where_it_is(tmp_path):
    def fn(trial) -> float:
        if trial.number == 1 and (tmp_path / "e").exists():
            (tmp_path / "e").rename(tmp_path / "moved")
        return float(trial.number)

    said = f"the folder was moved or deleted while it was searched; .*: '{tmp_path / 'e'}'"
    with pytest.raises(FileNotFoundError, match=said):
        Experiment(tmp_path / "e", search="random").run(3, fn, **QUIET)
    assert not (tmp_path / "e").exists()
    moved = Experiment(tmp_path / "moved", search="random").run(3, fn, **QUIET)
    assert [row.state for row in moved.trials()].count("finished") == 3


# -- several objectives


def test_the_best_of_those_that_keep_their_constraints_wins_and_one_that_was_added_has_no_folder(tmp_path):
    def objective(trial):
        x = trial.hp.lst("x", [0, 1, 2, 3])
        trial.optuna.set_constraint("at least two", 2.0 - x)
        return float(x)

    experiment = Experiment(tmp_path / "e", search={"x": [0, 1, 2, 3]}).run(4, objective, **QUIET)
    assert (experiment.best_score, experiment.best_trial.path.resolve()) == (2.0, (tmp_path / "e/@best").resolve())
    other = Experiment(tmp_path / "other")
    other.study.add_trial(optuna.trial.create_trial(value=-1.0))
    other.run(2, lambda trial: 0.0, **QUIET)
    assert other.best_score == -1.0
    with pytest.raises(FileNotFoundError, match=r"the best trial, 0, has no folder in .*other"):
        other.best_trial  # noqa: B018  (reading it is the test)


def test_several_objectives_have_a_front_and_no_best(tmp_path):
    def fn(trial) -> dict[str, float]:
        x = trial.hp.lst("x", [1, 2, 3, 4])
        return {"size": x, "accuracy": {1: 0.5, 2: 0.9, 3: 0.8, 4: 0.95}[x]}

    directions = {"accuracy": "max", "size": "min"}
    experiment = Experiment(tmp_path / "e", directions, search={"x": [1, 2, 3, 4]}).run(9, fn, **QUIET)
    assert sorted(row.scores for row in experiment.best_rows) == [(0.5, 1), (0.9, 2), (0.95, 4)]
    assert str(experiment.trials()).split("\n")[0].split() == ["number", "state", "accuracy", "size", "x"]
    row = experiment.best_rows[0]
    assert Record(row.path).meta["scores"] == {"accuracy": row.scores[0], "size": row.scores[1]}
    with pytest.raises(ValueError, match="has several objectives: best_rows are those that none surpasses"):
        _ = experiment.best_row
    with pytest.raises(ValueError, match=r"direction of .* is"):
        Experiment(tmp_path / "e", {"accuracy": "max", "size": "max"})


@pytest.mark.parametrize("score", [1.0, [1.0], {"a": 1.0}, {"a": 1.0, "c": 2.0}, "ab"])
def test_scores_that_do_not_fit_the_objectives_are_refused(tmp_path, score):
    with pytest.raises(TypeError, match="the objective must return"):
        Experiment(tmp_path / "e", {"a": "min", "b": "min"}).run(1, lambda trial: score, **QUIET)


# -- pruning


def train(trial, lr: float, task=None) -> float:
    batch = (torch.ones(8, 2), torch.ones(8, 1))
    model = nn.Linear(2, 1)
    nn.init.zeros_(model.weight), nn.init.zeros_(model.bias)
    how = {"val_data": [batch], "val_interval": 5, "log_interval": 5}
    if task is not None:
        how |= {"task": task, "task_interval": 5}
    Trainer(Regress(), [batch] * 50).train(model, opt.sgd(model, lr=lr), trial.hook(**how))
    return -trial.metrics()["val_loss"].values[-1]


@pytest.mark.parametrize(
    "prune",
    [
        {"prune_by": "val_loss", "prune_direction": "min"},
        {"prune_by": "quality"},
    ],
)
def test_with_the_largest_score_the_best_the_worst_trial_is_the_one_given_up(tmp_path, prune):
    def quality(model, step) -> dict[str, float]:
        return {"quality": -float((model(torch.ones(1, 2)) - 1).detach().square())}

    pruner = optuna.pruners.MedianPruner(n_startup_trials=2)
    experiment = Experiment(tmp_path / "e", "max", pruner=pruner, **prune)
    rates = [1e-3, 1e-3, 0.1, 1e-9]
    experiment.run(4, lambda trial: train(trial, rates[trial.number], quality), **QUIET)
    assert [row.state for row in experiment.trials()] == ["finished", "finished", "finished", "pruned"]
    assert experiment.best_row.number == 2


def test_a_metric_that_no_evaluation_measures_is_refused_as_what_to_prune_by(tmp_path):
    experiment = Experiment(tmp_path / "e", pruner="median", prune_by="val_los")
    with pytest.raises(ValueError, match=r"prune_by must be a metric that evaluations measure \(val_loss\), got 'val_"):
        experiment.run(2, lambda trial: train(trial, 0.1), **QUIET)


# -- several processes


@pytest.mark.slow
def test_each_process_has_its_device_and_a_callback_stops_them_all(tmp_path):
    def stop(study, trial) -> None:
        if trial.number >= 3:
            study.stop()

    experiment = Experiment(tmp_path / "e", search="random")
    devices = ["cuda:0", "cuda:1"]
    experiment.run(10_000, lambda trial: float(trial.device[-1]), devices=devices, callbacks=[stop], **QUIET)
    rows = experiment.trials()
    assert 4 <= len(rows) < 10_000  # as many more as one makes before it hears of it
    assert {row.score for row in rows} <= {0.0, 1.0}
    assert "stop" not in sys.modules


@pytest.mark.slow
def test_a_worker_that_leaves_ends_the_search_as_the_objective_alone_would(tmp_path):
    def leave(trial) -> float:
        sys.exit(3)

    experiment = Experiment(tmp_path / "e", search="random")
    with pytest.raises(SystemExit) as ended:
        experiment.run(4, leave, n_jobs=2, **QUIET)
    assert ended.value.code == 3


@pytest.mark.slow
def test_a_killed_worker_is_replaced_though_its_child_lives_on(tmp_path):
    flag = tmp_path / "flag"

    def fn(trial) -> float:
        if not flag.exists():
            child = os.fork()
            if child == 0:
                signal.pause()  # until the test ends it
                os._exit(0)
            flag.write_text(str(child))
            os.kill(os.getpid(), signal.SIGKILL)
        return 1.0

    experiment = Experiment(tmp_path / "e", search="random").run(2, fn, n_jobs=2, **QUIET)
    os.kill(int(flag.read_text()), signal.SIGKILL)  # it was alive all the while
    assert [row.state for row in experiment.trials()] == ["finished", "finished"]
