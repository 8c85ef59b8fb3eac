"""A pack: the images of many files, decoded once into one memory-mapped array.

Layout: `<folder>/<key>/images.npy` (uint8 `[n, channels, height, width]`), `sources.json` (how it was made, and of
which folder), `names.json`, `marks.npy` and `digests.npy` (of each file in it the name, what `Found` marks it with, and
a hash of its content), and last `files.json` (how many images, and which files are none). The key is a hash of what it
is made of, with the mark of each file. When files of a folder come, go or change, images whose files are marked or hold
what they did are taken from the folder's earlier pack, which is deleted then. A pack is built in a folder of its own
and renamed into place, so that it is whole or absent; a lock that dies with its holder keeps a second process from
building the same pack. The holder touches the lock's file as it goes on, so that one that hangs is waited for no longer
than `_PATIENCE_S`.
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
from contextlib import contextmanager, suppress
from dataclasses import astuple
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ai.data.images.decode import Decoder, read_regular
from ai.data.images.earlier import Earlier, Image
from ai.data.images.folder import Found
from ai.data.storage.remote import RemoteFolder

_FORMAT = 4  # those before knew files by times that can be set, and prove nothing
# Changes of a file within so many ns may carry one time, and its content is read only after them; where times are of
# whole seconds, within the second.
_TICK_NS, _COARSE_TICK_NS = 20_000_000, 2_000_000_000
_DIGEST_SIZE = 16  # bytes
# Files that a thread decodes in one go: handing over costs a tenth of a small image.
_CHUNK = 8
# A builder without progress for so long hangs or is stopped; reserving and flushing a large file may take minutes.
_PATIENCE_S = 1800.0
_POLL_S = 0.1


def open_pack(
    folder: Path, root: Path | RemoteFolder, found: Found, decoder: Decoder, on_error: Literal["raise", "skip"]
) -> tuple[np.ndarray, list[str]]:
    """Returns the images (read-only, memory-mapped) and their files, building the pack where it is missing.

    Args:
        folder: where packs lie.
        root: folder of the image files.
        found: the files.
        decoder: what the images are made with.
        on_error: for a file that is no image: `raise`, or `skip` with a warning that names it.

    Raises:
        ValueError: a file is no image, with `raise`; or none is one.
        TimeoutError: another process that builds this pack made no progress for half an hour.
    """
    where = os.fsdecode(root.resolve()) if isinstance(root, Path) else root.url
    how = {"format": _FORMAT, "root": where, "decoder": astuple(decoder), "on_error": on_error}
    sources: dict[str, Any] = json.loads(json.dumps(how))  # as they are read back
    key = _key(found, sources)
    pack = folder / key
    if (opened := _opened(pack, found, decoder)) is None:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder / f"{key}.lock", root) as lock:
            if (opened := _opened(pack, found, decoder)) is None:  # nobody built it while we waited
                clear_pack(pack)  # one that is damaged
                for left_over in folder.glob(f"{key}.building*"):
                    shutil.rmtree(left_over)
                building = folder / f"{key}.building"
                building.mkdir()
                earlier = _earlier(folder, sources)
                try:
                    _build(building, root, found, decoder, on_error, lock, sources, Earlier.of(earlier))
                    os.rename(building, pack)
                except BaseException:
                    shutil.rmtree(building)
                    raise
                for superseded in earlier:  # of the same folder before it changed
                    if {**_sources(superseded), "format": _FORMAT} == sources:
                        clear_pack(superseded)
                opened = _opened(pack, found, decoder)
                assert opened is not None
    with suppress(OSError):  # tells when it was last used; a cache may be read-only
        os.utime(pack)
    return opened


def _opened(pack: Path, found: Found, decoder: Decoder) -> tuple[np.ndarray, list[str]] | None:
    """Returns the images and files of a pack; None where it is absent or damaged."""
    try:
        listed = json.loads((pack / "files.json").read_text())
        images = np.load(pack / "images.npy", mmap_mode="r")
        n_images, skipped = listed["n_images"], set(listed["skipped"])
        whole = images.dtype == np.uint8 and images.shape[1:] == decoder.shape and len(images) >= n_images > 0
    except (OSError, ValueError, EOFError, KeyError, TypeError):
        return None
    kept = [name for name in found.files if name not in skipped] if skipped else found.files
    return (images[:n_images], kept) if whole and len(kept) == n_images else None


def clear_pack(pack: Path) -> None:
    """Deletes a pack; who has it open keeps it until he ends."""
    with suppress(FileNotFoundError):
        os.unlink(pack / "files.json")  # from here on it is absent
    shutil.rmtree(pack, ignore_errors=True)


def _key(found: Found, sources: dict[str, Any]) -> str:
    # With the folder: unpacked archives often give files of equal names and sizes equal times.
    digest = hashlib.blake2b(repr(sorted(sources.items())).encode("utf-8", "surrogateescape"), digest_size=12)
    digest.update("\0".join(found.files).encode("utf-8", "surrogateescape"))
    digest.update(found.marks.tobytes())
    return digest.hexdigest()


def _earlier(folder: Path, sources: dict[str, Any]) -> list[Path]:
    """Returns the packs of the same folder, made in the same way, the one used last first."""
    packs = [path.parent for path in folder.glob("*/sources.json") if path.parent.suffix != ".building"]
    free = {"on_error": 0, "format": 0}
    of_it = [pack for pack in packs if {**_sources(pack), **free} == {**sources, **free}]
    return sorted(of_it, key=lambda pack: pack.stat().st_mtime, reverse=True)


def _sources(pack: Path) -> dict[str, Any]:
    """Returns what a pack was made of, without its files; empty where it cannot be read."""
    try:
        content = json.loads((pack / "sources.json").read_text())
    except (OSError, ValueError):
        return {}
    return {key: value for key, value in content.items() if key != "marks"} if isinstance(content, dict) else {}


def _build(
    building: Path,
    root: Path | RemoteFolder,
    found: Found,
    decoder: Decoder,
    on_error: str,
    lock: Path,
    sources: dict[str, Any],
    earlier: Earlier,
) -> None:
    from tqdm import tqdm  # type: ignore[import-untyped]

    files = [(name, *mark) for name, mark in zip(found.files, found.marks.tolist(), strict=True)]
    images = np.lib.format.open_memmap(building / "images.npy", "w+", np.uint8, (len(files), *decoder.shape))
    if hasattr(os, "posix_fallocate"):  # a full disk is an error here, and a crash when a mapped page is written
        with open(building / "images.npy", "r+b") as array:
            os.posix_fallocate(array.fileno(), 0, os.path.getsize(array.name))
    digests = np.zeros((len(files), _DIGEST_SIZE), np.uint8)
    kept: list[str] = []
    marks: list[list[int]] = []
    bad: list[str] = []
    told = time.monotonic()
    os.utime(lock)
    if isinstance(root, Path):
        _let_tick(found)
    decoded = _decoded(root, [file[0] for file in files if file not in earlier.by_mark], decoder, earlier)
    with tqdm(total=len(files), desc=f"packing {root.name}", unit="img", delay=1) as bar:
        for file in files:
            place = earlier.by_mark.get(file)
            outcome = next(decoded) if place is None else earlier.image(place)
            if isinstance(outcome, OSError):
                if on_error == "raise":
                    said = f"{root}/{file[0]} is no image that can be read: {outcome}; on_error='skip' leaves it out"
                    raise ValueError(said) from outcome
                bad.append(file[0])
            else:
                images[len(kept)] = outcome.pixels
                digests[len(kept)] = np.frombuffer(outcome.digest, np.uint8)
                kept.append(file[0])
                marks.append([*file[1:]])
            bar.update()
            if time.monotonic() - told > 1:
                told = time.monotonic()
                os.utime(lock)
    if not kept:
        raise ValueError(f"none of the {len(files)} files in {root} is an image that can be read, e.g. {files[0][0]}")
    if bad:
        import warnings

        warnings.warn(f"skipped {len(bad)} files in {root} that are no images: {', '.join(bad[:20])}", stacklevel=5)
    images.flush()
    del images
    (building / "sources.json").write_text(json.dumps(sources))
    (building / "names.json").write_text(json.dumps(kept))
    np.save(building / "marks.npy", np.array(marks, np.int64))
    np.save(building / "digests.npy", digests[: len(kept)])
    with open(building / "files.json", "w") as file_list:
        json.dump({"n_images": len(kept), "skipped": bad}, file_list)
        file_list.flush()
        os.fsync(file_list.fileno())


def _let_tick(found: Found) -> None:
    """Returns once a later change of any file has a later time than the one that was found."""
    times = found.marks[:, 1]
    tick = _TICK_NS if (times % 1_000_000_000).any() else _COARSE_TICK_NS
    age = time.time_ns() - int(times.max())
    if age < tick:
        time.sleep(min(tick - age, tick) / 1e9)  # a clock elsewhere may be ahead


def _decoded(
    root: Path | RemoteFolder, files: Sequence[str], decoder: Decoder, earlier: Earlier
) -> Iterator[Image | OSError]:
    """Yields each file's image or error, in order; threads suffice, since decoding releases the interpreter lock."""
    import torch

    def attempt(name: str) -> Image | OSError:
        if isinstance(root, RemoteFolder):
            content = root.read(name)  # a store that cannot be reached says nothing of its files
        try:
            if isinstance(root, Path):
                content = read_regular(root / name)
            digest = hashlib.blake2b(content, digest_size=_DIGEST_SIZE).digest()
            if (place := earlier.by_digest.get(digest)) is not None:
                return earlier.image(place)
            return Image(decoder(content).numpy(), digest)
        except OSError as error:
            return error

    def decode(names: Sequence[str]) -> list[Image | OSError]:
        return [attempt(name) for name in names]

    n_workers = min(8, os.cpu_count() or 1)
    with _one_torch_thread(torch), ThreadPoolExecutor(n_workers) as executor:
        waiting: deque[Future[list[Image | OSError]]] = deque()
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
def _locked(path: Path, root: Path | RemoteFolder) -> Iterator[Path]:
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
