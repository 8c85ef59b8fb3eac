"""Preprocess in worker processes: what comes back, and what a death costs."""

import os
import signal
import subprocess
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from ai.data import Dataset, PreprocessError, WorkerFailedError
from ai.data.loading import preprocess_pool
from tests import warm_python
from tests.data.helpers_data import is_running, wait_until


def double(value):
    return np.array([2.0 * int(value)])


def die_on_seven(value):
    if value == "7":
        os.kill(os.getpid(), signal.SIGKILL)
    return double(value)


def fail_on_seven(value):
    if value == "7":
        raise KeyError("no seven")
    return double(value)


def ragged(value):
    return np.zeros(int(value) + 1)


def numbers(preprocess, n=12):
    return Dataset([str(i) for i in range(n)], preprocess)


@pytest.mark.parametrize("n_workers", [0, 1, 2])
def test_a_failing_sample_is_named(n_workers):
    with numbers(fail_on_seven).loader(4, n_workers=n_workers) as loader:
        iterator = iter(loader)
        next(iterator)
        with pytest.raises(
            PreprocessError, match=r"preprocess failed on sample 7 \('7'\): KeyError: 'no seven'"
        ) as caught:
            next(iterator)
        if n_workers:
            assert "fail_on_seven" in "".join(caught.value.__notes__)
        assert loader.state_dict()["batch"] == 1  # the batch that failed stays the next one


@pytest.mark.parametrize("n_workers", [0, 1])
def test_ragged_samples_are_refused(n_workers):
    with (
        numbers(ragged).loader(4, n_workers=n_workers) as loader,
        pytest.raises(ValueError, match=r"one shape and dtype, got \(1,\) float64 for the first and \(2,\)"),
    ):
        next(iter(loader))


def test_a_killed_worker_is_replaced_and_nothing_is_lost():
    with numbers(double, 60).loader(2, n_workers=2) as loader:
        rows = []
        for k, batch in enumerate(loader):
            rows += batch[:, 0].tolist()
            if k in (3, 9, 20):
                n_deaths = loader._producer.n_deaths + 1
                os.kill(loader._producer.pids[0], signal.SIGKILL)
                wait_until(lambda: loader._producer.n_deaths == n_deaths and len(loader._producer.pids) == 2)  # noqa: B023
        assert rows == [2.0 * i for i in range(60)]
        assert loader._producer.n_deaths == 3


def test_a_sample_that_kills_every_worker_is_reported():
    with numbers(die_on_seven).loader(4, n_workers=1, prefetch=1) as loader:
        iterator = iter(loader)
        next(iterator)
        with pytest.raises(
            WorkerFailedError, match=r"4 workers died on the batch of the samples \[4, 5, 6, 7\].*SIGKILL"
        ):
            next(iterator)


def test_a_worker_that_cannot_start_reports_why():
    class Unloadable:
        def __reduce__(self):
            return __import__, ("a_module_that_is_not_there",)

        def __call__(self, value):
            return value

    with numbers(Unloadable()).loader(4, n_workers=1) as loader:
        for _ in range(2):  # and goes on reporting it
            with pytest.raises(ModuleNotFoundError, match="a_module_that_is_not_there"):
                next(iter(loader))


def test_what_cannot_be_pickled_is_refused_at_once():
    lock = __import__("threading").Lock()
    with pytest.raises(TypeError, match=r"a worker process cannot be given this function or source: .*lock"):
        numbers(lambda value: (lock, value)).loader(4, n_workers=1)


@pytest.mark.usefixtures("data_workers_start_warm")
def test_large_arrays_and_tensors_travel_both_ways():
    torch = pytest.importorskip("torch")
    x = torch.randn(8, 300_000)
    with Dataset({"x": x}, {"x": lambda v: v + 1}).loader(4, n_workers=1) as loader:
        assert torch.equal(torch.cat([b["x"] for b in loader]), x + 1)


@pytest.mark.usefixtures("data_workers_start_warm")
def test_what_a_dying_worker_wrote_into_its_samples_is_not_seen_again(tmp_path):
    torch = pytest.importorskip("torch")
    killed = tmp_path / "killed"

    def double_in_place(x):
        if x.mul_(2)[0] == 6 and not killed.exists():
            killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return x

    x = torch.arange(8.0)[:, None].repeat(1, 20_000)
    with Dataset(x, double_in_place).loader(4, n_workers=1) as loader:
        batches = list(loader)
        assert [batch[:, -1].tolist() for batch in batches] == [[0, 2, 4, 6], [8, 10, 12, 14]]
        assert loader._producer.n_deaths == 1
        assert all(channel_of(loader)._received._memories.values())  # they came by shared memory
    assert x[3, 0] == 3
    assert killed.exists()


def channel_of(loader):
    return loader._producer._tickets.workers.post(0).worker.channel


def test_forgotten_and_closed_loaders_leave_no_process():
    loader = numbers(double).loader(4, n_workers=2)
    pids = loader._producer.pids
    next(iter(loader))
    assert all(map(is_running, pids))
    del loader
    wait_until(lambda: not any(map(is_running, pids)))
    closed = numbers(double).loader(4, n_workers=1)
    closed.close()
    with pytest.raises(RuntimeError, match="this loader is closed"):
        next(iter(closed))


