# SPDX-License-Identifier: Apache-2.0
"""Operators without filters as ONNX nodes, a function each."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from ternary_ops.interchange.export_node import NodeExport, outside_axis, writes
from ternary_ops.interchange.graph_builder import FLOAT, INT32, lists
from ternary_ops.interchange.onnx_package import Unsupported
from ternary_ops.layout.codes import FINE_PARTS
from ternary_ops.program.weight import Params
from ternary_ops.reference import activations

# Functions of floats that ONNX has an operator for, with the names of its attributes.
_FUNCTIONS: dict[str, tuple[str, tuple[str, ...]]] = {
    "leaky_relu": ("LeakyRelu", ("alpha",)),
    "hardswish": ("HardSwish", ()),
    "affine_hardsigmoid": ("HardSigmoid", ("alpha", "beta")),
    "sigmoid": ("Sigmoid", ()),
    "tanh": ("Tanh", ()),
    "elu": ("Elu", ("alpha",)),
    "exp": ("Exp", ()),
    "abs": ("Abs", ()),
    "sqrt": ("Sqrt", ()),
    "reciprocal": ("Reciprocal", ()),
    "log": ("Log", ()),
    "erf": ("Erf", ()),
    "sin": ("Sin", ()),
    "cos": ("Cos", ()),
    "celu": ("Celu", ("alpha",)),
    "selu": ("Selu", ()),
    "softsign": ("Softsign", ()),
    "hardshrink": ("Shrink", ("lambd",)),
}


# Functions that ONNX has in several steps, from the graph, the value and the parameters.
_IN_STEPS: dict[str, Callable[..., str]] = {
    "affine": lambda out, x, factor, offset: out.add(
        "Add", out.add("Mul", x, out.number(factor)), out.number(offset)
    ),
    "silu": lambda out, x: out.add("Mul", x, out.add("Sigmoid", x)),
    "hardsigmoid": lambda out, x: out.add("HardSigmoid", x, alpha=1 / 6, beta=0.5),
    "square": lambda out, x: out.add("Mul", x, x),
    "rsqrt": lambda out, x: out.add("Reciprocal", out.add("Sqrt", x)),
    "pow": lambda out, x, power: out.add("Pow", x, out.number(power)),
    "quick_gelu": lambda out, x: out.add(
        "Mul", x, out.add("Sigmoid", out.add("Mul", x, out.number(1.702)))
    ),
    "logsigmoid": lambda out, x: out.add("Neg", out.add("Softplus", out.add("Neg", x))),
    "hard_mish": lambda out, x: out.add(
        "Mul",
        out.add("Mul", x, out.number(0.5)),
        out.add("Clip", out.add("Add", x, out.number(2)), out.number(0), out.number(2)),
    ),
    "tanhshrink": lambda out, x: out.add("Sub", x, out.add("Tanh", x)),
    "softshrink": lambda out, x, t: out.add("Shrink", x, lambd=float(t), bias=float(t)),
    "threshold": lambda out, x, t, v: out.add(
        "Where", out.add("Greater", x, out.number(t)), x, out.number(v)
    ),
}


@writes("input")
def read(e: NodeExport) -> str:
    """The graph's input."""
    return "input"


@writes("quantize")
def quantize(e: NodeExport) -> str:
    """QuantizeLinear; two-term 11-bit: all first codes, then all second ones."""
    y = e.node.at["y"]
    return _fine_codes(e, e.x[0], y) if e.node.at["fine"] else e.codes(e.x[0], y)


def _fine_codes(e: NodeExport, value: str, y: Params) -> str:
    """As reference.quantize_fine."""
    out, (scale, zp) = e.out, y
    inverse = out.number(float(np.float32(1) / np.float32(scale)))
    limits = out.number(-1024), out.number(1024)
    steps = out.add("Clip", out.add("Mul", value, inverse), *limits)
    whole = out.add("Round", steps)
    parts = out.add("Sub", steps, whole)
    both = out.codes(whole, (1.0, zp)), out.codes(parts, (1 / FINE_PARTS, zp))
    return out.add("Concat", *both, axis=1)


@writes("dequantize")
def dequantize(e: NodeExport) -> str:
    """DequantizeLinear: codes to real values."""
    return e.reals()[0]


@writes("max_pool2d")
def max_pool2d(e: NodeExport) -> str:
    """Of codes or floats."""
    at = e.node.at
    window = {
        "kernel_shape": at["kernel"],
        "strides": at["stride"],
        "dilations": at["dilation"],
        "pads": [*at["padding"], *at["padding"]],
    }
    return e.out.add("MaxPool", e.x[0], ceil_mode=int(at["ceil"]), **lists(window))


