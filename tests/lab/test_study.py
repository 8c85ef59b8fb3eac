import math

import pytest
import torch

from ai.lab import Experiment, OwnedError, Study
from ai.lab.cli import main
from ai.lab.media.image_page import to_page
from ai.lab.report.palette import PALETTE

HOW = {"system_interval_s": None, "capture": False}


@pytest.fixture
def study(tmp_path):
    study = Study(tmp_path / "losses")
    for name, lr, loss in (("l1", 0.1, 0.5), ("l2", 0.2, 0.25)):
        with study.trial(name, config={"lr": lr, "dim": 8}, **HOW) as trial:
            trial.log(0, {"loss": 1.0})
            trial.log(9, {"loss": loss})
            trial.save_sample(9, torch.zeros(4, 3, 8, 8))
    study.experiment("search", search="random").run(2, lambda trial: trial.hp.lin("x", 0, 1), progress=False)
    return study


def test_a_study_lists_what_it_holds(study):
    assert study.ls() == {"l1": "trial, finished", "l2": "trial, finished", "search": "experiment"}
    assert list(study.records()) == ["l1", "l2", "search/trials/00000", "search/trials/00001"]


def test_trials_are_compared_by_last_values_and_by_where_they_differ(study):
    comparison = study.compare()
    assert comparison.columns == ["trial", "state", "step", "lr", "loss"]
    assert comparison.rows == [["l1", "finished", 9, 0.1, 0.5], ["l2", "finished", 9, 0.2, 0.25]]
    assert comparison.frame()["loss"].tolist() == [0.5, 0.25]
    assert comparison.plot().read_bytes().startswith(b"\x89PNG")
    assert comparison.plot_samples().exists()


def test_trials_that_repeat_each_other_are_one_row_with_mean_and_deviation(tmp_path, capsys):
    study = Study(tmp_path / "s")
    for lr in (0.1, 0.2):
        for seed in range(3):
            with study.trial(f"lr{lr}-{seed}", config={"lr": lr, "seed": seed}, **HOW) as trial:
                trial.log(0, {"loss": lr + 0.01 * seed, **({"rare": 1.0} if seed == 0 else {})})
    comparison = study.compare(over=["seed"])
    assert comparison.columns == ["trial", "state", "step", "lr", "loss", "rare"]
    told = [[str(value) for value in row] for row in comparison.rows]
    assert told[0] == ["lr0.1", "finished", "0", "0.1", "0.110 ± 0.010", "1"]
    assert [row[0] for row in told] == ["lr0.1", "lr0.2"]
    assert comparison.to_pandas()["loss n"].tolist() == [3, 3]
    assert comparison.plot().read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match=r"over must name configuration \(lr, seed\), got 'seeds'"):
        study.compare(over=["seeds"])
    paths = [study.path / name for name in study.records()]
    status, out, _ = run(capsys, "compare", *paths, "--over", "seed", "--metric", "loss", "--format", "latex")
    assert status == 0
    assert "$0.110 \\pm 0.010$" in out


def test_the_best_value_of_each_run_stands_beside_its_last(tmp_path, capsys):
    study = Study(tmp_path / "s")
    for seed, values in enumerate(([3.0, 1.0, math.nan, 2.0], [4.0, 2.0, 5.0])):
        with study.trial(f"run-{seed}", config={"seed": seed}, **HOW) as trial:
            for step, value in enumerate(values):
                trial.log(step, {"val_loss": value})
    comparison = study.compare(best={"val_loss": "min"})
    assert comparison.columns == ["trial", "state", "step", "seed", "val_loss", "best val_loss"]
    assert [row[4:] for row in comparison.rows] == [[2.0, 1.0], [5.0, 2.0]]
    (row,) = study.compare(over=["seed"], best={"val_loss": "max"}).rows
    assert [one.mean for one in row[3:]] == [3.5, 4.0]
    paths = [study.path / name for name in study.records()]
    assert run(capsys, "compare", *paths, "--best", "val_loss=min")[1].splitlines()[0].endswith("best val_loss")
    for best, message in (
        ({"los": "min"}, r"best must be recorded ones \(val_loss\), got 'los'"),
        ({"val_loss": "least"}, "best of 'val_loss' must be 'min' or 'max', got 'least'"),
    ):
        with pytest.raises(ValueError, match=message):
            study.compare(best=best)
    status, _, err = run(capsys, "compare", *paths, "--best", "val_loss")
    assert (status, err) == (1, "ai-lab: --best must be METRIC=min or METRIC=max, got 'val_loss'\n")


