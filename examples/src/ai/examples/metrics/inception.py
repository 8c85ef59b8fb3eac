"""FID and KID as published: distances in the Inception network's features, by torch-fidelity's port of it."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from urllib.error import URLError

import torch
from torch import Tensor, nn

from ai.examples.metrics.images import Features, frechet_task
from ai.examples.metrics.task import Task


def fid_task(
    real: Tensor | Iterable[Tensor | Mapping[str, Tensor]],
    sample: Callable[[nn.Module, int], Tensor],
    *,
    n: int = 50_000,
    reference: str,
    value_range: tuple[float, float] = (-1.0, 1.0),
    batch_size: int = 50,
    weights: str | Path | None = None,
    device: str | torch.device = "cpu",
) -> Task:
    """Returns a trial's task with the numbers `fid`, `fid_kernel` (KID) and `fid_kernel_std`.

    The arguments are those of `frechet_task`, and `weights` and `device` of `inception_features`. Published figures
    use 50,000 samples against the whole training set, without augmentation.
    """
    features = inception_features(weights, device=device)
    return frechet_task(
        features,
        real,
        sample,
        n=n,
        reference=reference,
        value_range=value_range,
        batch_size=batch_size,
        n_subsets=100,
        name="fid",
    )


def inception_features(weights: str | Path | None = None, *, device: str | torch.device = "cpu") -> Features:
    """Returns the 2,048 pooled features of the Inception network that the FID is defined by.

    Images are rounded to 8 bits, grey ones repeated to three channels, and resized by the network itself.

    Args:
        weights: A file with the network's weights; None fetches them on first use and keeps them in torch's hub folder.
        device: Where the network runs.

    Raises:
        ModuleNotFoundError: torch-fidelity is not installed.
        FileNotFoundError: No file `weights`, or it is None and the weights cannot be fetched.
    """
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import (  # type: ignore[import-untyped, import-not-found, unused-ignore]
            URL_INCEPTION_V3,
            FeatureExtractorInceptionV3,
        )
    except ModuleNotFoundError as error:
        if error.name != "torch_fidelity":
            raise
        raise ModuleNotFoundError(
            "FID and KID need torch-fidelity: install the extra 'fid' of ai-examples from the checkout, "
            "with every local path beside it: pip install packages/* 'examples[fid]'",
            name="torch_fidelity",
        ) from error
    if weights is not None and not Path(weights).is_file():
        raise FileNotFoundError(f"weights ({weights}) must be a file with the Inception network's weights")
    try:
        network = FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048"], None if weights is None else str(weights)
        )
    except (URLError, TimeoutError) as error:
        raise FileNotFoundError(
            f"the Inception network's weights are not here and cannot be fetched ({error}): "
            f"get {URL_INCEPTION_V3} elsewhere and give its path as weights"
        ) from error
    network = network.to(device)

    def pooled(images: Tensor) -> Tensor:
        colour = images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images
        (features,) = network(((colour + 1) * 127.5).round().clamp(0, 255).to(device, torch.uint8))
        return features  # type: ignore[no-any-return]

    return Features(
        pooled,
        name="Inception v3 of the FID (torch-fidelity's port), 2,048 pooled features",
        resize="to 299² inside the network, bilinear as in TensorFlow 1; input rounded to 8 bits",
    )
