"""Which files of a folder are its images: one rule, for datasets, labels and packs alike."""

import os
import stat
from dataclasses import dataclass
from functools import cache
from pathlib import Path

# Pillow registers these and decodes none of them by itself: EPS runs a program, the others need one to be installed.
_NOT_DECODED = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}


@dataclass
class Found:
    """What a folder holds.

    Args:
        files: the images, relative to the folder with `/`, sorted.
        marks: size and time of change in ns of each; (-1, 0) of one that cannot be looked at.
        folders: names of the folders directly in it, sorted, empty ones too.
    """

    files: list[str]
    marks: list[tuple[int, int]]
    folders: list[str]


def find_images(root: Path) -> Found:
    """Returns the images in a folder and its subfolders.

    An image is a regular file whose ending, in either case, is that of a format which Pillow decodes. Files and folders
    whose names begin with a dot, and `__MACOSX`, are passed over. Links are followed, to files and to folders, but
    never into a folder that the link itself lies in; a link that leads nowhere counts, and is reported as a file that
    cannot be read. Pipes, sockets and devices do not count.
    """
    found: list[tuple[str, tuple[int, int]]] = []
    folders = _search(str(root), "", image_endings(), {_identity(str(root))}, found)
    found.sort()
    return Found([name for name, _ in found], [mark for _, mark in found], sorted(folders))


@cache
def image_endings() -> frozenset[str]:
    """Returns the endings that count, in lower case and without the dot."""
    from PIL import Image

    Image.init()
    known = Image.registered_extensions().items()
    return frozenset(ending[1:] for ending, kind in known if kind in Image.OPEN and kind not in _NOT_DECODED)


def is_image_name(name: str) -> bool:
    """Returns whether a file of this name may be an image."""
    return name.rpartition(".")[2].lower() in image_endings() and "." in name


def _search(
    folder: str,
    prefix: str,
    endings: frozenset[str],
    above: set[tuple[int, int]],
    found: list[tuple[str, tuple[int, int]]],
) -> list[str]:
    """Appends the images below `folder` and returns the names of the folders in it."""
    folders: list[str] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            if name[0] == "." or name == "__MACOSX":
                continue
            if entry.is_dir():
                identity = _identity(entry.path)
                if identity not in above:
                    folders.append(name)
                    _search(entry.path, f"{prefix}{name}/", endings, {*above, identity}, found)
            elif name.rpartition(".")[2].lower() in endings and "." in name:
                try:
                    status = entry.stat()
                except OSError:  # a link that leads nowhere
                    found.append((prefix + name, (-1, 0)))
                    continue
                if stat.S_ISREG(status.st_mode):
                    found.append((prefix + name, (status.st_size, status.st_mtime_ns)))
    return folders


def _identity(folder: str) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino
