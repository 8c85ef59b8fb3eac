"""Files of samples by their endings: each read from any place in it on.

A reader yields each sample with the place of the next, a few numbers from which reading goes on without what lies
before.
"""

import codecs
import json
import os
import tarfile
from collections.abc import Callable, Iterator
from typing import IO, Any, TypeAlias

import numpy as np

from ai.data.storage.remote import links
from ai.data.storage.tables import table_columns

Place: TypeAlias = tuple[int, ...]
Reader: TypeAlias = Callable[[IO[bytes], Place], Iterator[tuple[Any, Place]]]


def reader_of(path: str) -> Reader:
    """Returns what reads a file of this name.

    Raises:
        ValueError: it ends in none of the known ways.
    """
    ending = os.path.splitext(links(path)[1])[1].lower()
    if ending not in READERS:
        raise ValueError(f"shards must end in one of {', '.join(READERS)}, got {path}")
    return READERS[ending]


def _lines(file: IO[bytes], place: Place) -> Iterator[tuple[str, Place]]:
    offset = place[0] if place else 0
    file.seek(offset)
    for line in file:
        line, n_bytes = (line if offset else line.removeprefix(codecs.BOM_UTF8)), len(line)
        offset += n_bytes
        yield line.decode().removesuffix("\n").removesuffix("\r"), (offset,)


def _records(file: IO[bytes], place: Place) -> Iterator[tuple[Any, Place]]:
    for line, after in _lines(file, place):
        if line.strip():
            yield json.loads(line), after


def _tar(file: IO[bytes], place: Place) -> Iterator[tuple[dict[str, Any], Place]]:
    """Yields files of one name as one sample, by their endings, as WebDataset has it.

    Files that it passes over, without a name or an ending, are passed over.
    """
    file.seek(place[0] if place else 0)
    sample: dict[str, Any] = {}
    known: set[int] = set()  # of the keys' hashes; they are for errors alone
    with tarfile.open(fileobj=file, mode="r:") as tar:
        while (member := tar.next()) is not None:
            tar.members = []  # type: ignore[attr-defined]  # it would keep all
            folder, _, name = member.name.rpartition("/")
            stem, dot, ending = name.partition(".")
            if not member.isfile() or not stem or not dot:
                continue
            key, ending = f"{folder}/{stem}" if folder else stem, ending.lower()
            if sample and sample["__key__"] != key:
                yield sample, (member.offset,)
                sample = {}
            if not sample:
                sample["__key__"] = key
                if hash(key) in known:
                    raise ValueError(f"the files of {key} lie apart in it: write it sorted, as by tar --sort=name")
                known.add(hash(key))
            if ending in sample:  # or ends in .__key__
                raise ValueError(f"it holds {member.name} twice")
            content = tar.extractfile(member)
            assert content is not None
            sample[ending] = content.read()
        end = tar.offset
    _check_end(file, end)
    if sample:
        yield sample, (end,)


def _check_end(file: IO[bytes], end: int) -> None:
    """Raises where a tar goes on after the place at which it was no longer read.

    Whoever writes one ends it with two blocks of zeros, and often more; some leave them out. `tarfile` ends at anything
    that is no header, so that one damaged byte would take all after it away.
    """
    file.seek(end)
    while rest := file.read(_RECORD):
        if rest.strip(b"\0"):
            raise ValueError(f"it goes on after byte {end}, where a tar's end or a whole header must stand")


_RECORD = 10240  # bytes


def _parquet(file: IO[bytes], place: Place) -> Iterator[tuple[dict[str, Any], Place]]:
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    group, row = place or (0, 0)
    table = pq.ParquetFile(file)
    for number in range(group, table.num_row_groups):
        yield from _rows(table.read_row_group(number), number, row if number == group else 0)


def _arrow(file: IO[bytes], place: Place) -> Iterator[tuple[dict[str, Any], Place]]:
    import pyarrow as pa

    group, row = place or (0, 0)
    is_stream = file.read(6) != b"ARROW1"  # as Hugging Face writes it
    file.seek(0)
    reader = pa.ipc.open_stream(file) if is_stream else pa.ipc.open_file(file)
    batches = enumerate(reader) if is_stream else ((k, reader.get_batch(k)) for k in range(reader.num_record_batches))
    for number, batch in batches:
        if number >= group:
            yield from _rows(batch, number, row if number == group else 0)


def _rows(table: Any, group: int, first: int) -> Iterator[tuple[dict[str, Any], Place]]:
    columns = table_columns(table) or {}
    for row in range(first, table.num_rows):
        yield {name: column[row] for name, column in columns.items()}, (group, row + 1)


def _arrays(file: IO[bytes], place: Place) -> Iterator[tuple[dict[str, np.ndarray], Place]]:
    with np.load(file, allow_pickle=False) as stored:
        columns = {name: stored[name] for name in stored.files}
    lengths = {name: column.shape[:1] for name, column in columns.items()}
    if len(set(lengths.values())) != 1 or () in lengths.values():
        raise ValueError(f"its arrays must have one row a sample, got {lengths}")
    for row in range(place[0] if place else 0, *next(iter(lengths.values()))):
        yield {name: column[row] for name, column in columns.items()}, (row + 1,)


READERS: dict[str, Reader] = {
    ".tar": _tar,
    ".txt": _lines,
    ".jsonl": _records,
    ".parquet": _parquet,
    ".arrow": _arrow,
    ".npz": _arrays,
}
