"""Documents of tokens as rows of one length, for language models; rows are samples, so a run resumes exactly.

Letters: B batch, L length of a row.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ai.data.arguments import check_flag, check_whole
from ai.data.dataset import Dataset
from ai.data.storage.columns import as_columns
from ai.data.storage.memory_mapped import Mapped

# What `torch.nn.functional.cross_entropy` leaves out.
_IGNORED = -100


def packed_tokens(
    documents: Any,
    length: int,
    *,
    separator: int | None = None,
    cut: bool = True,
    boundaries: bool = False,
) -> Dataset:
    """Returns a dataset of rows of tokens: `x` `[B, L]` int64, and `y`, the token after each.

    With `cut` the documents stand in one line, which is cut into rows; what is left at its end makes no whole row and
    is left out. Without it a row holds whole documents, as many as fit, and padding; only documents longer than a row
    are cut. There, and with `boundaries`, `y` is -100 where the next token is padding or of another document, which
    cross entropy leaves out.

    Args:
        documents: a list of them, each a row of whole numbers; or, with `cut`, the whole line as one array, which stays
            in its file where it is memory-mapped.
        length: of a row.
        separator: ends each document of a list; in an array it says where documents end.
        cut: see above.
        boundaries: also give `document` and `position` `[B, L]`: which document of its row a token is of, counted from
            0 (-1 for padding), and its place there. `block_mask` makes a mask of the first.

    Raises:
        TypeError: tokens that are no whole numbers.
        ValueError: fewer tokens than a row, or boundaries that nothing tells.

    Example:
        >>> ds = packed_tokens([[1, 2, 3], [4, 5]], 3, separator=0)
        >>> batch = next(iter(ds.loader(2)))
        >>> batch["x"].tolist(), batch["y"].tolist()
        ([[1, 2, 3], [0, 4, 5]], [[2, 3, 0], [4, 5, 0]])
    """
    check_whole(length=length)
    check_whole(or_none=True, separator=separator)
    check_flag(cut=cut, boundaries=boundaries)
    if length < 1:
        raise ValueError(f"length must be at least 1 token, got {length}")
    if boundaries and cut and separator is None:
        raise ValueError("boundaries needs a separator: nothing else tells where a document ends in the line")
    if not cut:
        parts = _parts(documents, separator)
        return Dataset(_fitted(parts, length, separator or 0), postprocess=_Fitted(boundaries))
    line = _line(documents, separator)
    n_rows = (len(line) - 1) // length
    if n_rows < 1:
        raise ValueError(f"documents must hold more than length ({length}) tokens, got {len(line)}")
    rows = line.unfold(0, length + 1, length)  # each begins with the last token of the one before
    data = rows.as_subclass(Mapped) if isinstance(line, Mapped) else rows
    return Dataset({"x": data}, postprocess=_Cut(separator if boundaries else None))


def block_mask(document: Tensor) -> Tensor:
    """Returns which tokens each may see: those before it in its own document, and itself.

    Args:
        document: `[B, L]`, of a batch of `packed_tokens`.

    Returns:
        `[B, 1, L, L]` bool, true where it may, as `scaled_dot_product_attention` takes it.
    """
    if not isinstance(document, Tensor) or document.ndim != 2:
        shape = list(document.shape) if isinstance(document, Tensor) else type(document).__name__
        raise ValueError(f"document must be a tensor [batch, length], got {shape}")
    length = document.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=document.device).tril()
    return ((document[:, :, None] == document[:, None, :]) & causal)[:, None]


class _Cut:
    """Splits rows of the line into tokens and those after them.

    Args:
        separator: where documents end; None gives no boundaries.
    """

    def __init__(self, separator: int | None) -> None:
        self._separator = separator

    def __call__(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        tokens = batch["x"].long()
        x, y = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
        if self._separator is None:
            return {"x": x, "y": y}
        ends = x == self._separator
        document = ends.cumsum(1) - ends.long()
        return {"x": x, "y": y.masked_fill(ends, _IGNORED), "document": document, "position": _positions(document)}


class _Fitted:
    """Adds to rows of whole documents the tokens after each."""

    def __init__(self, boundaries: bool) -> None:
        self._boundaries = boundaries

    def __call__(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        x, document = batch["x"].long(), batch["document"].long()
        y = torch.full_like(x, _IGNORED)
        goes_on = (document[:, 1:] == document[:, :-1]) & (document[:, 1:] >= 0)
        y[:, :-1] = torch.where(goes_on, x[:, 1:], _IGNORED)
        rest = {"document": document, "position": _positions(document)} if self._boundaries else {}
        return {"x": x, "y": y, **rest}


def _positions(document: Tensor) -> Tensor:
    """Returns the place of each token in its document, the first one's being 0."""
    places = torch.arange(document.shape[1], device=document.device).expand_as(document)
    begins = torch.ones_like(document, dtype=torch.bool)
    begins[:, 1:] = document[:, 1:] != document[:, :-1]
    return places - torch.where(begins, places, 0).cummax(1).values


