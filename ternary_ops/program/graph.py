# SPDX-License-Identifier: Apache-2.0
"""The program: a list of nodes and a list of weights. NumPy only.

Node i makes value i. Node 0 is the input, the last node is the output, every other value is used. A
value is float32, or uint8 with a scale and a zero point (`Value.y`); integer nodes may end in
floats, float nodes make floats and `quantize` alone leads back.

A Graph that exists is valid: its constructor checks whatever does not depend on the image size, and
raises FormatError; `shapes.infer` checks the rest and raises UnsupportedShape. A hostile file thus
never reaches the native engine.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ternary_ops.errors import FormatError, need
from ternary_ops.layout.codes import fine_filters
from ternary_ops.program import op_spec
from ternary_ops.program.weight import Params, Weight, check_sums
from ternary_ops.reference.activations import FUNCTIONS

MAX_NODES = 2**16
_WEIGHTED = ("conv2d", "linear", "layer_norm")
# An int8 filter of so many values cannot overflow int32, its eighths beside it.
_SURE_FINE_SIZE = (2**31 - 1) // (255 * (127 + 16))
_DO = op_spec.REWRITE


@dataclass(frozen=True)
class Node:
    """One operation; `attrs` is checked and completed with the defaults (raises FormatError)."""

    op: str
    inputs: tuple[int, ...] = ()
    attrs: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check and complete the attributes."""
        object.__setattr__(self, "attrs", op_spec.complete(self.op, len(self.inputs), self.attrs))


@dataclass(frozen=True)
class Value:
    """What is known of a node's value before the image size is.

    channels is None for a flattened image, whose width is a multiple of `multiple`. fine: of eleven
    bits, in two codes each (reference.quantize_fine), which convolutions alone read.
    """

    rank: int
    channels: int | None
    multiple: int
    y: Params | None
    fine: bool = False


@dataclass(frozen=True, eq=False)
class Graph:
    """A program. Raises FormatError unless it is valid in every detail."""

    nodes: tuple[Node, ...]
    weights: tuple[Weight, ...]
    values: tuple[Value, ...] = field(init=False)

    def __post_init__(self) -> None:
        """Check the nodes in order."""
        if not 2 <= len(self.nodes) <= MAX_NODES:
            raise FormatError(need(f"a program has 2 to {MAX_NODES} nodes", len(self.nodes), _DO))
        values: list[Value] = []
        for i, node in enumerate(self.nodes):
            try:
                values.append(_value(self, values, i, node))
            except FormatError as e:
                raise FormatError(f"node {i} ({node.op}): {e}") from None
        if values[-1].y is not None:
            raise FormatError(need("the last node makes floats", "uint8", _DO))
        _check_all_used(self)
        object.__setattr__(self, "values", tuple(values))

    def weight(self, node: Node) -> Weight:
        """The weight of a node that has one."""
        index: int = node.attrs["w"]
        return self.weights[index]


def _check_all_used(graph: Graph) -> None:
    used = {i for node in graph.nodes for i in node.inputs} | {len(graph.nodes) - 1}
    idle = sorted(set(range(len(graph.nodes))) - used)
    if idle:
        raise FormatError(need("every value is used", f"node {idle[0]} that is not", _DO))
    layers = {node.attrs["w"] for node in graph.nodes if node.op in _WEIGHTED}
    spare = sorted(set(range(len(graph.weights))) - layers)
    if spare:
        raise FormatError(need("every weight is used", f"weight {spare[0]} that is not", _DO))


def _value(graph: Graph, before: Sequence[Value], i: int, node: Node) -> Value:
    """Check a node against the values it reads and say what it makes."""
    if (i == 0) != (node.op == "input"):
        raise FormatError(need("node 0, and no other, is the input", node.op, _DO))
    if i == 0:
        return Value(node.attrs["rank"], node.attrs["c"], node.attrs["c"], None)
    for j in node.inputs:
        if not 0 <= j < i:
            raise FormatError(need(f"inputs come from nodes 0..{i - 1}", j, _DO))
    x, *others = (before[j] for j in node.inputs)
    if any(v.fine for v in others) or (x.fine and node.op != "conv2d"):
        raise FormatError(need("a convolution as the reader of eleven bits", node.op, _DO))
    return _MAKES[node.op](graph, node, x, others)


def _out_y(node: Node, x: Value) -> Params | None:
    """The output's scale and zero point: floats make floats, uint8 makes either."""
    y: Params | None = node.attrs["y"]
    if y is not None and x.y is None:
        raise FormatError(need("uint8 output needs uint8 input", "floats", _DO))
    return y


def _need_rank(node: Node, x: Value, rank: int) -> None:
    if x.rank != rank:
        raise FormatError(need(f"{node.op} needs rank {rank}", x.rank, _DO))


