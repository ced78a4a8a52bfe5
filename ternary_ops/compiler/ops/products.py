# SPDX-License-Identifier: Apache-2.0
"""Products of two traced values: matmul, einsum and attention."""

from __future__ import annotations

from typing import Any

from torch import fx

from ternary_ops.compiler.arrange import shown
from ternary_ops.compiler.axes import Value
from ternary_ops.compiler.call import Call
from ternary_ops.compiler.contract import contracted
from ternary_ops.compiler.ops.normalize import softmax
from ternary_ops.compiler.ops.row import Row
from ternary_ops.compiler.reduced import activation, combined, reduced
from ternary_ops.compiler.unsupported import Unsupported
from ternary_ops.graph import torch_ops


def _matmul(call: Call) -> Value:
    """Of the last two axes."""
    given = (*call.node.args, *call.node.kwargs.values())
    if len(given) != 2 or not all(isinstance(x, fx.Node) for x in given):
        call.refuse()
    return product(*(call.value(x) for x in given))


def product(a: Value, b: Value) -> Value:
    """a @ b, along batch axes of size 1 as torch has it."""
    if min(len(a.axes), len(b.axes)) < 2:
        raise Unsupported(f"it multiplies {shown(a)} by {shown(b)}; two axes each are supported")
    rank = max(len(a.axes), len(b.axes))
    a, b = (x.seen_as([*[()] * (rank - len(x.axes)), *x.axes]) for x in (a, b))
    return contracted(a, b, [(i, i) for i in range(rank - 2)], [(rank - 1, rank - 2)])


def _einsum(call: Call) -> Value:
    """Of two values."""
    equation, *operands = call.node.args
    if len(operands) == 1 and isinstance(operands[0], (list, tuple)):
        operands = list(operands[0])
    nodes = [x for x in operands if isinstance(x, fx.Node)]
    if not isinstance(equation, str) or len(nodes) != 2 or len(operands) != 2:
        raise Unsupported("an einsum of two tensors is supported")
    a, b = (call.value(x) for x in nodes)
    inputs, arrow, result = equation.replace(" ", "").partition("->")
    left, comma, right = inputs.partition(",")
    once = all(len(set(letters)) == len(letters) for letters in (left, right, result))
    if not arrow or not comma or "." in equation or not once:
        raise Unsupported(f"the einsum {equation!r} is not supported")
    a, left = _needed(a, left, right + result)
    b, right = _needed(b, right, left + result)
    batch = [(left.index(c), right.index(c)) for c in left if c in right and c in result]
    shared = [(left.index(c), right.index(c)) for c in left if c in right and c not in result]
    if not batch or batch[0] != (0, 0):
        raise Unsupported(f"the einsum {equation!r} mixes the images of a batch")
    made = contracted(a, b, batch, shared)
    letters = [left[i] for i, _ in batch]
    letters += [c for c in left if c not in right] + [c for c in right if c not in left]
    return made.seen_as([made.axes[letters.index(c)] for c in result])


def _needed(x: Value, letters: str, others: str) -> tuple[Value, str]:
    """Summed over the letters that nothing else has."""
    gone = [i for i, c in enumerate(letters) if c not in others]
    kept = "".join(c for c in letters if c in others)
    return (reduced(x, gone, "sum", False) if gone else x), kept


def _attention(call: Call) -> Value:
    """softmax(q k / sqrt(d) + mask) v."""
    names = ("query", "key", "value", *torch_ops.ATTENTION.arguments)
    at: dict[str, Any] = dict(torch_ops.ATTENTION.arguments)
    at |= dict(zip(names, call.node.args, strict=False)) | dict(call.node.kwargs)
    q, k, v = (call.value(at[name]) for name in ("query", "key", "value"))
    if at["is_causal"] or at["enable_gqa"]:
        raise Unsupported("attention to all tokens, with as many heads for keys, is supported")
    scale = None if at["scale"] is None else float(at["scale"])
    mask = call.value(at["attn_mask"]) if isinstance(at["attn_mask"], fx.Node) else None
    return attention(q, k, v, mask, scale)[0]


def attention(
    q: Value, k: Value, v: Value, mask: Value | None, scale: float | None = None
) -> tuple[Value, Value]:
    """Attention of the last two axes, and its weights."""
    scale = q.sizes[-1][0] ** -0.5 if scale is None else scale
    keys = k.seen_as([*k.axes[:-2], k.axes[-1], k.axes[-2]])
    scores = activation(product(q, keys), "affine", scale, 0.0)
    if mask is not None:
        scores = combined("add", scores, mask)
    weights = softmax(scores, -1)
    return product(weights, v), weights


ROWS = {
    torch_ops.MATMUL: Row(_matmul, "products of two values"),
    torch_ops.EINSUM: Row(_einsum),
    torch_ops.ATTENTION: Row(_attention),
}
