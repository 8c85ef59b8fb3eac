"""Each example learns from pictures of one's own, in a folder or as a dataset, and what it saved is a model again."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset

from ai.data import Dataset, ImgDataset
from ai.examples import autoencoder, diffusion, mnist, stylegan2, vit
from ai.examples.autoencoder.main import PRESETS as AUTOENCODER
from ai.examples.diffusion.config import PRESETS as DIFFUSION
from ai.examples.diffusion.main import averaged
from ai.examples.own_data import class_names, own_images, train_and_held_out
from ai.examples.saved import averaged_model
from ai.examples.stylegan2 import pictures as drawn
from ai.examples.stylegan2.config import PRESETS as STYLEGAN2
from ai.examples.stylegan2.main import samples
from ai.examples.vit.main import PRESETS as VIT
from ai.lab import Trial

KINDS = {"bright": 160, "dark": 0, "middle": 80}
IMAGES = {"imsize": 8, "nc": 8, "n_blocks": 1, "attn_sizes": ()}
RUNS = {
    "vit": (vit.run, VIT["tiny"]),
    "mnist": (mnist.run, mnist.Config(imsize=8, steps=4, save_interval=2, batch_size=8)),
    "autoencoder": (autoencoder.run, AUTOENCODER["tiny"]),
    "diffusion": (diffusion.run, replace(DIFFUSION["tiny"], conditional=True, **IMAGES)),
    "stylegan2": (stylegan2.run, replace(STYLEGAN2["tiny"], conditional=True)),
}


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    monkeypatch.setenv("AI_LAB_PATH", str(tmp_path / "lab"))
    monkeypatch.setenv("AI_DATASETS_PATH", str(tmp_path / "sets"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Three folders of pictures, bright, dark and between: of odd sizes, in colour, grey, and with transparency."""
    root = tmp_path_factory.mktemp("pictures")
    draws = np.random.default_rng(0)
    for name, low in KINDS.items():
        (root / name).mkdir()
        for i in range(14):
            shape = (int(draws.integers(5, 30)), int(draws.integers(5, 30)), *[(3,), (), (4,)][i % 3])
            Image.fromarray(draws.integers(low, low + 60, shape, dtype=np.uint8)).save(root / name / f"{i}.png")
    return root


