import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.decomposition import PCA

from ai.examples.autoencoder import Config, ImgAutoencoder, compare, losses, run
from ai.examples.autoencoder.linear import pca_error
from ai.examples.autoencoder.losses import make_loss
from ai.examples.autoencoder.main import DESCRIPTIONS, PRESETS
from ai.examples.metrics import digits
from ai.train import loss


def images(n: int = 4, nc: int = 1, side: int = 16) -> torch.Tensor:
    return torch.rand(n, nc, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({}, (256, 4, 4)),
        ({"nc_img": 1, "nc_min": 8, "nc_max": 16}, (16, 4, 4)),
        ({"nc_img": 1, "nc_min": 8, "nc_max": 16, "nc_code": 2}, (2, 4, 4)),
    ],
)
def test_the_code_has_the_shape_that_was_asked_for(options, code, on_device):
    model = ImgAutoencoder(32, 4, **options).init(seed=0)
    x = images(2, options.get("nc_img", 3), 32)
    assert on_device(model.encode)(x).shape == (2, *code)
    assert model.decode(model.encode(x)).shape == x.shape
    assert torch.equal(model.eval()(x), model.decode(model.encode(x)))


def test_every_pixel_and_every_parameter_matters(on_device):
    model = ImgAutoencoder(16, 4, 1, 8, 16, nc_code=2).init(seed=0)
    x = images().requires_grad_()
    on_device(model)(x).square().sum().backward()
    assert (x.grad != 0).float().mean() > 0.99
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())


def test_reconstructions_stay_in_range():
    assert ImgAutoencoder(16, 4, 1, 8, 16).init(seed=0)(images() * 100).abs().max() <= 1


def test_a_pixel_that_is_wrong_at_an_end_goes_on_learning_in_half_precision():
    model = ImgAutoencoder(16, 4, 1, 8, 16).init(seed=0)
    last = model.decode[-1]
    torch.nn.init.zeros_(last.weight)
    torch.nn.init.constant_(last.bias, 6.0)  # its tanh is 1 in half precision
    with torch.autocast("cpu", torch.bfloat16):
        y = model(images())
    (y + 1).square().mean().backward()
    assert y.dtype == torch.float32
    # 2 (y + 1) (1 - y²), summed over an image's pixels and meant over all: 2 · 2 · 4 e^-12
    assert float(last.bias.grad) == pytest.approx(16 * math.exp(-12), rel=0.01)


def test_blocks_of_ones_own_are_taken():
    seen = []

    def block(size, nc1, nc2):
        seen.append((size, nc1, nc2))
        return torch.nn.Conv2d(nc1, nc2, 2, 2)

    ImgAutoencoder(16, 4, 1, 4, 64, enc_block=block)
    assert seen == [(16, 4, 8), (8, 8, 16)]


def test_pca_error_is_that_of_scikit_learn():
    x, y = images(60, side=6), images(100, side=6)[60:]
    pca = PCA(7).fit(x.flatten(1).double().numpy())
    back = pca.inverse_transform(pca.transform(y.flatten(1).double().numpy()))
    assert pca_error(x, y, 7) == pytest.approx(np.square(back - y.flatten(1).numpy()).mean(), rel=1e-9)


def test_pca_error_refuses():
    with pytest.raises(ValueError, match=r"n_numbers of at least 1 and images of one shape, got 0, \(1, 6, 6\)"):
        pca_error(images(side=6), images(side=6), 0)
    with pytest.raises(ValueError, match=r"got 3, \(1, 6, 6\) and \(1, 8, 8\)"):
        pca_error(images(side=6), images(side=8), 3)


def test_losses_are_those_of_their_names(on_device):
    x, y = images(), images().flip(0)
    assert torch.allclose(on_device(make_loss("pixel", 1, 16))(x, y), loss.mse(x, y))
    assert torch.allclose(on_device(make_loss("ssim", 1, 16))(x, y), loss.ssim_loss(x, y))
    assert torch.allclose(on_device(make_loss("pixel+ssim", 1, 16))(x, y), loss.mse(x, y) + loss.ssim_loss(x, y))


@pytest.mark.parametrize(
    ("name", "side", "message"),
    [
        ("l7", 16, "loss must be one of pixel, ssim, perceptual, .*, got 'l7'"),
        ("pixel+ssim", 8, r"imsize \(8\) must be at least 11, the window of the loss 'pixel\+ssim'"),
    ],
)
def test_make_loss_refuses(name, side, message):
    with pytest.raises(ValueError, match=message):
        make_loss(name, 1, side)


def test_every_preset_is_described():
    assert PRESETS.keys() == DESCRIPTIONS.keys()
    assert PRESETS["laptop"] == Config()


@pytest.mark.slow
def test_the_tiny_preset_leaves_a_whole_trial(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("AI_LAB_PATH", str(tmp_path))
    numbers = run(PRESETS["tiny"])
    folder = tmp_path / "autoencoder"
    with Image.open(folder / "walk.gif") as gif:
        assert gif.n_frames == 6 * 12
    with Image.open(folder / "reconstructions.png") as page:
        assert page.size == (12 * (8 * 12 + 2) + 2, 4 * (8 * 12 + 2) + 2)
    assert list((folder / "samples").glob("*.png"))
    assert 0 < numbers["pca_mse"] < numbers["mse"] < 2
    assert numbers["code_size"] == 2 * 4 * 4
    assert "recorded in" in capsys.readouterr().out
    assert run(replace(PRESETS["tiny"], resume=True)) == numbers  # there is nothing left to train


@pytest.mark.slow
def test_the_study_judges_every_loss_by_the_same_measures(tmp_path, monkeypatch):
    monkeypatch.setenv("AI_LAB_PATH", str(tmp_path))
    untrained = digits.DigitsClassifier().init(seed=0).eval()
    monkeypatch.setattr(compare, "digits_classifier", lambda size: untrained)
    monkeypatch.setattr(losses, "digits_classifier", lambda size: untrained)
    result = compare.reproduce(preset="tiny", steps=2)
    folder = tmp_path / "reproduce" / "autoencoder-losses"
    assert {"pixel mse", "perceptual mse", "pixel+perceptual recognised", "originals recognised"} <= result.keys()
    for name in ("pixel", "perceptual", "pixel+perceptual"):
        assert (folder / name / "snapshots" / "000000002").is_dir()
    assert (folder / "comparison.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "samples.png").read_bytes().startswith(b"\x89PNG")
    assert "pixel+perceptual" in (folder / "notes.md").read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="dataset must be 'digits', which the classifier knows, got 'mnist'"):
        compare.compare(Config(dataset="mnist"))


def test_the_perceptual_loss_of_grey_images_needs_no_download(monkeypatch):
    classifier = digits.DigitsClassifier().init(seed=0).eval()
    monkeypatch.setattr(losses, "digits_classifier", lambda size: classifier)
    x, y = images(), images().flip(0).requires_grad_()
    distance = make_loss("perceptual", 1, 16)
    assert distance(x, x).item() == 0
    value = distance(y, x)
    first, second = classifier.features[0], classifier.features[1]
    slow = (first(y) - first(x)).square().mean() + (second(first(y)) - second(first(x))).square().mean()
    assert value.item() == pytest.approx(slow.item(), rel=1e-5)
    value.backward()
    assert y.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in classifier.parameters())
