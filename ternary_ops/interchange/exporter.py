# SPDX-License-Identifier: Apache-2.0
"""A program as an ONNX graph that stock ONNX Runtime runs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ternary_ops._atomic import replace_file
from ternary_ops._version import __version__
from ternary_ops.errors import BadConfig, UnsupportedModel, need
from ternary_ops.interchange import (  # noqa: F401 - register writers
    export_axes,
    export_layers,
    export_ops,
    export_products,
)
from ternary_ops.interchange.export_node import WRITERS, NodeExport
from ternary_ops.interchange.graph_builder import FLOAT, OPSET, GraphBuilder
from ternary_ops.interchange.onnx_package import Unsupported
from ternary_ops.program.graph import Graph, Node, Value
from ternary_ops.runtime import Program

FORMS = ("exact", "qdq")
_DO = "Save the program file instead, or leave this operator out of the network."


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
    model = _model(program.graph, form == "exact")
    replace_file(Path(path), lambda target: target.write_bytes(model.SerializeToString()))


def _model(graph: Graph, exact: bool) -> Any:
    """The checked ModelProto; raises UnsupportedModel that names every node ONNX cannot express."""
    names: list[str] = []
    out, failed = GraphBuilder(), []
    for number, node in enumerate(graph.nodes):
        try:
            inputs = tuple(names[j] for j in node.inputs)
            bound, value = graph.bound_nodes[number], graph.values[number]
            names.append(_write(node, NodeExport(bound, value, inputs, out, exact)))
        except Unsupported as error:
            failed.append(f"node {number} ({node.op}): {error}")
            names.append("")
    if failed:
        raise UnsupportedModel(need("nodes that ONNX can express", "; ".join(failed), _DO))
    out.add("Identity", names[-1])
    out.nodes[-1].output[0] = "output"
    size = graph.nodes[0].attrs["size"]
    first, final = _axes(graph.values[0], "", size), _axes(graph.values[-1], "_out")
    return _checked(out, first, final)


def _write(node: Node, export: NodeExport) -> str:
    write = WRITERS.get(node.op)
    if write is None:
        raise Unsupported("an operator of ONNX", node.op)
    return write(export)


def _checked(out: GraphBuilder, first: list[Any], final: list[Any]) -> Any:
    onnx = out.onnx
    describe = onnx.helper.make_tensor_value_info
    made = onnx.helper.make_graph(
        out.nodes,
        "ternary_ops",
        [describe("input", FLOAT, first)],
        [describe("output", FLOAT, final)],
        out.constants,
    )
    model = onnx.helper.make_model(
        made,
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
        producer_name="ternary_ops",
        producer_version=__version__,
        ir_version=8,
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def _axes(value: Value, suffix: str, size: Sequence[int] | None = None) -> list[Any]:
    """Sizes of an end of the graph: numbers, and names of those that are free."""
    channels = value.channels or "K"
    free = [f"L{suffix}"] if value.rank == 3 else [f"H{suffix}", f"W{suffix}"]
    sizes: list[Any] = free if size is None else list(size)
    if value.rank == 3:
        return ["N", *sizes, channels]
    return ["N", channels, *sizes][: value.rank]
