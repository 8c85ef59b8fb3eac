"""DataLoader: order, ends, devices, resuming."""

import copy
import inspect

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from ai.data import DataLoader, Dataset
from ai.data.batch.seeds import derive_seed
from ai.data.util import create_data_loader


def jitter(value, rng):
    return {"x": np.array([float(value)]), "noise": rng.random(2)}  # without torch, workers start fast


def noisy(batch, generator):
    return {**batch, "more": torch.rand(len(batch["x"]), generator=generator)}


def make(n_workers, train, worker="process", n=11, **options):
    ds = Dataset([str(i) for i in range(n)], jitter, noisy)
    return ds.loader(3, train=train, n_workers=n_workers, worker=worker, **options)


def take(iterator, n):
    return [next(iterator) for _ in range(n)]


def assert_same(ours, theirs):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            assert torch.equal(a[key], b[key]), key


def test_eval_is_one_ordered_epoch_with_its_tail_each_time():
    loader = Dataset(torch.arange(7)).loader(3)
    for _ in range(2):
        assert [b.tolist() for b in loader] == [[0, 1, 2], [3, 4, 5], [6]]
    assert len(loader) == 3


def test_train_is_shuffled_endless_and_drops_tails():
    loader = Dataset(torch.arange(7)).loader(3, train=True)
    epochs = [torch.cat(take(iter(loader), len(loader))).tolist() for _ in range(4)]
    assert len(loader) == 2
    assert all(len(set(epoch)) == 6 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_iterating_again_goes_on_in_training_and_starts_over_in_evaluation():
    train = Dataset(torch.arange(12)).loader(3, train=True)
    expected = take(iter(Dataset(torch.arange(12)).loader(3, train=True)), 5)
    assert torch.equal(torch.stack([next(iter(train)) for _ in range(5)]), torch.stack(expected))
    evaluation = Dataset(torch.arange(12)).loader(3)
    assert [next(iter(evaluation)).tolist() for _ in range(3)] == [[0, 1, 2]] * 3


def test_drop_last_can_be_chosen():
    ds = Dataset(torch.arange(7))
    assert [len(b) for b in ds.loader(3, drop_last=True)] == [3, 3]
    assert sorted(len(b) for b in take(iter(ds.loader(3, train=True, drop_last=False)), 3)) == [1, 3, 3]


def test_single_batch_repeats_for_overfitting():
    loader = Dataset(torch.arange(50)).loader(4, train=True, single_batch=True)
    batches = take(iter(loader), 5)
    assert len({tuple(b.tolist()) for b in batches}) == 1


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize(("n_workers", "worker"), [(0, "process"), (1, "process"), (2, "process"), (2, "thread")])
def test_resuming_at_every_batch_of_three_epochs_changes_nothing(n_workers, worker, train):
    with make(0, train) as loader:
        if train:
            reference = take(iter(loader), 3 * len(loader))
        else:
            reference = [batch for _ in range(3) for batch in loader]
    with make(n_workers, train, worker) as first, make(n_workers, train, worker) as second:
        n = len(first)
        for stop in range(3 * n + 1):
            first.load_state_dict({**first.state_dict(), "epoch": 0, "batch": 0})
            if train:
                head = take(iter(first), stop)
                second.load_state_dict(copy.deepcopy(first.state_dict()))
                tail = take(iter(second), 3 * n - stop)
            else:
                head = [batch for _ in range(stop // n) for batch in first] + take(iter(first), stop % n)
                second.load_state_dict(copy.deepcopy(first.state_dict()))
                tail = [b for _ in range(-(-(3 * n - stop) // n)) for b in second]
            assert_same(head + tail, reference)


def test_position_counts_batches_that_were_used_not_those_ahead():
    with make(2, True, "thread", prefetch=5) as loader:
        iterator = iter(loader)
        for k in range(1, 8):
            next(iterator)
            state = loader.state_dict()
            assert (state["epoch"], state["batch"]) == divmod(k, len(loader))


def test_iterators_already_handed_out_follow_a_loaded_state():
    loader = Dataset(torch.arange(12)).loader(3, train=True)
    iterator = iter(loader)
    state = loader.state_dict()
    first = next(iterator)
    next(iterator)
    loader.load_state_dict(state)
    assert torch.equal(next(iterator), first)


def test_a_finished_evaluation_resumes_to_nothing_and_then_starts_over():
    loader = Dataset(torch.arange(4)).loader(2)
    list(loader)
    loader.load_state_dict(loader.state_dict())
    assert list(loader) == []
    assert len(list(loader)) == 2


def test_global_generators_are_left_alone():
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    ds = Dataset(list("abcdef"), lambda s: torch.rand(2), lambda x, generator: x)
    batches = [b for n in (0, 0) for b in ds.loader(2, train=False, n_workers=n)]
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(batches[0], batches[3])
    assert not torch.equal(batches[0], batches[1])


def test_two_ranks_share_each_epoch_and_resume():
    ds = Dataset({"x": torch.arange(20)})
    for train in (True, False):
        ranks = [ds.loader(3, train=train).shard(rank, 2) for rank in range(2)]
        rows = [
            torch.cat([next(it)["x"] for _ in range(len(r))]).tolist()
            for r, it in zip(ranks, map(iter, ranks), strict=True)
        ]
        assert set(rows[0]).isdisjoint(rows[1])
        assert len(rows[0]) + len(rows[1]) == (18 if train else 20)
        assert ranks[0].state_dict() == ranks[1].state_dict()


def test_a_state_moves_to_another_number_of_ranks_between_whole_batches():
    ds = Dataset(torch.arange(24))
    one = ds.loader(4, train=True)
    used = torch.cat(take(iter(one), 2))
    two = [ds.loader(2, train=True).shard(rank, 2) for rank in range(2)]
    for loader in two:
        loader.load_state_dict(one.state_dict())
    rest = torch.cat([torch.cat(take(iter(loader), 4)) for loader in two])
    assert sorted(used.tolist() + rest.tolist()) == list(range(24))
    odd = ds.loader(3, train=True)
    with pytest.raises(ValueError, match="8 samples into its epoch, between two batches of this loader"):
        odd.load_state_dict(one.state_dict())


@pytest.mark.parametrize("train", [True, False])
def test_a_shard_goes_on_where_its_loader_stood(train):
    whole = Dataset(torch.arange(24)).loader(3, train=train)
    used = torch.cat(take(iter(whole), 2)).tolist()
    resumed = Dataset(torch.arange(24)).loader(3, train=train)
    resumed.load_state_dict(whole.state_dict())
    shards = [resumed.shard(rank, 2) for rank in range(2)]
    rest = torch.cat([torch.cat(take(iter(shard), 3)) for shard in shards]).tolist()
    assert sorted(used + rest) == list(range(24))
    resumed.load_state_dict({**whole.state_dict(), "batch": 3})
    with pytest.raises(ValueError, match=r"9 samples into its epoch, between two batches .*on 2 ranks"):
        resumed.shard(0, 2)


def test_a_shard_of_an_evaluation_that_was_used_begins_anew():
    loader = Dataset(torch.arange(8)).loader(2)
    list(loader)
    assert [b.tolist() for b in loader.shard(1, 2)] == [[1, 3], [5, 7]]


def test_seeds_of_any_size_are_taken():
    orders = [next(iter(Dataset(range(90)).loader(90, train=True, seed=s))).tolist() for s in (-1, 2**64 - 2, 2**63)]
    assert len({tuple(order) for order in orders}) == 3


def test_a_state_carries_its_seed():
    ds = Dataset(torch.arange(24))
    first = ds.loader(4, train=True, seed=9)
    next(iter(first))
    second = ds.loader(4, train=True, seed=0)
    second.load_state_dict(first.state_dict())
    assert torch.equal(next(iter(second)), next(iter(first)))


def test_states_survive_a_safe_file(tmp_path):
    loader = Dataset(torch.arange(10)).loader(2, train=True)
    next(iter(loader))
    torch.save(loader.state_dict(), tmp_path / "state.pt")
    assert torch.load(tmp_path / "state.pt", weights_only=True) == loader.state_dict()


def test_states_of_other_data_or_mode_are_refused():
    ds = Dataset(torch.arange(10))
    state = ds.loader(2).state_dict()
    with pytest.raises(ValueError, match="of another dataset or mode: its n_samples is 10, ours 11"):
        Dataset(torch.arange(11)).loader(2).load_state_dict(state)
    with pytest.raises(ValueError, match="its fingerprint is"):
        Dataset(torch.arange(10) + 1).loader(2).load_state_dict(state)
    with pytest.raises(ValueError, match="its train is False, ours True"):
        ds.loader(2, train=True).load_state_dict(state)
    with pytest.raises(ValueError, match=r"the state_dict of a DataLoader, the keys \['batch', .* are not in it"):
        ds.loader(2).load_state_dict({"epoch": 1})


def test_resident_data_gives_the_same_batches():
    ds = Dataset({"x": torch.arange(10), "name": list("abcdefghij")}, postprocess={"x": lambda x: x + 1})
    for a, b in zip(ds.loader(3), ds.loader(3, resident=True), strict=True):
        assert torch.equal(a["x"], b["x"])
        assert a["name"] == b["name"]


def test_resident_refuses_a_collate():
    with pytest.raises(ValueError, match="resident=True needs a dataset without preprocess or collate"):
        Dataset(range(4)).loader(2, resident=True, collate=list)


def test_the_loader_says_what_it_takes():
    parameters = inspect.signature(Dataset.loader).parameters
    own = inspect.signature(DataLoader.__init__).parameters
    assert [(p.name, p.default) for p in list(parameters.values())[1:]] == [
        (p.name, p.default) for p in list(own.values())[2:]
    ]


def test_collate_can_be_replaced():
    ds = Dataset([[1], [1, 2], [1, 2, 3]])
    pad = lambda samples: torch.tensor([s + [0] * (3 - len(s)) for s in samples])  # noqa: E731
    assert next(iter(ds.loader(3, collate=pad, n_workers=0))).tolist() == [[1, 0, 0], [1, 2, 0], [1, 2, 3]]


def test_torch_datasets_load_alike():
    torch_ds = TensorDataset(torch.arange(7), torch.arange(7) * 2)
    for options in ({"n_workers": 0}, {"n_workers": 2, "worker": "thread"}):
        loader = create_data_loader(torch_ds, 3, postprocess=lambda b: (b[0], b[1] + 1), **options)
        assert [y.tolist() for _, y in loader] == [[1, 3, 5], [7, 9, 11], [13]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"batch_size": 11, "train": True}, r"batch_size \(11\) must not exceed the 10 samples"),
        ({"batch_size": 2, "device": "warp"}, "device must be a name that torch knows.* got 'warp'"),
        ({"batch_size": 2, "device": "cuda:97"}, "device 'cuda:97' is not available: torch sees [0-9]+ CUDA devices"),
        ({"batch_size": 2, "device": "xpu"}, "device 'xpu' is not available on this machine"),
        ({"batch_size": 2, "device": "meta"}, "device must hold values, and 'meta' holds shapes alone"),
        ({"batch_size": 2, "device": None}, "device must be a name that torch knows.* got None"),
        ({"batch_size": 2, "prefetch": 0}, "prefetch must be at least 1, got 0"),
        ({"batch_size": 2, "n_workers": -1}, "n_workers must be at least 0, got -1"),
        ({"batch_size": 2, "worker": "fiber"}, "worker must be 'process' or 'thread', got 'fiber'"),
        ({"batch_size": 2, "pin": True}, "pin=True needs CUDA, which this machine does not have"),
        ({"batch_size": 2, "resident": True}, "resident=True needs a dataset without preprocess"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    if "pin" in options and torch.cuda.is_available():
        pytest.skip("has CUDA")
    with pytest.raises(ValueError, match=message):
        Dataset(list("abcdefghij"), preprocess=str).loader(**options)


def test_a_batch_larger_than_the_shards_is_refused():
    with pytest.raises(ValueError, match=r"batch_size \(4\) on 3 ranks exceeds the 10 samples"):
        Dataset(torch.arange(10)).loader(4, train=True).shard(0, 3)


def test_evaluation_may_fit_in_one_batch():
    assert [len(b) for b in Dataset(torch.arange(5)).loader(100)] == [5]


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("resident", [True, False])
def test_batches_reach_the_gpu_and_equal_the_cpu(resident):
    ds = Dataset({"x": torch.arange(40).view(10, 4)}, postprocess={"x": lambda x: x.float() / 2})
    for a, b in zip(ds.loader(3, "cpu"), ds.loader(3, "cuda", resident=resident), strict=True):
        assert b["x"].device == torch.device("cuda:0")
        assert torch.equal(a["x"], b["x"].cpu())


class Picky(torch.utils.data.Dataset):
    """Takes Python's own integers only, as datasets over lists and tables do."""

    def __len__(self):
        return 5

    def __getitem__(self, index):
        assert type(index) is int
        return np.float32(index)


@pytest.mark.parametrize("n_workers", [0, 1])
@pytest.mark.usefixtures("data_workers_start_warm")
def test_torch_datasets_are_indexed_by_plain_integers(n_workers):
    with create_data_loader(Picky(), 2, train=True, n_workers=n_workers) as loader:
        assert len(torch.cat(take(iter(loader), 4)).unique()) >= 4


def test_states_of_the_first_order_go_on_in_it_and_unknown_orders_are_refused(monkeypatch):
    monkeypatch.setattr("ai.data.batch.shuffle.DRAWN_WHOLE", 1 << 16)
    ds = Dataset(torch.arange(70_000))
    loader = ds.loader(1000, train=True, seed=4)
    old = {key: value for key, value in loader.state_dict().items() if key != "order"}
    loader.load_state_dict({**old, "batch": 3})
    generator = torch.Generator().manual_seed(derive_seed(4, 0))
    assert torch.equal(next(iter(loader)), torch.randperm(70_000, generator=generator)[3000:4000])
    again = ds.loader(1000, train=True)
    again.load_state_dict(loader.state_dict())
    assert torch.equal(next(iter(again)), next(iter(loader)))
    with pytest.raises(ValueError, match="state is of order 3, this version knows the orders 1 to 2"):
        loader.load_state_dict({**old, "order": 3})
