"""Iterable torch datasets: the order in which they come, with and without workers; resuming; deaths."""

import dataclasses
import inspect
import os
import pickle
import random
import signal
import sys
import types
from itertools import chain, islice

import numpy as np
import pytest
import torch

from ai.data import WorkerFailedError
from ai.data.batch.seeds import global_states_kept
from ai.data.loading.options import LoaderOptions, Options
from ai.data.loading.stream import StreamLoader
from ai.data.loading.stream_reading import Cursor, Reading, _begun
from ai.data.loading.worker_info import WorkerInfo
from ai.data.util import create_data_loader
from tests.data.helpers_data import is_running, wait_until


class Counting(torch.utils.data.IterableDataset):
    def __init__(self, n=7):
        self.n = n

    def __iter__(self):
        return iter({"x": torch.tensor(i)} for i in range(self.n))


class Plain:
    """An iterable without torch, so that workers start fast."""

    def __init__(self, n=7):
        self.n = n

    def __iter__(self):
        return iter({"x": np.array(i)} for i in range(self.n))


class Shuffled:
    """Draws from the global generators."""

    def __iter__(self):
        rows = list(range(20))
        random.shuffle(rows)
        for row in rows:
            yield np.array([row + np.random.random()])


class Stateful:
    """Twenty samples a pass, drawn from a generator of its own that its state holds."""

    n_made = 0  # by all of them

    def __init__(self):
        self.made, self.drawn = 0, 1

    def __iter__(self):
        while self.made < 20:
            self.made += 1
            Stateful.n_made += 1
            self.drawn = self.drawn * 48271 % 2147483647
            yield np.array([self.made, self.drawn])
        self.made = 0

    def state_dict(self):
        return {"made": self.made, "drawn": self.drawn}

    def load_state_dict(self, state):
        self.made, self.drawn = state["made"], state["drawn"]


class TorchShuffled:
    """Imports torch at the last moment, and draws from its global generator."""

    def __iter__(self):
        from torch import randperm

        for row in randperm(20):
            yield np.array(int(row))


def torch_in_no_time():
    """Returns torch, and in a worker that has not imported it a stand-in of what division among workers asks of it."""
    if "torch" not in sys.modules:
        names = "torch.utils.data._utils.worker".split(".")
        for depth in range(len(names)):
            path = ".".join(names[: depth + 1])
            sys.modules[path] = types.ModuleType(path)
            if depth:
                setattr(sys.modules[path.rpartition(".")[0]], names[depth], sys.modules[path])
        stand_in = sys.modules["torch"]
        stand_in.Tensor = ()  # nothing is one
        stand_in.default_generator = types.SimpleNamespace(manual_seed=lambda seed: None)
        stand_in.utils.data.get_worker_info = lambda: stand_in.utils.data._utils.worker._worker_info
        stand_in.utils.data._utils.worker._worker_info = None
    return sys.modules["torch"]


class Divided:
    """Gives each worker its own, as WebDataset does, which test_libraries tries with torch itself."""

    def __iter__(self):
        info = torch_in_no_time().utils.data.get_worker_info()
        first, step = (0, 1) if info is None else (info.id, info.num_workers)
        for n in range(first, 17, step):
            yield np.array([n, random.randrange(1 << 30)])


class Failing(Plain):
    def __iter__(self):
        yield from super().__iter__()
        raise LookupError("after seven")


class Deadly(Plain):
    def __iter__(self):
        yield from super().__iter__()
        os.kill(os.getpid(), signal.SIGKILL)


def rows(batches):
    return [batch["x"].tolist() for batch in batches]


def take(iterator, n):
    return [next(iterator) for _ in range(n)]


