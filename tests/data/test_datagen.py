"""Datagen: sources in and out of processes, pacing, parameters, deaths, resuming."""

import copy
import gc
import inspect
import os
import random
import signal
import subprocess
import sys
import threading
from itertools import islice

import numpy as np
import pytest
import torch

from ai.data import Datagen, DatagenLoader, Packed, ReplayBuffer, WorkerFailedError
from ai.data.generation.source_pool import Fleet
from tests import warm_python
from tests.data.helpers_data import Walk, is_running, wait_until


def assert_same(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a)


def test_without_workers_batches_are_a_function_of_the_seed():
    runs = [list(islice(Datagen(Walk()).loader(8, n_workers=0, seed=s), 20)) for s in (1, 1, 2)]
    assert_same(runs[0], runs[1])
    assert not torch.equal(runs[0][5]["action"], runs[2][5]["action"])


@pytest.mark.parametrize("replay_ratio", [None, 3.0])
def test_without_workers_resuming_at_every_batch_changes_nothing(replay_ratio):
    def make():
        buffer = ReplayBuffer(60, unroll=2, alpha=0.5)
        return Datagen(Walk(), lambda b, generator: {**b, "r": torch.rand(2, generator=generator)}).loader(
            8, n_workers=0, buffer=buffer, replay_ratio=replay_ratio
        )

    def drive(loader, first, last):
        for k in range(first, last):
            if k % 5 == 2:
                loader.update_params({"w": torch.tensor(float(k))})
            yield next(loader)

    reference = list(drive(make(), 0, 16))
    for stop in range(1, 16):
        before, after = make(), make()
        head = list(drive(before, 0, stop))
        state = copy.deepcopy(before.state_dict())
        after.load_state_dict(state)
        assert_same(head + list(drive(after, stop, 16)), reference)


def test_states_survive_a_safe_file(tmp_path):
    class Arrays(Walk):
        def state_dict(self):
            return {"all": (super().state_dict(), np.arange(3), np.float32(2))}

        def load_state_dict(self, state):
            inner, array, scalar = state["all"]
            assert (type(array), array.tolist(), type(scalar), scalar) == (np.ndarray, [0, 1, 2], np.float32, 2)
            super().load_state_dict(inner)

    loader = Datagen(Arrays()).loader(4, n_workers=0, buffer=ReplayBuffer(50, alpha=0.5))
    next(loader)
    loader.update_params({"w": np.float64(1.0)})
    torch.save(loader.state_dict(), tmp_path / "state.pt")
    other = Datagen(Arrays()).loader(4, n_workers=0, buffer=ReplayBuffer(50, alpha=0.5))
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert_same([next(loader) for _ in range(5)], [next(other) for _ in range(5)])


def test_workers_make_different_episodes_and_all_take_part():
    class Tagged(Walk):
        def __next__(self):
            return {**super().__next__(), "worker": self.worker}

    with Datagen(Tagged()).loader(32, n_workers=2, buffer=10_000) as loader:
        wait_until(lambda: set(next(loader)["worker"].tolist()) == {0, 1})
        with loader.locked():
            actions = {w: set() for w in (0, 1)}
            for w, a in zip(
                loader.buffer.column("worker").tolist(), loader.buffer.column("action").tolist(), strict=True
            ):
                actions[w].add(a)
    assert len(actions[0] & actions[1]) <= 2  # 0 fills the rows after an episode's last step


def test_replay_ratio_holds_both_sides_back():
    with Datagen(Walk(8)).loader(16, n_workers=2, replay_ratio=4.0) as loader:
        for _ in range(400):
            next(loader)
            figures = loader.stats()
            assert figures["reuse"] <= 4
        # the lead: 4 batches, and what each worker had on its way (2 chunks of at most 2048 steps and an episode)
        assert figures["steps"] <= 16 + (400 + 4) * 16 / 4 + 2 * 2 * 2056


def test_the_first_steps_are_not_paid_for_in_one_burst():
    with Datagen(Walk(1)).loader(4, n_workers=0, replay_ratio=2.0, min_steps=100) as loader:
        made = []
        for _ in range(4):
            assert loader.wants_params() == (loader.stats()["steps"] < 100 + 2 * len(made))
            next(loader)
            made.append(loader.stats()["steps"])
    assert made == [100, 102, 104, 106]


