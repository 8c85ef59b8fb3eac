"""Each example learns from pictures of one's own, in a folder or as a dataset, and what it saved is a model again."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ai.data import Dataset, ImgDataset
from ai.examples import autoencoder, diffusion, mnist, stylegan2, vit
from ai.examples.autoencoder.main import PRESETS as AUTOENCODER
from ai.examples.diffusion.config import PRESETS as DIFFUSION
from ai.examples.diffusion.main import averaged
from ai.examples.own_data import class_names, own_images
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


def test_what_examples_cannot_learn_from_is_refused(pictures, tmp_path):
    x = torch.zeros(4, 3, 8, 8)
    for dataset, labelled, message in [
        (Dataset(x), False, "dataset must have images x"),
        (Dataset({"x": x}), True, "dataset must have images x and classes y"),
        (Dataset({"x": x, "y": torch.zeros(4)}), True, r"one whole number y an image, got torch.float32 \(\)"),
        (Dataset({"x": x[:, :2]}), False, r"images of 1 or 3 channels, got \(2, 8, 8\)"),
        (Dataset({"x": x[:, 0]}), False, r"images of 1 or 3 channels, got \(8, 8\)"),
        (Dataset({"x": x[..., :4]}), False, r"images of imsize \(8\), got \(3, 8, 4\)"),
        (Dataset({"x": x + 255}), False, r"images in \[-1, 1\], got torch.float32 from 255 to 255"),
        (Dataset({"x": x.byte()}), False, r"images in \[-1, 1\], got torch.uint8 from 0 to 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            own_images("", dataset, 8, labelled=labelled)
    with pytest.raises(ValueError, match=r"data \(mine\) must be left out where a dataset is given"):
        own_images("mine", Dataset({"x": x}), 8)
    with pytest.raises(ValueError, match=r"needs every image in a subfolder of .*bright, 0.png is in none"):
        own_images(str(pictures / "bright"), None, 8, labelled=True)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty holds no files with an image's ending"):
        own_images(str(tmp_path / "empty"), None, 8)
    with pytest.raises(FileNotFoundError, match=r"path must be a folder of images, .*nowhere is not a folder"):
        own_images("nowhere", None, 8)
    assert own_images("", None, 8) is None


def test_a_dataset_that_an_example_does_not_know_is_refused():
    """A folder's name there, where it stood once, must not end in the training of something else."""
    with pytest.raises(ValueError, match="dataset must be one of 'digits', 'mnist', got 'photos'"):
        autoencoder.Config(dataset="photos")
    with pytest.raises(ValueError, match="dataset must be one of 'digits', 'cifar', got 'folder'"):
        replace(STYLEGAN2["tiny"], dataset="folder")


def test_classes_without_names_are_counted_in_all_parts():
    parts = Dataset({"x": torch.zeros(300), "y": torch.arange(300)}).split(0.9, 0.1)
    assert class_names(*parts) == [str(label) for label in range(300)]
    with pytest.raises(ValueError, match="classes y that count from 0, got -1"):
        class_names(Dataset({"x": torch.zeros(3), "y": [0, -1, 1]}))
    with pytest.raises(ValueError, match="at least 2 classes to tell apart, got only"):
        class_names(Dataset({"x": torch.zeros(3), "y": [0, 0, 0]}, classes=["only"]), at_least=2)


def test_an_autoencoder_needs_images_to_hold_out():
    with pytest.raises(ValueError, match="at least 30 images, of which two are held out, got 29"):
        autoencoder.run(AUTOENCODER["tiny"], Dataset({"x": torch.zeros(29, 3, 8, 8)}))
