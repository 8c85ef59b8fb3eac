"""Which files of a folder are its images: one rule, for datasets, labels and packs alike."""

import os
import stat
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from ai.data.storage.remote import RemoteFolder

# Pillow registers these and decodes none of them by itself: EPS runs a program, the others need one to be installed.
_NOT_DECODED = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
_INT64 = 2**63 - 1
_FOLDER = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0)


@dataclass
class Found:
    """What a folder holds.

    Args:
        files: the images, relative to the folder with `/`, sorted.
        marks: `[n, 3]` int64, of each its size in bytes (-1 if it cannot be looked at) and what changes with its
            content. For a local file that is the time of its last change of any kind (ctime, in ns), which nobody can
            set, and its inode: folders of files that were unpacked in one moment may be exchanged.
        folders: the folders directly in it, empty ones too, each with its number of images, in the order of `files`.
    """

    files: list[str]
    marks: np.ndarray
    folders: dict[str, int]


def find_images(root: Path | RemoteFolder) -> Found:
    """Returns the images in a folder and its subfolders.

    An image is a regular file whose ending, in either case, is that of a format which Pillow decodes. Files and folders
    whose names begin with a dot, and `__MACOSX`, are passed over. Links are followed, to files and to folders, but
    never into a folder that the link itself lies in; a link that leads nowhere counts, and is reported as a file that
    cannot be read. Pipes, sockets and devices do not count.

    Every file is looked at: what was written into it again shows nowhere else.
    """
    if isinstance(root, RemoteFolder):
        return _find_remote(root)
    files: list[str] = []
    marks: list[int] = []  # flat, and of numbers: records would keep the garbage collector busy
    folder = os.open(root, _FOLDER)
    try:
        folders = _search(folder, "", {_identity(folder)}, files, marks)
    finally:
        os.close(folder)
    return _sorted(Found(files, np.array(marks, np.int64).reshape(-1, 3), folders))


@cache
def image_endings() -> frozenset[str]:
    """Returns the endings that count, in lower case and with the dot."""
    from PIL import Image

    Image.init()
    known = Image.registered_extensions().items()
    return frozenset(ending for ending, kind in known if kind in Image.OPEN and kind not in _NOT_DECODED)


def is_image_name(name: str) -> bool:
    """Returns whether a file of this name may be an image."""
    return name[name.rfind(".") :].lower() in image_endings()


def _passed_over(name: str) -> bool:
    return name[0] == "." or name == "__MACOSX"


def _search(
    folder: int, prefix: str, above: set[tuple[int, int]], files: list[str], marks: list[int]
) -> dict[str, int]:
    """Adds the images below an open folder and returns the folders in it with their numbers of images.

    By its descriptor a file is looked at without a walk along its whole path, which takes a fifth of the time.
    """
    names, endings = os.listdir(folder), image_endings()
    images = sorted([name for name in names if name[name.rfind(".") :].lower() in endings])
    folders = _other_folders(folder) if len(images) < len(names) else []
    for name in images:
        if name[0] == ".":
            continue
        try:
            look = os.stat(name, dir_fd=folder)
        except OSError:  # a link that leads nowhere
            marks += -1, 0, 0
        else:
            if not stat.S_ISREG(look.st_mode):
                if stat.S_ISDIR(look.st_mode):
                    folders.append(name)
                continue
            marks += look.st_size, look.st_ctime_ns, look.st_ino & _INT64
        files.append(prefix + name)
    counts: dict[str, int] = {}
    for name in sorted(folders, key=_as_in_paths):
        n_before = len(files)
        if _search_inner(folder, name, prefix, above, files, marks):
            counts[name] = len(files) - n_before
    return counts


def _other_folders(folder: int) -> list[str]:
    """Returns the folders in an open one whose names do not end as those of images do."""
    with os.scandir(folder) as entries:
        return [
            entry.name
            for entry in entries
            if not _passed_over(entry.name) and not is_image_name(entry.name) and _is_folder(entry)
        ]


def _as_in_paths(folder: str) -> str:
    return folder + "/"


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads round in a circle leads nowhere
        return False


def _search_inner(
    folder: int, name: str, prefix: str, above: set[tuple[int, int]], files: list[str], marks: list[int]
) -> bool:
    """Adds the images below a folder in an open one, unless it is one of those above; returns whether."""
    try:
        inner = os.open(name, _FOLDER, dir_fd=folder)
    except OSError as error:
        error.filename = prefix + name  # the name alone may be that of many folders
        raise
    try:
        identity = _identity(inner)
        if identity not in above:
            _search(inner, f"{prefix}{name}/", {*above, identity}, files, marks)
    finally:
        os.close(inner)
    return identity not in above


def _find_remote(root: RemoteFolder) -> Found:
    names, folders = root.listed()
    files = [name for name in names if is_image_name(name) and not any(map(_passed_over, name.split("/")))]
    counts = {name: 0 for name in sorted(folders, key=_as_in_paths) if not _passed_over(name)}
    for name in files:
        if "/" in name:
            counts[name[: name.index("/")]] += 1
    return Found(files, root.marks(files), counts)


def _sorted(found: Found) -> Found:
    if (files := sorted(found.files)) == found.files:  # but where images and folders lie side by side
        return found
    order = sorted(range(len(files)), key=found.files.__getitem__)
    return Found(files, found.marks[order], found.folders)


def _identity(folder: int) -> tuple[int, int]:
    status = os.fstat(folder)
    return status.st_dev, status.st_ino
