# SPDX-License-Identifier: Apache-2.0
"""Cases of sparse_conv2d: those of conv2d, and what only empty quads bring."""

from __future__ import annotations

from dataclasses import replace

from cases import ConvShape, OpCase, conv2d
from ternary_ops import reference

CASE = OpCase(
    op="sparse_conv2d",
    reference=reference.conv2d_acc,
    shapes=(
        *(replace(shape, density=0.3) for shape in conv2d.SHAPES if shape.density == 1.0),
        ConvShape(1, 8, (6, 6), 8, padding=(1, 1), note="no quad is empty"),
        ConvShape(1, 16, (9, 9), 40, padding=(1, 1), density=0.02, note="whole filters empty"),
        ConvShape(1, 10, (8, 8), 7, padding=(1, 1), density=0.0, note="only the bias"),
        ConvShape(2, 96, (6, 7), 20, padding=(1, 1), density=0.1),
    ),
    bench=tuple(
        (f"{name}, 10 % of the quads", replace(shape, density=0.1))
        for name, shape in conv2d.BENCH
        if shape.c >= 64
    ),
)
