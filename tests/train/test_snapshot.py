import json
import os
import shutil
import threading

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import ai.model as m
from ai.model import saved
from ai.model.saved import load_structure
from ai.train import Hook, Run, Snapshots, Trainer, opt, snapshot
from ai.train.saving.host_copies import HostCopies
from ai.train.snapshot import SnapshotError


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(3, 3, bias=False)
        self.b = nn.Linear(3, 3, bias=False)
        self.b.weight = self.a.weight
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        return self.b(self.a(x))


def trained(folder, net, batches, steps=6, **how):
    model = net()
    hook = Hook(snapshots=Snapshots(folder, **how), save_interval=2, val_interval=None)
    Trainer(lambda m, b, s: m(b[0]).square().mean(), batches(steps), ema=0.5).train(model, opt.adam(model), hook)
    return model


def test_folder_holds_what_the_format_says(net, batches, tmp_path):
    model = trained(tmp_path, net, batches)
    folder = tmp_path / "000000006"
    assert sorted(p.name for p in folder.iterdir()) == [
        "ema.safetensors",
        "manifest.json",
        "model.safetensors",
        "state.pt",
        "structure.pkl",
    ]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["format"] == 1
    assert manifest["step"] == 6
    about = manifest["models"]["model"]
    assert about["build"]["class"] == "torch.nn.modules.container:Sequential"
    assert about["inputs"] == [{"shape": [None, 6], "dtype": "float32"}]
    assert about["outputs"] == [{"shape": [None, 3], "dtype": "float32"}]
    assert set(manifest["files"]) == {"ema.safetensors", "model.safetensors", "state.pt", "structure.pkl"}
    stored = load_file(folder / "model.safetensors")
    assert stored.keys() == model.state_dict().keys()
    assert all(torch.equal(stored[name], value) for name, value in model.state_dict().items())
    assert not torch.equal(load_file(folder / "ema.safetensors")["0.weight"], stored["0.weight"])
    assert snapshot.verify(folder) is None
    assert not list(tmp_path.glob(".*"))


def test_last_and_best_are_kept(tmp_path):
    run = Run({"model": nn.Linear(1, 1)}, {}, [])
    snapshots = Snapshots(tmp_path, keep_last=2, keep_best=1)
    for step, loss in ((1, 3.0), (2, 1.0), (3, 2.0), (4, float("nan")), (5, 4.0)):
        snapshots.save(run, step, {"val_loss": loss})
    assert [int(p.name) for p in snapshots.all()] == [2, 4, 5]
    assert int(snapshots.best().name) == 2
    assert int(snapshots.latest().name) == 5


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda p: (p / "model.safetensors").write_bytes(b"x" * (p / "model.safetensors").stat().st_size), "sha256"),
        (lambda p: os.truncate(p / "state.pt", 100), "100 bytes instead of"),
        (lambda p: (p / "state.pt").unlink(), "state.pt is missing"),
        (lambda p: (p / "manifest.json").write_text("{"), "manifest.json cannot be read"),
    ],
)
def test_damaged_newest_falls_back_and_says_so(damage, words, net, batches, tmp_path):
    trained(tmp_path, net, batches)
    damage(tmp_path / "000000006")
    assert words in snapshot.verify(tmp_path / "000000006")
    model = net()
    with pytest.warns(RuntimeWarning, match=f"000000006 is damaged .*{words}.*trying the one before"):
        assert snapshot.restore(tmp_path, model, opt.adam(model)) == 4
    with pytest.raises(SnapshotError, match="000000006 is damaged"):
        snapshot.restore(
            tmp_path / "000000006", model, opt.adam(model)
        ) if words != "manifest.json cannot be read" else (snapshot.read(tmp_path / "000000006"))


def test_each_file_is_hashed_once_on_the_way_back(net, batches, tmp_path, monkeypatch):
    trained(tmp_path, net, batches)
    hashed, sha256 = [], saved.sha256
    monkeypatch.setattr(saved, "sha256", lambda path: hashed.append(path.name) or sha256(path))

    def resume():
        model = net()
        hook = Hook(snapshots=Snapshots(tmp_path), resume=True)
        assert Trainer(lambda m, b, s: m(b[0]).sum(), []).train(model, opt.adam(model), hook, steplimit=6) == 6

    def restore():
        model = net()
        assert snapshot.restore(tmp_path, model, opt.adam(model)) == 6

    for way in (
        resume,
        restore,
        lambda: Snapshots(tmp_path).load({"model": net()}),
        lambda: Snapshots(tmp_path).load({"model": net()}, tmp_path / "000000006"),
    ):
        hashed.clear()
        way()
        assert len(hashed) == len(set(hashed)) >= 3


