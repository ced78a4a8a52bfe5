# SPDX-License-Identifier: Apache-2.0
"""torch.nn.MultiheadAttention: layers, and products between them."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx, nn

from ternary_ops.compiler.axes import Value
from ternary_ops.compiler.call import Call
from ternary_ops.compiler.ops.conv_linear import linear
from ternary_ops.compiler.ops.products import attention
from ternary_ops.compiler.ops.row import Row
from ternary_ops.compiler.parts import Range, part
from ternary_ops.compiler.read_layers import Layer, read_layer
from ternary_ops.compiler.reduced import reduced
from ternary_ops.compiler.unsupported import Unsupported
from ternary_ops.graph import torch_ops
from ternary_ops.graph.nodes import is_ours

_ARGUMENTS: dict[str, Any] = {
    "query": None, "key": None, "value": None, "key_padding_mask": None, "need_weights": True,
    "attn_mask": None, "average_attn_weights": True, "is_causal": False,
}  # fmt: skip
_LETTERS = "qkv"


def _heads(call: Call) -> list[Value]:
    """The output, and the weights of attention, of every head or their mean."""
    module, at = call.module, dict(_ARGUMENTS)
    at |= dict(zip(_ARGUMENTS, call.node.args, strict=False)) | dict(call.node.kwargs)
    nodes = [at[name] for name in ("query", "key", "value")]
    if not all(isinstance(node, fx.Node) for node in nodes):
        call.refuse()
    if module.bias_k is not None or module.add_zero_attn or at["key_padding_mask"] is not None:
        raise Unsupported("attention without key_padding_mask and added keys is supported")
    if is_ours(module.out_proj):
        raise Unsupported("PyTorch reads the weight of its out_proj, whatever layer that is")
    values = [call.value(node) for node in nodes]
    if min(len(value.axes) for value in values) < 3:
        raise Unsupported("it is supported for a batch of tokens")
    if not module.batch_first:
        values = [value.seen_as([value.axes[1], value.axes[0], value.axes[2]]) for value in values]
    same = nodes[0] is nodes[1] is nodes[2]
    q, k, v = _together(call, values[0]) if same else _apart(call, values)
    mask = None if at["attn_mask"] is None else call.value(at["attn_mask"])
    if mask is not None and len(mask.axes) != 2:
        raise Unsupported("one mask of floats for all heads is supported")
    q, k, v = (_by_head(x, module.num_heads) for x in (q, k, v))
    made, weights = attention(q, k, v, mask)
    made = made.seen_as([made.axes[0], made.axes[2], (*made.axes[1], *made.axes[3])])
    made = linear(made, read_layer(f"{call.name}.out_proj", module.out_proj))
    if not module.batch_first:
        made = made.seen_as([made.axes[1], made.axes[0], made.axes[2]])
    if not at["need_weights"]:
        return [made]
    return [made, reduced(weights, [1], "mean", False) if at["average_attn_weights"] else weights]


def _by_head(x: Value, heads: int) -> Value:
    """[N, L, heads * D] as [N, heads, L, D]."""
    n, tokens, width = x.sizes
    count = (heads,) * x.examples
    made = x.reshaped([n, tokens, count, tuple(size // heads for size in width)])
    return made.seen_as([made.axes[i] for i in (0, 2, 1, 3)])


def _together(call: Call, x: Value) -> list[Value]:
    """Queries, keys and values of the same tokens: one layer."""
    module = call.module
    width, bias = module.embed_dim, module.in_proj_bias
    made = linear(x, _layer(f"{call.name}.in_proj", module.in_proj_weight, bias))
    ends = [((i * width,) * x.examples, ((i + 1) * width,) * x.examples) for i in range(3)]
    return [part(made, 2, Range(*pair)) for pair in ends]


def _apart(call: Call, values: list[Value]) -> list[Value]:
    """A layer each."""
    module: Any = call.module
    biases = [None] * 3 if module.in_proj_bias is None else module.in_proj_bias.chunk(3)
    if module.in_proj_weight is None:
        weights = [getattr(module, f"{letter}_proj_weight") for letter in _LETTERS]
    else:
        weights = module.in_proj_weight.chunk(3)
    named = zip(_LETTERS, values, weights, biases, strict=True)
    return [linear(x, _layer(f"{call.name}.{c}_proj", w, bias)) for c, x, w, bias in named]


def _layer(name: str, weight: Tensor, bias: Tensor | None) -> Layer:
    twin: Any = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    twin.weight = nn.Parameter(weight.detach())
    twin.bias = None if bias is None else nn.Parameter(bias.detach())
    return read_layer(name, twin)


ROWS = {torch_ops.HEADS: Row(_heads)}
