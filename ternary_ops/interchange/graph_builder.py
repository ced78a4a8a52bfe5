# SPDX-License-Identifier: Apache-2.0
"""An ONNX graph while it is written: nodes, constants, and the steps that every form shares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ternary_ops.interchange.onnx_package import onnx_library
from ternary_ops.program.weight import Params

FLOAT, UINT8, INT8, INT32, INT64 = 1, 2, 3, 6, 7  # onnx.TensorProto
# ReduceSum with axes as an input, LayerNormalization, Pad, Clip of integers; ONNX Runtime 1.14 on.
OPSET = 17


class GraphBuilder:
    """Collects nodes and constants; every method returns the name of the value it made."""

    def __init__(self) -> None:
        self.onnx = onnx_library()
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self._known: dict[Any, str] = {}
        self._count = 0

    def add(self, op: str, *inputs: str, **attributes: Any) -> str:
        """One node with one output."""
        self._count += 1
        name = f"{op}_{self._count}"
        self.nodes.append(
            self.onnx.helper.make_node(op, list(inputs), [name], name=name, **attributes)
        )
        return name

    def constant(self, values: Any, dtype: Any, hint: str = "c") -> str:
        """A constant tensor; equal ones are kept once."""
        array: NDArray[Any] = np.ascontiguousarray(values, dtype)
        shape = np.shape(values)
        key = (array.dtype.str, shape, array.tobytes())
        if key not in self._known:
            name = f"{hint}_{len(self.constants)}"
            made = self.onnx.numpy_helper.from_array(array.reshape(shape), name)
            self.constants.append(made)
            self._known[key] = name
        return self._known[key]

    def number(self, value: float, dtype: Any = np.float32) -> str:
        """A constant of no axes."""
        return self.constant(np.asarray(value, dtype), dtype)

    def channels(self, values: NDArray[np.float32], rank: int) -> str:
        """A vector over the channels of an image, or of rows or tokens, where they come last."""
        return self.constant(values.reshape(-1, 1, 1) if rank == 4 else values, np.float32)

    def real(self, value: str, y: Params | None) -> str:
        """Dequantized value: f32(q - zp) * s; a float value as it is."""
        if y is None:
            return value
        return self.add("DequantizeLinear", value, self.number(y[0]), self.number(y[1], np.uint8))

    def centered(self, value: str, zp: int) -> str:
        """q - zp as float32, an exact integer."""
        wide = self.add("Cast", value, to=FLOAT)
        return wide if zp == 0 else self.add("Sub", wide, self.number(zp))

    def clamped(self, value: str, lo: float | None, hi: float | None) -> str:
        """min(max(x, lo), hi) of floats."""
        if lo == 0.0 and hi is None:
            return self.add("Relu", value)
        if lo is not None:
            value = self.add("Max", value, self.number(lo))
        return value if hi is None else self.add("Min", value, self.number(hi))

    def codes(self, value: str, y: Params) -> str:
        """The last line of the integer semantics: clamp(rint(x * f32(1 / s)) + zp, 0, 255)."""
        inverse = np.float32(1) / np.float32(y[0])
        steps = self.add("Round", self.add("Mul", value, self.number(float(inverse))))
        steps = self.add("Add", steps, self.number(y[1])) if y[1] else steps
        kept = self.add("Clip", steps, self.number(0), self.number(255))
        return self.add("Cast", kept, to=UINT8)

    def part_of_shape(self, value: str, first: int) -> str:
        """Two sizes of an image: from 0 batch and channels, from 2 height and width."""
        limits = self.ends([first]), self.ends([first + 2]), self.ends([0])
        return self.add("Slice", self.add("Shape", value), *limits)

    def resized(self, value: str, size: str, align: bool, mode: str = "linear") -> str:
        """ONNX's own resize of floats to a height and width, "linear" or "cubic"."""
        sizes = self.add("Concat", self.part_of_shape(value, 0), size, axis=0)
        corners = "align_corners" if align else "half_pixel"
        return self.add(
            "Resize", value, "", "", sizes, mode=mode, coordinate_transformation_mode=corners
        )

    def bilinear(self, value: str, size: str, align: bool) -> str:
        """Bilinear resize in the steps of reference.resize; an engine's own has other bits."""
        (top, bottom, h0, h1), (left, right, w0, w1) = (
            self._samples(value, size, axis, align) for axis in (2, 3)
        )
        column = self.ends([1])
        h0, h1 = (self.add("Unsqueeze", h, column) for h in (h0, h1))
        rows = []
        for lines in (top, bottom):
            row = self.add("Gather", value, lines, axis=2)
            near = self.add("Mul", self.add("Gather", row, left, axis=3), w0)
            far = self.add("Mul", self.add("Gather", row, right, axis=3), w1)
            rows.append(self.add("Add", near, far))
        return self.add("Add", self.add("Mul", rows[0], h0), self.add("Mul", rows[1], h1))

    def _samples(self, value: str, size: str, axis: int, align: bool) -> tuple[str, str, str, str]:
        """Both input pixels of each output pixel along an axis, and their weights
        (reference.bilinear_positions).
        """
        whole, half, one = self.number(1, np.int64), self.number(0.5), self.number(1)
        length = self.add("Gather", self.add("Shape", value), self.number(axis, np.int64), axis=0)
        made = self.add("Gather", size, self.number(axis - 2, np.int64), axis=0)
        places = self.add("Range", self.number(0, np.int64), made, whole)
        last = self.add("Sub", length, whole)
        at, n, out = (self.add("Cast", v, to=FLOAT) for v in (places, length, made))
        if align:
            spans = self.add("Max", self.add("Sub", out, one), one)
            at = self.add("Mul", at, self.add("Div", self.add("Sub", n, one), spans))
        else:
            at = self.add("Mul", self.add("Add", at, half), self.add("Div", n, out))
            at = self.add("Max", self.add("Sub", at, half), self.number(0))
        first = self.add("Min", self.add("Cast", at, to=INT64), last)
        second = self.add("Min", self.add("Add", first, whole), last)
        share = self.add("Sub", at, self.add("Cast", first, to=FLOAT))
        share = self.add("Clip", share, self.number(0), one)
        return first, second, self.add("Sub", one, share), share

    def ends(self, values: Sequence[int]) -> str:
        """A list of sizes, axes or limits."""
        return self.constant(np.asarray(values), np.int64)


def lists(attributes: dict[str, Any]) -> dict[str, Any]:
    """Attributes of an ONNX node: tuples as lists."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in attributes.items()}
