# SPDX-License-Identifier: Apache-2.0
"""Heads that score the filters of a layer: attention over the filters' weights, or free gates.

A head gives raw scores [F]; 1 and above is on, 0 and below off. All are 1 at the start.
"""

from __future__ import annotations

from collections.abc import Callable
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


class _Within(torch.autograd.Function):
    """clip(r, 0, 1), whose gradient passes outside as well where a step against it leads back."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, raw: Tensor) -> Tensor:
        ctx.save_for_backward(raw)
        return raw.clamp(0, 1)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor) -> Tensor:
        (raw,), (gradient,) = ctx.saved_tensors, gradients  # type: ignore[attr-defined]
        lost = ((raw > 1) & (gradient < 0)) | ((raw < 0) & (gradient > 0))
        return gradient.masked_fill(lost, 0.0)


def squash(raw: Tensor, slope: float) -> Tensor:
    """Scores in 0..1: a hard sigmoid, 1 at raw >= 1 for the slope 1, steeper around 1/2 after.

    With a slope above 1 scores are 1 from 1/2 + 1/(2 slope) on. At both ends the gradient passes
    where it leads back, so that no score is stuck.
    """
    result: Tensor = _Within.apply(0.5 + slope * (raw - 0.5))  # type: ignore[no-untyped-call]
    return result
