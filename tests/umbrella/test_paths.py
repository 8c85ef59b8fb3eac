"""Wherever a path is taken, `~` is the home: no door makes or looks for a folder of that name."""

import numpy as np
import pytest
import torch
from PIL import Image

import ai
import ai.model as m
from ai.data import Shards, write_shards
from ai.infer.http.model_sources import ModelSource, build


@pytest.fixture
def home(tmp_path, monkeypatch):
    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir()
    here.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("AI_LAB_PATH", raising=False)
    monkeypatch.chdir(here)
    yield home
    assert list(here.iterdir()) == []


class Line(m.Model):
    def __init__(self, width=2):
        super().__init__(m.fc(width, 1))


def test_models(home):
    model = Line().init(seed=0)
    model.save("~/line.safetensors")
    model.save_pretrained("~/line")
    m.save_state(model.state_dict(), "~/line.pt")
    for again in (
        Line().init("~/line.safetensors"),
        Line.from_pretrained("~/line"),
        Line().init("~/line.pt"),
        build(ModelSource.parse(f"line={__name__}:Line?weights=~/line.pt"))[0],
    ):
        assert torch.equal(again.net.weight, model.net.weight)
    assert sorted(path.name for path in home.iterdir()) == ["line", "line.pt", "line.safetensors"]


def test_pictures_and_shards(home):
    (home / "pictures" / "red").mkdir(parents=True)
    Image.new("RGB", (4, 4), "red").save(home / "pictures" / "red" / "a.png")
    ds = ai.data.ImgDataset("~/pictures", 4, labels="folder", cache="~/packs")
    assert ds.classes == ("red",)
    assert [pack.root for pack in ai.data.packs("~/packs")] == [str(home / "pictures")]
    (home / "labels.csv").write_text("red/a.png,dark\n")
    assert ai.data.ImgDataset("~/pictures", 4, labels="~/labels.csv", cache="~/packs").classes == ("dark",)
    write_shards(ai.data.Dataset({"x": np.arange(4)}), "~/shards", per_shard=2, n_workers=0)
    for paths in ("~/shards", "~/shards/*.npz"):
        assert [file.rpartition("/")[0] for file in Shards(paths).files] == [str(home / "shards")] * 2


def test_snapshots_and_trials(home):
    loader = ai.data.Dataset({"x": torch.zeros(4, 2), "y": torch.zeros(4, 1)}).loader(2, train=True, n_workers=0)
    model = Line().init(seed=0)
    opt = ai.opt.sgd(model)
    trial = ai.Trial("~/runs/line", save_snapshots=True)
    hook = [trial.hook(), ai.train.Hook(snapshots=ai.train.Snapshots("~/snapshots"))]
    ai.Trainer(lambda model, batch, step: (model(batch["x"]) - 1).square().mean(), loader).train(
        model, opt, hook, steplimit=2
    )
    assert trial.path == home / "runs" / "line"
    fresh = Line().init(seed=1)
    assert ai.train.snapshot.restore("~/snapshots", fresh, ai.opt.sgd(fresh)) == 2
    assert torch.equal(fresh.net.bias, model.net.bias)
    state = ai.train.snapshot.load_model_state("~/snapshots/000000002")
    assert torch.equal(state["net.bias"], model.net.bias)
    assert build(ModelSource.parse("line=~/runs/line"))[0](torch.zeros(1, 2)).item() == model.net.bias.item()


def test_what_is_no_path_is_refused_by_its_argument():
    with pytest.raises(TypeError, match=r"^folder must be text or a path of a folder, got 7$"):
        ai.train.Snapshots(7)
    with pytest.raises(TypeError, match=r"^path must be text or a path of a file, got b'x'$"):
        m.load_state(b"x")
