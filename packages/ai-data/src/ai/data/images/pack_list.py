"""The packs that `ImgDataset` has made: what they are of, what they take, and their end."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ai.data.arguments import check_path
from ai.data.images.pack import clear_pack
from ai.data.storage.paths import dataset_folder, expanded


@dataclass(frozen=True)
class Pack:
    """Decoded images of a folder, as they lie on disk.

    Args:
        path: of the pack itself.
        root: the folder whose images it holds; empty where it is damaged.
        n_images: how many; 0 where it is damaged or of an older format, which is no longer read.
        n_bytes: on disk.
        used: when it was last opened, in seconds since 1970.
    """

    path: Path
    root: str
    n_images: int
    n_bytes: int
    used: float

    def clear(self) -> None:
        """Deletes it; the next `ImgDataset` of its folder decodes the files again."""
        clear_pack(self.path)


def packs(cache: str | os.PathLike[str] | None = None) -> list[Pack]:
    """Returns the packs in a cache, the one used last first.

    Args:
        cache: as of `ImgDataset`; None means `packs` in the datasets folder.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> from ai.data import ImgDataset
        >>> folder = tempfile.mkdtemp()
        >>> Image.new("RGB", (9, 9)).save(folder + "/a.png")
        >>> ds = ImgDataset(folder, 8, cache=folder + "/packs")
        >>> [(pack.root == os.path.realpath(folder), pack.n_images) for pack in packs(folder + "/packs")]
        [(True, 1)]
        >>> for pack in packs(folder + "/packs"):
        ...     pack.clear()
    """
    check_path(or_none=True, cache=cache)
    folder = dataset_folder("packs") if cache is None else expanded(cache)
    found = []
    for listed in folder.glob("*/files.json"):
        pack = listed.parent
        try:
            n_images = _read(listed, {}).get("n_images", 0)
            root = _read(pack / "sources.json", {}).get("root", "")
            n_bytes = sum(file.stat().st_size for file in pack.iterdir())
            found.append(Pack(pack, root, n_images, n_bytes, pack.stat().st_mtime))
        except FileNotFoundError:  # cleared meanwhile
            continue
    return sorted(found, key=lambda pack: pack.used, reverse=True)


def _read(path: Path, instead: Any) -> Any:
    """Returns what a file holds; `instead` where it is missing, damaged or of another type."""
    try:
        content = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return instead
    return content if type(content) is type(instead) else instead
