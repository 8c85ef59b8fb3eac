"""A pack: the images of many files, decoded once into one memory-mapped array.

Layout: `<folder>/<key>/images.npy` (uint8 `[n, channels, height, width]`) and `files.json` (the name of each image's
file). The key is a hash of what the content depends on. A pack is built in a folder of its own and renamed into place,
so that it is whole or absent; a lock that dies with its holder keeps a second process from building the same pack. The
holder touches the lock's file as it goes on, so that one that hangs is waited for no longer than `_PATIENCE_S`.
"""

import fcntl
import hashlib
import json
import os
import shutil
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import astuple
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor

from ai.data.storage.image_decode import Decoder

_FORMAT = 1
# Files that a thread decodes in one go: handing over costs a tenth of a small image.
_CHUNK = 8
# A builder without progress for so long hangs or is stopped; reserving and flushing a large file may take minutes.
_PATIENCE_S = 1800.0
_POLL_S = 0.1


def open_pack(
    folder: Path, root: Path, files: Sequence[str], decoder: Decoder, on_error: Literal["raise", "skip"]
) -> tuple[np.ndarray, list[str]]:
    """Returns the images (read-only, memory-mapped) and their files, building the pack where it is missing.

    Args:
        folder: where packs lie.
        root: folder of the image files.
        files: names relative to `root`, in order.
        decoder: what the images are made with.
        on_error: for a file that is no image: `raise`, or `skip` with a warning that names it.

    Raises:
        ValueError: a file is no image, with `raise`; or none is one.
        TimeoutError: another process that builds this pack made no progress for half an hour.
    """
    key = _key(root, files, decoder, on_error)
    pack = folder / key
    if not (pack / "files.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder / f"{key}.lock", root) as lock:
            if not (pack / "files.json").is_file():  # nobody built it while we waited
                for left_over in folder.glob(f"{key}.building*"):
                    shutil.rmtree(left_over)
                building = folder / f"{key}.building"
                building.mkdir()
                try:
                    _build(building, root, files, decoder, on_error, lock)
                    os.rename(building, pack)
                except BaseException:
                    shutil.rmtree(building)
                    raise
    kept = json.loads((pack / "files.json").read_text())
    return np.load(pack / "images.npy", mmap_mode="r")[: len(kept)], kept


def _key(root: Path, files: Sequence[str], decoder: Decoder, on_error: str) -> str:
    # With the folder: unpacked archives often give files of equal names and sizes equal times.
    place = os.fsencode(root.resolve())
    digest = hashlib.blake2b(repr((_FORMAT, astuple(decoder), on_error, place)).encode(), digest_size=12)
    for name in files:
        status = os.stat(root / name)
        digest.update(os.fsencode(name) + f"\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _build(building: Path, root: Path, files: Sequence[str], decoder: Decoder, on_error: str, lock: Path) -> None:
    from tqdm import tqdm  # type: ignore[import-untyped]

    images = np.lib.format.open_memmap(building / "images.npy", "w+", np.uint8, (len(files), *decoder.shape))
    if hasattr(os, "posix_fallocate"):  # a full disk is an error here, and a crash when a mapped page is written
        with open(building / "images.npy", "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, os.path.getsize(file.name))
    kept: list[str] = []
    bad: list[str] = []
    told = time.monotonic()
    os.utime(lock)
    with tqdm(total=len(files), desc=f"packing {root.name}", unit="img", delay=1) as bar:
        for name, outcome in _decoded(root, files, decoder):
            if isinstance(outcome, OSError):
                if on_error == "raise":
                    raise ValueError(f"{root / name} is no image that can be read: {outcome}") from outcome
                bad.append(name)
            else:
                images[len(kept)] = outcome.numpy()
                kept.append(name)
            bar.update()
            if time.monotonic() - told > 1:
                told = time.monotonic()
                os.utime(lock)
    if not kept:
        raise ValueError(f"none of the {len(files)} files in {root} is an image that can be read, e.g. {files[0]}")
    if bad:
        import warnings

        warnings.warn(f"skipped {len(bad)} files in {root} that are no images: {', '.join(bad[:20])}", stacklevel=5)
    images.flush()
    del images
    with open(building / "files.json", "w") as file:
        json.dump(kept, file)
        file.flush()
        os.fsync(file.fileno())


def _decoded(root: Path, files: Sequence[str], decoder: Decoder) -> Iterator[tuple[str, Tensor | OSError]]:
    """Yields each file's pixels or error, in order; threads suffice, since decoding releases the interpreter lock."""
    import torch

    def attempt(name: str) -> Tensor | OSError:
        try:
            return decoder(root / name)
        except OSError as error:
            return error
        except Exception as error:  # Pillow's plugins raise what they like on broken files
            return OSError(f"{type(error).__name__}: {error}")

    def decode(names: Sequence[str]) -> list[tuple[str, Tensor | OSError]]:
        return [(name, attempt(name)) for name in names]

    n_workers = min(8, os.cpu_count() or 1)
    with _one_torch_thread(torch), ThreadPoolExecutor(n_workers) as executor:
        waiting: deque[Future[list[tuple[str, Tensor | OSError]]]] = deque()
        try:
            for first in range(0, len(files), _CHUNK):
                waiting.append(executor.submit(decode, files[first : first + _CHUNK]))
                if len(waiting) > 2 * n_workers:  # bounds the memory of images decoded ahead
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        finally:
            executor.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _one_torch_thread(torch: Any) -> Iterator[None]:
    """The threads of the pool are the parallelism; torch's own on top of them only switch."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)


@contextmanager
def _locked(path: Path, root: Path) -> Iterator[Path]:
    """Holds the lock, telling once whom it waits for; the kernel releases it when its holder dies."""
    with open(path, "a+") as file:
        seen, since = -1, time.monotonic()
        told = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                pass
            file.seek(0)
            holder = file.read().strip() or "of unknown number"
            if not told:
                print(f"ai.data: waiting for process {holder} to pack {root}", file=sys.stderr, flush=True)
                told = True
            if (touched := os.fstat(file.fileno()).st_mtime_ns) != seen:
                seen, since = touched, time.monotonic()
            elif time.monotonic() - since > _PATIENCE_S:
                raise TimeoutError(
                    f"process {holder} holds {path} and made no progress in packing {root} for {_PATIENCE_S:g} s: "
                    "end it, or give another cache"
                )
            time.sleep(_POLL_S)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield path
