"""What a trial keeps besides numbers: figures, images, sounds, videos, tables and the like, as files by step and name.

`media/000000100/weights.json` is the `weights` of step 100; what the page draws is JSON with a `kind`: `{"kind":
"histogram", "edges": […], "counts": […]}`, `{"kind": "table", "columns": […], "rows": […]}`, `{"kind": "confusion",
"names": […], "counts": [[…], …]}`, `{"kind": "curves", "x": …, "y": …, "curves": [{"name", "x", "y", "area"}, …]}`.
"""

import io
import json
import math
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ai.lab.arguments import check_text, check_texts, check_whole
from ai.lab.files.folder import write_atomic
from ai.lab.files.metrics_writer import as_step
from ai.lab.media.classification import Confusion, PrecisionRecall, as_numbers
from ai.lab.media.clips import Audio, Video
from ai.lab.record import MEDIA, MEDIA_TYPES

if TYPE_CHECKING:
    from torch import Tensor

LONGEST_NAME = 200
"""Of a name of something kept, in bytes: a file is named by it."""
MOST_BINS = 10_000
LARGEST_ROWS = 10_000
"""A table of more rows is a file of the user's own."""
_NAME = re.compile(r"[\w][\w .+-]*")


@dataclass
class Histogram:
    """The distribution of numbers, kept as counts.

    Args:
        values: Any shape; what is not finite is counted apart.
        bins: How many, 10,000 at most.
    """

    values: "np.ndarray | Tensor | Sequence[float]"
    bins: int = 64

    def to_json(self) -> dict[str, Any]:
        """Returns edges, counts and how many values are not finite.

        Raises:
            TypeError: the values are no numbers, or `bins` is no whole number.
            ValueError: there are too few or too many bins.
        """
        check_whole(1, bins=self.bins)
        if self.bins > MOST_BINS:
            raise ValueError(f"bins must be at most {MOST_BINS}, got {self.bins}")
        numbers = as_numbers("values", self.values).reshape(-1)
        finite = numbers[np.isfinite(numbers)]
        counts, edges = np.zeros(0, int), np.zeros(0)
        if len(finite):
            try:
                with np.errstate(over="ignore", invalid="ignore"):
                    counts, edges = np.histogram(finite, self.bins)
            except ValueError:  # too close together, or too far apart, for so many bins between them
                counts, edges = np.array([len(finite)]), np.array([finite.min(), finite.max()])
        apart = len(numbers) - len(finite)
        return {"kind": "histogram", "edges": edges.tolist(), "counts": counts.tolist(), "not_finite": apart}


@dataclass
class Rows:
    """A table of plain values.

    Args:
        columns: The head.
        rows: One sequence a row, as long as the head.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]

    def to_json(self) -> dict[str, Any]:
        """Returns head and rows, what JSON lacks as text.

        Raises:
            TypeError: `columns` is no list of texts, or `rows` no list.
            ValueError: a row has another length than the head, or there are too many.
        """
        check_texts(columns=self.columns)
        if not hasattr(self.rows, "__len__") or isinstance(self.rows, str):
            raise TypeError(f"rows must be a list of rows, got {self.rows!r}")
        if len(self.rows) > LARGEST_ROWS:
            raise ValueError(f"rows must be at most {LARGEST_ROWS}, got {len(self.rows)}")
        for index, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise ValueError(f"row {index} must have {len(self.columns)} values, got {len(row)}")
        rows = [[_plain(value) for value in row] for row in self.rows]
        return {"kind": "table", "columns": list(map(str, self.columns)), "rows": rows}


def keep_media(
    trial: Path, step: int, name: str, value: object, *, layout: str | None = None, replace: bool = False
) -> Path:
    """Writes a value as a file of `step` and returns its path; see `Trial.keep`.

    Args:
        trial: The trial's folder.
        step: The step.
        name: The value's name.
        value: What is kept.
        layout: The axes of images.
        replace: Whether what is kept there already gives way; else it is refused.
    """
    return as_file(step, name, value, layout).write(trial, replace=replace)


class KeptFile(NamedTuple):
    """What is kept, as the file that it will be."""

    step: int
    name: str
    suffix: str
    data: bytes

    def write(self, trial: Path, *, replace: bool) -> Path:
        """Writes it into a trial's folder and returns its path; see `keep_media`."""
        folder = trial / MEDIA / f"{self.step:09d}"
        before = [path for path in folder.glob("*") if path.stem == self.name]
        if before and not replace:
            raise ValueError(f"name {self.name!r} is kept already at step {self.step}; nothing is overwritten")
        folder.parent.mkdir(exist_ok=True)  # and none above it: a trial that was moved or deleted is not made again
        folder.mkdir(exist_ok=True)
        path = folder / f"{self.name}{self.suffix}"
        write_atomic(path, self.data)
        for other in before:
            if other != path:
                other.unlink()
        return path


