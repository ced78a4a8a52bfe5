# SPDX-License-Identifier: Apache-2.0
"""Cases of conv2d: every stride, padding, dilation and group, tails in each axis."""

from __future__ import annotations

from cases import ConvShape, OpCase
from ternary_ops import reference

SHAPES = (
    ConvShape(1, 4, (8, 8), 8, (3, 3), padding=(1, 1)),
    ConvShape(2, 3, (9, 7), 5, (3, 3), padding=(1, 1), note="odd everything"),
    ConvShape(1, 1, (1, 1), 1, (1, 1)),
    ConvShape(1, 5, (6, 6), 3, (1, 1), note="pointwise"),
    ConvShape(3, 16, (5, 17), 16, (1, 1), stride=(2, 2), note="stride above the filter"),
    ConvShape(1, 8, (13, 11), 9, (3, 3), stride=(2, 2), padding=(1, 1)),
    ConvShape(2, 7, (12, 15), 17, (3, 3), stride=(2, 1), padding=(1, 0)),
    ConvShape(1, 3, (23, 21), 10, (7, 7), stride=(2, 2), padding=(3, 3), note="a stem"),
    ConvShape(1, 8, (11, 11), 8, (3, 3), padding=(2, 2), dilation=(2, 2)),
    ConvShape(1, 6, (14, 10), 4, (3, 2), stride=(3, 2), padding=(1, 2), dilation=(1, 3)),
    ConvShape(2, 6, (7, 7), 4, (3, 3), padding=(1, 1), groups=2, note="I/groups below a quad"),
    ConvShape(1, 24, (6, 9), 9, (3, 3), padding=(1, 1), groups=3),
    ConvShape(1, 13, (8, 8), 13, (3, 3), padding=(1, 1), groups=13, note="depthwise"),
    ConvShape(1, 5, (8, 9), 10, (3, 3), stride=(2, 2), padding=(1, 1), groups=5),
    ConvShape(1, 4, (2, 3), 6, (5, 5), padding=(2, 2), note="filter above the image"),
    ConvShape(1, 4, (3, 3), 6, (2, 2), padding=(4, 3), note="padding above the filter"),
    ConvShape(1, 9, (1, 35), 12, (1, 5), padding=(0, 2), note="one row"),
    ConvShape(1, 9, (35, 1), 12, (5, 1), padding=(2, 0), note="one column"),
    ConvShape(0, 4, (6, 6), 8, (3, 3), note="no images"),
    ConvShape(1, 17, (9, 33), 33, (3, 3), padding=(1, 1), note="one past the tiles"),
    ConvShape(1, 70, (7, 7), 31, (3, 3), padding=(1, 1), note="a long sum"),
    ConvShape(4, 8, (4, 4), 16, (4, 4), note="one output pixel"),
    ConvShape(1, 32, (9, 10), 24, (3, 3), padding=(1, 1), density=0.1),
    ConvShape(1, 10, (8, 8), 7, (3, 3), padding=(1, 1), density=0.0, note="only the bias"),
)

BENCH = (
    ("resnet-18 stage 1, 3x3", ConvShape(1, 64, (56, 56), 64, padding=(1, 1))),
    ("resnet-18 stage 2, 3x3", ConvShape(1, 128, (28, 28), 128, padding=(1, 1))),
    ("resnet-18 stage 3, 3x3", ConvShape(1, 256, (14, 14), 256, padding=(1, 1))),
    ("resnet-18 stage 4, 3x3", ConvShape(1, 512, (7, 7), 512, padding=(1, 1))),
    (
        "resnet-18 stage 2, 3x3 stride 2",
        ConvShape(1, 64, (56, 56), 128, stride=(2, 2), padding=(1, 1)),
    ),
    ("resnet-18 stem, 7x7", ConvShape(1, 3, (224, 224), 64, (7, 7), (2, 2), (3, 3))),
    ("resnet-50 stage 3, 1x1", ConvShape(1, 1024, (14, 14), 256, (1, 1))),
)

CASE = OpCase(op="conv2d", reference=reference.conv2d_acc, shapes=SHAPES, bench=BENCH)
