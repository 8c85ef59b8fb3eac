"""The checksums of a snapshot's files, taken in a thread while the next file is written."""

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ai.model.saved import MANIFEST, sha256


class Checksums:
    """What the manifest says of the files in a folder.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, Checksums(Path(folder)) as sums:
    ...     _ = Path(folder, 'a').write_text('x')
    ...     sums.begin('a')
    ...     sums.all()['a']['bytes']
    1
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._thread = ThreadPoolExecutor(1, "checksums")
        self._begun: dict[str, Future[str]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown(cancel_futures=True)

    def begin(self, name: str) -> None:
        """A file is written, and stays as it is."""
        self._begun[name] = self._thread.submit(sha256, self._folder / name)

    def all(self) -> dict[str, dict[str, Any]]:
        """Checksum and size of each file but the manifest, of those too that were not begun."""
        paths = [path for path in sorted(self._folder.rglob("*")) if path.is_file() and path.name != MANIFEST]
        for name in (str(path.relative_to(self._folder)) for path in paths):
            if name not in self._begun:
                self.begin(name)
        return {
            (name := str(path.relative_to(self._folder))): {
                "sha256": self._begun[name].result(),
                "bytes": path.stat().st_size,
            }
            for path in paths
        }
