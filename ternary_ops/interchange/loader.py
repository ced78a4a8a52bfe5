# SPDX-License-Identifier: Apache-2.0
"""State of one ONNX import: what readers of operators ask for values, and build with."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from ternary_ops.errors import FormatError, need
from ternary_ops.interchange import paths
from ternary_ops.interchange.import_ranges import Codes, Range
from ternary_ops.interchange.onnx_package import UnknownInput, Unsupported
from ternary_ops.interchange.shapes import Dims, Shapes

_LARGEST = 2**31 - 1


@dataclass(frozen=True)
class Quantized:
    """8-bit codes of a traced value, which is clipped to their range."""

    value: fx.Node
    scale: float
    zero: int
    dtype: Any


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

    def __post_init__(self) -> None:
        """Begin an empty module."""
        self.root, self.graph = nn.Module(), fx.Graph()
        self._rounded: dict[tuple[fx.Node, Range], fx.Node] = {}
        self._lengths: dict[tuple[fx.Node, int], fx.Node] = {}
        self._layers: dict[str, nn.Module] = {}
        self._failed: set[str] = set()
        opsets = {o.domain: o.version for o in self.model.opset_import}
        self.opset: int | None = opsets.get("", opsets.get("ai.onnx"))
        self.shapes = Shapes(self.onnx, self.model)

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
            raise Unsupported(f"input {number} from the image", f"{got} {name!r}")
        return self.values[name]

    def constant(self, node: Any, number: int) -> NDArray[Any] | None:
        """The constant of an input; None where it is left out."""
        if number >= len(node.input) or not node.input[number]:
            return None
        name = node.input[number]
        self.check_known(name)
        if name not in self.constants:
            raise Unsupported(f"input {number} as a constant", f"a computed value {name!r}")
        return self.constants[name]

    def tensor(self, node: Any, number: int) -> Tensor:
        """A constant float tensor, float32."""
        array = self.constant(node, number)
        if array is None:
            raise Unsupported(f"input {number}", "none")
        if array.dtype != np.float32:
            raise Unsupported(f"input {number} as float32", f"{array.dtype} {node.input[number]!r}")
        if array.size > _LARGEST or not np.isfinite(array).all():
            raise Unsupported("finite weights", "NaN, infinity or too many")
        return torch.from_numpy(np.array(array, np.float32))

    def check_known(self, name: str) -> None:
        """Raise UnknownInput for an output of a refused node."""
        if name in self._failed:
            raise UnknownInput

    def is_constant(self, name: str) -> bool:
        """True if a value does not depend on the image."""
        return name in self.constants

    def dims(self, name: str) -> Dims | None:
        """Known sizes of a value: numbers, or other objects where they are free."""
        return self.shapes.dims(name)

    def rank(self, name: str) -> int:
        """The number of axes of a value; Unsupported where the file does not tell."""
        dims = self.dims(name)
        if dims is None:
            self.check_known(name)
            raise Unsupported("a known number of axes", f"an unknown one for {name!r}")
        return len(dims)

    def size(self, x: fx.Node, axis: int) -> fx.Node:
        """The length of a traced value along an axis."""
        key = x, axis
        if key not in self._lengths:
            self._lengths[key] = self.method("size", x, axis)
        return self._lengths[key]

    def is_size(self, size: Any, x: fx.Node, axis: int) -> bool:
        """True if `size` is the length of x along an axis."""
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
