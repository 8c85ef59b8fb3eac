import json
import os
import subprocess
import sys
import time

import pytest

import ai.lab.files.ownership as owner_module
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


def test_a_live_holder_on_another_host_is_respected_until_its_heartbeat_stops(tmp_path):
    path = tmp_path / "owner.json"
    path.write_text(json.dumps({"host": "elsewhere", "pid": 7}))
    with pytest.raises(OwnedError, match="is being written by process 7 on elsewhere"):
        Owner(tmp_path)
    assert holder(tmp_path)["host"] == "elsewhere"
    os.utime(path, (time.time() - 3600,) * 2)
    assert holder(tmp_path) is None
    Owner(tmp_path).release()


def test_a_holder_tells_other_hosts_that_it_lives_until_it_gives_up(tmp_path, monkeypatch):
    monkeypatch.setattr("ai.lab.files.ownership.HEARTBEAT_S", 0.02)
    path = tmp_path / "owner.json"
    deadline = time.monotonic() + 60
    with Owner(tmp_path) as owner:
        owner.keep_beating()
        for _ in range(3):
            os.utime(path, (0, 0))
            while path.stat().st_mtime == 0:
                assert time.monotonic() < deadline, "no heartbeat"
    owner._beating.join(60)
    assert not owner._beating.is_alive()


def test_a_forked_child_does_not_keep_the_lock(tmp_path):
    owner = Owner(tmp_path)
    read, write = os.pipe()
    begun, begin = os.pipe()
    pid = os.fork()
    if pid == 0:  # pragma: no cover  (the child)
        os.close(write)
        os.write(begin, b"1")
        os.read(read, 1)  # lives until the parent has looked
        os._exit(0)
    os.read(begun, 1)  # a busy machine may run the child late
    owner._file.close()  # as the end of the process would, without its say
    try:
        with Owner(tmp_path):
            pass
    finally:
        for descriptor in (write, read, begun, begin):
            os.close(descriptor)
        os.waitpid(pid, 0)


def test_owners_that_gave_up_leave_nothing_behind(tmp_path, monkeypatch):
    handlers, before = [], len(owner_module._owners)
    monkeypatch.setattr(os, "register_at_fork", lambda **how: handlers.append(how))  # the interpreter keeps each
    for _ in range(3):
        with Owner(tmp_path):
            assert len(owner_module._owners) == before + 1
    assert handlers == []
    assert len(owner_module._owners) == before


def test_damaged_owner_file_still_refuses_while_locked(tmp_path, other):
    (tmp_path / "owner.json").write_text("{")
    with pytest.raises(OwnedError, match="is being written by another process"):
        Owner(tmp_path)
