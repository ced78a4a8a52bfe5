# SPDX-License-Identifier: Apache-2.0
"""Units of a pattern: what is pruned or kept as one, how it is scored, and which units go.

A weight [O, I, ...] (its taps flattened to T; a linear layer has T = 1) is a grid of units: element
[O, I, T], "NxM" [ceil(O/N), ceil(I/M), T] with "1x4" the quad, filter [O, 1, 1]. Units are numbered
in the row-major order of that grid; one that reaches over the edge of the weight counts as one.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ternary_ops.errors import BadConfig, need


@dataclass(frozen=True)
class Pattern:
    """A unit of rows output channels x cols input channels at one tap; cols 0: a whole filter."""

    name: str
    rows: int
    cols: int

    def grid(self, shape: torch.Size) -> tuple[int, int, int]:
        """Number of units along output channels, input channels and taps."""
        if self.cols == 0:
            return shape[0], 1, 1
        return -(-shape[0] // self.rows), -(-shape[1] // self.cols), math.prod(shape[2:])

    def units(self, shape: torch.Size) -> int:
        """Number of units of a weight of that shape."""
        return math.prod(self.grid(shape))


def get_pattern(name: str) -> Pattern:
    """The pattern of that name: "element", "filter", or "NxM" such as "1x4". Else BadConfig."""
    if name == "filter":
        return Pattern("filter", 1, 0)
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", "1x1" if name == "element" else str(name))
    if match is None:
        raise BadConfig(
            need(
                'a pattern "element", "filter" or "NxM" (N output x M input channels: "1x4")',
                repr(name),
                "Pass one of these.",
            )
        )
    rows, cols = int(match[1]), int(match[2])
    return Pattern("element" if rows == cols == 1 else name, rows, cols)


def fit_pattern(pattern: Pattern, shape: torch.Size, groups: int) -> Pattern:
    """The pattern a layer takes: blocks wider than the channels of a group become "element"."""
    return get_pattern("element") if groups > 1 and shape[1] < pattern.cols else pattern


def unit_sums(values: Tensor, pattern: Pattern) -> Tensor:
    """Sum over each unit of values shaped like a weight [O, I, ...], [units]; dtype stays."""
    values = values.reshape(values.shape[0], values.shape[1], -1)  # [O, I, T]
    if pattern.cols == 0:
        return values.sum((1, 2))
    if pattern.rows == pattern.cols == 1:
        return values.flatten()
    shape = values.shape
    rows, cols, taps = pattern.grid(shape)
    short_rows, short_cols = rows * pattern.rows - shape[0], cols * pattern.cols - shape[1]
    if short_rows or short_cols:
        values = F.pad(values, (0, 0, 0, short_cols, 0, short_rows))
    return values.view(rows, pattern.rows, cols, pattern.cols, taps).sum((1, 3)).flatten()


def unit_scores(weight: Tensor, pattern: Pattern) -> Tensor:
    """Sum of |w| over each unit, [units], float32 (float64 stays); 0 means an empty unit."""
    magnitude = weight.detach().abs()
    return unit_sums(magnitude if magnitude.dtype == torch.float64 else magnitude.float(), pattern)


def to_mask(kept: Tensor, shape: torch.Size, pattern: Pattern) -> Tensor:
    """Mask of the weight's shape, bool, from one bool per unit; True survives."""
    if pattern.cols == 0:
        return kept.view(-1, *[1] * (len(shape) - 1)).expand(shape)
    rows, cols, taps = pattern.grid(shape)
    blocks = kept.view(rows, 1, cols, 1, taps).expand(-1, pattern.rows, -1, pattern.cols, -1)
    wide = blocks.reshape(rows * pattern.rows, cols * pattern.cols, taps)
    return wide[: shape[0], : shape[1]].reshape(shape)


def from_mask(mask: Tensor, pattern: Pattern) -> Tensor:
    """One bool per unit, [units]: whether anything of it survives. The inverse of to_mask."""
    return unit_scores(mask.float(), pattern) > 0


def best_units(scores: Tensor, rows: int, per_row: int) -> Tensor:
    """Numbers of the units with the highest scores: per_row of each row, for 0 the single best."""
    if per_row == 0:
        return scores.argmax().view(1)
    grid = scores.view(rows, -1)
    best = grid.sort(dim=1, descending=True, stable=True).indices[:, :per_row]
    first = torch.arange(rows, device=scores.device)[:, None] * grid.shape[1]
    return (best + first).flatten()


def lowest(scores: Tensor, count: int) -> Tensor:
    """Bool [units]: exactly the `count` lowest scores, of equal ones those that come first."""
    if count <= 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    threshold = _kth_smallest(scores, count)
    below = scores < threshold
    ties = scores == threshold
    room = count - below.sum()
    return below | (ties & (ties.cumsum(0) <= room))


def _kth_smallest(scores: Tensor, k: int) -> Tensor:
    # NumPy's partition is vectorized: a tenth of the time of kthvalue or topk on a CPU.
    if scores.device.type == "cpu":
        return torch.as_tensor(np.partition(scores.numpy(), k - 1)[k - 1])
    return kth_by_topk(scores, k)


def kth_by_topk(scores: Tensor, k: int) -> Tensor:
    """The k-th smallest score on any device; unlike kthvalue, deterministic on CUDA too."""
    above = scores.numel() - k + 1
    if above < k:
        return scores.topk(above, sorted=False).values.min()
    return scores.topk(k, largest=False, sorted=False).values.max()
