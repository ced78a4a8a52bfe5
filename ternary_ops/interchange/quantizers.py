# SPDX-License-Identifier: Apache-2.0
"""QuantizeLinear and DequantizeLinear: 8-bit codes of activations and of weights."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ternary_ops.interchange.import_ranges import Codes
from ternary_ops.interchange.loader import Loader, Quantized
from ternary_ops.interchange.onnx_package import Unsupported
from ternary_ops.interchange.rules import Attributes, Made

_KINDS = {"UINT8": np.uint8, "INT8": np.int8}
_CONSTANTS = (np.uint8, np.int8, np.int32)


def quantize_linear(loader: Loader, node: Any, at: Attributes) -> Made:
    """An activation, clipped to the range of its codes; a constant is rounded to them at once."""
    scale, zero = _scale_and_zero(loader, node, at.get("output_dtype", 0))
    if zero.dtype not in (np.uint8, np.int8):
        raise Unsupported("codes of 8 bits", zero.dtype)
    limits = np.iinfo(zero.dtype)
    if loader.is_constant(node.input[0]):
        array = loader.constants[node.input[0]]
        if array.dtype != np.float32 or not np.isfinite(array).all():
            raise Unsupported("finite float32 to quantize", f"{array.dtype} {node.input[0]!r}")
        steps, offset = (_spread(v, array, at.get("axis", 1)) for v in (scale, zero))
        codes = np.rint(array / steps) + offset.astype(np.float32)
        made: NDArray[Any] = np.clip(codes, limits.min, limits.max).astype(zero.dtype)
        return made
    if scale.size != 1:
        raise Unsupported("one scale for a computed value", f"{scale.size} scales")
    step, steps_below = np.float32(scale.reshape(-1)[0]), int(zero.reshape(-1)[0]) - limits.min
    value = loader.rounded(loader.value(node, 0), float(step), steps_below)
    loader.codes_of[node.output[0]] = Quantized(value, float(step), steps_below, zero.dtype)
    return None


def dequantize_linear(loader: Loader, node: Any, at: Attributes) -> Made:
    """The value itself, of codes; of a constant its float values, with the codes kept for the layer
    that reads them.
    """
    name, onnx = node.input[0], loader.onnx
    if at.get("output_dtype", 0) not in (0, onnx.TensorProto.FLOAT):
        kinds = {v: k for k, v in onnx.TensorProto.DataType.items()}
        kind = kinds.get(at["output_dtype"], at["output_dtype"])
        raise Unsupported("output_dtype = FLOAT", f"output_dtype = {kind}")
    if not (loader.is_constant(name) or name in loader.codes_of):
        loader.check_known(name)
        raise Unsupported("codes of QuantizeLinear or of a constant", repr(name))
    codes = loader.codes_of.get(name)
    if codes is not None:
        scale, zero = _scale_and_zero(loader, node, _onnx_type(loader, codes.dtype))
        same = scale.size == zero.size == 1 and zero.dtype == codes.dtype
        below = int(zero.reshape(-1)[0]) - int(np.iinfo(codes.dtype).min) if same else -1
        if not same or float(scale.reshape(-1)[0]) != codes.scale or below != codes.zero:
            got = f"{scale.ravel().tolist()} and {zero.dtype} {zero.ravel().tolist()}"
            raise Unsupported(f"QuantizeLinear's own scale {codes.scale} and zero point", got)
        return codes.value
    return _weight(loader, node, at.get("axis", 1))


def _weight(loader: Loader, node: Any, axis: int) -> Made:
    values = loader.constants[node.input[0]]
    if values.dtype not in _CONSTANTS:
        raise Unsupported("integers of 8 bits, or int32", values.dtype)
    scale, zero = _scale_and_zero(loader, node, _onnx_type(loader, values.dtype))
    if zero.dtype != values.dtype:
        raise Unsupported(f"a zero point {values.dtype}", zero.dtype)
    steps, offset = (_spread(v, values, axis) for v in (scale, zero))
    centered = values.astype(np.int64) - offset.astype(np.int64)
    if values.dtype != np.int32:
        along = axis % values.ndim if scale.size > 1 else 0
        loader.codes[node.output[0]] = Codes(centered, scale.reshape(-1).astype(np.float64), along)
    real: NDArray[np.float32] = centered.astype(np.float32) * steps
    return real


def _onnx_type(loader: Loader, dtype: Any) -> int:
    return int(loader.onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))


def _scale_and_zero(loader: Loader, node: Any, output: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Positive float32 scales; zero points, of type `output` (uint8 for 0) where the file has none.

    Raises Unsupported where both are given and contradict each other.
    """
    scale, zero = loader.constant(node, 1), loader.constant(node, 2)
    if scale is None or scale.dtype != np.float32 or scale.ndim > 1:
        got = None if scale is None else f"{scale.dtype} {list(scale.shape)}"
        raise Unsupported("float32 scales, one or one for each index of an axis", got)
    if not (np.isfinite(scale).all() and (scale > 0).all()):
        raise Unsupported("positive scales", f"{scale.min()} in {node.input[1]!r}")
    tensor = loader.onnx.TensorProto
    named = tensor.DataType.Name(output) if output else "UINT8"
    if zero is None:
        known = {**_KINDS, "INT32": np.int32}
        if named not in known:
            raise Unsupported("output_dtype = UINT8 or INT8", f"output_dtype = {named}")
        return scale, np.zeros(scale.shape, known[named])
    if output and _onnx_type(loader, zero.dtype) != output:
        raise Unsupported(f"a zero point of output_dtype = {named}", zero.dtype)
    if zero.shape != scale.shape and not scale.size == zero.size == 1:
        raise Unsupported("as many zero points as scales", f"{zero.shape} and {scale.shape}")
    return scale, zero


def _spread(values: NDArray[Any], over: NDArray[Any], axis: int) -> NDArray[Any]:
    """One number for all, or one for each index along an axis, in a shape that broadcasts."""
    if values.size == 1:
        return values.reshape([1] * over.ndim)
    if not -over.ndim <= axis < over.ndim or over.shape[axis] != values.size:
        raise Unsupported(f"{values.size} scales along an axis", f"axis = {axis} of {over.shape}")
    shape = [1] * over.ndim
    shape[axis] = -1
    return values.reshape(shape)
