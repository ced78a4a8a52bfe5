# SPDX-License-Identifier: Apache-2.0
"""Constants: numbers of the network that are no filters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ternary_ops.errors import FormatError, need
from ternary_ops.program.attributes import REWRITE, WEIGHT, Attribute, among
from ternary_ops.program.operator import (
    BoundNode,
    Operand,
    Operator,
    Shape,
    Value,
    plain,
    register,
)
from ternary_ops.program.weight import Array


@register
class Constant(Operator):
    """A float weight [C, H, W, 1] as every image; of tokens [C, 1, L, 1], of rows [C, 1, 1, 1]"""

    name = "constant"
    reads = "x, whose batch size is taken"
    sized_by = (0,)
    attrs = {"w": WEIGHT, "rank": Attribute(among(2, 3, 4), 4)}

    def value(self, node: BoundNode) -> Value:
        """Of as many channels as the weight has."""
        w, rank = node.weight, node.at["rank"]
        channels, height, width, depth = w.shape
        plain_floats = w.kind == "float" and w.bias is None and w.slope is None
        if not plain_floats or depth > 1 or (rank < 4 and height > 1) or (rank < 3 and width > 1):
            wanted = "float weights [C, H, W, 1], [C, 1, L, 1] or [C, 1, 1, 1] without a bias"
            raise FormatError(need(wanted, list(w.shape), REWRITE))
        return Value(rank, channels, channels, None)

    def shape(self, node: BoundNode, inputs: Sequence[Shape]) -> Shape:
        """That of the weight, for each image of the batch."""
        channels, height, width, _ = node.weight.shape
        sizes: dict[int, Shape] = {4: (height, width), 3: (width,), 2: ()}
        return inputs[0][0], channels, *sizes[node.at["rank"]]

    def reference(self, node: BoundNode, operands: Sequence[Operand]) -> Array:
        """The weight, once for each image."""
        made = self.shape(node, [plain(operands[0]).shape])
        return np.broadcast_to(node.weight.array.reshape(made[1:]), made).copy()

    def native(self, node: BoundNode) -> dict[str, Any]:
        """The numbers, channel by channel, and their sizes."""
        return {"values": node.weight.array.ravel(), "shape": node.weight.shape[:3]}
