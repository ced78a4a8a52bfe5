# SPDX-License-Identifier: Apache-2.0
"""Sizes of the values of an ONNX graph, as far as the file tells them."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, TypeAlias

from ternary_ops.errors import FormatError, need

# One entry an axis: a number, a name that stands for one, or None.
Dims: TypeAlias = "tuple[int | str | None, ...]"
_SMALL = 64  # larger constants say nothing about shapes


class Shapes:
    """Shapes inferred from the input's sizes and the operators; the file's own annotations of inner
    values are not trusted.

    Raises FormatError for a graph that contradicts itself.
    """

    def __init__(self, onnx: Any, model: Any) -> None:
        self._onnx, self._model = onnx, model
        self._graph = _without_weights(onnx, model)
        self._constants: dict[str, Dims] = {t.name: tuple(t.dims) for t in model.graph.initializer}
        self._dims = self._infer(self._graph)

    def dims(self, name: str) -> Dims | None:
        """Shape of a value; None where not even its rank is known."""
        return self._dims.get(name)

    def tell(self, name: str, dims: Sequence[int | None]) -> None:
        """Record the shape that a reader found, for the shapes that depend on it."""
        if name not in self._dims:
            info = self._onnx.helper.make_tensor_value_info(name, 0, list(dims))
            self._graph.graph.value_info.append(info)
            self._dims = self._infer(self._graph)

    def empty_axes(self, name: str) -> list[int]:
        """Axes of size 0, if a 0 among the input's sizes does not mean any size."""
        return [axis for axis, size in enumerate(self._literal.get(name, ())) if size == 0]

    @functools.cached_property
    def _literal(self) -> dict[str, Dims]:
        inputs = [_dims(value) or () for value in self._model.graph.input]
        if not any(0 in dims for dims in inputs):
            return {}
        return self._infer(_without_weights(self._onnx, self._model, least=0))

    def _infer(self, graph: Any) -> dict[str, Dims]:
        try:
            found = self._onnx.shape_inference.infer_shapes(graph, data_prop=True).graph
        except self._onnx.shape_inference.InferenceError as error:
            reason = str(error).partition("\n")[0]
            what, do = "an ONNX graph whose shapes fit together", "Export the network anew."
            raise FormatError(need(what, reason, do)) from error
        known = dict(self._constants)
        for value in (*found.input, *found.value_info, *found.output):
            made = _dims(value)
            if made is not None:
                known[value.name] = made
        return known


def _without_weights(onnx: Any, model: Any, least: int = 1) -> Any:
    """The graph with large constants as inputs, so that nothing large is copied; sizes of the input
    below `least` are unknown ones.
    """
    light = onnx.ModelProto(ir_version=model.ir_version)
    light.opset_import.extend(model.opset_import)
    light.functions.extend(model.functions)
    graph = light.graph
    graph.name = model.graph.name
    graph.node.extend(model.graph.node)
    graph.input.extend(model.graph.input)
    for value in graph.input:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_value < least:  # some exporters write 0 for "any"
                dim.ClearField("dim_value")
    named = {value.name for value in model.graph.input}
    for tensor in model.graph.initializer:
        if math.prod(tensor.dims) <= _SMALL:
            graph.initializer.append(tensor)
        elif tensor.name not in named:
            info = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            graph.input.append(info)
    graph.output.extend(onnx.ValueInfoProto(name=value.name) for value in model.graph.output)
    return light


def _dims(value: Any) -> Dims | None:
    kind = value.type
    if kind.WhichOneof("value") != "tensor_type" or not kind.tensor_type.HasField("shape"):
        return None
    return tuple(
        d.dim_value if d.WhichOneof("value") == "dim_value" else d.dim_param or None
        for d in kind.tensor_type.shape.dim
    )
