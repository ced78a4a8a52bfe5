# SPDX-License-Identifier: Apache-2.0
"""Cases of the pools: windows counted as PyTorch counts them. They run inside programs only."""

from __future__ import annotations

from cases import OpCase, PoolShape
from ternary_ops import reference

_WINDOWS = (
    ((2, 7, 8), (2, 2), (2, 2), (0, 0)),
    ((3, 9, 7), (3, 3), (2, 2), (1, 1)),
    ((1, 8, 11), (3, 2), (1, 3), (1, 0)),
    ((5, 6, 6), (2, 3), (3, 2), (1, 1)),
    ((4, 5, 5), (5, 5), (1, 1), (0, 0)),
    ((2, 1, 9), (1, 4), (1, 2), (0, 2)),
    ((17, 8, 8), (3, 3), (3, 3), (1, 1)),
)


def _pools(*options: dict[str, object]) -> tuple[PoolShape, ...]:
    return tuple(
        PoolShape(2, c, (h, w), kernel, stride, padding, option)
        for (c, h, w), kernel, stride, padding in _WINDOWS
        for option in options
    )


MAX = OpCase(
    op="max_pool2d",
    reference=reference.max_pool2d,
    shapes=(
        *_pools({}, {"ceil": True}),
        PoolShape(1, 3, (9, 9), (3, 3), (1, 1), (1, 1), {"dilation": (2, 2)}),
        PoolShape(0, 3, (9, 9), (3, 3), (1, 1)),
    ),
    bench=(("resnet stem", PoolShape(1, 64, (112, 112), (3, 3), (2, 2), (1, 1))),),
)
AVG = OpCase(
    op="avg_pool2d",
    reference=reference.avg_pool2d,
    shapes=_pools(
        {},
        {"ceil": True},
        {"include_pad": False},
        {"ceil": True, "include_pad": False},
        {"ceil": True, "divisor": 5},
    ),
)
# (channels, size, output size)
ADAPTIVE = OpCase(
    op="adaptive_avg_pool2d",
    reference=reference.adaptive_avg_pool2d,
    shapes=(
        ((2, 3, 7, 8), (1, 1)),
        ((1, 5, 7, 8), (3, 5)),
        ((2, 4, 5, 5), (5, 5)),
        ((1, 2, 3, 2), (5, 4)),
        ((0, 2, 4, 4), (1, 1)),
    ),
)
