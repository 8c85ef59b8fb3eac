"""Batches, changes of images and priorities on a device."""

import numpy as np
import pytest
import torch

from ai.data import Dataset, ReplayBuffer, augment
from ai.data.batch.device import Arriving, to_device
from ai.examples.augment import affine, erase
from tests.devices import assert_close, beside, lies_on
from tests.pretended_cuda import PretendedCuda


def images(n=16):
    rng = torch.Generator().manual_seed(0)
    return {"x": torch.rand(n, 3, 8, 8, generator=rng) * 2 - 1, "y": torch.arange(n, dtype=torch.uint8) % 5}


@pytest.mark.parametrize("options", [{}, {"resident": True}, {"pin": False}])
def test_a_loader_gives_the_same_batches_on_every_device(options, device):
    if device == "cpu":
        options = {name: value for name, value in options.items() if name != "pin"}
    ds = Dataset(images())
    for ours, expected in zip(ds.loader(5, device, **options), ds.loader(5), strict=True):
        assert lies_on(ours, device)
        assert_close(ours, expected)


@pytest.mark.parametrize("how", ["gathered", "resident", "unpinned", "thread"])
def test_batches_are_made_in_whatever_stream_is_the_current_one(how, device):
    options = {"resident": {"resident": True}, "thread": {"n_workers": 1, "worker": "thread"}}.get(how, {})
    if how == "unpinned" and device == "cuda":
        options = {"pin": False}
    ds = Dataset(images(), preprocess={"x": lambda x: x * 1} if how == "thread" else None).then({"x": augment.flip()})
    with ds.loader(4, device, train=True, **options) as loader:
        replay = buffer()
        with beside(device):
            means = [batch["x"].mean() for batch, _ in zip(loader, range(6), strict=False)]
            replay.update_priorities(replay.sample(2)["index"].to(device), means[0].abs().expand(2))
        replay.sample(2)
        if device == "cuda":
            torch.cuda.synchronize()
    assert all(bool(mean.isfinite()) for mean in means)


@pytest.mark.parametrize("resident", [False, True])
def test_a_training_loader_does_not_wait_for_the_device(resident, device, no_sync):
    changes = [{"x": augment.crop(2)}, {"x": augment.flip()}, {"x": augment.cutout(3)}, augment.mixup(5)]
    ds = Dataset(images())
    for change in changes:
        ds = ds.then(change)
    batches = iter(ds.loader(4, device, train=True, resident=resident))
    next(batches)
    with no_sync():
        batch = next(batches)
    assert lies_on(batch, device)


def test_a_preprocess_in_workers_ends_on_the_device(device, no_sync):
    ds = Dataset(images(), preprocess=lambda sample: {"x": sample["x"] + 1, "y": sample["y"]})
    with ds.loader(4, device, n_workers=1, worker="thread") as loader:
        batches = iter(loader)
        with no_sync():
            batch = next(batches)
    assert lies_on(batch, device)
    assert_close(batch["x"], images()["x"][:4] + 1)


CHANGES = {
    "flip": augment.flip(),
    "crop": augment.crop(2),
    "crop reflect": augment.crop(2, "reflect"),
    "color": augment.color(),
    "cutout": augment.cutout(3),
    "affine": affine(15, 0.1, 0.2, 0.3),
    "erase": erase(0.5, (0.02, 0.2)),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_of_images_stays_on_their_device_and_waits_for_nothing(name, device, no_sync):
    x = images()["x"].to(device)
    CHANGES[name](x, torch.Generator(device))  # the first batch is looked at: are its images in [-1, 1]?
    with no_sync():
        changed = CHANGES[name](x, torch.Generator(device).manual_seed(1))
    assert lies_on(changed, device)
    assert changed.shape == x.shape
    if PretendedCuda.active is not None:  # it draws what the CPU draws
        assert_close(changed, CHANGES[name](images()["x"], torch.Generator().manual_seed(1)))


@pytest.mark.parametrize("mix", [augment.mixup(5), augment.cutmix(5)])
def test_mixed_batches_stay_on_their_device_and_wait_for_nothing(mix, device, no_sync):
    batch = {key: value.to(device) for key, value in images().items()}
    with no_sync():
        mixed = mix(batch, torch.Generator(device).manual_seed(1))
    assert lies_on(mixed, device)
    assert_close(mixed["y"].sum(1), torch.ones(16))


def test_a_batch_that_is_moved_is_no_longer_read_when_its_memory_is_written(device):
    """Page-locked memory that a copy still reads must not change: the loader hands out memory it will not touch."""
    ds = Dataset(images())
    batches = iter(ds.loader(4, device, train=True))
    kept = [(batch, batch["x"].clone()) for batch, _ in zip(batches, range(6), strict=False)]
    for batch, copied in kept:
        assert torch.equal(batch["x"].cpu(), copied.cpu())


def test_an_array_goes_through_page_locked_memory_of_its_own(device, no_sync):
    array = np.arange(4, dtype=np.float32)
    with no_sync():
        there = to_device(array, torch.device(device), pin=device == "cuda")
    if device == "cuda":
        array[:] = -1  # the copy reads the page-locked memory, not the array
    assert torch.equal(there.cpu(), torch.arange(4.0))


def buffer():
    made = ReplayBuffer(64, alpha=1.0, seed=0)
    for start in range(3):
        obs = np.arange(start, start + 9, dtype=np.float32)[:, None]
        made.add({"obs": obs, "action": np.zeros(8, np.int64), "reward": np.ones(8, np.float32)} | ends(8))
    return made


def ends(n):
    return {"discount": np.ones(n, np.float32)}


def test_priorities_of_a_device_are_not_waited_for_and_change_the_draws_as_those_of_the_cpu_do(device, no_sync):
    ours, expected = buffer(), buffer()
    for step in range(4):
        batch, wanted = ours.sample(6), expected.sample(6)
        assert_close(batch, wanted)
        priority = torch.arange(6.0) + step
        expected.update_priorities(wanted["index"], priority)
        index, there = batch["index"].to(device), priority.to(device)
        with no_sync():
            ours.update_priorities(index, there)
        there.fill_(1e9)  # what was sent is what the device had then
    state, wanted = ours.state_dict(), expected.state_dict()
    assert torch.equal(state["priority"], wanted["priority"])
    assert state["top_priority"] == wanted["top_priority"]


def test_a_priority_of_a_device_that_is_not_finite_is_refused_when_it_has_come(device):
    made = buffer()
    index = made.sample(2)["index"].to(device)

    def send():
        made.update_priorities(index, torch.tensor([1.0, torch.nan]).to(device))
        made.sample(2)

    with pytest.raises(ValueError, match="priority must be finite"):
        send()
    assert len(made.sample(2)["index"]) == 2  # and the buffer goes on


def test_what_arrives_is_what_was_sent(device, no_sync):
    a, b = torch.arange(3).to(device), torch.randn(2, 2).to(device)
    with no_sync():
        arriving = Arriving(a, b)
    first, second = arriving.wait()
    assert torch.equal(first, torch.arange(3))
    assert torch.equal(second, b.cpu())
