# SPDX-License-Identifier: Apache-2.0
"""A running histogram of a tensor's values, and the uint8 range that suits it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ternary_ops.errors import UnsupportedModel, need
from ternary_ops.nn.fake_quant import LEVELS

METHODS = ("minmax", "percentile", "mse")
# Over both signs: of one-sided data at least a quarter is in use, 8 bins to each of 255 levels.
_BINS = 8192
_CANDIDATES = 100
_ROUNDS = 2


class Histogram:
    """Counts in equal bins over [-limit, limit); limit is a power of two and doubles when reached.

    Bins are then exact in float32, and doubling merges them in pairs, so that the counts do not
    depend on the order of the batches.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.count = 0
        self.low, self.high = math.inf, -math.inf
        self._limit = 2.0**-100  # bins per unit must be finite in float32
        self._counts = torch.zeros(_BINS, dtype=torch.float64)

    def add(self, value: Tensor) -> None:
        """Count a tensor's elements; UnsupportedModel when one is not finite."""
        value = value.detach().float()
        if value.numel() == 0:
            return
        low, high = (float(v) for v in value.aminmax())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise UnsupportedModel(
                need(
                    f"finite activations in {self.name}",
                    f"values from {low} to {high}",
                    "Check the batches and the weights before this layer.",
                )
            )
        self._grow(max(-low, high))
        bins = (value * (_BINS / 2 / self._limit)).floor().long() + _BINS // 2
        self._counts += torch.bincount(bins.flatten(), minlength=_BINS).cpu()
        self.count += value.numel()
        self.low, self.high = min(self.low, low), max(self.high, high)

    def _grow(self, peak: float) -> None:
        while peak >= self._limit:
            self._limit *= 2
            pairs = self._counts.view(-1, 2).sum(1)
            self._counts = torch.zeros(_BINS, dtype=torch.float64)
            self._counts[_BINS // 4 : 3 * _BINS // 4] = pairs

    def range(self, method: str, percentile: float) -> tuple[float, float]:
        """(lo, hi) with lo <= 0 <= hi by one of METHODS."""
        low, high = min(self.low, 0.0), max(self.high, 0.0)
        if method == "percentile":
            below, above = self._quantile(1 - percentile / 100), self._quantile(percentile / 100)
            return max(low, min(below, 0.0)), min(high, max(above, 0.0))
        return self._least_squares(low, high) if method == "mse" else (low, high)

    def _quantile(self, share: float) -> float:
        """Outer edge of the bin in which that fraction of the values is reached."""
        reached = int(torch.searchsorted(self._counts.cumsum(0), share * self.count))
        edge = reached if share < 0.5 else reached + 1
        return (2 * edge / _BINS - 1) * self._limit

    def _least_squares(self, low: float, high: float) -> tuple[float, float]:
        """Clip one side, then the other, where the squared error is smallest; twice."""
        full = low, high
        clips = torch.linspace(1 / _CANDIDATES, 1, _CANDIDATES, dtype=torch.float64).flip(0)
        for _ in range(_ROUNDS):
            for side in (1, 0):
                if full[side] == 0.0:
                    continue
                tried = clips * full[side]
                lo, hi = (tried.new_tensor(low), tried) if side else (tried, tried.new_tensor(high))
                best = float(tried[self._errors(lo, hi).argmin()])
                low, high = (low, best) if side else (best, high)
        return low, high

    def _errors(self, lo: Tensor, hi: Tensor) -> Tensor:
        """Summed squared error of quantizing to each of [candidates] ranges."""
        used = self._counts.nonzero().flatten()
        values = ((used + 0.5) * (2 / _BINS) - 1) * self._limit
        scale = ((hi - lo) / LEVELS).clamp_min(torch.finfo(torch.float32).tiny).view(-1, 1)
        zero_point = (-lo.view(-1, 1) / scale).round()
        steps = (values / scale).round().clamp(-zero_point, LEVELS - zero_point)
        return ((steps * scale - values).square() * self._counts[used]).sum(1)
