"""The application without a network: called as uvicorn would call it."""

import asyncio
import gc
import gzip
import json
import math
import random
import sys
import tracemalloc
import zlib
from types import SimpleNamespace

import cloudpickle
import numpy as np
import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families
from torch import nn

from ai.infer import Inferencer, InferError
from ai.infer.http import app as make_app
from ai.infer.http.formats.plain import read_plain
from ai.infer.http.formats.protocol import read_request
from ai.infer.http.formats.tensors import BadInputError, TensorSpec, from_json, from_raw, to_bytes
from ai.infer.http.models.model_sources import ModelSource
from ai.infer.http.models.repository import ServedModel
from ai.infer.http.routes import App, _inference_path
from ai.infer.transport.trees import RawTensor
from tests.infer.waiting import wait_until

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers know nothing of the tests

X = torch.arange(16, dtype=torch.float32).view(2, 8)

LOOP = asyncio.Runner()


@pytest.fixture(scope="module", autouse=True)
def _close_loop():
    yield
    LOOP.close()


def ask(app, method, path, body=b"", headers=None, chunks=1, *, stays=False):
    """Returns status, headers and body of one request; the client is gone once it has a reply, unless it `stays`."""
    sent, answered = [], asyncio.Event()
    size = max(1, -(-len(body) // chunks))
    parts = [body[i : i + size] for i in range(0, len(body), size)] or [b""]
    messages = [{"type": "http.request", "body": part, "more_body": i + 1 < len(parts)} for i, part in enumerate(parts)]

    async def receive():
        if messages:
            return messages.pop(0)
        await (asyncio.sleep(1000) if stays else answered.wait())
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)
        if message["type"] == "http.response.body" and not message.get("more_body"):
            answered.set()

    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "headers": [(k.encode(), line.encode()) for k, v in (headers or {}).items() for line in str(v).split("\n")],
    }
    LOOP.run(app(scope, receive, send))
    if not sent:
        return None, {}, b""
    return sent[0]["status"], {k.decode(): v.decode() for k, v in sent[0]["headers"]}, sent[1]["body"]


def v2(**document):
    return json.dumps(document).encode()


def json_input(x=X, **changes):
    about = {"name": "x", "datatype": "FP32", "shape": list(x.shape), "data": x.flatten().tolist()}
    return {**about, **changes}


@pytest.fixture
def app(inferencer):
    application = App([ModelSource.parse("m@3=nowhere:factory?input=x:FP32:-1,8")], max_body_bytes=100_000)
    served = application.repository.find("m")
    served.inferencer, served.reason = inferencer, ""
    application._started = True  # there is nothing to load
    yield application
    served.inferencer = None


def test_json_request_and_reply(app, model):
    for path in ("/v2/models/m/infer", "/v2/models/m/versions/3/infer"):
        status, headers, body = ask(app, "POST", path, v2(id="seven", inputs=[json_input()]), chunks=3)
        reply = json.loads(body)
        assert (status, headers["content-type"], reply["id"]) == (200, "application/json", "seven")
        assert (reply["model_name"], reply["model_version"]) == ("m", "3")
        (y,) = reply["outputs"]
        assert (y["name"], y["datatype"], y["shape"]) == ("y", "FP32", [2, 4])
        torch.testing.assert_close(torch.tensor(y["data"]).view(2, 4), model(X))


def test_no_rows_are_answered_by_none(app):
    """A detector that finds nothing asks so; an empty body alone is refused, which is a mistake more often."""
    status, _, body = ask(app, "POST", "/v2/models/m/infer", v2(inputs=[json_input(X[:0])]))
    (output,) = json.loads(body)["outputs"]
    assert (status, output["datatype"], output["shape"], output["data"]) == (200, "FP32", [0, 4], [])
    head = v2(
        inputs=[{"name": "x", "datatype": "FP32", "shape": [0, 8], "parameters": {"binary_data_size": 0}}],
        parameters={"binary_data_output": True},
    )
    status, headers, body = ask(app, "POST", "/v2/models/m/infer", head, {"inference-header-content-length": len(head)})
    (output,) = json.loads(body)["outputs"]
    assert (status, int(headers["inference-header-content-length"])) == (200, len(body))
    assert (output["shape"], output["parameters"]) == ([0, 4], {"binary_data_size": 0})
    status, headers, body = ask(app, "POST", "/models/m", b"", {"x-shape": "0,8"})
    assert (status, headers["x-shape"], body) == (200, "0,4", b"")


@pytest.mark.parametrize("declared", [True, False])
def test_an_input_without_axes_goes_in_and_comes_out(app, declared):
    served = app.repository.find("m")
    served.inputs = (TensorSpec.parse("x:FP32:"),) if declared else ()
    served.inferencer = SimpleNamespace(client=Echo(), ready=True)
    about = {"name": "x", "datatype": "FP32", "shape": [], "parameters": {"binary_data_size": 4}}
    head, bare = v2(inputs=[about], parameters={"binary_data_output": True}), to_bytes(torch.tensor(3.5))
    reply = ask(app, "POST", "/v2/models/m/infer", v2(inputs=[json_input(shape=[], data=[3.5])]))
    assert (reply[0], json.loads(reply[2])["outputs"][0]) == (200, json_input(name="y", shape=[], data=[3.5]))
    reply = ask(app, "POST", "/v2/models/m/infer", head + bare, {"inference-header-content-length": len(head)})
    assert (reply[0], reply[2][-4:]) == (200, bare)
    reply = ask(app, "POST", "/models/m", bare, {"x-shape": ""})
    assert (reply[0], reply[1]["x-shape"], reply[2]) == (200, "", bare)
    reply = ask(app, "POST", "/models/m", b"3.5", {"content-type": "application/json"})
    assert (reply[0], reply[2]) == (200, b"3.5")
    if declared:
        assert ask(app, "POST", "/models/m", bare)[2] == bare
        assert ask(app, "POST", "/models/m", b"[3.5]", {"content-type": "application/json"})[0] == 400
    text = {"name": "x", "datatype": "BYTES", "shape": [], "data": ["one"]}
    status, _, body = ask(app, "POST", "/v2/models/m/infer", v2(inputs=[text]))
    assert (status, json.loads(body)["error"]) == (400, "input 'x' must have an axis of texts, not shape []")


class Echo:
    """Stands for a client whose model returns its input."""

    def start_raw(self, inputs, done, timeout_s):
        call = SimpleNamespace(result=inputs.copy().pop, cancel=None)
        done(call)
        return call


