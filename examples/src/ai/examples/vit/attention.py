"""Where a Vision Transformer looks.

Axes: `B` batch, `H` heads, `T` tokens.
"""

import math
from typing import cast

import torch
from torch import Tensor, nn

from ai.examples.metrics.task import evaluating
from ai.examples.vit.model import Model


def attention_weights(layer: nn.Module, x: Tensor) -> Tensor:
    """Returns what `layer`, a self-attention of `ai.model` without mask and rotation, mixes values by.

    The fast kernel that the layer itself runs never holds these weights, hence they are computed again.

    Args:
        layer: The layer.
        x: `(B, T, dim)`, its input.

    Returns:
        `(B, H, T, T)`: the weight of each token (last axis) for each token; rows sum to 1.
    """
    project_q, project_kv = cast(nn.Module, layer.q), cast(nn.Module, layer.kv)
    n_batch, n_tokens, _ = x.shape
    q = project_q(x).reshape(n_batch, n_tokens, layer.n_heads, -1).transpose(1, 2)  # (B, H, T, D)
    k = project_kv(x).reshape(n_batch, n_tokens, 2, layer.n_heads, -1)[:, :, 0].transpose(1, 2)
    weights: Tensor = (q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])).softmax(-1)
    return weights


def attention_rollout(model: Model, images: Tensor) -> Tensor:
    """Returns how much each patch reaches the classified vector, through all layers: `(B, rows, columns)`.

    In each layer a token is taken to be half itself and half what it attends to, heads averaged; the product over the
    layers is read at the class token, or averaged over the patches where those are pooled. A map sums to 1, but for
    what stays on the class token.

    Source: Abnar and Zuidema 2020, Quantifying Attention Flow in Transformers, equation 1.
    """
    with evaluating(model):
        x = model.embed(images)
        flow = torch.eye(x.shape[1], device=x.device).expand(len(x), -1, -1)
        for block in model.each_block():
            normed = cast(nn.Module, block.norm1)(x)
            weights = attention_weights(cast(nn.Module, block.attn), normed).mean(1)
            flow = (weights @ flow + flow) / 2
            x = block(x)
    seen = flow[:, 0, 1:] if model.cls is not None else flow.mean(1)
    return seen.reshape(-1, model.side, model.side)
