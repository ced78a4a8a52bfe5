# SPDX-License-Identifier: Apache-2.0
"""ONNX operators that become torch functions: arithmetic, activations, shapes, resizing."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import fx, nn

from ternary_ops.interchange import import_constants
from ternary_ops.interchange.loader import Loader
from ternary_ops.interchange.onnx_package import Unsupported
from ternary_ops.interchange.read_layers import channelwise
from ternary_ops.interchange.rules import Attributes, Made, Read

# What torch's nearest neighbours are, for whole factors.
_NEAREST = {("asymmetric", "floor"), ("half_pixel", "round_prefer_floor")}
_LARGEST = 3e38  # exporters write such bounds for none


def unary(function: Any, **names: tuple[str, float]) -> Read:
    """A function of one value; names: its arguments, with the attribute and default of each."""

    def read(loader: Loader, node: Any, at: Attributes) -> Made:
        given = {ours: at.get(theirs, default) for ours, (theirs, default) in names.items()}
        return loader.call(function, loader.value(node, 0), **given)

    return read


def binary(function: Any) -> Read:
    """Arithmetic of two values, or of a value and a constant, which broadcast as torch does."""

    def read(loader: Loader, node: Any, at: Attributes) -> Made:
        known = [import_constants.is_fact(loader, name) for name in node.input]
        if all(known):
            return import_constants.arithmetic(loader, node, function)
        if not any(known):
            return loader.call(function, loader.value(node, 0), loader.value(node, 1))
        place = known.index(True)
        x, constant = loader.value(node, 1 - place), loader.tensor(node, place)
        if constant.numel() == 1 and constant.ndim <= loader.rank(node.input[1 - place]):
            number = float(constant.reshape(-1)[0])
            return loader.call(function, *((number, x) if place == 0 else (x, number)))
        made = _per_channel(loader, node, function, place)
        if made is not None:
            return made
        other = loader.buffer(constant)
        return loader.call(function, *((other, x) if place == 0 else (x, other)))

    return read


def _per_channel(loader: Loader, node: Any, function: Any, place: int) -> fx.Node | None:
    """A constant with one number a channel: the bias of the layer before, where nothing else reads
    that, or a depthwise convolution. None for other constants.
    """
    name, constant = node.input[1 - place], loader.tensor(node, place)
    dims, rank = loader.dims(name), loader.rank(name)
    shape = [1] * (rank - constant.ndim) + list(constant.shape)
    if rank not in (2, 4) or dims is None or shape != [1, dims[1], *[1] * (rank - 2)]:
        return None
    first = place == 1 or function in (operator.add, operator.mul)
    if not first or (function is operator.truediv and not bool((1 / constant).isfinite().all())):
        return None
    x, values = loader.value(node, 1 - place), constant.reshape(-1)
    if function in (operator.mul, operator.truediv):
        scale = values if function is operator.mul else 1 / values
        return channelwise(loader, node, x, rank == 2, scale, None)
    bias = values if function is operator.add else -values
    layer = loader.layer_of(name)
    if isinstance(layer, (nn.Linear, nn.Conv2d)) and layer.bias is None:
        layer.bias = nn.Parameter(bias.clone())
        return x
    return channelwise(loader, node, x, rank == 2, torch.ones(len(bias)), bias)


def clip(loader: Loader, node: Any, at: Attributes) -> Made:
    """Bounds as attributes, or as inputs of later opsets."""
    bounds: list[float | None] = []
    for number, (name, sign) in enumerate((("min", -1), ("max", 1)), 1):
        array = loader.constant(node, number)
        if array is not None and (array.size != 1 or array.dtype != np.float32):
            raise Unsupported(f"{name} as one float32", f"{array.dtype} {list(array.shape)}")
        value = at.get(name) if array is None else float(array.reshape(-1)[0])
        if value is not None and math.isnan(value):
            raise Unsupported(f"a number as {name}", f"{name} = {value}")
        bounds.append(None if value is None or sign * value > _LARGEST else float(value))
    x = loader.value(node, 0)
    return x if bounds == [None, None] else loader.call(torch.clamp, x, *bounds)


def hard_sigmoid(loader: Loader, node: Any, at: Attributes) -> Made:
    """torch's, which has alpha 1/6 and beta 0.5, or the same in its steps."""
    x, alpha, beta = loader.value(node, 0), at.get("alpha", 0.2), at.get("beta", 0.5)
    if abs(alpha - 1 / 6) < 1e-6 and beta == 0.5:
        return loader.call(F.hardsigmoid, x)
    scaled = loader.call(operator.mul, x, float(alpha))
    return loader.call(torch.clamp, loader.call(operator.add, scaled, float(beta)), 0.0, 1.0)


