"""Downloads that end: with a checksum, a deadline on every wait, and nothing half-written left under the final name."""

import hashlib
import urllib.request
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path
from typing import IO

from ai.data.storage.atomic_file import write_atomic


def download(urls: Sequence[str], path: Path, md5: str, *, timeout_s: float = 30) -> None:
    """Writes the file at the first of `urls` that answers with the right content to `path`.

    Args:
        urls: mirrors, tried in order.
        path: of the finished file; its folder is made.
        md5: hexadecimal checksum of the whole file.
        timeout_s: of connecting and of each read.

    Raises:
        OSError: no mirror gave the file; the message holds each one's reason.
    """
    reasons = []
    for url in urls:
        try:
            _download_one(url, path, md5, timeout_s)
        except (OSError, ValueError, HTTPException) as error:
            reasons.append(f"{url}: {type(error).__name__}: {error}")
        else:
            return
    raise OSError("; ".join(reasons))


def _download_one(url: str, path: Path, md5: str, timeout_s: float) -> None:
    from tqdm import tqdm  # type: ignore[import-untyped]

    with urllib.request.urlopen(url, timeout=timeout_s) as response:
        n_bytes = int(response.headers.get("Content-Length") or 0) or None

        def fill(file: IO[bytes]) -> None:
            digest = hashlib.md5(usedforsecurity=False)
            with tqdm(total=n_bytes, desc=path.name, unit="B", unit_scale=True) as bar:
                while chunk := response.read(1 << 16):
                    digest.update(chunk)
                    file.write(chunk)
                    bar.update(len(chunk))
            if digest.hexdigest() != md5:
                raise ValueError(f"its checksum is {digest.hexdigest()}, expected {md5}")

        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, fill)
