import shutil
from pathlib import Path

import pytest

from ai.examples.agents.config import AgentConfig
from ai.examples.run_config import RunConfig, keep_earlier, open_trial
from ai.examples.selflearn import LearnConfig
from ai.lab import OwnedError, Study, Trial


def record(config, loss):
    trial = open_trial(config, config, system_interval_s=None)
    with trial:
        trial.log(0, {"loss": loss})
    return trial


@pytest.fixture(autouse=True)
def lab(tmp_path, monkeypatch):
    monkeypatch.setenv("AI_LAB_PATH", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("kind", [RunConfig, AgentConfig, LearnConfig])
def test_second_run_keeps_the_first_beside_it_and_says_how_to_go_on_with_it(kind, lab, capfd):
    first = record(kind(trial="group/run"), 1.0).id
    assert "earlier run" not in capfd.readouterr().err
    record(kind(trial="group/run"), 2.0)
    told = capfd.readouterr().err
    assert "the earlier run of group/run is kept as group/run.1; --trial group/run.1 --resume goes on with it" in told
    record(kind(trial="group/run"), 3.0)
    found = {path.name: Trial(path).metrics()["loss"].values.tolist() for path in (lab / "group").iterdir()}
    assert found == {"run.1": [1.0], "run.2": [2.0], "run": [3.0]}
    assert Trial("group/run.1").id == first
    assert Trial("group/run.1").state == "finished"


def test_a_run_resumes_where_it_was_and_cleans_where_it_is_told_to(lab):
    first = record(RunConfig(), 1.0).id
    assert open_trial(RunConfig(resume=True), None).id == first
    assert record(RunConfig(clean=True), 2.0).id != first
    assert [path.name for path in lab.iterdir()] == ["run"]
    with pytest.raises(ValueError, match="resume goes on with the trial that clean deletes: give one of the two"):
        open_trial(RunConfig(resume=True, clean=True), None)


def test_what_recorded_nothing_is_not_kept_and_another_record_is_not_touched(lab):
    Trial("run")
    record(RunConfig(), 1.0)
    assert [path.name for path in lab.iterdir()] == ["run"]
    Study("study").trial("inside")
    for clean in (False, True):
        with pytest.raises(ValueError, match="study holds a recorded study, not a trial; choose another path"):
            open_trial(RunConfig(trial="study", clean=clean), None)
    assert (lab / "study" / "inside").is_dir()


def test_a_study_is_kept_with_all_that_it_holds(lab, capfd):
    record(RunConfig(trial="losses/of all/first"), 1.0)
    keep_earlier("losses/of all", "study")
    assert (lab / "losses" / "of all").is_dir()  # no study
    shutil.rmtree(lab / "losses")
    Study("losses/of all").trial("unused")
    keep_earlier("losses/of all", "study")
    assert "kept" not in capfd.readouterr().err
    record(RunConfig(trial="losses/of all/first"), 1.0)
    keep_earlier("losses/of all", "study")
    assert [str(path.relative_to(lab)) for path in (lab / "losses").iterdir()] == ["losses/of all.1"]
    assert Study("losses/of all.1").trial("first").metrics()["loss"].values.tolist() == [1.0]
    assert "the earlier run of losses/of all is kept as losses/of all.1 (--clean" in capfd.readouterr().err


def test_of_two_processes_that_begin_at_once_one_keeps_the_earlier_run(lab, monkeypatch, capfd):
    record(RunConfig(trial="a run"), 1.0)
    rename = Path.rename

    def rename_after_another(folder, target):
        rename(folder, target)
        return rename(folder, target)

    monkeypatch.setattr(Path, "rename", rename_after_another)
    record(RunConfig(trial="a run"), 2.0)
    assert "kept" not in capfd.readouterr().err  # the other one has said so
    monkeypatch.undo()
    monkeypatch.setenv("AI_LAB_PATH", str(lab))
    record(RunConfig(trial="a run"), 3.0)
    assert "kept as a run.2; --trial 'a run.2' --resume" in capfd.readouterr().err
    found = {path.name: Trial(path).metrics()["loss"].values.tolist() for path in lab.iterdir()}
    assert found == {"a run.1": [1.0], "a run.2": [2.0], "a run": [3.0]}


def test_a_run_that_is_being_written_is_refused(lab):
    writing = open_trial(RunConfig(), None, system_interval_s=None)
    with writing:
        writing.log(0, {"loss": 1.0})
        with pytest.raises(OwnedError, match="is being written by process"):
            open_trial(RunConfig(), None)
    assert [path.name for path in lab.iterdir()] == ["run"]
