"""Fresh memory that is to be written to: given, marked before, and looked for after."""

import torch
from torch import Tensor, nn

Marks = dict[int, int]


def give_memory(module: nn.Module) -> None:
    """Puts all tensors on the CPU, with no numbers yet; what was one tensor in two places is one still."""
    places: dict[int, list[tuple[dict[str, Tensor | None], str]]] = {}
    for part in module.modules():
        for held in (part._parameters, part._buffers):
            for name, tensor in held.items():
                if tensor is not None:
                    places.setdefault(id(tensor), []).append((held, name))  # type: ignore[arg-type]
    module.to_empty(device="cpu")
    for (first, known_as), *others in places.values():
        for held, name in others:
            held[name] = first[known_as]


def mark(module: nn.Module) -> Marks:
    """Fills all parameters and buffers with not-a-number, or the least of an integer type; returns their versions."""
    versions = {}
    with torch.no_grad():
        for tensor in [*module.parameters(), *module.buffers()]:
            tensor.fill_(_mark_of(tensor.dtype))
            versions[id(tensor)] = tensor._version
    return versions


def unwritten(module: nn.Module, marks: Marks) -> list[str]:
    """Returns the names of parameters and buffers that nobody has written to since they were marked."""
    tensors = [*module.named_parameters(), *module.named_buffers()]
    return [name for name, tensor in tensors if tensor.numel() and id(tensor) in marks and _is_marked(tensor, marks)]


def _is_marked(tensor: Tensor, marks: Marks) -> bool:
    value = tensor.detach()
    value = value.full_tensor() if hasattr(value, "full_tensor") else value
    if value.is_floating_point() or value.is_complex():
        return bool(value.isnan().all())
    return tensor._version == marks[id(tensor)] and bool((value == _mark_of(value.dtype)).all())


def _mark_of(dtype: torch.dtype) -> float | int:
    if dtype.is_floating_point or dtype.is_complex:
        return float("nan")
    return 0 if dtype == torch.bool else torch.iinfo(dtype).min