def test_half_written_folder_is_no_snapshot(net, batches, tmp_path):
    trained(tmp_path, net, batches)
    shutil.copytree(tmp_path / "000000006", tmp_path / ".000000008.999999999.partial")
    assert int(Snapshots(tmp_path).latest().name) == 6
    Snapshots(tmp_path).save(Run({"model": net()}, {}, []), 10)
    assert not list(tmp_path.glob(".*"))  # the remains of a dead process are cleared


def test_newer_format_is_refused_by_number(net, batches, tmp_path):
    trained(tmp_path, net, batches)
    path = tmp_path / "000000006" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 99}))
    with pytest.raises(SnapshotError, match="has format 99; this version reads up to 1"):
        snapshot.read(tmp_path / "000000006")


def test_tied_and_strided_tensors_survive(tmp_path):
    model = Tied()
    model.seen = torch.arange(6.0).view(2, 3).T  # not contiguous
    Snapshots(tmp_path).save(Run({"model": model}, {}, []), 1)
    state = snapshot.load_model_state(tmp_path / "000000001")
    assert state.keys() == model.state_dict().keys()
    assert torch.equal(state["seen"], model.seen)
    other = Tied()
    other.seen = torch.zeros(3, 2)
    other.load_state_dict(state)
    assert other.a.weight is other.b.weight
    assert torch.equal(other.a.weight, model.a.weight)


def test_several_models_share_a_file_by_prefix(tmp_path):
    models = {"g": nn.Linear(1, 2), "d": nn.Linear(2, 1)}
    Snapshots(tmp_path).save(Run(models, {}, []), 1)
    assert sorted(load_file(tmp_path / "000000001" / "model.safetensors")) == [
        "d.bias",
        "d.weight",
        "g.bias",
        "g.weight",
    ]
    found = snapshot.load_model_state(tmp_path / "000000001", key="d")
    assert torch.equal(found["weight"], models["d"].weight)
    with pytest.raises(ValueError, match=r"the run has the models \['g'\], the state was saved with \['d', 'g'\]"):
        Snapshots(tmp_path).load(Run({"g": models["g"]}, {}, []))


def test_parts_can_be_loaded_alone(net, batches, tmp_path):
    model = trained(tmp_path, net, batches)
    other = net()
    assert Snapshots(tmp_path).load({"model": other}) == 6
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    with pytest.raises(KeyError, match="a snapshot has no part 'loader'"):
        Snapshots(tmp_path).load({"loader": other})


def test_arrays_and_plain_values_pass_and_code_is_refused(tmp_path):
    class Holder:
        def __init__(self, value):
            self.value = value

        def state_dict(self):
            return {"value": self.value}

        def load_state_dict(self, state):
            self.value = state["value"]

    run = Run({"model": nn.Linear(1, 1)}, {}, [])
    run.add_state("holder", Holder({"array": np.arange(3, dtype=np.uint8), "big": 2**100, "scalar": np.float32(2)}))
    Snapshots(tmp_path / "a").save(run, 1)
    fresh = Run({"model": nn.Linear(1, 1)}, {}, [])
    Snapshots(tmp_path / "a").load(fresh)
    holder = Holder(None)
    fresh.add_state("holder", holder)  # a state that was loaded before reaches its owner
    assert holder.value["array"].tolist() == [0, 1, 2]
    assert holder.value["big"] == 2**100
    run._states["holder"].value = nn.Linear(1, 1)
    Snapshots(tmp_path / "b").save(run, 1)
    with pytest.raises(SnapshotError, match="cannot be read as tensors, arrays and plain values"):
        Snapshots(tmp_path / "b").load(fresh)


def test_writing_in_the_background_saves_the_moment_it_was_asked(net, tmp_path):
    model = net()
    run = Run({"model": model}, {}, [])
    before = model[0].weight.detach().clone()
    snapshots = Snapshots(tmp_path, asynchronous=True)
    snapshots.save(run, 1)
    with torch.no_grad():
        model[0].weight.add_(1)
    snapshots.wait()
    assert torch.equal(snapshot.load_model_state(tmp_path / "000000001")["0.weight"], before)


