# SPDX-License-Identifier: Apache-2.0
"""Convolutions and linear layers of a program as ONNX nodes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ternary_ops.interchange.export_node import NodeExport, writes
from ternary_ops.interchange.graph_builder import FLOAT, lists
from ternary_ops.interchange.onnx_package import Unsupported
from ternary_ops.layout import codes
from ternary_ops.layout.codes import FINE_PARTS
from ternary_ops.program.weight import Array, Params

_EXACT = 2**24  # float32 holds every integer up to here


@writes("conv2d")
@writes("linear")
def layer(e: NodeExport) -> str:
    """Sums, scale, bias, gate, residual, slopes, bounds, in the order of docs/architecture.md."""
    weight, out, rank, y = e.node.weight, e.out, e.value.rank, e.y
    filters: Array = codes.channels_first(weight.array)
    if rank != 4:
        filters = filters[:, :, 0, 0]
    integer, fine = weight.kind != "float", e.node.inputs[0].fine
    if fine and e.exact:
        filters = np.concatenate([filters, np.rint(filters / FINE_PARTS).astype(np.int8)], 1)
    if integer and not e.exact:
        total = _fused_sums(e, filters)
    else:
        total = _exact_sums(e, e.x[0], y, filters)
        if integer:
            total = out.add("Mul", total, out.channels(weight.effective_scale(y), rank))
        if weight.bias is not None:
            total = out.add("Add", total, out.channels(weight.bias, rank))
    others = e.reals(1)
    if e.node.at.get("gate"):
        total = out.add("Mul", out.add("Sigmoid", total), others.pop(0))
    if others:
        total = out.add("Add", total, others[0])
    if weight.slope is not None and len(weight.slope) == 1:
        total = out.add("LeakyRelu", total, alpha=float(weight.slope[0]))
    elif weight.slope is not None:
        total = out.add("PRelu", total, out.channels(weight.slope, rank))
    return e.finish(total)


def _fused_sums(e: NodeExport, filters: Array) -> str:
    """Integer filters whose scale belongs to the weight: what fuses to an 8-bit kernel."""
    weight, y = e.node.weight, e.y
    real = _qdq(e, filters, np.int8, weight.scale)
    bias: NDArray[np.float32] | str | None = weight.bias
    if isinstance(bias, np.ndarray) and y is not None:
        step = weight.effective_scale(y)
        steps = _steps(bias, step)
        bias = bias if steps is None else _qdq(e, steps, np.int32, step)
    if e.node.inputs[0].fine and y is not None:
        return _fine_sums(e, e.x[0], y, real, bias)
    return _sums(e, e.out.real(e.x[0], y), real, bias)


def _fine_sums(
    e: NodeExport, x: str, y: Params, w: str, bias: NDArray[np.float32] | str | None
) -> str:
    """First and second codes apart, in 8 bits each."""
    out, channels = e.out, e.node.weight.shape[3]
    sums = []
    for begin, scale in ((0, y[0]), (channels, y[0] / FINE_PARTS)):
        limits = out.ends([begin]), out.ends([begin + channels]), out.ends([1])
        real = out.real(out.add("Slice", x, *limits), (scale, y[1]))
        sums.append(_sums(e, real, w, None if begin else bias))
    return out.add("Add", *sums)


def _qdq(e: NodeExport, values: Array, dtype: type[np.integer], scale: Array | None) -> str:
    """Integers times a scale for each of the first axis."""
    stored = e.out.constant(values, dtype, "weight")
    zero = e.out.constant(np.zeros(len(values)), dtype)
    scales = e.out.constant(scale, np.float32, "scale")
    return e.out.add("DequantizeLinear", stored, scales, zero, axis=0)


def _exact_sums(e: NodeExport, x: str, y: Params | None, filters: Array) -> str:
    """Accumulators as float32; of codes in parts of the input channels that stay exact."""
    out = e.out
    if y is None:
        real = out.constant(filters, filters.dtype, "weight")
        real = real if filters.dtype == np.float32 else out.add("Cast", real, to=FLOAT)
        return _sums(e, x, real, None)
    x = out.centered(x, y[1])
    parts = _exact_parts(filters)
    if len(parts) > 1 and e.node.at.get("groups", 1) > 1:
        raise Unsupported("groups of at most 2**24 / 255", "larger ones")
    axis = 1 if e.value.rank != 3 else 2
    sums = []
    for begin, end in parts:
        stored = out.constant(filters[:, begin:end], np.int8, "weight")
        part = x
        if len(parts) > 1:
            part = out.add("Slice", x, out.ends([begin]), out.ends([end]), out.ends([axis]))
        sums.append(_sums(e, part, out.add("Cast", stored, to=FLOAT), None))
    return e.whole(*sums)


def _sums(e: NodeExport, x: str, w: str, bias: NDArray[np.float32] | str | None) -> str:
    out, at = e.out, e.node.at
    if isinstance(bias, np.ndarray):
        bias = out.constant(bias, np.float32, "bias")
    extra = [] if bias is None else [bias]
    if e.value.rank == 2:
        return out.add("Gemm", x, w, *extra, transB=1)
    if e.value.rank == 3:
        sums = out.add("MatMul", x, out.add("Transpose", w, perm=[1, 0]))
        return out.add("Add", sums, *extra) if extra else sums
    window = {"strides": at["stride"], "dilations": at["dilation"], "group": at["groups"]}
    ends = [p + more for p, more in zip(at["padding"], at["more_padding"], strict=True)]
    pads = [*at["padding"], *ends]
    return out.add("Conv", x, w, *extra, pads=pads, **lists(window))


def _steps(bias: NDArray[np.float32], step: NDArray[np.float32]) -> NDArray[np.int64] | None:
    """The bias in units of the accumulator, as 8-bit kernels add it; None where int32 does not hold
    it, or a unit is 0: then it stays float32.
    """
    limit = 2.0**31 - 1
    with np.errstate(divide="ignore", invalid="ignore"):
        steps = np.rint(bias.astype(np.float64) / step)
    if not (np.abs(steps) <= limit).all():
        return None
    whole: NDArray[np.int64] = steps.astype(np.int64)
    return whole


def _exact_parts(filters: Array) -> list[tuple[int, int]]:
    """Ranges of input channels over which no sum of 255 * |w| passes what float32 holds."""
    heaviest = np.abs(filters.astype(np.int64)).reshape(*filters.shape[:2], -1).sum(2).max(0)
    parts, begin, total = [], 0, 0
    for channel, weight in enumerate(heaviest.tolist()):
        if total + 255 * weight > _EXACT and channel > begin:
            parts.append((begin, channel))
            begin, total = channel, 0
        total += 255 * weight
    return [*parts, (begin, filters.shape[1])]
