"""Loads state dicts that carry the names and shapes of the published PyTorch StyleGAN2 (ADA) networks.

The published files are pickles of the authors' own classes. Their `state_dict()`s, once saved as plain tensors, load
here; the configuration is read from the shapes.
"""

import re
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from ai.examples.stylegan2.model import Discriminator, Generator

# Constants of the published modules that are no weights here.
_IGNORED = re.compile(r"(^|\.)resample_filter$")


def from_published(state: Mapping[str, Tensor]) -> Generator | Discriminator:
    """Returns the network that a published state dict is of, a generator or a discriminator, with its weights.

    Args:
        state: Tensors by published name, such as `synthesis.b8.conv0.affine.weight` or `b64.skip.weight`.

    Raises:
        ValueError: Names are missing or unknown, or a shape belongs to no StyleGAN2.

    Example:
        >>> ours = Generator(8, nc_max=4).init(seed=0).state_dict()
        >>> from_published({ours_to_published(name, imsize=8): value for name, value in ours.items()
        ...     if name != "path_mean"}).imsize
        8
    """
    state = {name: value for name, value in state.items() if not _IGNORED.search(name)}
    is_generator = any(name.startswith("synthesis.") for name in state)
    network = _generator(state) if is_generator else _discriminator(state)
    ours = network.state_dict()
    ours.pop("path_mean", None)  # training state that the published networks do not carry
    names = {ours_to_published(name, imsize=network.imsize): name for name in ours}
    if missing := sorted(names.keys() - state.keys()):
        raise ValueError(f"state lacks names of StyleGAN2: {', '.join(missing)}")
    if unknown := sorted(state.keys() - names.keys()):
        raise ValueError(f"state has names that StyleGAN2 does not: {', '.join(unknown)}")
    loaded = {"path_mean": torch.zeros((), device="cpu")} if is_generator else {}
    for published, name in names.items():
        value = state[published]
        if value.numel() != ours[name].numel():
            raise ValueError(
                f"{published} must have the shape {tuple(ours[name].shape)} that the other weights imply, "
                f"not {tuple(value.shape)}"
            )
        loaded[name] = value.reshape(ours[name].shape)
    network.load_state_dict(loaded)
    return network


def ours_to_published(name: str, *, imsize: int) -> str:
    """Returns the published name of a weight of ours, in a network for images of `imsize`.

    Example:
        >>> ours_to_published("mapping.layers.3.bias", imsize=256)
        'mapping.fc3.bias'
    """
    name = re.sub(r"^from_rgb\.", f"b{imsize}.fromrgb.", name)
    for pattern, replacement in _RULES:
        name = re.sub(pattern, replacement, name)
    return name


def _generator(state: Mapping[str, Tensor]) -> Generator:
    channels = {int(name.split(".")[1][1:]): len(state[name]) for name in state if re.search(r"conv1\.bias$", name)}
    imsize = max(channels, default=0)
    w_dim, n_mapping, n_classes = _mapping_config(state)
    width = _shape(state, "mapping.fc0.weight")[1]
    return Generator(
        imsize,
        _shape(state, "synthesis.b4.torgb.weight")[0],
        **_channel_config(channels),
        z_dim=width - (w_dim if n_classes else 0),
        w_dim=w_dim,
        n_mapping=n_mapping,
        n_classes=n_classes,
    )


def _discriminator(state: Mapping[str, Tensor]) -> Discriminator:
    channels = {int(name.split(".")[0][1:]): len(state[name]) for name in state if name.endswith("conv0.bias")}
    imsize = max(channels, default=0)
    channels[4] = _shape(state, "b4.conv.weight")[0]
    n_classes = _mapping_config(state)[2] if "mapping.embed.weight" in state else 0
    nc_img = _shape(state, f"b{imsize}.fromrgb.weight")[1]
    architecture: Literal["resnet", "orig"] = "resnet" if f"b{imsize}.skip.weight" in state else "orig"
    # The groups of the minibatch deviation leave no trace in the weights: the published `orig` networks have 32.
    group = 32 if architecture == "orig" else 4
    return Discriminator(
        imsize, nc_img, **_channel_config(channels), n_classes=n_classes, group=group, architecture=architecture
    )


def _mapping_config(state: Mapping[str, Tensor]) -> tuple[int, int, int]:
    """Returns width, layers and classes of the mapping network."""
    n_mapping = sum(bool(re.fullmatch(r"mapping\.fc\d+\.bias", name)) for name in state)
    n_classes = state["mapping.embed.weight"].shape[1] if "mapping.embed.weight" in state else 0
    return _shape(state, "mapping.fc0.weight")[0], n_mapping, n_classes


def _channel_config(channels: Mapping[int, int]) -> dict[str, int]:
    """Returns `nc_base` and `nc_max` that give these channels by size."""
    imsize, nc_max = max(channels), channels[4]
    nc_base = channels[imsize] * imsize
    for size, n in channels.items():
        if n != min(nc_base // size, nc_max):
            raise ValueError(f"{n} channels at size {size} fit no StyleGAN2 with {channels[imsize]} at size {imsize}")
    return {"nc_base": nc_base, "nc_max": nc_max}


def _shape(state: Mapping[str, Tensor], name: str) -> torch.Size:
    if name not in state:
        raise ValueError(f"state lacks names of StyleGAN2: {name}")
    return state[name].shape


_RULES = (
    (r"^mapping\.layers\.(\d+)\.", r"mapping.fc\1."),
    (r"^synthesis\.const$", "synthesis.b4.const"),
    (r"^synthesis\.blocks\.(\d+)\.", r"synthesis.b\1."),
    (r"\.to_rgb\.", ".torgb."),
    (r"\.conv\.(weight|affine)", r".\1"),
    (r"\.noise$", ".noise_const"),
    (r"^blocks\.(\d+)\.", r"b\1."),
    (r"^(conv|fc|out)\.", r"b4.\1."),
)
