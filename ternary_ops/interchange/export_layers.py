# SPDX-License-Identifier: Apache-2.0
"""Convolutions and linear layers of a program as ONNX nodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ternary_ops.interchange.graph_builder import FLOAT, INT32, Sheet
from ternary_ops.interchange.onnx_package import Refused
from ternary_ops.layout import codes
from ternary_ops.layout.codes import FINE_PARTS
from ternary_ops.program.graph import Graph, Node
from ternary_ops.program.weight import Array, Params

_EXACT = 2**24  # float32 holds every integer up to here


class LayerWriter:
    """What a walk through a program needs for its layers."""

    graph: Graph
    sheet: Sheet
    form: str

    def _finish(self, value: str, node: Node) -> str:
        lo, hi = node.attrs.get("clamp", (None, None))
        return self._codes(self.sheet.clamped(value, lo, hi), node.attrs["y"])

    def _codes(self, value: str, y: Params | None) -> str:
        if y is None:
            return value
        if self.form == "exact":
            return self.sheet.codes(value, y)
        scale, zp = self.sheet.number(y[0]), self.sheet.number(y[1], np.uint8)
        return self.sheet.add("QuantizeLinear", value, scale, zp)

    def _reals(self, names: Sequence[str], ys: Sequence[Params | None]) -> list[str]:
        return [self.sheet.real(name, y) for name, y in zip(names, ys, strict=True)]

    def _conv2d(self, node: Node, x: list[str], ys: list[Params | None]) -> str:
        return self._layer(node, x, ys, 4)

    def _linear(self, node: Node, x: list[str], ys: list[Params | None]) -> str:
        return self._layer(node, x, ys, 2)

    def _layer(self, node: Node, x: list[str], ys: list[Params | None], rank: int) -> str:
        weight, sheet = self.graph.weight(node), self.sheet
        filters: Array = codes.channels_first(weight.array)
        if rank == 2:
            filters = filters[:, :, 0, 0]
        y, integer = ys[0], weight.kind != "float"
        fine = self.graph.values[node.inputs[0]].fine
        if fine and self.form == "exact":
            filters = np.concatenate([filters, np.rint(filters / FINE_PARTS).astype(np.int8)], 1)
        if self.form == "qdq" and integer:
            # The scale belongs to the weight: what fuses to an 8-bit kernel.
            real = self._qdq(filters, np.int8, weight.scale)
            bias: NDArray[np.float32] | str | None = weight.bias
            if isinstance(bias, np.ndarray) and y is not None:
                step = weight.effective_scale(y)
                steps = _steps(bias, step)
                bias = bias if steps is None else self._qdq(steps, np.int32, step)
            if fine and y is not None:
                out = self._fine_sums(node, x[0], y, real, bias)
            else:
                out = self._sums(node, sheet.real(x[0], y), real, rank, bias)
        else:
            out = self._exact_sums(node, x[0], y, filters, rank)
            if integer:
                out = sheet.add("Mul", out, sheet.channels(weight.effective_scale(y), rank))
            if weight.bias is not None:
                out = sheet.add("Add", out, sheet.channels(weight.bias, rank))
        others = [sheet.real(name, own) for name, own in zip(x[1:], ys[1:], strict=True)]
        if node.attrs.get("gate"):
            out = sheet.add("Mul", sheet.add("Sigmoid", out), others.pop(0))
        if others:
            out = sheet.add("Add", out, others[0])
        if weight.slope is not None and len(weight.slope) == 1:
            out = sheet.add("LeakyRelu", out, alpha=float(weight.slope[0]))
        elif weight.slope is not None:
            out = sheet.add("PRelu", out, sheet.channels(weight.slope, rank))
        return self._finish(out, node)

    def fine_codes(self, value: str, y: Params) -> str:
        """Eleven bits (reference.quantize_fine): all first codes, then all second ones."""
        sheet, (scale, zp) = self.sheet, y
        inverse = sheet.number(float(np.float32(1) / np.float32(scale)))
        limits = sheet.number(-1024), sheet.number(1024)
        steps = sheet.add("Clip", sheet.add("Mul", value, inverse), *limits)
        whole = sheet.add("Round", steps)
        parts = sheet.add("Sub", steps, whole)
        both = sheet.codes(whole, (1.0, zp)), sheet.codes(parts, (1 / FINE_PARTS, zp))
        return sheet.add("Concat", *both, axis=1)

    def _fine_sums(
        self, node: Node, x: str, y: Params, w: str, bias: NDArray[np.float32] | str | None
    ) -> str:
        """First and second codes apart, in 8 bits each."""
        sheet, channels = self.sheet, self.graph.weight(node).shape[3]
        sums = []
        for begin, scale in ((0, y[0]), (channels, y[0] / FINE_PARTS)):
            limits = sheet.ends([begin]), sheet.ends([begin + channels]), sheet.ends([1])
            real = sheet.real(sheet.add("Slice", x, *limits), (scale, y[1]))
            sums.append(self._sums(node, real, w, 4, None if begin else bias))
        return sheet.add("Add", *sums)

    def _qdq(self, values: Array, dtype: Any, scale: Any) -> str:
        """Integers times a scale for each of the first axis."""
        stored = self.sheet.constant(values, dtype, "weight")
        zero = self.sheet.constant(np.zeros(len(values)), dtype)
        scales = self.sheet.constant(scale, np.float32, "scale")
        return self.sheet.add("DequantizeLinear", stored, scales, zero, axis=0)

    def _exact_sums(self, node: Node, x: str, y: Params | None, filters: Array, rank: int) -> str:
        """Accumulators as float32; of codes in parts of the input channels that stay exact."""
        sheet = self.sheet
        if y is None:
            real = sheet.constant(filters, filters.dtype, "weight")
            real = real if filters.dtype == np.float32 else sheet.add("Cast", real, to=FLOAT)
            return self._sums(node, x, real, rank, None)
        x = sheet.centered(x, y[1])
        parts = _exact_parts(filters)
        groups = node.attrs["groups"] if rank == 4 else 1
        if len(parts) > 1 and groups > 1:
            raise Refused("groups of at most 2**24 / 255", "larger ones")
        sums = []
        for begin, end in parts:
            stored = sheet.constant(filters[:, begin:end], np.int8, "weight")
            part = x
            if len(parts) > 1:
                limits = sheet.ends([begin]), sheet.ends([end]), sheet.ends([1])
                part = sheet.add("Slice", x, *limits)
            made = self._sums(node, part, sheet.add("Cast", stored, to=FLOAT), rank, None)
            sums.append(made)
        return self.whole(*sums)

    def whole(self, *sums: str) -> str:
        """Their sum by way of integers: ONNX Runtime would multiply the scale that follows into the
        weights, and float32 does not hold the sum of all parts.
        """
        total = self.sheet.add("Cast", sums[0], to=INT32)
        for other in sums[1:]:
            total = self.sheet.add("Add", total, self.sheet.add("Cast", other, to=INT32))
        return self.sheet.add("Cast", total, to=FLOAT)

    def _sums(
        self, node: Node, x: str, w: str, rank: int, bias: NDArray[np.float32] | str | None
    ) -> str:
        if isinstance(bias, np.ndarray):
            bias = self.sheet.constant(bias, np.float32, "bias")
        extra = [] if bias is None else [bias]
        if rank == 2:
            return self.sheet.add("Gemm", x, w, *extra, transB=1)
        at = node.attrs
        window = {"strides": at["stride"], "dilations": at["dilation"], "group": at["groups"]}
        pads = [*at["padding"], *at["padding"]]
        return self.sheet.add("Conv", x, w, *extra, pads=pads, **lists(window))


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


def lists(attributes: dict[str, Any]) -> dict[str, Any]:
    """Attributes of an ONNX node: tuples as lists."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in attributes.items()}