def test_workers_act_at_any_time():
    with (
        Datagen(Walk()).loader(4, n_workers=1) as loader,
        pytest.raises(ValueError, match=r"n_workers \(1\) act at any time"),
    ):
        loader.wants_params()


@pytest.mark.parametrize("n_workers", [0, 1])
def test_packed_episodes_and_their_returns_arrive(n_workers):
    class Two(Walk):
        def __next__(self):
            self.made += 1
            columns = {"obs": np.arange(7), "action": np.arange(7) % 3, "reward": np.ones(7, np.float32)}
            finished = {"episode_return": np.array([3.0, 5.0]), "episode_length": np.array([2.0, 3.0])}
            return Packed(columns, np.array([3, 4]), finished=finished)

    with Datagen(Two()).loader(5, n_workers=n_workers, buffer=8) as loader:
        batch, figures = next(loader), loader.stats()
    assert set(batch["obs"].tolist()) <= {0, 1, 3, 4, 5}
    assert batch["discount"].tolist() == [float(row not in (1, 5)) for row in batch["obs"].tolist()]
    assert (figures["return"], figures["length"]) == (4, 2.5)


def test_the_last_hundred_returns_are_averaged_and_survive_a_state():
    class Tells(Walk):
        def __next__(self):
            return {**super().__next__(), "episode_return": float(self.made)}

    def make():
        return Datagen(Tells()).loader(4, n_workers=0, buffer=50)

    loader, other = make(), make()
    for _ in range(150):
        next(loader)
    assert "episode_return" not in next(loader)
    assert loader.stats()["return"] == np.mean(range(52, 152))
    other.load_state_dict(loader.state_dict())
    assert other.stats()["return"] == np.mean(range(52, 152))


def test_a_small_reuse_limit_never_deadlocks_with_the_ratio():
    with Datagen(Walk()).loader(16, n_workers=1, replay_ratio=50.0, buffer=ReplayBuffer(5000, max_reuse=1)) as loader:
        for _ in range(300):
            next(loader)
        assert loader.stats()["reuse"] <= 1


@pytest.mark.parametrize(("n_workers", "number"), [(0, torch.tensor), (1, torch.tensor), (2, np.array)])
@pytest.mark.usefixtures("data_workers_start_warm")
def test_parameters_reach_every_source_and_are_copies(n_workers, number):
    class Named(Walk):
        def __next__(self):
            return super().__next__() | {"worker": np.int64(self.worker)}

    newest = {}

    def has_reached_all(version) -> bool:
        batch = next(loader)
        assert (batch["w"] == batch["version"]).all()  # each was made with what it says, whatever became of that since
        for worker, w in zip(batch["worker"].tolist(), batch["w"].tolist(), strict=True):
            newest[worker] = max(w, newest.get(worker, 0))
        return newest == dict.fromkeys(range(max(n_workers, 1)), version)

    with Datagen(Named()).loader(16, n_workers=n_workers, buffer=200) as loader:
        next(loader)
        w = number(1.0)
        assert loader.update_params({"w": w}) == 1
        w += 98  # in place
        wait_until(lambda: has_reached_all(1))
        for version in range(2, 40):  # far faster than episodes
            assert loader.update_params({"w": number(float(version))}) == version
        wait_until(lambda: has_reached_all(39))
        assert loader.stats()["version_lag"] <= 39


def test_figures_add_up():
    with Datagen(Walk(4)).loader(8, n_workers=0, buffer=50) as loader:
        for _ in range(30):
            next(loader)
        figures = loader.stats()
    assert figures["episodes"] == 31
    assert figures["steps"] == 31 * 4
    assert figures["buffer_steps"] == 40
    assert figures["reuse"] == 30 * 8 / (31 * 4)
    assert figures["worker_deaths"] == 0
    assert figures["age_s"] >= 0
    assert figures["buffer_bytes"] == loader.buffer.n_bytes


@pytest.mark.parametrize("n_workers", [0, 1])
def test_a_source_that_ends_ends_the_batches(n_workers):
    class Ten(Walk):
        def __next__(self):
            if self.made == 10:
                raise StopIteration
            return super().__next__()

    with Datagen(Ten(4)).loader(8, n_workers=n_workers, replay_ratio=2.0) as loader:
        assert len(list(loader)) == 1 + (10 * 4 - 8) * 2 // 8  # the first 8 steps are for the first batch


