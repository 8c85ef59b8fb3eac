"""Where a transformer looks: attention laid over the image that it reads."""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor


def save_attention(path: str | Path, images: Tensor, maps: Tensor, labels: Sequence[str], *, title: str = "") -> None:
    """Draws, for each image, the image and its attention map over it, as a PNG.

    Args:
        path: The file to write.
        images: `(n, channels, height, width)` in [-1, 1], 1 or 3 channels.
        maps: `(n, rows, columns)`, not negative; each is scaled to its own maximum and resized to the image.
        labels: One for each image.
        title: Stands above the page.

    Raises:
        ValueError: Different numbers of images, maps and labels, or none.
    """
    if not len(images) == len(maps) == len(labels) or len(images) == 0:
        raise ValueError(
            f"images, maps and labels must be equally many, at least one, got {len(images)}, {len(maps)}, {len(labels)}"
        )
    columns = min(len(images), 8)
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(columns * 1.15, rows * 2.5 + 0.4), layout="constrained")
    figure.suptitle(title)
    cells = figure.subplots(2 * rows, columns, squeeze=False)
    for axes in cells.ravel():
        axes.axis("off")
    fine = F.interpolate(maps[:, None].float(), images.shape[-2:], mode="bilinear")[:, 0].cpu()
    pictures = ((images.detach().float().cpu() + 1) / 2).clamp(0, 1).expand(-1, 3, -1, -1).permute(0, 2, 3, 1)
    for index, label in enumerate(labels):
        above, below = cells[2 * (index // columns) :, index % columns][:2]
        above.imshow(pictures[index].numpy())
        above.set_title(label, fontsize=8)
        below.imshow(pictures[index].numpy())
        relative = fine[index] / fine[index].amax().clamp(min=torch.finfo().tiny)
        below.imshow(relative.numpy(), cmap="inferno", alpha=0.7, vmin=0, vmax=1)
    figure.savefig(path, dpi=120)
