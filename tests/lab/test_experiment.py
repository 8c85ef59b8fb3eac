import functools
import math
import os
import signal

import optuna
import pytest
import torch
from torch import nn

from ai.lab import Experiment, Record
from ai.lab.files.folder import mark
from ai.lab.files.ownership import Owner, last_holder
from ai.lab.search.optuna_storage import FileLock, open_storage
from ai.train import Regress, Trainer, opt

QUIET = {"progress": False}


def parabola(trial) -> float:
    x = trial.hp.lin("x", -1, 1)
    trial.log(0, {"x": x})
    return (x - 0.25) ** 2


def test_a_search_finds_the_minimum_of_a_parabola(tmp_path):
    experiment = Experiment(tmp_path / "e").run(25, parabola, **QUIET)
    assert experiment.best_score == min(row.score for row in experiment.trials())
    assert abs(experiment.best_hparams["x"] - 0.25) < 0.1
    assert len(experiment.trials()) == 25


def test_direction_max_takes_the_largest(tmp_path):
    experiment = Experiment(tmp_path / "e", "max", search="random").run(6, parabola, **QUIET)
    assert experiment.best_score == max(row.score for row in experiment.trials())


def test_each_trial_is_recorded_with_its_choices_and_score(tmp_path):
    experiment = Experiment(tmp_path / "e", search="random").run(3, parabola, **QUIET)
    for row in experiment.trials():
        record = Record(row.path)
        assert record.state == "finished"
        assert record.meta["hparams"] == row.hparams
        assert record.meta["score"] == row.score
        assert record.metrics()["x"].values.tolist() == [row.hparams["x"]]
    assert experiment.best_trial.path == experiment.best_row.path


def test_run_counts_the_trials_that_are_there(tmp_path):
    Experiment(tmp_path / "e", search="random").run(3, parabola, **QUIET)
    assert len(Experiment(tmp_path / "e", search="random").run(5, parabola, **QUIET).trials()) == 5


def choices(experiment) -> list[dict]:
    return [row.hparams for row in experiment.trials()]


@pytest.mark.parametrize("search", ["tpe", "random"])
def test_a_search_that_was_interrupted_chooses_what_a_whole_one_does(tmp_path, search):
    whole = Experiment(tmp_path / "a", search=search, seed=3).run(14, parabola, **QUIET)
    halves = Experiment(tmp_path / "b", search=search, seed=3).run(6, parabola, **QUIET)
    halves = Experiment(tmp_path / "b", search=search, seed=3).run(14, parabola, **QUIET)
    assert choices(whole) == choices(halves)
    assert choices(Experiment(tmp_path / "c", search=search, seed=4).run(2, parabola, **QUIET)) != choices(whole)[:2]


def test_every_kind_of_hyper_parameter_stays_in_its_bounds(tmp_path):
    seen = []

    def fn(trial) -> float:
        values = (
            trial.hp.lin("lin", 0, 1, step=0.25),
            trial.hp.log("log", 1e-4, 1e-1),
            trial.hp.int("int", 1, 9, step=2),
            trial.hp.lst("lst", ["a", None, 3]),
            trial.hp.lst("functions", [torch.relu, torch.tanh]),
        )
        seen.append(values)
        return 0.0

    Experiment(tmp_path / "e", search="random").run(12, fn, **QUIET)
    for lin, log, whole, choice, function in seen:
        assert lin in (0, 0.25, 0.5, 0.75, 1)
        assert 1e-4 <= log <= 1e-1
        assert whole in (1, 3, 5, 7, 9)
        assert choice in ("a", None, 3)
        assert function in (torch.relu, torch.tanh)
    assert len({values[4] for values in seen}) == 2


def test_a_grid_holds_whatever_a_choice_may_be(tmp_path):
    grid = {"widths": [(8, 8), (16,)], "actv": [torch.relu, None]}
    seen = set()

    def fn(trial) -> float:
        chosen = tuple(trial.hp.lst(name, choices) for name, choices in grid.items())
        seen.add(chosen)
        return float(sum(chosen[0]))

    experiment = Experiment(tmp_path / "e", search=grid).run(4, fn, **QUIET)
    assert seen == {((8, 8), torch.relu), ((8, 8), None), ((16,), torch.relu), ((16,), None)}
    assert experiment.trials().pivot("widths", "actv").columns == ["widths \\ actv", "None", "relu"]