def _line(documents: Any, separator: int | None) -> Tensor:
    """Returns all documents in one row; an array as it is."""
    if isinstance(documents, np.ndarray | Tensor):
        return _tokens(documents, "documents")
    return torch.cat(_parts(documents, separator))


def _parts(documents: Any, separator: int | None) -> list[Tensor]:
    """Returns the documents of a list, each with its end."""
    if isinstance(documents, np.ndarray | Tensor | str) or not isinstance(documents, Sequence):
        raise TypeError(f"documents must be a list of them, each a row of tokens, got {type(documents).__name__}")
    parts = [_tokens(document, f"documents[{k}]") for k, document in enumerate(documents)]
    if separator is not None:
        parts = [torch.cat([part.long(), torch.tensor([separator], device="cpu")]) for part in parts]
    if not (parts := [part for part in parts if len(part)]):
        raise ValueError("documents must hold at least one token, got none")
    return parts if len({part.dtype for part in parts}) == 1 else [part.long() for part in parts]


def _tokens(values: Any, name: str) -> Tensor:
    if isinstance(values, str | bytes) or not hasattr(values, "__len__") or getattr(values, "ndim", 1) == 0:
        raise TypeError(f"{name} must be one row of whole numbers, got {type(values).__name__}")
    if len(values) == 0:
        return torch.zeros(0, dtype=torch.int64, device="cpu")
    tokens: Any = as_columns(values if isinstance(values, Tensor) else np.asarray(values))
    if not isinstance(tokens, Tensor):
        raise TypeError(f"{name} must be one row of whole numbers, got {type(values).__name__}")
    if tokens.ndim != 1 or tokens.dtype == torch.bool or tokens.is_floating_point():
        raise TypeError(f"{name} must be one row of whole numbers, got {tokens.dtype} of shape {tuple(tokens.shape)}")
    return tokens


def _fitted(parts: list[Tensor], length: int, padding: int) -> dict[str, Tensor]:
    """Returns rows of whole documents, by best fit: the longest first, each where the least room is left.

    Source: Ding et al., 2024, Fewer Truncations Improve Language Modeling, section 3.
    """
    pieces = [piece for part in parts for piece in torch.split(part, length)]
    rooms: list[int] = []  # that some row has, rising
    rows_with: dict[int, list[int]] = {}
    rows: list[list[int]] = []
    for piece in sorted(range(len(pieces)), key=lambda k: -len(pieces[k])):
        size = len(pieces[piece])
        place = bisect_left(rooms, size)
        if place == len(rooms):
            rows.append([])
            row, room = len(rows) - 1, length
        else:
            room = rooms[place]
            row = rows_with[room].pop()
            if not rows_with[room]:
                rooms.pop(place)
        rows[row].append(piece)
        if left := room - size:
            if not rows_with.setdefault(left, []):
                insort(rooms, left)
            rows_with[left].append(row)
    x = torch.full((len(rows), length), padding, dtype=parts[0].dtype, device="cpu")
    document = torch.full((len(rows), length), -1, dtype=torch.int32, device="cpu")
    for row, held in enumerate(rows):
        start = 0
        for number, piece in enumerate(sorted(held)):
            end = start + len(pieces[piece])
            x[row, start:end] = pieces[piece]
            document[row, start:end] = number
            start = end
    return {"x": x, "document": document}