def power(loader: Loader, node: Any, at: Attributes) -> Made:
    """Of one number as exponent."""
    exponent = loader.constant(node, 1)
    if exponent is None or exponent.size != 1:
        raise Unsupported("one constant number as exponent", "others")
    return loader.call(torch.pow, loader.value(node, 0), float(exponent.reshape(-1)[0]))


def selu(loader: Loader, node: Any, at: Attributes) -> Made:
    """torch's, whose two numbers are ONNX's defaults."""
    alpha, gamma = at.get("alpha", 1.67326319), at.get("gamma", 1.05070102)
    if abs(alpha - 1.67326324) > 1e-6 or abs(gamma - 1.05070098) > 1e-6:
        raise Unsupported("the alpha and gamma of SELU", f"{alpha} and {gamma}")
    return loader.call(F.selu, loader.value(node, 0))


def softmax(function: Any) -> Read:
    """Over one axis; before opset 13 over that and all that follow."""

    def read(loader: Loader, node: Any, at: Attributes) -> Made:
        rank, old = loader.rank(node.input[0]), loader.opset is not None and loader.opset < 13
        axis = int(at.get("axis", 1 if old else -1))
        if not -rank <= axis < rank:
            raise Unsupported(f"an axis of {rank}", f"axis = {axis}")
        dims = loader.dims(node.input[0]) or ()
        if old and any(n != 1 for n in dims[axis % rank + 1 :]):
            raise Unsupported("the last axis before opset 13", f"axis = {axis} of {rank}")
        return loader.call(function, loader.value(node, 0), dim=axis % rank)

    return read


def concat(loader: Loader, node: Any, at: Attributes) -> Made:
    """Of computed values, or of facts."""
    if all(import_constants.is_fact(loader, name) for name in node.input):
        return import_constants.concatenated(loader, node, at)
    values = [loader.value(node, number) for number in range(len(node.input))]
    rank, axis = loader.rank(node.input[0]), int(at.get("axis", 1))
    if not -rank <= axis < rank:
        raise Unsupported(f"an axis of {rank}", f"axis = {axis}")
    return loader.call(torch.cat, values, dim=axis % rank)


def flatten(loader: Loader, node: Any, at: Attributes) -> Made:
    """Flatten to two axes."""
    rank, x = loader.rank(node.input[0]), loader.value(node, 0)
    axis = int(at.get("axis", 1))
    if not -rank <= axis <= rank:
        raise Unsupported(f"an axis of {rank}", f"axis = {axis}")
    axis = axis + rank if axis < 0 else axis
    if axis in (0, rank):
        return loader.method("reshape", x, *((1, -1) if axis == 0 else (-1, 1)))
    x = loader.call(torch.flatten, x, axis)
    return x if axis == 1 else loader.call(torch.flatten, x, 0, axis - 1)


def reshape(loader: Loader, node: Any, at: Attributes) -> Made:
    """To any constant shape, or one of sizes; a constant batch is that of the input if it is so in
    the file.
    """
    wanted = [int(v) for v in at["shape"]] if "shape" in at else _shape(loader, node)
    if at.get("allowzero", 0) and 0 in wanted:
        raise Unsupported("allowzero = 0", "allowzero = 1")
    if import_constants.is_fact(loader, node.input[0]):
        return _reshaped_fact(loader, node, wanted)
    x, dims = loader.value(node, 0), loader.dims(node.input[0])
    rank = loader.rank(node.input[0])
    loader.shapes.tell(
        node.output[0], [v if isinstance(v, int) and v > 0 else None for v in wanted]
    )
    if any(isinstance(v, int) and v == 0 and axis >= rank for axis, v in enumerate(wanted)):
        raise Unsupported(f"zeros for the first {rank} sizes", wanted)
    sizes = [
        loader.size(x, axis) if isinstance(v, int) and v == 0 else v
        for axis, v in enumerate(wanted)
    ]
    if sizes and dims and isinstance(dims[0], int) and sizes[0] == dims[0]:
        sizes[0] = loader.size(x, 0)
    if len(sizes) == 2 and dims and rank >= 2 and _keeps_batch(loader, x, sizes, dims[1:]):
        return loader.call(torch.flatten, x, 1)
    return loader.method("reshape", x, *sizes)


