import asyncio
import json
import os
import struct
import threading
import time
import urllib.parse
from importlib.resources import files

import numpy as np
import optuna
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ai.lab import Experiment, Trial
from ai.lab.cli import main
from ai.lab.files import lock, ownership
from ai.lab.files.metrics_file import read_lines
from ai.lab.files.ownership import Owner
from ai.lab.files.removal import remove_unowned
from ai.lab.page.catalog import Catalog
from ai.lab.page.curve_cache import CurveCache
from ai.lab.page.decimate import decimate
from ai.lab.page.server import is_loopback, make_app, serve
from ai.lab.page.smooth import MovingAverage, smooth

HOW = {"system_interval_s": None, "capture": False}
SCRIPT = "<script>alert(1)</script>"
LAUGHS = "a0: &a0 [1, 1]\n" + "".join(f"a{i + 1}: &a{i + 1} [{', '.join([f'*a{i}'] * 9)}]\n" for i in range(9))


class Client:
    """Asks an ASGI application directly."""

    def __init__(self, root, host="localhost:8765", **how) -> None:
        self.app = make_app(root, **how)
        self.host = host

    def get(
        self, path: str, headers: dict[str, str] | None = None, body: bytes | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        raw, _, query = path.partition("?")
        sent: list[dict] = []

        async def receive() -> dict:
            return {"type": "http.request", "body": body or b"", "more_body": False}

        async def send(message: dict) -> None:
            sent.append(message)

        given = [(b"host", self.host.encode()), *((k.encode(), v.encode()) for k, v in (headers or {}).items())]
        method = "GET" if body is None else "POST"
        scope = {
            "type": "http", "http_version": "1.1", "method": method, "scheme": "http",
            "path": urllib.parse.unquote(raw),
            "raw_path": raw.encode(), "query_string": query.encode(), "headers": given, "server": ("127.0.0.1", 8765),
            "client": ("127.0.0.1", 1), "root_path": "",
        }  # fmt: skip
        asyncio.run(self.app(scope, receive, send))
        start = sent[0]
        body = b"".join(message.get("body", b"") for message in sent[1:])
        return start["status"], {k.decode(): v.decode() for k, v in start["headers"]}, body

    def json(self, path: str):
        status, _, body = self.get(path)
        assert status == 200, body
        return json.loads(body, parse_constant=lambda text: pytest.fail(f"{text} is no JSON"))

    def curves(self, query: str) -> list[tuple[dict, np.ndarray, np.ndarray]]:
        status, _, body = self.get(f"/api/curves?{query}")
        assert status == 200, body
        (length,) = struct.unpack_from("<I", body)
        at, out = 4 + length, []
        assert at % 8 == 0
        for one in json.loads(body[4:at]):
            numbers = np.frombuffer(body, "<f8", 2 * one["n"], at)
            out.append((one, numbers[: one["n"]], numbers[one["n"] :]))
            at += 16 * one["n"]
        assert at == len(body)
        return out


@pytest.fixture
def root(tmp_path):
    for name, lr in (("a", 0.1), ("b", 0.2)):
        with Trial(tmp_path / name, config={"lr": lr}, **HOW) as trial:
            for step in range(200):
                trial.log(step, {"loss": 1 / (step + 1)})
            trial.save_sample(100, torch.zeros(1, 1, 4, 4))
    return tmp_path


@pytest.fixture
def client(root):
    return Client(root)


def ids(client) -> dict[str, str]:
    return {row["name"]: row["id"] for row in client.json("/api/trials")["trials"]}


def test_the_table_has_configuration_and_last_metrics(client):
    rows = {row["name"]: row for row in client.json("/api/trials")["trials"]}
    assert rows["a"]["config"] == {"lr": 0.1}
    assert rows["b"]["metrics"] == {"loss": 0.005}
    assert rows["b"]["step"] == 199
    assert rows["b"]["state"] == "finished"


def test_a_whole_number_that_a_browser_lacks_comes_with_all_its_digits(tmp_path):
    with Trial(tmp_path / "t", config={"seed": 2**60 + 1, "steps": 2**52 + 1}, **HOW) as trial:
        trial.log(0, {"loss": 1.0})
    path = trial.path / "meta.json"
    meta = json.loads(path.read_text())
    meta["sessions"][-1]["torch_seed"] = 2**64 - 1
    path.write_text(json.dumps(meta))
    client = Client(tmp_path)
    (row,) = client.json("/api/trials")["trials"]
    details = client.json(f"/api/trial/{trial.id}")
    for config in (row["config"], details["config"]):
        assert config == {"seed": "1152921504606846977", "steps": 2**52 + 1}
    assert details["meta"]["sessions"][-1]["torch_seed"] == "18446744073709551615"


def test_curves_come_as_written(client):
    known = ids(client)
    (one, x, y), (two, _, _) = client.curves(f"id={known['a']}&id={known['b']}&key=loss&points=1000")
    assert (one["id"], two["id"]) == (known["a"], known["b"])
    assert x.tolist() == list(range(200))
    assert y.tolist() == [1 / (step + 1) for step in range(200)]


def test_curves_are_smoothed_over_every_point_beside_the_raw_ones(client):
    raw, smoothed = client.curves(f"id={ids(client)['a']}&key=loss&smooth=0.9&points=1000")
    assert (raw[0]["smooth"], smoothed[0]["smooth"]) == (False, True)
    np.testing.assert_array_equal(smoothed[2], smooth(raw[2], 0.9))


def test_a_part_of_a_curve_comes_with_one_point_more_on_each_side(client):
    query = f"id={ids(client)['a']}&key=loss"
    assert client.curves(f"{query}&from=50&to=52.5")[0][1].tolist() == [49, 50, 51, 52, 53]
    assert client.curves(f"{query}&from=50.2&to=50.4")[0][1].tolist() == []
    assert client.curves(f"{query}&from=198")[0][1].tolist() == [197, 198, 199]


def test_curves_over_time_start_at_0(client):
    ((_, x, _),) = client.curves(f"id={ids(client)['a']}&key=loss&x=time")
    assert x[0] == 0
    assert (np.diff(x) >= 0).all()


def test_a_live_trial_is_followed_row_by_row(client, root):
    with Trial(root / "live", **HOW) as trial:
        trial.log(0, {"loss": 2.0})
        identity = ids(client)["live"]
        query = f"id={identity}&key=loss"
        assert client.curves(query)[0][2].tolist() == [2.0]
        trial.log(1, {"loss": 1.0})
        assert client.curves(query)[0][2].tolist() == [2.0, 1.0]
        row = next(row for row in client.json("/api/trials")["trials"] if row["id"] == identity)
        assert (row["state"], row["step"]) == ("running", 1)
        trial._writer._session.metrics.cut(0)  # as a resumed run does
        trial.log(0, {"loss": 5.0})
        assert client.curves(query)[0][2].tolist() == [5.0]


def test_details_samples_diff_and_log_of_a_trial(client):
    identity = ids(client)["a"]
    detail = client.json(f"/api/trial/{identity}")
    assert detail["keys"] == ["loss"]
    assert detail["samples"] == [100]
    assert detail["config"] == {"lr": 0.1}
    status, headers, body = client.get(f"/api/trial/{identity}/sample/100")
    assert (status, headers["content-type"]) == (200, "image/png")
    assert body.startswith(b"\x89PNG")
    for part in ("log", "diff"):
        status, headers, _ = client.get(f"/api/trial/{identity}/{part}")
        assert status == 200
        assert headers["content-type"].startswith("text/plain")


@pytest.mark.parametrize(
    "path",
    [
        "/../pyproject.toml", "/..%2f..%2fetc%2fpasswd", "/api/trial/..%2f..", "/api/trial/nobody", "/server.py",
        "/etc/passwd", "/api/curves?id=../a&key=loss", "/api/curves?id=x&key=y&file=../meta.json",
        "/uPlot.LICENSE", "/%00",
    ],
)  # fmt: skip
def test_what_is_not_named_is_not_served(client, path):
    status, _, body = client.get(path)
    assert status == 404
    assert len(body) < 300


def test_a_sample_of_another_step_is_not_found(client):
    identity = ids(client)["a"]
    assert client.get(f"/api/trial/{identity}/sample/7")[0] == 404
    assert client.get(f"/api/trial/{identity}/sample/..%2f..%2fmeta.json")[0] == 404


def test_too_many_curves_and_wrong_numbers_are_refused(client):
    identity = ids(client)["a"]
    many = "&".join(["key=loss"] * 500)
    assert client.get(f"/api/curves?id={identity}&{many}")[0] == 400
    for wrong in ("points=many", "smooth=nan", "smooth=1", "smooth=-0.5", "from=x"):
        assert client.get(f"/api/curves?id={identity}&key=loss&{wrong}")[0] == 400
    assert len(client.curves(f"id={identity}&key=loss&points=-5")[0][1]) <= 10
    assert client.json("/api/trials?since=inf")["trials"] == []


def test_the_page_loads_nothing_from_elsewhere(client):
    web = [f"/{file.name}" for file in (files("ai.lab.page") / "web").iterdir()]
    ours = [path for path in web if path.endswith((".js", ".css", ".svg", ".html")) and "uPlot" not in path]
    assert len(ours) > 15
    for path in ["/", *ours]:
        status, headers, body = client.get(path)
        assert status == 200
        assert "default-src 'none'" in headers["content-security-policy"]
        text = body.decode().replace("http://www.w3.org/2000/svg", "")
        assert "http:" not in text
        assert "https:" not in text
        assert "innerHTML" not in text
    assert client.get("/uPlot.iife.min.js")[0] == 200


def test_a_strangers_page_that_points_its_name_here_gets_nothing(root):
    assert Client(root, host="evil.example:8765").get("/api/trials")[0] == 403
    assert Client(root, host="127.0.0.1:8765").get("/api/trials")[0] == 200
    assert Client(root, host="[::1]:8765").get("/api/trials")[0] == 200


def test_a_token_is_asked_of_everyone_and_remembered(root):
    client = Client(root, token="secret", host="lab.example")
    assert client.get("/api/trials")[0] == 401
    assert client.get("/api/trials?token=wrong")[0] == 401
    status, headers, _ = client.get("/?token=secret")
    assert status == 200
    cookie = headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert client.get("/api/trials", {"cookie": cookie.split(";")[0]})[0] == 200
    assert client.get("/api/trials", {"authorization": "Bearer secret"})[0] == 200


def test_an_open_address_needs_a_token(tmp_path):
    with pytest.raises(ValueError, match=r"host 0\.0\.0\.0 can be reached from other machines: pass --token"):
        serve(tmp_path, host="0.0.0.0")
    assert [is_loopback(host) for host in ("localhost", "127.0.0.1", "::1", "10.0.0.1", "example.org")] == [
        True
    ] * 3 + [False] * 2


def test_hostile_names_and_values_are_carried_as_data(tmp_path):
    with Trial(
        tmp_path / SCRIPT.replace("/", "_"), config={SCRIPT: "x" * 10_000_000, "n": float("nan")}, **HOW
    ) as trial:
        trial.log(0, {SCRIPT: float("nan"), "inf": float("inf")})
        trial.log(1, {SCRIPT: 1.0, "inf": 2.0})
    client = Client(tmp_path)
    (row,) = client.json("/api/trials")["trials"]
    assert len(row["config"][SCRIPT]) <= 200
    assert row["config"]["n"] == "nan"
    ((_, x, y),) = client.curves(f"id={row['id']}&key={urllib.parse.quote(SCRIPT)}")
    assert x.tolist() == [0, 1]
    assert np.isnan(y[0])
    assert client.json(f"/api/trial/{row['id']}")["keys"] == [SCRIPT, "inf"]


def test_damaged_trials_do_not_hide_the_others(client, root):
    (root / "a" / "meta.json").write_text("{")
    (root / "a" / "metrics.jsonl").write_bytes(b"\xff\xfe\n{}\n[1]\n")
    (root / "a" / "config.yaml").write_text(": [")
    (root / "b" / ".ai-lab").write_text("{")
    with Trial(root / "c", **HOW) as trial:
        trial.log(0, {"loss": 1})
    rows = {row["name"]: row for row in client.json("/api/trials")["trials"]}
    assert rows.keys() == {"a", "b", "c"}
    assert rows["b"]["state"] == "damaged"
    assert ".ai-lab is damaged: it is no JSON" in rows["b"]["problems"][0]
    assert "meta.json is damaged: it is no JSON" in rows["a"]["problems"][0]
    assert "config.yaml is not valid YAML" in rows["a"]["problems"][1]
    assert rows["c"]["problems"] == []
    assert client.curves(f"id={ids(client)['a']}&key=loss") == []


@pytest.mark.parametrize(
    ("file", "text", "problem"),
    [
        ("metrics.jsonl", '{"step": 5, "time": 1.0, "n": %s}\n' % ("9" * 400), None),
        ("metrics.jsonl", '{"step": 9223372036854775808, "time": 1.0, "loss": 1.0}\n', None),
        ("metrics.jsonl", '{"step": 5, "time": 1.0, "loss": [1, 2]}\n', None),
        ("metrics.jsonl", "[" * 5000 + "\n", None),
        (".ai-lab", "null", ".ai-lab is damaged: it must hold one JSON object, got NoneType"),
        ("config.yaml", "a: &x [*x]", "config.yaml is too large, or holds itself by an alias"),
        ("config.yaml", LAUGHS, "config.yaml is too large"),
        ("meta.json", "[1]", "meta.json is damaged: it must hold one JSON object, got list"),
        ("meta.json", '{"state": ["x"], "sessions": [{"git": 3}]}', 'meta.json is damaged: state cannot be ["x"]'),
        ("meta.json", '{"last": {"loss": [1]}, "steplimit": 1e400}', "meta.json is damaged: last cannot be"),
        ("meta.json", "[" * 100_000, "meta.json is damaged: it is nested too deeply"),
        ("meta.json", '{"notes": {"a": %s}}' % ("[" * 900 + "]" * 900), "meta.json is damaged: it is nested"),
        ("meta.json", '{"created": NaN}', "meta.json is damaged: created cannot be NaN"),
        ("meta.json", '{"created": 1e300}', "meta.json is damaged: created cannot be 1e+300"),
        ("meta.json", '{"score": NaN, "state": "finished"}', None),
        ("meta.json", '{"sessions": [{"argv": null, "git": {"commit": "x", "untracked": null}}]}', None),
        (".ai-lab", '{"kind": "tria", "id": "x", "format": 1}', '.ai-lab is damaged: kind cannot be "tria"'),
    ],
)  # fmt: skip
def test_whatever_one_record_holds_every_other_is_shown_and_it_says_what_is_wrong(client, root, file, text, problem):
    with open(root / "a" / file, "a" if file == "metrics.jsonl" else "w") as out:
        out.write(text)
    rows = {row["name"]: row for row in client.json("/api/trials")["trials"]}
    assert rows["b"]["metrics"] == {"loss": 0.005}
    assert rows["b"]["problems"] == []
    assert [problem in told for told in rows["a"]["problems"][:1]] == ([True] if problem else [])
    if not rows["a"]["id"].startswith("damaged-"):
        identity = rows["a"]["id"]
        told = client.json(f"/api/trial/{identity}")
        assert told["keys"] == ["loss"]
        assert ("metrics.jsonl: 1 damaged line" in told["problems"]) == (file == "metrics.jsonl")
        assert client.curves(f"id={identity}&key=loss")[0][2].tolist()[:200] == [1 / (step + 1) for step in range(200)]
        for part in ("log", "diff"):
            assert client.get(f"/api/trial/{identity}/{part}")[0] == 200


def test_a_name_that_is_no_text_and_a_digit_that_is_no_number_hide_nothing(client, root, capsys):
    odd = os.fsencode(root) + b"/bad\xff"
    os.mkdir(odd)
    with open(odd + b"/.ai-lab", "w") as file:
        file.write("{")
    for folder in ("samples", "media", "snapshots"):
        (root / "a" / folder).mkdir(exist_ok=True)
        (root / "a" / folder / "\u00b2.png").mkdir()
        (root / "a" / folder / "\u00b2").mkdir()
    assert {"a", "b"} < {row["name"] for row in client.json("/api/trials")["trials"]}
    assert client.json(f"/api/trial/{ids(client)['a']}")["media"] == {}
    assert main(["ls", str(root)]) == 0
    assert "damaged" in capsys.readouterr().out


def test_only_what_changed_is_told(client, root):
    first = client.json("/api/trials")
    again = client.json(f"/api/trials?since={first['version']}")
    assert (again["trials"], again["gone"], again["epoch"]) == ([], [], first["epoch"])
    with Trial(root / "c", **HOW) as trial:
        trial.log(0, {"loss": 1})
        news = client.json(f"/api/trials?since={again['version']}")
        assert [(row["name"], row["state"], row["step"]) for row in news["trials"]] == [("c", "running", 0)]
        trial.log(1, {"loss": 1})
        news = client.json(f"/api/trials?since={news['version']}")
        assert [(row["name"], row["state"], row["step"]) for row in news["trials"]] == [("c", "running", 1)]
        assert client.json(f"/api/trials?since={news['version']}")["trials"] == []
    news = client.json(f"/api/trials?since={news['version']}")
    assert [(row["name"], row["state"]) for row in news["trials"]] == [("c", "finished")]
    remove_unowned(root / "a")
    last = client.json(f"/api/trials?since={news['version']}")
    assert (last["trials"], len(last["gone"])) == ([], 1)
    assert client.get("/api/trials?since=x")[0] == 400


def test_a_trial_that_never_recorded_anything_is_no_run(client, root):
    trial = Trial(root / "c", **HOW)
    assert set(ids(client)) == {"a", "b"}
    with trial:
        assert set(ids(client)) == {"a", "b", "c"}


def test_a_metric_that_is_logged_rarely_stays_in_the_row_of_a_long_run_live_and_killed(tmp_path):
    client = Client(tmp_path)
    with Trial(tmp_path / "live", **HOW) as trial:
        trial.log(0, {"loss": 1.0, "val_loss": 0.5})
        for step in range(1, 2000):
            trial.log(step, {"loss": 1 / step})
        assert (trial.path / "metrics.jsonl").stat().st_size > 1 << 16
        (row,) = client.json("/api/trials")["trials"]
        assert row["metrics"] == {"loss": 1 / 1999, "val_loss": 0.5}
        assert row["step"] == 1999
    meta = json.loads((trial.path / "meta.json").read_text())
    (trial.path / "meta.json").write_text(json.dumps({**meta, "state": "running", "last": None}))
    (row,) = Client(tmp_path).json("/api/trials")["trials"]
    assert (row["state"], row["metrics"]) == ("dead", {"loss": 1 / 1999, "val_loss": 0.5})


def test_two_long_values_that_end_otherwise_stay_two(tmp_path):
    for end in "ab":
        with Trial(tmp_path / end, config={"prompt": "x" * 300 + end}, **HOW) as trial:
            trial.log(0, {"loss": 1.0})
    left, right = (row["config"]["prompt"] for row in Client(tmp_path).json("/api/trials")["trials"])
    assert len(left) == len(right) == 200
    assert left != right


@pytest.mark.parametrize("how", ["x=step", "x=time", "x=step&smooth=0.5"])
def test_of_a_curve_that_grows_only_what_is_new_is_sent(client, root, how):
    with Trial(root / "live", **HOW) as trial:
        for step in range(5):
            trial.log(step, {"loss": 1 / (step + 1), "late": 1.0})
        query = f"id={trial.id}&key=loss&key=late&{how}"
        first = client.curves(query)
        every = [one["mark"] for one, _, _ in first if not one["smooth"]]
        assert not any(one["follows"] for one, _, _ in first)
        trial.log(5, {"loss": 0.25})
        again = client.curves(f"{query}&have={','.join(every)}")
        whole = client.curves(query)
        for (one, x, y), (two, new_x, new_y), (_, all_x, all_y) in zip(first, again, whole, strict=True):
            assert (two["follows"], two["n"]) == (True, 1 if one["key"] == "loss" else 0)
            np.testing.assert_array_equal(np.concatenate([x, new_x]), all_x)
            np.testing.assert_array_equal(np.concatenate([y, new_y]), all_y)
        trial._writer._session.metrics.cut(0)  # as a resumed run does
        for step in range(7):
            trial.log(step, {"loss": 2.0})
        (cut, *_) = client.curves(f"{query}&have={','.join(every)}")
        assert (cut[0]["follows"], cut[0]["n"]) == (False, 7)
        trial.log(2, {"loss": 3.0})  # back in time: nothing to be put at the end
        (back, *_) = client.curves(f"{query}&have={cut[0]['mark']}")
        assert (back[0]["follows"], back[0]["n"]) == ("time" in how, 1 if "time" in how else 8)


def test_a_run_written_anew_in_rows_that_end_alike_is_told_anew(tmp_path):
    """As a resumed one, which goes beyond where it was between two looks."""
    path, cache = tmp_path / "metrics.jsonl", CurveCache()
    same = "".join(f',"{key}": 1.0' for key in "abcdefghijkl")

    def write(loss: str) -> None:
        path.write_text("".join(f'{{"step": {step}, "time": 1.5, "loss": {loss}{same}}}\n' for step in range(9)))

    write("1.0")
    name, columns = cache.named(path)
    assert columns["loss"][2].tolist() == [1.0] * 9
    assert cache.named(path)[0] == name
    write("2.0")  # into the same file
    again, columns = cache.named(path)
    assert again != name
    assert columns["loss"][2].tolist() == [2.0] * 9
    path.unlink()
    assert cache.named(path)[1] == {}
    assert cache.last(path) == {}


def test_a_read_that_fails_half_way_doubles_no_row(tmp_path, monkeypatch):
    path, cache = tmp_path / "metrics.jsonl", CurveCache()
    path.write_text("".join(f'{{"step": {step}, "time": 1.5, "loss": 1.0}}\n' for step in range(9)))
    pieces = iter([read_lines(path)[:-1].rpartition(b"\n")[0] + b"\n"])

    def read(*_) -> bytes:
        if (piece := next(pieces, None)) is None:
            raise OSError("stale file handle")
        return piece

    with monkeypatch.context() as patch:
        patch.setattr("ai.lab.files.metrics_columns.read_lines", read)
        with pytest.raises(OSError, match="stale"):
            cache.columns(path)
    assert cache.columns(path)["loss"][0].tolist() == list(range(9))


def test_what_is_refused_leaves_the_count_of_memory_as_it_was(tmp_path, monkeypatch):
    cache = CurveCache()
    paths = [tmp_path / f"{name}.jsonl" for name in "ab"]
    for path in paths:
        path.write_text("".join(f'{{"step": {step}, "time": 1.5, "loss": 1.0}}\n' for step in range(100)))
        name, columns = cache.named(path)
    one = cache._nbytes / 2
    for _ in range(3):
        with pytest.raises(ValueError, match="smoothing must be"):
            cache.smoothed(path, name, "loss", columns["loss"][2], 2.0)
    assert cache._nbytes == 2 * one
    monkeypatch.setattr("ai.lab.page.curve_cache.CACHED_BYTES", 2 * one)
    cache.smoothed(path, name, "loss", columns["loss"][2], 0.5)  # which is kept too: there is no room for both
    assert list(cache._tails) == [path]
    assert cache._nbytes == one + 800


@pytest.mark.parametrize("have", ["x", "x.y", ".", "1.-5", "," * 999, "%00.1"])
def test_marks_that_are_none_bring_the_whole_curve(client, have):
    ((one, x, _),) = client.curves(f"id={ids(client)['a']}&key=loss&have={have}")
    assert (one["follows"], len(x)) == (False, 200)


def test_curves_of_steps_out_of_order_come_in_order(client, root):
    with Trial(root / "c", **HOW) as trial:
        for step in (5, 3, 9):
            trial.log(step, {"loss": float(step), "epoch": step / 2})
    identity = ids(client)["c"]
    ((_, x, y),) = client.curves(f"id={identity}&key=loss")
    assert (x.tolist(), y.tolist()) == ([3, 5, 9], [3, 5, 9])
    ((_, x, y),) = client.curves(f"id={identity}&key=loss&x=by:epoch")
    assert (x.tolist(), y.tolist()) == ([1.5, 2.5, 4.5], [3, 5, 9])


def test_no_answer_has_more_points_than_fit_and_one_curve_always_does(client, root, monkeypatch):
    a, b, *_ = ids(client).values()
    monkeypatch.setattr("ai.lab.page.server.MAX_POINTS", 300)
    assert [len(x) for _, x, _ in client.curves(f"id={a}&key=loss&points=1e99")] == [200]
    status, _, body = client.get(f"/api/curves?id={a}&id={b}&key=loss&points=1e7")
    assert (status, body.decode()) == (400, "at most 300 points at once: ask for fewer curves, or fewer points")
    assert len(client.curves(f"id={a}&id={b}&key=loss&points=100")) == 2


def test_two_servers_of_one_machine_leave_each_others_cookies_alone(root):
    cookies = []
    for token in ("one", "two"):
        headers = Client(root, token=token).get(f"/api/trials?token={token}")[1]
        cookies.append(headers["set-cookie"].split(";")[0])
    jar = dict(cookie.split("=") for cookie in cookies)  # browsers do not tell ports apart
    sent = "; ".join(f"{name}={value}" for name, value in jar.items())
    assert [Client(root, token=one).get("/api/trials", headers={"cookie": sent})[0] for one in ("one", "two")] == [
        200
    ] * 2


@pytest.mark.parametrize("token", ["a;b", "слово", "a, b=c", "x\ny"])
def test_any_token_is_kept_by_a_browser_that_gave_it(root, token):
    client = Client(root, token=token)
    status, headers, _ = client.get("/api/trials?token=" + urllib.parse.quote(token))
    assert status == 200
    cookie = headers["set-cookie"].split("; ")[0]
    assert token not in cookie
    assert client.get("/api/trials", headers={"cookie": cookie})[0] == 200
    assert client.get("/api/trials", headers={"cookie": cookie[:-64] + "0" * 64})[0] == 401


def test_an_idle_look_reads_no_file(client, root, monkeypatch):
    monkeypatch.setattr("ai.lab.page.catalog.SETTLED_NS", -(10**18))  # as if all had been there for long
    version = client.json("/api/trials")["version"]
    opened = []
    monkeypatch.setattr("builtins.open", lambda path, *rest, **how: opened.append(path))
    monkeypatch.setattr("pathlib.Path.read_bytes", lambda path: opened.append(path))
    monkeypatch.setattr("os.open", lambda path, *rest, **how: opened.append(path))
    catalog_answer = client.json(f"/api/trials?since={version}")
    monkeypatch.undo()
    assert catalog_answer["trials"] == []
    assert opened == []


def test_what_is_edited_in_its_place_is_told_though_no_folder_changes(tmp_path, monkeypatch):
    monkeypatch.setattr("ai.lab.page.catalog.ASKED_AT_ONCE", 2)
    for number in range(3):
        with Trial(tmp_path / f"t{number}", config={"lr": 0.1}, **HOW) as trial:
            trial.log(0, {"loss": 1.0})
        trial.record.tag("old")
        os.utime(trial.path, (1e9, 1e9))
    page = Catalog(tmp_path)
    before = {row["name"]: row for row in page.rows()}
    read_ns = time.time_ns()
    while (tmp_path / "t2" / "config.yaml").stat().st_ctime_ns <= read_ns:  # clocks of files move by jumps
        (tmp_path / "t2" / "config.yaml").write_text("lr: 0.5\n")
        (tmp_path / "t1" / "marks.json").write_text('{"tags": ["new"], "note": ""}')
    changes = [page.changes(page._version) for _ in range(4)]  # two rows a look: each was asked about
    told = {row["name"]: row for change in changes for row in change["trials"]}
    assert set(told) == {"t1", "t2"}
    assert told["t2"] == {**before["t2"], "config": {"lr": 0.5}}
    assert told["t1"] == {**before["t1"], "tags": ["new"]}
    assert (tmp_path / "t2").stat().st_mtime == 1e9


def test_a_killed_trial_is_asked_for_its_holder_once_until_another_takes_it(tmp_path, monkeypatch):
    trial = Trial(tmp_path / "t", **HOW)
    trial.log(0, {"loss": 1.0})
    trial.close()
    told = {**trial.record.meta, "state": "running"}
    del told["last"]
    (trial.path / "meta.json").write_text(json.dumps(told))
    os.utime(trial.path / "owner.json", (1e9, 1e9))
    os.utime(trial.path, (1e9, 1e9))
    page = Catalog(tmp_path)
    assert [(row["state"], row["metrics"]) for row in page.rows()] == [("dead", {"loss": 1.0})]
    with monkeypatch.context() as patched:
        patched.setattr(lock, "holder_of", None)
        patched.setattr(ownership, "holder_of", None)  # nobody may ask
        assert page.changes(page.changes(-1)["version"])["trials"] == []
    with Owner(trial.path):
        assert [row["state"] for row in page.rows()] == ["running"]
    assert [row["state"] for row in page.rows()] == ["dead"]


def test_an_empty_or_missing_root_has_no_trials(tmp_path):
    assert Client(tmp_path / "none").json("/api/trials")["trials"] == []


def test_a_deleted_trial_is_gone_and_a_moved_one_is_found(client, root):
    identity = ids(client)["a"]
    (root / "a").rename(root / "elsewhere")
    assert ids(client)["elsewhere"] == identity
    assert client.curves(f"id={identity}&key=loss")[0][0]["n"] == 200


def test_experiments_are_told_with_their_direction(tmp_path):
    experiment = Experiment(tmp_path / "part" / "search", "max", search="random")
    experiment.run(1, lambda trial: trial.hp.lin("x", 0, 1), progress=False)
    answer = Client(tmp_path).json("/api/trials")
    assert answer["experiments"] == {experiment.id: {"name": "part/search", "direction": "max", "seeds": 1}}
    assert answer["trials"][0]["experiment"] == experiment.id


def test_many_readers_at_once_get_the_same(root):
    catalog, results = Catalog(root), []
    identity = catalog.rows()[0]["id"]
    threads = [
        threading.Thread(target=lambda: results.append(catalog.columns(identity)["loss"].values.sum()))
        for _ in range(8)
    ]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert len(results) == 8
    assert len(set(results)) == 1


# -- decimation


@example([0.0, 0.0, 0.0, np.inf, 0.0], 4)  # a gap behind the last whole stretch
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a busy machine is no fault
@given(st.lists(st.floats(width=32), min_size=1, max_size=300), st.integers(4, 40))
def test_decimation_keeps_order_ends_and_extremes(values, points):
    y = np.array(values, np.float64)
    x = np.arange(len(y), dtype=np.float64)
    short_x, short_y = decimate(x, y, points)
    assert (np.diff(short_x) > 0).all()
    assert {0, len(y) - 1} <= set(short_x)
    assert len(short_x) <= max(len(y) if len(y) <= points else 0, 2 * points + 6)
    np.testing.assert_array_equal(short_y, y[short_x.astype(int)])
    finite = y[np.isfinite(y)]
    if len(finite):
        kept = short_y[np.isfinite(short_y)]
        assert kept.min() == finite.min()
        assert kept.max() == finite.max()
    assert np.isfinite(y).all() == np.isfinite(short_y).all()


def test_too_few_points_are_refused():
    with pytest.raises(ValueError, match="points must be at least 4, got 3"):
        decimate(np.zeros(9), np.zeros(9), 3)


# -- smoothing


def test_an_average_of_parts_is_that_of_all_to_the_bit():
    values = np.array([np.nan, np.inf, 0.3, 0.1, np.nan, 7.0, 1e300, 2.0] * 9)
    average = MovingAverage(0.9)
    parts = [average.extend(part) for part in (values[:1], values[1:1], values[1:5], values[5:])]
    np.testing.assert_array_equal(np.concatenate(parts), smooth(values, 0.9))


@pytest.mark.parametrize("value", [1e-4, 1 / 3, -7.7e200])
def test_what_never_changes_is_its_own_average_to_the_bit(value):
    np.testing.assert_array_equal(smooth(np.full(500, value), 0.6), np.full(500, value), strict=True)


@pytest.mark.parametrize("weight", [0.0, 0.5, 0.99])
def test_smoothing_is_the_corrected_moving_average_of_what_is_finite(weight):
    values = np.random.default_rng(0).normal(size=700)
    values[[0, 300, 301, 699]] = np.nan, np.inf, -np.inf, np.nan
    expected, total, mass = [], 0.0, 0.0
    for value in values:
        total, mass = total * weight, mass * weight
        if np.isfinite(value):
            total, mass = total + value, mass + 1
        expected.append(total / mass if np.isfinite(value) else value)
    np.testing.assert_allclose(smooth(values, weight), expected, rtol=1e-9)


def test_a_smoothing_out_of_range_is_refused():
    assert smooth(np.zeros(0), 0.5).shape == (0,)
    with pytest.raises(ValueError, match=r"smoothing must be at least 0 and below 1, got 1\.0"):
        smooth(np.zeros(3), 1.0)


JSON = {"content-type": "application/json", "authorization": "Bearer secret"}


def test_marks_are_changed_with_a_token_and_told(root):
    client = Client(root, token="secret")
    trial = Trial(root / "a")
    path = f"/api/trial/{trial.id}/marks"
    status, _, body = client.get(path, JSON, json.dumps({"add": ["x", "y"], "note": "fine"}).encode())
    assert (status, json.loads(body)) == (200, {"tags": ["x", "y"], "note": "fine"})
    assert client.get(path, JSON, b'{"remove": ["x"]}')[0] == 200
    assert (trial.record.tags, trial.path.joinpath("marks.json").exists()) == (["y"], True)
    rows = {row["name"]: row for row in json.loads(client.get("/api/trials", JSON)[2])["trials"]}
    assert (rows["a"]["tags"], rows["a"]["note"], rows["b"]["tags"]) == (["y"], "fine", [])


@pytest.mark.parametrize(
    ("token", "headers", "body", "status", "said"),
    [
        (None, JSON, b"{}", 403, "with a token only"),
        ("secret", {"content-type": "application/json"}, b"{}", 401, "a token is needed"),
        ("secret", {**JSON, "content-type": "text/plain"}, b"{}", 415, "must be application/json"),
        ("secret", JSON, b"x" * 70_000, 413, "at most 65536 bytes"),
        ("secret", JSON, b"[" * 60_000, 400, "must be a JSON object"),
        ("secret", JSON, b'{"add": "x"}', 400, "must be a JSON object"),
        ("secret", JSON, b'{"state": "finished"}', 400, "must be a JSON object"),
        ("secret", JSON, b'{"add": ["two words"]}', 400, "a tag must be one word"),
    ],
)
def test_marks_that_are_none_are_refused_and_nothing_is_changed(root, token, headers, body, status, said):
    trial = Trial(root / "a")
    answer = Client(root, token=token).get(f"/api/trial/{trial.id}/marks", headers, body)
    assert (answer[0], said in answer[2].decode()) == (status, True)
    assert not (trial.path / "marks.json").exists()


def test_curves_lie_over_another_metric_at_their_steps(tmp_path):
    with Trial(tmp_path / "t", **HOW) as trial:
        for step in range(6):
            trial.log(step, {"loss": 1.0 - step} | ({"epoch": step / 4} if step in (0, 4) else {}))
    client = Client(tmp_path)
    ((_, x, y),) = client.curves(f"id={trial.id}&key=loss&x=by:epoch&from=0")
    assert x[:5].tolist() == [0, 0.25, 0.5, 0.75, 1.0]  # between those that were logged, and none beyond
    assert y[:5].tolist() == [1, 0, -1, -2, -3]
    assert client.curves(f"id={trial.id}&key=loss&x=by:nothing") == []
    assert client.get(f"/api/curves?id={trial.id}&key=loss&x=epoch")[0] == 400


def test_a_search_tells_what_matters_and_writes_nothing_for_it(tmp_path):
    def objective(trial) -> float:
        trial.hp.lin("idle", 0, 1)
        return trial.hp.lin("rate", 0, 1) ** 2

    search = Experiment(tmp_path / "search", search="random")
    search.run(10, objective, progress=False)
    client, before = Client(tmp_path), (search.path / "optuna.log").read_bytes()
    shares = client.json(f"/api/importance/{search.id}")["parameters"]
    assert shares == optuna.importance.get_param_importances(search.study)
    assert list(shares) == ["rate", "idle"]
    assert (search.path / "optuna.log").read_bytes() == before
    few = Experiment(tmp_path / "few", search="random")
    few.run(2, objective, progress=False)
    assert client.json(f"/api/importance/{few.id}") == {"reason": "8 scored trials are needed, there are 2"}
    assert client.get("/api/importance/nothing")[0] == 404
