import errno
import fcntl
import json
import os
import subprocess
import sys
import threading
import time
import types

import pytest

from ai.lab.files import lock as lock_module
from ai.lab.files.lock import Lock, holder_of
from ai.lab.search.optuna_storage import FileLock

ELSEWHERE = {"host": "elsewhere", "pid": 7, "kernel": "another"}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "owner.json"


@pytest.fixture
def fast(monkeypatch):
    monkeypatch.setattr(lock_module, "BEAT_S", 0.1)
    monkeypatch.setattr(lock_module, "_hearts", lock_module._Hearts())  # whose thread beats at this pace from its start


@pytest.fixture
def patient(monkeypatch, fast):
    """Who watches a live holder's stamp waits until it moves, however long the system lets the holder stand still."""
    sleep = time.sleep
    clock = types.SimpleNamespace(time=time.time, monotonic=lambda: 0.0, sleep=lambda seconds: sleep(0.001))
    monkeypatch.setattr(lock_module, "time", clock)
    return clock


@pytest.fixture
def no_locks(monkeypatch):
    def flock(descriptor, operation) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)


def beat(path, stop: threading.Event) -> threading.Thread:
    """Stamps a file as its holder on another machine would."""

    def run() -> None:
        while not stop.wait(0.005):
            os.utime(path)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_of_two_one_has_it_and_names_itself(path):
    first, second = Lock(path), Lock(path)
    assert first.try_acquire() is None
    assert second.try_acquire()["pid"] == os.getpid()
    assert holder_of(path)["host"] == os.uname().nodename
    first.release()
    first.release()
    assert holder_of(path) is None
    assert second.try_acquire() is None
    second.release()


def test_without_locks_of_the_kernel_there_is_one_holder_too(path, no_locks, patient):
    first, second = Lock(path), Lock(path)
    assert first.try_acquire() is None
    assert second.try_acquire()["pid"] == os.getpid()  # its stamp was seen to move
    assert holder_of(path) is not None
    first.release()
    assert not path.exists()
    assert second.try_acquire() is None
    second.release()


def test_without_locks_of_the_kernel_a_dead_process_is_found_out_at_once(path, no_locks):
    child = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    about = {"host": "x", "pid": int(child.stdout), "kernel": lock_module._kernel(), "space": lock_module._pid_space()}
    path.write_text(json.dumps(about))
    assert holder_of(path) is None
    lock = Lock(path)
    assert lock.try_acquire() is None
    lock.release()


def test_many_threads_without_locks_of_the_kernel_never_hold_it_together(path, no_locks, patient):
    inside, most, done = [], [], []

    def work() -> None:
        lock = Lock(path)
        while lock.try_acquire() is not None:
            pass
        inside.append(1)
        most.append(len(inside))
        inside.pop()
        lock.release()
        done.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    [thread.start() for thread in threads]
    [thread.join(100) for thread in threads]
    assert len(done) == 4
    assert max(most) == 1


@pytest.mark.parametrize("ahead_s", [-120, 0, 120])
def test_a_live_holder_on_another_machine_is_refused_whatever_its_clock_says(path, patient, ahead_s):
    path.write_text(json.dumps(ELSEWHERE))
    patient.time = lambda: time.time() + ahead_s
    stop = threading.Event()
    thread = beat(path, stop)
    try:
        assert Lock(path).try_acquire() == ELSEWHERE
        assert holder_of(path) == ELSEWHERE
    finally:
        stop.set()
        thread.join()


def test_a_holder_on_another_machine_whose_stamp_stands_still_is_dead(path, fast):
    path.write_text(json.dumps(ELSEWHERE))
    assert holder_of(path) == ELSEWHERE  # seen for the first time: it may live
    lock = Lock(path)
    assert lock.try_acquire() is None
    lock.release()


def test_who_only_looks_believes_a_stamp_until_it_was_seen_to_stand_still(path, fast):
    path.write_text(json.dumps(ELSEWHERE))
    assert holder_of(path) == ELSEWHERE
    deadline = time.monotonic() + 100
    while holder_of(path) is not None:
        assert time.monotonic() < deadline
    os.utime(path, (time.time() + 60,) * 2)
    assert holder_of(path) == ELSEWHERE  # it moved
    os.utime(path, (time.time() - 3600,) * 2)
    assert holder_of(path) is None  # nobody's clock is an hour off


def test_a_changed_host_name_on_the_same_kernel_blocks_nobody(path):
    path.write_text(json.dumps({"host": "old-pod", "pid": 1, "kernel": lock_module._kernel(), "space": "pid:[1]"}))
    assert holder_of(path) is None
    lock = Lock(path)
    assert lock.try_acquire() is None
    lock.release()


def test_the_holder_alone_stamps_its_file_until_it_gives_up(path, fast):
    lock = Lock(path)
    assert lock.try_acquire() is None
    deadline = time.monotonic() + 100
    for _ in range(3):
        os.utime(path, (0, 0))
        while path.stat().st_mtime == 0:
            assert time.monotonic() < deadline, "no heartbeat"
    (descriptor,) = {lock._descriptor} & lock_module._hearts._descriptors
    lock.release()
    assert descriptor not in lock_module._hearts._descriptors


def test_a_lock_that_is_removed_while_it_is_taken_is_taken_anew(path, monkeypatch):
    real, removed = fcntl.flock, []

    def flock(descriptor, operation) -> None:
        real(descriptor, operation)
        if not removed:
            removed.append(path.unlink())

    monkeypatch.setattr(fcntl, "flock", flock)
    lock = Lock(path)
    assert lock.try_acquire() is None
    assert json.loads(path.read_bytes())["pid"] == os.getpid()
    lock.release()


def test_a_forked_child_neither_keeps_the_lock_nor_closes_anything_of_its_own(path):
    lock = Lock(path)
    assert lock.try_acquire() is None
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:  # pragma: no cover  (the child)
        ours = os.open("/dev/null", os.O_RDONLY)  # takes the number that was closed
        held = lock.is_held
        lock.release()
        os.fstat(ours)
        os.write(write, b"1" if not held else b"0")
        os._exit(0)
    assert os.read(read, 1) == b"1"
    os.waitpid(pid, 0)
    os.close(read), os.close(write)
    assert Lock(path).try_acquire() is not None  # the parent holds it still
    lock.release()


def test_a_searchs_lock_works_without_locks_of_the_kernel_too(path, no_locks, patient):
    with FileLock(path).held():
        with pytest.raises(TimeoutError, match=r"was held by another process for 0\.01 s"):
            FileLock(path, timeout_s=0.01).acquire()
    with FileLock(path, timeout_s=100).held():
        pass
