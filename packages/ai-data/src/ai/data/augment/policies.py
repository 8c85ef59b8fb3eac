"""Random chains of many changes, drawn for each image: RandAugment and AugMix.

The changes are torchvision's operators. Images that drew the same one are changed together, so that a batch costs some
twenty calls, however large it is.
"""

import math
from collections import defaultdict
from collections.abc import Callable

import numpy as np
import torch
from torch import Generator, Tensor

from ai.data.arguments import check_at_least, check_real, check_whole
from ai.data.augment.images import InRange, OnImages, numpy_draws, without_alpha
from ai.data.batch.device import to_device

# The changes by name, and whether their strength has a sign.
_CHANGES = {
    "identity": False,
    "shear_x": True,
    "shear_y": True,
    "translate_x": True,
    "translate_y": True,
    "rotate": True,
    "brightness": True,
    "saturation": True,
    "contrast": True,
    "sharpness": True,
    "posterize": False,
    "solarize": False,
    "autocontrast": False,
    "equalize": False,
}
_MIXED = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate", *list(_CHANGES)[-4:])
_MAX_DEPTH = 3


def rand_augment(n_changes: int = 2, magnitude: float = 9, bins: int = 31) -> OnImages:
    """Changes each image `n_changes` times by one of 14 operators, drawn anew each time.

    Args:
        n_changes: how often.
        magnitude: how much, from 0 to `bins` - 1.
        bins: steps from no change to the strongest.

    Source: Cubuk, Zoph, Shlens and Le, 2020, RandAugment, in torchvision's ranges; black fills what becomes empty.
    """
    check_at_least(1, n_changes=n_changes)
    check_whole(bins=bins)
    check_real(magnitude=magnitude)
    if bins < 2 or not 0 <= magnitude <= bins - 1:
        raise ValueError(f"magnitude must lie in [0, bins - 1], got {magnitude} with bins {bins}")
    check = InRange("rand_augment")

    def apply(x: Tensor, generator: Generator) -> Tensor:
        check(x)
        rng = numpy_draws(generator)
        names = list(_CHANGES)
        share = magnitude / (bins - 1)
        pixels = _unit(x, "rand_augment")
        for _ in range(n_changes):
            drawn = [names[k] for k in rng.integers(len(names), size=len(x))]
            signs = rng.choice([-1, 1], len(x))
            amounts = [_amount(name, share, x.shape, 150 / 331, 8) for name in drawn]
            pixels = _changed(
                pixels, drawn, [_signed(*drawn_one) for drawn_one in zip(drawn, amounts, signs, strict=True)]
            )
        return (pixels * 2 - 1).to(x.dtype)

    return apply


def aug_mix(severity: int = 3, width: int = 3, depth: int | None = None, alpha: float = 1.0) -> OnImages:
    """Blends each image with a mixture of `width` chains of changes that leave its content alone.

    Args:
        severity: the strongest change that is drawn, from 1 to 10.
        width: chains.
        depth: changes in a chain; None draws 1 to 3.
        alpha: of the Beta and Dirichlet distributions that the shares are drawn from.

    Source: Hendrycks et al., 2020, AugMix, algorithm 1, in torchvision's ranges.
    """
    check_whole(severity=severity)
    check_at_least(1, width=width)
    check_at_least(1, or_none=True, depth=depth)
    check_real(alpha=alpha)
    if not 1 <= severity <= 10:
        raise ValueError(f"severity must lie in [1, 10], got {severity}")
    if not 0 < alpha < float("inf"):
        raise ValueError(f"alpha must be positive and finite, got {alpha}")
    check = InRange("aug_mix")

    def apply(x: Tensor, generator: Generator) -> Tensor:
        check(x)
        n = len(x)
        rng = numpy_draws(generator)
        kept = rng.beta(alpha, alpha, n)
        shares = rng.dirichlet([alpha] * width, n) * (1 - kept[:, None])
        pixels = _unit(x, "aug_mix")
        mixed = _weights(kept, x) * pixels
        for chain in range(width):
            depths = rng.integers(1, _MAX_DEPTH + 1, n) if depth is None else np.full(n, depth)
            changed = pixels
            for step in range(int(depths.max(initial=0))):
                drawn = [_MIXED[k] for k in rng.integers(len(_MIXED), size=n)]
                drawn = [name if step < deep else "identity" for name, deep in zip(drawn, depths, strict=True)]
                levels, signs = rng.integers(severity, size=n), rng.choice([-1, 1], n)
                amounts = [
                    _signed(name, _amount(name, level / 9, x.shape, 1 / 3, 4), sign)
                    for name, level, sign in zip(drawn, levels, signs, strict=True)
                ]
                changed = _changed(changed, drawn, amounts)
            mixed = mixed + _weights(shares[:, chain], x) * changed
        return (mixed * 2 - 1).clamp(-1, 1).to(x.dtype)

    return apply


