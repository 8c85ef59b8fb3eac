"""What SIGKILL costs: of a data worker, of the parent of workers, of the build of an image pack.

Run: `python -m ai.examples.reproduce data-kills [--kills 30]`, on Linux.
"""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ai.examples.datagen_soak import Numbered

_N_IMAGES = 300
_WAIT_S = 60.0


def reproduce(*, kills: int = 30, seed: int = 0) -> dict[str, float]:
    """Kills `kills` times each, at random moments, and counts what was lost or left behind.

    Raises:
        RuntimeError: a batch differs from the undisturbed run's, a worker outlived its parent, or a build left its
            folder behind.
    """
    rng = random.Random(seed)
    shared_memory = set(os.listdir("/dev/shm"))
    figures = _kill_workers(kills, rng) | _kill_parents(kills, rng) | _kill_builds(kills, rng)
    left = [name for name in set(os.listdir("/dev/shm")) - shared_memory if name.startswith(("ai", "torch", "psm"))]
    return figures | {"shared_memory_left": len(left)}


def number(text: str) -> np.ndarray:
    """Runs in the workers of the loader."""
    return np.array([int(text)])


def _kill_workers(kills: int, rng: random.Random) -> dict[str, float]:
    from ai.data import Dataset

    names = [str(i) for i in range(40_000)]
    with Dataset(names, number).loader(10, n_workers=2) as loader:
        moments = set(rng.sample(range(len(loader) - 100), kills))
        for k, batch in enumerate(loader):
            if batch[:, 0].tolist() != list(range(10 * k, 10 * k + 10)):
                raise RuntimeError(f"batch {k} differs after a worker was killed")
            if k in moments:
                os.kill(rng.choice(loader._producer.pids), signal.SIGKILL)  # type: ignore[attr-defined]
        return {"worker_kills": kills, "batches_compared": len(loader), "batches_lost": len(loader) - 1 - k}


def _kill_parents(kills: int, rng: random.Random) -> dict[str, float]:
    longest_s = 0.0
    n_workers = 0
    for _ in range(kills):
        with _start("parent") as parent:
            pids = [int(pid) for pid in _line(parent).split()]
            for _ in range(rng.randrange(20)):
                _line(parent)  # a batch was drawn
            parent.kill()
            start = time.monotonic()
            _wait_until(lambda: not any(map(_is_running, pids)), "a worker outlived its parent")  # noqa: B023
            longest_s = max(longest_s, time.monotonic() - start)
            n_workers += len(pids)
    return {"parent_kills": kills, "workers_of_them": n_workers, "longest_until_gone_s": round(longest_s, 3)}


def _kill_builds(kills: int, rng: random.Random) -> dict[str, float]:
    from PIL import Image

    from ai.data import ImgDataset

    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder, "images")
        images.mkdir()
        pixels = np.random.default_rng(0).integers(0, 256, (_N_IMAGES, 96, 96, 3), np.uint8)
        for i, image in enumerate(pixels):
            Image.fromarray(image).save(images / f"{i:04}.png")
        expected = pixels.transpose(0, 3, 1, 2)
        n_half_built = n_wrong = 0
        for k in range(kills):
            cache = Path(folder, f"packs{k}")
            with _start("build", str(images), str(cache)) as builder:
                _line(builder)
                part = rng.random() * expected.nbytes
                _wait_until(lambda: _written(cache) >= part or builder.poll() is not None, "a build hung")  # noqa: B023
                builder.kill()
                builder.wait()
            n_half_built += not list(cache.glob("*/files.json"))
            pack = ImgDataset(images, 96, cache=cache).data["x"]  # type: ignore[call-overload, index]
            n_wrong += not np.array_equal(pack, expected)
            if left := list(cache.glob("*.building")):
                raise RuntimeError(f"the build after kill {k} left {left[0]}")
    return {"build_kills": kills, "packs_half_built": n_half_built, "packs_wrong": n_wrong}


def _written(cache: Path) -> int:
    """Returns the bytes of the images that lie in half a pack: those up to the last that is not zero."""
    for path in cache.glob("*.building/images.npy"):
        try:
            rows = np.flatnonzero(np.load(path, mmap_mode="r").reshape(_N_IMAGES, -1)[:, :64].any(1))
        except (OSError, ValueError, EOFError):  # renamed, or not yet of full size
            return 0
        return int(rows[-1] + 1) * 96 * 96 * 3 if len(rows) else 0
    return 0


def _start(*arguments: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "ai.examples.data_kills", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def _line(process: "subprocess.Popen[str]") -> str:
    line = process.stdout.readline() if process.stdout else ""
    if not line:
        raise RuntimeError(f"a process that was to be killed ended by itself, with code {process.wait()}")
    return line


def _wait_until(condition: Callable[[], bool], otherwise: str) -> None:
    deadline = time.monotonic() + _WAIT_S
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"{otherwise} for {_WAIT_S:.0f} s")
        time.sleep(0.001)


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def main(what: str, *arguments: str) -> None:
    """Is what gets killed: a parent of four workers that draws batches, or a builder of a pack."""
    if what == "parent":
        from ai.data import Datagen, Dataset

        loader = Dataset([str(i) for i in range(1000)], number).loader(10, train=True, n_workers=2)
        made = Datagen(Numbered()).loader(64, n_workers=2, buffer=10_000)
        print(*loader._producer.pids, *made.pids, flush=True)  # type: ignore[attr-defined]
        for _ in zip(loader, made, strict=False):
            print("batch", flush=True)
    else:
        from ai.data import ImgDataset

        print("ready", flush=True)
        ImgDataset(arguments[0], 96, cache=arguments[1])


if __name__ == "__main__":
    main(*sys.argv[1:])
