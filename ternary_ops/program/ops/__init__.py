# SPDX-License-Identifier: Apache-2.0
"""The operators of a program, a file for each family; importing this package registers them all."""

from ternary_ops.program.operator import OPS
from ternary_ops.program.ops import (
    activation,
    attention,
    borders,
    constant,
    conv_linear,
    data_movement,
    elementwise,
    matmul,
    normalize,
    pool,
    quantize,
    rearrange,
    reduce,
    resize,
)

__all__ = ["OPS", "table"]

# In the order of the table.
_FAMILIES = (
    quantize,
    conv_linear,
    elementwise,
    activation,
    pool,
    resize,
    data_movement,
    rearrange,
    borders,
    normalize,
    reduce,
    matmul,
    attention,
    constant,
)


def table() -> str:
    """All operators as a table in Markdown: the one in docs/architecture.md."""
    head = ("op", "inputs", "attributes (range; default)", "makes")
    names = [family.__name__ for family in _FAMILIES]
    known = sorted(OPS.values(), key=lambda op: names.index(type(op).__module__))
    rows = [head, tuple("---" for _ in head), *(op.row() for op in known)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
