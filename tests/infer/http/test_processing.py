"""What a front end does before and after the model."""

import asyncio
import json
import sys
import threading
from typing import NamedTuple

import pytest
import torch

from ai.infer.http.formats.messages import RefusedError
from ai.infer.http.formats.outputs import named_outputs
from ai.infer.http.formats.protocol import read_request
from ai.infer.http.formats.tensors import BadInputError, from_raw, to_bytes
from ai.infer.http.models.model_sources import ModelSource
from ai.infer.http.models.processing import Processing, find_function
from ai.infer.http.models.repository import Repository, ServedModel
from ai.infer.http.models.user_threads import UserThreads
from ai.infer.http.owner import LocalOwner
from ai.infer.transport.trees import RawTensor
from tests.infer.waiting import wait_until


class Pair(NamedTuple):
    first: object
    second: object


def raw(x):
    return RawTensor(x.dtype, tuple(x.shape), to_bytes(x))


X = torch.arange(6.0).view(2, 3)


def test_before_gets_tensors_and_text_and_gives_what_the_model_gets():
    def before(x, texts):
        assert torch.equal(x, X)
        assert texts == [b"a", [b"b"]]
        return x.t(), ["c", [b"d"]], [x[0]]

    made = asyncio.run(Processing(before, None).prepare([raw(X), [b"a", [b"b"]]]))
    assert torch.equal(from_raw(made[0]), X.t())
    assert made[1] == [b"c", [b"d"]]
    assert torch.equal(from_raw(made[2][0]), X[0])
    assert asyncio.run(Processing(None, None).prepare([raw(X)])) == [raw(X)]


def test_before_may_write_into_texts_and_the_next_request_like_it_has_its_own():
    """What the JSON of a request says is remembered, and others send the same."""
    processing = Processing(lambda texts: [texts[0].pop() + texts.pop()[0]], None)
    about = {"name": "t", "datatype": "BYTES", "shape": [2, 1], "data": ["a", "b"]}
    body, plans = json.dumps({"inputs": [about]}).encode(), {}
    for _ in range(2):
        _, inputs = read_request(body, None, (), plans)
        assert asyncio.run(processing.prepare(inputs)) == [[b"ab"]]
    assert len(plans) == 1


def test_after_gets_the_models_output_whatever_its_form():
    def after(output):
        assert isinstance(output["p"], Pair)
        assert torch.equal(output["p"].first, X)
        assert output["l"][1:] == ["text", None]
        return {"y": output["p"].second + output["l"][0], "name": "n"}

    output = {"p": Pair(raw(X), raw(X)), "l": [raw(X), "text", None]}
    made = asyncio.run(Processing(None, after).finish(output))
    assert torch.equal(from_raw(made["y"]), 2 * X)
    assert made["name"] == "n"


def _raise(error):
    def function(*_):
        raise error

    return function


def test_failures_say_whose_they_are():
    with pytest.raises(BadInputError, match="no picture"):
        asyncio.run(Processing(_raise(ValueError("no picture\nat all")), None).prepare([raw(X)]))
    with pytest.raises(RefusedError, match="before failed on this request: KeyError: 'x'") as refused:
        asyncio.run(Processing(_raise(KeyError("x")), None).prepare([raw(X)]))
    assert refused.value.status == 500
    with pytest.raises(RefusedError, match="after failed on this request: ValueError: z"):
        asyncio.run(Processing(None, _raise(ValueError("z"))).finish(raw(X)))
    with pytest.raises(RefusedError, match="before must return tensors and lists of tensors or text, not int"):
        asyncio.run(Processing(lambda x: 3, None).prepare([raw(X)]))


@pytest.mark.parametrize("error", [StopIteration(), SystemExit(3), KeyboardInterrupt()], ids=repr)
def test_what_no_coroutine_can_raise_is_of_its_request_too(error):
    with pytest.raises(RefusedError, match=f"before failed on this request: {type(error).__name__}"):
        asyncio.run(Processing(_raise(error), None).prepare([raw(X)]))