def as_file(step: int, name: str, value: object, layout: str | None = None) -> KeptFile:
    """Returns what `keep_media` writes; raises what that does for what cannot be kept."""
    step = page_step(step)
    check_text(name=name)
    check_text(or_none=True, layout=layout)
    if not _NAME.fullmatch(name) or name != name.strip():
        raise ValueError(f"name must be letters, digits, spaces and any of _.+-, got {name!r}")
    if len(name.encode()) > LONGEST_NAME:
        raise ValueError(f"name must be at most {LONGEST_NAME} bytes, got {len(name.encode())}: {name[:40]!r}…")
    return KeptFile(step, name, *_encoded(value, layout))


def page_step(step: object) -> int:
    """Returns a step that files can be named by.

    Raises:
        TypeError: it is no whole number.
        ValueError: it is negative.
    """
    whole = as_step(step)
    if whole < 0:
        raise ValueError(f"step must be at least 0 for what is kept as a file, got {whole}")
    return whole


def drop_media(trial: Path, after: int) -> None:
    """Deletes what was kept after a step, which a resumed run will keep again."""
    for _, folder in kept_after(trial, after):
        shutil.rmtree(folder)


def kept_after(trial: Path, after: int) -> Iterator[tuple[int, Path]]:
    """Yields the steps after a step at which something was kept, with their folders."""
    for folder in (trial / MEDIA).glob("*"):
        if folder.name.isdecimal() and int(folder.name) > after:
            yield int(folder.name), folder


def _encoded(value: Any, layout: str | None) -> tuple[str, bytes]:
    if isinstance(value, Histogram | Rows | Confusion | PrecisionRecall):
        return ".json", json.dumps(value.to_json(), allow_nan=False).encode()
    if isinstance(value, Audio | Video):
        return value.to_file()
    if isinstance(value, Path):
        if value.suffix.lower() not in MEDIA_TYPES:
            raise ValueError(f"a file to keep must be of {', '.join(MEDIA_TYPES)}, got {value.name!r}")
        return value.suffix.lower(), value.read_bytes()
    if isinstance(value, str):
        return ".txt", value.encode(errors="backslashreplace")  # half a pair of surrogates is no character of UTF-8
    if hasattr(value, "savefig"):
        buffer = io.BytesIO()
        value.savefig(buffer, format="png", dpi=120)
        return ".png", buffer.getvalue()
    if hasattr(value, "shape"):
        from ai.lab.media.image_page import encode_page

        return ".png", encode_page(value, layout=layout)
    kinds = (
        "a matplotlib figure, an array or tensor of images, text, the Path of a file, "
        "an Audio, Confusion, Histogram, PrecisionRecall, Rows or Video"
    )
    raise TypeError(f"value must be {kinds}, got {type(value).__name__}")


def _plain(value: Any) -> Any:
    item = value.item() if hasattr(value, "item") and getattr(value, "shape", None) == () else value
    if item is None or isinstance(item, bool | int | str):
        return item
    if isinstance(item, float):
        return item if math.isfinite(item) else repr(item)
    return str(item)