def test_nested_json_data(app, model):
    status, _, body = ask(app, "POST", "/v2/models/m/infer", v2(inputs=[json_input(data=X.tolist())]))
    assert status == 200
    torch.testing.assert_close(torch.tensor(json.loads(body)["outputs"][0]["data"]).view(2, 4), model(X))


def test_plain_bytes_and_plain_json(app, model):
    status, headers, body = ask(app, "POST", "/models/m", to_bytes(X))
    assert (status, headers["x-shape"], headers["x-datatype"]) == (200, "2,4", "FP32")
    assert torch.equal(torch.frombuffer(bytearray(body), dtype=torch.float32).view(2, 4), model(X))
    for kind in ("application/json", "Application/JSON; charset=utf-8"):
        status, _, body = ask(app, "POST", "/models/m", json.dumps(X.tolist()).encode(), {"content-type": kind})
        assert status == 200
        torch.testing.assert_close(torch.tensor(json.loads(body)), model(X))


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (b"", "must begin with JSON"),
        (b'{"id": ' + 5000 * b"9" + b"}", "must have whole numbers of at most 4300 digits"),
        (b"[1]", "must be an object with a list of 'inputs'"),
        (v2(inputs=[]), "input 'x' is missing"),
        (v2(inputs=[{}]), "each input must be an object with a 'name'"),
        (v2(inputs=[json_input(name="z")]), "the model has no input 'z'; it has ['x']"),
        (v2(inputs=[json_input(datatype="INT8")]), "input 'x' must have datatype FP32, not INT8"),
        (v2(inputs=[json_input(datatype=None)]), "input 'x' must have a 'datatype'"),
        (v2(inputs=[json_input(shape=[2, 9])]), "input 'x' must have shape [-1, 8], not [2, 9]"),
        (v2(inputs=[json_input(shape=[-2, 8])]), "must have a shape that is a list of sizes from 0, not [-2, 8]"),
        (v2(inputs=[json_input(shape=[], data=[1])]), "input 'x' must have shape [-1, 8], not []"),
        (v2(inputs=[json_input(data=[1, 2])]), "input 'x' of shape [2, 8] has data of shape [2]"),
        (v2(inputs=[json_input(data="abc")]), "must have data that is a list of numbers, not str"),
        (v2(inputs=[json_input(data=[None] * 16)]), "input 'x' must have data that is FP32"),
        (v2(inputs=[json_input(), json_input()]), "input 'x' must be given once"),
        (v2(inputs=[json_input()]) + b"more", "must begin with JSON"),
        (
            v2(inputs=[json_input(parameters={"binary_data_size": 64})]),
            "must have either 'data' or binary_data_size, not both",
        ),
        (v2(inputs=[json_input(parameters=[])]), "'parameters' must be an object, not list"),
        (v2(inputs=[json_input()], id=5), "'id' must be a string, not int"),
        (v2(inputs=[json_input()], outputs=[{"name": "q"}]), "the model has no output 'q'; it has ['y']"),
    ],
)
def test_bad_request_is_refused_with_its_reason(app, inferencer, document, message):
    status, _, body = ask(app, "POST", "/v2/models/m/infer", document)
    assert status == 400
    assert message in json.loads(body)["error"]


def test_more_inputs_than_a_message_can_name_are_refused(app):
    app.repository.find("m").inputs = ()
    inputs = [json_input(name=f"x{i}", shape=[1, 1], data=[0]) for i in range(9000)]
    status, _, body = ask(app, "POST", "/v2/models/m/infer", v2(inputs=inputs))
    assert status in (400, 413)
    app.bodies.max_bytes = 1 << 24
    status, _, body = ask(app, "POST", "/v2/models/m/infer", v2(inputs=inputs))
    assert status == 400
    assert "a message's structure must take at most 65536 bytes" in json.loads(body)["error"]


def test_wrong_sizes_never_reach_the_worker(app, inferencer):
    before = inferencer.stats().requests
    binary = json_input(parameters={"binary_data_size": 60})
    del binary["data"]
    head, text = v2(inputs=[binary]), v2(inputs=[json_input()])
    for headers, body, message in [
        ({"inference-header-content-length": len(head)}, head + bytes(60), "must have 64 bytes, not 60"),
        ({"inference-header-content-length": len(text)}, text + bytes(4), "has 4 bytes that belong to no input"),
        ({"inference-header-content-length": 999}, head, "must be a number of bytes up to the body's"),
        ({"inference-header-content-length": "x"}, head, "must be a number of bytes up to the body's"),
    ]:
        status, _, reply = ask(app, "POST", "/v2/models/m/infer", body, headers)
        assert status == 400
        assert message in json.loads(reply)["error"]
    for body, headers, message in [
        (bytes(33), {}, "must have a multiple of 32 bytes, one row each, not 33"),
        (b"", {}, "must have at least one row"),
        (bytes(32), {"x-shape": "1,9"}, "must have 36 bytes, not 32"),
        (bytes(36), {"x-shape": "1,9"}, "must have shape [-1, 8], not [1, 9]"),
        (bytes(32), {"x-shape": "1;8"}, "x-shape must be sizes between commas, not '1;8'"),
        (bytes(32), {"x-datatype": "FP31"}, "x-datatype must be one of BOOL"),
        (b"{", {"content-type": "application/json"}, "the body must be JSON"),
        (
            b"[" + 5000 * b"9" + b"]",
            {"content-type": "application/json"},
            "must have whole numbers of at most 4300 digits",
        ),
    ]:
        status, _, reply = ask(app, "POST", "/models/m", body, headers)
        assert status == 400
        assert message in json.loads(reply)["error"]
    assert inferencer.stats().requests == before


def test_long_paths_are_not_kept(app):
    _inference_path.cache_clear()
    for path in ("/models/" + "n" * 1000, "/v2/models/" + "n" * 1000 + "/infer", "/models/n"):
        assert ask(app, "POST", path)[0] == 404
    assert _inference_path.cache_info().currsize == 1


def test_paths_and_methods(app):
    for method, path, expected in [
        ("GET", "/", 404),
        ("GET", "/models/m", 405),
        ("POST", "/models/n", 404),
        ("GET", "/v2/models/m/infer", 405),
        ("GET", "/v2/models/m/versions/9", 404),
        ("POST", "/v2/models/m", 405),
        ("GET", "/v2/models/m/nothing", 404),
        ("GET", "/v2/repository/index", 405),
        ("POST", "/v2/repository/models/n/load", 404),
        ("POST", "/v2/repository/models/m/burn", 404),
        ("GET", "/v2/health/live", 200),
        ("GET", "/v2/health/ready", 200),
        ("GET", "/v2", 200),
        ("GET", "/v2/models/m", 200),
        ("GET", "/v2/models/m/ready", 200),
        ("GET", "/v2/models/m/config", 200),
        ("POST", "/v2/repository/index", 200),
        ("GET", "/metrics", 200),
        ("GET", "/openapi.json", 200),
    ]:
        assert ask(app, method, path)[0] == expected, (method, path)