def _need_pool(node: Node, x: Value) -> None:
    """As PyTorch: every window of a pool reaches into the image."""
    _need_rank(node, x, 4)
    for k, p in zip(node.attrs["kernel"], node.attrs["padding"], strict=True):
        if 2 * p > k:
            raise FormatError(need(f"padding of at most half of {k}", p, _DO))


def _make_quantize(graph: Graph, node: Node, x: Value, others: Sequence[Value]) -> Value:
    if x.y is not None:
        raise FormatError(need("quantize needs floats", "uint8", _DO))
    fine = node.attrs["fine"]
    if fine and (x.rank != 4 or not 4 <= node.attrs["y"][1] <= 251):
        raise FormatError(need("eleven bits of an image, zero point in 4..251", "others", _DO))
    return Value(x.rank, x.channels, x.multiple, node.attrs["y"], fine)


def _make_dequantize(graph: Graph, node: Node, x: Value, others: Sequence[Value]) -> Value:
    if x.y is None:
        raise FormatError(need("dequantize needs uint8", "floats", _DO))
    return Value(x.rank, x.channels, x.multiple, None)


def _make_layer(graph: Graph, node: Node, x: Value, others: Sequence[Value]) -> Value:
    if node.attrs["w"] >= len(graph.weights):
        raise FormatError(need(f"w < {len(graph.weights)}", node.attrs["w"], _DO))
    w, conv = graph.weight(node), node.op == "conv2d"
    o, r, s, width = w.shape
    _need_rank(node, x, 4 if conv else 2)
    groups = node.attrs["groups"] if conv else 1
    if w.slope is not None and (not conv or node.attrs["clamp"] != (None, None)):
        raise FormatError(need("slopes belong to convolutions without bounds", node.op, _DO))
    gated = conv and node.attrs["gate"]
    if len(others) > 1 + gated or (gated and (not others or w.slope is not None)):
        wanted = "a gate, which slopes exclude, and at most one residual"
        raise FormatError(need(wanted, f"{len(others)} values", _DO))
    if not conv and (r, s) != (1, 1):
        raise FormatError(need("linear weights are [O, 1, 1, I]", list(w.shape), _DO))
    if max(r, s) > op_spec.MAX_EXTENT or o % groups:
        raise FormatError(need(f"filters that split into {groups} groups", list(w.shape), _DO))
    if x.channels != width * groups and (x.channels is not None or width % x.multiple):
        raise FormatError(need(f"{width * groups} input channels", x.channels or x.multiple, _DO))
    if x.fine and (groups > 1 or w.kind != "int8"):
        raise FormatError(need("int8 filters over all channels for eleven bits", w.kind, _DO))
    if x.fine and w.array[0].size > _SURE_FINE_SIZE:
        check_sums(f"weight {w.name!r} of eleven bits", fine_filters(w.array), 127)
    if x.y is not None and w.kind == "float":
        raise FormatError(need("float weights need float input", "uint8", _DO))
    if not np.isfinite(w.effective_scale(x.y)).all():
        raise FormatError(need("scale * input scale is finite", "an overflow", _DO))
    made = Value(x.rank, o, o, _out_y(node, x))
    for other in others:
        fits = (other.rank, other.channels) == (x.rank, o)
        if not fits or (x.y is None and other.y is not None):
            raise FormatError(need("a residual or gate of the output's channels", "another", _DO))
    return made


def _make_max_pool(graph: Graph, node: Node, x: Value, others: Sequence[Value]) -> Value:
    _need_pool(node, x)
    return x


def _make_avg_pool(graph: Graph, node: Node, x: Value, others: Sequence[Value]) -> Value:
    _need_pool(node, x)
    return Value(4, x.channels, x.multiple, _out_y(node, x))


def _make_adaptive(graph: Graph, node: Node, x: Value, others: Sequence[Value]) -> Value:
    _need_rank(node, x, 4)
    return Value(4, x.channels, x.multiple, _out_y(node, x))


def _make_pointwise(graph: Graph, node: Node, x: Value, others: Sequence[Value]) -> Value:
    channels, multiple = x.channels, x.multiple
    for other in others:
        if (other.rank, other.y is None) != (x.rank, x.y is None):
            raise FormatError(need(f"{node.op} needs values of one kind", "different ones", _DO))
        if None not in (channels, other.channels) and channels != other.channels:
            raise FormatError(need(f"two values of {channels} channels", other.channels, _DO))
        channels = channels if channels is not None else other.channels
    return Value(x.rank, channels, multiple, _out_y(node, x))


def _make_flatten(graph: Graph, node: Node, x: Value, others: Sequence[Value]) -> Value:
    _need_rank(node, x, 4)
    return Value(2, None, x.multiple, x.y)


def _make_activation(graph: Graph, node: Node, x: Value, others: Sequence[Value]) -> Value:
    wanted = FUNCTIONS[node.attrs["fn"]].parameters
    if len(node.attrs["params"]) != wanted:
        raise FormatError(need(f"{wanted} parameters", len(node.attrs["params"]), _DO))
    return replace(x, y=_out_y(node, x))


