# SPDX-License-Identifier: Apache-2.0
"""Attention: two products of values with a softmax between them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ternary_ops import reference
from ternary_ops.errors import FormatError, need
from ternary_ops.program.attributes import (
    MAX_CHANNELS,
    NUMBER,
    OUTPUT,
    REWRITE,
    Attribute,
    integers,
    whole,
)
from ternary_ops.program.operator import (
    TOKENS,
    BoundNode,
    Operand,
    Operator,
    Shape,
    Value,
    need_parts,
    need_same,
    output_params,
    register,
)
from ternary_ops.program.weight import Array

MOST_SUMMED = 32768  # products of bytes whose sums fit 32 bits


@register
class Attention(Operator):
    """softmax(`scale` * queries . keys + bias) . values for each of H `heads`: queries
    [N, H * K, L], keys [N, H * K, M], values [N, H * D, M] of M `tokens`; [N, H * D, L]. Of uint8,
    K and D are multiples of 4. Of each bias [N, G * M, L] head h adds group h / `repeats` mod G
    """

    name = "attention"
    reads = "queries, keys, values, optionally one or two biases in floats; tokens"
    inputs = (3, 5)
    attrs = {
        "heads": Attribute(whole(1, MAX_CHANNELS), 1),
        "scale": Attribute(NUMBER, 1.0),
        "tokens": Attribute(whole(1, MAX_CHANNELS)),
        "repeats": Attribute(integers(1, MAX_CHANNELS, 2), ()),
        "y": OUTPUT,
    }

    def value(self, node: BoundNode) -> Value:
        """Of as many channels as the values have."""
        heads, tokens = node.at["heads"], node.at["tokens"]
        codes = node.inputs[0].y is not None
        for i, x in enumerate(node.inputs):
            if x.rank != TOKENS or (x.y is not None) != (codes and i < 3):
                raise FormatError(need("values of tokens, of one kind,", "others", REWRITE))
            need_parts(x.channels, tokens if i > 2 else heads * (4 if codes else 1))
        queries, keys, values, *biases = (x.channels or 0 for x in node.inputs)
        if keys != queries:
            raise FormatError(need(f"{queries} channels of keys", keys, REWRITE))
        for channels, repeats in zip(biases, repeats_of(node), strict=True):
            if heads % (channels // tokens * repeats):
                wanted = f"groups of {tokens} channels of a bias, for {heads} heads,"
                raise FormatError(need(wanted, f"{channels}, repeats {repeats}", REWRITE))
        depth = queries // heads
        if codes and max(depth, tokens) > MOST_SUMMED:
            wanted = f"at most {MOST_SUMMED} tokens and channels of a head"
            raise FormatError(need(wanted, f"{tokens} and {depth}", REWRITE))
        return Value(TOKENS, values, values, output_params(node))

    def shape(self, node: BoundNode, inputs: Sequence[Shape]) -> Shape:
        """A token for each query."""
        queries, keys, values, *bias = inputs
        for x in (keys, values):
            need_same("tokens of keys and values", (node.at["tokens"],), x[2:])
        for x in bias:
            need_same("tokens of the bias", queries[2:], x[2:])
        return queries[0], values[1], queries[2]

    def macs(self, node: BoundNode, result: Shape) -> int:
        """Sums over the channels of a query and over the keys."""
        queries, _, values, *_ = (x.channels or 0 for x in node.inputs)
        tokens: int = node.at["tokens"]
        return math.prod(result) // values * (queries + values) * tokens

    def reference(self, node: BoundNode, operands: Sequence[Operand]) -> Array:
        """Of floats in float64, rounded once."""
        at, (q, k, v, *biases) = node.at, operands
        bias: Array | None = None
        for x, repeats in zip(biases, repeats_of(node), strict=True):
            part = _spread(node, x, repeats)
            bias = part if bias is None else bias + part
        if node.inputs[0].y is None:
            return reference.attention(q, k, v, bias, heads=at["heads"], scale=at["scale"])
        return reference.attention_codes(
            q, k, v, bias, heads=at["heads"], scale=at["scale"], y=at["y"]
        )


def repeats_of(node: BoundNode) -> Sequence[int]:
    """Consecutive heads that share a group of every bias."""
    count = len(node.inputs) - 3
    said: Sequence[int] = node.at["repeats"] or (1,) * count
    if len(said) != count:
        raise FormatError(need(f"repeats of {count} biases", len(said), REWRITE))
    return said


def _spread(node: BoundNode, bias: Array, repeats: int) -> Array:
    """A bias [N, G * M, L] as one group a head."""
    n, channels, queries = bias.shape
    groups = bias.reshape(n, -1, node.at["tokens"], queries)
    heads = np.arange(node.at["heads"]) // repeats % groups.shape[1]
    return groups[:, heads].reshape(n, -1, queries)
