"""Trials of a database: who lives, who takes over, and what becomes of who was thought dead."""

import threading

import optuna
import pytest

from ai.lab import Experiment
from ai.lab.files.ownership import Owner, last_holder
from ai.lab.search import beats, losses

QUIET = {"progress": False}


@pytest.fixture
def machines(tmp_path):
    """Returns an experiment of two machines on one database."""
    url = f"sqlite:///{tmp_path}/search.db"
    both = [Experiment(tmp_path / where / "e", storage=url, search="random") for where in ("here", "there")]
    yield both
    for one in both:
        one.study._storage._backend.engine.dispose()


def test_a_beat_that_moves_is_alive_and_one_that_stands_still_is_not(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(beats.time, "monotonic", lambda: clock[0])
    watch = beats.Watch()
    trial = optuna.trial.create_trial(value=0.0, user_attrs={"beat": ["a", 0]})
    assert not watch.has_stopped(trial)
    for clock[0], beat, stopped in [(39, 0, False), (41, 0, True), (42, 1, False), (81, 1, False), (83, 1, True)]:
        trial.user_attrs["beat"] = ["a", beat]
        assert watch.has_stopped(trial) == stopped
    never = optuna.trial.create_trial(value=0.0)  # killed before its first beat
    assert not watch.has_stopped(never)
    clock[0] = 130
    assert watch.has_stopped(never)


@pytest.mark.parametrize("beaten", [True, False])
def test_of_many_who_find_a_trial_dead_in_one_moment_one_takes_it_over(machines, beaten):
    here, _ = machines
    asked = here.study.ask()
    if beaten:
        asked.set_user_attr("beat", ["a", 3])
    lost = here.study.trials[0]
    took, together = [], threading.Barrier(4)

    def look() -> None:
        together.wait()
        took.append(beats.take_over(here.study, lost))

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(took) == [False, False, False, True]


def test_who_comes_late_with_what_it_saw_does_not_take_a_trial_from_who_runs_it_now(machines):
    here, there = machines
    with beats.Beat(here.study.ask()):
        pass
    seen = there.study.trials[0]
    losses.put_back(here.study, here.study.trials[0], here.trial_path(0), None, shared=False)
    again = here.study.ask()
    assert again.number == 0
    with beats.Beat(again) as beat:
        losses.put_back(there.study, seen, there.trial_path(0), None, shared=False)
        assert there.study.trials[0].state.name == "RUNNING"
        assert beat.is_ours()


def test_a_machine_that_slept_leaves_its_trial_to_who_has_taken_it_up_and_goes_on(machines):
    here, there = machines

    def sleeps(trial) -> float:
        x = trial.hp.lin("x", 0, 1)
        if trial.number == 1:
            losses.put_back(there.study, there.study.trials[1], there.trial_path(1), None, shared=False)
            there.run(2, lambda again: again.hp.lin("x", 0, 1) + 10, **QUIET)
        return x

    here.run(4, sleeps, **QUIET)
    rows = here.trials()
    assert [row.state for row in rows] == ["finished"] * 4
    assert [row.score - row.hparams["x"] for row in rows] == [0, 10, 0, 0]


def test_machines_that_begin_in_one_moment_draw_what_one_after_the_other_would(machines, tmp_path):
    alone = Experiment(tmp_path / "alone", search="random").run(2, lambda trial: trial.hp.lin("x", 0, 1), **QUIET)
    assert not any(one._search.has(2) for one in machines)  # both look before either asks
    drawn = []
    for one in machines:
        asked = one.study.ask()
        one._search.note(asked)
        drawn.append(asked.suggest_float("x", 0, 1))
    assert drawn == [row.score for row in alone.trials()]


def test_a_beat_whose_answer_was_lost_goes_on(machines):
    here, _ = machines
    with beats.Beat(here.study.ask()) as beat:
        assert beats.swap(here.study._storage, 1, beat._last, [beat._last[0], 1])  # it came through, unheard
        assert beat.is_ours()
        assert here.study.trials[0].user_attrs["beat"] == [beat._last[0], 1]
        assert beat.is_ours()
        assert here.study.trials[0].user_attrs["beat"] == [beat._last[0], 2]


def test_the_folder_of_an_earlier_loss_tells_nothing_of_who_runs_the_trial_now(tmp_path):
    folder, watch = tmp_path / "00000", beats.Watch()
    folder.mkdir()
    with Owner(folder):
        owner = last_holder(folder)
        trial = optuna.trial.create_trial(value=0.0, user_attrs={"beat": ["a", 0], "owner": owner})
        assert not losses.is_dead(trial, folder, watch)
        left = (folder / "owner.json").read_bytes()
    (folder / "owner.json").write_bytes(left)  # as a kill leaves it
    assert losses.is_dead(trial, folder, watch)
    trial.user_attrs["owner"] = {**owner, "host": "elsewhere", "pid": 1}  # taken up there
    assert not losses.is_dead(trial, folder, watch)
