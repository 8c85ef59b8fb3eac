"""The supervisor of workers, over workers that are threads of this process."""

import pickle
import queue
import threading

import pytest

from ai.data import Datagen, WorkerFailedError
from ai.data.generation import source_worker
from ai.data.workers.in_process import InProcess
from ai.data.workers.supervisor import MAX_DEATHS, Supervisor
from tests.data.helpers_data import Walk, wait_until


def answer(link):
    """Doubles numbers; dies of text."""
    while True:
        message = link.inbox.get()
        if isinstance(message, str):
            raise RuntimeError(message)
        link.send(("doubled", 2 * message))


@pytest.fixture(autouse=True)
def nobody_looks_but_the_test(monkeypatch):
    """The thread that looks whether workers go on would add what the machine stood still to what a test says."""
    monkeypatch.setattr(Supervisor, "_watch", lambda self, turn_s: None)


class Doubling:
    """A job that keeps what it asked for until it is answered."""

    def __init__(self, n, function=answer, engine=None, replaces=True, stall_timeout_s=None):
        self.open = {place: [] for place in range(n)}
        self.answers = []
        self.deaths = []
        self.n_changes = 0
        self.replaces = replaces
        self.engine = engine or InProcess()
        self.workers = Supervisor(
            "doubling", lambda place: pickle.dumps(function), n, self, self.engine, stall_timeout_s, self.is_busy
        )

    def ask(self, place, number):
        with self.workers.changed:
            self.open[place].append(number)
            post = self.workers.post(place)
        if post is not None:
            post.send(number)

    def is_busy(self, place):
        return bool(self.open[place])

    def send_again(self, place):
        return self.open[place]

    def on_message(self, place, message):
        with self.workers.changed:
            self.open[place].remove(message[1] // 2)
            self.answers.append((place, message[1]))
        return True

    def on_death(self, place, how):
        self.deaths.append((place, how))
        return self.replaces

    def on_change(self):
        self.n_changes += 1


def test_a_worker_that_dies_is_replaced_and_told_again():
    job = Doubling(2)
    job.workers.start()
    for number in (1, 2):
        job.ask(0, number)
    wait_until(lambda: len(job.answers) == 2)
    with job.workers.changed:  # nobody is replaced before this is noted
        job.engine.workers[0].send("a fault")
        job.open[0].append(3)
        job.open[1].append(4)
        other = job.workers.post(1)
    other.send(4)
    wait_until(lambda: len(job.answers) == 4)
    assert sorted(job.answers) == [(0, 2), (0, 4), (0, 6), (1, 8)]
    assert job.deaths == [(0, "raised RuntimeError: a fault")]
    assert job.workers.n_deaths == 1
    wait_until(lambda: job.n_changes == 1)
    threads = [worker.thread for worker in job.engine.workers]
    job.workers.close()
    wait_until(lambda: not any(thread.is_alive() for thread in threads))
    with pytest.raises(RuntimeError, match="this loader is closed"):
        job.workers.raise_if_over()
    assert job.workers.pids == []


def dies_at_once(link):
    raise RuntimeError("at once")


def test_workers_that_always_die_are_given_up():
    job = Doubling(2, dies_at_once)
    job.workers.start()
    wait_until(lambda: job.workers.broken is not None)
    n = MAX_DEATHS + 2 + 1
    with pytest.raises(
        WorkerFailedError, match=rf"doubling workers died {n} times in a row, the last raised .* at once"
    ):
        job.workers.raise_if_over()


def test_work_done_ends_a_row_of_deaths():
    job = Doubling(1)
    job.workers.start()
    for number in range(10):
        job.ask(0, number)
        wait_until(lambda number=number: len(job.answers) == number + 1)
        job.engine.workers[-1].send("again")
        wait_until(lambda number=number: job.n_changes == number + 1)
    assert job.workers.n_deaths == 10
    assert job.workers.broken is None
    job.workers.close()


def test_one_that_is_done_is_not_replaced():
    job = Doubling(1, replaces=False)
    job.workers.start()
    job.engine.workers[0].send("done")
    wait_until(lambda: job.n_changes == 1)
    assert len(job.engine.workers) == 1
    assert job.workers.pids == []
    job.workers.close()


SILENT, HEARD = threading.Event(), threading.Event()


def silent(link):
    """Answers the first of its kind only when it is let go, and says before where it is."""
    from tests.data.workers.test_supervisor import HEARD, SILENT  # of this process: an event does not travel

    number = link.inbox.get()
    if not HEARD.is_set():
        link.send(("doing", "step (env.py:3)"))
        HEARD.set()
        SILENT.wait()
    link.send(("doubled", 2 * number))
    link.wait_for_end()


def test_a_worker_that_lives_and_gives_nothing_is_replaced_and_nothing_of_it_comes_later(recwarn):
    SILENT.clear()
    HEARD.clear()
    job = Doubling(1, silent, stall_timeout_s=100.0)
    job.workers.start()
    job.workers._look(1000.0)  # with nothing to do it may be silent
    job.ask(0, 1)
    assert HEARD.wait(100)
    job.workers._look(119.0)  # before its first sign it imports and compiles
    assert job.deaths == []
    job.workers._look(2.0)
    [(place, how)] = job.deaths
    assert place == 0
    assert how.startswith("on localhost (process ")
    assert "gave nothing for 120 s (stall_timeout_s: raise it if one piece of work may take longer)" in how
    assert how.endswith(" and was in step (env.py:3)")
    assert [str(warning.message) for warning in recwarn] == [f"a doubling worker {how}: another takes its place"]
    wait_until(lambda: job.answers)
    SILENT.set()
    late = job.engine.workers[0].thread
    late.join(100)
    assert not late.is_alive()
    assert job.answers == [(0, 2)]
    assert job.workers.n_deaths == 1
    job.workers.close()


class SlowToEnd(InProcess):
    """Its workers end when they are let go."""

    def __init__(self):
        super().__init__()
        self.closing, self.go_on = threading.Event(), threading.Event()

    def start(self, *arguments):
        worker = super().start(*arguments)
        close = worker.close

        def wait_and_close():
            self.closing.set()
            assert self.go_on.wait(100)
            close()

        worker.close = wait_and_close
        return worker


@pytest.mark.filterwarnings("ignore:a doubling worker")
def test_who_closes_waits_for_a_worker_that_hung_and_was_replaced():
    engine = SlowToEnd()
    job = Doubling(1, engine=engine, stall_timeout_s=100.0)
    job.workers.start()
    job.open[0].append(1)
    job.workers._look(121.0)
    assert engine.closing.wait(100)
    engine.go_on.set()
    job.workers.close()  # before it is let go it waits as long as `close` of the worker does
    assert not any(thread.is_alive() for thread in job.workers._ending)
    assert all(worker._link.ended for worker in engine.workers)


@pytest.mark.parametrize(("limit_s", "turn_s"), [(1e-9, 0.05), (4.0, 1.0), (1e300, 5.0)])
def test_workers_are_looked_at_neither_all_the_time_nor_never(monkeypatch, limit_s, turn_s):
    turns = queue.SimpleQueue()
    monkeypatch.setattr(Supervisor, "_watch", lambda self, turn_s: turns.put(turn_s))
    job = Doubling(1, stall_timeout_s=limit_s)
    job.workers.start()
    assert turns.get(timeout=100) == turn_s
    job.workers.close()


def test_a_worker_is_not_silent_while_what_it_said_is_dealt_with():
    job = Doubling(1, stall_timeout_s=100.0)
    job.workers.start()
    job.open[0].append(7)
    with job.workers.changed:  # the job cannot take the answer
        job.workers.post(0).is_heard = True
        job.workers._look(1000.0)
        job.workers.post(0).is_heard = False
    assert job.deaths == []
    job.workers._look(60.0)
    job.ask(0, 1)
    wait_until(lambda: job.answers and not job.workers.post(0).is_heard)
    job.workers._look(60.0)  # 60 s after its answer, not 120
    assert job.deaths == []
    job.workers.close()


class Full(InProcess):
    """Starts so many workers and no more."""

    def __init__(self, n):
        super().__init__()
        self.n = n

    def start(self, *arguments):
        if len(self.workers) == self.n:
            raise OSError("no process left")
        return super().start(*arguments)


def test_what_cannot_be_started_is_reported():
    job = Doubling(2, engine=Full(1))
    with pytest.raises(OSError, match="no process left"):
        job.workers.start()
    assert job.workers.closed
    job = Doubling(1, engine=Full(1))
    job.workers.start()
    job.engine.workers[0].send("gone")
    wait_until(lambda: job.workers.broken is not None)
    with pytest.raises(WorkerFailedError, match=r"a doubling worker raised .* gone, and no other could be started: no"):
        job.workers.raise_if_over()


class AtOnce(InProcess):
    """Says within `start`, in the thread that calls it, how its worker ended."""

    def start(self, payload, on_message, on_exit):
        on_exit("ended at once")


class Nothing(InProcess):
    def start(self, payload, on_message, on_exit):
        pass


@pytest.mark.parametrize(
    ("engine", "kind", "message"),
    [
        (
            AtOnce,
            RuntimeError,
            "an engine must call on_message and on_exit in a thread of the worker, not within start",
        ),
        (
            Nothing,
            TypeError,
            "the start of an engine must return a worker, and that of .*Nothing object .* returned None",
        ),
    ],
)
def test_an_engine_that_breaks_its_contract_is_told_so_and_nobody_waits(engine, kind, message):
    job, raised = Doubling(1, engine=engine()), []

    def start():
        with pytest.raises(kind, match=message):
            job.workers.start()
        raised.append(True)

    thread = threading.Thread(target=start, daemon=True)
    thread.start()
    wait_until(lambda: not thread.is_alive())
    assert raised


def refuses(link):
    link.send(("failed", LookupError("not here")))
    link.wait_for_end()


def test_a_failure_told_by_a_worker_ends_the_work():
    job = Doubling(1, refuses)
    job.workers.start()
    wait_until(lambda: job.n_changes == 1)
    with pytest.raises(LookupError, match="not here"):
        job.workers.raise_if_over()
    job.workers.close()


class DiesFirst(InProcess):
    """Its first worker is gone before `start` has returned."""

    def start(self, payload, on_message, on_exit):
        worker = super().start(payload, on_message, on_exit)
        if len(self.workers) == 1:
            worker.close()
            thread = threading.Thread(target=on_exit, args=("exited with code 1",))
            thread.start()
            thread.join(0.2)  # time enough to be overlooked
        return worker


def test_a_worker_that_dies_before_it_is_known_is_replaced():
    job = Doubling(1, engine=DiesFirst())
    job.workers.start()
    wait_until(lambda: job.n_changes == 1)
    job.ask(0, 5)
    wait_until(lambda: job.answers == [(0, 10)])
    job.workers.close()


def test_generated_data_come_from_any_engine():
    engine = InProcess()
    with Datagen(Walk()).loader(8, n_workers=2, engine=engine) as loader:
        version = loader.update_params({"w": 3.0})
        wait_until(lambda: (next(loader)["version"] == version).any())
        assert len(engine.workers) == 2
        assert loader.stats()["worker_deaths"] == 0


class Blocked(Walk):
    """Makes three episodes, and then nothing until it is let go."""

    def __next__(self):
        from tests.data.workers.test_supervisor import LET_GO  # of this process: an event does not travel

        if self.made == 3:
            LET_GO.wait()
        return super().__next__()


LET_GO = threading.Event()


def test_chunks_that_were_asked_for_and_never_came_are_counted(monkeypatch):
    monkeypatch.setattr(source_worker, "_CHUNK_STEPS", 1)
    LET_GO.clear()
    engine = InProcess()
    with Datagen(Blocked()).loader(2, n_workers=2, engine=engine) as loader:
        wait_until(lambda: loader.stats()["episodes"] == 6 and loader._fleet._under_way == [2, 2])
        assert loader.stats()["dropped_chunks"] == 0
    assert loader.stats()["dropped_chunks"] == 4
    LET_GO.set()
    for worker in engine.workers:
        worker.thread.join(60)
        assert not worker.thread.is_alive()


def test_a_source_that_hangs_is_replaced_with_a_seed_of_its_own(monkeypatch):
    monkeypatch.setattr(source_worker, "_CHUNK_STEPS", 1)
    LET_GO.clear()
    engine = InProcess()
    with Datagen(Blocked()).loader(2, n_workers=1, engine=engine) as loader:
        fleet = loader._fleet
        wait_until(lambda: loader.stats()["episodes"] == 3 and fleet._under_way == [2])
        wait_until(lambda: not fleet._workers.post(0).is_heard)
        fleet._workers._look(1700.0)
        assert loader.stats()["worker_deaths"] == 0
        with pytest.warns(UserWarning, match=r"gave nothing for 1800 s \(stall_timeout_s: .*: another takes its"):
            fleet._workers._look(1700.0)
        wait_until(lambda: loader.stats()["episodes"] == 6)
        stats = loader.stats()
        assert (stats["worker_deaths"], stats["dropped_chunks"]) == (1, 2)
        with loader.locked():
            assert len(set(loader.buffer.column("action").tolist()) - {0}) == 6 * 4  # no episode twice
    LET_GO.set()
    for worker in engine.workers:
        worker.thread.join(100)
        assert not worker.thread.is_alive()


def test_an_engine_without_workers_to_start_is_refused():
    with pytest.raises(ValueError, match=r"n_workers \(0\) must be at least 1 with an engine: it starts them"):
        Datagen(Walk()).loader(8, n_workers=0, engine=InProcess())
    for engine in (InProcess, "ray"):
        with pytest.raises(TypeError, match=r"engine must start workers, as ai.data.Ray\(\) does, got"):
            Datagen(Walk()).loader(8, n_workers=1, engine=engine)
