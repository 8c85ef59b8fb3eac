"""The IDX file format of MNIST: a big-endian header, then the array.

Source: LeCun, Cortes and Burges, The MNIST database of handwritten digits, "file formats".
"""

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np

_DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def read_idx(path: Path) -> np.ndarray:
    """Returns the array of an IDX file, plain or gzipped, in native byte order.

    Raises:
        ValueError: the file is malformed or truncated; the message names it.
    """
    content = path.read_bytes()
    if content[:2] == b"\x1f\x8b":
        try:
            content = gzip.decompress(content)
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(f"{path} is not a whole gzip file: {error}") from error
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in _DTYPES:
        raise ValueError(f"{path} is not an IDX file: it starts with the bytes {content[:4].hex(' ') or '(none)'}")
    dtype, n_axes = np.dtype(_DTYPES[content[2]]), content[3]
    start = 4 + 4 * n_axes
    if len(content) < start:
        raise ValueError(f"{path} is truncated: {len(content)} bytes do not hold its header of {start}")
    shape = struct.unpack(f">{n_axes}I", content[4:start])
    n_bytes = math.prod(shape) * dtype.itemsize
    if len(content) != start + n_bytes:
        raise ValueError(
            f"{path} is truncated or malformed: shape {shape} needs {n_bytes} bytes, it holds {len(content) - start}"
        )
    return np.frombuffer(content, dtype, offset=start).reshape(shape).astype(dtype.newbyteorder("="))