def _unit(x: Tensor, name: str) -> Tensor:
    """Returns the pixels in [0, 1], in a type that the operators know."""
    without_alpha(x, name)
    return ((x if x.dtype == torch.float64 else x.float()) + 1) / 2


def _weights(shares: np.ndarray, x: Tensor) -> Tensor:
    column = to_device(shares.astype(np.float32), x.device, pin=x.is_cuda)
    return column[:, None, None, None]  # type: ignore[no-any-return]


def _amount(name: str, share: float, shape: torch.Size, reach: float, bits: int) -> float:
    """Returns how strong a change is at `share` of its range.

    Args:
        name: of the change.
        share: in [0, 1].
        shape: of the batch.
        reach: the longest shift, as a share of the side.
        bits: kept of each pixel by the weakest posterising; the strongest keeps four less.
    """
    if name.startswith("shear"):
        return 0.3 * share
    if name.startswith("translate"):
        return int(reach * shape[-1 if name == "translate_x" else -2] * share)
    if name == "rotate":
        return 30 * share
    if name == "posterize":
        return round(bits - 4 * share)
    if name == "solarize":
        return 1 - share
    return 0.9 * share if _CHANGES[name] else 0.0


def _signed(name: str, amount: float, sign: int) -> float:
    return amount * int(sign) if _CHANGES[name] else amount


def _changed(pixels: Tensor, names: list[str], amounts: list[float]) -> Tensor:
    """Returns the images, each changed by its own operator."""
    alike: dict[tuple[str, float], list[int]] = defaultdict(list)
    for row, change in enumerate(zip(names, amounts, strict=True)):
        alike[change].append(row)
    changed = pixels.clone()
    for (name, amount), rows in alike.items():
        if name != "identity":
            places = to_device(np.array(rows), pixels.device, pin=pixels.is_cuda)
            changed.index_copy_(0, places, _operator(name, amount)(pixels.index_select(0, places)))
    return changed


def _operator(name: str, amount: float) -> Callable[[Tensor], Tensor]:
    """Returns torchvision's operator; those of colour leave alpha alone."""
    from torchvision.transforms.v2 import functional as ops  # type: ignore[import-untyped]

    def affine(x: Tensor, shift: tuple[int, int] = (0, 0), shear: tuple[float, float] = (0.0, 0.0)) -> Tensor:
        corner = [0.0, 0.0] if any(shear) else None  # what a shear leaves in its place
        moved = ops.affine(x, 0.0, list(shift), 1.0, list(shear), fill=0.0, center=corner)
        return moved  # type: ignore[no-any-return]

    slant = math.degrees(math.atan(amount))
    in_place: dict[str, Callable[[Tensor], Tensor]] = {
        "shear_x": lambda x: affine(x, shear=(slant, 0.0)),
        "shear_y": lambda x: affine(x, shear=(0.0, slant)),
        "translate_x": lambda x: affine(x, shift=(int(amount), 0)),
        "translate_y": lambda x: affine(x, shift=(0, int(amount))),
        "rotate": lambda x: ops.rotate(x, amount, fill=0.0),
    }
    if name in in_place:
        return in_place[name]
    of_color: dict[str, Callable[[Tensor], Tensor]] = {
        "brightness": lambda x: ops.adjust_brightness(x, 1 + amount),
        "saturation": lambda x: ops.adjust_saturation(x, 1 + amount),
        "contrast": lambda x: ops.adjust_contrast(x, 1 + amount),
        "sharpness": lambda x: ops.adjust_sharpness(x, 1 + amount),
        "posterize": lambda x: ops.posterize(x, int(amount)),
        "solarize": lambda x: ops.solarize(x, amount),
        "autocontrast": ops.autocontrast,
        "equalize": ops.equalize,
    }
    return lambda x: torch.cat([of_color[name](x[:, :3]), x[:, 3:]], 1)