def _keeps_batch(loader: Loader, x: fx.Node, sizes: list[Any], rest: Sequence[Any]) -> bool:
    """True if [a, b] is [batch, everything else]."""
    known = all(isinstance(n, int) for n in rest)
    whole = sizes[1] == math.prod(rest) if known else False
    batch = loader.is_size(sizes[0], x, 0)
    return (batch and (sizes[1] == -1 or whole)) or (sizes[0] == -1 and whole)


def _shape(loader: Loader, node: Any) -> list[Any]:
    array = import_constants.fact(loader, node, 1, "the shape")
    if array.ndim != 1 or (array.dtype != object and array.dtype.kind not in "iu"):
        raise Unsupported(
            "a shape as a list of whole numbers", f"{array.dtype} {list(array.shape)}"
        )
    return [v if isinstance(v, fx.Node) else int(v) for v in array]


def _reshaped_fact(loader: Loader, node: Any, wanted: list[Any]) -> Made:
    array = import_constants.fact(loader, node, 0, "sizes or a constant")
    if any(isinstance(v, fx.Node) for v in wanted):
        raise Unsupported("a constant shape of a constant", "a computed one")
    if any(v == 0 and axis >= array.ndim for axis, v in enumerate(wanted)):
        raise Unsupported(f"zeros for the first {array.ndim} sizes", wanted)
    sizes = [array.shape[axis] if v == 0 else v for axis, v in enumerate(wanted)]
    given, free = math.prod(v for v in sizes if v != -1), sizes.count(-1)
    fits = given > 0 and array.size % given == 0 if free else array.size == given
    if min(sizes, default=0) < -1 or free > 1 or not fits:
        raise Unsupported(f"a shape for {array.size} numbers", wanted)
    return import_constants.keep(loader, node, array.reshape(sizes))


def squeeze(loader: Loader, node: Any, at: Attributes) -> Made:
    """Squeeze: remove axes whose known length is 1."""
    axes = import_constants.axes_of(loader, node, at)
    if import_constants.is_fact(loader, node.input[0]):
        array = import_constants.fact(loader, node, 0, "sizes or a constant")
        return import_constants.keep(loader, node, import_constants.squeezed(array, axes))
    rank, dims, x = loader.rank(node.input[0]), loader.dims(node.input[0]), loader.value(node, 0)
    if axes is None or dims is None or not all(-rank <= a < rank for a in axes):
        raise Unsupported(f"axes of {rank}", f"axes = {axes}")
    if any(dims[a] != 1 for a in axes):
        raise Unsupported("axes that the file says have length 1", f"axes = {axes} of {list(dims)}")
    if {a % rank for a in axes} == {2, 3} and rank == 4:
        return loader.call(torch.flatten, x, 1)
    return loader.call(torch.squeeze, x, tuple(sorted({a % rank for a in axes})))


def unsqueeze(loader: Loader, node: Any, at: Attributes) -> Made:
    """Axes of length 1."""
    axes = import_constants.axes_of(loader, node, at)
    if axes is None:
        raise Unsupported("axes", "none")
    if import_constants.is_fact(loader, node.input[0]):
        array = import_constants.fact(loader, node, 0, "sizes or a constant")
        return import_constants.keep(loader, node, import_constants.expanded(array, axes))
    rank = loader.rank(node.input[0]) + len(axes)
    if not all(-rank <= a < rank for a in axes) or len({a % rank for a in axes}) != len(axes):
        raise Unsupported(f"different axes of {rank}", f"axes = {axes}")
    new = {a % rank for a in axes}
    index = tuple(None if a in new else slice(None) for a in range(rank))
    return loader.call(operator.getitem, loader.value(node, 0), index)


_BLENDS = {"linear": "bilinear", "cubic": "bicubic"}