@pytest.mark.parametrize(
    ("define", "message"),
    [
        (lambda hp: hp.lin("x", 2, 1), "low of 'x' must not exceed high, got 2 and 1"),
        (lambda hp: hp.log("x", 0, 1), "low of 'x' must be positive on a logarithmic scale, got 0"),
        (lambda hp: hp.int("x", 1, 5, step=0), "step of 'x' must be at least 1, got 0"),
        (lambda hp: hp.int("x", 0, 5, log=True), "log of 'x' needs low >= 1 and step 1, got low 0 and step 1"),
        (lambda hp: hp.lin("x", 0, 5, step=-1), "step of 'x' must be positive, got -1"),
        (lambda hp: hp.lst("x", []), "choices of 'x' must not be empty"),
        (lambda hp: hp.lst("x", [1, 1]), "choices of 'x' must differ"),
    ],
)
def test_a_wrong_range_is_named_and_is_no_counted_trial(tmp_path, define, message):
    experiment = Experiment(tmp_path / "e")
    with pytest.raises(ValueError, match=message):
        experiment.run(1, lambda trial: define(trial.hp), **QUIET)
    assert [row.state for row in experiment.trials()] == ["failed"]
    assert len([row for row in experiment.run(1, parabola, **QUIET).trials() if row.score is not None]) == 1


def test_exceptions_named_by_catch_count_as_failed_trials(tmp_path):
    def fn(trial) -> float:
        if trial.number == 1:
            raise FloatingPointError("diverged")
        return math.nan if trial.number == 2 else 1.0

    experiment = Experiment(tmp_path / "e").run(4, fn, catch=(FloatingPointError,), **QUIET)
    assert [row.state for row in experiment.trials()] == ["finished", "failed", "failed", "finished"]
    assert Record(experiment.trials()[1].path).meta["error"] == "FloatingPointError: diverged"


@pytest.mark.parametrize("score", ["good", None, True, torch.zeros(2)])
def test_a_score_that_is_no_number_is_refused(tmp_path, score):
    with pytest.raises((TypeError, RuntimeError), match=r"must return one number as its score|2 elements"):
        Experiment(tmp_path / "e").run(1, lambda trial: score, **QUIET)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"direction": "up"}, "direction must be 'min' or 'max', or a dict of them by objective, got 'up'"),
        ({"search": "grid"}, "search must be 'tpe', 'random', a dict of lists, .*, got 'grid'"),
        ({"search": {}}, "search must name at least one hyper-parameter, each with at least one choice, got {}"),
        ({"search": {"a": []}}, "each with at least one choice, got {'a': "),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"pruner": "x"}, "pruner must be None, 'median', 'halving' or an Optuna pruner, got 'x'"),
        ({"direction": {}}, "direction must be 'min' or 'max', or a dict of them by objective, got {}"),
        ({"direction": "max", "pruner": "median"}, "prune_by must name the metric that the pruner compares"),
        (
            {"direction": "max", "pruner": "median", "prune_by": "val_loss"},
            "prune_by 'val_loss' would be the better the larger, as direction is 'max': pass prune_direction",
        ),
        (
            {"direction": {"a": "min", "b": "max"}, "pruner": "median"},
            r"pruner must be None with several objectives \(a, b\)",
        ),
    ],
)
def test_wrong_arguments_are_named_before_a_folder_is_made(tmp_path, how, message):
    with pytest.raises(ValueError, match=message):
        Experiment(tmp_path / "e", **how)
    assert not (tmp_path / "e").exists()


def test_other_wrong_uses_are_named(tmp_path, monkeypatch):
    experiment = Experiment(tmp_path / "e")
    with pytest.raises(ValueError, match="n and n_jobs must be at least 1, got 0 and 1"):
        experiment.run(0, parabola)
    with pytest.raises(ValueError, match="has no finished trial yet"):
        _ = experiment.best_hparams
    with pytest.raises(ValueError, match=r"direction of .* is 'min', got 'max'"):
        Experiment(tmp_path / "e", "max")
    with pytest.raises(TypeError, match=r"trial options must be of val_data, .*; got val"):
        Experiment(tmp_path / "f", val=3)
    with pytest.raises(ValueError, match=r"seeds of .* is 1, got 3; choose another path"):
        Experiment(tmp_path / "e", seeds=3).run(1, parabola)
    with pytest.raises(TypeError, match=r"seeds must be an int, got 2\.0"):
        Experiment(tmp_path / "f", seeds=2.0)
    with pytest.raises(TypeError, match=r"n must be an int, got 2\.5"):
        experiment.run(2.5, parabola)
    with monkeypatch.context() as ranks:
        ranks.setenv("WORLD_SIZE", "2")
        with pytest.raises(
            RuntimeError, match="is run by one process, and this is one of 2 ranks: fn may start torchrun, o"
        ):
            experiment.run(2, parabola)
    with pytest.raises(TypeError, match="devices must be a list of texts, got 'cuda:1'"):
        experiment.run(2, parabola, devices="cuda:1")


