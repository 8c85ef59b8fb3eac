import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from ai.data import Dataset as OurDataset
from ai.train import Hook, HookInterface, Snapshots, Trainer, opt, snapshot
from ai.train.state.data_position import DataPosition


class Numbers(Dataset):
    def __init__(self, n=8):
        self.n = n

    def __len__(self):
        return self.n

    def __getitem__(self, index):
        return torch.tensor([float(index)])


def loader(shuffle=True, n=8):
    return DataLoader(Numbers(n), batch_size=1, shuffle=shuffle)


def made(env_seen):
    torch.manual_seed(0)
    model = nn.Linear(1, 1)

    def env(model, batch, step):
        env_seen.append(int(batch[0, 0]))
        torch.rand(1)  # as dropout draws
        return model(batch).sum() * 0

    return model, env


def test_epochs_are_passes_over_finite_data_each_in_an_order_of_its_own():
    seen, epochs = [], []
    model, env = made(seen)

    class Epochs(HookInterface):
        def setup(self, run):
            self.run = run

        def step(self, step):
            epochs.append(self.run.epoch)

    assert Trainer(env, loader()).train(model, opt.sgd(model), [Epochs()], epochs=3) == 24
    passes = [seen[:8], seen[8:16], seen[16:]]
    assert all(sorted(one) == list(range(8)) for one in passes)
    assert passes[0] != passes[1] != passes[2]
    assert epochs == [0] * 8 + [1] * 8 + [2] * 8 + [3]


def of_torch():
    return DataLoader(Numbers(), shuffle=True, generator=torch.Generator().manual_seed(3))


def of_numpy(bits):
    class Order(Numbers):  # a sampler with a generator of its own
        def __init__(self):
            self.rng = np.random.Generator(bits(3))

        def __iter__(self):
            return iter(self.rng.permutation(8).tolist())

        def __len__(self):
            return 8

    return lambda: DataLoader(Numbers(), sampler=Order())


def of_python():
    class Noisy(Numbers):
        def __init__(self):
            super().__init__()
            self.rng = random.Random(3)

        def __getitem__(self, index):
            return torch.tensor([float(self.rng.randrange(100))])

    return DataLoader(Noisy())


@pytest.mark.parametrize("cut", [3, 8, 12])
@pytest.mark.parametrize("make", [of_torch, of_numpy(np.random.PCG64), of_numpy(np.random.MT19937), of_python])
def test_generators_that_the_data_holds_are_part_of_the_position(make, cut, tmp_path):
    def trained(limits, folder):
        seen = []
        for limit in limits:
            model, env = made(seen)
            hook = Hook(snapshots=Snapshots(folder), resume=True)
            Trainer(env, make()).train(model, opt.sgd(model), hook, epochs=3, steplimit=limit)
        return seen

    assert trained([cut, 24], tmp_path / "cut") == trained([24], tmp_path / "whole")


def test_data_that_has_become_shorter_is_named_and_its_pass_is_over(tmp_path, capsys):
    for n, limit in ((8, 6), (4, 20)):
        seen = []
        model, env = made(seen)
        hook = Hook(snapshots=Snapshots(tmp_path), resume=True)
        Trainer(env, loader(shuffle=False, n=n)).train(model, opt.sgd(model), hook, epochs=2, steplimit=limit)
    assert seen == [0, 1, 2, 3]
    assert "gave 4 batches where 6 were trained on before the snapshot" in capsys.readouterr().err


def test_an_iterator_that_a_resumed_run_cannot_put_in_its_place_is_named(tmp_path, capsys):
    for limit in (3, 5):
        model, env = made([])
        hook = Hook(snapshots=Snapshots(tmp_path), resume=True)
        Trainer(env, iter(loader())).train(model, opt.sgd(model), hook, steplimit=limit)
    assert "is an iterator, which cannot be put behind the 3 batches that were trained on" in capsys.readouterr().err


def test_of_an_iterator_with_a_state_nothing_is_said(capsys):
    class Counting:
        at = 0

        def __iter__(self):
            return self

        def __next__(self):
            self.at += 1
            return self.at

        def state_dict(self):
            return {"at": self.at}

        def load_state_dict(self, state):
            self.at = state["at"]

    data = Counting()
    data.load_state_dict({"at": 3})
    position = DataPosition(data)
    position.go_to({"epoch": 0, "batch": 3, "began": None}, None, 3)
    assert next(position.batches()) == 4
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("cut", [3, 8, 12, 16, 20])
def test_a_shuffled_torch_loader_goes_on_in_the_middle_of_any_pass(cut, tmp_path):
    def trained(limits, folder):
        seen = []
        for limit in limits:
            model, env = made(seen)
            hook = Hook(snapshots=Snapshots(folder), resume=True)
            Trainer(env, loader()).train(model, opt.sgd(model), hook, steplimit=limit, epochs=3)
        return seen

    assert trained([cut, 24], tmp_path / "cut") == trained([24], tmp_path / "whole")


