import os
import subprocess
import sys

import pytest

from ai.lab.files.ownership import OwnedError, Owner, holder


def hold(folder) -> subprocess.Popen:
    script = (
        "import sys; from pathlib import Path; from ai.lab.files.ownership import Owner\n"
        f"owner = Owner(Path({str(folder)!r}))\nprint('held', flush=True)\nsys.stdin.read()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


@pytest.fixture
def other(tmp_path):
    process = hold(tmp_path)
    yield process
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()


def test_the_second_process_is_refused_with_the_firsts_pid_and_host(tmp_path, other):
    with pytest.raises(OwnedError, match=rf"is being written by process {other.pid} on {os.uname().nodename}"):
        Owner(tmp_path)
    assert holder(tmp_path)["pid"] == other.pid


def test_a_killed_holder_blocks_nobody(tmp_path, other):
    other.kill()
    other.wait()
    assert holder(tmp_path) is None
    with Owner(tmp_path):
        assert holder(tmp_path)["pid"] == os.getpid()
    assert holder(tmp_path) is None


def test_damaged_owner_file_still_refuses_while_locked(tmp_path, other):
    (tmp_path / "owner.json").write_text("{")
    with pytest.raises(OwnedError, match="is being written by another process"):
        Owner(tmp_path)