def test_openapi_document_describes_every_path(app):
    document = json.loads(ask(app, "GET", "/openapi.json")[2])
    assert document["openapi"] == "3.1.0"
    for path, operations in document["paths"].items():
        concrete = path.replace("{name}", "m").replace("{version}", "3")
        for method in operations:
            if not concrete.endswith("load"):
                assert ask(app, method.upper(), concrete)[0] not in (404, 405), (method, path)


def test_metrics_count_requests_by_code(app):
    ask(app, "POST", "/models/m", to_bytes(X))
    ask(app, "POST", "/models/m", b"123")
    families = {f.name: f for f in text_string_to_metric_families(ask(app, "GET", "/metrics")[2].decode())}
    counts = {s.labels["code"]: s.value for s in families["ai_infer_requests"].samples if s.name.endswith("_total")}
    assert counts == {"200": 1, "400": 1}
    (ready,) = families["ai_infer_worker_ready"].samples
    assert ready.value == 1


def test_requests_that_get_no_further_than_their_body_are_counted(app):
    """Of models that there are, so that nobody can make as many labels as he likes."""
    app.context.n_pending = 0
    assert ask(app, "POST", "/models/m", b"", {"content-length": 100_001})[0] == 413
    assert ask(app, "POST", "/v2/models/m/versions/3/infer", b"x", {"content-encoding": "br"})[0] == 415
    assert ask(app, "GET", "/models/m")[0] == 405
    for path in ("/models/n", "/v2/models/m/versions/9/infer", "/v2/models/n/infer"):
        assert ask(app, "POST", path, b"", {"content-length": 100_001})[0] == 413
    assert app.metrics._n_requests == {("m", "3", 413): 1, ("m", "3", 415): 1, ("m", "3", 405): 1}
    families = {f.name: f for f in text_string_to_metric_families(ask(app, "GET", "/metrics")[2].decode())}
    assert families["ai_infer_request_duration_seconds"].samples == []


def test_large_bodies_are_refused(app):
    assert ask(app, "POST", "/models/m", b"", {"content-length": 100_001})[0] == 413
    assert ask(app, "POST", "/models/m", bytes(100_001), chunks=7)[0] == 413
    assert ask(app, "POST", "/models/m", bytes(32), {"content-encoding": "br"})[0] == 415


def test_json_that_would_hold_up_everyone_is_refused(app):
    app.context.max_json_bytes = 500
    text = v2(inputs=[json_input(data=[0.123456789] * 64, shape=[8, 8])])
    binary = json_input(parameters={"binary_data_size": 2048}, shape=[64, 8])
    del binary["data"]
    head = v2(inputs=[binary], parameters={"binary_data_output": True})
    json_type = {"content-type": "application/json"}
    for path, body, headers, expected in [
        ("/v2/models/m/infer", text, {}, 413),
        ("/v2/models/m/infer", text, {"inference-header-content-length": len(text)}, 413),
        ("/v2/models/m/infer", head + bytes(2048), {"inference-header-content-length": len(head)}, 200),
        ("/models/m", json.dumps([[0.123456789] * 8] * 8).encode(), json_type, 413),
        ("/models/m", bytes(2048), {}, 200),
        ("/v2/repository/models/m/load", b" " * 501, {}, 413),
        ("/v2/repository/models/m/unload", b" " * 501, {}, 413),
    ]:
        status, _, reply = ask(app, "POST", path, body, headers)
        assert status == expected, (path, headers)
        if expected == 413:
            said = f"JSON must have at most 500 bytes, not {len(body)}: send tensors as bytes"
            assert said in json.loads(reply)["error"]
    assert ask(app, "POST", "/models/m", to_bytes(X))[0] == 200


def test_without_a_token_nothing_but_health_is_reachable(inferencer):
    app = App([ModelSource.parse("m=nowhere:factory?input=x:FP32:-1,8")], tokens=["secret", "other"])
    app.repository.find("m").inferencer = inferencer
    app._started = True
    document = json.loads(ask(app, "GET", "/openapi.json", headers={"authorization": "Bearer other"})[2])
    assert document["security"] == [{"token": []}]
    for path, operations in document["paths"].items():
        for method in operations:
            concrete = path.replace("{name}", "m").replace("{version}", "1")
            for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "secret"}):
                status, reply, _ = ask(app, method.upper(), concrete, headers=headers)
                assert status == 200 if "health" in path else status == 401, path
                assert "health" in path or reply["www-authenticate"] == "Bearer"
    assert ask(app, "GET", "/nowhere")[0] == 401
    assert ask(app, "POST", "/models/m", to_bytes(X), {"authorization": "Bearer secret"})[0] == 200
    app.repository.find("m").inferencer = None


def test_too_many_requests_and_no_worker_say_when_to_come_back(app, inferencer):
    app.context.n_pending = app.context.max_pending
    status, headers, _ = ask(app, "POST", "/models/m", to_bytes(X))
    assert (status, headers["retry-after"]) == (429, "1")
    app.context.n_pending = 0
    app.repository.find("m").inferencer = None
    status, headers, _ = ask(app, "POST", "/models/m", to_bytes(X))
    assert (status, headers["retry-after"]) == (503, "1")
    assert ask(app, "GET", "/v2/health/ready")[0] == 503
    assert ask(app, "GET", "/v2/models/m/ready")[0] == 503
    app.repository.find("m").inferencer = inferencer
    assert ask(app, "POST", "/models/m", to_bytes(X))[0] == 200


def test_model_that_fails_tells_the_reason_and_not_its_files(app):
    app.repository.find("m").inputs = ()  # unchecked, so that the model itself refuses
    status, _, body = ask(app, "POST", "/models/m", bytes(12), {"x-shape": "1,3"})
    assert status == 500
    error = json.loads(body)["error"]
    assert error.startswith("the model failed on this request: RuntimeError: ")
    assert ".py" not in error


