"""Every public callable and option is looked at where it is given: what it cannot be is told in one sentence."""

import inspect
import math
import re
import sys
import threading
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ai.infer import Inferencer, InferencerClient, cli
from ai.infer.arguments import check_counts, check_seconds
from ai.infer.connection.hang_check import HangCheck
from ai.infer.http import app
from ai.infer.http.models.model_sources import ModelSource
from ai.infer.http.routes import App

NET, ONES = nn.Linear(1, 1), torch.ones(1, 8)
# What each option cannot be: another kind, then a number that is none, or too small. What comes first must raise before
# a process is started or a file is made.
SECONDS = ["3", True, math.nan, -1.0, torch.ones(2)]
WHOLE = ["3", 1.5, math.nan, True, 0, -1]
WRONG = {
    Inferencer: {
        "model": [nn.Linear, 3, "net", None],
        "device": [3, None, "nowhere", [], ["cpu", "nowhere"]],
        "batch_size": [*WHOLE, None, "many"],
        "replicas": WHOLE,
        "restart": ["no", 1, None],
        "max_delay_s": [*SECONDS, None, math.inf],
        "precision": ["int4", 16, None, torch.bfloat16],
        "compile": [3, None, print],
        "graph_rows": ["8", 8, [1.5], [True], [0], None],
        "pad": [3, "left"],
        "share": ["no", 1, 0, None, torch.tensor(True)],
        "in_axes": ["0", 1.5, [True], None],
        "out_axes": ["0", 1.5, [True]],
        "build": [3, "make"],
        "timeout_s": [*SECONDS, 0],
        "start_timeout_s": [*SECONDS, 0, None, math.inf],
        "stall_timeout_s": [*SECONDS, 0],
        "transport": ["pigeon", None, 3],
    },
    InferencerClient: {
        "address": [3, None, b"x"],
        "timeout_s": [*SECONDS, 0],
        "transport": ["pigeon", None, 3],
        "slot_bytes": [*WHOLE, None, "4096", 4096.0, 4097, 1 << 31],
    },
    App: {
        "models": [3, None, "m=net", {}, [], [3], {"m": NET}, {"m": Inferencer}],
        "tokens": ["secret", [""], [3], "", [b"secret"], [], 3, (token for token in ["secret"])],
        "max_body_bytes": [*WHOLE, None],
        "max_unfinished_bytes": [*WHOLE, None],
        "max_json_bytes": [*WHOLE, None],
        "max_pending": [*WHOLE, None],
        "timeout_s": [*SECONDS, 0, None, math.inf],
        "stall_timeout_s": [*SECONDS, 0],
        "trust": ["no", 1, None],
    },
}
NEEDED = {Inferencer: {"model": NET}, InferencerClient: {"address": "/nowhere"}, App: {"models": ["m=nowhere:net"]}}
CASES = [
    pytest.param(door, name, value, id=f"{door.__name__}({name}={value!r:.30})")
    for door, options in WRONG.items()
    for name, values in options.items()
    for value in values
]


def is_one_sentence(error):
    return "\n" not in str(error) and len(str(error)) < 250


@pytest.mark.parametrize(("door", "name", "value"), CASES)
def test_a_wrong_option_is_named_with_its_rule_and_its_value(door, name, value, monkeypatch):
    monkeypatch.setattr("ai.infer.inferencer.Launcher", lambda *_: pytest.fail(f"{name}={value!r} started a worker"))
    with pytest.raises((TypeError, ValueError), match=rf"^(a server |{name}\b.*)must ") as caught:
        door(**{**NEEDED[door], name: value})
    assert is_one_sentence(caught.value)


@pytest.mark.parametrize("door", WRONG)
def test_no_option_is_passed_over(door):
    assert set(inspect.signature(door).parameters) == set(WRONG[door])