def test_a_forked_copy_of_the_parent_takes_no_worker_with_it():
    script = """
import os, sys
import numpy as np
from ai.data import Dataset
loader = Dataset([str(i) for i in range(40)], lambda s: np.array([int(s)])).loader(4, n_workers=1)
iterator = iter(loader)
next(iterator)
if os.fork() == 0:
    sys.exit()
os.wait()
print(sum(1 for _ in iterator), loader._producer.n_deaths)
"""
    command = [warm_python.executable(), "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    assert done.stdout == "9 0\n"


def test_loops_left_early_leave_no_batches_behind():
    with numbers(double, 24).loader(2, n_workers=1) as loader:
        for _ in range(5):
            next(iter(loader))
        assert len(loader._producer._tickets._entries) <= 1
        abandoned = iter(loader)
        next(abandoned)
        assert len(list(loader)) == 12
        del abandoned
        next(iter(loader))
        assert len(loader._producer._tickets._entries) <= 1


def test_a_worker_that_cannot_be_replaced_is_reported(monkeypatch):
    with numbers(double, 24).loader(2, n_workers=1) as loader:
        iterator = iter(loader)
        next(iterator)

        def no_process(*args, **options):
            raise OSError("no process left")

        monkeypatch.setattr(subprocess, "Popen", no_process)
        os.kill(loader._producer.pids[0], signal.SIGKILL)
        with pytest.raises(WorkerFailedError, match="SIGKILL, and no other could be started: no process left"):
            list(iterator)


def hang_on_seven(text):
    while text == "7":
        pass
    return np.array([int(text)])


def test_a_preprocess_that_never_returns_is_named_and_its_worker_replaced():
    with Dataset([str(i) for i in range(12)], hang_on_seven).loader(3, n_workers=1, timeout_s=300) as loader:
        iterator, tickets = iter(loader), loader._producer._tickets
        assert [next(iterator).flatten().tolist() for _ in range(2)] == [[0, 1, 2], [3, 4, 5]]
        stuck = loader._producer.pids
        wait_until(lambda: tickets._signs[0].sample == 7)
        tickets._timeout_s = 0.05
        with pytest.raises(
            WorkerFailedError, match=r"preprocess did not return within timeout_s \(0.05\) for sample 7$"
        ):
            next(iterator)
        wait_until(lambda: not any(map(is_running, stuck)))
        assert loader.state_dict()["batch"] == 2


def test_a_thread_that_never_returns_is_named_by_its_batch():
    gate = threading.Event()
    ds = Dataset(["a", "b"], lambda text: gate.wait(100) and np.zeros(1))
    with ds.loader(2, n_workers=1, worker="thread", timeout_s=0.05) as loader:
        with pytest.raises(WorkerFailedError, match=r"timeout_s \(0.05\) for one of the samples \[0, 1\]"):
            next(iter(loader))
        gate.set()
    with pytest.raises(ValueError, match="timeout_s must be positive, got 0"):
        ds.loader(2, timeout_s=0)
    with pytest.raises(ValueError, match="timeout_s needs workers: with n_workers=0 nobody is there"):
        ds.loader(2, n_workers=0, timeout_s=1)


def test_a_slow_preprocess_is_not_late_while_it_goes_on(monkeypatch):
    """By a clock on which each sample takes 0.8 s of the 0.9 s that it may."""
    now, late = [0.0], []
    monkeypatch.setattr(preprocess_pool, "time", SimpleNamespace(monotonic=lambda: now[0]))
    with numbers(double, 12).loader(12, n_workers=1, timeout_s=0.9) as loader:
        tickets = loader._producer._tickets
        hear = tickets.on_message

        def hear_later(place, message):
            (entry,) = tickets._entries.values()
            entry.since = 0.0
            now[0] += 0.8
            late.append(tickets._late(entry))
            return hear(place, message)

        monkeypatch.setattr(tickets, "on_message", hear_later)
        assert next(iter(loader)).flatten().tolist() == list(range(0, 24, 2))
    assert late == [None] * 13  # at each sample, and at the batch


def test_two_loaders_over_one_pool_do_not_mix():
    with numbers(double, 24).loader(2, n_workers=2) as whole:
        first, second = whole.shard(0, 2), whole.shard(1, 2)
        rows = [[a[:, 0].tolist(), b[:, 0].tolist()] for a, b in zip(first, second, strict=True)]
        assert rows[0] == [[0, 4], [2, 6]]
        assert len(rows) == 6


SCRIPT = """
import os, sys
import numpy as np
from ai.data import Dataset
import helper_beside
print("script ran")
def load(path):
    return np.array([helper_beside.factor * int(path)])
loader = Dataset([str(i) for i in range(100)], load).loader(4, n_workers=2)
print(*loader._producer.pids, flush=True)
print(next(iter(loader))[:, 0].tolist(), flush=True)
if len(sys.argv) > 1:
    sys.stdin.read()
"""


@pytest.fixture
def script(tmp_path):
    (tmp_path / "helper_beside.py").write_text("factor = 3\n")
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return path


def test_an_unguarded_script_runs_once_and_leaves_no_worker(script):
    command = [warm_python.executable(), script]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    lines = done.stdout.splitlines()
    assert lines[0] == "script ran"
    assert lines[2] == "[0, 3, 6, 9]"
    assert len(lines) == 3
    assert done.stderr == ""
    wait_until(lambda: not any(map(is_running, map(int, lines[1].split()))))


def test_no_worker_survives_a_parent_killed_by_sigkill(script):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    parent = warm_python.Process([sys.executable, script, "wait"], **pipes)
    with parent:
        assert parent.stdout.readline() == "script ran\n"
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        parent.stdout.readline()
        assert all(map(is_running, pids))
        parent.kill()
        wait_until(lambda: not any(map(is_running, pids)))


class Unreadable:
    def __reduce__(self):
        return int, ("no number",)


def test_samples_that_a_worker_cannot_read_are_said_and_the_worker_still_ends_with_its_loader():
    with Dataset([Unreadable()] * 4, double).loader(2, n_workers=1, worker="process") as loader:
        (pid,) = loader._producer.pids
        with pytest.raises(RuntimeError, match=r"cannot read what it was sent.*no number"):
            next(iter(loader))
    wait_until(lambda: not is_running(pid))
