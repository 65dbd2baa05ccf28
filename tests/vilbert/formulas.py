"""BERT's and ViLBERT's layers, written out once more from the papers.

Shape legend: B batch, T tokens, S what is attended to, C channels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def affine(x: Tensor, module: nn.Linear) -> Tensor:
    return x @ module.weight.T + module.bias


def normed(x: Tensor, module: nn.LayerNorm) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    spread = (centred.square().mean(-1, keepdim=True) + 1e-12).sqrt()
    return centred / spread * module.weight + module.bias


def attend(
    q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor
) -> tuple[list[Tensor], Tensor]:
    """Probabilities of every head, and the context (B, T, C); mask (B, S), 1 = there."""
    width, probabilities, context = q.shape[-1] // heads, [], []
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        scores = q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(width)
        found = (scores + (1 - mask.double())[:, None] * -10000).softmax(-1)
        probabilities.append(found)
        context.append(found @ v[..., part])
    return probabilities, torch.cat(context, -1)


def ffn(x: Tensor, wide: nn.Module, out: nn.Module) -> Tensor:
    hidden = affine(x, wide.dense)
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
    return normed(affine(hidden, out.dense) + x, out.LayerNorm)


def own_layer(x: Tensor, layer: nn.Module, heads: int, mask: Tensor) -> tuple[list[Tensor], Tensor]:
    attention, output = layer.attention.self, layer.attention.output
    q, k, v = (affine(x, m) for m in (attention.query, attention.key, attention.value))
    probabilities, context = attend(q, k, v, heads, mask)
    x = normed(affine(context, output.dense) + x, output.LayerNorm)
    return probabilities, ffn(x, layer.intermediate, layer.output)


def connection(
    text: Tensor, image: Tensor, layer: nn.Module, heads: int, masks: tuple[Tensor, Tensor]
) -> tuple[list[list[Tensor]], Tensor, Tensor]:
    """Both directions read both streams as they were (1 = image, 2 = text)."""
    att, out = layer.biattention, layer.biOutput
    q1, k1, v1 = (affine(image, m) for m in (att.query1, att.key1, att.value1))
    q2, k2, v2 = (affine(text, m) for m in (att.query2, att.key2, att.value2))
    over_image, for_text = attend(q2, k1, v1, heads, masks[1])
    over_text, for_image = attend(q1, k2, v2, heads, masks[0])
    image = normed(affine(for_image, out.dense1) + image, out.LayerNorm1)
    text = normed(affine(for_text, out.dense2) + text, out.LayerNorm2)
    image = ffn(image, layer.v_intermediate, layer.v_output)
    return [over_image, over_text], ffn(text, layer.t_intermediate, layer.t_output), image
