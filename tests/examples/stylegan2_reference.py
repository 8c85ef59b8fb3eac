"""StyleGAN2 written out slowly from its published description, on state dicts with the published names.

Every operation is a plain formula on dense tensors: zeros are inserted, images padded and filtered at full size, and
modulated kernels applied image by image.
"""

import math

import torch
import torch.nn.functional as F


def channels(size, base, most):
    return min(base // size, most)


def published_state(
    imsize,
    *,
    base=32768,
    most=512,
    n_mapping=8,
    n_classes=0,
    z_dim=512,
    w_dim=512,
    n_rgb=3,
    seed=0,
    architecture="resnet",
):
    """Random generator and discriminator state dicts with the names and shapes of the published PyTorch files."""
    draws = torch.Generator().manual_seed(seed)

    def randn(*shape, scale=1.0):
        return scale * torch.randn(shape, generator=draws, dtype=torch.float64)

    kernel = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=torch.float64)
    kernel = torch.outer(kernel, kernel) / 64
    sizes = [2**i for i in range(2, int(math.log2(imsize)) + 1)]

    g = {}

    def fc(state, name, n_in, n_out, lr_mult=1.0, bias=0.0):
        state[f"{name}.weight"] = randn(n_out, n_in) / lr_mult
        state[f"{name}.bias"] = bias + randn(n_out, scale=0.1) / lr_mult

    def mapping(state, n_layers, z, w):
        if n_classes:
            fc(state, "mapping.embed", n_classes, w)
        width = z + (w if n_classes else 0)
        for i in range(n_layers):
            fc(state, f"mapping.fc{i}", width, w, 0.01)
            width = w

    mapping(g, n_mapping, z_dim, w_dim)
    g["mapping.w_avg"] = randn(w_dim)

    def layer(name, n_in, n_out, size):
        g[f"{name}.weight"] = randn(n_out, n_in, 3, 3)
        g[f"{name}.noise_strength"] = randn(scale=0.3)
        g[f"{name}.bias"] = randn(n_out, scale=0.1)
        g[f"{name}.resample_filter"] = kernel
        g[f"{name}.noise_const"] = randn(size, size)
        fc(g, f"{name}.affine", w_dim, n_in, bias=1.0)

    for size in sizes:
        n_out, block = channels(size, base, most), f"synthesis.b{size}"
        g[f"{block}.resample_filter"] = kernel
        if size == 4:
            g[f"{block}.const"] = randn(n_out, 4, 4)
        else:
            layer(f"{block}.conv0", channels(size // 2, base, most), n_out, size)
        layer(f"{block}.conv1", n_out, n_out, size)
        g[f"{block}.torgb.weight"] = randn(n_rgb, n_out, 1, 1)
        g[f"{block}.torgb.bias"] = randn(n_rgb, scale=0.1)
        fc(g, f"{block}.torgb.affine", w_dim, n_out, bias=1.0)

    d = {}

    def conv(name, n_in, n_out, k, bias=True):
        d[f"{name}.weight"] = randn(n_out, n_in, k, k)
        if bias:
            d[f"{name}.bias"] = randn(n_out, scale=0.1)
        d[f"{name}.resample_filter"] = kernel

    for size in sizes[:0:-1]:
        n_in, n_out = channels(size, base, most), channels(size // 2, base, most)
        d[f"b{size}.resample_filter"] = kernel
        if size == imsize:
            conv(f"b{size}.fromrgb", n_rgb, n_in, 1)
        conv(f"b{size}.conv0", n_in, n_in, 3)
        conv(f"b{size}.conv1", n_in, n_out, 3)
        if architecture == "resnet":
            conv(f"b{size}.skip", n_in, n_out, 1, bias=False)
    n = channels(4, base, most)
    conv("b4.conv", n + 1, n, 3)
    fc(d, "b4.fc", n * 16, n)
    fc(d, "b4.out", n, n if n_classes else 1)
    if n_classes:
        mapping(d, 8, 0, n)
    # Float64 for the comparison, but values that a float32 network holds exactly.
    return tuple({name: value.float().double() for name, value in state.items()} for state in (g, d))


def n_parameters(state):
    """Counts what is trained: everything but filters, fixed noise and the mean style."""
    return sum(
        value.numel() for name, value in state.items() if not name.endswith(("resample_filter", "noise_const", "w_avg"))
    )


def upfirdn(x, kernel, *, up=1, down=1, pad=(0, 0), gain=1.0):
    """Inserts zeros, pads, convolves with the 2-d kernel, keeps every `down`-th pixel."""
    n, c, height, width = x.shape
    spread = x.new_zeros(n, c, height * up, width * up)
    spread[:, :, ::up, ::up] = x
    spread = F.pad(spread, [pad[0], pad[1], pad[0], pad[1]])
    kernel = (gain * kernel).to(x).flip(0, 1).expand(c, 1, *kernel.shape)
    return F.conv2d(spread, kernel, groups=c)[:, :, ::down, ::down]


def resampled_conv(x, weight, kernel, *, up=1, down=1):
    """Convolves; resampling filters reach one kernel beyond the image, as published."""
    before = after = weight.shape[-1] // 2
    taps = len(kernel)
    if up > 1:
        before, after = before + (taps + up - 1) // 2, after + (taps - up) // 2
        x = upfirdn(x, kernel, up=up, pad=(before, after), gain=up**2)
        weight = weight.flip(2, 3)  # published up-sampling layers store their kernels mirrored
    elif down > 1:
        before, after = before + (taps - down + 1) // 2, after + (taps - down) // 2
        x = F.pad(x, [before, after, before, after])
    else:
        x = F.pad(x, [before, after, before, after])
    x = F.conv2d(x, weight)
    return upfirdn(x, kernel, down=down) if down > 1 else x


def modulated_conv(x, weight, styles, kernel, *, demodulate, up=1):
    """Equations 1 and 3 of the paper, one image after the other."""
    images = []
    for image, style in zip(x, styles, strict=True):
        scaled = weight * style[None, :, None, None]
        if demodulate:
            scaled = scaled / (scaled.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()
        images.append(resampled_conv(image[None], scaled, kernel, up=up))
    return torch.cat(images)


def leaky(x):
    return F.leaky_relu(x, 0.2) * math.sqrt(2)


def dense(state, name, x, lr_mult=1.0):
    weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
    return x @ (weight * lr_mult / math.sqrt(weight.shape[1])).T + bias * lr_mult


def unit_moment(x):
    return x / (x.square().mean(1, keepdim=True) + 1e-8).sqrt()


def mapping(state, z, label):
    parts = [] if z is None else [unit_moment(z)]
    if "mapping.embed.weight" in state:
        one_hot = F.one_hot(label, state["mapping.embed.weight"].shape[1]).to(state["mapping.embed.weight"])
        parts.append(unit_moment(dense(state, "mapping.embed", one_hot)))
    x = torch.cat(parts, 1)
    i = 0
    while f"mapping.fc{i}.weight" in state:
        x = leaky(dense(state, f"mapping.fc{i}", x, 0.01))
        i += 1
    return x


def synthesis(state, w, *, noise=True):
    """`w`: `(batch, layers, w_dim)`; `noise` takes the fixed maps, else none."""
    sizes = sorted(int(name.split(".")[1][1:]) for name in state if name.endswith("torgb.bias"))
    kernel = state["synthesis.b4.resample_filter"]

    def layer(name, x, style, up=1):
        x = modulated_conv(
            x, state[f"{name}.weight"], dense(state, f"{name}.affine", style), kernel, demodulate=True, up=up
        )
        if noise:
            x = x + state[f"{name}.noise_const"] * state[f"{name}.noise_strength"]
        return leaky(x + state[f"{name}.bias"][:, None, None])

    def to_rgb(name, x, style):
        weight = state[f"{name}.weight"]
        styles = dense(state, f"{name}.affine", style) / math.sqrt(weight[0].numel())
        return modulated_conv(x, weight, styles, kernel, demodulate=False) + state[f"{name}.bias"][:, None, None]

    x = state["synthesis.b4.const"].expand(len(w), -1, -1, -1)
    x = layer("synthesis.b4.conv1", x, w[:, 0])
    image = to_rgb("synthesis.b4.torgb", x, w[:, 1])
    index = 1
    for size in sizes[1:]:
        block = f"synthesis.b{size}"
        x = layer(f"{block}.conv0", x, w[:, index], up=2)
        x = layer(f"{block}.conv1", x, w[:, index + 1])
        image = upfirdn(image, kernel, up=2, pad=(2, 1), gain=4) + to_rgb(f"{block}.torgb", x, w[:, index + 2])
        index += 2
    return image


def discriminator(state, image, label, *, group=4):
    sizes = sorted((int(name.split(".")[0][1:]) for name in state if name.endswith("conv1.weight")), reverse=True)
    kernel = state[f"b{sizes[0]}.resample_filter"]

    def conv(name, x, down=1):
        weight = state[f"{name}.weight"]
        return resampled_conv(x, weight / math.sqrt(weight[0].numel()), kernel, down=down)

    def bias(name):
        return state[f"{name}.bias"][:, None, None]

    x = leaky(conv(f"b{sizes[0]}.fromrgb", image) + bias(f"b{sizes[0]}.fromrgb"))
    for size in sizes:
        shortcut = conv(f"b{size}.skip", x, 2) if f"b{size}.skip.weight" in state else None
        x = leaky(conv(f"b{size}.conv0", x) + bias(f"b{size}.conv0"))
        x = leaky(conv(f"b{size}.conv1", x, 2) + bias(f"b{size}.conv1"))
        x = x if shortcut is None else (x + shortcut) / math.sqrt(2)
    x = minibatch_std(x, group)
    x = leaky(conv("b4.conv", x) + bias("b4.conv"))
    x = leaky(dense(state, "b4.fc", x.flatten(1)))
    x = dense(state, "b4.out", x)
    if "mapping.embed.weight" in state:
        x = (x * mapping(state, None, label)).sum(1, keepdim=True) / math.sqrt(x.shape[1])
    return x


def minibatch_std(x, group=4):
    """Appends a channel that holds, for each group, the mean over the pixels of the deviation within the group."""
    n = len(x)
    group = min(group, n)
    extra = x.new_zeros(n, 1, *x.shape[2:])
    for first in range(n // group):
        members = list(range(first, n, n // group))
        deviation = (x[members].var(0, correction=0) + 1e-8).sqrt().mean()
        extra[members] = deviation
    return torch.cat([x, extra], 1)
