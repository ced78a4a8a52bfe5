# SPDX-License-Identifier: Apache-2.0
"""Cases of the program operator rearrange."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from cases import ProgramCase


def move(b: Any, x: int, split: Any, order: Any, axes: Any, rank: int = 4) -> int:
    """Append a rearrange."""
    made: int = b("rearrange", x, split=split, order=order, axes=axes, rank=rank)
    return made


def build(b: Any) -> None:
    """Between all ranks, of codes and floats: packets of channels whole and taken apart, of images
    of any size and of their own.
    """
    free = (-1,)
    q = move(b, b("quantize", 0, y=b.params()), ((3, 4), free, free), (1, 0, 2, 3), (2, 1, 1))
    tall = move(b, q, ((-1, 2), free, free), (0, 2, 3, 1), (1, 1, 2))
    tokens = move(b, q, (free, free, free), (0, 1, 2), (1, 2), 3)
    tokens = b("linear", tokens, w=b.weight("ternary", 12, 12, zeros=0.0), y=b.params())
    narrow = move(b, tokens, ((2, 3, 2), free), (0, 3, 1, 2), (1, 3), 3)
    small = sized(b, q, 12, (6, 4))
    windows = move(b, small, (free, (3, 2), (2, 2)), (1, 3, 0, 2, 4), (3, 2), 3)
    image = move(b, windows, ((3, 2, 12), (2, -1)), (2, 3, 0, 4, 1), (1, 2, 2))
    mixed = move(b, image, ((4, 3), (6,), (4,)), (3, 0, 2, 1), (2, 1, 1))
    reals = b("dequantize", mixed), b("dequantize", sized(b, tall, 6, (6, 3)))
    across = move(b, b("concat", *reals), (free, free, (3,)), (2, 1, 0), (1, 1, 1))
    rows = move(b, across, (free, free, free), (1, 0, 2), (3,), 2)
    rows = b("linear", rows, w=b.weight("float", 15, 22 * 6 * 3, zeros=0.0))
    back = move(b, rows, ((3, 5),), (1, 0), (1, 1), 3)
    flat = move(b, b("dequantize", narrow), (free, free), (1, 0), (2,), 2)
    ends = b("slice", move(b, back, (free, (3,)), (1, 0), (2,), 2), begin=6, end=13)
    b("concat", flat, ends, rows)


def sized(b: Any, x: int, channels: int, size: tuple[int, int]) -> int:
    """An image of a size of its own, made of the channels of its mean."""
    h, w = size
    mean = b("adaptive_avg_pool2d", x, size=(1, 1), y=b.params(-0.5, 0.5))
    filters = b.weight("int8", channels * h * w, channels, zeros=0.0)
    wide = b("conv2d", mean, w=filters, y=b.params())
    return move(b, wide, ((channels, h, w), (1,), (1,)), (0, 1, 3, 2, 4), (1, 2, 2))


def by_torch(at: dict[str, Any], weight: Any, x: list[torch.Tensor]) -> torch.Tensor:
    """Tokens come and go as [N, L, C]."""
    return module(at, weight)(x[0])  # type: ignore[no-any-return]


class _Rearrange(nn.Module):
    """By reshape and permute, with the axes of a token behind its place."""

    def __init__(self, at: dict[str, Any]) -> None:
        super().__init__()
        self.split, self.order, self.axes = at["split"], at["order"], at["axes"]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inside = x.transpose(1, 2) if x.dim() == 3 else x
        for axis in range(len(self.split), 0, -1):
            factors = self.split[axis - 1]
            inside = inside.unflatten(axis, factors) if factors else inside.squeeze(axis)
        made = inside.permute(0, *(i + 1 for i in self.order))
        ends = [0]
        for count in self.axes:
            ends.append(ends[-1] + count)
        sizes = [math.prod(made.shape[1 + a : 1 + b]) for a, b in zip(ends, ends[1:], strict=False)]
        out = made.reshape(x.shape[0], *sizes)
        return out.transpose(1, 2) if out.dim() == 3 else out


def module(at: dict[str, Any], weight: Any) -> nn.Module:
    """reshape and permute."""
    return _Rearrange(at)


# Orders and axes of two factors of the channels, rows and columns, of any image.
_FREE = (
    ((1, 0, 2, 3), (2, 1, 1)),
    ((0, 2, 3, 1), (1, 1, 2)),
    ((1, 2, 0, 3), (1, 2, 1)),
    ((0, 2, 1, 3), (1, 2, 1)),
    ((1, 2, 3, 0), (1, 1, 2)),
    ((0, 1, 3, 2), (2, 1, 1)),
)


def draw(d: Any, x: Any) -> Any:
    """Of any image, or of one whose sizes are products; mostly so that rows stay with rows."""
    split: Any = (factors(d, x.channels), (-1,), (-1,))
    order, axes = d.pick(*_FREE)
    if d.chance(0.5):
        down, across = (d.number(1, 4), d.number(1, 3)), (d.number(1, 3), d.number(1, 4))
        x = d.resize(x, size=(down[0] * down[1], across[0] * across[1]))
        split, axes = (factors(d, x.channels), down, across), d.pick((2, 2, 2), (1, 2, 3))
        order = tuple(int(i) for i in d.rng.permutation(6))
        if d.chance(0.6):
            rest = [i for i in order if i != 2]
            order = (*rest[: axes[0]], 2, *rest[axes[0] :])
    known = [f for axis in split for f in axis]
    channels = math.prod(known[i] for i in order[: axes[0]])
    made = move(d.b, x.id, split, order, axes)
    return replace(x, id=made, channels=channels, level=d.level(x, "move", split, order, axes))


def factors(d: Any, size: int) -> tuple[int, int]:
    """Two whose product it is."""
    first = d.pick(*(f for f in range(1, size + 1) if size % f == 0))
    return first, size // first


_SPLITS: list[Any] = [
    [], [[-1]] * 4, 3, [[-1], 2], [[-1], [0], [-1]], [[-1, -1]], [["2"]], [[1.0]], [[2] * 17],
    [[-2]], [[7, 5], [-1], [-1]], [[True], [-1]],
]  # fmt: skip
CASE = ProgramCase(
    "rearrange",
    12,
    build,
    by_torch,
    module,
    draw,
    {
        "split": _SPLITS,
        "order": [[0], [0, 0, 1], [0, 1, 2, 3, 4, 5], 1, None, [-1, 0], [0.0], list(range(17))],
        "axes": [[], [1], [9, 9, 9], [-1, 2], 2, None, [1, 1, 1, 1]],
        "rank": [1, 5, 0, True, "4", 4.0],
    },
)
