"""What a folder's earlier pack holds, so that no image is decoded twice."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


class Image(NamedTuple):
    """The pixels of a file, and the hash of its content."""

    pixels: np.ndarray
    digest: bytes


class Earlier(NamedTuple):
    """The images of an earlier pack.

    Args:
        images: of its files.
        digests: `[n, 16]` uint8, the hash of the content of each.
        by_mark: the place of each by the name and mark of its file.
        by_digest: the same by the hash of the content.
    """

    images: np.ndarray
    digests: np.ndarray
    by_mark: dict[tuple[Any, ...], int]
    by_digest: dict[bytes, int]

    @classmethod
    def of(cls, packs: list[Path]) -> "Earlier":
        """Returns those of the first pack that can be read."""
        for pack in packs:
            try:
                names = json.loads((pack / "names.json").read_text())
                marks = np.load(pack / "marks.npy").tolist()
                digests = np.load(pack / "digests.npy")
                images = np.load(pack / "images.npy", mmap_mode="r")
            except (OSError, EOFError, ValueError):  # damaged, of a format before, or cleared meanwhile
                continue
            if len(names) == len(marks) == len(digests) <= len(images):
                by_mark = {(name, *mark): place for place, (name, mark) in enumerate(zip(names, marks, strict=True))}
                return cls(images, digests, by_mark, {digest.tobytes(): place for place, digest in enumerate(digests)})
        return cls(np.empty(0, np.uint8), np.empty(0, np.uint8), {}, {})

    def image(self, place: int) -> Image:
        """Returns one of them."""
        return Image(self.images[place], self.digests[place].tobytes())
