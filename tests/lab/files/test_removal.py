import pytest
import torch
from torch import nn

from ai.lab import Experiment, OwnedError, Study, Trial
from ai.lab.files.folder import mark
from ai.lab.files.removal import remove_unowned
from ai.train import opt

HOW = {"system_interval_s": None, "capture": False}


def record(path) -> Trial:
    model = nn.Linear(2, 1)
    with Trial(path, config={"lr": 0.1}, **HOW) as trial:
        trial.log(0, {"loss": 1.0})
        trial.save_sample(0, torch.zeros(1, 1, 2, 2))
        trial.save_snapshot(model, opt.sgd(model), 1)
    trial.plot()
    return trial


def test_a_trial_that_the_lab_wrote_whole_is_gone(tmp_path, capsys):
    remove_unowned(record(tmp_path / "t").path)
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().err == ""


def test_clean_moves_what_the_lab_did_not_write_aside_and_says_so(tmp_path, capsys):
    trial = record(tmp_path / "t")
    mine = ["thesis.txt", "snapshots/mine.pt", "samples/best.png", "plots/a.svg"]
    (trial.path / "plots").mkdir()
    for name in mine:
        (trial.path / name).write_text(name)
    again = Trial(tmp_path / "t", clean=True, **HOW)
    assert again.state == "created"
    assert [entry.name for entry in again.path.iterdir()] == [".ai-lab"]
    for name in mine:
        assert (tmp_path / "t.kept" / name).read_text() == name
    told = capsys.readouterr().err
    assert f"moved to {tmp_path}/t.kept: not written by the lab" in told
    (trial.path / "thesis.txt").write_text("another")
    Trial(tmp_path / "t", clean=True, **HOW)
    assert (tmp_path / "t.kept-1" / "thesis.txt").read_text() == "another"
    assert (tmp_path / "t.kept" / "thesis.txt").read_text() == "thesis.txt"


def nested(tmp_path) -> Trial:
    """A trial in another's folder, as was possible once."""
    child = record(tmp_path / "elsewhere")
    parent = record(tmp_path / "mnist")
    child.path.rename(parent.path / "lr")
    return Trial(parent.path / "lr", **HOW)


def test_a_trial_in_a_trials_folder_is_not_deleted_with_it(tmp_path):
    child = nested(tmp_path)
    Trial(tmp_path / "mnist", clean=True, **HOW)
    kept = Trial(tmp_path / "mnist.kept" / "lr", **HOW)
    assert kept.id == child.id if child.path.exists() else kept.metrics()["loss"].values.tolist() == [1.0]


def test_nothing_is_deleted_while_a_trial_in_it_runs(tmp_path):
    child = nested(tmp_path)
    with child:
        with pytest.raises(OwnedError, match=r"mnist/lr is being written by process"):
            Trial(tmp_path / "mnist", clean=True, **HOW)
    assert child.metrics()["loss"].values.tolist() == [1.0]


def test_a_link_is_neither_emptied_nor_followed(tmp_path):
    trial = record(tmp_path / "t")
    (tmp_path / "link").symlink_to(trial.path)
    with pytest.raises(ValueError, match="link is a link, so it is not deleted; name the folder that it leads to"):
        Trial(tmp_path / "link", clean=True, **HOW)
    assert trial.metrics()["loss"].values.tolist() == [1.0]
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "data").write_text("kept")
    (trial.path / "mine").symlink_to(outside)
    remove_unowned(trial.path)
    assert (outside / "data").read_text() == "kept"
    assert (tmp_path / "t.kept" / "mine").is_symlink()


def test_a_strangers_folder_is_not_deleted(tmp_path):
    with pytest.raises(ValueError, match=r"was not made by ai.lab \(no .ai-lab file\), so it is not deleted"):
        remove_unowned(tmp_path)


def test_a_study_is_deleted_with_its_records_and_a_strangers_files_are_kept(tmp_path, capsys):
    study = Study(tmp_path / "study")
    with study.trial("part/a", **HOW) as trial:
        trial.log(0, {"loss": 1.0})
    study.experiment("search", search="random").run(2, lambda trial: trial.hp.lin("x", 0, 1), progress=False)
    study.note("something")
    study.compare().plot()
    (study.path / "part" / "paper.tex").write_text("kept")
    (study.path / "data").mkdir()
    (study.path / "data" / "x").write_text("kept")
    assert study.path.exists()
    Study(tmp_path / "study", clean=True)
    assert [entry.name for entry in study.path.iterdir()] == [".ai-lab"]
    kept = sorted(str(path.relative_to(tmp_path / "study.kept")) for path in (tmp_path / "study.kept").rglob("*"))
    assert kept == ["data", "data/x", "part", "part/paper.tex"]


def test_an_experiment_that_the_lab_wrote_whole_is_gone(tmp_path, capsys):
    experiment = Experiment(tmp_path / "e", search="random")
    experiment.run(2, lambda trial: trial.hp.lin("x", 0, 1), progress=False)
    experiment.plot()
    remove_unowned(experiment.path)
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().err == ""


def test_an_interrupted_deletion_can_be_finished(tmp_path):
    mark(tmp_path / "t", "trial")
    (tmp_path / "t" / "meta.json").write_text("{")
    remove_unowned(tmp_path / "t")
    assert not (tmp_path / "t").exists()