def test_a_hopeless_trial_is_pruned_through_its_hook_as_a_normal_end(tmp_path):
    batch = (torch.ones(8, 2), torch.ones(8, 1))

    def fn(trial) -> float:
        lr = [0.1, 0.1, 1e-9][trial.number]
        model = nn.Linear(2, 1)
        nn.init.zeros_(model.weight), nn.init.zeros_(model.bias)
        hook = trial.hook(val_data=[batch], val_interval=5, log_interval=5)
        steps = Trainer(Regress(), [batch] * 50).train(model, opt.sgd(model, lr=lr), hook)
        assert (steps < 50) == trial.pruned
        return trial.metrics()["val_loss"].values[-1]

    pruner = optuna.pruners.MedianPruner(n_startup_trials=2)
    experiment = Experiment(tmp_path / "e", pruner=pruner).run(3, fn, **QUIET)
    assert [row.state for row in experiment.trials()] == ["finished", "finished", "pruned"]
    assert Record(experiment.trials()[2].path).state == "pruned"


def test_a_journal_torn_by_a_kill_is_mended(tmp_path):
    experiment = Experiment(tmp_path / "e", search="random").run(2, parabola, **QUIET)
    with open(tmp_path / "e" / "optuna.log", "ab") as file:
        file.write(b'{"op_code":4,"work')
    again = Experiment(tmp_path / "e", search="random").run(4, parabola, **QUIET)
    assert [row.number for row in again.trials()] == [0, 1, 2, 3]
    assert len(experiment.trials()) == 4


def test_the_lock_of_a_dead_process_is_free(tmp_path):
    lock = FileLock(tmp_path / "lock")
    pid = os.fork()
    if pid == 0:  # pragma: no cover  (the child)
        FileLock(tmp_path / "lock").acquire()
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    with lock.held():
        pass


def test_a_lock_that_is_never_given_back_is_waited_for_with_a_bound(tmp_path):
    with FileLock(tmp_path / "lock").held():
        with pytest.raises(TimeoutError, match=r"lock was held by another process for 0.01 s: is one stopped\?"):
            FileLock(tmp_path / "lock", timeout_s=0.01).acquire()
    with pytest.raises(FileNotFoundError):
        FileLock(tmp_path / "lock", tmp_path / "no journal").acquire()
    with FileLock(tmp_path / "lock", timeout_s=0.01).held():  # neither of them kept it
        pass


def dies_once(flag, trial) -> float:
    if trial.number == 1 and not flag.exists():
        flag.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return trial.hp.lin("x", 0, 1)


@pytest.mark.slow
def test_processes_share_an_experiment_and_a_killed_one_is_replaced(tmp_path, capsys):
    experiment = Experiment(tmp_path / "e", search="random")
    experiment.run(6, functools.partial(dies_once, tmp_path / "flag"), n_jobs=2)
    assert [(row.number, row.state) for row in experiment.trials()] == [(number, "finished") for number in range(6)]
    assert [one.user_attrs.get("losses") for one in experiment.study.trials].count([1, -1]) == 1
    assert capsys.readouterr().out.count("finished") == 6


def breaks(trial) -> float:
    raise ZeroDivisionError("a fault of the objective")


@pytest.mark.slow
def test_a_workers_error_reaches_the_caller(tmp_path):
    with pytest.raises(RuntimeError, match="ZeroDivisionError: a fault of the objective"):
        Experiment(tmp_path / "e").run(2, breaks, n_jobs=2)


def test_a_database_can_hold_the_search(tmp_path):
    url = f"sqlite:///{tmp_path}/search.db"
    experiment = Experiment(tmp_path / "e", storage=url, search="random").run(2, parabola, **QUIET)
    assert len(Experiment(tmp_path / "e", storage=url).trials()) == len(experiment.trials()) == 2
    assert len(Experiment(tmp_path / "e", storage=url, clean=True).trials()) == 0
    assert isinstance(open_storage(tmp_path, None), optuna.storages.JournalStorage)
    experiment.study._storage._backend.engine.dispose()


def test_machines_without_a_shared_folder_search_together_through_a_database(tmp_path):
    url = f"sqlite:///{tmp_path}/search.db"
    here = Experiment(tmp_path / "here" / "e", storage=url, search="random").run(2, parabola, **QUIET)
    elsewhere = here.study.ask()  # another machine's trial under way: nothing of it is on this one
    elsewhere.set_user_attr("host", "elsewhere")
    there = Experiment(tmp_path / "there" / "e", storage=url, search="random").run(5, parabola, **QUIET)
    assert [row.state for row in there.trials()] == ["finished", "finished", "running", "finished", "finished"]
    assert [row.path.exists() for row in there.trials()] == [False, False, False, True, True]
    assert there.best_score == min(row.score for row in here.trials() if row.score is not None)
    mine = here.study.ask()
    folder = here.trial_path(mine.number)
    mark(folder, "trial")
    with Owner(folder):
        (folder / "copy").write_bytes((folder / "owner.json").read_bytes())
        mine.set_user_attr("owner", last_holder(folder))
    (folder / "copy").rename(folder / "owner.json")  # as a kill leaves it: the lock of this very process is free
    assert [row.state for row in here.run(6, parabola, **QUIET).trials()][-1:] == ["finished"]
    for one in (here, there):
        one.study._storage._backend.engine.dispose()


