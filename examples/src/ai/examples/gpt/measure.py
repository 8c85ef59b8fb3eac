"""Bits per character: what a language model and a compressor can be compared by."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ai.examples.gpt.corpus import UNKNOWN_BITS


@torch.no_grad()
def bits_per_character(
    model: nn.Module, codes: Tensor, *, n_codes: int, context: int, stride: int | None = None, batch_size: int = 32
) -> float:
    """Returns the mean number of bits that a coder driven by the model would spend on a character of a text.

    Windows of `context` characters overlap, and each character is counted once, in the window that shows the model the
    most of what comes before it: at least `context - stride` characters, but for the text's first window. The first
    character of all, which nothing precedes, and characters outside the alphabet are paid in full.

    Args:
        model: `(batch, time)` codes to `(batch, time, n_codes)` logits; measured in the mode that it is in.
        codes: `(n,)` int64, the text, at least two characters.
        n_codes: Size of the alphabet.
        context: Most characters that the model sees at once.
        stride: From one window to the next; None is half of the context. Smaller is slower and a little lower.
        batch_size: Windows at a time.

    Raises:
        ValueError: Fewer than two characters, or a stride outside 1 to `context`.
    """
    stride = max(context // 2, 1) if stride is None else stride
    if codes.ndim != 1 or len(codes) < 2:
        raise ValueError(f"codes must be (n,) with n of at least 2, got shape {tuple(codes.shape)}")
    if not 1 <= stride <= context:
        raise ValueError(f"stride must lie in [1, context ({context})], got {stride}")
    device = next(model.parameters()).device
    n_targets = len(codes) - 1
    starts = range(0, max(n_targets - context, 0) + stride, stride)  # the last window may reach beyond the end
    total = math.log(n_codes)  # the first character
    counted = 0
    for first in range(0, len(starts), batch_size):
        windows, fresh = [], []
        for start in starts[first : first + batch_size]:
            end = min(start + context, n_targets)
            begin = max(end - context, 0)  # the last window is moved back rather than cut
            windows.append(torch.arange(begin, min(begin + context, n_targets), device="cpu"))
            fresh.append(end - max(counted, begin))
            counted = end
        at = torch.stack(windows)
        inputs, targets = codes[at].to(device), codes[at + 1].to(device)
        losses = F.cross_entropy(model(inputs).float().transpose(1, 2), targets, reduction="none")
        for row, n_new in zip(losses, fresh, strict=True):
            total += row[len(row) - n_new :].double().sum().item()
    unknown = (codes == 0).sum().item() * UNKNOWN_BITS
    return (total / math.log(2) + unknown) / len(codes)