def test_load_takes_no_parameters_and_a_failed_load_leaves_the_model_serving(app):
    parameters = v2(parameters={"config": "{}"})
    assert ask(app, "POST", "/v2/repository/models/m/load", parameters)[0] == 400
    status, _, body = ask(app, "POST", "/v2/repository/models/m/load")
    assert status == 500
    assert "the factory 'nowhere:factory' must be importable" in json.loads(body)["error"]
    assert ask(app, "POST", "/models/m", to_bytes(X))[0] == 200


@pytest.mark.parametrize(
    ("path", "document", "message"),
    [
        ("index", {"ready": 1}, "'ready' must be true or false, not 1"),
        ("index", {"redy": True}, "the body has no field 'redy'; it has ['ready']"),
        ("models/m/load", {"url": "http://x/m.mar"}, "the body has no field 'url'; it has ['parameters']"),
        ("models/m/unload", {"parameters": {"later": 1}}, "an unload has no parameters but unload_dependents, not "),
        ("models/m/unload", {"parameters": [1]}, "an unload has no parameters but unload_dependents, not [1]"),
    ],
)
def test_what_the_repository_does_not_heed_is_refused_by_name(app, path, document, message):
    status, _, body = ask(app, "POST", f"/v2/repository/{path}", v2(**document))
    assert (status, json.loads(body)["error"].startswith(message)) == (400, True)
    assert ask(app, "POST", f"/v2/repository/{path}", b"[1]")[0] == 400
    assert ask(app, "POST", "/models/m", to_bytes(X))[0] == 200


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("Error(s) in loading state_dict for Linear:\n\tsize mismatch for weight"), "RuntimeError: Error"),
        (TypeError("factory() takes no arguments\nmore"), "TypeError: factory() takes no arguments"),
        (KeyError("classes"), "KeyError: 'classes'"),
        (OSError("no such file"), "no such file"),
        (InferError("a worker could not start: Traceback:\n/secret.py"), "a worker could not start: Traceback:"),
    ],
)
def test_load_that_fails_in_whatever_way_says_why(app, monkeypatch, error, reason):
    def build(source, trust):
        raise error

    monkeypatch.setattr("ai.infer.http.models.repository.build", build)
    status, _, body = ask(app, "POST", "/v2/repository/models/m/load")
    said = json.loads(body)["error"]
    assert (status, said.startswith(f"model 'm' could not be loaded: {reason}")) == (500, True), said
    assert "more" not in said
    assert "secret" not in said
    assert ("state_dict" in said) == ("size mismatch for weight" in said)
    assert ask(app, "POST", "/models/m", to_bytes(X))[0] == 200
    served = app.repository.find("m")
    served.inferencer, inferencer = None, served.inferencer
    ask(app, "POST", "/v2/repository/models/m/load")
    assert served.reason == f"not loaded: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
    served.inferencer = inferencer


def _mutate(rng, data):
    data = bytearray(data)
    for _ in range(rng.randrange(1, 6)):
        how = rng.randrange(4)
        at = rng.randrange(len(data) + 1)
        if how == 0 and data:
            data[at % len(data)] = rng.randrange(256)
        elif how == 1:
            data[at:at] = rng.randbytes(rng.randrange(1, 9))
        elif how == 2:
            del data[at : at + rng.randrange(1, 9)]
        else:
            data[at : at + 1] = rng.choice([b"null", b"-1", b"1e999", b"[[", b"{}", b'"', b"99999999999999999999"])
    return bytes(data)


@pytest.mark.parametrize("n_requests", [2000])
def test_malformed_requests_never_crash(app, n_requests):
    """Mutated good requests: answered with 200 or refused, and the next good request is answered."""
    rng = random.Random(0)
    binary = json_input(parameters={"binary_data_size": 64})
    del binary["data"]
    head = v2(id="a", inputs=[binary], parameters={"binary_data_output": True})
    good = [
        ("/v2/models/m/infer", v2(id="a", inputs=[json_input()], outputs=[{"name": "y"}]), {}),
        ("/v2/models/m/infer", head + to_bytes(X), {"inference-header-content-length": len(head)}),
        ("/models/m", to_bytes(X), {"x-shape": "2,8", "x-datatype": "FP32"}),
        ("/models/m", json.dumps(X.tolist()).encode(), {"content-type": "application/json"}),
        ("/v2/repository/index", b"{}", {}),
        ("/v2/repository/models/zz/load", b"{}", {}),
    ]
    seen = set()
    for _ in range(n_requests):
        path, body, headers = rng.choice(good)
        if rng.random() < 0.1:
            path = _mutate(rng, path.encode()).decode("latin1")
        if rng.random() < 0.8:
            body = _mutate(rng, body)
        if headers and rng.random() < 0.3:
            headers = {k: _mutate(rng, str(v).encode()).decode("ascii", "replace") for k, v in headers.items()}
            headers = {k: v.encode("ascii", "replace").decode() for k, v in headers.items()}
        status, _, _ = ask(app, "POST", path, body, headers)
        assert status in (200, 400, 404, 405, 413, 415, 429, 500, 503), (path, body, headers)
        seen.add(status)
    assert {200, 400, 404} <= seen
    assert ask(app, "POST", "/models/m", to_bytes(X))[0] == 200


def test_options_are_checked():
    source = ModelSource.parse("m=a:b")
    for options, message in [
        ({"timeout_s": 0}, r"timeout_s must be positive and finite, not 0"),
        ({"tokens": [""]}, r"tokens must not be empty strings"),
    ]:
        with pytest.raises(ValueError, match=message):
            App([source], **options)
    with pytest.raises(ValueError, match=r"a server must have at least one model"):
        App([])
    with pytest.raises(ValueError, match=r"model 'm' must have one source for version '1', not two"):
        App([source, source])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("m", r"a model must be written NAME\[@VERSION\]=SOURCE"),
        ("a/b=c:d", r"a model must be written NAME\[@VERSION\]=SOURCE"),
        ("m=a:b?colour=red", r"a model's options are .*, not 'colour'"),
        ("m=a:b?input=x:FP32", r"an input must be written NAME:DATATYPE:SIZES, such as x:FP32:-1,3, not 'x:FP32'"),
        ("m=a:b?device=cpu&device=cuda", "a model's device must be given once, not 2 times"),
        ("m=a:b?input=x:FP32:-1&input=x:FP32:-1", "a model's input x must be given once, not 2 times"),
        ("m=a:b?input=x:FP32:one", r"an input's sizes must be whole numbers between commas, not 'one'"),
        ("m=a:b?input=x:FP32:-1,-5", "an input's sizes must be from 0, or -1 for any, not -5"),
        (3, r"a model must be text that reads NAME\[@VERSION\]=SOURCE.*, not 3"),
        ("m=a:b?input=:FP32:-1", r"an input must be written NAME:DATATYPE:SIZES, such as x:FP32:-1,3, not ':FP32:-1'"),
    ],
)
def test_source_that_is_none_is_refused(text, message):
    with pytest.raises((TypeError, ValueError), match=message):
        ModelSource.parse(text)


