"""A stream of the samples in many files, which knows where it is."""

import copy
import glob
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from ai.data.arguments import check_at_least, check_rank, check_state, check_whole
from ai.data.loading.worker_info import worker_and_n_workers
from ai.data.shards.formats import READERS, Place, reader_of
from ai.data.storage.remote import file_system, links, local_path, opened, size_of

INDEX = "shards.json"


class _At(NamedTuple):
    """Where a pass is: in which file, at which place of it, and how many bytes the file holds."""

    file: int = 0
    place: Place = ()
    size: int | None = None


class Shards:
    """The samples of files, one after another, for `ai.data.util.create_data_loader`.

    Each worker reads files of its own from beginning to end; `create_data_loader(shards, 64, train=True,
    shuffle=10_000)` shuffles so many samples at a time. A state goes on in the middle of a file. It knows the files by
    their names, and the one that it lies in by its size, too.

    Of several ranks each reads files of its own, where a loader with `train=True` is dealt among them before its first
    batch and their number divides that of the files: in pass k every file is one rank's, with `shuffle` another one's
    in each pass. A rank with smaller files comes to its next pass sooner. Otherwise each rank reads all files and keeps
    its share of the samples.

    A `.tar` gives its files of one name as one sample, a dict of their contents by ending and of `__key__`, as
    WebDataset writes them; `.parquet` and `.arrow` give rows as dicts, `.jsonl` what stands in each line, `.txt` lines,
    and `.npz`, of arrays of one length (`ai.data.write_shards`), dicts of entries.

    Args:
        paths: a file, a folder of such files, a pattern with `*`, or a list of these; each a path or a URL that fsspec
            reads.
        shuffle: take the files in another order in each epoch.
        seed: of that order.

    Attributes:
        files: the path or URL of each.
        classes: the names of the labels, where `write_shards` was told them.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: a file of another kind, or shards that were not all written.

    Example:
        >>> import tempfile
        >>> from ai.data.util import create_data_loader
        >>> path = tempfile.mkdtemp() + "/lines.txt"
        >>> with open(path, "w") as file:
        ...     for line in ("one", "two", "three"):
        ...         print(line, file=file)
        >>> list(create_data_loader(Shards(path), 2, n_workers=0))
        [['one', 'two'], ['three']]
    """

    def __init__(
        self,
        paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        *,
        shuffle: bool = False,
        seed: int = 0,
    ) -> None:
        check_whole(seed=seed)
        if not isinstance(shuffle, bool):
            raise TypeError(
                f"shuffle must be True or False, got {shuffle!r}: samples are shuffled by create_data_loader"
            )
        if not isinstance(paths, str | os.PathLike) and (isinstance(paths, bytes) or not isinstance(paths, Sequence)):
            raise TypeError(f"paths must be a path, a URL, or a list of these, got {paths!r}")
        given = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
        found = [_found(path) for path in given]
        self.files = tuple(file for files, _ in found for file in files)
        named = {tuple(index.get("classes") or ()) for _, index in found}
        self.classes = (named.pop() or None) if len(named) == 1 else None
        if not self.files:
            raise FileNotFoundError("paths must name at least one file, got none")
        for file in self.files:
            reader_of(file)
        self._shuffle = shuffle
        self._seed = seed
        self._rank, self._world = 0, 1
        self._digest = _digest(self.files, f" {shuffle} {seed}")
        self._epoch = 0
        self._at = _At()
        self._loaded: _At | None = None

    def __repr__(self) -> str:
        return f"Shards({len(self.files)} files, {self.files[0]}{', …' * (len(self.files) > 1)})"

    def part_of_rank(self, rank: int, world: int) -> "Shards | None":
        """Returns the shards of rank `rank` of `world`, from their beginning; None where the files cannot be shared."""
        check_rank(rank, world)
        if self._world != 1 or len(self.files) % world:
            return None
        other = copy.copy(self)
        other._rank, other._world = rank, world
        other._digest = f"{self._digest} of rank {rank} of {world}"
        other._at, other._loaded = _At(), None
        return other

    def set_epoch(self, epoch: int) -> None:
        """Says which epoch the next pass is."""
        check_at_least(0, epoch=epoch)
        self._epoch = epoch

    def __iter__(self) -> Iterator[Any]:
        """Yields the samples from the beginning, or from where a state was loaded."""
        files, at = self._mine(), self._loaded or _At()
        self._loaded, self._at = None, at
        for number in range(at.file, len(files)):
            try:
                with opened(files[number]) as file:
                    size = size_of(file)
                    if at.place and at.size not in (None, size):
                        raise ValueError(f"it holds {size} bytes, and held {at.size} when the state was taken")
                    for sample, after in reader_of(files[number])(file, at.place):
                        self._at = _At(number, after, size)
                        yield sample
            except ImportError:
                raise
            except Exception as error:  # each library of a format has its own
                kind = OSError if isinstance(error, OSError) else ValueError
                raise kind(f"{files[number]} cannot be read: {type(error).__name__}: {error}") from error
            at = self._at = _At(number + 1)
        self._at = _At()

    def state_dict(self) -> dict[str, Any]:
        """Returns where the next sample lies."""
        at = self._at if self._loaded is None else self._loaded
        return {"format": 1, "files": self._digest, "epoch": self._epoch, **at._asdict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Lets the next pass begin where `state` was taken.

        Raises:
            ValueError: it is of other files, or of a newer format. The pass raises it where the file that the state
                lies in holds more or less by now.
        """
        check_state(state, "Shards", {"files", "epoch", *_At._fields})
        if (number := state.get("format")) != 1:
            raise ValueError(f"this state of shards has format {number}, known is 1")
        if state["files"] != self._digest:
            raise ValueError("this state is of other files, of the same in another order, or of another rank's")
        self._epoch = state["epoch"]
        self._loaded = _At(state["file"], tuple(state["place"]), state["size"])

    def _mine(self) -> Sequence[str]:
        """Returns the files that are read here, in their order."""
        files = self.files
        if self._shuffle:
            order = np.random.default_rng([self._seed % 2**64, self._epoch]).permutation(len(files))
            files = tuple(files[place] for place in order)
        worker, n_workers = worker_and_n_workers()
        return files[self._rank :: self._world][worker::n_workers]


def _digest(files: Sequence[str], how: str) -> str:
    """Returns a hash of the names, from the folder on that holds them all: wherever it lies now."""
    named = [links(file)[1].split("/") for file in files]
    depth = min(map(len, named)) - 1
    start = next((k for k in range(depth) if len({name[k] for name in named}) > 1), depth)
    names = "\0".join("/".join(name[start:]) for name in named)
    return hashlib.blake2b((names + how).encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()


def _found(path: str | os.PathLike[str]) -> tuple[list[str], dict[str, Any]]:
    """Returns the files that a path, a folder or a pattern names, and what `write_shards` says of a folder."""
    index: dict[str, Any] = {}
    if (local := local_path(path)) is not None:
        if local.is_dir():
            names = [str(file) for file in local.iterdir() if file.is_file()]
            if (local / INDEX).is_file():
                index = json.loads((local / INDEX).read_text())
        elif local.is_file():
            return [str(local)], index
        else:
            names = [file for file in glob.glob(str(local)) if os.path.isfile(file)]
    else:
        files, inner = file_system(str(path))
        if files.isfile(inner):
            return [str(path)], index
        is_folder = files.isdir(inner)
        before, _, after = links(str(path))
        there = files.ls(inner, detail=True) if is_folder else files.glob(inner, detail=True).values()
        names = [before + files.unstrip_protocol(told["name"]) + after for told in there if told["type"] == "file"]
        if is_folder and files.isfile(f"{inner.rstrip('/')}/{INDEX}"):
            index = json.loads(files.cat_file(f"{inner.rstrip('/')}/{INDEX}"))
    names = sorted(name for name in names if _counts(links(name)[1]))
    if not names:
        raise FileNotFoundError(f"paths must name files that end in one of {', '.join(READERS)}, {path} has none")
    if len(names) < index.get("n_shards", 0):
        raise ValueError(
            f"{path} holds {len(names)} of {index['n_shards']} shards: its writing was interrupted, go on with "
            "write_shards(…, resume=True)"
        )
    return names, index


def _counts(path: str) -> bool:
    name = path.rpartition("/")[2]
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in READERS