def test_the_application_takes_what_its_class_takes():
    assert set(inspect.signature(app).parameters) == {"models", "options"}
    with pytest.raises(TypeError, match="tokens must be a list of strings"):  # each letter of it was a token
        app(["m=nowhere:net"], tokens="secret")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda it: it.wait_for_resp("x"), r"request_id \(x\) must be that of a request"),
        (lambda it: it.wait_for_resp([1]), r"request_id \(\[1\]\) must be that of a request"),
        (lambda it: it.cancel(math.nan), r"request_id \(nan\) must be that of a request"),
        (lambda it: it.is_ready(None), r"request_id \(None\) must be that of a request"),
        (lambda it: it.ping("3"), "timeout must be a number or None, got '3'"),
        (lambda it: it.ping(math.nan), "timeout must be a number or None, got nan"),
        (lambda it: it.stats("3"), "timeout must be a number or None, got '3'"),
        (lambda it: it.multi_infer(ONES), "inputs must be a list of inputs, not Tensor: call the model for one"),
        (lambda it: it.multi_infer("ab"), "inputs must be a list of inputs, not str"),
        (lambda it: it.multi_infer({"x": ONES}), "inputs must be a list of inputs, not dict"),
        (lambda it: it.multi_infer(3), "inputs must be a list of inputs, not int"),
        (lambda it: it.multi_infer([ONES, print]), "argument 0 must be a tensor, a number,"),
        (lambda it: it(print), "argument 0 must be a tensor, a number,"),
        (lambda it: it(x={1.5: ONES}), "x must have str or int keys, not 1.5"),
        (lambda it: it.infer_async(ONES.to_sparse()), "argument 0 must be a dense tensor"),
        (lambda it: it.update_params(3), "state_dict must be a dict of tensors by name, not int"),
        (lambda it: it.update_params(NET), "state_dict must be a dict of tensors by name, not Linear"),
        (lambda it: it.create_client(timeout_s="3"), "timeout_s must be a number of seconds, not '3'"),
        (lambda it: setattr(it.client, "timeout_s", -1), "timeout_s must be positive or None, not -1"),
    ],
)
def test_a_wrong_call_is_told_in_one_sentence_and_the_next_is_answered(call, message, inferencer, model):
    with pytest.raises((TypeError, ValueError), match=message) as caught:
        call(inferencer)
    assert is_one_sentence(caught.value)
    assert torch.equal(inferencer(ONES), model(ONES))


def test_numbers_of_other_kinds_and_very_long_times_mean_what_they_say(model):
    """What the system's waits cannot take ended the watching thread or the worker; what JSON has not, the start."""
    long = np.float32(1e30)
    options = {"start_timeout_s": Fraction(10**15), "stall_timeout_s": math.inf, "max_delay_s": long}
    with Inferencer(model, batch_size=np.int64(2), in_axes=np.int64(0), share=True, **options) as inferencer:
        client = inferencer.create_client(timeout_s=Fraction(60), slot_bytes=np.int64(1 << 14))
        with client, inferencer.create_client(timeout_s=60) as other:
            asked = client.infer_async(ONES)  # waits for company as long as it takes
            with pytest.raises(TimeoutError):
                client.wait_for_resp(asked, np.float32(0.05))
            for y in (other(ONES), client.wait_for_resp(asked)):
                torch.testing.assert_close(y, model(ONES).detach())
            assert other.stats().batches == 1
        assert inferencer.update_params(model.state_dict()) == 1
        assert inferencer.ready


def test_a_wait_without_an_end_is_taken_in_pieces_that_the_system_takes():
    check_hang = HangCheck(Path("/nowhere"), None)
    assert check_hang.slice_s(None) is None
    assert check_hang.slice_s(0.5) == 0.5
    assert 60 < check_hang.slice_s(math.inf) < threading.TIMEOUT_MAX
    assert 60 < check_hang.slice_s(1e30) < threading.TIMEOUT_MAX


def test_a_state_of_nobodys_extra_state_ends_no_worker(inferencer, model):
    with pytest.raises(ValueError, match=r"state_dict must hold entries of the model only, not 'fc._extra_state'"):
        inferencer.update_params({**model.state_dict(), "fc._extra_state": 3})
    assert torch.equal(inferencer(ONES), model(ONES))


def test_a_wrong_value_in_a_state_is_named(inferencer, model):
    for value in (3, None, [0.0] * 4, "x"):
        with pytest.raises((TypeError, ValueError), match=r"state_dict\['fc.bias'\] must be a tensor") as caught:
            inferencer.update_params({**model.state_dict(), "fc.bias": value})
        assert is_one_sentence(caught.value)