def test_memory_of_the_copy_is_used_again_and_holds_what_was_asked(net, tmp_path):
    class Holder:
        value = np.arange(6).reshape(2, 3).T

        def state_dict(self):
            return {"value": self.value, "list": [torch.ones(2), torch.zeros(2)], "none": torch.empty(0)}

        def load_state_dict(self, state):
            self.value = state["value"]

    model = Tied()
    run = Run({"model": model}, {}, [])
    run.add_state("holder", Holder())
    copies, before = HostCopies(), None
    for turn in range(3):
        with torch.no_grad():
            model.a.weight.add_(1)
        model.seen = torch.zeros(turn + 3)  # of another shape each time
        Holder.value = Holder.value + 1
        state = run.state_dict()
        found = copies.take(state)
        places = (
            [t.data_ptr() for t in found["states"]["holder"]["list"]],
            found["models"]["model"]["a.weight"].data_ptr(),
        )
        assert before in (None, places)
        before = places
        assert torch.equal(found["models"]["model"]["a.weight"], model.a.weight)
        assert found["models"]["model"]["a.weight"] is found["models"]["model"]["b.weight"]
        assert found["models"]["model"]["a.weight"].data_ptr() != model.a.weight.data_ptr()
        assert found["models"]["model"]["seen"].shape == (turn + 3,)
        assert [t.tolist() for t in found["states"]["holder"]["list"]] == [[1, 1], [0, 0]]
        assert np.array_equal(found["states"]["holder"]["value"], Holder.value)


def test_memory_made_ready_is_what_the_first_copy_goes_into(net):
    model = net()
    optimizer = opt.adam(model)
    model(torch.ones(2, 6)).sum().backward()
    optimizer.step()
    run = Run({"model": model}, {"model": optimizer}, [])
    copies = HostCopies()
    copies.make_ready(run.state_of_tensors())
    ready = {tensor.data_ptr() for kept in copies._kept.values() for tensor in kept}
    found = copies.take(run.state_dict())
    places = {v.data_ptr() for v in found["models"]["model"].values()}
    places |= {v.data_ptr() for state in found["optimizers"]["model"]["state"].values() for v in state.values()}
    assert places == ready
    assert torch.equal(found["models"]["model"]["0.weight"], model[0].weight)


def test_hook_makes_memory_ready_once_after_the_first_step(net, batches, tmp_path):
    class Watched(Snapshots):
        states = ()

        def make_ready(self, run):
            self.states += (len(run.optimizers["model"].state),)
            super().make_ready(run)

    model, snapshots = net(), Watched(tmp_path, asynchronous=True)
    Trainer(lambda m, b, s: m(b[0]).square().mean(), batches(6)).train(
        model, opt.adam(model), Hook(snapshots=snapshots, save_interval=3)
    )
    assert snapshots.states == (4,)  # every parameter has its moments by then
    assert [int(p.name) for p in snapshots.all()] == [3, 6]


def test_failed_writing_does_not_hide_what_ended_the_run(net, batches, tmp_path):
    def bad(model, batch, step):
        if step == 1:
            shutil.rmtree(tmp_path / "file")
            (tmp_path / "file").write_text("")
        if step == 3:
            raise RuntimeError("boom")
        return model(batch[0]).sum()

    model, snapshots = net(), Snapshots(tmp_path / "file" / "folder", asynchronous=True)
    with pytest.raises(RuntimeError, match="boom") as caught:
        Trainer(bad, batches(6)).train(model, opt.sgd(model), Hook(snapshots=snapshots, save_interval=2))
    assert any("and the last snapshot was not written" in note for note in caught.value.__notes__)


def test_failure_in_the_background_is_raised(net, tmp_path):
    (tmp_path / "file").write_text("")
    snapshots = Snapshots(tmp_path / "file" / "folder", asynchronous=True)
    snapshots.save(Run({"model": net()}, {}, []), 1)
    with pytest.raises(OSError, match="file"):
        snapshots.wait()


class Gated(nn.Module):
    """Has what a structure must keep: tied weights, a table outside the state dict, a function, a frozen weight."""

    def __init__(self, gate):
        super().__init__()
        self.tied, self.rnn, self.gate = Tied(), nn.GRU(3, 2), gate
        self.tied.a.weight.requires_grad_(False)
        self.register_buffer("table", torch.arange(3.0), persistent=False)

    def forward(self, x):
        return self.gate(self.rnn(self.tied(x) + self.table)[0])


