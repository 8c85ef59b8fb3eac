"""`ai.model.saved`: models come back from snapshots, those of earlier versions too, and nothing damaged is believed."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from ai.model import saved

# Written when modules still lay side by side: `m.Model(m.seq(m.flatten(), m.fc(4, 3, actv="relu"), m.fc(3, 3),
# nn.BatchNorm1d(3), m.fc(3, 2)))`, four steps of Adam, `ema=0.5`.
EARLIER = Path(__file__).with_name("snapshot_format_1")
X = torch.linspace(-1, 1, 32).view(8, 1, 2, 2)


class Counter(nn.Module):
    """Has a state that is no tensor."""

    def __init__(self, size=2):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size))
        self.n_calls = 0

    def get_extra_state(self):
        return {"n_calls": self.n_calls}

    def set_extra_state(self, state):
        self.n_calls = state["n_calls"]


def write(folder, model, build, *, key="model", extra=None, note=True):
    """Writes a snapshot by hand, as the format says."""
    folder.mkdir(parents=True)
    tensors = {k: v for k, v in model.state_dict().items() if isinstance(v, torch.Tensor)}
    save_file(tensors, folder / "model.safetensors")
    torch.save({"optimizers": {}, "model_extra": extra or {}}, folder / "state.pt")
    about = {"file": "model.safetensors", "ema": None, "prefix": "", "build": build, "inputs": None, "outputs": None}
    if note:
        about["extra"] = bool(extra)
    files = {path.name: {"sha256": saved.sha256(path), "bytes": path.stat().st_size} for path in folder.iterdir()}
    manifest = {"format": 1, "step": 1, "models": {key: about}, "metrics": {}, "files": files}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


BY_CLASS = {"class": f"{__name__}:Counter", "arguments": {"args": [], "kwargs": {"size": 3}}, "structure": None}


def test_a_snapshot_of_an_earlier_version_gives_the_outputs_that_it_gave():
    assert saved.verify(EARLIER) is None
    with torch.no_grad():
        out = saved.build(EARLIER).eval()(X)[:2]
        averaged = saved.build(EARLIER, ema=True).eval()(X)[:2]
    assert out.flatten().tolist() == pytest.approx([-0.21731931, 0.34510165, -0.15267557, 0.26741555], abs=1e-6)
    assert averaged.flatten().tolist() == pytest.approx([-0.22864580, 0.35129946, -0.16122341, 0.27204910], abs=1e-6)


@pytest.mark.parametrize("noted", [True, False], ids=["noted in the manifest", "of before it was noted"])
def test_a_class_is_called_and_states_that_are_no_tensors_come_back(tmp_path, noted):
    model = Counter(3)
    nn.init.ones_(model.weight)
    folder = write(tmp_path / "1", model, BY_CLASS, extra={"_extra_state": {"n_calls": 7}}, note=noted)
    built = saved.build(folder)
    assert built.weight.tolist() == [1, 1, 1]
    assert built.n_calls == 7
    assert saved.model_keys(folder) == ["model"]


def test_newest_passes_over_what_is_damaged_and_what_is_no_snapshot(tmp_path):
    for step in (1, 2, 10):
        write(tmp_path / f"{step:09d}", Counter(3), BY_CLASS)
    (tmp_path / "notes").mkdir()
    shutil.copytree(tmp_path / "000000010", tmp_path / ".000000011.1.partial")
    assert saved.newest(tmp_path).name == "000000010"
    (tmp_path / "000000010" / "state.pt").write_bytes(b"")
    with pytest.warns(RuntimeWarning, match=r"000000010 is damaged \(state.pt has 0 bytes"):
        assert saved.newest(tmp_path).name == "000000002"
    assert saved.newest(tmp_path / "nowhere") is None


def test_damage_is_named_before_anything_is_run(tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(EARLIER, folder)
    (folder / "structure.pkl").write_bytes(pickle.dumps({"model": b"cos\nsystem\n(S'false'\ntR."}))
    with pytest.raises(saved.SnapshotError, match=r"copy is damaged: structure.pkl does not have its sha256"):
        saved.build(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(saved.SnapshotError, match=r"copy is damaged: model.safetensors is missing"):
        saved.load_weights(folder)


def test_what_a_snapshot_does_not_hold_is_said(tmp_path):
    folder = write(tmp_path / "1", Counter(3), {"class": None, "arguments": None, "structure": None})
    with pytest.raises(ValueError, match=r"does not say how to build its model \(its class cannot be imported\)"):
        saved.build(folder)
    with pytest.raises(KeyError, match=r"holds the models \['model'\], not 'g'"):
        saved.load_weights(folder, key="g")
    with pytest.raises(ValueError, match=r"ema: snapshot .* has no averaged weights"):
        saved.load_weights(folder, ema=True)
    with pytest.raises(FileNotFoundError, match=r"there is no snapshot at .*: it has no manifest.json"):
        saved.build(tmp_path)
    with pytest.raises(saved.SnapshotError, match="holds no structure of the model 'model'"):
        saved.load_structure(folder, "model")
    with pytest.raises(ValueError, match=r"the factory 'ai.model:nothing' must be importable"):
        saved.construct("ai.model:nothing", [], {})
    with pytest.raises(ValueError, match=r"No module named 'nowhere'; run where nowhere lies, or name its folder in P"):
        saved.construct("nowhere.deep:f", [], {})
    with pytest.raises(ValueError, match=r"the factory 'builtins:int' must return a torch.nn.Module, not int"):
        saved.construct("builtins:int", [], {})


def test_a_newer_format_is_refused_by_number(tmp_path):
    folder = write(tmp_path / "1", Counter(3), BY_CLASS)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "format": 2}))
    with pytest.raises(saved.SnapshotError, match="has format 2; this version reads up to 1: update ai-train"):
        saved.build(folder)
