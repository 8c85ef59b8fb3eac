"""Loaders that end on the device, against what its copy engine can do."""

import tempfile
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ai.data import Dataset, augment
from gpu_parts.machine import Job, Machine, Row, seconds_each, timed

SKIPPED = 8  # batches at first, in which memory is taken and locked


def rows(machine: Machine) -> Iterator[Job]:
    """Page-locked, resident, pictures packed from JPEG, and workers."""
    side, n, batch, batches = (8, 256, 16, 12) if machine.quick else (224, 2048, 256, 40)
    images = torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8)
    limit = copy_limit(machine, images[:batch])

    def shown(seconds: float) -> Row:
        return {"images/s": batch / seconds, "of the limit": limit / seconds}

    def measured(dataset: Any, **how: Any) -> Row:
        with dataset.loader(batch, machine.device, train=True, **how) as loader:
            return shown(seconds_each(machine, islice(loader, batches), SKIPPED))

    def of_torch() -> Row:
        theirs = torch.utils.data.DataLoader(
            _Flipped(images), batch, num_workers=2, pin_memory=machine.device.type == "cuda", persistent_workers=True
        )
        copied = (x.to(machine.device, non_blocking=True) for _ in range(batches) for x in theirs)
        return shown(seconds_each(machine, islice(copied, batches), SKIPPED))

    yield Job("page-locked copy, the limit", lambda: shown(limit) | {"GB/s": images[:batch].nbytes / limit / 1e9})
    yield Job("bytes, gathered and copied", partial(measured, Dataset(images)))
    yield Job("bytes, resident", partial(measured, Dataset(images), resident=True))
    with tempfile.TemporaryDirectory() as folder:
        packed = partial(pictures, folder, side, 32 if machine.quick else 512)
        yield Job(f"JPEG pack at {side}², to floats on the device", lambda: measured(packed()), 8)
        yield Job(
            f"JPEG pack at {side}², cropped and mirrored on the device",
            lambda: measured(packed().then({"x": augment.crop(side // 8)}).then({"x": augment.flip()})),
            8,
        )
    yield Job("two workers, one function a sample", partial(measured, Dataset(images, _flipped), n_workers=2), 10)
    yield Job("the same by torch's DataLoader", of_torch, 10)


def pictures(folder: str, side: int, n: int) -> Any:
    """A packed folder of JPEG files, which are written at the first call."""
    from PIL import Image

    from ai.data import ImgDataset

    files = Path(folder, "pictures")
    if not files.exists():
        files.mkdir()
        for index in range(n):
            pixels = np.random.default_rng(index).integers(0, 256, (side + 8, side + 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(files / f"{index}.jpg", quality=85)
    return ImgDataset(files, side, cache=Path(folder, "packs"))


class _Flipped(torch.utils.data.Dataset[torch.Tensor]):
    def __init__(self, images: torch.Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor:
        return _flipped(self.images[index])


def _flipped(x: torch.Tensor) -> torch.Tensor:
    return x.flip(-1)


def copy_limit(machine: Machine, batch: torch.Tensor) -> float:
    """Seconds to copy one batch from page-locked memory, with nothing else to do."""
    there = torch.empty_like(batch, device=machine.device)
    held = batch.pin_memory() if machine.device.type == "cuda" else batch

    def copy() -> None:
        there.copy_(held, non_blocking=True)

    return timed(machine, copy, 5 if machine.quick else 30)
