# SPDX-License-Identifier: Apache-2.0
"""What the passes ask of a program's operators."""

from __future__ import annotations

from typing import NamedTuple

from ternary_ops.program.op_spec import OPS


class Traits(NamedTuple):
    """attrs        names of its attributes
    can_clamp    it clamps what it makes
    floats       it reads and makes floats alone
    keeps_range  it hands on codes as they are, with their scale and zero point
    moves        its values are the operand's, in other places: a clamp may as well come before
    averages     its values lie between those of its operand
    """

    attrs: frozenset[str] = frozenset()
    can_clamp: bool = False
    floats: bool = False
    keeps_range: bool = False
    moves: bool = False
    averages: bool = False


_FLOATS = ("softmax", "layer_norm")
_MOVES = ("flatten", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle")
_AVERAGES = ("avg_pool2d", "adaptive_avg_pool2d")

# The end of the steps, and what fusing splits, are no operators of a program.
TRAITS = {"output": Traits(), "prelu": Traits()} | {
    op: Traits(
        frozenset(spec.attrs),
        "clamp" in spec.attrs,
        op in _FLOATS,
        "y" not in spec.attrs and op not in _FLOATS and spec.inputs[0] > 0,
        op in _MOVES,
        op in _AVERAGES,
    )
    for op, spec in OPS.items()
}