def test_batches_come_in_order_and_resume():
    loader = create_data_loader(Counting(), 3, n_workers=0)
    assert rows(loader) == [[0, 1, 2], [3, 4, 5], [6]]
    iterator = iter(loader)
    next(iterator)
    state = loader.state_dict()
    other = create_data_loader(Counting(), 3, n_workers=0)
    other.load_state_dict(state)
    assert rows(other) == [[3, 4, 5], [6]]
    endless = create_data_loader(Counting(), 3, train=True, n_workers=0)
    assert rows(take(iter(endless), 5)) == [[0, 1, 2], [3, 4, 5], [6, 0, 1], [2, 3, 4], [5, 6, 0]]
    assert (endless.state_dict()["epoch"], endless.state_dict()["batch"]) == (2, 5)
    dropping = create_data_loader(Counting(), 3, train=True, drop_last=True, n_workers=0)
    assert rows(take(iter(dropping), 4)) == [[0, 1, 2], [3, 4, 5]] * 2
    keeping = create_data_loader(Counting(), 3, train=True, drop_last=False, n_workers=0)
    assert rows(take(iter(keeping), 4)) == [[0, 1, 2], [3, 4, 5], [6], [0, 1, 2]]
    assert rows(take(iter(create_data_loader(Counting(2), 5, train=True, n_workers=0)), 1)) == [[0, 1, 0, 1, 0]]
    with pytest.raises(ValueError, match="fewer samples than a batch of 9 in a whole pass"):
        next(iter(create_data_loader(Counting(), 9, train=True, drop_last=True, n_workers=0)))
    with pytest.raises(ValueError, match="the dataset gave nothing in a whole pass"):
        next(iter(create_data_loader(Counting(0), 9, train=True, n_workers=0)))
    ranks = [create_data_loader(Counting(), 2, n_workers=0).shard(rank, 2) for rank in range(2)]
    assert [rows(r) for r in ranks] == [[[0, 2], [4, 6]], [[1, 3], [5]]]


@pytest.mark.parametrize("shuffle", [0, 6])
@pytest.mark.parametrize("source", [Shuffled, Stateful])
@pytest.mark.parametrize("train", [True, False])
def test_order_and_draws_do_not_depend_on_workers_and_resume_at_every_batch(train, source, shuffle):
    n = 14 if train else 7

    def made(n_workers):
        return create_data_loader(source(), 3, train=train, n_workers=n_workers, shuffle=shuffle)

    reference = take(iter(made(0)), n)
    states = []
    torch.manual_seed(5)
    before = torch.get_rng_state()
    with made(2) as by_two:
        for loader in (made(0), by_two):
            iterator = iter(loader)
            for k in range(n):
                states.append((k, pickle.loads(pickle.dumps(loader.state_dict()))))
                assert torch.equal(next(iterator), reference[k])
        for loader, step in ((made(0), 1), (by_two, 5)):
            for k, state in states[::step]:
                loader.load_state_dict(state)
                rest = take(iter(loader), n - k) if train else list(loader)
                assert all(torch.equal(a, b) for a, b in zip(rest, reference[k:], strict=True))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_source_with_a_state_is_not_read_again():
    loader = create_data_loader(Stateful(), 3, train=True, n_workers=0)
    take(iter(loader), 10)  # half of the second pass
    other = create_data_loader(Stateful(), 3, train=True, n_workers=0)
    other.load_state_dict(loader.state_dict())
    n_before = Stateful.n_made
    take(iter(other), 1)
    assert Stateful.n_made == n_before + 3
    again = create_data_loader(Plain(20), 3, train=True, n_workers=0)
    take(iter(again), 10)
    other = create_data_loader(Plain(20), 3, train=True, n_workers=0)
    other.load_state_dict(again.state_dict())
    assert rows(take(iter(other), 1)) == [[10, 11, 12]]


def test_shuffling_gives_each_sample_once_a_pass_and_another_order_each_time():
    loader = create_data_loader(Plain(60), 20, train=True, shuffle=30, n_workers=0, seed=3)
    passes = [list(chain(*rows(take(iter(loader), 3)))) for _ in range(3)]
    assert all(sorted(order) == list(range(60)) for order in passes)
    assert all(sorted(order[:30]) == list(range(30)) for order in passes)
    assert len({tuple(order) for order in passes}) == 3
    assert all(order != sorted(order) for order in passes)
    with pytest.raises(ValueError, match="shuffle must be at least 0 samples, got -1"):
        create_data_loader(Plain(), 2, shuffle=-1)
    with pytest.raises(ValueError, match=r"shuffle \(5\) is for iterable datasets"):
        create_data_loader(torch.utils.data.TensorDataset(torch.arange(4)), 2, shuffle=5)