def test_a_structure_holds_all_but_the_weights_and_leaves_the_model_alone(tmp_path):
    scale = 3.0
    model = nn.Sequential(Gated(lambda x: scale * x), nn.Linear(2, 500))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    lock = threading.Lock()

    def note(*_):  # of a run under way, which holds loaders and threads
        assert lock

    note.__module__ = "ai.train.loop.prepare"
    model.register_forward_hook(note)
    snapshots = Snapshots(tmp_path, asynchronous=True)
    path = snapshots.save(Run({"model": model}, {}, []), 1)
    snapshots.wait()
    loaded = load_structure(path, "model")
    assert loaded[0].tied.a.weight is loaded[0].tied.b.weight
    assert not loaded[0].tied.a.weight.requires_grad
    assert loaded[1].weight.requires_grad
    assert loaded[1].weight.eq(0).all()  # the weights are elsewhere
    assert not loaded._forward_hooks
    loaded.load_state_dict(snapshot.load_model_state(path))
    x = torch.randn(4, 3)
    assert torch.equal(loaded(x), model(x))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_structure_is_stored_once_where_it_is_needed_and_not_declined(tmp_path, monkeypatch):
    packed = []
    monkeypatch.setattr("ai.train.saving.structure.ship", lambda model: packed.append(model) or b"")
    run = Run({"plain": Tied(), "made": m.Model(m.fc(1, 1))}, {}, [])
    snapshots = Snapshots(tmp_path / "a")
    builds = [json.loads((snapshots.save(run, step) / "manifest.json").read_text())["models"] for step in (1, 2)]
    assert [(b["plain"]["build"]["structure"], b["made"]["build"]["structure"]) for b in builds] == [
        (None, "structure.pkl")
    ] * 2
    assert len(packed) == 1
    run.models["made"].net = m.fc(2, 2)
    snapshots.save(run, 3)
    assert len(packed) == 2
    declined = Snapshots(tmp_path / "b", pickle_model=False).save(run, 1)
    assert not (declined / "structure.pkl").exists()
    with pytest.raises(SnapshotError, match="holds no structure of the model 'made'"):
        load_structure(declined, "made")


def test_a_model_that_cannot_be_pickled_is_saved_with_a_word(tmp_path):
    model = m.Model(m.fc(1, 1))
    model.lock = threading.Lock()
    with pytest.warns(RuntimeWarning, match=r"will not tell how to build the model 'model' \(Model\), since it cannot"):
        path = Snapshots(tmp_path).save(Run({"model": model}, {}, []), 1)
    assert not (path / "structure.pkl").exists()
    assert snapshot.verify(path) is None


def test_a_damaged_structure_is_not_run(tmp_path):
    path = Snapshots(tmp_path).save(Run({"model": m.Model(m.fc(1, 1))}, {}, []), 1)
    (path / "structure.pkl").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(SnapshotError, match=r"structure.pkl does not have its sha256"):
        load_structure(path, "model")


def test_bad_input_is_refused(tmp_path, net):
    with pytest.raises(ValueError, match="keep_last must be at least 1 or None, not 0"):
        Snapshots(tmp_path, keep_last=0)
    with pytest.raises(ValueError, match="mode must be 'min' or 'max', not 'best'"):
        Snapshots(tmp_path, mode="best")
    with pytest.raises(FileNotFoundError, match="there is no snapshot in"):
        snapshot.restore(tmp_path, net(), opt.sgd(net()))
    with pytest.raises(TypeError, match="state 'x' needs state_dict and load_state_dict; int has not"):
        Run({}, {}, []).add_state("x", 3)


@pytest.mark.skipif(os.name != "posix", reason="modes of files are POSIX's")
def test_files_have_the_mode_that_the_umask_says(tmp_path):
    before = os.umask(0o027)
    try:
        path = Snapshots(tmp_path).save(Run({"model": nn.Linear(2, 1)}, {}, []), 1)
        m.Model(m.fc(2, 1)).save(tmp_path / "weights.safetensors")
        m.Model(m.fc(2, 1)).save(tmp_path / "weights.pt")
    finally:
        os.umask(before)
    files = [*path.iterdir(), *tmp_path.glob("weights.*")]
    assert {file.stat().st_mode & 0o777 for file in files} == {0o640}, files
