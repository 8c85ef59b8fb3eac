"""Who is told of a run, when, and that nobody who is told can hurt it."""

import json
import math
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from ai.lab import Alert, Alerts, Trial

HOW = {"system_interval_s": None, "capture": False}


def kinds(told: list[Alert]) -> list[tuple[str, int | None]]:
    return [(alert.kind, alert.step) for alert in told]


def test_each_metric_that_is_no_number_is_told_once_and_the_end_with_its_error(tmp_path):
    told: list[Alert] = []

    def fail() -> None:
        with Trial(tmp_path / "t", loggers=[Alerts(told.append)], **HOW) as trial:
            trial.log(1, {"loss": 1.0})
            for step in (2, 3):
                trial.log(step, {"loss": float("nan"), "norm": float("inf")})
            raise ValueError("out of luck")

    with pytest.raises(ValueError, match="out of luck"):
        fail()
    assert kinds(told) == [("nan", 2), ("nan", 2), ("failed", 3)]
    assert told[1].text == "t: norm is inf at step 2"
    assert told[2].text == "t: failed at step 3 by ValueError: out of luck"
    assert told[2].path == str(tmp_path / "t")


def test_only_the_ends_that_were_asked_for_are_told(tmp_path):
    told: list[Alert] = []
    with Trial(tmp_path / "t", loggers=[Alerts(told.append, ends=("failed",))], **HOW) as trial:
        trial.log(0, {"loss": 1.0})
    assert told == []


def test_a_run_that_logs_nothing_has_stalled_until_it_logs_again(tmp_path):
    told, stalled = [], threading.Semaphore(0)

    def take(alert: Alert) -> None:
        told.append(alert)
        stalled.release()

    with Trial(tmp_path / "t", loggers=[Alerts(take, stall_after_s=0.02, ends=())], **HOW) as trial:
        for step in (0, 1):
            trial.log(step, {"loss": 1.0})
            while ("stall", step) not in kinds(told):
                assert stalled.acquire(timeout=100)
    seen = [
        one for one in dict.fromkeys(kinds(told)) if one != ("stall", None)
    ]  # before the first row, on a busy machine
    assert seen == [("stall", 0), ("stall", 1)]


def test_a_webhook_gets_one_json_object_an_alert(tmp_path):
    got = []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append((self.headers["content-type"], json.loads(self.rfile.read(int(self.headers["content-length"])))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Hook) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        with Trial(tmp_path / "t", loggers=[Alerts(f"http://127.0.0.1:{server.server_port}/x")], **HOW) as trial:
            trial.log(7, {"loss": 1.0})
        thread.join(100)
    ((kind, alert),) = got
    assert kind == "application/json"
    expected = {"kind": "finished", "trial": "t", "path": str(tmp_path / "t"), "step": 7}
    assert alert == {**expected, "text": "t: finished at step 7"}


def test_a_receiver_that_fails_or_never_answers_does_not_hurt_the_run(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("ai.lab.recording.alerts.SEND_S", 0.05)
    held = threading.Event()

    def broken(alert: Alert) -> None:
        raise OSError("no network")

    loggers = [Alerts(broken), Alerts(lambda alert: held.wait(100))]
    with Trial(tmp_path / "t", loggers=loggers, **HOW) as trial:
        for step in range(300):
            trial.log(step, {f"m{step}": float("nan")})
    held.set()
    assert trial.state == "finished"
    assert len(trial.metrics()) == 300
    said = capsys.readouterr().err
    assert "an alert was not taken: OSError: no network" in said
    assert "an alert is left out" in said


def test_one_watches_runs_one_after_the_other_and_refuses_two_at_once(tmp_path):
    told: list[Alert] = []
    alerts = Alerts(told.append)
    for name in "ab":
        with Trial(tmp_path / name, loggers=[alerts], **HOW) as trial:
            trial.log(0, {"loss": 1.0})
    assert [alert.trial for alert in told] == ["a", "b"]
    with Trial(tmp_path / "c", loggers=[alerts], **HOW):
        with pytest.raises(RuntimeError, match=r"one Alerts watches one run at a time, and .*c is not over"):
            Trial(tmp_path / "d", loggers=[alerts], **HOW).log(0, {"loss": 1.0})
        assert Trial(tmp_path / "d", **HOW).state == "created"
    with Trial(tmp_path / "d", **HOW) as trial:  # nobody holds the folder
        trial.log(0, {"loss": 1.0})


def test_states_are_a_tuple_not_a_text_that_may_hold_one():
    with pytest.raises(TypeError, match=r"ends must be a tuple of states, .* got 'failed'"):
        Alerts(print, ends="failed")


@pytest.mark.parametrize(("to", "how", "said"), [
    ("ftp://host/x", {}, "to must be a callable or an address"),
    ("hooks.example", {}, "to must be a callable or an address"),
    (None, {}, "to must be a callable or an address"),
    ("http://", {}, "to must be a callable or an address"),
    (print, {"stall_after_s": 0}, r"stall_after_s must be a positive number of .*, got 0"),
    (print, {"stall_after_s": math.inf}, r"stall_after_s must be a positive number of .*, got inf"),
    (print, {"ends": ("fail", "finished")}, "ends must be of finished, .*, failed, got fail$"),
])  # fmt: skip
def test_what_cannot_be_told_is_refused(to, how, said):
    with pytest.raises(ValueError, match=said):
        Alerts(to, **how)