def test_every_sample_of_every_part_is_seen():
    with create_data_loader(Divided(), 3, train=True, n_workers=2) as loader:
        seen = [batch[:, 0].tolist() for batch in take(iter(loader), 6)]
    assert seen == [[0, 2, 4], [1, 3, 5], [6, 8, 10], [7, 9, 11], [12, 14, 16], [13, 15, 1]]


def test_states_of_the_first_format_load_where_nothing_was_left_out():
    old = {"epoch": 0, "batch": 2, "seed": 4, "train": False, "batch_size": 3, "world": 1, "parts": 1}
    loader = create_data_loader(Counting(), 3, n_workers=0)
    loader.load_state_dict(old)
    loader.load_state_dict(loader.state_dict())
    assert rows(loader) == [[6]]
    endless = create_data_loader(Counting(), 3, train=True, n_workers=0)
    with pytest.raises(ValueError, match="of format 1, whose passes left out their incomplete batch: it cannot"):
        endless.load_state_dict({**old, "train": True})
    with pytest.raises(ValueError, match="of format 4, newer than 3"):
        loader.load_state_dict({**loader.state_dict(), "format": 4})
    with pytest.raises(ValueError, match="state has shuffle 0, this loader 4"):
        create_data_loader(Counting(), 3, n_workers=0, shuffle=4).load_state_dict(loader.state_dict())


class Stuck(Plain):
    def __iter__(self):
        yield from super().__iter__()
        while True:
            pass


def test_a_dataset_that_hangs_is_named():
    with create_data_loader(Stuck(6), 2, n_workers=1, prefetch=1, timeout_s=300) as loader:
        iterator = iter(loader)
        take(iterator, 2)
        loader._readers._turns._timeout_s = 0.2
        with pytest.raises(
            WorkerFailedError, match=r"no batch within timeout_s \(0.2\): reader 0 of 1 was [46] samples into pass 0"
        ):
            take(iterator, 2)


def test_a_huggingface_stream_resumes_where_it_was_and_divides_itself():
    import datasets

    source = datasets.Dataset.from_dict({"n": list(range(24))}).to_iterable_dataset(num_shards=4)
    loader = create_data_loader(source, 5, train=True, n_workers=0, shuffle=8)
    reference = [batch["n"].tolist() for batch in take(iter(loader), 12)]
    assert sorted([*chain(*reference)][:24]) == list(range(24))
    take_up = create_data_loader(source, 5, train=True, n_workers=0, shuffle=8)
    iterator = iter(take_up)
    for k in range(8):
        other = create_data_loader(source, 5, train=True, n_workers=0, shuffle=8)
        other.load_state_dict(take_up.state_dict())
        assert [batch["n"].tolist() for batch in take(iter(other), 4)] == reference[k : k + 4]
        next(iterator)


@pytest.mark.slow
def test_draws_of_torch_are_those_of_this_process_even_if_it_is_imported_late():
    orders = []
    for n_workers in (0, 1):
        with create_data_loader(TorchShuffled(), 20, n_workers=n_workers) as loader:
            orders.append(next(iter(loader)).tolist())
    assert sorted(orders[0]) == list(range(20)) != orders[0]
    assert orders[0] == orders[1]


@pytest.mark.slow
def test_a_dataset_that_divides_itself_is_read_in_parts_and_resumes_in_as_many():
    whole = [batch[:, 0].tolist() for batch in create_data_loader(Divided(), 3, n_workers=0)]
    assert whole == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11], [12, 13, 14], [15, 16]]
    with create_data_loader(Divided(), 3, n_workers=2) as loader:
        parts = [batch.tolist() for batch in loader]
        numbers = [[n for n, _ in batch] for batch in parts]
        assert numbers == [[0, 2, 4], [1, 3, 5], [6, 8, 10], [7, 9, 11], [12, 14, 16], [13, 15]]
        assert len({drawn for batch in parts for _, drawn in batch}) == 17  # no worker draws as another does
        for stop in range(len(parts) + 1):
            take(iter(loader), stop)
            state = loader.state_dict()
            loader.load_state_dict(state)
            assert [batch.tolist() for batch in loader] == parts[stop:]
        take(iter(loader), 3)
        state = loader.state_dict()
        assert state["parts"] == 2
    here = create_data_loader(Divided(), 3, n_workers=0)
    here.load_state_dict(state)
    assert here.state_dict() == state
    with pytest.raises(ValueError, match="divides itself into 2 parts, here into 1: take as many workers"):
        next(iter(here))