@writes("avg_pool2d")
def avg_pool2d(e: NodeExport) -> str:
    """Exact sums by a convolution with ones, then times f32(s / count)."""
    at, out, y, channels = e.node.at, e.out, e.y, e.node.inputs[0].channels
    if at["ceil"]:
        raise Unsupported("average pools without ceil", "ceil")
    if channels is None:
        raise Unsupported("a known number of channels", "none")
    kernel, pads = at["kernel"], [*at["padding"], *at["padding"]]
    if not e.exact and at["divisor"] is None:
        window = {"kernel_shape": kernel, "strides": at["stride"], "pads": pads}
        counted = int(at["include_pad"])
        mean = out.add("AveragePool", e.reals()[0], count_include_pad=counted, **lists(window))
        return e.codes(mean, at["y"])
    summand = e.x[0] if y is None else out.centered(e.x[0], y[1])
    window = {"strides": at["stride"], "pads": pads}
    ones = out.constant(np.ones((channels, 1, *kernel)), np.float32, "ones")
    sums = out.add("Conv", summand, ones, group=channels, **lists(window))
    if y is not None:
        sums = e.whole(sums)
    scale = np.float32(1 if y is None else y[0])
    if at["divisor"] is not None or at["include_pad"] or at["padding"] == (0, 0):
        count = at["divisor"] or math.prod(kernel)
        mean = out.add("Mul", sums, out.number(float(scale / np.float32(count))))
    else:
        one = out.add("Slice", summand, *(out.ends([v]) for v in (0, 1, 1)))
        flat = out.add("Add", out.add("Mul", one, out.number(0)), out.number(1))
        single = out.constant(np.ones((1, 1, *kernel)), np.float32, "ones")
        count_map = out.add("Conv", flat, single, **lists(window))
        mean = out.add("Mul", sums, out.add("Div", out.number(float(scale)), count_map))
    return e.codes(mean, at["y"])


@writes("adaptive_avg_pool2d")
def adaptive_avg_pool2d(e: NodeExport) -> str:
    """The mean of the whole image."""
    at, out, y = e.node.at, e.out, e.y
    if tuple(at["size"]) != (1, 1):
        raise Unsupported("a mean over the whole image", at["size"])
    if not e.exact:
        return e.codes(out.add("GlobalAveragePool", e.reals()[0]), at["y"])
    summand = e.x[0] if y is None else out.centered(e.x[0], y[1])
    total = out.add("ReduceSum", summand, out.ends([2, 3]), keepdims=1)
    shape = out.add("Shape", e.x[0], start=2, end=4)
    pixels = out.add("ReduceProd", shape, keepdims=0)
    count = out.add("Cast", pixels, to=FLOAT)
    factor = out.add("Div", out.number(1 if y is None else y[0]), count)
    return e.codes(out.add("Mul", total, factor), at["y"])


@writes("adaptive_max_pool2d")
def adaptive_max_pool2d(e: NodeExport) -> str:
    """The maximum of the whole image, of codes or floats."""
    if tuple(e.node.at["size"]) != (1, 1):
        raise Unsupported("a maximum over the whole image", e.node.at["size"])
    return e.out.add("ReduceMax", e.x[0], axes=[2, 3], keepdims=1)


@writes("add")
def add(e: NodeExport) -> str:
    """Of floats, or of what codes stand for."""
    return e.finish(e.out.add("Add", *e.reals()))


@writes("mul")
def mul(e: NodeExport) -> str:
    """Of floats, or of what codes stand for."""
    return e.finish(e.out.add("Mul", *e.reals()))


@writes("clamp")
def clamp(e: NodeExport) -> str:
    """Clip to the node's bounds."""
    return e.finish(e.reals()[0])


@writes("activation")
def activation(e: NodeExport) -> str:
    """Of codes: the table of 256 values; of floats: ONNX's own operator."""
    fn, params, y, out, x = e.node.at["fn"], e.node.at["params"], e.y, e.out, e.x[0]
    if y is not None:
        table = out.constant(activations.over_codes(fn, params, *y), np.float32, "table")
        number = out.add("Cast", x, to=INT32)
        return e.codes(out.add("Gather", table, number), e.node.at["y"])
    if fn in _IN_STEPS:
        return _IN_STEPS[fn](out, x, *params)
    if fn not in _FUNCTIONS:
        raise Unsupported("a function of floats that ONNX has", fn)
    op, names = _FUNCTIONS[fn]
    return out.add(op, x, **dict(zip(names, map(float, params), strict=True)))


