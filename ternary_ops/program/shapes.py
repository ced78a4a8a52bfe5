# SPDX-License-Identifier: Apache-2.0
"""What a program makes of one image size: the shape and the multiply-adds of every node."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

from ternary_ops.errors import UnsupportedShape, need
from ternary_ops.layout.codes import quads
from ternary_ops.program.graph import Graph, Node
from ternary_ops.reference.arithmetic import conv_size, pooled_size

Shape: TypeAlias = tuple[int, ...]

MAX_ELEMENTS = 2**31 - 1  # of one value: the native engine counts cells in 32 bits
MAX_WINDOW = (2**31 - 1) // 255  # pixels an int32 accumulator can average


def infer(graph: Graph, n: int, h: int = 1, w: int = 1) -> list[Shape]:
    """Shape of every node's array for n images of h x w (h and w mean nothing for rank 2 input).

    Raises UnsupportedShape naming the node that does not fit.
    """
    if n < 0 or h < 1 or w < 1:
        raise UnsupportedShape(
            need("a program takes N >= 0 images of H, W >= 1", (n, h, w), "Check x.shape.")
        )
    shapes: list[Shape] = []
    for i, node in enumerate(graph.nodes):
        try:
            if node.op == "input":
                shape: Shape = (n, node.attrs["c"], h, w)[: node.attrs["rank"]]
            else:
                shape = _shape(graph, node, [shapes[j] for j in node.inputs])
            if math.prod(shape[1:]) * max(n, 1) > MAX_ELEMENTS:
                raise UnsupportedShape(
                    need(f"at most {MAX_ELEMENTS} elements", list(shape), "Split the batch.")
                )
        except UnsupportedShape as e:
            raise UnsupportedShape(f"node {i} ({node.op}): {e}") from None
        shapes.append(shape)
    return shapes


def macs(graph: Graph, shapes: Sequence[Shape]) -> list[int]:
    """Multiply-adds of every node as a dense network would do them (`shapes` from infer)."""
    counts = [0] * len(shapes)
    for i, node in enumerate(graph.nodes):
        if node.op in ("conv2d", "linear"):
            counts[i] = math.prod(shapes[i]) * math.prod(graph.weight(node).shape[1:])
    return counts


def _shape(graph: Graph, node: Node, inputs: Sequence[Shape]) -> Shape:
    x, at = inputs[0], node.attrs
    if node.op == "flatten":
        return x[0], math.prod(x[1:])
    if node.op == "conv2d":
        o, r, s, _ = graph.weight(node).shape
        steps = zip(x[2:], (r, s), at["stride"], at["padding"], at["dilation"], strict=True)
        shape: Shape = (x[0], o, *(conv_size(*step) for step in steps))
    elif node.op == "linear":
        o, _, _, k = graph.weight(node).shape
        _need_same("features", (k,), x[1:])
        shape = (x[0], o)
    elif node.op == "layer_norm":
        _need_same("channels", graph.weight(node).shape[:1], x[1:2])
        shape = x
    elif node.op in ("max_pool2d", "avg_pool2d"):
        dilation = at.get("dilation", (1, 1))
        steps = zip(x[2:], at["kernel"], at["stride"], at["padding"], dilation, strict=True)
        shape = (*x[:2], *(pooled_size(*step, at["ceil"]) for step in steps))
        if node.op == "avg_pool2d":
            _need_window(math.prod(at["kernel"]))
    elif node.op == "adaptive_avg_pool2d":
        shape = (*x[:2], *at["size"])
        _need_window(math.prod(-(-a // b) + 1 for a, b in zip(x[2:], at["size"], strict=True)))
    elif node.op == "quantize" and node.attrs["fine"]:
        shape = x[0], 8 * quads(x[1]), *x[2:]
    elif node.op in _MOVES:
        return _MOVES[node.op](node, inputs)
    else:
        shape = x
    for other in inputs[1:]:
        _need_same("a second operand of shape", shape, other)
    return shape


def _concat(node: Node, inputs: Sequence[Shape]) -> Shape:
    x, *others = inputs
    for other in others:
        _need_same("a part of image size", x[2:], other[2:])
    return x[0], sum(part[1] for part in inputs), *x[2:]


def _mul(node: Node, inputs: Sequence[Shape]) -> Shape:
    x, other = inputs
    if len(x) == 2 or other[2:] != (1, 1):
        _need_same("a second operand of shape", x, other)
    return x


def _shuffled(node: Node, inputs: Sequence[Shape]) -> Shape:
    n, c, *image = inputs[0]
    factor, crop = node.attrs["factor"], node.attrs.get("crop", (0, 0))
    if node.op == "pixel_unshuffle":
        if any(size % f for size, f in zip(image, factor, strict=True)):
            wanted = f"an image size divisible by {list(factor)}"
            raise UnsupportedShape(need(wanted, image, "Pad or crop the image."))
        return n, c * math.prod(factor), *(a // f for a, f in zip(image, factor, strict=True))
    sizes = [a * f - cut for a, f, cut in zip(image, factor, crop, strict=True)]
    if min(sizes) < 1:
        raise UnsupportedShape(need(f"more pixels than a crop of {crop}", image, "Use a larger."))
    return n, c // math.prod(factor), *sizes


def resized(node: Node, inputs: Sequence[Shape]) -> Shape:
    """What a resize node makes of its input, or of both."""
    x, at = inputs[0], node.attrs
    if len(inputs) == 2:
        sizes = inputs[1][2:]
    elif at["size"] is not None:
        sizes = at["size"]
    else:
        sizes = tuple(math.floor(a * z) for a, z in zip(x[2:], at["zoom"], strict=True))
    if min(sizes) < 1:
        raise UnsupportedShape(need("a resized image of at least 1 x 1", sizes, "Use a larger."))
    return *x[:2], *sizes


def _sliced(node: Node, inputs: Sequence[Shape]) -> Shape:
    n, _, *image = inputs[0]
    return n, node.attrs["end"] - node.attrs["begin"], *image


_MOVES: dict[str, Callable[[Node, Sequence[Shape]], Shape]] = {
    "concat": _concat,
    "mul": _mul,
    "pixel_shuffle": _shuffled,
    "pixel_unshuffle": _shuffled,
    "resize": resized,
    "slice": _sliced,
    "unflatten": lambda node, inputs: (*inputs[0], 1, 1),
}


def _need_same(what: str, wanted: Shape, got: Shape) -> None:
    if wanted != got:
        raise UnsupportedShape(
            need(f"{what} {list(wanted)}", list(got), "Use the image size it was made for.")
        )


def _need_window(pixels: int) -> None:
    if pixels > MAX_WINDOW:
        raise UnsupportedShape(
            need(f"at most {MAX_WINDOW} pixels in an average", pixels, "Use a smaller image.")
        )