def test_json_numbers_become_the_named_datatype():
    assert from_raw(from_json("x", "INT64", (2,), [1, 2])).tolist() == [1, 2]
    assert from_json("x", "INT64", (2,), [1, 2]).dtype is torch.int64
    assert from_raw(from_json("x", "BOOL", (2,), [True, False])).tolist() == [True, False]
    assert TensorSpec.parse("x:BF16:-1").datatype == "BF16"


# The protocol to the letter


def test_health_says_what_the_protocol_wants(app):
    assert json.loads(ask(app, "GET", "/v2/health/live")[2]) == {"live": True}
    assert json.loads(ask(app, "GET", "/v2/health/ready")[2]) == {"ready": True}
    assert json.loads(ask(app, "GET", "/v2/models/m/ready")[2]) == {"name": "m", "ready": True}
    status, headers, body = ask(app, "HEAD", "/v2/health/live")
    assert (status, headers["content-length"], body) == (200, "13", b"")


def test_null_id_and_parameters_are_as_if_left_out(app):
    document = v2(id=None, parameters=None, inputs=[json_input(parameters=None)], outputs=[{"name": "y"}])
    status, _, body = ask(app, "POST", "/v2/models/m/infer", document)
    assert status == 200
    assert "id" not in json.loads(body)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"output": []}, "the request has no field 'output'; it has ['id', 'inputs', 'model_name', "),
        ({"outputs": [{"name": "y", "classification": 2}]}, "output 'y' has no field 'classification'; it has ['name'"),
        ({"parameters": {"sequence_id": 5}}, "the request's parameter 'sequence_id' is not supported"),
        ({"parameters": {"priority": 2}}, "the request's parameter 'priority' is not supported"),
        ({"parameters": {"timeout": -1}}, "'timeout' must be a whole number of microseconds from 0, not -1"),
        ({"parameters": {"binary_data_output": 1}}, "'binary_data_output' must be true or false, not 1"),
        (
            {"outputs": [{"name": "y", "parameters": {"shared_memory_region": "r"}}]},
            "output 'y''s parameter 'shared_memory_region' is not supported",
        ),
        ({"outputs": [{"name": "y"}, {"name": "y"}]}, "output 'y' must be asked for once"),
        ({"outputs": {}}, "'outputs' must be a list, not dict"),
        (
            {"outputs": [{"name": "y", "parameters": {"classification": -1}}]},
            "output 'y' must have a classification from 0, not -1",
        ),
    ],
)
def test_what_is_not_supported_is_refused_by_name(app, document, message):
    status, _, body = ask(app, "POST", "/v2/models/m/infer", v2(inputs=[json_input()], **document))
    assert status == 400
    assert json.loads(body)["error"].startswith(message)


def test_a_field_that_an_input_has_not_is_refused_by_name_unless_it_is_null(app):
    document = v2(inputs=[json_input(shared_memory=None)], model_name="m", sequence=None)
    assert ask(app, "POST", "/v2/models/m/infer", document)[0] == 200
    head = v2(inputs=[json_input(data=None, parameters={"binary_data_size": 64})])
    header = {"inference-header-content-length": len(head)}
    assert ask(app, "POST", "/v2/models/m/infer", head + to_bytes(X), header)[0] == 200
    status, _, body = ask(app, "POST", "/v2/models/m/infer", v2(inputs=[json_input(byte_order="big")]))
    assert (status, "input 'x' has no field 'byte_order'; it has" in json.loads(body)["error"]) == (400, True)


def test_an_output_that_does_not_say_how_it_is_written_is_as_the_request_says(app):
    for own, binary in ((None, True), (True, True), (False, False)):
        outputs = [{"name": "y", "parameters": {"binary_data": own}}]
        head = v2(inputs=[json_input()], outputs=outputs, parameters={"binary_data_output": True})
        status, headers, body = ask(app, "POST", "/v2/models/m/infer", head)
        n_json = int(headers.get("inference-header-content-length", len(body)))
        (output,) = json.loads(body[:n_json])["outputs"]
        assert (status, "data" not in output, len(body) - n_json) == (200, binary, 2 * 4 * 4 * binary)


def test_shared_memory_of_an_input_is_refused_by_name(app):
    about = json_input(parameters={"shared_memory_region": "r"})
    status, _, body = ask(app, "POST", "/v2/models/m/infer", v2(inputs=[about]))
    assert (status, "'shared_memory_region' is not supported" in json.loads(body)["error"]) == (400, True)


@pytest.mark.parametrize(
    ("datatype", "data", "message"),
    [
        ("INT64", [1.7], "whole numbers are"),
        ("INT64", [True], "whole numbers are"),
        ("UINT8", [-1], "numbers from 0 to 255 are"),
        ("UINT8", [256], "numbers from 0 to 255 are"),
        ("UINT64", [-1], "UINT64"),
        ("UINT64", [1.5], "whole numbers are"),
        ("INT64", [1 << 63], "INT64"),
        ("BOOL", [2], "true, false, 0 and 1 are"),
        ("FP16", [1e6], "numbers up to 65504.0 are"),
        ("FP32", ["1"], "numbers are"),
        ("FP32", [True], "numbers are"),
        ("FP32", [1.5, True], "numbers are"),
        ("FP32", [[1], [1, 2]], "has data that is nested otherwise"),
        ("FP32", [[1], 2], r"has data of shape \[2\]"),
    ],
)
def test_json_numbers_are_never_bent(datatype, data, message):
    with pytest.raises(BadInputError, match=message):
        from_json("x", datatype, (1,), data)


@pytest.mark.parametrize("datatype", ["FP32", "FP64"])
def test_json_numbers_too_large_for_any_float_are_refused_and_infinity_is_not(datatype):
    """Clients in Python write Infinity and NaN, as Triton reads them; 1e400 is meant to be a number."""
    head = b'{"inputs": [{"name": "x", "datatype": "%s", "shape": [3], "data": [Infinity, 1e-400, %%s]}]}'
    head %= datatype.encode()
    _, (x,) = read_request(head % b"-Infinity", None, (), {})
    assert from_raw(x).tolist() == [math.inf, 0.0, -math.inf]
    with pytest.raises(BadInputError, match=r"numbers up to .*e\+\d+ are"):
        read_request(head % b"-1e400", None, (), {})
    headers = {b"content-type": b"application/json", b"x-datatype": datatype.encode()}
    with pytest.raises(BadInputError, match=r"numbers up to .*e\+\d+ are"):
        read_plain(b"[[1, 2e400]]", headers, (), lambda n_bytes: None)


