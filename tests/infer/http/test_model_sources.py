import hashlib
import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from ai.infer import Inferencer
from ai.infer.http.formats.tensors import TensorSpec
from ai.infer.http.models.model_sources import ModelSource, _specs, build, remake
from ai.infer.http.models.repository import named_outputs
from tests.infer.infer_models import Heads, Pair

X = torch.randn(2, 3)


def snapshot(folder, model, build_by, **changes):
    """Writes a snapshot's folder, as a trainer does."""
    folder.mkdir(parents=True)
    save_file(model.state_dict(), folder / "model.safetensors")
    save_file({name: x + 1 for name, x in model.state_dict().items()}, folder / "ema.safetensors")
    files = {
        name: {
            "sha256": hashlib.sha256((folder / name).read_bytes()).hexdigest(),
            "bytes": (folder / name).stat().st_size,
        }
        for name in ("model.safetensors", "ema.safetensors")
    }
    about = {
        "file": "model.safetensors",
        "ema": "ema.safetensors",
        "prefix": "",
        "build": build_by,
        "inputs": [{"shape": [None, 3], "dtype": "float32"}],
        "outputs": [],
    }
    manifest = {"format": 1, "models": {"model": about}, "files": files, **changes}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


LINEAR = {"class": "torch.nn:Linear", "arguments": {"args": [3, 2], "kwargs": {"bias": True}}}


def test_snapshot_and_trial_folders(tmp_path):
    old, new = nn.Linear(3, 2), nn.Linear(3, 2)
    snapshot(tmp_path / "snapshots" / "000000001", old, LINEAR)
    newest = snapshot(tmp_path / "snapshots" / "000000002", new, LINEAR)
    for folder in (tmp_path, newest, newest.parent):
        model, inputs = build(ModelSource.parse(f"m={folder}"))
        assert torch.equal(model(X), new(X))
        assert [spec.describe() for spec in inputs] == [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}]
    averaged, _ = build(ModelSource.parse(f"m={newest}?ema=1"))
    assert torch.equal(averaged.weight, new.weight + 1)


def test_a_program_that_torch_exported_is_served_as_it_was_saved(tmp_path):
    linear = nn.Linear(3, 2)
    rows = {0: torch.export.Dim("rows")}
    torch.export.save(torch.export.export(linear, (X,), dynamic_shapes=(rows,)), tmp_path / "line.pt2")
    source = ModelSource.parse(f"m={tmp_path / 'line.pt2'}?input=x:FP32:-1,3")
    model, inputs = build(source)
    travelled = pickle.loads(pickle.dumps(model))  # as its file's path, to the worker
    for x in (X, torch.ones(5, 3)):
        assert torch.equal(model(x), linear(x))
        assert torch.equal(travelled(x), linear(x))
    assert [spec.describe() for spec in inputs] == [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}]
    assert remake(source) is None


def test_an_alias_of_a_search_is_the_link_in_its_folder(tmp_path):
    models = {}
    for number in ("1", "2"):
        models[number] = nn.Linear(3, 2)
        snapshot(tmp_path / "search" / number / "snapshots" / "000000001", models[number], LINEAR)
    (tmp_path / "search" / "@best").symlink_to("2", target_is_directory=True)
    source = ModelSource.parse(f"m={tmp_path}/search@best")
    assert torch.equal(build(source)[0](X), models["2"](X))
    assert remake(source) is None
    snapshot(tmp_path / "search@best", models["1"], LINEAR)  # a folder of that very name is meant first
    assert torch.equal(build(source)[0](X), models["1"](X))
    with pytest.raises(ValueError, match=r"a folder that is there, not '.*search@worst'"):
        build(ModelSource.parse(f"m={tmp_path}/search@worst"))


