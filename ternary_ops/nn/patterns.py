# SPDX-License-Identifier: Apache-2.0
"""Units of a pattern: what is pruned or kept as one, how it is scored, and which units go.

A weight [O, I, ...] (its taps flattened to T; a linear layer has T = 1) is a grid of units:

    element, "NxM"   blocks of N output x M input channels at one tap, [ceil(O/N), ceil(I/M), T];
                     element is "1x1", the quad "1x4"; one that reaches over the edge counts as one
    filter           [O, 1, 1]
    "N:M"            elements, of which at most N survive in every M neighbors along the input
                     channels of one row and tap; "1x4@N:M": likewise of blocks
    "strided:S"      every S-th input channel of one filter, all taps, [O, S, 1]: an offset and a
                     stride say where they are; "1x4@strided:S": every S-th block

Units are numbered in the row-major order of that grid. N:M and strided units are refused where the
blocks of a row do not divide.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ternary_ops.errors import BadConfig, UnsupportedShape, need


@dataclass(frozen=True)
class Pattern:
    """A block of rows output channels x cols input channels at one tap; cols 0: a whole filter.

    keep, of: at most `keep` of `of` neighboring blocks survive; of 0: any number.
    stride: a unit is every so many-th block of a row, at all taps; 0: one block.
    """

    name: str
    rows: int
    cols: int
    keep: int = 0
    of: int = 0
    stride: int = 0

    def blocks(self, shape: torch.Size) -> tuple[int, int, int]:
        """Number of blocks along output channels, input channels and taps."""
        return -(-shape[0] // self.rows), -(-shape[1] // self.cols), math.prod(shape[2:])

    def grid(self, shape: torch.Size) -> tuple[int, int, int]:
        """Number of units along output channels, input channels and taps."""
        if self.cols == 0:
            return shape[0], 1, 1
        rows, cols, taps = self.blocks(shape)
        return (rows, self.stride, 1) if self.stride else (rows, cols, taps)

    def units(self, shape: torch.Size) -> int:
        """Number of units of a weight of that shape."""
        return math.prod(self.grid(shape))

    @property
    def single(self) -> bool:
        """True if a unit is one weight."""
        return self.rows == self.cols == 1 and not self.stride

    @property
    def least_zeros(self) -> float:
        """The share of zeros that N:M itself asks for; 0 for other patterns."""
        return 1 - self.keep / self.of if self.of else 0.0


_BLOCK = re.compile(r"([1-9]\d*)x([1-9]\d*)")
_RULE = re.compile(r"([1-9]\d*):([1-9]\d*)|strided:([1-9]\d*)")


def get_pattern(name: str) -> Pattern:
    """The pattern of that name, see the top of this file. Else BadConfig."""
    if name == "filter":
        return Pattern("filter", 1, 0)
    block, at, rule = str(name).partition("@")
    if ":" in block and not at:
        block, rule = "element", block
    size = _BLOCK.fullmatch("1x1" if block == "element" else block)
    known = _RULE.fullmatch(rule)
    if size is None or (known is None and (rule or at)):
        raise _unknown(name)
    rows, cols = int(size[1]), int(size[2])
    keep, of, stride = (int(n or 0) for n in known.groups()) if known else (0, 0, 0)
    if (of and keep >= of) or stride == 1:
        raise _unknown(name)
    if rows == cols == 1:
        return Pattern(rule or "element", 1, 1, keep, of, stride)
    return Pattern(str(name), rows, cols, keep, of, stride)


def _unknown(name: object) -> BadConfig:
    what = (
        'a pattern "element", "filter", "NxM" (N output x M input channels: "1x4"), "N:M" with '
        'N < M ("2:4"), "strided:S" with S > 1, or the last two over blocks ("1x4@1:4")'
    )
    return BadConfig(need(what, repr(name), "Pass one of these."))


def fit_pattern(pattern: Pattern, shape: torch.Size, groups: int, name: str) -> Pattern:
    """The pattern a layer takes: blocks wider than the channels of a group become "element".

    UnsupportedShape, with the layer's name, for N:M and strided ones that do not divide.
    """
    whole = pattern.of or pattern.stride
    if whole:
        cols = pattern.blocks(shape)[1]
        if cols % whole or (groups > 1 and shape[1] < pattern.cols):
            what = f"input channels of {name!r} that pattern {pattern.name!r} divides"
            do = "Give the layer another pattern by a rule, or skip it."
            raise UnsupportedShape(
                need(f"{what}, {whole * pattern.cols} or a multiple", shape[1], do)
            )
        return pattern
    return get_pattern("element") if groups > 1 and shape[1] < pattern.cols else pattern


def unit_reduce(
    values: Tensor, pattern: Pattern, reduce: Callable[[Tensor, tuple[int, int]], Tensor]
) -> Tensor:
    """torch.sum or torch.amax of each unit, [units], of values >= 0 shaped like a weight."""
    values = values.reshape(values.shape[0], values.shape[1], -1)  # [O, I, T]
    if pattern.cols == 0:
        return reduce(values, (1, 2))
    rows, cols, taps = pattern.blocks(values.shape)
    if pattern.rows > 1 or pattern.cols > 1:
        short = (cols * pattern.cols - values.shape[1], rows * pattern.rows - values.shape[0])
        if any(short):
            values = F.pad(values, (0, 0, 0, short[0], 0, short[1]))
        values = reduce(values.view(rows, pattern.rows, cols, pattern.cols, taps), (1, 3))
    if pattern.stride:
        values = reduce(values.view(rows, cols // pattern.stride, pattern.stride, taps), (1, 3))
    return values.flatten()


def unit_sums(values: Tensor, pattern: Pattern) -> Tensor:
    """Sum over each unit of values shaped like a weight [O, I, ...], [units]; dtype stays."""
    return unit_reduce(values, pattern, torch.sum)


def unit_scores(weight: Tensor, pattern: Pattern) -> Tensor:
    """Sum of |w| over each unit, [units], float32 (float64 stays); 0 means an empty unit."""
    magnitude = weight.detach().abs()
    return unit_sums(magnitude if magnitude.dtype == torch.float64 else magnitude.float(), pattern)


def to_mask(kept: Tensor, shape: torch.Size, pattern: Pattern) -> Tensor:
    """Mask of the weight's shape, bool, from one bool per unit; True survives."""
    if pattern.cols == 0:
        return kept.view(-1, *[1] * (len(shape) - 1)).expand(shape)
    rows, cols, taps = pattern.blocks(shape)
    if pattern.stride:
        kept = kept.view(rows, 1, pattern.stride, 1)
        kept = kept.expand(-1, cols // pattern.stride, -1, taps).reshape(-1)
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


def surplus(scores: Tensor, pattern: Pattern, shape: torch.Size) -> Tensor:
    """Bool [units]: those beyond the `keep` best of their `of` neighbors, of equal ones the first;
    none for other patterns than N:M.
    """
    beyond = torch.zeros_like(scores, dtype=torch.bool)
    if not pattern.of:
        return beyond
    rows, cols, taps = pattern.grid(shape)
    groups = rows, cols // pattern.of, pattern.of, taps
    worst = scores.view(groups).argsort(dim=2, stable=True)[:, :, : pattern.of - pattern.keep]
    return beyond.view(groups).scatter_(2, worst, True).view(-1)


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
