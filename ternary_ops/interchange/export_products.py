# SPDX-License-Identifier: Apache-2.0
"""Reductions, softmax, products of two values and constants as ONNX nodes, a function each."""

from __future__ import annotations

import numpy as np

from ternary_ops.interchange.export_node import NodeExport, writes
from ternary_ops.program.operator import TOKENS, swap_tokens
from ternary_ops.program.ops.attention import repeats_of


@writes("reduce")
def reduce(e: NodeExport) -> str:
    """ReduceSum takes its axes as an input, the others as an attribute."""
    at, out = e.node.at, e.out
    inside_tokens = {1: 2, 2: 1}
    axes = [inside_tokens[a] if e.value.rank == TOKENS else a for a in at["axes"]]
    if at["fn"] == "sum":
        return out.add("ReduceSum", e.x[0], out.ends(axes), keepdims=1)
    op = {"mean": "ReduceMean", "max": "ReduceMax", "min": "ReduceMin"}[at["fn"]]
    return out.add(op, e.x[0], axes=axes, keepdims=1)


@writes("softmax")
def softmax(e: NodeExport) -> str:
    """Over the channels, of each group as an axis of its own."""
    rank, groups, out = e.value.rank, e.node.at["groups"], e.out
    axis = 2 if rank == TOKENS else 1
    if groups == 1:
        return out.add("Softmax", e.x[0], axis=axis)
    split = {2: [0, groups, -1], TOKENS: [0, 0, groups, -1]}
    each = (e.value.channels or 0) // groups
    shape = split.get(rank, [0, groups, each, -1])
    shares = out.add("Softmax", out.add("Reshape", e.x[0], out.ends(shape)), axis=axis + 1)
    return out.add("Reshape", shares, out.add("Shape", e.x[0]))


@writes("matmul")
def matmul(e: NodeExport) -> str:
    """Groups become an axis before the tokens."""
    at, out, groups = e.node.at, e.out, e.node.at["groups"]
    split, transpose = out.ends([0, 0, groups, -1]), at["transpose"]
    a, b = (out.add("Reshape", name, split) for name in e.x)
    left = out.add("Transpose", a, perm=[0, 2, 1, 3])
    right = out.add("Transpose", b, perm=[0, 2, 3, 1] if transpose else [0, 2, 1, 3])
    made = out.add("MatMul", left, right)
    if at["scale"] != 1.0:
        made = out.add("Mul", made, out.number(at["scale"]))
    back = out.add("Transpose", made, perm=[0, 2, 1, 3])
    return out.add("Reshape", back, out.ends([0, 0, e.value.channels or -1]))


@writes("attention")
def attention(e: NodeExport) -> str:
    """Heads become an axis before the tokens. Codes go by floats: ONNX has no shares of 8 bits."""
    at, out = e.node.at, e.out
    split = out.ends([0, 0, at["heads"], -1])
    parts = [out.add("Reshape", name, split) for name in e.reals()[:3]]
    left, values = (out.add("Transpose", parts[i], perm=[0, 2, 1, 3]) for i in (0, 2))
    scores = out.add("MatMul", left, out.add("Transpose", parts[1], perm=[0, 2, 3, 1]))
    if at["scale"] != 1.0:
        scores = out.add("Mul", scores, out.number(at["scale"]))
    for name, value, repeats in zip(e.x[3:], e.node.inputs[3:], repeats_of(e.node), strict=True):
        groups = (value.channels or 0) // at["tokens"]
        bias = out.add("Reshape", name, out.ends([0, 0, groups, -1]))
        bias = out.add("Transpose", bias, perm=[0, 2, 1, 3])
        if groups < at["heads"]:
            heads = np.arange(at["heads"]) // repeats % groups
            bias = out.add("Gather", bias, out.ends(heads.tolist()), axis=1)
        scores = out.add("Add", scores, bias)
    made = out.add("MatMul", out.add("Softmax", scores, axis=3), values)
    back = out.add("Transpose", made, perm=[0, 2, 1, 3])
    made = out.add("Reshape", back, out.ends([0, 0, e.value.channels or -1]))
    return e.codes(made, at["y"])


@writes("constant")
def constant(e: NodeExport) -> str:
    """The numbers, expanded over the batch."""
    made = e.node.weight.array[..., 0]
    channels, height, width = made.shape
    sizes = {4: (channels, height, width), TOKENS: (channels, width), 2: (channels,)}
    outside = swap_tokens(made.reshape(1, *sizes[e.value.rank]))
    values = e.out.constant(outside, np.float32, "constant")
    batch = e.out.add("Shape", e.x[0], start=0, end=1)
    shape = e.out.add("Concat", batch, e.out.ends(outside.shape[1:]), axis=0)
    return e.out.add("Expand", values, shape)
