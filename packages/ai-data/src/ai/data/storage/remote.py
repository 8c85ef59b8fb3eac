"""Files that lie elsewhere: behind a URL that fsspec reads (`memory://`, `https://`, `s3://`, `zip://…::…`)."""

import hashlib
import io
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from ai.data.storage.paths import expanded

# What stores tell contents apart by. Times are none of it: most are of whole seconds, and files keep them when copied.
_TAGS = ("etag", "md5", "md5hash", "content_md5", "content-md5", "digest", "generation", "versionid", "crc", "checksum")
_AT_ONCE = 16


def is_url(path: str | os.PathLike[str]) -> bool:
    """Returns whether `path` names a file by a URL, a local one too."""
    return isinstance(path, str) and "://" in path


def local_path(path: str | os.PathLike[str]) -> Path | None:
    """Returns the path of a local file, given as it is (`~` is the home) or as `file://…`; None for any other URL."""
    if not is_url(path):
        return expanded(path)
    kind, _, rest = str(path).partition("://")
    return Path(rest) if kind in ("file", "local") and "::" not in rest else None


def links(url: str) -> tuple[str, str, str]:
    """Returns the part of a chained URL that names the file, with what stands before it and after it.

    >>> links("simplecache::zip://a.txt::https://there/all.zip")
    ('simplecache::', 'zip://a.txt', '::https://there/all.zip')
    """
    parts = url.split("::")
    at = next((place for place, part in enumerate(parts) if "://" in part), 0)
    return "".join(f"{part}::" for part in parts[:at]), parts[at], "".join(f"::{part}" for part in parts[at + 1 :])


class RemoteFolder:
    """A folder behind a URL; threads may share it.

    Args:
        url: of the folder.

    Raises:
        ModuleNotFoundError: fsspec is not installed, or what it needs for this kind of URL.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/") if not url.endswith("://") else url
        self._files, self._path = file_system(self.url)
        self._one_at_a_time = threading.Lock()

    def __str__(self) -> str:
        return self.url

    @property
    def name(self) -> str:
        """The last part of its path."""
        return self._path.rstrip("/").rpartition("/")[2] or self.url

    def is_dir(self) -> bool:
        """Returns whether there is such a folder."""
        return bool(self._files.isdir(self._path))

    def is_file(self, name: str) -> bool:
        """Returns whether the folder has a file of this name."""
        return bool(self._files.isfile(self._inner(name)))

    def listed(self) -> tuple[list[str], list[str]]:
        """Returns all files below it, relative to it with `/` and sorted, and the folders directly in it, sorted."""
        self._files.invalidate_cache()
        self._infos: dict[str, dict[str, Any]] = {}
        folders = set()
        start = len(self._path.rstrip("/")) + 1 if self._path.strip("/") else len(self._path)
        for path, info in self._files.find(self._path, withdirs=True, detail=True).items():
            name = path[start:].strip("/")
            if info.get("type") == "file":
                self._infos[name] = info
                folders.update(name.split("/")[:-1][:1])
            elif name and "/" not in name:
                folders.add(name)
        return sorted(self._infos), sorted(folders)

    def marks(self, names: Sequence[str]) -> np.ndarray:
        """Returns of each file its size and numbers that change with its content: `[n, 3]` int64.

        They are made of what the store tells contents apart by, else of the content, which is read for that.
        """
        with ThreadPoolExecutor(_AT_ONCE) as executor:
            return np.array(list(executor.map(self._mark, names)), np.int64).reshape(-1, 3)

    def read(self, name: str) -> bytes:
        """Returns the content of a file.

        Raises:
            OSError: it cannot be read.
        """
        with self._in_turn():
            try:
                return cast(bytes, self._files.cat_file(self._inner(name)))
            except OSError:
                raise
            except Exception as error:  # each kind of store has its own
                raise OSError(f"{self.url}/{name} cannot be read: {type(error).__name__}: {error}") from error

    def _mark(self, name: str) -> tuple[int, int, int]:
        info = self._infos[name]
        if not (tags := _tags(info)):  # some tell only who asks for the one file
            with self._in_turn():
                info = self._files.info(self._inner(name))
            tags = _tags(info)
        told = repr(tags).encode() if tags else self.read(name)
        numbers = np.frombuffer(hashlib.blake2b(told, digest_size=16).digest(), np.int64).tolist()
        return -1 if info.get("size") is None else int(info["size"]), numbers[0], numbers[1]

    def _inner(self, name: str) -> str:
        return f"{self._path.rstrip('/')}/{name}" if self._path.strip("/") else self._path + name

    @contextmanager
    def _in_turn(self) -> Iterator[None]:
        if self._files.async_impl:
            yield
        else:  # an archive, say, is one open file
            with self._one_at_a_time:
                yield


def file_system(url: str) -> tuple[Any, str]:
    """Returns fsspec's file system for a URL, and the path in it."""
    try:
        import fsspec  # type: ignore[import-untyped]
    except ImportError as error:
        raise ModuleNotFoundError(
            f"{url} needs fsspec, which is not installed: install ai-data with the extra fsspec", name=error.name
        ) from error
    try:
        files, path = fsspec.core.url_to_fs(url, skip_instance_cache=True)  # one kept knows an archive as it was
    except ImportError as error:
        raise ModuleNotFoundError(f"{url} cannot be read here: {error}", name=error.name) from error
    return files, path


@contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Opens a file for reading, by its path or URL."""
    if (local := local_path(path)) is not None:
        with open(local, "rb") as file:
            yield file
        return
    files, inner = file_system(str(path))  # kept while the file is read: an archive's closes it with itself
    with files.open(inner, "rb") as file:
        yield file


def size_of(file: IO[bytes]) -> int | None:
    """Returns how many bytes an `opened` file holds; None where its store does not tell."""
    size = getattr(file, "size", None)
    if size is None and isinstance(file, io.BufferedReader):
        size = os.fstat(file.fileno()).st_size
    return None if size is None else int(size)


def _tags(info: dict[str, Any]) -> list[tuple[str, str]]:
    return sorted(
        (key.lower(), str(value)) for key, value in info.items() if value is not None and key.lower() in _TAGS
    )