@pytest.mark.parametrize("n_workers", [0, 2])
def test_an_error_in_a_source_reaches_the_trainer(n_workers):
    class Broken(Walk):
        def __next__(self):
            if self.made == 3:
                raise ZeroDivisionError("in the game")
            return super().__next__()

    with (
        Datagen(Broken()).loader(4, n_workers=n_workers, min_steps=500) as loader,
        pytest.raises(ZeroDivisionError, match="in the game") as caught,
    ):
        next(loader)
    if n_workers:
        assert "Traceback in the worker" in caught.value.__notes__[0]
        assert "__next__" in caught.value.__notes__[0]


@pytest.mark.parametrize("n_workers", [0, 1])
def test_episodes_that_the_buffer_refuses_are_reported(n_workers):
    with (
        Datagen(Walk(50)).loader(4, n_workers=n_workers, buffer=20) as loader,
        pytest.raises(ValueError, match="an episode of 50 steps needs 51 rows, capacity is 20"),
    ):
        next(loader)


@pytest.mark.parametrize("n_workers", [0, 1])
def test_episodes_of_text_are_refused(n_workers):
    class Text(Walk):
        def __next__(self):
            return {**super().__next__(), "name": "white"}

    with (
        Datagen(Text()).loader(4, n_workers=n_workers) as loader,
        pytest.raises(ValueError, match="'name' must hold numbers, got the dtype <U5"),
    ):
        next(loader)


def test_whatever_goes_wrong_on_arrival_reaches_the_trainer():
    class Refusing(ReplayBuffer):
        def extend(self, episodes):
            raise LookupError("not these")

    with (
        Datagen(Walk()).loader(4, n_workers=1, buffer=Refusing(100)) as loader,
        pytest.raises(LookupError, match="not these"),
    ):
        next(loader)


def test_a_worker_killed_after_its_source_ended_changes_nothing():
    class Ten(Walk):
        def __next__(self):
            if self.made == 10:
                raise StopIteration
            return super().__next__()

    with Datagen(Ten(4)).loader(8, n_workers=1, replay_ratio=2.0) as loader:
        next(loader)
        wait_until(lambda: loader._fleet.ended)
        os.kill(loader.pids[0], signal.SIGKILL)
        wait_until(lambda: loader.stats()["worker_deaths"] == 1)
        assert len(list(loader)) == (10 * 4 - 8) * 2 // 8  # the first batch is drawn
        assert loader.pids == []


def test_a_refused_state_leaves_the_loader_running():
    with Datagen(Walk()).loader(4, n_workers=1, buffer=100) as loader:
        next(loader)
        state = Datagen(Walk()).loader(4, n_workers=0, buffer=50).state_dict()
        with pytest.raises(ValueError, match="of a buffer of capacity 50, this one has 100"):
            loader.load_state_dict(state)
        with pytest.raises(
            ValueError, match=r"the state_dict of a DatagenLoader, the keys \['buffer', .* are not in it"
        ):
            loader.load_state_dict({"seed": 3})
        with pytest.raises(ValueError, match=r"the state_dict of a ReplayBuffer, the keys \['capacity', "):
            loader.load_state_dict({**state, "buffer": {}})
        damaged = loader.state_dict()
        damaged["buffer"]["uses"] = torch.zeros(1)
        with pytest.raises(ValueError, match="the state of this buffer is damaged"):
            loader.load_state_dict(damaged)
        n = loader.stats()["episodes"]
        wait_until(lambda: next(loader) is not None and loader.stats()["episodes"] > n + 100)


def test_the_loader_says_what_it_takes():
    parameters = inspect.signature(Datagen.loader).parameters
    own = inspect.signature(DatagenLoader.__init__).parameters
    assert [(p.name, p.default) for p in list(parameters.values())[1:]] == [
        (p.name, p.default) for p in list(own.values())[2:]
    ]


class Counts(Walk):
    """Episodes that tell at how many steps their source was said to begin."""

    began = 0

    def begin_at(self, n_steps):
        self.began = n_steps

    def __next__(self):
        return {**super().__next__(), "began": np.float64(self.began)}


