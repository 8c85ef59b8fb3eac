"""Between the CPU, where trees are, and the device of a network: one wait for each answer, and none for a question."""

from typing import Any

import torch
from torch import Tensor


def sent(x: Tensor, device: torch.device) -> Tensor:
    """Returns the tensor on the device, without waiting for what the device has to do.

    >>> sent(torch.ones(2), torch.device("cpu"))
    tensor([1., 1.])
    """
    if device.type == "cuda" and x.device.type == "cpu":
        return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)


def fetched(*answers: Any) -> list[Any]:
    """Returns tensors on the CPU; from an accelerator those of equally many rows come in one copy, at least in float32.

    What is no tensor is returned as it is.

    >>> [x.shape for x in fetched(torch.zeros(3, 2), torch.zeros(3))]
    [torch.Size([3, 2]), torch.Size([3])]
    """
    if all(not isinstance(x, Tensor) or x.device.type == "cpu" for x in answers):
        return list(answers)
    together = all(isinstance(x, Tensor) and x.device == answers[0].device for x in answers)
    if not together or len({x.shape[:1] for x in answers}) > 1 or not answers[0].ndim:
        return [x.cpu() if isinstance(x, Tensor) else x for x in answers]
    dtype = torch.float32
    for x in answers:
        dtype = torch.promote_types(dtype, x.dtype)
    flat = torch.cat([x.detach().to(dtype).flatten().view(len(x), -1) for x in answers], 1).cpu()
    parts = torch.split(flat, [x[:1].numel() for x in answers], 1)
    return [part.reshape(x.shape) for part, x in zip(parts, answers, strict=True)]
