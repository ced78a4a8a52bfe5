# SPDX-License-Identifier: Apache-2.0
"""Heads that score the filters of a layer: attention over the filters' weights, or free gates.

A head gives raw scores [F]; 1 and above is on, 0 and below off. All are 1 at the start.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from zlib import crc32

import torch
from torch import Tensor, nn

from ternary_ops.prune.registry import Registry

_HIDDEN = 32
_EPS = 1e-5


class FilterAttention(nn.Module):
    """Single-head attention over a layer's filters, with scalar values.

    Rows x of the filters, each standardized so that its scale does not count, look at each other,
    A = softmax(Q K^T / sqrt(h)); a filter's score is 1 + A (x v) + u (A_ii - mean A_ii) + b. The
    third term is the value of the relative position 0: how much a filter looks at itself alone,
    less where others resemble it.

    v, u, b start at 0, and Q = K, a random projection, so that attention is likeness at first.
    Factors of v and b give a filter's raw score the rate at which a gate of its own would learn.
    """

    def __init__(self, name: str, filters: int, inputs: int) -> None:
        """name: of the layer, the seed of the projection. inputs: numbers in a filter."""
        super().__init__()
        hidden = min(_HIDDEN, inputs)
        generator = torch.Generator().manual_seed(crc32(name.encode()))
        projection = torch.randn(inputs, hidden, generator=generator) / inputs**0.5
        self.query, self.key = nn.Parameter(projection), nn.Parameter(projection.clone())
        self.value = nn.Parameter(torch.zeros(inputs))
        self.alone, self.bias = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))
        self.rates = (inputs**-0.5, filters**-0.5)

    def forward(self, rows: Tensor) -> Tensor:
        """Raw scores [F] of filters [F, d]."""
        x = rows - rows.mean(1, keepdim=True)
        x = x / (x.square().mean(1, keepdim=True) + _EPS**2).sqrt()
        looks = (x @ self.query) @ (x @ self.key).T / self.query.shape[1] ** 0.5
        attention = looks.softmax(1)
        own = attention.diagonal()
        found = attention @ (x @ self.value) * self.rates[0]
        raw: Tensor = 1 + found + self.alone * (own - own.mean()) + self.bias * self.rates[1]
        return raw


class FreeGates(nn.Module):
    """One number a filter, which does not see the weights: the ablation."""

    def __init__(self, name: str, filters: int, inputs: int) -> None:
        """All on."""
        super().__init__()
        self.gates = nn.Parameter(torch.ones(filters))

    def forward(self, rows: Tensor) -> Tensor:
        """The gates [F]."""
        return self.gates


HEADS: Registry[Callable[[str, int, int], nn.Module]] = Registry(
    "a score head", "add yours to prune.filter_attention.HEADS"
)
HEADS.add("attention", FilterAttention)
HEADS.add("gates", FreeGates)


class Within(torch.autograd.Function):
    """clip(r, 0, 1): scores of raw scores, whose gradient passes outside as well where a step
    against it leads back, so that no score is stuck at an end.
    """

    @staticmethod
    def forward(ctx: Any, raw: Tensor) -> Tensor:
        """Scores, of the shape of the raw ones."""
        ctx.save_for_backward(raw)
        return raw.clamp(0, 1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """Zero where a step would lead farther out."""
        (raw,), (gradient,) = ctx.saved_tensors, gradients
        out = ((raw > 1) & (gradient < 0)) | ((raw < 0) & (gradient > 0))
        return gradient.masked_fill(out, 0.0)
