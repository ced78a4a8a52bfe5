# SPDX-License-Identifier: Apache-2.0
"""Cases of layer_norm_codes: x [rows, channels], one of each, odd ones, and many channels."""

from __future__ import annotations

from cases import OpCase
from ternary_ops import reference

CASE = OpCase(
    op="layer_norm_codes",
    reference=reference.layer_norm_codes,
    shapes=((1, 1), (5, 7), (33, 96), (3, 1030)),
    bench=(("deit-tiny, 1 image", (197, 192)),),
)