def test_a_worker_that_replaces_a_dead_one_is_told_its_share_of_the_steps():
    with Datagen(Counts()).loader(16, n_workers=1, buffer=400) as loader:
        assert next(loader)["began"].tolist() == [0] * 16
        os.kill(loader.pids[0], signal.SIGKILL)
        wait_until(lambda: loader.buffer.column("began").max() > 0)
        with loader.locked():
            began, n_steps = loader.buffer.column("began").max(), loader.stats()["steps"]
    assert 16 <= began < n_steps


def test_a_resumed_source_is_told_the_steps_that_were_made():
    loaders = [Datagen(Counts()).loader(8, n_workers=0, buffer=100) for _ in range(2)]
    for _ in range(3):
        next(loaders[0])
    loaders[1].load_state_dict(loaders[0].state_dict())
    assert loaders[1].dataset.source.began == loaders[0].stats()["steps"] == 16


def test_a_killed_worker_is_replaced_counted_and_given_the_parameters():
    with Datagen(Walk()).loader(16, n_workers=2, buffer=400) as loader:
        next(loader)
        loader.update_params({"w": np.float64(5)})
        victims = loader.pids
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: loader.stats()["worker_deaths"] == 2 and len(loader.pids) == 2)
        n = loader.stats()["episodes"]
        wait_until(lambda: (next(loader)["w"] == 5).all() and loader.stats()["episodes"] > n + 200)
        assert not set(victims) & set(loader.pids)


def test_workers_that_always_die_are_given_up():
    class Deadly(Walk):
        def __next__(self):
            os.kill(os.getpid(), signal.SIGKILL)

    with (
        Datagen(Deadly()).loader(4, n_workers=1) as loader,
        pytest.raises(WorkerFailedError, match="died 5 times in a row, the last was killed by signal SIGKILL"),
    ):
        next(loader)


def test_resuming_with_workers_keeps_the_buffer_and_takes_fresh_seeds():
    with Datagen(Walk()).loader(16, n_workers=1, buffer=300) as loader:
        next(loader)
        loader.update_params({"w": np.float64(2)})
        wait_until(lambda: (next(loader)["w"] == 2).any())
        state = copy.deepcopy(loader.state_dict())
    with Datagen(Walk()).loader(16, n_workers=1, buffer=300) as other:
        other.load_state_dict(state)
        with other.locked():
            steps = other.stats()["steps"]
            assert steps >= state["n_steps"]
        old = set(state["buffer"]["columns"]["action"].tolist()) - {0}
        wait_until(lambda: next(other) is not None and other.stats()["steps"] > state["n_steps"] + 600)
        with other.locked():
            new = set(other.buffer.column("action").tolist()) - {0}
        assert len(old & new) < 3  # of 2**30 numbers
        assert (next(other)["w"] == 2).all()


def test_forgotten_and_closed_loaders_leave_no_process():
    loader = Datagen(Walk()).loader(4, n_workers=2)
    next(loader)
    pids = loader.pids
    assert all(map(is_running, pids))
    del loader
    gc.collect()
    wait_until(lambda: not any(map(is_running, pids)))
    closed = Datagen(Walk()).loader(4, n_workers=1)
    closed.close()
    with pytest.raises(RuntimeError, match="this loader is closed"):
        next(closed)


def test_who_waits_for_a_loader_that_is_closed_meanwhile_waits_no_longer():
    loader = Datagen(Walk()).loader(4, n_workers=1, min_steps=99_999)
    with pytest.raises(RuntimeError, match="this loader is closed"):
        loader.wait(loader.close)  # which is asked several times a second, and never says that there is no time


def test_ranks_make_data_of_their_own():
    ranks = [Datagen(Walk()).loader(8, n_workers=0, seed=3).shard(rank, 2) for rank in range(2)]
    assert not torch.equal(next(ranks[0])["action"], next(ranks[1])["action"])
    with pytest.raises(ValueError, match=r"rank \(2\) must lie"):
        ranks[0].shard(2, 2)


class Once(Walk):
    """One episode in all."""

    def __next__(self):
        if self.made:
            raise StopIteration
        episode = super().__next__()
        return {key: episode[key] for key in ("obs", "action", "reward")}


