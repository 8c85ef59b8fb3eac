"""Which files of a folder are its images: one rule, for datasets, labels and packs alike."""

import os
import stat
from dataclasses import dataclass
from functools import cache
from pathlib import Path

# Pillow registers these and decodes none of them by itself: EPS runs a program, the others need one to be installed.
_NOT_DECODED = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
_FOLDER = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0)


@dataclass
class Found:
    """What a folder holds.

    Args:
        files: the images, relative to the folder with `/`, sorted.
        sizes: of each in bytes; -1 of one that cannot be looked at.
        changed: when each was changed last, in ns; 0 of one that cannot be looked at.
        folders: names of the folders directly in it, sorted, empty ones too.
    """

    files: list[str]
    sizes: list[int]
    changed: list[int]
    folders: list[str]


def find_images(root: Path) -> Found:
    """Returns the images in a folder and its subfolders.

    An image is a regular file whose ending, in either case, is that of a format which Pillow decodes. Files and folders
    whose names begin with a dot, and `__MACOSX`, are passed over. Links are followed, to files and to folders, but
    never into a folder that the link itself lies in; a link that leads nowhere counts, and is reported as a file that
    cannot be read. Pipes, sockets and devices do not count.

    Every file is looked at: what was written into it again shows nowhere else.
    """
    found = Found([], [], [], [])  # lists of numbers, not of records, which would keep the garbage collector busy
    folder = os.open(root, _FOLDER)
    try:
        folders = _search(folder, "", image_endings(), {_identity(folder)}, found)
    finally:
        os.close(folder)
    order = sorted(range(len(found.files)), key=found.files.__getitem__)
    return Found(
        [found.files[place] for place in order],
        [found.sizes[place] for place in order],
        [found.changed[place] for place in order],
        sorted(folders),
    )


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


def _search(
    folder: int,
    prefix: str,
    endings: frozenset[str],
    above: set[tuple[int, int]],
    found: Found,
) -> list[str]:
    """Adds the images below an open folder and returns the names of the folders in it.

    By its descriptor a file is looked at without a walk along its whole path, which takes a fifth of the time.
    """
    folders: list[str] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            if name[0] == "." or name == "__MACOSX":
                continue
            if _is_folder(entry):
                try:
                    inner = os.open(name, _FOLDER, dir_fd=folder)
                except OSError as error:
                    error.filename = prefix + name  # the name alone may be that of many folders
                    raise
                try:
                    identity = _identity(inner)
                    if identity not in above:
                        folders.append(name)
                        _search(inner, f"{prefix}{name}/", endings, {*above, identity}, found)
                finally:
                    os.close(inner)
            elif name[name.rfind(".") :].lower() in endings:
                try:
                    look = entry.stat()
                except OSError:  # a link that leads nowhere
                    size, time = -1, 0
                else:
                    if not stat.S_ISREG(look.st_mode):
                        continue
                    size, time = look.st_size, look.st_mtime_ns
                found.files.append(prefix + name)
                found.sizes.append(size)
                found.changed.append(time)
    return folders


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads round in a circle leads nowhere
        return False


def _identity(folder: int) -> tuple[int, int]:
    status = os.fstat(folder)
    return status.st_dev, status.st_ino