def test_an_endless_wait_and_any_iterable_of_inputs_are_taken(inferencer, model):
    with inferencer.create_client(timeout_s=math.inf) as client:
        assert torch.equal(client(ONES), model(ONES))
        assert torch.equal(client.wait_for_resp(client.infer_async(ONES), math.inf), model(ONES))
        for outputs in (client.multi_infer(x for x in (ONES, ONES)), client.multi_infer((ONES, ONES))):
            torch.testing.assert_close(outputs, [model(ONES)] * 2)
        assert client.multi_infer([]) == []


SOURCES = [
    ("m", "a model must be written NAME"),
    ("m=", "a model must be written NAME"),
    ("m=a:b?batch_size=0", "the option batch_size must be a whole number from 1, not '0'"),
    ("m=a:b?batch_size=1.5", "the option batch_size must be a whole number from 1, not '1.5'"),
    ("m=a:b?replicas=auto", "the option replicas must be a whole number from 1, not 'auto'"),
    ("m=a:b?ema=yes", "the option ema must be 1 or 0, not 'yes'"),
    ("m=a:b?share=yes", "the option share must be auto, 1 or 0, not 'yes'"),
    ("m=a:b?speed=9", "a model's options are"),
]


@pytest.mark.parametrize(("source", "message"), SOURCES)
def test_a_wrong_source_is_told_by_its_option(source, message):
    with pytest.raises(ValueError, match=message) as caught:
        ModelSource.parse(source)
    assert is_one_sentence(caught.value)


def test_numbers_of_thousands_of_digits_are_told_without_them(model):
    """Python does not write them."""
    for sign in (1, -1):
        with pytest.raises(ValueError, match=r"batch_size must be .* from 1 to \d+, not about -?2\*\*16609") as caught:
            Inferencer(model, batch_size=sign * 10**5000)
        assert is_one_sentence(caught.value)
    with pytest.raises(ValueError, match=r"max_pending must be 1 or more, not about -2\*\*16609"):
        check_counts(max_pending=-(10**5000))
    with pytest.raises(ValueError, match=r"timeout_s must be positive or None, .* not about 2\*\*16609"):
        check_seconds(timeout_s=10**5000)
    with pytest.raises(ValueError, match="the option batch_size must have at most 18 digits, not 5000") as caught:
        ModelSource.parse(f"m=a:b?batch_size={5000 * '1'}")
    assert is_one_sentence(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["serve", "m"], "a model must be written NAME"),
        *((["serve", source], message) for source, message in SOURCES[2:4]),
        (["serve", "m=a:b", "--workers", "0"], "--workers must be 1 or more, not 0"),
        (["serve", "m=a:b", "--port", "70000"], "--port must be from 0 to 65535, not 70000"),
        (["serve", "m=a:b", "--port", "-1"], "--port must be from 0 to 65535, not -1"),
        (["serve", "m=a:b", "--drain", "-1"], "--drain must be 0 or more, not -1"),
        (["serve", "m=a:b", "--timeout", "nan"], "--timeout must be positive and finite, not nan"),
        (["serve", "m=a:b", "--stall-timeout", "0"], "--stall-timeout must be positive or None, not 0.0"),
        (["serve", "m=a:b", "--max-pending", "0"], "--max-pending must be 1 or more, not 0"),
        (["bench", "a:b", "--clients", "1,x"], "--clients must be numbers from 1 between commas, not '1,x'"),
        (["bench", "a:b", "--clients", "0"], "--clients must be numbers from 1 between commas, not '0'"),
        (["bench", "a:b", "--outstanding", "0"], r"--outstanding \(0\) and --seconds \(2.0\) must be positive"),
        (["bench", "a:b", "--seconds", "nan"], r"--outstanding \(1\) and --seconds \(nan\) must be positive"),
    ],
)
def test_a_wrong_command_ends_with_one_sentence_and_the_status_of_usage(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr("ai.infer.http.serve.set_up_log", lambda arguments: None)
    monkeypatch.setattr("sys.path", list(sys.path))
    assert cli.main(arguments) == 2
    said = capsys.readouterr().err.strip()
    assert re.search(message, said)
    assert is_one_sentence(said)