@pytest.mark.parametrize("killed_at", [None, 4, 8, 12, 20])
def test_a_users_own_loop_over_epochs_resumes_once_and_sees_every_batch_once_an_epoch(killed_at, tmp_path):
    seen = []

    class KilledError(Exception):
        pass

    def script(kill):
        model, env = made(seen)
        hook = Hook(snapshots=Snapshots(tmp_path), save_interval=2, resume=True)
        optimizer, data = opt.sgd(model), loader(shuffle=False)

        def dying(model, batch, step):
            if step == kill:
                raise KilledError
            return env(model, batch, step)

        step = 0
        for _ in range(3):
            step = Trainer(dying, data).train(model, optimizer, hook, step=step)
        return step

    if killed_at is not None:
        with pytest.raises(KilledError):
            script(killed_at)
    assert script(None) == 24
    assert seen == [*range(8)] * 3


def test_a_snapshot_without_a_position_counts_through_the_passes(tmp_path, capsys):
    seen = []
    model, env = made(seen)
    optimizer = opt.sgd(model)
    Trainer(env, loader(shuffle=False)).train(
        model, optimizer, Hook(snapshots=Snapshots(tmp_path)), epochs=3, steplimit=20
    )
    state = snapshot.read(tmp_path / "000000020")
    del state["position"]

    class Load(HookInterface):
        def setup(self, run):
            run.load_state_dict(state)

        def wants_log(self, step):
            return False

    seen.clear()
    assert Trainer(env, loader(shuffle=False)).train(model, optimizer, [Load()], epochs=3) == 24
    assert seen == [4, 5, 6, 7]
    assert "passing over the 20 batches" in capsys.readouterr().err


def test_finished_data_is_not_trained_on_again_by_the_same_script(tmp_path, capsys):
    for expected in (8, 8):
        model, env = made([])
        hook = Hook(snapshots=Snapshots(tmp_path), resume=True)
        assert Trainer(env, loader()).train(model, opt.sgd(model), hook) == expected
    assert "nothing to train: at step 8 the data was passed over 1 times, and epochs is 1; raise epochs" in (
        capsys.readouterr().err
    )


def test_data_that_gives_nothing_is_said(capsys):
    model, env = made([])
    used = iter([torch.ones(1, 1)])
    next(used)
    for data in ([], used):
        with pytest.raises(ValueError, match="gave no batch: it is empty, or an iterator that has been run through"):
            Trainer(env, data).train(model, opt.sgd(model))
    with pytest.raises(ValueError, match=r"epochs \(2\) asks for another pass over the data, and an iterator"):
        Trainer(env, iter([torch.ones(1, 1)])).train(model, opt.sgd(model), epochs=2)
    assert Trainer(env, [torch.ones(1, 1)] * 3).train(model, opt.sgd(model), steplimit=9) == 3
    assert "the data ended at step 3, before steplimit (9): pass epochs=" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"epochs \(0\) must be at least 1"):
        Trainer(env, []).train(model, opt.sgd(model), epochs=0)


def test_epochs_of_a_loader_that_never_ends_are_counted_by_its_length():
    model, env = made([])
    data = OurDataset(torch.arange(10.0)[:, None]).loader(4, train=True)  # two batches an epoch
    assert Trainer(env, data).train(model, opt.sgd(model), epochs=3) == 6
    assert Trainer(env, data, accumulate=2).train(model, opt.sgd(model), epochs=3) == 3


def test_a_sampler_that_shuffles_by_epoch_is_told_the_epoch():
    seen = []
    model, env = made(seen)
    data = Numbers()
    sampler = DistributedSampler(data, num_replicas=1, rank=0, seed=5)
    Trainer(env, DataLoader(data, sampler=sampler)).train(model, opt.sgd(model), epochs=2)
    orders = []
    for epoch in (0, 1):
        sampler.set_epoch(epoch)
        orders += list(sampler)
    assert seen == orders


def test_a_rank_that_joins_a_run_of_one_process_draws_noise_of_its_own(tmp_path):
    from ai.train import Run
    from ai.train.distributed.sharded import load_ranks
    from ai.train.engine.ranks import Ranks

    def rank_of_three(rank):
        return type("Joined", (Ranks,), {"rank": rank, "world": 3})()

    model, env = made([])
    Trainer(env, loader()).train(model, opt.sgd(model), Hook(snapshots=Snapshots(tmp_path)), steplimit=5)
    draws, seen = [], []
    for ranks in map(rank_of_three, range(3)):
        run = Run({"model": model}, {"model": opt.sgd(model)}, loader(), ranks=ranks)
        load_ranks(run, tmp_path / "000000005")
        seen.append([int(batch[0, 0]) for batch in [next(run.batches())]])
        draws.append(torch.rand(4))
    assert seen[0] == seen[1] == seen[2]  # one order, of which a sampler gives each rank its part
    assert len({tuple(drawn.tolist()) for drawn in draws}) == 3
