import base64
import json
import re

import numpy as np
import pytest
import torch

from ai.lab import Trial
from ai.lab.cli import main
from ai.lab.page.publish import POINTS, publish
from ai.lab.page.server import describe_trial

HOW = {"system_interval_s": None}


@pytest.fixture
def root(tmp_path):
    with Trial(tmp_path / "study" / "a", config={"lr": 0.1}, **HOW) as trial:
        print("printed here")
        for step in range(3 * POINTS):
            trial.log(step, {"loss": 9.0 if step == 4321 else 1 / (step + 1)})
        trial.save_sample(7, torch.zeros(1, 1, 4, 4))
    return tmp_path / "study"


def read(path):
    """Returns what a script of the page holds."""
    return json.loads(json.loads(re.fullmatch(r"[^=]+ = JSON.parse\((.*)\);\n", path.read_text())[1]))


def data(out):
    """Returns the folder of the data that a published page shows."""
    (name,) = re.findall(r'src="([^"]+)/trials.js"', (out / "index.html").read_text())
    return out / name


def test_a_published_curve_keeps_its_steps_and_every_peak(root, tmp_path):
    assert publish(root, tmp_path / "out") == 1
    answers = read(data(tmp_path / "out") / "0.js")
    steps, times, values = (np.frombuffer(base64.b64decode(one), "<f8") for one in answers["curves"]["metrics"]["loss"])
    assert len(steps) == len(times) == len(values) <= POINTS + 10
    assert values.max() == 9.0
    assert values.tolist() == [9.0 if step == 4321 else 1 / (step + 1) for step in steps]
    assert (tmp_path / "out" / answers["pictures"]["sample/7"]).read_bytes()[:4] == b"\x89PNG"
    assert "printed here" in answers["log"]


@pytest.mark.parametrize("flags", [[], ["--results-only"]])
def test_where_it_ran_is_left_out_and_how_too_when_only_results_are_wanted(root, tmp_path, flags):
    assert main(["publish", str(root), str(tmp_path / "out"), *flags]) == 0
    assert str(tmp_path) not in "".join(path.read_text() for path in data(tmp_path / "out").glob("*.js"))
    answers = read(data(tmp_path / "out") / "0.js")
    (session,) = answers["details"]["meta"]["sessions"]
    assert {"host", "user", "cwd", "pid"}.isdisjoint(session)
    assert ("argv" in session, answers["log"] != "") == (not flags, not flags)


def test_a_page_published_again_gives_way_and_nothing_else_does(root, tmp_path):
    out = tmp_path / "out"
    publish(root, out)
    (out / "CNAME").write_text("mine")
    with Trial(root / "b", **HOW) as trial:
        trial.log(0, {"loss": 1.0})
    assert publish(root, out) == 2
    assert len(read(data(out) / "trials.js")["table"]["trials"]) == 2
    assert (out / "CNAME").read_text() == "mine"
    before = sorted(tmp_path.rglob("*"))
    for folder, message in ((root, "must be a new or empty folder"), (root / "a" / "out", "lies in the folder of the")):
        with pytest.raises(ValueError, match=message):
            publish(root, folder)
        assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(ValueError, match="there is no trial"):
        publish(tmp_path / "nothing", tmp_path / "other")


def test_one_damaged_trial_is_said_and_the_page_before_stays_until_the_new_one_is_whole(root, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with Trial(root / "b", **HOW) as trial:
        trial.log(0, {"loss": 1.0})
    publish(root, out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    picture = root / "a" / "samples" / "000000007.png"
    picture.unlink()
    picture.symlink_to(tmp_path / "nowhere")

    def fail(*_) -> None:
        raise OSError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr("ai.lab.page.publish._write_script", fail)
        with pytest.raises(OSError, match="the disk is full"):
            publish(root, out)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    real = describe_trial
    monkeypatch.setattr(
        "ai.lab.page.publish.describe_trial", lambda catalog, one: fail() if one == trial.id else real(catalog, one)
    )
    assert publish(root, out) == 2
    told = read(data(out) / "trials.js")
    rows = {row["name"]: row["problems"] for row in told["table"]["trials"]}
    assert rows == {"a": ["sample/7 cannot be read"], "b": ["not published whole: OSError"]}
    assert list(told["places"]) == [Trial(root / "a", **HOW).id]


class Killed(BaseException):
    pass


def test_whenever_it_is_killed_a_whole_page_stays_and_the_next_one_tidies_up(root, tmp_path, monkeypatch):
    from ai.lab.page import publish as module

    out = tmp_path / "out"
    publish(root, out)
    before = data(out)
    pictures = [read(before / "0.js")["pictures"]["sample/7"]]
    (out / "data").mkdir()
    (out / "data" / "mine.csv").write_text("1")  # the user's, though it is called as ours once was
    moments = ["os.rename", *(f"write_atomic {number}" for number in range(9))]
    for moment in moments:
        left = int(moment.split()[1]) if " " in moment else None

        def fail(*_) -> None:
            raise Killed

        def write(path, content, *, write=module.write_atomic) -> None:
            nonlocal left
            if left == 0:
                raise Killed
            left = None if left is None else left - 1
            write(path, content)

        with monkeypatch.context() as patch:
            patch.setattr(module, "write_atomic", write)
            patch.setattr(module.shutil, "rmtree", lambda *_, **how: None)  # who is killed tidies nothing up
            if left is None:
                patch.setattr(module.os, "rename", fail)
            with pytest.raises(Killed):
                publish(root, out)
        assert data(out) == before, moment
        assert read(before / "trials.js")["data"] == before.name
        assert (out / pictures[0]).is_file()
    assert len(list(out.glob("*data-*"))) > 2
    publish(root, out)
    assert sorted(path.name for path in out.glob("*data*")) == sorted(["data", data(out).name])
    assert sorted(path.name for path in out.iterdir() if path.name.startswith(".")) == []
    assert data(out) != before
    assert (out / read(data(out) / "0.js")["pictures"]["sample/7"]).is_file()


def test_two_never_publish_to_one_folder_at_once(root, tmp_path, monkeypatch):
    """Each would tidy up what the other one's page shows."""
    out, real, refused = tmp_path / "out", describe_trial, []

    def describe(catalog, identity):
        with pytest.raises(RuntimeError, match="is being published to by process"):
            publish(root, out)
        refused.append(sorted(path.name for path in out.iterdir()))
        return real(catalog, identity)

    with monkeypatch.context() as patch:
        patch.setattr("ai.lab.page.publish.describe_trial", describe)
        assert publish(root, out) == 1
    assert len(refused) == 1
    assert (data(out) / "0.js").is_file()
    publish(root, out)
    assert not (out / ".publishing").exists()


def test_the_script_imports_nothing_and_has_each_module_before_its_users(root, tmp_path):
    publish(root, tmp_path / "out")
    script = (tmp_path / "out" / "page.js").read_text()
    assert not re.search(r"^(import|export) ", script, re.MULTILINE)
    used = re.findall(r"const \{.*\} = (module_\w+);", script)
    assert len(used) > 10
    assert all(script.index(f"const {name} = (() =>") < script.index(f"}} = {name};") for name in used)