def left_behind(trial: Path) -> dict[str, bytes]:
    return {
        path.relative_to(trial).as_posix(): path.read_bytes()
        for path in trial.rglob("*")
        if path.is_file() and path.name in ("config.yaml", "classes.json", "metrics.jsonl", "manifest.json")
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_folder_is_learnt_saved_and_not_mistaken_for_another(name, pictures, tmp_path):
    run, config = RUNS[name]
    config = replace(config, data=str(pictures))
    numbers = run(config)
    trial = Trial(config.trial)
    assert trial.state == "finished"
    assert all(np.isfinite(value) for value in numbers.values())
    model = averaged_model(config.trial, key="g" if name == "stylegan2" else None)
    if name == "autoencoder":
        assert model(torch.zeros(2, 3, 8, 8)).shape == (2, 3, 8, 8)
    else:
        assert json.loads((trial.path / "classes.json").read_text()) == sorted(KINDS)
    if name in ("vit", "mnist"):
        assert model(torch.zeros(2, 3, 8, 8)).shape == (2, 3)
    if name == "stylegan2":
        each = torch.cat([drawn.generate(model, [seed], label=seed % 3) for seed in range(4)])
        assert torch.equal(samples(model, 4), each)
        with pytest.raises(ValueError, match=r"label must lie in \[0, 3\), got 3"):
            drawn.generate(model, [0], label=3)

    other = tmp_path / "others"
    for kind in KINDS:
        (other / kind).mkdir(parents=True)
        for i in range(14):
            Image.new("RGB", (9, 9), (i, 20 * i, 7)).save(other / kind / f"{i}.png")
    before = left_behind(trial.path)
    with pytest.raises(ValueError, match="of another dataset or mode: its fingerprint is"):
        run(replace(config, data=str(other), resume=True, steps=8))
    if name != "autoencoder":
        (other / "dark").rename(other / "dim")
        with pytest.raises(
            ValueError, match="must have the classes of the trial to resume, 'bright, dark, middle', go"
        ):
            run(replace(config, data=str(other), resume=True, steps=8))
    assert left_behind(trial.path) == before


@pytest.mark.slow
def test_a_dataset_is_learnt_by_the_vision_transformer(pictures):
    config = replace(VIT["tiny"], steps=60, batch_size=16, learning_rate=5e-3, warmup=5, interval=30)
    assert vit.run(config, ImgDataset(pictures, 8, labels="folder"))["accuracy"] == 1
    trial = Trial("vit")
    assert trial.config["data"] == "given from Python"  # and not, with nothing there, the digits of `dataset`
    assert json.loads((trial.path / "accuracy.json").read_text())["reference"] == "your images, 8 held-out images"


def test_points_of_ones_own_are_learnt():
    points = Dataset({"x": torch.randn(64, 2, generator=torch.Generator().manual_seed(0))})
    diffusion.run(replace(DIFFUSION["tiny"], sample_steps=2), points)
    assert averaged("diffusion").shape == (2,)


X = torch.rand(40, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
Y = torch.arange(40) % 3


def dataset(**columns):
    return Dataset({"x": X, "y": Y} | columns)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (5, TypeError, "dataset must be a Dataset of ai.data, got 5$"),
        (Dataset, TypeError, "got the class Dataset itself"),
        ("photos", TypeError, "got a str: a folder's path goes into the configuration, as data"),
        (Path("photos"), TypeError, "photos.*: a folder's path goes into the configuration, as data"),
        ({"x": X, "y": Y}, TypeError, r"got a dict: Dataset\(…\) makes one of it"),
        ([X, Y], TypeError, "got a list$"),
        (X, TypeError, "got a Tensor$"),
        (iter(X), TypeError, "got a generator|iterator"),
        (TensorDataset(X, Y), TypeError, r"TensorDataset: Dataset.from_torch\(…\) makes one of it"),
        (torch.utils.data.DataLoader(TensorDataset(X, Y)), TypeError, "got a DataLoader$"),
        (Dataset(X), ValueError, "dataset must have images x, got columns without names"),
        (Dataset({"image": X, "label": Y}), ValueError, "dataset must have images x, got image, label"),
        (Dataset({"x": X}), ValueError, "dataset must have images x and classes y, got x$"),
        (dataset(y=Y.float()), ValueError, r"one whole number y an image, got torch.float32 \(\)"),
        (dataset(y=Y > 0), ValueError, r"one whole number y an image, got torch.bool \(\)"),
        (dataset(y=Y[:, None]), ValueError, r"one whole number y an image, got torch.int64 \(1,\)"),
        (dataset(y=["cat"] * 40), ValueError, "one whole number y an image, got a list"),
        (dataset(y=Y + 1), ValueError, r"count from 0 without a gap, got 1, 2, 3: or name them"),
        (dataset(y=Y - 1), ValueError, r"count from 0 without a gap, got -1, 0, 1: or name them"),
        (dataset(y=Y * 10**9), ValueError, r"without a gap, got 0, 1000000000, 2000000000: or"),
        (dataset(y=Y * 0), ValueError, "at least 2 classes to tell apart, got 0"),
        (dataset(y=(torch.arange(40) == 39).long()), ValueError, "2 images of each class or more.*got 1 of 1$"),
        (dataset(x=X.double()), ValueError, "images x in float32, got torch.float64"),
        (dataset(x=X.byte()), ValueError, "images x in float32, got torch.uint8"),
        (dataset(x=[Image.new("RGB", (8, 8))] * 40), ValueError, "images x in float32, got a list"),
        (dataset(x=X[:, :2]), ValueError, r"images x of 1 or 3 channels, .* got \(2, 8, 8\)"),
        (dataset(x=X.movedim(1, -1)), ValueError, r"images x of 1 or 3 channels, .* got \(8, 8, 3\)"),
        (dataset(x=X[:, 0]), ValueError, r"images x of 1 or 3 channels, .* got \(8, 8\)"),
        (dataset(x=X[..., :4]), ValueError, r"images x of imsize \(8\), got \(3, 8, 4\)"),
        (dataset(x=torch.cat([X[:39], X[39:] * 0 + 255])), ValueError, r"in \[-1, 1\], got numbers from .* to 255"),
        (dataset(x=torch.cat([X[:39], X[39:] * torch.nan])), ValueError, "images x of finite numbers, got nan"),
        (dataset(x=X * 0), ValueError, "dataset must have x that differ, got 0 everywhere"),
        (Dataset({"x": X[:9], "y": Y[:9]}), ValueError, r"batch_size \(8\) must not exceed the 7 samples"),
    ],
)
def test_what_is_no_dataset_of_images_is_refused_in_one_sentence(given, error, message, tmp_path):
    run, config = RUNS["mnist"]
    with pytest.raises(error, match=message):
        run(config, given)
    assert not (tmp_path / "lab").exists()