def test_text_among_json_numbers_takes_no_memory():
    """An array of both gives each number the width of the longest text: 400 MB here, and more than any machine has."""
    tracemalloc.start()
    try:
        with pytest.raises(BadInputError, match="numbers are"):
            from_json("x", "FP32", (1001,), ["a" * 100_000, *range(1000)])
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_json_numbers_reach_the_ends_of_their_datatype():
    for datatype, numbers in [
        ("UINT64", [0, (1 << 64) - 1]),
        ("INT64", [-(1 << 63), (1 << 63) - 1]),
        ("UINT8", [0, 255]),
        ("BOOL", [True, 0]),
        ("FP64", [1e300, 1]),
    ]:
        raw = from_json("x", datatype, (2,), numbers)
        dtype = np.dtype({"FP64": "float64"}.get(datatype, datatype.lower()))
        assert np.frombuffer(raw.data, dtype).tolist() == numbers, datatype


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "GZIP"])
def test_packed_bodies_are_unpacked_within_the_limit(app, model, encoding):
    pack = zlib.compress if encoding == "deflate" else gzip.compress
    status, _, body = ask(app, "POST", "/models/m", pack(to_bytes(X)), {"content-encoding": encoding})
    assert status == 200
    assert torch.equal(torch.frombuffer(bytearray(body), dtype=torch.float32).view(2, 4), model(X))
    for data, expected in [
        (pack(bytes(200_000)), 413),  # which is 200 bytes
        (pack(to_bytes(X))[:-3], 400),
        (pack(to_bytes(X)) + b"more", 400),
        (b"rubbish", 400),
        (b"", 400),
    ]:
        assert ask(app, "POST", "/models/m", data, {"content-encoding": encoding})[0] == expected


def test_gzip_of_several_members_is_one_body(app, model):
    """As `cat a.gz b.gz` and tools that pack in parallel make it."""
    app.bodies.max_bytes = 1 << 22
    numbers = torch.randn(12_000, 8, generator=torch.Generator().manual_seed(0))  # members of more than a piece
    data, packed = to_bytes(numbers), {"content-encoding": "gzip"}
    members = b"".join(gzip.compress(data[i : i + 150_000], 1) for i in range(0, len(data), 150_000))
    members = gzip.compress(b"") + members + gzip.compress(b"")
    status, _, body = ask(app, "POST", "/models/m", members, packed)
    assert status == 200
    y = torch.frombuffer(bytearray(body), dtype=torch.float32).view(-1, 4)
    torch.testing.assert_close(y, model(numbers))
    app.bodies.max_bytes = len(data)
    assert ask(app, "POST", "/models/m", members, packed)[0] == 200
    app.bodies.max_bytes = len(data) - 1
    assert ask(app, "POST", "/models/m", members, packed)[0] == 413
    one = gzip.compress(to_bytes(X))
    for body in (one + one[:-1], one + one[:1], one + bytes(8), one + zlib.compress(b"x")):
        assert ask(app, "POST", "/models/m", body, packed)[0] == 400
    app.bodies.max_bytes = 1 << 22
    status, _, reply = ask(app, "POST", "/models/m", gzip.compress(b"") * 100_000, packed)
    assert status == 413
    assert b"must have at most 10000 members of gzip" in reply


def test_deflate_comes_with_the_header_of_zlib_or_without(app, model):
    pack = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    bare = pack.compress(to_bytes(X)) + pack.flush()
    for body, expected in [
        (bare, 200),
        (zlib.compress(to_bytes(X)), 200),
        (bare + b"m", 400),
        (bare[:-1], 400),
        (zlib.compress(to_bytes(X)) * 2, 400),  # which is several members in gzip alone
        (gzip.compress(to_bytes(X)), 400),
    ]:
        assert ask(app, "POST", "/models/m", body, {"content-encoding": "deflate"})[0] == expected


def test_bodies_on_their_way_share_a_store(app):
    app.bodies.max_unfinished_bytes = 1000
    status, headers, _ = ask(app, "POST", "/models/m", bytes(3200), chunks=4)
    assert (status, headers["retry-after"]) == (503, "1")
    assert app.bodies.n_unfinished == 0
    assert ask(app, "POST", "/models/m", to_bytes(X))[0] == 200


def test_body_that_does_not_come_ends_the_wait(app):
    app.bodies._timeout_s = 0.01

    async def never():
        await asyncio.Event().wait()

    async def send(message):
        sent.append(message)

    sent = []
    scope = {"type": "http", "method": "POST", "path": "/models/m", "headers": []}
    LOOP.run(app(scope, never, send))
    assert sent[0]["status"] == 408


def test_classification_names_the_best(app, model):
    outputs = [{"name": "y", "parameters": {"classification": 2}}]
    _, _, body = ask(app, "POST", "/v2/models/m/infer", v2(inputs=[json_input()], outputs=outputs))
    (y,) = json.loads(body)["outputs"]
    assert (y["datatype"], y["shape"]) == ("BYTES", [2, 2])
    values, indices = model(X).topk(2)
    said = [text.split(":") for text in y["data"]]
    assert [int(index) for _, index in said] == indices.flatten().tolist()
    torch.testing.assert_close(torch.tensor([float(value) for value, _ in said]), values.flatten(), atol=1e-4, rtol=0)


class Shouting(nn.Module):
    """Text in, text and its lengths out."""

    def forward(self, texts):
        flat = [text for row in texts for text in (row if isinstance(row, list) else [row])]
        return {"loud": [text.upper() for text in flat], "n": torch.tensor([len(text) for text in flat]), "k": 2}


@pytest.fixture(scope="module")
def shouting():
    with Inferencer(Shouting()) as inferencer:
        yield inferencer