def test_function_that_never_returns_ends_no_wait_but_its_own_requests():
    """It has threads of its own, of which one is lost; what waits for one in vain is never begun."""
    never = threading.Event()
    begun = []
    threads = UserThreads(1)

    async def scene():
        with pytest.raises(TimeoutError, match=r"before did not return within 0\.01 s"):
            await Processing(lambda x: never.wait(), None, 0.01).prepare([raw(X)])
        lost = asyncio.create_task(threads.run(never.wait))
        await asyncio.sleep(0)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await threads.run(lambda: begun.append(1))
        never.set()
        assert await lost == (True, None)
        assert await threads.run(lambda: 2) == (2, None)
        assert begun == []

    asyncio.run(scene())


def test_output_that_is_none_is_the_servers_fault():
    with pytest.raises(RefusedError, match="the model returns NoneType, which is no tensor") as refused:
        named_outputs(None)
    assert refused.value.status == 500


@pytest.mark.parametrize("output", [{1: raw(X), "1": raw(2 * X)}, {"a": {"b": raw(X)}, "a.b": "text"}])
def test_two_outputs_of_one_name_are_the_servers_fault(output):
    name = "a.b" if "a" in output else "1"
    with pytest.raises(RefusedError, match=f"the model returns two outputs of the name '{name}'"):
        named_outputs(output)


@pytest.mark.parametrize("ends_by", ["next(iter(()))", "raise SystemExit(3)"])
def test_factory_that_ends_oddly_ends_its_load_alone(tmp_path, monkeypatch, ends_by):
    (tmp_path / "odd_factory.py").write_text(f"def make():\n    {ends_by}\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "odd_factory", raising=False)
    owner = LocalOwner(Repository(["m=odd_factory:make"], 1.0, 1.0))

    async def scene():
        with pytest.raises(RuntimeError, match=r"it ended by (StopIteration|SystemExit)"):
            await owner.start()
        with pytest.raises(RefusedError, match="model 'm' could not be loaded: RuntimeError: it ended by"):
            await owner.change("load", "m")

    asyncio.run(scene())


def test_factory_that_takes_long_does_not_hold_up_the_end(tmp_path, monkeypatch):
    text = "import threading\nbegun, go = threading.Event(), threading.Event()\n"
    (tmp_path / "slow_factory.py").write_text(
        f"{text}def make():\n    begun.set()\n    go.wait()\n    raise ValueError\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    owner = LocalOwner(Repository(["m=slow_factory:make"], 1.0, 1.0))

    async def scene():
        task = asyncio.create_task(owner.start())
        await asyncio.sleep(0)
        await asyncio.to_thread(wait_until, lambda: hasattr(sys.modules.get("slow_factory"), "go"))
        await asyncio.to_thread(sys.modules["slow_factory"].begun.wait)
        task.cancel()

    asyncio.run(scene())  # which waits for its own threads
    assert not sys.modules["slow_factory"].go.is_set()
    sys.modules["slow_factory"].go.set()


def test_functions_that_are_none_are_refused_before_the_model_is_built():
    for path, message in (
        ("json", "'json' is none"),
        ("nowhere.at_all:f", "No module named 'nowhere'"),
        ("json:nothing", "no attribute 'nothing'"),
        ("json:__name__", "'json:__name__' is a str"),
    ):
        with pytest.raises(ValueError, match=message):
            find_function(path)
    served = ServedModel(ModelSource.parse("m=nowhere:model?after=json:nothing"), 1.0, 1.0)
    with pytest.raises(ValueError, match=r"before and after must be package\.module:function"):
        served.load()


def test_the_default_device_of_the_process_changes_no_answer():
    with torch.device("meta"):
        empty = from_raw(RawTensor(torch.float32, (0, 3), b""))
        ((_, number),) = named_outputs(2.5)
    assert empty.device.type == "cpu"
    assert from_raw(number).tolist() == [2.5]