def _make_concat(graph: Graph, node: Node, x: Value, others: Sequence[Value]) -> Value:
    parts = [x, *others]
    if any((part.rank, part.y is None) != (x.rank, x.y is None) for part in others):
        raise FormatError(need("concat needs values of one kind", "different ones", _DO))
    if x.y is not None and node.attrs["y"] is None:
        raise FormatError(need("a concat of uint8 needs y", "none", _DO))
    known = [part.channels for part in parts if part.channels is not None]
    channels = sum(known) if len(known) == len(parts) else None
    if channels is not None and channels > op_spec.MAX_CHANNELS:
        raise FormatError(need(f"at most {op_spec.MAX_CHANNELS} channels", channels, _DO))
    multiple = channels or math.gcd(*(part.multiple for part in parts))
    return Value(x.rank, channels, multiple, _out_y(node, x))


def _make_slice(graph: Graph, node: Node, x: Value, others: Sequence[Value]) -> Value:
    _need_rank(node, x, 4)
    begin, end = node.attrs["begin"], node.attrs["end"]
    if not begin < end <= (x.channels or 0):
        raise FormatError(need(f"0 <= begin < end <= {x.channels}", f"{begin}, {end}", _DO))
    return replace(x, channels=end - begin, multiple=end - begin)


def _make_shuffled(graph: Graph, node: Node, x: Value, others: Sequence[Value]) -> Value:
    """Values that move between channels and pixels, or among channels."""
    _need_rank(node, x, 4)
    channels, at = x.channels or 0, node.attrs
    if node.op == "pixel_unshuffle":
        channels *= math.prod(at["factor"])
        if channels > op_spec.MAX_CHANNELS:
            raise FormatError(need(f"at most {op_spec.MAX_CHANNELS} channels", channels, _DO))
        return replace(x, channels=channels, multiple=channels)
    groups = at["groups"] if node.op == "channel_shuffle" else math.prod(at["factor"])
    if channels % groups:
        raise FormatError(need(f"channels divisible by {groups}", channels, _DO))
    if node.op == "channel_shuffle":
        return x
    return replace(x, channels=channels // groups, multiple=channels // groups)


def _make_resize(graph: Graph, node: Node, x: Value, others: Sequence[Value]) -> Value:
    """The size comes from `size`, or `zoom`, or the second operand's image."""
    at = node.attrs
    for value in (x, *others):
        _need_rank(node, value, 4)
    if (at["size"] is not None) + (at["zoom"] is not None) + len(others) != 1:
        raise FormatError(need("one of size, zoom and a second input", "another number", _DO))
    if at["align"] and (at["mode"] == "nearest" or at["zoom"] is not None):
        raise FormatError(need("align goes with bilinear and a size", "something else", _DO))
    return x


def _make_unflatten(graph: Graph, node: Node, x: Value, others: Sequence[Value]) -> Value:
    _need_rank(node, x, 2)
    if x.channels is None:
        raise FormatError(need("a known number of channels", "a flattened image", _DO))
    return replace(x, rank=4)


def _make_softmax(graph: Graph, node: Node, x: Value, others: Sequence[Value]) -> Value:
    if x.y is not None:
        raise FormatError(need(f"{node.op} needs floats", "uint8", _DO))
    return x


def _make_layer_norm(graph: Graph, node: Node, x: Value, others: Sequence[Value]) -> Value:
    if node.attrs["w"] >= len(graph.weights):
        raise FormatError(need(f"w < {len(graph.weights)}", node.attrs["w"], _DO))
    w = graph.weight(node)
    width = w.shape[0] if x.channels is None and w.shape[0] % x.multiple == 0 else x.channels
    if w.kind != "float" or w.shape != (width, 1, 1, 1) or w.slope is not None:
        wanted = f"float weights [{x.channels or f'{x.multiple} n'}, 1, 1, 1]"
        raise FormatError(need(wanted, list(w.shape), _DO))
    known = replace(x, channels=w.shape[0], multiple=w.shape[0])
    return _make_softmax(graph, node, known, others)


_MAKES = {
    "quantize": _make_quantize,
    "dequantize": _make_dequantize,
    "conv2d": _make_layer,
    "linear": _make_layer,
    "max_pool2d": _make_max_pool,
    "avg_pool2d": _make_avg_pool,
    "adaptive_avg_pool2d": _make_adaptive,
    "add": _make_pointwise,
    "clamp": _make_pointwise,
    "flatten": _make_flatten,
    "activation": _make_activation,
    "mul": _make_pointwise,
    "concat": _make_concat,
    "slice": _make_slice,
    "pixel_shuffle": _make_shuffled,
    "pixel_unshuffle": _make_shuffled,
    "channel_shuffle": _make_shuffled,
    "resize": _make_resize,
    "unflatten": _make_unflatten,
    "softmax": _make_softmax,
    "layer_norm": _make_layer_norm,
}
