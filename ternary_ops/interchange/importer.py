# SPDX-License-Identifier: Apache-2.0
"""An ONNX network as a PyTorch module that can be planned, trained, calibrated and compiled."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from ternary_ops.errors import FormatError, UnsupportedModel, need
from ternary_ops.interchange import paths
from ternary_ops.interchange.import_ops import RULES
from ternary_ops.interchange.import_ranges import Codes, Range, settle_ranges
from ternary_ops.interchange.onnx_package import Refused, UnknownInput, onnx_library
from ternary_ops.interchange.quantizers import Quantized
from ternary_ops.interchange.rules import admit
from ternary_ops.interchange.shapes import Dims, Shapes

_DO = "Export the network with the operators of docs/interchange.md, in float32 and eval mode."
_LARGEST = 2**31 - 1


def load_onnx(path: str | os.PathLike[str]) -> nn.Module:
    """The network of an .onnx file, in eval mode: a torch.fx.GraphModule of torch.nn layers.

    Its convolutions and linear layers have the names of their weights, so that plans, rules and
    `ternary-ops compress` speak of them as the network they were exported from does. In a QDQ
    network (QuantizeLinear and DequantizeLinear pairs) layers with 8-bit weights become tops.nn
    layers with those codes and ranges, ternary ones where all codes are -1, 0, +1; `tops.compile`
    makes an 8-bit program of it, and training goes on from it. What else reads an 8-bit value gets
    it from torch.fake_quantize_per_tensor_affine, rounded and clipped.

    Raises FormatError for a file that is no ONNX model, UnsupportedModel naming every node that has
    no counterpart, with the attribute and value or the input it stumbles over; MissingExtra without
    the package onnx.
    """
    onnx = onnx_library()
    do = "Pass an .onnx file with one image in and one result out."
    Path(path).stat()  # FileNotFoundError
    try:
        model = onnx.load(Path(path))
        onnx.checker.check_model(model)
    except Exception as error:  # protobuf and the checker raise many kinds
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise FormatError(need(f"{path} is an ONNX model", reason, do)) from error
    return Loader(onnx, model).load()


@dataclass
class Loader:
    """State of one load, by the names of ONNX values: a value is a constant, a list of sizes, a
    traced float32 value, or the 8-bit codes of one.
    """

    onnx: Any
    model: Any
    constants: dict[str, NDArray[Any]] = field(default_factory=dict)
    sizes: dict[str, NDArray[np.object_]] = field(default_factory=dict)
    values: dict[str, fx.Node] = field(default_factory=dict)
    codes_of: dict[str, Quantized] = field(default_factory=dict)
    # Of constants that were dequantized: the codes they are made of.
    codes: dict[str, Codes] = field(default_factory=dict)
    ranges: dict[fx.Node, Range] = field(default_factory=dict)
    quantized: dict[str, Codes] = field(default_factory=dict)
    readers: Counter[str] = field(default_factory=Counter)

    def load(self) -> nn.Module:
        """Translate every node, in the file's order, which the checker holds to be a valid one."""
        self.root, self.graph = nn.Module(), fx.Graph()
        self._rounded: dict[tuple[fx.Node, Range], fx.Node] = {}
        self._lengths: dict[tuple[fx.Node, int], fx.Node] = {}
        self._layers: dict[str, nn.Module] = {}
        self._failed: set[str] = set()
        graph = self.model.graph
        opsets = {o.domain: o.version for o in self.model.opset_import}
        self.opset: int | None = opsets.get("", opsets.get("ai.onnx"))
        for tensor in graph.initializer:
            self.constants[tensor.name] = self.array(tensor)
        self.shapes = Shapes(self.onnx, self.model)
        self._open(graph)
        failed = []
        for node in graph.node:
            try:
                self._translate(node)
            except Refused as error:
                failed.append(f"{node.op_type} {node.name or node.output[0]!r}: {error}")
                self._stand_in(node)
            except UnknownInput:
                self._stand_in(node)
        if failed:
            raise UnsupportedModel(need("operators with a counterpart", "; ".join(failed), _DO))
        return self._close(graph.output[0].name)

    def _open(self, graph: Any) -> None:
        """Count readers; the one input is float32, and the one output a tensor."""
        for node in graph.node:
            self.readers.update(node.input)
        self.readers.update(value.name for value in graph.output)
        inputs = [value for value in graph.input if value.name not in self.constants]
        if len(inputs) != 1 or len(graph.output) != 1:
            got = f"{len(inputs)} in, {len(graph.output)} out"
            raise UnsupportedModel(need("one input and one output", got, _DO))
        other = [f"sparse {t.values.name!r}" for t in graph.sparse_initializer]
        other += [f"its own {f.name}" for f in self.model.functions if f.domain in ("", "ai.onnx")]
        if other:
            what = "dense weights and ONNX's own operators"
            raise UnsupportedModel(need(what, ", ".join(other), _DO))
        for value in (inputs[0], graph.output[0]):
            kind = value.type.WhichOneof("value")
            if kind == "tensor_type":
                kind = self.onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type)
            if kind != "FLOAT":
                what = f"{value.name!r} as a tensor of float32 (FLOAT)"
                raise UnsupportedModel(need(what, kind, _DO))
        self.values[inputs[0].name] = self.graph.placeholder("x")

    def _close(self, output: str) -> nn.Module:
        if output not in self.values:
            what = "a float32 result that depends on the input"
            got = "8-bit codes" if output in self.codes_of else "a constant or sizes"
            raise UnsupportedModel(need(what, got, _DO))
        self.graph.output(self.values[output])
        made = fx.GraphModule(self.root, self.graph).eval()
        made.graph.eliminate_dead_code()
        made.delete_all_unused_submodules()
        made.graph.lint()
        made.recompile()
        settle_ranges(made, self.ranges, self.quantized)
        return made

    def _translate(self, node: Any) -> None:
        if node.domain not in ("", "ai.onnx"):
            raise Refused("operators of ONNX itself", f"domain = {node.domain!r}")
        rule = RULES.get(node.op_type)
        if rule is None:
            raise Refused("a known operator", node.op_type)
        made = rule.read(self, node, admit(self, node, rule))
        if not node.output[0]:
            return
        codes = self.codes_of.get(node.input[0]) if rule.codes == "moved" else None
        if isinstance(made, fx.Node) and codes is not None:
            self.ranges.setdefault(made, self.ranges[codes.value])
            self.codes_of[node.output[0]] = replace(codes, value=made)
        elif isinstance(made, fx.Node):
            self.values[node.output[0]] = made
        elif isinstance(made, np.ndarray):
            self.constants[node.output[0]] = made

    def _stand_in(self, node: Any) -> None:
        """What follows a node that failed is translated too, so that one error names them all."""
        for name in node.output:
            self.values[name] = self.graph.placeholder(f"failed_{len(self.values)}")
            self._failed.add(name)

    # What operators need.

    def array(self, tensor: Any) -> NDArray[Any]:
        """The numbers of a stored tensor; FormatError where its bytes are too few or of no type."""
        try:
            array: NDArray[Any] = self.onnx.numpy_helper.to_array(tensor)
        except (ValueError, TypeError, KeyError) as error:
            what = f"the bytes of a tensor for {tensor.name!r}"
            do = "Export the network anew."
            raise FormatError(need(what, str(error).partition("\n")[0], do)) from error
        return array

    def value(self, node: Any, number: int) -> fx.Node:
        """The traced value of an input."""
        name = node.input[number] if number < len(node.input) else ""
        if name in self.codes_of:  # its rule takes codes
            return self.codes_of[name].value
        if name not in self.values:
            got = "none" if not name else "sizes" if name in self.sizes else "a constant"
            raise Refused(f"input {number} from the image", f"{got} {name!r}")
        return self.values[name]

    def constant(self, node: Any, number: int) -> NDArray[Any] | None:
        """The constant of an input; None where it is left out."""
        if number >= len(node.input) or not node.input[number]:
            return None
        name = node.input[number]
        self.check_known(name)
        if name not in self.constants:
            raise Refused(f"input {number} as a constant", f"a computed value {name!r}")
        return self.constants[name]

    def tensor(self, node: Any, number: int) -> Tensor:
        """A constant float tensor, float32."""
        array = self.constant(node, number)
        if array is None:
            raise Refused(f"input {number}", "none")
        if array.dtype != np.float32:
            raise Refused(f"input {number} as float32", f"{array.dtype} {node.input[number]!r}")
        if array.size > _LARGEST or not np.isfinite(array).all():
            raise Refused("finite weights", "NaN, infinity or too many")
        return torch.from_numpy(np.array(array, np.float32))

    def check_known(self, name: str) -> None:
        """UnknownInput for what a refused node would have made."""
        if name in self._failed:
            raise UnknownInput

    def is_constant(self, name: str) -> bool:
        """Whether a value does not depend on the image."""
        return name in self.constants

    def dims(self, name: str) -> Dims | None:
        """Sizes that the file tells of a value: numbers, or other things where they are free."""
        return self.shapes.dims(name)

    def rank(self, name: str) -> int:
        """The number of axes of a value; Refused where the file does not tell."""
        dims = self.dims(name)
        if dims is None:
            self.check_known(name)
            raise Refused("a known number of axes", f"an unknown one for {name!r}")
        return len(dims)

    def size(self, x: fx.Node, axis: int) -> fx.Node:
        """The length of a traced value along an axis."""
        key = x, axis
        if key not in self._lengths:
            self._lengths[key] = self.method("size", x, axis)
        return self._lengths[key]

    def is_size(self, size: Any, x: fx.Node, axis: int) -> bool:
        """Whether `size` is the length of x along an axis."""
        return isinstance(size, fx.Node) and self._lengths.get((x, axis)) is size

    def call(self, function: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """A call of a function."""
        return self.graph.call_function(function, args, kwargs)

    def method(self, name: str, *args: Any) -> fx.Node:
        """A call of a tensor's method."""
        return self.graph.call_method(name, args)

    def buffer(self, values: Tensor) -> fx.Node:
        """A constant of the module."""
        name = paths.put_buffer(self.root, values)
        return self.graph.create_node("get_attr", name)

    def rounded(self, x: fx.Node, scale: float, zero: int) -> fx.Node:
        """x as codes 0..255 say it; their range belongs to this node alone, so that x may have
        others.
        """
        bounds = -zero * scale, (255 - zero) * scale
        if self.ranges.get(x) == bounds:
            return x
        key = x, bounds
        if key not in self._rounded:
            function = torch.fake_quantize_per_tensor_affine
            self._rounded[key] = self.call(function, x, scale, zero, 0, 255)
            self.ranges[self._rounded[key]] = bounds
        return self._rounded[key]

    def layer(
        self, node: Any, module: nn.Module, x: fx.Node, weight: str, codes: Codes | None
    ) -> fx.Node:
        """A call of a new module, named after its weight or, without one, its node; codes: those of
        its weight in the module's layout.
        """
        name = weight.rpartition(".")[0] or node.name or node.output[0]
        path = paths.put(self.root, name, module.eval())
        if codes is not None:
            self.quantized[path] = codes
        self._layers[node.output[0]] = module
        return self.graph.call_module(path, (x,))

    def layer_of(self, name: str) -> nn.Module | None:
        """The layer that makes a value, if one node alone reads that."""
        return self._layers.get(name) if self.readers[name] == 1 else None
