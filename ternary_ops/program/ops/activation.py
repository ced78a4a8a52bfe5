# SPDX-License-Identifier: Apache-2.0
"""Functions of one number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ternary_ops import reference
from ternary_ops.errors import FormatError, need
from ternary_ops.program.attributes import NUMBERS, OUTPUT, REWRITE, Attribute, one_of
from ternary_ops.program.operator import (
    BoundNode,
    Operand,
    Operator,
    Value,
    output_params,
    register,
)
from ternary_ops.program.weight import Array
from ternary_ops.reference.activations import FUNCTIONS, over_codes


@register
class Activation(Operator):
    """A function of each number, with its parameters"""

    name = "activation"
    attrs = {
        "fn": Attribute(one_of(*FUNCTIONS)),
        "params": Attribute(NUMBERS, ()),
        "y": OUTPUT,
    }
    per_channel = per_pixel = True

    def value(self, node: BoundNode) -> Value:
        """Of the input's rank and channels."""
        wanted = FUNCTIONS[node.at["fn"]].parameters
        if len(node.at["params"]) != wanted:
            raise FormatError(need(f"{wanted} parameters", len(node.at["params"]), REWRITE))
        return replace(node.inputs[0], y=output_params(node))

    def reference(self, node: BoundNode, operands: Sequence[Operand]) -> Array:
        """In float64, rounded to float32, then to uint8."""
        return reference.activation(operands[0], **node.at)

    def native(self, node: BoundNode) -> dict[str, Any]:
        """Of uint8 what the function makes of each code; for floats the engine has functions."""
        y = node.inputs[0].y
        return {} if y is None else {"table": over_codes(node.at["fn"], node.at["params"], *y)}