@writes("concat")
def concat(e: NodeExport) -> str:
    """Codes of parts with the whole's scale and zero point are moved, others rounded anew."""
    y = e.node.at["y"]
    parts = [
        name if y == value.y else e.codes(e.out.real(name, value.y), y)
        for name, value in zip(e.x, e.node.inputs, strict=True)
    ]
    return e.out.add("Concat", *parts, axis=outside_axis(e.node.at["axis"], e.value.rank))


@writes("slice")
def slice_(e: NodeExport) -> str:
    """Slice of the channels."""
    axis = outside_axis(1, e.value.rank)
    limits = (e.out.ends([v]) for v in (e.node.at["begin"], e.node.at["end"], axis))
    return e.out.add("Slice", e.x[0], *limits)


@writes("flatten")
def flatten(e: NodeExport) -> str:
    """Flatten all axes but the batch."""
    return e.out.add("Flatten", e.x[0], axis=1)


@writes("unflatten")
def unflatten(e: NodeExport) -> str:
    """An image of one pixel."""
    return e.out.add("Unsqueeze", e.x[0], e.out.ends([2, 3]))


@writes("pixel_shuffle")
def pixel_shuffle(e: NodeExport) -> str:
    """DepthToSpace on floats: ONNX Runtime moves no integers."""
    (a, b), crop = e.node.at["factor"], tuple(e.node.at["crop"])
    if a != b or crop != (0, 0):
        raise Unsupported("equal factors and no crop", (a, b, *crop))
    moved = e.out.add("DepthToSpace", e.reals()[0], blocksize=a, mode="CRD")
    return e.codes(moved, e.y)


@writes("channel_shuffle")
def channel_shuffle(e: NodeExport) -> str:
    """The channels in their new order."""
    channels, groups = e.value.channels, e.node.at["groups"]
    if channels is None:
        raise Unsupported("a known number of channels", "none")
    order = np.arange(channels).reshape(groups, -1).T.ravel()
    return e.out.add("Gather", e.x[0], e.out.ends(list(order)), axis=1)


@writes("resize")
def resize(e: NodeExport) -> str:
    """Nearest neighbours by a whole factor move codes; other factors round in their own way."""
    at, y, out, x = e.node.at, e.y, e.out, e.x
    zoom = at["zoom"]
    if at["mode"] == "bilinear" and zoom is None:
        size = out.ends(at["size"]) if len(x) == 1 else out.part_of_shape(x[1], 2)
        steps = x[0] if y is None else out.centered(x[0], y[1])
        made = (out.bilinear if e.exact else out.resized)(steps, size, at["align"])
        return made if y is None else out.codes(made, (1.0, y[1]))
    if at["mode"] == "bicubic" and zoom is None and y is None:
        size = out.ends(at["size"]) if len(x) == 1 else out.part_of_shape(x[1], 2)
        return out.resized(x[0], size, at["align"], "cubic")
    whole = zoom is not None and all(float(z).is_integer() and z >= 1 for z in zoom)
    if at["mode"] != "nearest" or not whole:
        got = f"{at['mode']}, {zoom or at['size'] or 'the size of another value'}"
        wanted = "a bilinear resize or a bicubic one of floats to a size, or nearest by a factor"
        raise Unsupported(wanted, got)
    return out.add(
        *("Resize", x[0], "", out.constant(np.asarray([1, 1, *zoom]), np.float32)),
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )


@writes("layer_norm")
def layer_norm(e: NodeExport) -> str:
    """Over the channels, which ONNX wants last."""
    w, out, image = e.node.weight, e.out, e.value.rank == 4
    factor = out.constant(w.array.ravel(), np.float32, "weight")
    bias = [] if w.bias is None else [out.constant(w.bias, np.float32, "bias")]
    last = out.add("Transpose", e.x[0], perm=[0, 2, 3, 1]) if image else e.x[0]
    made = out.add("LayerNormalization", last, factor, *bias, epsilon=e.node.at["eps"])
    made = out.add("Transpose", made, perm=[0, 3, 1, 2]) if image else made
    return e.codes(made, e.node.at["y"])


@writes("group_norm")
def group_norm(e: NodeExport) -> str:
    """Groups as the channels of an InstanceNormalization: GroupNormalization came with opset 21."""
    w, out, groups = e.node.weight, e.out, e.node.at["groups"]
    ones = out.constant(np.ones(groups), np.float32)
    zeros = out.constant(np.zeros(groups), np.float32)
    rows = out.add("Reshape", e.x[0], out.ends([0, groups, -1]))
    normal = out.add("InstanceNormalization", rows, ones, zeros, epsilon=e.node.at["eps"])
    image = out.add("Reshape", normal, out.add("Shape", e.x[0]))
    made = out.add("Mul", image, out.channels(w.array.ravel(), 4))
    return made if w.bias is None else out.add("Add", made, out.channels(w.bias, 4))