def test_the_table_prints_and_plots(tmp_path):
    experiment = Experiment(tmp_path / "e", search="random").run(3, parabola, **QUIET)
    assert str(experiment.trials()).splitlines()[0].split() == ["number", "state", "score", "x"]
    assert experiment.trials().frame()["score"].tolist() == [row.score for row in experiment.trials()]
    assert experiment.plot().read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in experiment.plot(tmp_path / "e.svg").read_bytes()


def noisy(trial) -> float:
    trial.log(0, {"seed": trial.seed})
    return {"a": 1.0, "b": 0.0}[trial.hp.lst("kind", ["a", "b"])] + 0.3 * trial.seed


def test_each_configuration_is_run_with_several_seeds_and_the_mean_wins(tmp_path):
    experiment = Experiment(tmp_path / "e", search={"kind": ["a", "b"]}, seeds=3).run(5, noisy, **QUIET)
    by_kind = {row.hparams["kind"]: row for row in experiment.trials()}
    assert by_kind["a"].runs == ((1.0,), (1.3,), (1.6,))
    assert by_kind["b"].score == pytest.approx(0.3)
    assert experiment.best_hparams == {"kind": "b"}
    assert [record.last()["seed"] for record in experiment.best_runs] == [0, 1, 2]
    assert [record.meta["seed"] for record in experiment.best_runs] == [0, 1, 2]
    assert len({record.id for record in experiment.best_runs}) == 3
    assert "1.3 ± 0.3" in str(experiment.trials())
    again = Experiment(tmp_path / "e", search={"kind": ["a", "b"]})  # read without being told
    assert len(again.best_runs) == 3
    assert str(again.trials()) == str(experiment.trials())
    Experiment(tmp_path / "e", clean=True)
    assert not (tmp_path / "e.kept").exists()
    with pytest.raises(ValueError, match="seeds must be at least 1, got 0"):
        Experiment(tmp_path / "f", seeds=0)


def test_a_configuration_whose_process_died_in_a_later_seed_is_made_up_for_with_all_its_seeds(tmp_path):
    lost = []

    def fn(trial) -> float:
        if trial.seed == 1 and not lost:
            lost.append(trial.number)
            raise KeyboardInterrupt
        return noisy(trial)

    experiment = Experiment(tmp_path / "e", search={"kind": ["a", "b"]}, seeds=2)
    with pytest.raises(KeyboardInterrupt):
        experiment.run(2, fn, **QUIET)
    experiment.run(2, fn, **QUIET)
    assert sorted(row.hparams["kind"] for row in experiment.trials() if row.score is not None) == ["a", "b"]
    assert {len(row.runs) for row in experiment.trials() if row.score is not None} == {2}


def test_an_ablation_table_is_made_from_a_grid(tmp_path):
    def fn(trial) -> float:
        return trial.hp.int("dim", 8, 16) + trial.hp.log("lr", 1e-3, 1e-1) + trial.seed

    grid = {"dim": [8, 16], "lr": [0.001, 0.01, 0.1]}
    experiment = Experiment(tmp_path / "e", search=grid, seeds=2).run(9, fn, **QUIET)
    table = experiment.trials().pivot("dim", "lr")
    assert table.columns == ["dim \\ lr", "0.001", "0.01", "0.1"]
    assert [row[0] for row in table.rows] == [8, 16]
    assert table.rows[0][1].mean == pytest.approx(8.501)
    assert table.rows[1][3].n == 2
    with pytest.raises(
        ValueError, match="row and column must be hyper-parameters of finished trials, got 'dim' and 'x'"
    ):
        experiment.trials().pivot("dim", "x")


def test_runs_that_ended_at_both_infinities_fail_their_trial_and_not_the_search(tmp_path):
    def fn(trial) -> float:
        return (math.inf, -math.inf)[trial.seed] if trial.number == 1 else 1e308

    trials = Experiment(tmp_path / "e", search={"kind": ["a", "b", "c"]}, seeds=2).run(9, fn, **QUIET).trials()
    assert [(row.number, row.state, row.score) for row in trials] == [
        (0, "finished", 1e308), (1, "failed", None), (2, "finished", 1e308),
    ]  # fmt: skip
    assert "1e+308" in repr(trials)
