# SPDX-License-Identifier: Apache-2.0
"""Cases of block_sparse_conv2d: (shape, block), float weights, held to cases.float_bound."""

from __future__ import annotations

from cases import ConvShape, OpCase
from ternary_ops import reference

CASE = OpCase(
    op="block_sparse_conv2d",
    reference=reference.conv2d,
    integer_exact=False,
    shapes=(
        (ConvShape(1, 8, (6, 6), 8, padding=(1, 1), density=0.5), (4, 4)),
        (ConvShape(2, 7, (9, 5), 5, padding=(1, 1), density=0.5), (2, 3)),
        (ConvShape(1, 16, (7, 7), 12, stride=(2, 2), density=0.3), (1, 4)),
        (ConvShape(1, 12, (5, 8), 6, padding=(1, 1), groups=2, density=0.5), (3, 2)),
        (ConvShape(1, 9, (6, 6), 10, (1, 1), density=0.5), (8, 16)),
        (ConvShape(0, 4, (6, 6), 8, density=0.5), (2, 2)),
        (ConvShape(1, 6, (6, 6), 4, padding=(1, 1), density=0.0), (2, 2)),
        (ConvShape(1, 20, (6, 7), 11, padding=(2, 1), dilation=(2, 1), density=0.2), (4, 4)),
    ),
    bench=(
        (
            "resnet-18 stage 2, 4x4 blocks, 10 %",
            (ConvShape(1, 128, (28, 28), 128, padding=(1, 1), density=0.1), (4, 4)),
        ),
    ),
)
