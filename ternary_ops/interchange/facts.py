# SPDX-License-Identifier: Apache-2.0
"""ONNX operators that compute nothing from the image: constants, sizes, and 8-bit forms."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import fx

from ternary_ops.interchange.library import Refused
from ternary_ops.interchange.ranges import Codes

if TYPE_CHECKING:
    from ternary_ops.interchange.loading import Loader

Made = fx.Node | NDArray[Any] | None
Attributes = dict[str, Any]
Translate = Callable[["Loader", Any, Attributes], Made]


def shape(loader: Loader, node: Any, at: Attributes) -> Made:
    """Sizes are followed as far as exporters need them: 0, ONNX's "as it was", for the batch."""
    loader.sizes[node.output[0]] = [0, None, None, None]
    return None


def gather(loader: Loader, node: Any, at: Attributes) -> Made:
    """One size out of those of an image."""
    sizes, number = loader.sizes.get(node.input[0]), loader.constant(node, 1)
    if sizes is None or number is None or number.size != 1:
        raise Refused("one size of an image", "another Gather")
    loader.sizes[node.output[0]] = [sizes[int(number.reshape(-1)[0])]]
    return None


def unsqueeze(loader: Loader, node: Any, at: Attributes) -> Made:
    """Of a size, which stays one, or of a constant."""
    if node.input[0] in loader.sizes:
        loader.sizes[node.output[0]] = loader.sizes[node.input[0]]
        return None
    if not loader.is_constant(node.input[0]):
        raise Refused("Unsqueeze of a size or a constant", "of a computed value")
    axes = at.get("axes") or loader.constant(node, 1)
    array: NDArray[Any] = np.expand_dims(
        loader.constants[node.input[0]], tuple(int(a) for a in (axes if axes is not None else ()))
    )
    return array


def same(loader: Loader, node: Any, at: Attributes) -> Made:
    """What changes nothing in eval mode."""
    name = node.input[0]
    if loader.is_constant(name):
        return loader.constants[name]
    return loader.value(node, 0)


def constant(loader: Loader, node: Any, at: Attributes) -> Made:
    """The array of a Constant node."""
    if "value" in at:
        array: NDArray[Any] = loader.onnx.numpy_helper.to_array(at["value"])
        return array
    for name, dtype in (
        ("value_float", np.float32),
        ("value_int", np.int64),
        ("value_floats", np.float32),
        ("value_ints", np.int64),
    ):
        if name in at:
            return np.asarray(at[name], dtype)
    raise Refused("a constant of numbers", sorted(at))


def _quantization(loader: Loader, node: Any) -> tuple[NDArray[Any], NDArray[Any]]:
    scale, zero = loader.constant(node, 1), loader.constant(node, 2)
    if scale is None or not np.isfinite(scale).all() or not (scale > 0).all():
        raise Refused("positive scales", "others")
    zero = np.zeros_like(scale, np.uint8) if zero is None else zero
    return np.atleast_1d(scale.astype(np.float64)), np.atleast_1d(zero)


def quantize_linear(loader: Loader, node: Any, at: Attributes) -> Made:
    """Activations keep their value: the range of its 8-bit form is all that is new."""
    if loader.is_constant(node.input[0]):
        raise Refused("weights stored as integers", "QuantizeLinear of a constant")
    scale, zero = _quantization(loader, node)
    if scale.size != 1 or zero.dtype not in (np.uint8, np.int8):
        raise Refused("8 bits and one scale for a value", f"{zero.dtype}, {scale.size} scales")
    lowest = int(np.iinfo(zero.dtype).min)
    steps = int(zero[0]) - lowest
    value = loader.value(node, 0)
    lo, hi = -steps * float(scale[0]), (255 - steps) * float(scale[0])
    former = loader.ranges.get(value, (lo, hi))
    loader.ranges[value] = (min(lo, former[0]), max(hi, former[1]))
    return value


def dequantize_linear(loader: Loader, node: Any, at: Attributes) -> Made:
    """Of a constant: its float values, with the codes kept for the layer that reads them."""
    name = node.input[0]
    if not loader.is_constant(name):
        return loader.value(node, 0)
    values, (scale, zero) = loader.constants[name], _quantization(loader, node)
    axis = int(at.get("axis", 1))
    shape = [1] * values.ndim
    if scale.size > 1:
        shape[axis] = -1
    centered = values.astype(np.int64) - zero.astype(np.int64).reshape(
        shape if zero.size > 1 else [1] * values.ndim
    )
    real = centered * scale.reshape(shape if scale.size > 1 else [1] * values.ndim)
    if values.dtype == np.int8 and np.abs(centered).max(initial=0) <= 127:
        loader.codes[node.output[0]] = Codes(centered, scale, axis if scale.size > 1 else 0)
    exact: NDArray[Any] = real.astype(np.float32)
    return exact