def test_texts_go_in_and_come_out(shouting):
    app = make_app({"loud": shouting})
    texts = ["hello", "", "grüße"]
    about = {"name": "t", "datatype": "BYTES", "shape": [3], "data": texts}
    _, _, body = ask(app, "POST", "/v2/models/loud/infer", v2(inputs=[about]))
    loud, n, k = json.loads(body)["outputs"]
    assert (loud["datatype"], loud["shape"], loud["data"]) == ("BYTES", [3], ["HELLO", "", "GRüßE"])  # of bytes
    assert (n["data"], k["datatype"], k["data"]) == ([5, 0, 7], "INT64", [2])
    raw = b"".join(len(each).to_bytes(4, "little") + each for each in (text.encode() for text in texts))
    binary = {"name": "t", "datatype": "BYTES", "shape": [3, 1], "parameters": {"binary_data_size": len(raw)}}
    head = v2(inputs=[binary], outputs=[{"name": "loud", "parameters": {"binary_data": True}}])
    header = {"inference-header-content-length": len(head)}
    _, headers, body = ask(app, "POST", "/v2/models/loud/infer", head + raw, header)
    assert body[int(headers["inference-header-content-length"]) :] == raw.upper().replace("ü".encode(), "ü".encode())
    for change, message in [
        ({"shape": [2]}, "input 't' of shape [2] has 3 texts"),
        ({"data": [1, 2, 3]}, "must have data that is text, not int"),
        ({"data": None}, "must have data that is a list of texts, not NoneType"),
        ({"data": "abc", "shape": [0]}, "must have data that is a list of texts, not str"),
        ({"data": [["a"], ["b", "c"]]}, "input 't' of shape [3] has data that is nested otherwise"),
        ({"data": [["a", "b", "c"]]}, "input 't' of shape [3] has data of shape [1, 3]"),
    ]:
        status, _, body = ask(app, "POST", "/v2/models/loud/infer", v2(inputs=[{**about, **change}]))
        assert (status, message in json.loads(body)["error"]) == (400, True)
    status, _, body = ask(app, "POST", "/v2/models/loud/infer", head + raw[:-1] + b"\xff" * 1, header)
    assert status == 200
    bad = (9).to_bytes(4, "little") + raw[4:]
    assert ask(app, "POST", "/v2/models/loud/infer", head + bad, header)[0] == 400
    app.close()


def test_timeout_of_a_request_is_kept(app, gate):
    served = app.repository.find("m")
    request_id = served.inferencer.infer_async(torch.ones(1, 8), do="wait", path=str(gate))
    wait_until(gate.with_suffix(".begun").exists)
    document = v2(inputs=[json_input()], parameters={"timeout": 20_000})
    assert ask(app, "POST", "/v2/models/m/infer", document)[0] == 504
    gate.unlink()
    served.inferencer.wait_for_resp(request_id)
    for longer in (b"20000000", b"9" * 400):
        assert ask(app, "POST", "/v2/models/m/infer", document.replace(b"20000", longer))[0] == 200


def test_token_counts_whatever_the_case_of_its_scheme(inferencer):
    app = make_app({"m": inferencer}, tokens=["secret"])
    for given, expected in [("bearer secret", 200), ("BEARER  secret", 200), ("Basic secret", 401), ("secret", 401)]:
        assert ask(app, "GET", "/v2", headers={"authorization": given})[0] == expected, given
    app.close()


def test_client_that_hangs_up_takes_its_request_out_of_the_queue(app, inferencer, gate):
    request_id = inferencer.infer_async(torch.ones(1, 8), do="wait", path=str(gate))
    wait_until(gate.with_suffix(".begun").exists)
    sent = []

    async def main():
        gone = asyncio.Event()
        messages = [{"type": "http.request", "body": to_bytes(X), "more_body": False}]

        async def receive():
            if messages:
                return messages.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message):
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": "/models/m", "headers": []}
        task = asyncio.create_task(app(scope, receive, send))
        while not app.context.n_pending:
            await asyncio.sleep(0)
        gone.set()
        async with asyncio.timeout(100):
            await task

    LOOP.run(main())
    assert gate.exists()
    assert not sent
    assert app.context.n_pending == 0
    n_cancelled = inferencer.vitals.cancelled
    gate.unlink()
    inferencer.wait_for_resp(request_id)
    wait_until(lambda: inferencer.vitals.cancelled == n_cancelled + 1)


def test_a_server_that_says_again_and_again_that_the_body_is_over_holds_up_nobody(app, inferencer, gate):
    request_id = inferencer.infer_async(torch.ones(1, 8), do="wait", path=str(gate))
    wait_until(gate.with_suffix(".begun").exists)
    n_asked = 0

    async def main():
        sent = []

        async def receive():
            nonlocal n_asked
            n_asked += 1
            if n_asked == 3:
                gate.unlink()
            return {"type": "http.request", "body": to_bytes(X) if n_asked == 1 else b"", "more_body": False}

        async def send(message):
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": "/models/m", "headers": []}
        async with asyncio.timeout(100):
            await app(scope, receive, send)
        return sent[0]["status"]

    assert LOOP.run(main()) == 200
    assert n_asked >= 3
    inferencer.wait_for_resp(request_id)


def test_metrics_and_readiness_wait_for_no_worker(app, inferencer, gate):
    request_id = inferencer.infer_async(torch.ones(1, 8), do="wait", path=str(gate))
    wait_until(gate.with_suffix(".begun").exists)
    text = ask(app, "GET", "/metrics")[2].decode()
    assert gate.exists()
    gate.unlink()
    inferencer.wait_for_resp(request_id)
    kinds = {f.name: f.type for f in text_string_to_metric_families(text)}
    assert kinds == {
        "ai_infer_requests": "counter",
        "ai_infer_request_duration_seconds": "histogram",
        "ai_infer_worker_ready": "gauge",
        "ai_infer_worker_queued_requests": "gauge",
        "ai_infer_worker_rows": "counter",
        "ai_infer_worker_batches": "counter",
        "ai_infer_worker_errors": "counter",
        "ai_infer_worker_busy_seconds": "counter",
    }


def test_application_is_mounted_in_another_behind_its_middleware(inferencer, model):
    starlette = pytest.importorskip("starlette.applications")
    from starlette.middleware import Middleware
    from starlette.routing import Mount

    class Counting:
        n = 0

        def __init__(self, app):
            self.app = app

        async def __call__(self, scope, receive, send):
            Counting.n += 1
            await self.app(scope, receive, send)

    ours = make_app({"m": inferencer})
    outer = starlette.Starlette(routes=[Mount("/ml", ours)], middleware=[Middleware(Counting)])
    status, _, body = ask(outer, "POST", "/ml/models/m", to_bytes(X), {"x-shape": "2,8"})
    assert status == 200
    assert torch.equal(torch.frombuffer(bytearray(body), dtype=torch.float32).view(2, 4), model(X))
    assert ask(outer, "GET", "/ml/v2/health/ready")[0] == 200
    assert ask(outer, "POST", "/ml/v2/repository/models/m/unload")[0] == 500  # it is the program's own
    assert Counting.n == 3
    ours.close()
    assert inferencer.ready