def test_a_worker_is_told_a_seed_of_its_own_in_each_pass_once_it_asks_which_it_is(monkeypatch):
    monkeypatch.setattr(WorkerInfo, "current", None)
    monkeypatch.setattr(torch.utils.data._utils.worker, "_worker_info", None)
    told = [WorkerInfo(worker, 2, None) for worker in range(2)]
    seeds = []
    with global_states_kept():
        for pass_seed in (5, 6):
            for info in told:
                info.begin(pass_seed)
                seeds.append((info.id, info.seed)[1])
                drawn = random.random()
                assert info.num_workers == 2
                assert random.random() != drawn  # seeded once a pass
    assert len(set(seeds)) == 4


@pytest.mark.parametrize("first", ["seed", "id"])
def test_a_worker_has_a_seed_of_its_own_whatever_it_asks_first(first, monkeypatch):
    monkeypatch.setattr(WorkerInfo, "current", None)
    monkeypatch.setattr(torch.utils.data._utils.worker, "_worker_info", None)

    class Drawing:
        def __iter__(self):
            info = torch.utils.data.get_worker_info()
            getattr(info, first)
            yield from random.Random(info.seed).choices(range(1 << 30), k=6 // info.num_workers)

    reading = Reading(Drawing(), 3, "keep", list, endless=True)
    with global_states_kept():
        drawn = []
        for worker in range(2):
            walk, chunk = _begun(reading, 7, Cursor(), WorkerInfo(worker, 2, None))
            drawn += [*chunk, *walk.chunk()]
            assert _begun(reading, 7, Cursor(1), WorkerInfo(worker, 2, None))[1] == drawn[-3:]  # resumed there
    assert len(set(drawn)) == 12


def test_ranks_shuffle_apart_and_give_each_sample_once():
    ranks = [StreamLoader(range(40), 4, train=True, n_workers=0, shuffle=20).shard(rank, 2) for rank in range(2)]
    drawn = [torch.cat(take(iter(rank), 5)).tolist() for rank in ranks]
    assert sorted(drawn[0] + drawn[1]) == list(range(40))
    assert [n // 2 for n in drawn[0]] != [n // 2 for n in drawn[1]]


def test_states_of_the_second_format_load_but_within_a_pass_that_is_drawn_otherwise_by_now():
    def loader(world, shuffle):
        made = StreamLoader(range(40), 4, train=True, n_workers=0, shuffle=shuffle)
        return made if world == 1 else made.shard(0, world)

    for world, shuffle, goes_on in ((1, 20, True), (2, 0, True), (2, 20, False)):
        before = loader(world, shuffle)
        take(iter(before), 2)
        old = {**before.state_dict(), "format": 2}
        del old["is_part"]
        after = loader(world, shuffle)
        if goes_on:
            after.load_state_dict(old)
            assert torch.equal(next(iter(after)), next(iter(before)))
        else:
            with pytest.raises(ValueError, match="of format 2, whose ranks shuffled and whose workers drew alike"):
                after.load_state_dict(old)
            assert torch.equal(next(iter(after)), next(iter(loader(world, shuffle))))


def test_killed_readers_are_replaced_and_nothing_is_lost():
    with create_data_loader(Plain(60), 2, n_workers=2, prefetch=4) as loader:
        seen = []
        for k, batch in enumerate(loader):
            seen += batch["x"].tolist()
            if k in (3, 9, 20):
                n_deaths = loader._readers.n_deaths + 1
                os.kill(loader._readers.pids[k % 2], signal.SIGKILL)
                wait_until(lambda: loader._readers.n_deaths == n_deaths and len(loader._readers.pids) == 2)  # noqa: B023
        assert seen == list(range(60))
        assert loader._readers.n_deaths == 3
        pids = loader._readers.pids
    wait_until(lambda: not any(map(is_running, pids)))
    with pytest.raises(RuntimeError, match="this loader is closed: make a new one"):
        next(iter(loader))


def test_a_dataset_that_kills_every_reader_is_reported():
    with create_data_loader(Deadly(), 7, n_workers=1, prefetch=1) as loader:
        iterator = iter(loader)
        next(iterator)
        with pytest.raises(WorkerFailedError, match=r"died 5 times in a row, the last was killed by signal SIGKILL"):
            next(iterator)


@pytest.mark.parametrize("n_workers", [0, 1])
def test_an_error_in_the_dataset_reaches_the_loop_and_loses_no_batch(n_workers):
    with create_data_loader(Failing(), 3, n_workers=n_workers) as loader:
        iterator = iter(loader)
        assert rows(take(iterator, 2)) == [[0, 1, 2], [3, 4, 5]]
        with pytest.raises(LookupError, match="after seven"):
            next(iterator)
        state = loader.state_dict()
        assert state["batch"] == 2
        loader.load_state_dict(state)
        with pytest.raises(LookupError, match="after seven"):
            next(iter(loader))


def test_a_failed_postprocess_loses_no_batch():
    broken = [True]

    def once(batch):
        if broken and broken.pop():
            raise ZeroDivisionError
        return batch

    loader = create_data_loader(Counting(), 3, n_workers=0, postprocess=once)
    with pytest.raises(ZeroDivisionError):
        next(iter(loader))
    assert loader.state_dict()["batch"] == 0
    assert next(iter(loader))["x"].tolist() == [0, 1, 2]


def test_single_batch_repeats_for_overfitting():
    loader = create_data_loader(Shuffled(), 4, train=True, single_batch=True, n_workers=0)
    first, *rest = take(iter(loader), 4)
    assert all(torch.equal(first, batch) for batch in rest)
    assert len(list(create_data_loader(Shuffled(), 4, single_batch=True, n_workers=0))) == 1


def test_the_function_says_what_the_loader_takes():
    own = inspect.signature(StreamLoader.__init__).parameters
    function = inspect.signature(create_data_loader).parameters
    assert {n: p.default for n, p in own.items() if n != "self"} == {n: p.default for n, p in function.items()}
    assert LoaderOptions.__annotations__.keys() == {field.name for field in dataclasses.fields(Options)}
    with pytest.raises(TypeError, match="a loader has no option 'batches'; its options are train"):
        create_data_loader(Counting(), 2, batches=3)


def test_states_and_arguments_that_do_not_fit_are_refused():
    loader = create_data_loader(Counting(), 2, n_workers=0)
    with pytest.raises(ValueError, match=r"the state_dict of a StreamLoader, the keys \['batch', .* are not in it"):
        loader.load_state_dict({"epoch": 1})
    with pytest.raises(ValueError, match="this loader state has batch_size 2, this loader 3"):
        create_data_loader(Counting(), 3, n_workers=0).load_state_dict(loader.state_dict())
    with pytest.raises(ValueError, match=r"rank \(2\) must lie in \[0, world\)"):
        loader.shard(2, 2)
    for name, value in (("batch_size", 0), ("n_workers", -1), ("prefetch", 0)):
        with pytest.raises(ValueError, match=rf"{name} must be at least [01], got {value}"):
            create_data_loader(Counting(), **{"batch_size": 2, name: value})
    with pytest.raises(ValueError, match="worker must be 'process' for an iterable dataset, got 'thread'"):
        create_data_loader(Counting(), 2, worker="thread")
    with pytest.raises(TypeError, match="torch_dataset must be map-style or iterable, got int"):
        create_data_loader(3, 2)


class Restarting:
    """Begins anew at each call but the one after a state was loaded: between passes its state is the last one's end."""

    def __init__(self):
        self.made, self.goes_on = 0, False

    def __iter__(self):
        self.made, self.goes_on = self.made if self.goes_on else 0, False
        while self.made < 21:
            self.made += 1
            yield np.array(self.made - 1)

    def state_dict(self):
        return {"made": self.made}

    def load_state_dict(self, state):
        self.made, self.goes_on = state["made"], True


@pytest.mark.parametrize("shuffle", [0, 5])
def test_a_state_from_between_two_passes_begins_the_next_one(shuffle):
    def loader():
        return create_data_loader(Restarting(), 4, train=True, n_workers=0, shuffle=shuffle)

    whole = [batch.tolist() for batch in islice(loader(), 18)]
    for cut in range(18):
        begun, resumed = loader(), loader()
        list(islice(begun, cut))
        resumed.load_state_dict(begun.state_dict())
        assert [batch.tolist() for batch in islice(resumed, 18 - cut)] == whole[cut:]
