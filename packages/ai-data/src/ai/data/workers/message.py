"""A message as a pickle whose arrays and CPU tensors lie beside it as raw bytes, so that each byte is copied once."""

import io
import pickle
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np


def split(message: Any) -> tuple[memoryview, list[memoryview]]:
    """Returns the pickle of a message, and the bytes of its arrays and tensors as they lie in memory."""
    buffers: list[pickle.PickleBuffer] = []
    body = io.BytesIO()
    _Pickler(body, 5, buffer_callback=buffers.append).dump(message)
    return body.getbuffer(), [buffer.raw() for buffer in buffers]


def joined(body: Any, buffers: Sequence[Any]) -> Any:
    """Returns the message that `split` was given; its arrays are the buffers."""
    return pickle.loads(body, buffers=buffers)


class _Pickler(pickle.Pickler):
    """Puts CPU tensors beside the pickle, as it already does with arrays."""

    def reducer_override(self, value: Any) -> Any:
        loaded = sys.modules.get("torch")
        # Another thread may be importing torch just now; then nothing here is a tensor yet.
        if type(value) is not getattr(loaded, "Tensor", None) or value.device.type != "cpu" or value.__dict__:
            return NotImplemented  # what somebody has set on a tensor travels as torch pickles it
        import torch

        if value.layout is not torch.strided or value.is_nested:
            if parts := _sparse_parts(value):
                return _rebuild_sparse, (value.requires_grad, *parts)
            # which torch pickles, but for `requires_grad`
            return (_rebuild_with_gradient, (value.detach(),)) if value.requires_grad else NotImplemented
        whole = value.detach().resolve_conj().resolve_neg().contiguous()
        flat = whole.as_strided((whole.numel(),), (1,))  # a column of one row is contiguous by any stride
        how = str(value.dtype), tuple(value.shape), *([True] if value.requires_grad else [])
        return _rebuild_tensor, (flat.view(torch.uint8).numpy(), *how)


def _rebuild_tensor(raw: np.ndarray, dtype: str, shape: tuple[int, ...], requires_grad: bool = False) -> Any:
    import torch

    made = torch.from_numpy(raw).view(getattr(torch, dtype.removeprefix("torch."))).view(shape)
    return _rebuild_with_gradient(made) if requires_grad else made


def _rebuild_with_gradient(made: Any) -> Any:
    return made.requires_grad_()


def _sparse_parts(value: Any) -> tuple[Any, ...]:
    """Returns layout, shape, whether it is coalesced, and the tensors of a sparse one; nothing of any other."""
    import torch

    layout = value.layout
    if layout is torch.strided:  # a nested one, which has no one shape
        return ()
    value, shape = value.detach(), tuple(value.shape)
    if layout is torch.sparse_coo:
        return layout, shape, value.is_coalesced(), value._indices(), value._values()
    if layout in (torch.sparse_csr, torch.sparse_bsr):
        return layout, shape, None, value.crow_indices(), value.col_indices(), value.values()
    if layout in (torch.sparse_csc, torch.sparse_bsc):
        return layout, shape, None, value.ccol_indices(), value.row_indices(), value.values()
    return ()


def _rebuild_sparse(requires_grad: bool, layout: Any, shape: tuple[int, ...], coalesced: bool, *tensors: Any) -> Any:
    # torch's own function keeps what it makes until the next `torch.load`, which would look through all of it
    import torch

    how: dict[str, Any] = {"size": shape, "check_invariants": False}
    if layout is torch.sparse_coo:
        made = torch.sparse_coo_tensor(*tensors, is_coalesced=coalesced, **how)
    else:
        made = torch.sparse_compressed_tensor(*tensors, layout=layout, **how)
    return made.requires_grad_() if requires_grad else made