def test_mounted_application_lives_whatever_its_models_do_and_tries_each_once(caplog):
    app = App(["m=nowhere.at_all:factory"])
    assert ask(app, "GET", "/v2/health/live")[0] == 200
    assert not caplog.records  # that needs no model
    for _ in range(3):
        status, _, body = ask(app, "POST", "/models/m", b"1")
        assert (status, "not loaded: the factory 'nowhere.at_all:factory' must be" in json.loads(body)["error"]) == (
            503,
            True,
        )
    assert len([record for record in caplog.records if "could not be loaded" in record.getMessage()]) == 1
    assert ask(app, "GET", "/v2/health/ready")[0] == 503
    assert ask(app, "GET", "/metrics")[0] == 200


def test_reply_to_a_client_that_has_gone_is_no_error(app):
    async def receive():
        return {"type": "http.request", "body": b""}

    async def send(message):
        raise RuntimeError("the handler is closed")

    LOOP.run(app({"type": "http", "method": "GET", "path": "/v2", "headers": []}, receive, send))


@pytest.mark.parametrize(
    "accept", ["application/json", "application/json, text/plain, */*", "APPLICATION/json\ntext/html"]
)
def test_raw_numbers_are_answered_in_json_where_that_is_accepted(app, model, accept):
    """As curl, axios, and whoever writes several lines of one header ask for it."""
    status, headers, body = ask(app, "POST", "/models/m", to_bytes(X), {"accept": accept})
    assert (status, headers["content-type"]) == (200, "application/json")
    assert torch.allclose(torch.tensor(json.loads(body)), model(X).detach(), atol=1e-6)


@pytest.mark.parametrize("accept", ["*/*", "application/octet-stream", "application/json;q=0.1, */*", "image/png\n*/*"])
def test_bytes_are_answered_where_json_is_not_liked_better(app, model, accept):
    raw = ask(app, "POST", "/models/m", to_bytes(X), {"accept": accept})
    assert (raw[0], raw[2]) == (200, to_bytes(model(X).detach()))
    _, headers, body = ask(
        app, "POST", "/models/m", b"[[1,2,3,4,5,6,7,8]]", {"accept": accept, "content-type": "application/json"}
    )
    is_json = headers["content-type"] == "application/json"
    assert is_json == (accept in ("*/*", "image/png\n*/*"))
    assert is_json or len(body) == 16


def test_body_that_the_server_lost_is_said_to_be(app):
    """As uvicorn loses that of a request which would go on as h2c, such as Java's and curl's clients send."""
    headers = {"content-length": "64", "upgrade": "h2c", "connection": "upgrade, http2-settings"}
    status, _, body = ask(app, "POST", "/models/m", b"", headers)
    assert status == 400
    assert json.loads(body)["error"] == (
        "the body must have the 64 bytes of its content-length, not 0; send it without the header upgrade"
    )
    assert ask(app, "POST", "/models/m", to_bytes(X), {"content-length": "64"} | headers)[0] == 200


def test_prefix_is_taken_off_at_a_slash_alone(app):
    async def status(root, path):
        sent = []

        async def receive():
            return {"type": "http.request", "body": b""}

        async def send(message):
            sent.append(message)

        await app({"type": "http", "method": "GET", "path": path, "root_path": root, "headers": []}, receive, send)
        return sent[0]["status"]

    assert LOOP.run(status("/ml", "/ml/v2")) == 200
    assert LOOP.run(status("/v", "/v2")) == 200
    assert LOOP.run(status("/gone", "/v2")) == 200  # by a proxy that has taken it off


@pytest.mark.parametrize("rows", [100, 1 << 15])  # in a slot, and by the socket
def test_bodies_are_free_once_they_are_answered(app, rows):
    """At once: if they waited for a collection, a few large bodies would fill the memory."""

    def bodies():
        return [o for o in gc.get_objects() if type(o) is RawTensor and o.shape == (rows, 8)]

    app.bodies.max_bytes = 1 << 24
    gc.collect()
    gc.disable()
    before = bodies()  # of tests before this one
    try:
        for _ in range(3):
            assert ask(app, "POST", "/models/m", to_bytes(torch.zeros(rows, 8)), stays=True)[0] == 200
        LOOP.run(asyncio.sleep(0))
        held = [body for body in bodies() if not any(body is one for one in before)]
    finally:
        gc.enable()
    assert not held


def test_model_that_cannot_be_tried_out_starts_and_says_nothing_of_its_outputs():
    needs_three = nn.Conv2d(3, 4, 3)
    specs = (TensorSpec("x", "FP32", (-1, 3, -1, -1)),)
    served = ServedModel(ModelSource.parse("m=a:b"), 30, 30)
    with Inferencer(needs_three) as inferencer:
        assert served._try_out(inferencer, specs) == ()
        (y,) = served._try_out(inferencer, (TensorSpec("x", "FP32", (-1, 3, 8, 8)),))
        assert y == TensorSpec("y", "FP32", (-1, 4, 6, 6))


def test_unloading_one_model_leaves_the_server_ready(inferencer):
    app = App(["a=nowhere:factory", "b=nowhere:factory"])
    app._started = True
    app.repository.find("a").inferencer = inferencer
    assert ask(app, "GET", "/v2/health/ready")[0] == 503
    app.repository.unload("b")
    assert ask(app, "GET", "/v2/health/ready")[0] == 200
    assert json.loads(ask(app, "POST", "/v2/repository/index")[2])[1]["reason"] == "unloaded"
    for wanted, names in ((True, ["a"]), (False, ["a", "b"]), (None, ["a", "b"])):
        index = json.loads(ask(app, "POST", "/v2/repository/index", v2(ready=wanted))[2])
        assert [about["name"] for about in index] == names
    app.repository.find("a").inferencer = None


def test_application_that_is_ended_while_it_loads_ends_without_an_error():
    async def run():
        app, begun = App(["m=nowhere:factory"]), asyncio.Event()

        async def start():
            begun.set()
            await asyncio.Event().wait()  # as long as a factory likes

        async def receive():
            return {"type": "lifespan.startup"}

        app.start = start
        living = asyncio.create_task(app({"type": "lifespan"}, receive, pytest.fail))
        await begun.wait()
        living.cancel()
        assert await asyncio.wait_for(living, 100) is None

    asyncio.run(run())
