"""Small tools for a person at a prompt; no library code uses them."""

import operator
import os
import random
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


def print_info(x: Any, name: str = "") -> None:
    """Prints shape, bounds, dtype and device of a tensor or array, one line for each in a nested batch.

    NaN and infinite values are counted, and the bounds are those of the finite values.

    Args:
        x: a tensor, an array, or dicts, tuples and lists of them; other values are printed as they are.
        name: put before the line.

    Example:
        >>> import torch
        >>> print_info({"x": torch.linspace(-1, 1, 6).view(2, 3), "y": torch.tensor([3, 9])})
        x: shape=[2,3] bounds=[-1.00,1.00] dtype=float32 device=cpu
        y: shape=[2] bounds=[3,9] dtype=int64 device=cpu
    """
    if isinstance(x, Mapping):
        for key, value in x.items():
            print_info(value, f"{name}.{key}" if name else str(key))
    elif isinstance(x, tuple | list) and any(hasattr(item, "shape") or isinstance(item, Mapping) for item in x):
        for index, value in enumerate(x):
            print_info(value, f"{name}[{index}]")
    else:
        print(f"{name}: {_describe(x)}" if name else _describe(x))


def save_img_grid(path: str | os.PathLike[str], images: "Tensor | np.ndarray", n_columns: int | None = None) -> None:
    """Writes images side by side into one picture file.

    Args:
        path: of the file; its ending tells the format. Folders are made.
        images: `(n, channels, height, width)` or `(n, height, width)`, with 1 or 3 channels; float in [-1, 1] (values
            beyond are clipped) or uint8.
        n_columns: images in a row; None makes the grid about square.

    Raises:
        ValueError: images of another shape or number of channels.

    Example:
        >>> import tempfile, torch
        >>> save_img_grid(tempfile.mkdtemp() + "/noise.png", torch.rand(16, 1, 28, 28) * 2 - 1)
    """
    from pathlib import Path

    import numpy as np
    import torch
    from PIL import Image

    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"path must be text or a path of a file, got {type(path).__name__}: the path comes first")
    path = os.path.expanduser(path)
    images = images.copy() if isinstance(images, np.ndarray) else images  # torch takes none mirrored or read-only
    pixels = torch.as_tensor(images, device="cpu").detach()
    if pixels.ndim == 3:
        pixels = pixels[:, None]
    if pixels.ndim != 4 or len(pixels) == 0 or pixels.shape[1] not in (1, 3):
        raise ValueError(
            f"images must have shape (n, 1 or 3, height, width) or (n, height, width), got {list(pixels.shape)}"
        )
    if n_columns is not None and n_columns < 1:
        raise ValueError(f"n_columns must be at least 1, got {n_columns}")
    if pixels.dtype != torch.uint8:
        pixels = pixels.float().nan_to_num().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)
    n, channels, height, width = pixels.shape
    columns = min(n, n_columns or round(n**0.5 + 0.499))
    rows = -(-n // columns)
    grid = torch.zeros(rows * columns, channels, height, width, dtype=torch.uint8, device="cpu")
    grid[:n] = pixels
    grid = grid.view(rows, columns, channels, height, width).permute(0, 3, 1, 4, 2)
    picture = grid.reshape(rows * height, columns * width, channels).numpy()
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture[..., 0] if channels == 1 else picture).save(path)


def seed_all(seed: int) -> None:
    """Seeds the global generators of Python, numpy and torch (all devices).

    Example:
        >>> seed_all(0)
    """
    import numpy as np
    import torch

    try:
        whole = operator.index(seed)  # of NumPy, say, which `random` would refuse
    except TypeError:
        whole = None
    if whole is None or isinstance(seed, bool):
        raise TypeError(f"seed must be a whole number, got {seed!r}")
    seed = whole
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _describe(x: Any) -> str:
    if not (hasattr(x, "shape") and hasattr(x, "dtype")):
        return repr(x)
    import numpy as np
    import torch

    if isinstance(x.dtype, torch.dtype) and not isinstance(x, torch.Tensor):  # rows of a file, of ai.data
        x = torch.from_numpy(np.asarray(x))
    device = x.device if isinstance(x, torch.Tensor) else "cpu"
    if isinstance(x, np.ndarray | np.generic) and x.dtype.kind not in "biufc":
        return f"shape=[{_joined(x.shape)}] dtype={x.dtype} device=cpu"
    if isinstance(x, torch.Tensor):
        values = x.detach()
        values = values.to_dense() if values.layout != torch.strided else values
    else:
        kinds = {"f": np.float64, "c": np.complex128}
        # Native byte order, and no type beyond torch's.
        values = torch.from_numpy(np.array(x, kinds.get(x.dtype.kind, x.dtype.newbyteorder("="))))
    dtype = str(x.dtype).removeprefix("torch.")
    flags = ""
    if values.is_complex():
        values = values.abs()
    if values.is_floating_point():
        values = values.double() if values.device.type != "mps" else values.float()
        n_nan, n_inf = int(values.isnan().sum()), int(values.isinf().sum())
        flags = (f" nan={n_nan}" if n_nan else "") + (f" inf={n_inf}" if n_inf else "")
        values = values[values.isfinite()]
    if values.numel() == 0:
        bounds = ""
    elif values.is_floating_point():
        bounds = f"{values.min().item():.2f},{values.max().item():.2f}"
    else:
        # torch has no min and max of its larger unsigned types.
        whole = values.cpu().numpy() if values.dtype in (torch.uint16, torch.uint32, torch.uint64) else values
        bounds = f"{int(whole.min().item())},{int(whole.max().item())}"
    return f"shape=[{_joined(x.shape)}] bounds=[{bounds}] dtype={dtype} device={device}{flags}"


def _joined(shape: Any) -> str:
    return ",".join(str(size) for size in shape)