def resize(loader: Loader, node: Any, at: Attributes) -> Made:
    """Nearest neighbours by whole factors; linear and cubic by factors or to sizes."""
    mode = at.get("mode", "nearest")
    if mode == "cubic" and float(at.get("cubic_coeff_a", -0.75)) != -0.75:
        raise Unsupported("cubic_coeff_a = -0.75", at["cubic_coeff_a"])
    place = at.get("coordinate_transformation_mode", "half_pixel")
    rounding = at.get("nearest_mode", "round_prefer_floor")
    if len(node.input) > 3 and node.input[3]:
        return _to_size(loader, node, mode, place)
    scales = loader.constant(node, 2)
    return _by_factors(loader, node, scales, mode, (place, rounding))


def upsample(loader: Loader, node: Any, at: Attributes) -> Made:
    """Nearest neighbours by whole factors."""
    scales = loader.constant(node, 1)
    if scales is None and "scales" in at:
        scales = np.asarray(at["scales"], np.float32)
    mode = at.get("mode", "nearest")
    return _by_factors(loader, node, scales, mode, ("asymmetric", "floor"))


def _by_factors(
    loader: Loader, node: Any, scales: Any, mode: str, places: tuple[str, str]
) -> fx.Node:
    if scales is None or scales.size != 4 or list(scales.ravel()[:2]) != [1, 1]:
        got = None if scales is None else scales.ravel().tolist()
        raise Unsupported("constant scales of H and W", f"scales = {got}")
    zoom = (float(scales.ravel()[2]), float(scales.ravel()[3]))
    x, place = loader.value(node, 0), places[0]
    whole = all(z.is_integer() and z >= 1 for z in zoom)
    if mode == "nearest" and whole and places in _NEAREST:
        return loader.call(F.interpolate, x, scale_factor=zoom, mode="nearest")
    # A result of one row lies elsewhere in "pytorch_half_pixel"; never where maps grow.
    grows = place == "pytorch_half_pixel" and min(zoom) >= 1
    if mode in _BLENDS and (place == "half_pixel" or grows) and min(zoom) > 0:
        _check_lengths(loader.dims(node.input[0]) or (None,) * 4, zoom)
        return loader.call(
            F.interpolate, x, scale_factor=zoom, mode=_BLENDS[mode], align_corners=False
        )
    what = "nearest by whole factors, or linear or cubic with half pixels"
    raise Unsupported(what, f"mode = {mode}, {places} by {zoom}")


def _check_lengths(dims: Sequence[Any], zoom: tuple[float, float]) -> None:
    """The result's length is rounded down, by ONNX Runtime in float32 and by torch in float64:
    Unsupported where that may differ, or nothing is left.
    """
    for n, z in zip(dims[2:], zoom, strict=True):
        if isinstance(n, int):
            same = int(np.float32(n) * np.float32(z)) == int(n * z) > 0
        else:
            same = float(16 * z).is_integer()
        if not same:
            raise Unsupported("a length that does not hang on rounding", f"{n} times {z}")


def _to_size(loader: Loader, node: Any, mode: str, place: str) -> fx.Node:
    """Bilinear to sizes, constant or of other values."""
    x, dims = loader.value(node, 0), loader.dims(node.input[0])
    sizes = list(import_constants.fact(loader, node, 3, "sizes"))
    if len(sizes) != 4 or dims is None:
        raise Unsupported("sizes of an image", f"{len(sizes)} sizes")
    for axis in (0, 1):
        constant = isinstance(dims[axis], int) and sizes[axis] == dims[axis]
        if not (loader.is_size(sizes[axis], x, axis) or constant):
            raise Unsupported("sizes that keep N and C", f"sizes = {sizes}")
    height, width = (v if isinstance(v, fx.Node) else int(v) for v in sizes[2:])
    many = all(isinstance(v, int) and v > 1 for v in (height, width))
    corners = place == "align_corners"
    if mode not in _BLENDS or not (
        corners or place == "half_pixel" or (place == "pytorch_half_pixel" and many)
    ):
        what = "mode = linear or cubic to sizes, with half pixels or aligned corners"
        raise Unsupported(what, f"mode = {mode}, {place}")
    return loader.call(
        F.interpolate, x, size=(height, width), mode=_BLENDS[mode], align_corners=corners
    )


def depth_to_space(loader: Loader, node: Any, at: Attributes) -> Made:
    """torch's pixel shuffle."""
    if at.get("mode", "DCR") != "CRD":
        raise Unsupported("mode = CRD, torch's pixel shuffle", "mode = DCR")
    return loader.call(F.pixel_shuffle, loader.value(node, 0), int(at["blocksize"]))
