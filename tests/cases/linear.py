# SPDX-License-Identifier: Apache-2.0
"""Cases of linear: matrix-vector, tiles and tails in each of M, K and N."""

from __future__ import annotations

from cases import LinearShape, OpCase
from ternary_ops import reference

CASE = OpCase(
    op="linear",
    reference=reference.linear_acc,
    shapes=(
        LinearShape((1,), 64, 64),
        LinearShape((), 17, 9, note="a vector"),
        LinearShape((3,), 12, 5),
        LinearShape((7,), 4, 1),
        LinearShape((2,), 1, 3, note="K below a quad"),
        LinearShape((0,), 64, 8, note="no rows"),
        LinearShape((2, 0, 3), 8, 4, note="no rows, rank 4"),
        LinearShape((3,), 0, 4, note="no inputs: the bias"),
        LinearShape((3,), 5, 0, note="no outputs"),
        LinearShape((2, 3, 5), 30, 7, note="rank 4"),
        LinearShape((1,), 1028, 255),
        LinearShape((5,), 131, 67),
        LinearShape((16,), 63, 16),
        LinearShape((17,), 65, 33),
        LinearShape((33,), 127, 48),
        LinearShape((15,), 2100, 9, note="more than one piece of k, each number of rows"),
        LinearShape((1,), 1300, 3, note="every place of a byte, sums that are widened twice"),
        LinearShape((1,), 515, 130, density=0.1),
        LinearShape((9,), 260, 40, density=0.3),
        LinearShape((4,), 32, 8, density=0.0, note="no weights left: the bias"),
    ),
    bench=(
        ("one row, 4096x4096", LinearShape((1,), 4096, 4096)),
        ("one row, 4096x4096, 10 % of the quads", LinearShape((1,), 4096, 4096, density=0.1)),
        ("vit-b fc1, 1 image", LinearShape((197,), 768, 3072)),
        ("resnet-18 fc, 1 image", LinearShape((1,), 512, 1000)),
    ),
)