def test_damaged_newer_and_unbuildable_snapshots_are_refused(tmp_path):
    model = nn.Linear(3, 2)
    newer = snapshot(tmp_path / "a", model, LINEAR, format=99)
    with pytest.raises(ValueError, match=r"has format 99; this version reads up to 1"):
        build(ModelSource.parse(f"m={newer}"))
    anonymous = snapshot(tmp_path / "b", model, {"class": None, "arguments": None})
    with pytest.raises(ValueError, match=r"model 'm': .* does not say how to build its model .*: build it yourself"):
        build(ModelSource.parse(f"m={anonymous}"))
    damaged = snapshot(tmp_path / "c", model, LINEAR)
    data = bytearray((damaged / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (damaged / "model.safetensors").write_bytes(data)
    with pytest.raises(ValueError, match=r"c is damaged: model.safetensors does not have its sha256"):
        build(ModelSource.parse(f"m={damaged}"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"the folder .*empty must hold a snapshot, and has none"):
        build(ModelSource.parse(f"m={tmp_path / 'empty'}"))


def test_a_model_held_by_value_is_checked_before_it_is_unpickled(tmp_path):
    model = nn.Linear(3, 2)
    folder = snapshot(tmp_path / "a", model, {"class": None, "arguments": None, "structure": "structure.pkl"})
    structure = folder / "structure.pkl"

    def describe(content):
        structure.write_bytes(content)
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["files"]["structure.pkl"] = {"sha256": hashlib.sha256(content).hexdigest()}
        (folder / "manifest.json").write_text(json.dumps(manifest))

    describe(pickle.dumps({"model": pickle.dumps(nn.Linear(3, 2))}))
    with pytest.raises(ValueError, match=r"holds its model by value \(structure.pkl\): .* serve it with --trust"):
        build(ModelSource.parse(f"m={folder}"))
    assert torch.equal(build(ModelSource.parse(f"m={folder}"), trust=True)[0](X), model(X))
    structure.write_bytes(pickle.dumps({"model": pickle.dumps(nn.Linear(4, 4))}))
    with pytest.raises(ValueError, match=r"a is damaged: structure.pkl does not have its sha256"):
        build(ModelSource.parse(f"m={folder}"), trust=True)
    describe(b"not a pickle")
    with pytest.raises(ValueError, match=r"structure.pkl cannot be read by this Python and its packages"):
        build(ModelSource.parse(f"m={folder}"), trust=True)


def test_factory_with_arguments_and_weights(tmp_path):
    model = nn.Linear(3, 2)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    torch.save(model.state_dict(), tmp_path / "w.pt")
    for file in ("w.safetensors", "w.pt"):
        text = f'm=torch.nn:Linear?args={{"in_features":3,"out_features":2}}&weights={tmp_path / file}'
        assert torch.equal(build(ModelSource.parse(text))[0](X), model(X))
    for text, message in [
        ("m=torch.nn:Nothing", r"the factory 'torch.nn:Nothing' must be importable"),
        ("m=builtins:dict", r"the factory 'builtins:dict' must return a torch.nn.Module, not dict"),
        ("m=nothing_here", r"model 'm' must come from package.module:factory, a .pt2 or .onnx file or a folder"),
        ("m=gone.pt2", r"model 'm' must be a file that is there, not gone.pt2"),
    ]:
        with pytest.raises(ValueError, match=message):
            build(ModelSource.parse(text))


def test_outputs_have_names():
    a, b = torch.zeros(1), torch.ones(1)
    assert named_outputs(a) == [("y", a)]
    assert [name for name, _ in named_outputs((a, b))] == ["y0", "y1"]
    assert [name for name, _ in named_outputs({"p": a, "q": {"r": b}, "k": 3, "n": None})] == ["p", "q.r", "k"]
    assert [name for name, _ in named_outputs(Heads(policy=a, value=b))] == ["policy", "value", "note"]
    assert [name for name, _ in named_outputs(Pair(a, b))] == ["first", "second"]


def test_a_folder_names_no_function_to_be_called(tmp_path):
    called = {
        "class": "tests.infer.http.test_model_sources:_call_me",
        "arguments": {"args": [str(tmp_path)], "kwargs": {}},
    }
    folder = snapshot(tmp_path / "a", nn.Linear(3, 2), called)
    with pytest.raises(ValueError, match=r"names '.*_call_me', which is no module's class: .* --trust"):
        build(ModelSource.parse(f"m={folder}"))
    assert not (tmp_path / "called").exists()
    build(ModelSource.parse(f"m={folder}"), trust=True)
    assert (tmp_path / "called").exists()


def test_a_folder_brings_no_class_of_its_own(tmp_path, monkeypatch):
    """Folders without `__init__.py` are packages, too: where a server is started above it, its files are modules."""
    monkeypatch.syspath_prepend(tmp_path)
    code = "import pathlib\nimport torch\npathlib.Path(__file__).with_name('ran').touch()\n"
    code += "class Net(torch.nn.Linear):\n    pass\n"
    arguments = {"args": [3, 2], "kwargs": {}}
    by = {"class": "downloads.trial.snapshots.a.evil:Net", "arguments": arguments}
    folder = snapshot(tmp_path / "downloads" / "trial" / "snapshots" / "a", nn.Linear(3, 2), by)
    (folder / "evil.py").write_text(code)
    (folder.parent.parent / "evil.py").write_text(code)
    for name in ("downloads.trial.snapshots.a.evil", "downloads.trial.evil"):
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["models"]["model"]["build"]["class"] = f"{name}:Net"
        (folder / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(ValueError, match=rf"brings the code of '{name}:Net' \(.*evil\.py\): .* --trust"):
            build(ModelSource.parse(f"m={folder}"))
    assert not list(tmp_path.rglob("ran"))
    build(ModelSource.parse(f"m={folder}"), trust=True)
    assert len(list(tmp_path.rglob("ran"))) == 1


def test_a_folder_gives_no_class_a_file_of_its_own(tmp_path, monkeypatch):
    """A class that reads a program, such as our own for `.pt2`, runs what it finds in it."""
    monkeypatch.chdir(tmp_path)
    by = {
        "class": "ai.infer.http.models.model_sources:ExportedModel",
        "arguments": {"args": [], "kwargs": {"path": "a/net.pt2"}},
    }
    folder = snapshot(tmp_path / "a", nn.Linear(3, 2), by)
    (folder / "net.pt2").write_bytes(b"never read")
    with pytest.raises(ValueError, match=r"gives '.*:ExportedModel' its own file 'a/net\.pt2': .* --trust"):
        build(ModelSource.parse(f"m={folder}"))


def _call_me(folder):
    (Path(folder) / "called").touch()
    return nn.Linear(3, 2)


def test_onnx_file_is_run_and_describes_its_inputs(tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    helper, floats = onnx.helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node("Add", ["a", "b"], ["sum"]), helper.make_node("Mul", ["a", "b"], ["product"])],
        "both",
        [helper.make_tensor_value_info(name, floats, ["rows", 3]) for name in ("a", "b")],
        [helper.make_tensor_value_info(name, floats, ["rows", 3]) for name in ("sum", "product")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    path = tmp_path / "both.onnx"
    path.write_bytes(model.SerializeToString())
    built, inputs = build(ModelSource.parse(f"m={path}"))
    assert [spec.describe() for spec in inputs] == [
        {"name": name, "datatype": "FP32", "shape": [-1, 3]} for name in ("a", "b")
    ]
    a, b = torch.randn(2, 3), torch.randn(2, 3)
    for each in (built, pickle.loads(pickle.dumps(built))):
        outputs = each(a, b)
        assert torch.equal(outputs["sum"], a + b)
        assert torch.equal(each(a, b=b)["product"], a * b)
    path.write_bytes(b"rubbish")
    with pytest.raises(ValueError, match=r"both.onnx must be an ONNX model"):
        build(ModelSource.parse(f"m={path}"))


PARAMETRISED = """
from torch import nn

def make(n_in):
    return nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(n_in, 2)), nn.ReLU())
"""


def test_modules_that_cannot_be_sent_are_made_in_the_worker(tmp_path, monkeypatch):
    (tmp_path / "parametrised_shop.py").write_text(PARAMETRISED)
    monkeypatch.syspath_prepend(tmp_path)
    source = ModelSource.parse('m=parametrised_shop:make?args={"n_in":3}')
    model, _ = build(source)
    with pytest.raises(RuntimeError, match="parametrized"):
        pickle.dumps(model)
    with Inferencer(model, build=remake(source)) as inferencer:
        assert torch.equal(inferencer(X), model(X))
        with torch.no_grad():
            model[0].bias.add_(1)
        inferencer.update_params(model.state_dict())
        assert torch.equal(inferencer(X), model(X))
    assert remake(ModelSource.parse("m=gone.pt2")) is None


def test_the_inputs_of_a_manifest_are_all_described_or_none_is():
    """As training notes them, a number without axes among them."""
    frames, rate = {"shape": [None, 1, 8], "dtype": "float32"}, {"shape": [], "dtype": "int64"}
    assert _specs([frames]) == (TensorSpec("x", "FP32", (-1, 1, 8)),)
    assert _specs([frames, rate]) == (TensorSpec("x0", "FP32", (-1, 1, 8)), TensorSpec("x1", "INT64", ()))
    assert _specs([{"shape": [None, None], "dtype": "bfloat16"}]) == (TensorSpec("x", "BF16", (-1, -1)),)
    for odd in ("NoneType", [frames], {"a": frames}, {"shape": frames}, {"shape": [None], "dtype": "complex64"}):
        assert _specs([frames, odd]) == ()
    assert _specs(None) == _specs([]) == ()
