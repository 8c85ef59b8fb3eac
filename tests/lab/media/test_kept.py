import json
import os
import shutil

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import nn

from ai.data import Dataset
from ai.lab import Histogram, Rows, Trial
from ai.lab.media.image_page import to_page
from ai.lab.media.kept import drop_media
from ai.train import Regress, Trainer, opt

HOW = {"system_interval_s": None, "capture": False}


@pytest.fixture
def trial(tmp_path):
    with Trial(tmp_path / "t", **HOW) as trial:
        yield trial


def test_what_is_kept_is_found_by_name_and_step(trial):
    figure = Figure(figsize=(1, 1))
    figure.add_subplot().plot([0, 1])
    trial.keep(5, "curve", figure)
    trial.keep(5, "photo", np.zeros((8, 6, 3), np.uint8))
    trial.keep(5, "weights", Histogram(torch.tensor([[0.0, 1.0], [1.0, float("nan")]]), bins=2))
    trial.keep(5, "worst cases", Rows(["name", "loss"], [["a", np.float32(0.5)], ["b", float("inf")]]))
    trial.keep(7, "answer", "forty-two")
    assert trial.keep(7, "half", "a \ud83d").read_text() == "a \\ud83d"  # of a pair of surrogates
    kept = trial.record.media()
    assert {name: list(steps) for name, steps in kept.items()} == {
        "curve": [5], "photo": [5], "weights": [5], "worst cases": [5], "answer": [7], "half": [7],
    }  # fmt: skip
    with Image.open(kept["photo"][5]) as image:
        assert image.size == (6, 8)
    with Image.open(kept["curve"][5]) as image:
        assert image.format == "PNG"
    assert json.loads(kept["weights"][5].read_bytes()) == {
        "kind": "histogram", "edges": [0.0, 0.5, 1.0], "counts": [1, 2], "not_finite": 1,
    }  # fmt: skip
    assert json.loads(kept["worst cases"][5].read_bytes())["rows"] == [["a", 0.5], ["b", "inf"]]
    assert kept["answer"][7].read_text() == "forty-two"


def test_nothing_is_overwritten_whatever_kind_it_is(trial):
    trial.keep(5, "x", "one")
    with pytest.raises(ValueError, match="name 'x' is kept already at step 5; nothing is overwritten"):
        trial.keep(5, "x", np.zeros((4, 4)))
    trial.keep(6, "x", "two")
    assert [path.read_text() for path in trial.record.media()["x"].values()] == ["one", "two"]


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        ("../x", "a", ValueError, r"name must be letters, digits, spaces and any of _\.\+-, got '\.\./x'"),
        ("", "a", ValueError, "name must be letters"),
        (".hidden", "a", ValueError, "name must be letters"),
        ("n" * 201, "a", ValueError, "name must be at most 200 bytes, got 201"),
        ("x", object(), TypeError, "value must be a matplotlib figure, .*, got object"),
        ("x", Rows(["a"], [[1, 2]]), ValueError, "row 0 must have 1 values, got 2"),
        ("x", Rows(["a"], [[1]] * 10_001), ValueError, "rows must be at most 10000, got 10001"),
        ("x", np.zeros((2, 5, 5, 7)), ValueError, "images must be"),
    ],
)
def test_what_cannot_be_kept_is_named_and_leaves_nothing(trial, name, value, error, message):
    with pytest.raises(error, match=message):
        trial.keep(0, name, value)
    assert not (trial.path / "media").exists()


@pytest.mark.parametrize(
    ("shape", "layout", "size"),
    [
        ((5, 7), None, (5, 7, 1)),
        ((5, 7, 3), None, (5, 7, 3)),
        ((3, 5, 7), None, (5, 7, 3)),
        ((1, 5, 7, 4), None, (5, 7, 4)),
        ((1, 3, 5, 7), None, (5, 7, 3)),
        ((3, 5, 3), None, (5, 3, 3)),
        ((3, 5, 3), "HWC", (3, 5, 3)),
        ((3, 5, 7), "NHW", (12, 16, 1)),
        ((7, 5), "WH", (5, 7, 1)),
    ],
)
def test_layouts_of_images_are_recognised_or_told(shape, layout, size):
    assert to_page(np.zeros(shape, np.uint8), layout=layout).shape == size


