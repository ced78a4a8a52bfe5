# SPDX-License-Identifier: Apache-2.0
"""A program as an ONNX graph that stock ONNX Runtime runs."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from ternary_ops._atomic import replace_file
from ternary_ops._version import __version__
from ternary_ops.errors import BadConfig, UnsupportedModel, need
from ternary_ops.interchange.export_layers import LayerWriter, lists
from ternary_ops.interchange.graph_builder import FLOAT, INT32, OPSET, Sheet
from ternary_ops.interchange.onnx_package import Refused
from ternary_ops.program.graph import Graph, Node
from ternary_ops.program.weight import Params
from ternary_ops.reference import activations
from ternary_ops.runtime import Program

FORMS = ("exact", "qdq")
_DO = "Save the program file instead, or leave this operator out of the network."
# Functions of floats that ONNX has an operator for, with the names of its attributes.
_OPERATORS: dict[str, tuple[str, tuple[str, ...]]] = {
    "leaky_relu": ("LeakyRelu", ("alpha",)),
    "hardswish": ("HardSwish", ()),
    "sigmoid": ("Sigmoid", ()),
    "tanh": ("Tanh", ()),
    "elu": ("Elu", ("alpha",)),
    "exp": ("Exp", ()),
}


def save_onnx(program: Program, path: str | os.PathLike[str], form: str = "exact") -> None:
    """Write the program to an .onnx file: float32 [N, C, H, W] in, float32 out; N, H, W are free.

    form "exact": the integer semantics of docs/architecture.md in plain float32 operators (sums of
    8-bit products are integers that float32 holds, or are split until it does), so that ONNX
    Runtime gives the program's bits wherever its values are 8-bit; weights lie in the file as int8.
    form "qdq": QuantizeLinear and DequantizeLinear around float operators, which ONNX Runtime,
    OpenVINO and TensorRT fuse to their own 8-bit kernels; rounds as those do, so codes may differ
    by one.

    Raises UnsupportedModel for nodes that ONNX cannot express so (named, all of them), BadConfig
    for another form, MissingExtra without the package onnx.
    """
    if form not in FORMS:
        raise BadConfig(need(f"form as one of {', '.join(FORMS)}", repr(form), "Pick one."))
    model = _Writer(program, form).model()
    replace_file(Path(path), lambda target: target.write_bytes(model.SerializeToString()))


class _Writer(LayerWriter):
    """Walks the nodes of a program; `names` holds the ONNX value of each."""

    def __init__(self, program: Program, form: str) -> None:
        self.graph: Graph = program.graph
        self.sheet, self.form = Sheet(), form
        self.names: list[str] = []

    def model(self) -> Any:
        """The checked ModelProto."""
        failed = []
        for number, node in enumerate(self.graph.nodes):
            try:
                self.names.append(self._write(number, node))
            except Refused as error:
                failed.append(f"node {number} ({node.op}): {error}")
                self.names.append("")
        if failed:
            raise UnsupportedModel(need("ONNX can express every node", "; ".join(failed), _DO))
        sheet, onnx = self.sheet, self.sheet.onnx
        sheet.add("Identity", self.names[-1])
        sheet.nodes[-1].output[0] = "output"
        first, final = self.graph.values[0], self.graph.values[-1]
        rank = {4: ["N", first.channels, "H", "W"], 2: ["N", first.channels]}[first.rank]
        made = ["N", final.channels or "K", *["H_out", "W_out"][: final.rank - 2]]
        describe = onnx.helper.make_tensor_value_info
        graph = onnx.helper.make_graph(
            sheet.nodes,
            "ternary_ops",
            [describe("input", FLOAT, rank)],
            [describe("output", FLOAT, made)],
            sheet.constants,
        )
        opsets = [onnx.helper.make_opsetid("", OPSET)]
        model = onnx.helper.make_model(
            graph,
            opset_imports=opsets,
            producer_name="ternary_ops",
            producer_version=__version__,
            ir_version=8,
        )
        onnx.checker.check_model(model, full_check=True)
        return model

    def _write(self, number: int, node: Node) -> str:
        if node.op == "input":
            return "input"
        method = getattr(self, f"_{node.op}", None)
        if method is None:
            raise Refused("an operator of ONNX", node.op)
        made: str = method(node, [self.names[j] for j in node.inputs], self._params(node))
        return made

    def _params(self, node: Node) -> list[Params | None]:
        return [self.graph.values[j].y for j in node.inputs]

    # One method a node of a program, named after it.

    def _quantize(self, node: Node, x: list[str], ys: list[Params | None]) -> str:
        y = node.attrs["y"]
        return self.fine_codes(x[0], y) if node.attrs["fine"] else self._codes(x[0], y)

    def _dequantize(self, node: Node, x: list[str], ys: list[Params | None]) -> str:
        return self.sheet.real(x[0], ys[0])

    def _max_pool2d(self, node: Node, x: list[str], ys: list[Params | None]) -> str:
        at = node.attrs
        window = {
            "kernel_shape": at["kernel"],
            "strides": at["stride"],
            "dilations": at["dilation"],
            "pads": [*at["padding"], *at["padding"]],
        }
        return self.sheet.add("MaxPool", x[0], ceil_mode=int(at["ceil"]), **lists(window))

    def _avg_pool2d(self, node: Node, x: list[str], ys: list[Params | None]) -> str:
        """Exact sums by a convolution with ones, then times f32(s / count)."""
        at, sheet = node.attrs, self.sheet
        if at["ceil"]:
            raise Refused("average pools without ceil", "ceil")
        channels = self.graph.values[node.inputs[0]].channels
        if channels is None:
            raise Refused("a known number of channels", "none")
        y, kernel = ys[0], at["kernel"]
        if self.form == "qdq" and at["divisor"] is None:
            window = {"kernel_shape": kernel, "strides": at["stride"]}
            pads = [*at["padding"], *at["padding"]]
            real, counted = sheet.real(x[0], y), int(at["include_pad"])
            options = {"pads": pads, "count_include_pad": counted, **lists(window)}
            return self._codes(sheet.add("AveragePool", real, **options), at["y"])
        summand = x[0] if y is None else sheet.centered(x[0], y[1])
        window = {
            "strides": at["stride"],
            "pads": [*at["padding"], *at["padding"]],
        }
        ones = sheet.constant(np.ones((channels, 1, *kernel)), np.float32, "ones")
        sums = sheet.add("Conv", summand, ones, group=channels, **lists(window))
        if y is not None:
            sums = self.whole(sums)
        scale = np.float32(1 if y is None else y[0])
        if at["divisor"] is not None or at["include_pad"] or at["padding"] == (0, 0):
            count = at["divisor"] or math.prod(kernel)
            mean = sheet.add("Mul", sums, sheet.number(float(scale / np.float32(count))))
        else:
            one = sheet.add("Slice", summand, *(sheet.ends([v]) for v in (0, 1, 1)))
            flat = sheet.add("Add", sheet.add("Mul", one, sheet.number(0)), sheet.number(1))
            single = sheet.constant(np.ones((1, 1, *kernel)), np.float32, "ones")
            count_map = sheet.add("Conv", flat, single, **lists(window))
            mean = sheet.add("Mul", sums, sheet.add("Div", sheet.number(float(scale)), count_map))
        return self._codes(mean, at["y"])

    def _adaptive_avg_pool2d(self, node: Node, x: list[str], ys: list[Params | None]) -> str:
        sheet, y = self.sheet, ys[0]
        if tuple(node.attrs["size"]) != (1, 1):
            raise Refused("a mean over the whole image", node.attrs["size"])
        if self.form == "qdq":
            pooled = sheet.add("GlobalAveragePool", sheet.real(x[0], y))
            return self._codes(pooled, node.attrs["y"])
        summand = x[0] if y is None else sheet.centered(x[0], y[1])
        total = sheet.add("ReduceSum", summand, sheet.ends([2, 3]), keepdims=1)
        shape = sheet.add("Shape", x[0], start=2, end=4)
        pixels = sheet.add("ReduceProd", shape, keepdims=0)
        count = sheet.add("Cast", pixels, to=FLOAT)
        factor = sheet.add("Div", sheet.number(1 if y is None else y[0]), count)
        return self._codes(sheet.add("Mul", total, factor), node.attrs["y"])

    def _add(self, node: Node, x: list[str], ys: list[Params | None]) -> str:
        return self._finish(self.sheet.add("Add", *self._reals(x, ys)), node)

    def _mul(self, node: Node, x: list[str], ys: list[Params | None]) -> str:
        return self._finish(self.sheet.add("Mul", *self._reals(x, ys)), node)

    def _clamp(self, node: Node, x: list[str], ys: list[Params | None]) -> str:
        return self._finish(self.sheet.real(x[0], ys[0]), node)

    def _activation(self, node: Node, x: list[str], ys: list[Params | None]) -> str:
        """Of codes: the table of 256 values; of floats: ONNX's own operator."""
        fn, params, y = node.attrs["fn"], node.attrs["params"], ys[0]
        if y is not None:
            table = self.sheet.constant(activations.over_codes(fn, params, *y), np.float32, "table")
            number = self.sheet.add("Cast", x[0], to=INT32)
            return self._codes(self.sheet.add("Gather", table, number), node.attrs["y"])
        if fn == "affine":
            scaled = self.sheet.add("Mul", x[0], self.sheet.number(params[0]))
            return self.sheet.add("Add", scaled, self.sheet.number(params[1]))
        if fn == "silu":
            return self.sheet.add("Mul", x[0], self.sheet.add("Sigmoid", x[0]))
        if fn == "hardsigmoid":
            return self.sheet.add("HardSigmoid", x[0], alpha=1 / 6, beta=0.5)
        if fn not in _OPERATORS:
            raise Refused("a function of floats that ONNX has", fn)
        op, names = _OPERATORS[fn]
        return self.sheet.add(op, x[0], **dict(zip(names, map(float, params), strict=True)))

    def _concat(self, node: Node, x: list[str], ys: list[Params | None]) -> str:
        y = node.attrs["y"]
        parts = [
            name if y == own else self._codes(self.sheet.real(name, own), y)
            for name, own in zip(x, ys, strict=True)
        ]
        return self.sheet.add("Concat", *parts, axis=1)

    def _slice(self, node: Node, x: list[str], ys: list[Params | None]) -> str:
        limits = (self.sheet.ends([v]) for v in (node.attrs["begin"], node.attrs["end"], 1))
        return self.sheet.add("Slice", x[0], *limits)

    def _flatten(self, node: Node, x: list[str], ys: list[Params | None]) -> str:
        return self.sheet.add("Flatten", x[0], axis=1)

    def _unflatten(self, node: Node, x: list[str], ys: list[Params | None]) -> str:
        return self.sheet.add("Unsqueeze", x[0], self.sheet.ends([2, 3]))

    def _pixel_shuffle(self, node: Node, x: list[str], ys: list[Params | None]) -> str:
        (a, b), crop = node.attrs["factor"], tuple(node.attrs["crop"])
        if a != b or crop != (0, 0):
            raise Refused("equal factors and no crop", (a, b, *crop))
        real = self.sheet.real(x[0], ys[0]) if ys[0] else x[0]
        moved = self.sheet.add("DepthToSpace", real, blocksize=a, mode="CRD")
        return self._codes(moved, ys[0])

    def _channel_shuffle(self, node: Node, x: list[str], ys: list[Params | None]) -> str:
        channels, groups = self.graph.values[node.inputs[0]].channels, node.attrs["groups"]
        sheet = self.sheet
        if channels is None:
            raise Refused("a known number of channels", "none")
        order = np.arange(channels).reshape(groups, -1).T.ravel()
        return sheet.add("Gather", x[0], sheet.ends(list(order)), axis=1)

    def _resize(self, node: Node, x: list[str], ys: list[Params | None]) -> str:
        """Nearest neighbours by a whole factor move codes; other factors round in their own way."""
        at, y = node.attrs, ys[0]
        zoom = at["zoom"]
        if at["mode"] == "bilinear" and zoom is None:
            size = self.sheet.ends(at["size"]) if len(x) == 1 else self.sheet.part_of_shape(x[1], 2)
            steps = x[0] if y is None else self.sheet.centered(x[0], y[1])
            stretch = self.sheet.blended if self.form == "exact" else self.sheet.stretched
            out = stretch(steps, size, at["align"])
            return out if y is None else self.sheet.codes(out, (1.0, y[1]))
        whole = zoom is not None and all(float(z).is_integer() and z >= 1 for z in zoom)
        if at["mode"] != "nearest" or not whole:
            got = f"{at['mode']}, {zoom or at['size'] or 'the size of another value'}"
            raise Refused("a bilinear resize to a size, or nearest by a whole factor", got)
        scales = self.sheet.constant(np.asarray([1, 1, *zoom]), np.float32)
        return self.sheet.add(
            *("Resize", x[0], "", scales),
            mode="nearest",
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        )

    def _layer_norm(self, node: Node, x: list[str], ys: list[Params | None]) -> str:
        """Over the channels, which ONNX wants last."""
        weight, sheet, rank = (
            self.graph.weight(node),
            self.sheet,
            self.graph.values[node.inputs[0]].rank,
        )
        factor = sheet.constant(weight.array.ravel(), np.float32, "weight")
        bias = [] if weight.bias is None else [sheet.constant(weight.bias, np.float32, "bias")]
        last = x[0] if rank == 2 else sheet.add("Transpose", x[0], perm=[0, 2, 3, 1])
        out = sheet.add("LayerNormalization", last, factor, *bias, epsilon=node.attrs["eps"])
        return out if rank == 2 else sheet.add("Transpose", out, perm=[0, 3, 1, 2])

    def _softmax(self, node: Node, x: list[str], ys: list[Params | None]) -> str:
        return self.sheet.add("Softmax", x[0], axis=1)
