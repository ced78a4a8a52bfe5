# SPDX-License-Identifier: Apache-2.0
"""An ONNX network as a PyTorch module that can be planned, trained, calibrated and compiled."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import fx, nn

from ternary_ops.errors import FormatError, UnsupportedModel, need
from ternary_ops.interchange.import_ops import RULES
from ternary_ops.interchange.import_ranges import settle_ranges
from ternary_ops.interchange.loader import Loader
from ternary_ops.interchange.onnx_package import UnknownInput, Unsupported, onnx_library
from ternary_ops.interchange.rules import admit
from ternary_ops.nn.planned import listed

_DO = "Export the network with the operators of docs/interchange.md, in float32 and eval mode."


def load_onnx(path: str | os.PathLike[str]) -> nn.Module:
    """Load an .onnx file as a torch.fx.GraphModule of torch.nn layers, in eval mode.

    Its convolutions and linear layers are named after their weights, so that plans, rules and
    `ternary-ops compress` use the names of the exported network. In a QDQ
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
        raise FormatError(need(f"an ONNX model in {path}", reason, do)) from error
    return _Importer(onnx, model).load()


class _Importer(Loader):
    """Translates the nodes of a model, each by the rule of its operator."""

    def load(self) -> nn.Module:
        """Translate every node, in the file's order, which the checker holds to be a valid one."""
        graph = self.model.graph
        for tensor in graph.initializer:
            self.constants[tensor.name] = self.array(tensor)
        self._open(graph)
        failed: dict[tuple[str, str], list[str]] = {}
        for node in graph.node:
            try:
                self._translate(node)
            except Unsupported as error:
                names = failed.setdefault((node.op_type, str(error)), [])
                names.append(repr(node.name or node.output[0]))
                self._stand_in(node)
            except UnknownInput:
                self._stand_in(node)
        if failed:
            texts = [f"{op} {listed(names)}: {why}" for (op, why), names in failed.items()]
            raise UnsupportedModel(need("operators with a counterpart", "; ".join(texts), _DO))
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
            raise Unsupported("operators of ONNX itself", f"domain = {node.domain!r}")
        rule = RULES.get(node.op_type)
        if rule is None:
            raise Unsupported("a known operator", node.op_type)
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
        """Placeholder outputs for a failed node, so that one error names all failures."""
        for name in node.output:
            self.values[name] = self.graph.placeholder(f"failed_{len(self.values)}")
            self._failed.add(name)
