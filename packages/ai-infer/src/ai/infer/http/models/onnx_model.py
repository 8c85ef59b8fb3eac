"""An ONNX file as a module, run by onnxruntime; needs the extra `onnx`."""

from typing import Any

import torch
from torch import Tensor, nn

from ai.infer.http.formats.tensors import BYTES, NAMES, TensorSpec
from ai.infer.transport.trees import Tree

_MISSING = (
    "an .onnx file needs onnxruntime, which is not installed; install the extra from a checkout "
    "(pip install 'packages/ai-infer[onnx]' beside its siblings) or from your folder of wheels"
)
_DTYPES = {
    "tensor(float)": torch.float32,
    "tensor(double)": torch.float64,
    "tensor(float16)": torch.float16,
    "tensor(bool)": torch.bool,
    **{f"tensor({name})": getattr(torch, name) for name in ("int8", "int16", "int32", "int64", "uint8")},
    **{f"tensor({name})": getattr(torch, name) for name in ("uint16", "uint32", "uint64")},
}


class OnnxModel(nn.Module):
    """Runs an ONNX file; it travels to the worker as the path of the file.

    Args:
        path: of the file.

    Raises:
        ModuleNotFoundError: onnxruntime is not installed.
        ValueError: the file is no ONNX model.
    """

    mode_is_fixed = True

    def __init__(self, path: str) -> None:
        super().__init__()
        try:
            import onnxruntime  # type: ignore[import-untyped,unused-ignore]
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(_MISSING, name=error.name) from error
        self._path = path
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        try:
            self._session: Any = onnxruntime.InferenceSession(path, options, providers=_providers(onnxruntime))
        except Exception as error:  # onnxruntime has a class for each of its codes
            raise ValueError(f"{path} must be an ONNX model: {str(error)[:200]}") from error

    def inputs(self) -> tuple[TensorSpec, ...]:
        """Returns what the file says of its inputs; sizes that it names, or leaves open, are free."""
        specs = []
        for x in self._session.get_inputs():
            datatype = BYTES if x.type == "tensor(string)" else NAMES.get(_DTYPES.get(x.type, torch.complex64))
            if datatype is None:
                raise ValueError(f"{self._path}: input {x.name!r} has type {x.type}, which cannot be served")
            shape = tuple(size if isinstance(size, int) else -1 for size in x.shape)
            specs.append(TensorSpec(x.name, datatype, shape))
        return tuple(specs)

    def forward(self, *args: Tree, **kwargs: Tree) -> Tree:
        """Returns the file's outputs, by name if there are several; inputs by position or by name."""
        names = [x.name for x in self._session.get_inputs()]
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        device = next((x.device for x in given.values() if isinstance(x, Tensor)), torch.device("cpu"))
        arrays = {name: x.cpu().numpy() if isinstance(x, Tensor) else _strings(x) for name, x in given.items()}
        outputs = self._session.run(None, arrays)
        trees = {x.name: _as_tree(y, device) for x, y in zip(self._session.get_outputs(), outputs, strict=True)}
        return next(iter(trees.values())) if len(trees) == 1 else trees

    def __reduce__(self) -> tuple[type["OnnxModel"], tuple[str]]:
        return OnnxModel, (self._path,)


def _providers(onnxruntime: Any) -> list[str]:
    wanted = (
        ["CUDAExecutionProvider", "CPUExecutionProvider"] if torch.cuda.is_available() else ["CPUExecutionProvider"]
    )
    return [name for name in wanted if name in onnxruntime.get_available_providers()]


def _strings(x: Tree) -> Any:
    import numpy as np

    def decode(item: Tree) -> Tree:
        return [decode(each) for each in item] if isinstance(item, list) else bytes(item).decode()

    return np.array(decode(x), dtype=object)


def _as_tree(y: Any, device: torch.device) -> Tree:
    if hasattr(y, "dtype") and y.dtype.kind == "O":
        return y.tolist()
    return torch.from_numpy(y).to(device) if hasattr(y, "dtype") else y
