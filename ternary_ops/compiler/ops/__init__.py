# SPDX-License-Identifier: Apache-2.0
"""Torch operators as steps of a program: one table, keyed by the operator, a family a file.

A row is a function that takes a `Call` and returns its value (`compiler.axes`), a list of them
where the call makes several tensors, or just the step that makes it, where it lies as torch has it.
It raises Unsupported with the reason for a call that no program can say.
"""

from __future__ import annotations

from ternary_ops.compiler.ops import (
    conv_linear,
    data_movement,
    elementwise,
    fold,
    heads,
    indexing,
    normalize,
    one_axis,
    pad,
    pool,
    products,
    reductions,
    resize,
    views,
)
from ternary_ops.compiler.ops.row import Row
from ternary_ops.graph.torch_op import TorchOp

_FAMILIES = (
    conv_linear,
    products,
    heads,
    normalize,
    elementwise,
    pad,
    pool,
    reductions,
    data_movement,
    fold,
    views,
    indexing,
    resize,
    one_axis,
)
ROWS: dict[TorchOp, Row] = {op: row for family in _FAMILIES for op, row in family.ROWS.items()}


def supported() -> str:
    """Every operator of the table, for people."""
    names = [op.name if row.text is None else row.text for op, row in ROWS.items()]
    return f"{', '.join(filter(None, names))}, as modules, functions or tensor methods"
