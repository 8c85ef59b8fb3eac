"""The benchmark for a lent GPU: a row that fails costs itself, and no more of the few minutes."""

import importlib.util
import json
import shutil
import sys
import time
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "benchmarks"
STAND_IN = """
import time
from dataclasses import dataclass
from typing import Any


@dataclass
class Job:
    name: str
    run: Any
    seconds: float = 100.0


@dataclass
class Machine:
    device: str
    quick: bool
    deadline: float

    def time_left(self, seconds):
        return time.monotonic() + seconds < self.deadline

    def forget_peak(self):
        pass
"""


BROKEN = """
import os
import signal
import threading
from gpu_parts.machine import Job


def no_memory():
    raise RuntimeError("CUDA out of memory. Tried | to allocate")


def lost():
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


def lacking():
    import a_package_that_is_missing


def hangs():
    threading.Event().wait()


def rows(machine):
    yield Job("no memory", no_memory)
    yield Job("lost", lost)
    yield Job("lacking", lacking)
    yield Job("hangs", hangs, 0.05)
    yield Job("killed", lambda: os.kill(os.getpid(), signal.SIGKILL))
    yield Job("too long", lambda: {"x": 0}, 1e6)
    yield Job("measured", lambda: {"x": 1.5})
    raise ValueError("between two rows")
"""


@pytest.fixture
def gpu(tmp_path, monkeypatch):
    """The script beside parts that fail, in a folder of its own."""
    (tmp_path / "gpu_parts").mkdir()
    shutil.copy(SOURCE / "gpu.py", tmp_path)
    for name, text in {
        "__init__": "",
        "machine": STAND_IN,
        "saving": BROKEN,
        "inference": "import nothing_such",
    }.items():
        (tmp_path / "gpu_parts" / f"{name}.py").write_text(text)
    spec = importlib.util.spec_from_file_location("gpu_under_test", tmp_path / "gpu.py")
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    monkeypatch.setattr(made, "describe", lambda device: {"device": device})
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--parts", "saving", "inference", "--out", str(tmp_path / "out")])
    return made


def test_every_row_that_fails_says_so_and_the_others_are_measured(gpu, tmp_path, capsys, monkeypatch):
    for part in ("saving", "inference"):
        monkeypatch.setitem(gpu.LIMITS, part, 1000)  # seconds, of a machine with much else to do
    assert gpu.main() == 1
    whole = json.loads((tmp_path / "out" / "gpu.json").read_text())
    rows = {row["row"]: row for row in whole["parts"]["saving"]}
    assert list(rows) == ["no memory", "lost", "lacking", "hangs", "killed", "too long", "measured", "the rest"]
    assert rows["no memory"]["error"] == "RuntimeError: CUDA out of memory. Tried / to allocate"
    assert "illegal memory access" in rows["lost"]["error"]
    assert rows["lacking"]["error"] == "ModuleNotFoundError: No module named 'a_package_that_is_missing'"
    assert rows["hangs"]["error"] == rows["killed"]["error"] == "did not end"
    assert rows["too long"] == {"row": "too long", "left out": "no time"}
    assert rows["measured"] == {"row": "measured", "x": 1.5}
    assert rows["the rest"]["error"] == "ValueError: between two rows"
    assert whole["parts"]["inference"] == [
        {"row": "the rest", "error": "ModuleNotFoundError: No module named 'nothing_such'"}
    ]
    assert whole["troubles"] == {}
    assert "| measured | " in (tmp_path / "out" / "gpu.md").read_text()


def test_a_part_that_cannot_even_begin_ends(gpu, tmp_path):
    (tmp_path / "gpu_parts" / "machine.py").write_text("import os\nos._exit(7)\n")
    assert gpu.main() == 1
    whole = json.loads((tmp_path / "out" / "gpu.json").read_text())
    assert whole["troubles"]["saving"] == "ended with status 7; what was measured until then stands"


def test_the_limits_are_those_that_the_script_promises(gpu):
    assert sum(gpu.LIMITS.values()) <= 8 * 60
    assert set(gpu.TITLES) == {*gpu.LIMITS, *gpu.ON_REQUEST}
    for part in gpu.TITLES:
        assert (SOURCE / "gpu_parts" / f"{gpu.MODULES.get(part, part)}.py").is_file()


def test_a_dry_run_leaves_nothing_out_because_the_machine_is_slow(gpu, monkeypatch, tmp_path):
    left = {}
    monkeypatch.setattr(gpu, "measure", lambda part, args, until: left.update({part: until - time.monotonic()}))
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--quick", "--out", str(tmp_path / "out")])
    assert gpu.main() == 0
    assert left.keys() == gpu.LIMITS.keys()
    assert min(left.values()) > 500


@pytest.mark.parametrize(("device", "is_a_gpu"), [("cpu", False), ("cuda", True), ("mps", False)])
def test_no_number_of_another_device_is_taken_for_one_of_a_gpu(gpu, monkeypatch, tmp_path, device, is_a_gpu):
    monkeypatch.setattr(gpu, "measure", lambda part, args, until: None)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--quick", "--device", device, "--out", str(tmp_path / "out")])
    assert gpu.main() == 0
    text = (tmp_path / "out" / "gpu.md").read_text()
    assert text.startswith(f"# On {device}\n")
    assert ("Nothing here was measured on a GPU." in text) != is_a_gpu
    assert "A dry run: models of nothing, whose numbers say nothing." in text
