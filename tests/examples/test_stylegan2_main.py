import copy
import sys
from dataclasses import replace

import pytest
import torch
from PIL import Image

from ai.examples.stylegan2 import commands, pictures
from ai.examples.stylegan2.config import DESCRIPTIONS, PRESETS, build
from ai.examples.stylegan2.main import main, run
from ai.lab import Trial
from ai.train import snapshot

TINY = replace(PRESETS["tiny"], trial="tiny")


@pytest.fixture(autouse=True)
def lab(tmp_path, monkeypatch):
    monkeypatch.setenv("AI_LAB_PATH", str(tmp_path))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """One tiny run for all tests that only read it."""
    config = replace(TINY, trial=str(tmp_path_factory.mktemp("lab") / "tiny"))
    run(config)
    return Trial(config.trial)


def test_the_second_network_is_not_drawn_by_a_neighbouring_seed():
    drawn = build(TINY, 1)[1]
    for seed in range(TINY.seed, TINY.seed + 3):
        other = copy.deepcopy(drawn).init(seed=seed)
        assert not torch.equal(*(next(p for p in net.parameters() if p.dim() > 1) for net in (drawn, other)))


@pytest.fixture
def generator():
    return build(TINY, 1)[0].eval()


def parameters(name, *, ema=True):
    newest = Trial(name).snapshots.latest()
    return {key: snapshot.load_model_state(newest, ema=ema, key=key) for key in "dg"}


def test_a_tiny_run_records_and_draws(trained):
    trial = trained
    assert trial.state == "finished"
    assert {"loss_g", "loss_d", "r1", "path_length"} <= trial.metrics().keys()
    pages = ["samples-psi1.png", "samples-psi0.7.png", "style-mix.png", "interpolation.gif"]
    for page in pages:
        with Image.open(trial.path / page) as picture:
            assert min(picture.size) > 100
    with Image.open(trial.path / "interpolation.gif") as animation:
        assert animation.n_frames == 64


@pytest.mark.slow
def test_a_resumed_run_ends_with_the_weights_of_an_unbroken_one():
    run(replace(TINY, trial="whole"))
    run(replace(TINY, trial="broken", steps=3))
    run(replace(TINY, trial="broken", resume=True))
    whole, broken = parameters("whole"), parameters("broken")
    for key in "dg":
        assert whole[key].keys() == broken[key].keys()
        for name, value in whole[key].items():
            torch.testing.assert_close(broken[key][name], value, rtol=0, atol=0, msg=f"{key} {name}")


def test_commands_write_pictures_from_a_trial(trained, tmp_path, monkeypatch, capsys):
    for name, suffix, size in [
        ("generate", "png", (82, 42)),
        ("interpolate", "gif", (22, 12)),
        ("style-mix", "png", (92, 72)),
    ]:
        out = tmp_path / f"{name}.{suffix}"
        options = {"generate": ["--n", "32"], "interpolate": ["--n", "2", "--columns", "2"], "style-mix": []}[name]
        monkeypatch.setattr(sys, "argv", ["stylegan2", name, "--trial", str(trained.path), "--out", str(out), *options])
        main()
        assert f"wrote {out}" in capsys.readouterr().out
        with Image.open(out) as picture:
            assert picture.size == size


def test_pictures_come_from_averaged_weights(trained):
    averaged, last = parameters(trained.path)["g"], parameters(trained.path, ema=False)["g"]
    used = commands.averaged(trained.path).state_dict()
    torch.testing.assert_close(used["synthesis.const"], averaged["synthesis.const"])
    assert not torch.equal(used["synthesis.const"], last["synthesis.const"])


def test_a_trial_without_snapshots_is_named(tmp_path):
    Trial("empty")
    with pytest.raises(FileNotFoundError, match=r"trial .*empty has no snapshot"):
        commands.averaged("empty")


def test_a_seed_gives_the_same_image_in_any_company(generator):
    several = pictures.generate(generator, [3, 4, 5])
    torch.testing.assert_close(pictures.generate(generator, [4])[0], several[1], rtol=1e-4, atol=1e-5)


def test_a_walk_visits_its_seeds_and_closes(generator):
    walk = pictures.interpolate(generator, [1, 2, 3], n_frames=4)
    stations = pictures.generate(generator, [1, 2, 3])
    assert len(walk) == 12
    torch.testing.assert_close(walk[::4], stations, rtol=1e-4, atol=1e-5)
    step = (walk - walk.roll(-1, 0)).square().mean((1, 2, 3)).sqrt()
    assert step.max() < 20 * step.min()


def test_a_mixed_image_has_the_styles_of_its_row_and_column(generator):
    table = pictures.style_mix(generator, [1, 2], [3, 4, 5], layers=range(2, 4)).view(3, 4, 1, 8, 8)
    row, column = pictures.styles(generator, [2]), pictures.styles(generator, [5])
    expected = generator.synthesis(torch.cat([row[:, :2], column[:, 2:]], 1))[0]
    torch.testing.assert_close(table[2, 3], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(table[0, 1:], pictures.generate(generator, [3, 4, 5]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(table[1:, 0], pictures.generate(generator, [1, 2]), rtol=1e-4, atol=1e-5)
    whole = pictures.style_mix(generator, [1], [3], layers=range(4))[3]
    torch.testing.assert_close(whole, table[0, 1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda g: pictures.interpolate(g, [1]), "seeds must name at least 2 images to walk between, got 1"),
        (
            lambda g: pictures.style_mix(g, [1], [2], layers=range(3, 5)),
            r"layers must lie within the 4 style inputs, 0 to 3, got range\(3, 5\)",
        ),
        (
            lambda g: pictures.generate(build(TINY, 1, 10)[0], [1]),
            "label must be given: the generator knows 10 classes",
        ),
        (lambda g: pictures.generate(g, [1], label=0), "label must be left out: the generator knows none, got 0"),
    ],
)
def test_what_cannot_be_drawn_is_refused(generator, call, message):
    with pytest.raises(ValueError, match=message):
        call(generator)


def test_presets_are_described():
    assert PRESETS.keys() == DESCRIPTIONS.keys()
    assert (PRESETS["paper"].imsize, PRESETS["paper"].nc_base, PRESETS["paper"].r1_gamma) == (1024, 32768, 10.0)
