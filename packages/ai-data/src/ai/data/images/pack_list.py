"""The packs that `ImgDataset` has made: what they are of, what they take, and their end."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from ai.data.images.pack import clear_pack
from ai.data.storage.paths import dataset_folder


@dataclass(frozen=True)
class Pack:
    """Decoded images of a folder, as they lie on disk.

    Args:
        path: of the pack itself.
        root: the folder whose images it holds; empty for packs of an older format, which are no longer read.
        n_images: how many.
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
    folder = dataset_folder("packs") if cache is None else Path(cache)
    found = []
    for listed in folder.glob("*/files.json"):
        pack = listed.parent
        try:
            n_images = len(json.loads(listed.read_text()))
            sources = pack / "sources.json"
            root = json.loads(sources.read_text())["root"] if sources.is_file() else ""
            n_bytes = sum(file.stat().st_size for file in pack.iterdir())
            found.append(Pack(pack, root, n_images, n_bytes, pack.stat().st_mtime))
        except FileNotFoundError:  # cleared meanwhile
            continue
    return sorted(found, key=lambda pack: pack.used, reverse=True)