def test_a_picture_of_curves_has_the_pages_colours_also_as_lines_for_a_paper(study, tmp_path):
    comparison = study.compare(["l1", "l2"])
    drawn = comparison.plot(tmp_path / "curves.svg").read_text()
    assert [color in drawn for color in PALETTE[:3]] == [True, True, False]
    assert comparison.plot(tmp_path / "curves.pdf").read_bytes().startswith(b"%PDF-")


def test_rows_whose_names_have_the_same_in_common_stay_two_rows_and_two_curves(tmp_path):
    study = Study(tmp_path / "s")
    for number, lr in enumerate((0.1, 0.2, 0.1, 0.2)):
        with study.trial(f"run{number}", config={"lr": lr, "seed": number // 2}, **HOW) as trial:
            trial.log(0, {"loss": lr})
    comparison = study.compare(over=["seed"])
    assert [row[0] for row in comparison.rows] == ["run0, run2", "run1, run3"]
    assert list(comparison._groups.values()) == [["run0", "run2"], ["run1", "run3"]]


def test_moving_the_study_breaks_nothing(study, tmp_path):
    identity = study.trial("l1").id
    study.path.rename(tmp_path / "moved")
    moved = Study(tmp_path / "moved")
    assert moved.id == study.id
    assert moved.trial("l1").id == identity
    assert len(moved.experiment("search").run(3, lambda trial: 0.0, progress=False).trials()) == 3


def test_wrong_names_are_refused(study):
    with pytest.raises(ValueError, match=r"names must be trials of .*, got 'l3'"):
        study.compare(["l3"])
    with pytest.raises(ValueError, match=r"metrics must be recorded ones \(loss\), got 'los'"):
        study.compare(metrics=["los"])
    with pytest.raises(ValueError, match=r"name must be a path inside the study, got '\.\./out'"):
        study.trial("../out")


def test_notes_are_kept(study):
    study.note("l2 wins")
    study.note("try ssim")
    assert study.notes.count("**") == 4
    assert "l2 wins" in Study(study.path).notes


# -- the command line


def run(capsys, *arguments) -> tuple[int, str, str]:
    status = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_ls_show_and_compare_tell_what_is_there(study, capsys):
    status, out, _ = run(capsys, "ls", study.path)
    assert status == 0
    assert [line.split()[0] for line in out.splitlines()] == [
        "trial",
        "l1",
        "l2",
        "search/trials/00000",
        "search/trials/00001",
    ]
    _, out, _ = run(capsys, "show", study.path / "l1")
    assert "last row" in out.partition("last metrics")[0]  # as a date; as a metric it was 1.7961e+09
    assert "time" not in out.partition("last metrics")[2]
    assert "finished" in out
    assert "lr" in out
    _, out, _ = run(capsys, "compare", study.path / "l1", study.path / "l2", "--plot", study.path / "c.png")
    assert "0.25" in out
    assert (study.path / "c.png").exists()


def test_ls_tells_what_is_damaged_and_lists_no_trial_that_never_ran(study, capsys):
    (study.path / "l1" / "meta.json").write_text("[]")
    (study.path / "l2" / ".ai-lab").write_text("null")
    study.trial("never", **HOW)
    status, out, _ = run(capsys, "ls", study.path)
    lines = {line.split()[0]: line for line in out.splitlines()[1:]}
    assert status == 0
    assert lines.keys() == {"l1", "l2", "search/trials/00000", "search/trials/00001"}
    assert "meta.json is damaged: it must hold one JSON object, got list" in lines["l1"]
    assert "damaged" in lines["l2"].split()[1]


def test_rm_asks_and_takes_only_what_the_lab_made(study, capsys, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda question: "n")
    assert run(capsys, "rm", study.path / "l1")[:2] == (1, "kept\n")
    assert (study.path / "l1").exists()
    monkeypatch.setattr("builtins.input", lambda question: "y")
    assert run(capsys, "rm", study.path / "l1")[0] == 0
    assert not (study.path / "l1").exists()
    (study.path / "mine").mkdir()
    status, _, error = run(capsys, "rm", "-y", study.path / "mine")
    assert status == 1
    assert "is nothing that the lab recorded" in error
    assert (study.path / "mine").exists()


def test_rm_refuses_a_running_trial(study, capsys):
    with study.trial("now", **HOW):
        status, _, error = run(capsys, "rm", "-y", study.path)
    assert status == 1
    assert "is being written by process" in error


def test_clean_refuses_a_study_or_experiment_in_which_a_trial_runs(study):
    def objective(trial) -> float:
        for clean in (lambda: Study(study.path, clean=True), lambda: Experiment(study.path / "search", clean=True)):
            with pytest.raises(OwnedError, match=r"search/trials/\d+ is being written by process"):
                clean()
        return 0.0

    study.experiment("search").run(3, objective, progress=False)
    assert len(study.experiment("search", clean=True).trials()) == 0
    assert Study(study.path, clean=True).ls() == {}


def test_of_several_ranks_only_the_first_cleans(study, monkeypatch):
    trials = len(study.experiment("search").trials())
    monkeypatch.setenv("RANK", "1")
    for again in (Study(study.path, clean=True), Experiment(study.path / "search", clean=True)):
        assert again.path.is_dir()
    assert len(study.experiment("search").trials()) == trials > 0
    assert "l1" in study.ls()


def test_resume_prints_the_recorded_command(study, capsys):
    status, out, _ = run(capsys, "resume", "--print", study.path / "l1")
    assert status == 0
    assert out.startswith("cd /")
    assert " && " in out


def test_relative_paths_are_looked_for_in_the_labs_root(study, capsys, monkeypatch):
    monkeypatch.setenv("AI_LAB_PATH", str(study.path))
    assert run(capsys, "show", "l2")[0] == 0
    assert run(capsys, "show", "l9")[0] == 1


# -- sample pages


def test_images_lie_on_the_page_row_by_row():
    images = torch.full((3, 1, 2, 2), -1.0)
    images[1] = 1.0
    page = to_page(images, columns=2, gap=1)[..., 0]
    assert page.tolist() == [[0, 0, 0, 255, 255], [0, 0, 0, 255, 255], [0] * 5, [0] * 5, [0] * 5]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_the_range_from_minus_1_to_1_fills_the_bytes(dtype):
    assert to_page(torch.tensor([[[-1.0, 0.0, 1.0, 9.0]]], dtype=dtype))[0, :, 0].tolist() == [0, 128, 255, 255]


class Elsewhere(torch.Tensor):
    """Cannot be read before it is brought to the CPU, as a tensor on a GPU."""

    def __array__(self, *args):
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    def cpu(self):
        return self.as_subclass(torch.Tensor)


@pytest.mark.parametrize(("pixel", "dtype"), [(255, torch.uint8), (1.0, torch.float32)])
def test_images_on_another_device_are_brought_over(pixel, dtype):
    images = torch.full((1, 1, 1, 1), pixel, dtype=dtype).as_subclass(Elsewhere)
    assert to_page(images).tolist() == [[[255]]]


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (3, 4, 5), (7, 4, 5), (2, 4, 4, 5)])
def test_pages_have_the_images_channels(shape):
    assert to_page(torch.zeros(shape)).shape[-1] == (shape[1] if len(shape) == 4 else 3 if shape[0] == 3 else 1)


def test_what_is_no_picture_is_refused():
    with pytest.raises(ValueError, match=r"images must be \(n, 1\|3\|4, height, width\), got shape \(2, 5, 4, 4\)"):
        to_page(torch.zeros(2, 5, 4, 4))
    with pytest.raises(TypeError, match=r"images must be floating point in \[-1, 1\] or uint8, got int64"):
        to_page(torch.zeros(1, 1, 4, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match="at least one image"):
        to_page(torch.zeros(0, 1, 4, 4))
