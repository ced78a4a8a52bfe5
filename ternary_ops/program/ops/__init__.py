# SPDX-License-Identifier: Apache-2.0
"""The operators of a program, a file for each family; importing this package registers them all."""

from ternary_ops.program.operator import OPS
from ternary_ops.program.ops import (
    activation,
    conv_linear,
    data_movement,
    elementwise,
    normalize,
    pool,
    quantize,
    resize,
)

__all__ = [
    "OPS",
    "activation",
    "conv_linear",
    "data_movement",
    "elementwise",
    "normalize",
    "pool",
    "quantize",
    "resize",
    "table",
]


def table() -> str:
    """All operators as a table in Markdown, the input first: the one in docs/architecture.md."""
    head = ("op", "inputs", "attributes (range; default)", "makes")
    known = sorted(OPS.values(), key=lambda op: (op.inputs != (0, 0), op.name))
    rows = [head, tuple("---" for _ in head), *(op.row() for op in known)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