def test_pixels_stay_where_they_are_whatever_the_layout():
    image = np.random.default_rng(0).integers(0, 255, (5, 7, 3), np.uint8)
    np.testing.assert_array_equal(to_page(image), image)
    np.testing.assert_array_equal(to_page(image[None], layout="NHWC"), image)
    np.testing.assert_array_equal(to_page(image.transpose(2, 0, 1)), image)


@pytest.mark.parametrize("layout", ["HWX", "HW", "HHW", "NCHW"])
def test_a_layout_that_does_not_fit_is_named(layout):
    with pytest.raises(ValueError, match=f"layout must name each of 3 axes by N, C, H or W once, got '{layout}'"):
        to_page(np.zeros((3, 5, 7), np.uint8), layout=layout)


def test_what_was_kept_after_the_step_resumed_from_is_dropped(trial):
    for step in (5, 10, 15):
        trial.keep(step, "x", str(step))
    drop_media(trial.path, 10)
    assert list(trial.record.media()["x"]) == [5, 10]
    trial.keep(15, "x", "again")


@pytest.mark.parametrize(("step", "error"), [(-1, ValueError), (1.5, TypeError), (None, TypeError), (True, TypeError)])
def test_a_step_that_no_file_can_be_named_by_is_refused(trial, step, error):
    with pytest.raises(error, match="step must be"):
        trial.keep(step, "x", "text")
    with pytest.raises(error, match="step must be"):
        trial.save_sample(step, np.zeros((1, 1, 2, 2), np.uint8))
    assert trial.record.media() == {}


def train(path, end: int, save_interval: int, dies_at: int | None = None) -> list[int]:
    """Trains up to `end`, each evaluation keeping a text; one may break off, as a kill would, after it was kept."""
    trial = Trial(path, save_snapshots=True, save_interval=save_interval, **HOW)
    torch.manual_seed(0)
    model = nn.Linear(1, 1)
    optimizer = opt.adamw(model, lr=0.1)

    def task(model, step) -> dict[str, float]:
        trial.keep(step, "note", f"{step} of {end}")
        if step == dies_at:
            raise KeyError("died")
        return {"n": 1.0}

    data = Dataset({"x": torch.ones(8, 1), "y": torch.ones(8, 1)}).loader(4, "cpu", train=True)
    step = trial.resume(model, optimizer, data)
    hook = trial.hook(task=task, task_interval=5)
    try:
        Trainer(Regress(), data).train(model, optimizer, hook, step=step, steplimit=end)
    except KeyError:
        for snapshot in list(trial.record.snapshots().values())[-1:]:
            shutil.rmtree(snapshot)  # what an error saves, a kill does not
    return [step, *(int(path.read_text().split()[-1]) for path in trial.record.media()["note"].values())]


@pytest.mark.parametrize(("dies_at", "save_interval", "begins"), [(5, 100, 0), (10, 5, 5), (15, 10, 10)])
def test_a_resumed_run_keeps_anew_what_it_is_evaluated_for_again(tmp_path, dies_at, save_interval, begins):
    train(tmp_path / "t", 20, save_interval, dies_at)
    found = train(tmp_path / "t", 21, save_interval)
    assert found[0] == begins
    steps = Trial(tmp_path / "t", **HOW).record.media()["note"]
    assert [step for step in steps if step] == [5, 10, 15, 20, 21]
    assert all(end == (20 if 0 < step < begins else 21) for step, end in zip(steps, found[1:], strict=True) if step)


def test_a_forked_process_writes_nothing_of_its_parents(trial):
    trial.log(0, {"a": 1.0})
    process = os.fork()
    if process == 0:
        try:
            trial.log(1, {"a": 1.0})
        except RuntimeError:
            os._exit(3)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 3
    assert trial.metrics()["a"].steps.tolist() == [0]


@pytest.mark.parametrize("values", [[1.0, np.nextafter(1.0, 2.0)], [-1e308, 1e308], [0.0, 5e-324]])
def test_numbers_too_close_together_or_too_far_apart_are_counted_in_one_bin(values):
    told = Histogram(values, bins=64).to_json()
    assert (told["counts"], told["edges"]) == ([2], values)
    with pytest.raises(ValueError, match="bins must be a whole number from 1, got 0"):
        Histogram(values, bins=0).to_json()
