import math
import sys
from dataclasses import replace

import pytest
import torch
from PIL import Image

from ai.examples.diffusion.config import DESCRIPTIONS, PRESETS
from ai.examples.diffusion.main import averaged, drawn, main, run
from ai.examples.diffusion.measure import measure_gaussians
from ai.lab import Trial
from ai.train import snapshot

POINTS = replace(PRESETS["tiny"], trial="points")
IMAGES = replace(
    PRESETS["tiny"],
    trial="images",
    dataset="digits",
    conditional=True,
    imsize=8,
    nc=8,
    n_blocks=1,
    attn_sizes=(4,),
    guidance=2.0,
)


@pytest.fixture(autouse=True)
def lab(tmp_path, monkeypatch):
    monkeypatch.setenv("AI_LAB_PATH", str(tmp_path))


@pytest.mark.parametrize("config", [POINTS, IMAGES], ids=["points", "images"])
def test_a_tiny_run_records_and_draws(config):
    run(config)
    trial = Trial(config.trial)
    assert trial.state == "finished"
    assert "loss" in trial.metrics()
    with Image.open(trial.path / "samples.png") as page:
        assert min(page.size) > 200
    # A frame for the noise, one for each step, and twenty on which the picture rests.
    with Image.open(trial.path / "sampling.gif") as animation:
        assert animation.n_frames >= config.sample_steps


def test_points_run_in_the_way_of_ddpm_too():
    run(replace(POINTS, dataset="moons", conditional=True, precond="ddpm", sampler="ddim"))
    assert Trial("points").state == "finished"


@pytest.mark.slow
def test_a_resumed_run_ends_with_the_weights_of_an_unbroken_one():
    run(replace(POINTS, trial="whole", decay=False))
    run(replace(POINTS, trial="broken", steps=2, decay=False))
    run(replace(POINTS, trial="broken", decay=False, resume=True))
    whole, broken = (
        snapshot.load_model_state(Trial(name).snapshots.latest(), ema=True) for name in ("whole", "broken")
    )
    for name, value in whole.items():
        torch.testing.assert_close(broken[name], value, rtol=0, atol=0, msg=name)


def test_samples_follow_the_class_and_the_seed():
    run(IMAGES)
    model = averaged("images")
    twos = drawn(model, IMAGES, n=4, labels=torch.full((4,), 2))
    torch.testing.assert_close(drawn(model, IMAGES, n=4, labels=torch.full((4,), 2)), twos, rtol=0, atol=0)
    assert not torch.allclose(drawn(model, IMAGES, n=4, labels=torch.full((4,), 3)), twos)


def test_command_line_overrides_a_preset(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["diffusion", "tiny", "--steps", "2", "--trial", "typed"])
    main()
    assert Trial("typed").config["steps"] == 2


def test_gaussians_are_measured_as_stated(any_device):
    """True samples: 4 standard deviations hold all but exp(-8) of a round gaussian in the plane."""
    draws = torch.Generator().manual_seed(0)
    angle = torch.randint(8, (200_000,), generator=draws) * math.pi / 4
    centres = torch.stack([angle.cos(), angle.sin()], 1)
    x = centres + 0.05 * torch.randn(200_000, 2, generator=draws)
    numbers = measure_gaussians(x.to(any_device), 0.05)
    assert numbers["far"] == pytest.approx(math.exp(-8), abs=2e-4)
    assert numbers["smallest_share"] == pytest.approx(0.125, abs=0.003)
    assert numbers["spread"] == pytest.approx(1, abs=0.01)


def test_a_missing_gaussian_shows():
    centres = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert measure_gaussians(centres, 0.05)["smallest_share"] == 0


def test_a_trial_without_snapshots_is_named():
    Trial("empty")
    with pytest.raises(FileNotFoundError, match=r"trial .*empty has no snapshot"):
        averaged("empty")


def test_presets_are_described():
    assert PRESETS.keys() == DESCRIPTIONS.keys()
