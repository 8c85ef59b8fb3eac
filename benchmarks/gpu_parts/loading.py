"""Loaders that end on the device, against what its copy engine can do."""

import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ai.data import Dataset, ImgDataset, augment
from gpu_parts.machine import Machine, Row, seconds_each, timed


def rows(machine: Machine) -> Iterator[Row]:
    """Resident, page-locked, workers, and pictures packed from JPEG."""
    side, n, batch, batches = (8, 64, 16, 4) if machine.quick else (224, 2048, 256, 40)
    images = torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8)
    limit = copy_limit(machine, images[:batch])
    yield {"row": "page-locked copy, the limit", "images/s": batch / limit, "GB/s": images[:batch].nbytes / limit / 1e9}

    def measured(name: str, dataset: Any, **how: Any) -> Row:
        loader = dataset.loader(batch, machine.device, train=True, **how)
        with loader:
            rate = batch / seconds_each(machine, islice(loader, batches))
        return {"row": name, "images/s": rate, "of the limit": rate * limit / batch}

    yield measured("bytes, gathered and copied", Dataset(images))
    yield measured("bytes, resident", Dataset(images), resident=True)
    yield measured("two workers, one function a sample", Dataset(images, _flipped), n_workers=2)
    theirs = torch.utils.data.DataLoader(
        _Flipped(images), batch, num_workers=2, pin_memory=machine.device.type == "cuda", persistent_workers=True
    )
    copied = (x.to(machine.device, non_blocking=True) for _ in range(batches) for x in theirs)
    rate = batch / seconds_each(machine, islice(copied, batches))
    yield {"row": "the same by torch's DataLoader", "images/s": rate, "of the limit": rate * limit / batch}
    with tempfile.TemporaryDirectory() as folder:
        pictures = Path(folder, "pictures")
        pictures.mkdir()
        for index in range(32 if machine.quick else 512):
            pixels = np.random.default_rng(index).integers(0, 256, (side + 8, side + 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(pictures / f"{index}.jpg", quality=85)
        packed = ImgDataset(pictures, side, cache=Path(folder, "packs"))
        yield measured(f"JPEG pack at {side}², to floats on the device", packed)
        changed = packed.then({"x": augment.crop(side // 8)}).then({"x": augment.flip()})
        yield measured(f"JPEG pack at {side}², cropped and mirrored on the device", changed)


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