def test_points_are_asked_for_where_they_will_do():
    for x, message in [
        (torch.zeros(4, 3), "points x of 2 numbers, got 3"),
        (torch.full((4, 2), torch.inf), "images x or points x of finite numbers, got inf"),
        (torch.zeros(4, 2).long(), "images x or points x in float32, got torch.int64"),
    ]:
        with pytest.raises(ValueError, match=message):
            own_images("", Dataset({"x": x}), 8, points=True)


def test_images_between_0_and_1_are_said_to_lack_black():
    with pytest.warns(UserWarning, match=r"black at -1; its numbers go from .* to 0.99.*: of images in \[0, 1\] make"):
        own_images("", dataset(x=(X + 1) / 2), 8)


def test_folders_that_are_not_what_they_should_be_are_refused(pictures, tmp_path):
    for name in ("empty", "hollow/dark", "hollow/bright"):
        (tmp_path / name).mkdir(parents=True)
    shutil.copy(pictures / "dark" / "0.png", tmp_path / "hollow" / "dark")
    for part in ("train", "val"):
        shutil.copytree(pictures, tmp_path / "parts" / part)
    for data, error, message in [
        (pictures / "bright", ValueError, "needs every image in a subfolder of .*bright, 0.png is in none"),
        (tmp_path / "empty", ValueError, "empty holds no files with an image's ending"),
        (tmp_path / "hollow", ValueError, r"data \(.*hollow\) must have an image of each class, got none in bright"),
        (tmp_path / "parts", ValueError, "must have a folder for each class, got train, val: give one of these"),
        (pictures / "dark" / "0.png", FileNotFoundError, r"data \(.*\): path must be .*0.png is not a folder"),
        ("nowhere", FileNotFoundError, r"data \(nowhere\): path must be a folder of images, .*nowhere is not a folder"),
    ]:
        with pytest.raises(error, match=message):
            own_images(str(data), None, 8, labelled=True)
    with pytest.raises(ValueError, match=r"data \(mine\) must be left out where a dataset is given"):
        own_images("mine", dataset(), 8)
    assert own_images("", None, 8) is None


def test_a_path_is_a_path_however_it_is_given():
    assert mnist.Config(data=Path("a") / "b").data == str(Path("a") / "b")
    with pytest.raises(TypeError, match="data must be a path, or '' for none, got 5"):
        mnist.Config(data=5)


def test_each_class_is_learnt_and_something_held_out():
    train_set, held_out = train_and_held_out(Dataset({"x": torch.zeros(6), "y": [0, 1, 2, 0, 1, 2]}))
    assert class_names(train_set) == ["0", "1", "2"]
    assert len(held_out) == 1


def test_a_dataset_that_an_example_does_not_know_is_refused():
    """A folder's name there, where it stood once, must not end in the training of something else."""
    with pytest.raises(ValueError, match="dataset must be one of 'digits', 'mnist', got 'photos'"):
        autoencoder.Config(dataset="photos")
    with pytest.raises(ValueError, match="dataset must be one of 'digits', 'cifar', got 'folder'"):
        replace(STYLEGAN2["tiny"], dataset="folder")


def test_classes_without_names_are_counted_in_all_parts():
    parts = Dataset({"x": torch.zeros(300), "y": torch.arange(300)}).split(0.9, 0.1)
    assert class_names(*parts) == [str(label) for label in range(300)]
    with pytest.raises(ValueError, match=r"got 0, 1, 2, 3, 4, 5, 6, 7, … \(299\): or name them"):
        class_names(Dataset({"x": torch.zeros(299), "y": [*range(298), 300]}))
    with pytest.raises(ValueError, match="at least 2 classes to tell apart, got only"):
        class_names(Dataset({"x": torch.zeros(3), "y": [0, 0, 0]}, classes=["only"]), at_least=2)


def test_an_autoencoder_needs_images_to_hold_out():
    with pytest.raises(ValueError, match="dataset must hold at least 30 images, of which two are held out, got 29"):
        autoencoder.run(AUTOENCODER["tiny"], Dataset({"x": X[:29]}))