def test_ranks_draw_apart_from_buffers_that_hold_the_same():
    def shard(rank, world):
        buffer = ReplayBuffer(100, alpha=0.5, seed=3)
        buffer.add({"obs": np.arange(51)[:, None], "action": np.zeros(50, int), "reward": np.ones(50, np.float32)})
        loader = Datagen(Once()).loader(16, n_workers=0, buffer=buffer, min_steps=1, replay_ratio=1e-9)
        next(loader)
        return loader if world == 1 else loader.shard(rank, world)

    drawn = [shard(rank, world).buffer.sample(16)["index"].tolist() for rank, world in ((0, 1), (0, 2), (1, 2), (0, 4))]
    assert len(set(map(tuple, drawn))) == 4
    assert shard(1, 2).buffer.sample(16)["index"].tolist() == drawn[2]


@pytest.mark.parametrize("how", ["loader", "passes"])
def test_a_shard_goes_on_with_counters_and_parameters(how):
    source = Walk()
    options = {"batch_size": 8, "n_workers": 0} if how == "loader" else {"passes": 1}
    whole = getattr(Datagen(source), how)(**options)
    next(whole)
    whole.update_params({"w": torch.tensor(3.0)})
    steps = whole.stats()["steps"]
    shard = whole.shard(1, 2)
    assert shard.update_params({"w": torch.tensor(4.0)}) == 2
    assert shard.stats()["steps"] == steps > 0
    next(shard)
    assert shard.stats()["steps"] > steps
    assert whole.stats()["steps"] == steps


@pytest.mark.parametrize("again", [lambda made: made.loader(4, n_workers=0), lambda made: made.passes(1)])
def test_a_source_that_another_loader_has_begun_is_no_longer_acted_in(again):
    made = Datagen(Walk())
    first = made.loader(4, n_workers=0)
    next(first)
    second = again(made)
    for use in (first.state_dict, lambda: next(first), lambda: first.wait(lambda: False)):
        with pytest.raises(RuntimeError, match="source was begun anew by another who acts in it"):
            use()
    next(second)
    first.load_state_dict(made.loader(4, n_workers=0).state_dict())  # begins it once more: now it is the first one's
    next(first)


def test_equal_sources_are_not_the_same():
    class Alike(Walk):
        def __eq__(self, other):
            return True

        def __hash__(self):
            return 0

    first, second = (Datagen(Alike()).loader(4, n_workers=0) for _ in range(2))
    assert_same([next(first)], [next(second)])


SCRIPT = """
import os, sys
import numpy as np
import torch  # once for both
from ai.data import Datagen
class Source:
    def start(self, seed, worker): self.rng = np.random.default_rng(seed)
    def __next__(self): return {"action": self.rng.integers(0, 9, 1000), "reward": np.ones(1000)}
    def update_params(self, state_dict, version): pass
class Hung(Source):
    def __next__(self):
        while True: pass
first = os.fork()
if first:
    print("exited with", os.waitpid(first, 0)[1], flush=True)
loader = Datagen(Source()).loader(4, n_workers=2)
hung = Datagen(Hung()).loader(4, n_workers=1)
print(*loader.pids, *hung.pids, flush=True)
next(loader)
print("batch", flush=True)
if first:
    sys.stdin.read()
"""


