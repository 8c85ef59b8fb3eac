"""A plain-text table of a network's layers."""

import torch
from torch import Tensor, nn

from ai.model.arguments import check_module


def summarize(module: nn.Module, *inputs: Tensor) -> str:
    """Returns one line a layer: name, kind, output shape (if inputs are given), parameters.

    >>> import ai.model as m
    >>> print(m.Model(m.fc(2, 3)).summary(torch.zeros(5, 2)))
    layer  kind    output  parameters
    net    linear  (5, 3)  9
    total                  9
    """
    check_module(module=module)
    shapes: dict[str, str] = {}
    if inputs:
        _record_shapes(module, inputs, shapes)
    rows = [("layer", "kind", "output", "parameters")]
    for name, child in module.named_modules():
        own = sum(parameter.numel() for parameter in child.parameters(recurse=False))
        if name and (own or not any(child.children())):
            rows.append((name, _kind(child), shapes.get(name, ""), f"{own:,}"))
    rows.append(("total", "", "", f"{sum(parameter.numel() for parameter in module.parameters()):,}"))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines)


def _record_shapes(module: nn.Module, inputs: tuple[Tensor, ...], shapes: dict[str, str]) -> None:
    handles = []
    for name, child in module.named_modules():

        def record(_: nn.Module, __: object, output: object, name: str = name) -> None:
            shapes[name] = str(tuple(output.shape)) if isinstance(output, Tensor) else type(output).__name__

        handles.append(child.register_forward_hook(record))
    modes = [(child, child.training) for child in module.modules()]
    try:
        module.eval()
        with torch.no_grad():
            module(*inputs)
    finally:
        for handle in handles:
            handle.remove()
        for child, training in modes:  # a frozen part stays in evaluation mode
            child.training = training


def _kind(module: nn.Module) -> str:
    return type(module).__name__.lstrip("_").lower()
