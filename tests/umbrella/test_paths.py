"""Wherever a path is taken, `~` is the home: no door makes or looks for a folder of that name."""

import numpy as np
import pytest
import torch
from PIL import Image

import ai
import ai.model as m
from ai.data import Shards, write_shards
from ai.data.storage.paths import expanded
from ai.infer.http.models.model_sources import ModelSource, build
from ai.model.arguments import as_path


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


def test_a_folder_that_is_called_so_is_reached_by_its_place(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    snapshots = ai.train.Snapshots("./~")
    for path in (snapshots.folder, as_path("./~"), as_path(as_path("./~")), expanded(expanded("./~"))):
        assert path == tmp_path / "~"
    assert as_path("~") == as_path(as_path("~")) == expanded(expanded("~")) == tmp_path / "home"
    assert str(as_path("runs/~")) == str(expanded("runs/~")) == "runs/~"
    with pytest.raises(ValueError, match=r"^folder must name a folder, got an empty string$"):
        ai.train.Snapshots("")


@pytest.mark.parametrize("source", ["~/none", "./none", "/none"])
def test_a_folder_that_is_not_there_is_asked_of_no_hub(source):
    with pytest.raises(FileNotFoundError, match=r"^source \(.*none\) must be a folder that save_pretrained wrote"):
        Line.from_pretrained(source)


def test_what_is_no_path_is_refused_by_its_argument():
    with pytest.raises(TypeError, match=r"^folder must be text or a path of a folder, got 7$"):
        ai.train.Snapshots(7)
    with pytest.raises(TypeError, match=r"^path must be text or a path of a file, got b'x'$"):
        m.load_state(b"x")