def test_no_worker_survives_its_parent_even_one_that_hangs(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, tmp_path / "script.py"]
    with warm_python.Process(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:

        def workers():
            pids = [int(pid) for pid in parent.stdout.readline().split()]
            assert len(pids) == 3
            assert parent.stdout.readline() == "batch\n"
            return pids

        of_one_that_ends = workers()
        assert parent.stdout.readline() == "exited with 0\n"
        wait_until(lambda: not any(map(is_running, of_one_that_ends)))
        of_one_that_is_killed = workers()
        assert all(map(is_running, of_one_that_is_killed))
        parent.kill()
        assert parent.wait(100) == -signal.SIGKILL
        wait_until(lambda: not any(map(is_running, of_one_that_is_killed)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"n_workers": -1}, "n_workers must be at least 0, got -1"),
        ({"replay_ratio": 0}, "replay_ratio must be positive and finite, got 0"),
        ({"min_steps": 0}, "min_steps must be at least 1, got 0"),
        ({"min_steps": 10, "buffer": 10}, r"min_steps \(10\) must be less than the capacity of the buffer \(10\)"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Datagen(Walk()).loader(**{"batch_size": 4, "n_workers": 0, **options})


def test_what_is_no_source_is_refused():
    with pytest.raises(TypeError, match="source must have the method start, list has none"):
        Datagen([])


@pytest.mark.slow
def test_soak_with_random_kills():
    """A short form of the 20-minute soak: batches keep coming while workers die."""
    rng = random.Random(0)
    with Datagen(Walk(20)).loader(32, n_workers=2, buffer=5000, replay_ratio=2.0) as loader:
        for k in range(600):
            assert torch.isfinite(next(loader)["reward"]).all()
            if k % 100 == 50:
                os.kill(rng.choice(loader.pids), signal.SIGKILL)
                n_deaths, n = 1 + k // 100, loader.stats()["episodes"]
                wait_until(lambda: loader.stats()["worker_deaths"] == n_deaths and len(loader.pids) == 2)  # noqa: B023
                wait_until(lambda: next(loader) is not None and loader.stats()["episodes"] > n)  # noqa: B023
        assert np.isfinite(loader.stats()["age_s"])


class FakeChild:
    """A worker's handle that notes what is sent, and holds the parameters of the replacement back."""

    made: list["FakeChild"]
    sending = release = None

    def __init__(self, payload, on_message, on_exit):
        self.on_message, self.on_exit, self.sent = on_message, on_exit, []
        self.made.append(self)
        self.number = len(self.made)

    def send(self, message):
        if self.number == 3 and message[0] == "params":
            self.sending.set()
            assert self.release.wait(100)
        self.sent.append(message[0])
        return True

    def close(self):
        pass


class FakeEngine:
    def start(self, payload, on_message, on_exit):
        return FakeChild(payload, on_message, on_exit)

    def share(self, value):
        return value


class TellsItsTraining(Walk):
    def __next__(self):
        return {
            **super().__next__(),
            "training": np.frombuffer(os.environ["AI_TRAINING"].encode(), np.uint8),
            "at": self.worker,
        }


def test_workers_of_one_loader_are_told_from_those_of_another_made_of_the_same_source():
    source, found = TellsItsTraining(), []
    for _ in range(2):
        with Datagen(source).loader(4, n_workers=2) as loader:
            next(loader)
            wait_until(lambda: set(loader.buffer.column("at").tolist()) == {0, 1})
            found.append({row.tobytes() for row in loader.buffer.column("training").numpy()})
    assert [len(each) for each in found] == [1, 1]
    assert found[0] != found[1]


def test_a_replacement_that_reads_its_parameters_slowly_holds_up_nobody():
    FakeChild.made, FakeChild.sending, FakeChild.release = [], threading.Event(), threading.Event()
    received = []
    params = (1, {"w": np.float64(0)})
    fleet = Fleet(Walk(), 2, 0, 0, received.append, lambda: None, lambda: True, params, FakeEngine())
    first, second = FakeChild.made
    exits = threading.Thread(target=first.on_exit, args=("was killed",), daemon=True)
    exits.start()
    assert FakeChild.sending.wait(100)

    def others_go_on():
        second.on_message(("episodes", "a chunk"))
        fleet.update_params({"w": np.float64(1)}, 2)
        second.on_message(("taken", 1))

    going = threading.Thread(target=others_go_on, daemon=True)
    going.start()
    going.join(100)
    assert not going.is_alive()
    assert received == ["a chunk"]
    wait_until(lambda: second.sent == ["params", "credit", "credit", "params"])
    third = FakeChild.made[2]
    assert third.sent == []  # nothing overtakes its first parameters
    FakeChild.release.set()
    wait_until(lambda: third.sent == ["params", "credit"])
    third.on_message(("taken", 1))
    wait_until(lambda: third.sent == ["params", "credit", "params"])
    exits.join(100)
    fleet.close()


def test_repr_tells_source_pace_and_buffer():
    loader = Datagen(Walk()).loader(8, n_workers=0, replay_ratio=2.5, buffer=60)
    assert repr(loader) == (
        "DatagenLoader(batches of 8 on cpu, each step 2.5 times, 0 workers, of Walk, "
        "ReplayBuffer(0 steps in 0 of 60 rows, no episodes yet))"
    )


class Stuck:
    """Never gives an episode."""

    def start(self, seed, worker):
        pass

    def update_params(self, state_dict, version):
        pass

    def __next__(self):
        threading.Event().wait()


def test_a_wait_for_workers_can_be_given_up():
    asked = []
    with Datagen(Stuck()).loader(4, n_workers=1) as loader:
        assert not loader.wait(lambda: len(asked) == 2 or asked.append(1))
