# SPDX-License-Identifier: Apache-2.0
"""An ONNX network as a PyTorch module that can be planned, trained, calibrated and compiled."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from ternary_ops.errors import FormatError, UnsupportedModel, need
from ternary_ops.interchange import operators
from ternary_ops.interchange.library import Refused, onnx_library
from ternary_ops.interchange.ranges import Codes, Range, settle_ranges

_DO = "Export the network with the operators of docs/interchange.md, in eval mode."
_LARGEST = 2**31 - 1


def load_onnx(path: str | os.PathLike[str]) -> nn.Module:
    """The network of an .onnx file, in eval mode: a torch.fx.GraphModule of torch.nn layers.

    Its convolutions and linear layers have the names of their weights, so that plans, rules and
    `ternary-ops compress` speak of them as the network they were exported from does. In a QDQ
    network (QuantizeLinear and DequantizeLinear pairs) layers with 8-bit weights become tops.nn
    layers with those codes and ranges, ternary ones where all codes are -1, 0, +1; `tops.compile`
    makes an 8-bit program of it, and training goes on from it.

    Raises FormatError for a file that is no ONNX model, UnsupportedModel naming every node that has
    no counterpart, MissingExtra without the package onnx.
    """
    onnx = onnx_library()
    do = "Pass an .onnx file with one image in and one result out."
    try:
        model = onnx.load(Path(path))
        onnx.checker.check_model(model)
    except FileNotFoundError:
        raise
    except Exception as error:  # protobuf and the checker raise many kinds
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise FormatError(need(f"{path} is an ONNX model", reason, do)) from error
    return Loader(onnx, model).load()


@dataclass
class Loader:
    """State of one load: constants and traced values by their ONNX names."""

    onnx: Any
    model: Any
    constants: dict[str, NDArray[Any]] = field(default_factory=dict)
    values: dict[str, fx.Node] = field(default_factory=dict)
    ranges: dict[fx.Node, Range] = field(default_factory=dict)
    sizes: dict[str, list[Any]] = field(default_factory=dict)
    codes: dict[str, Codes] = field(default_factory=dict)
    quantized: dict[str, Codes] = field(default_factory=dict)

    def load(self) -> nn.Module:
        """Translate every node, in the file's order, which the checker holds to be a valid one."""
        self.root, self.graph = nn.Module(), fx.Graph()
        onnx, graph = self.onnx, self.model.graph
        for tensor in graph.initializer:
            self.constants[tensor.name] = onnx.numpy_helper.to_array(tensor)
        inputs = [value for value in graph.input if value.name not in self.constants]
        if len(inputs) != 1 or len(graph.output) != 1:
            got = f"{len(inputs)} in, {len(graph.output)} out"
            raise UnsupportedModel(need("one input and one output", got, _DO))
        self.values[inputs[0].name] = self.graph.placeholder("x")
        failed = []
        for node in graph.node:
            try:
                self._translate(node)
            except Refused as error:
                failed.append(f"{node.op_type} {node.name or node.output[0]!r}: {error}")
                self._stand_in(node)
        if failed:
            raise UnsupportedModel(need("operators with a counterpart", "; ".join(failed), _DO))
        self.graph.output(self._result(graph.output[0].name))
        made = fx.GraphModule(self.root, self.graph).eval()
        made.graph.eliminate_dead_code()
        made.graph.lint()
        made.recompile()
        settle_ranges(made, self.ranges, self.quantized)
        return made

    def _translate(self, node: Any) -> None:
        if node.domain not in ("", "ai.onnx"):
            raise Refused("operators of ONNX itself", node.domain)
        method: Callable[..., Any] | None = operators.TRANSLATE.get(node.op_type)
        if method is None:
            raise Refused("a known operator", node.op_type)
        at = {a.name: self.onnx.helper.get_attribute_value(a) for a in node.attribute}
        made = method(self, node, at)
        if isinstance(made, fx.Node):
            self.values[node.output[0]] = made
        elif isinstance(made, np.ndarray):
            self.constants[node.output[0]] = made

    def _stand_in(self, node: Any) -> None:
        """What follows a node that failed is translated too, so that one error names them all."""
        for name in node.output:
            self.values[name] = self.graph.placeholder(f"failed_{len(self.values)}")

    def _result(self, name: str) -> fx.Node:
        if name not in self.values:
            raise UnsupportedModel(need("a result that depends on the input", "a constant", _DO))
        return self.values[name]

    # What operators need.

    def value(self, node: Any, number: int) -> fx.Node:
        """The traced value of an input."""
        name = node.input[number]
        if name not in self.values:
            raise Refused(f"input {number} comes from the image", "a constant")
        return self.values[name]

    def constant(self, node: Any, number: int) -> NDArray[Any] | None:
        """The constant of an input; None where it is left out."""
        if number >= len(node.input) or not node.input[number]:
            return None
        name = node.input[number]
        if name not in self.constants:
            raise Refused(f"input {number} is constant", "computed")
        return self.constants[name]

    def tensor(self, node: Any, number: int) -> Tensor:
        """A constant float tensor, float32."""
        array = self.constant(node, number)
        if array is None:
            raise Refused(f"input {number}", "none")
        if array.size > _LARGEST or not np.isfinite(array).all():
            raise Refused("finite weights", "NaN, infinity or too many")
        return torch.from_numpy(np.ascontiguousarray(array, np.float32).copy())

    def is_constant(self, name: str) -> bool:
        """Whether a value does not depend on the image."""
        return name in self.constants

    def call(self, function: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """A call of a function."""
        return self.graph.call_function(function, args, kwargs)

    def layer(self, node: Any, module: nn.Module, x: fx.Node, weight: str = "") -> fx.Node:
        """A call of a new module, named after its weight or node."""
        path = self._path(weight.rpartition(".")[0] or node.name or node.output[0])
        self._put(path, module.eval())
        if weight in self.codes:
            self.quantized[path] = self.codes[weight]
        return self.graph.call_module(path, (x,))

    def _path(self, name: str) -> str:
        parts = [p for p in name.replace("/", ".").replace(":", "_").split(".") if p]
        parts = [p if p.isidentifier() or p.isdigit() else _identifier(p) for p in parts]
        path = ".".join(parts) or "layer"
        taken = {n for n, _ in self.root.named_modules()}
        return (
            path
            if path not in taken
            else next(p for p in (f"{path}_{i}" for i in range(1, 1 << 20)) if p not in taken)
        )

    def _put(self, path: str, module: nn.Module) -> None:
        parent = self.root
        *before, last = path.split(".")
        for part in before:
            if not hasattr(parent, part):
                parent.add_module(part, nn.Module())
            parent = getattr(parent, part)
        parent.add_module(last, module)


def _identifier(text: str) -> str:
    kept = "".join(c if c.isalnum() or c == "_" else "_" for c in text)
    return kept if kept and not kept[0].isdigit() else f"n{kept}"
