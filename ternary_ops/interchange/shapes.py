# SPDX-License-Identifier: Apache-2.0
"""Sizes of the values of an ONNX graph, as far as the file tells them."""

from __future__ import annotations

from typing import Any, TypeAlias

from ternary_ops.errors import FormatError, need

# One entry an axis: a number, a name that stands for one, or None.
Dims: TypeAlias = "tuple[int | str | None, ...]"
_SMALL = 64  # larger constants say nothing about shapes


def infer_dims(onnx: Any, model: Any) -> dict[str, Dims]:
    """By name, for every value whose number of axes is known.

    What follows from input and operators; the file's own notes on inner values are not believed.
    Raises FormatError for a graph that contradicts itself.
    """
    known = _without_weights(onnx, model)
    try:
        found = onnx.shape_inference.infer_shapes(known, data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        reason = str(error).partition("\n")[0]
        what, do = "an ONNX graph whose shapes fit together", "Export the network anew."
        raise FormatError(need(what, reason, do)) from error
    graph = found.graph
    dims = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        made = _dims(value)
        if made is not None:
            dims[value.name] = made
    return dims


def _without_weights(onnx: Any, model: Any) -> Any:
    """The graph with large constants as inputs, so that nothing large is copied."""
    light = onnx.ModelProto(ir_version=model.ir_version)
    light.opset_import.extend(model.opset_import)
    light.functions.extend(model.functions)
    graph = light.graph
    graph.name = model.graph.name
    graph.node.extend(model.graph.node)
    graph.input.extend(model.graph.input)
    named = {value.name for value in model.graph.input}
    for tensor in model.graph.initializer:
        size = 1
        for n in tensor.dims:
            size *= n
        if size <= _SMALL:
            graph.initializer.append(tensor)
        elif tensor.name not in named:
            info = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            graph.input.append(info)
    for value in model.graph.output:
        free = onnx.ValueInfoProto(name=value.name)
        graph.output.append(free)
    return light


def _dims(value: Any) -> Dims | None:
    kind = value.type
    if kind.WhichOneof("value") != "tensor_type" or not kind.tensor_type.HasField("shape"):
        return None
    return tuple(
        d.dim_value if d.WhichOneof("value") == "dim_value" else d.dim_param or None
        for d in kind.tensor_type.shape.dim
    )
