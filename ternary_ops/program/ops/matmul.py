# SPDX-License-Identifier: Apache-2.0
"""A product of two values, neither of which is a weight."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ternary_ops import reference
from ternary_ops.errors import FormatError, need
from ternary_ops.program.attributes import (
    FLAG,
    MAX_CHANNELS,
    NUMBER,
    REWRITE,
    Attribute,
    whole,
)
from ternary_ops.program.operator import (
    TOKENS,
    BoundNode,
    Operand,
    Operator,
    Shape,
    Value,
    need_few,
    need_same,
    register,
)
from ternary_ops.program.weight import Array


@register
class Matmul(Operator):
    """A product of two values, in each of G `groups`, times `scale`; b has M `tokens`. `transpose`:
    each token of a [N, G * K, L] times each of b [N, G * K, M] over K, [N, G * M, L]. Otherwise the
    tokens of b [N, G * D, M], weighted by channels of a [N, G * M, L]: [N, G * D, L]
    """

    name = "matmul"
    reads = "a, b, floats, tokens"
    inputs = (2, 2)
    attrs = {
        "groups": Attribute(whole(1, MAX_CHANNELS), 1),
        "transpose": Attribute(FLAG, False),
        "scale": Attribute(NUMBER, 1.0),
        "tokens": Attribute(whole(1, MAX_CHANNELS)),
    }
    floats_only = True

    def value(self, node: BoundNode) -> Value:
        """Of as many channels as the groups have tokens, or channels of b."""
        a, b = node.inputs
        groups, tokens, transpose = (node.at[k] for k in ("groups", "tokens", "transpose"))
        if (a.rank, b.rank, b.y) != (TOKENS, TOKENS, None):
            raise FormatError(need("two values of tokens, floats,", "others", REWRITE))
        wanted = b.channels if transpose else groups * tokens
        if not b.channels or b.channels % groups or a.channels != wanted:
            got = f"{a.channels} and {b.channels}"
            wanted_words = f"channels of {groups} groups, {wanted} of the first value,"
            raise FormatError(need(wanted_words, got, REWRITE))
        channels = groups * tokens if transpose else b.channels
        need_few(channels)
        return Value(TOKENS, channels, channels, None)

    def shape(self, node: BoundNode, inputs: Sequence[Shape]) -> Shape:
        """A token for each of a."""
        a, b = inputs
        need_same("tokens of the second value", (node.at["tokens"],), b[2:])
        at, channels = node.at, b[1]
        return a[0], at["groups"] * at["tokens"] if at["transpose"] else channels, a[2]

    def macs(self, node: BoundNode, result: Shape) -> int:
        """A sum over channels or tokens for each number."""
        terms: int = (node.inputs[0].channels or 0) // node.at["groups"]
        return math.prod(result) * terms

    def reference(self, node: BoundNode, operands: Sequence[Operand]) -> Array:
        """In float64, rounded once."""
        a, b = operands
        at = node.at
        return reference.matmul(a, b, at["groups"], at["transpose"], at["scale"])
