# SPDX-License-Identifier: Apache-2.0
"""One traced call, as the tables of `compiler.ops` see it: its properties, looked up once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NoReturn, TypeAlias

from torch import Tensor, fx, nn

from ternary_ops.compiler.arrange import beside_channels, canonical, in_windows, with_windows
from ternary_ops.compiler.axes import RANKS, Sizes, Value, made_by
from ternary_ops.compiler.constants import known_number
from ternary_ops.compiler.read_layers import Layer, Range
from ternary_ops.compiler.step import Step
from ternary_ops.compiler.unsupported import Consequence, Unsupported
from ternary_ops.graph.constants import attribute_of
from ternary_ops.graph.nodes import Chain, arguments_of, two
from ternary_ops.graph.torch_op import TorchOp
from ternary_ops.graph.trace import ON_EXAMPLE

Made: TypeAlias = "Value | list[Value]"  # of a node; several of one that makes several tensors


class Call:
    """A traced node, its module and operator, which are `called`, and the values that it reads.

    shape, sizes: of what it makes, for the example and for each example (`trace_check`). layers:
    those read so far, by name. varied: examples differ in the sizes of images or tokens.
    makes_nothing: a tensor of no numbers. chain: the fused chain that the node belongs to
    (`graph.nodes`).
    """

    def __init__(
        self,
        node: fx.Node,
        called: tuple[nn.Module | None, TorchOp | None],
        values: Mapping[fx.Node, Made],
        layers: dict[str, Layer],
        varied: bool,
        chain: Chain | None,
    ) -> None:
        self.node = node
        self.name = str(node.target)
        self.shape: tuple[int, ...] = node.meta["shape"]
        self.sizes = sizes_of(node) if self.shape else []
        self.makes_nothing = is_empty(node)
        self.module: Any
        self.module, self.operator = called
        self.layers = layers
        self.varied = varied
        self.chain = chain
        self._values = values

    @property
    def any_size(self) -> bool:
        """True in a trace that stands for inputs of any size."""
        owner = self.node.graph.owning_module
        return owner is not None and not owner.meta.get(ON_EXAMPLE)

    @property
    def source(self) -> fx.Node:
        """The node of the tensor it works on; raises Unsupported when that is a constant."""
        x = self.node.args[0] if self.node.args else self.node.kwargs.get("input")
        if not isinstance(x, fx.Node) or (shape := x.meta.get("shape")) is None:
            raise Unsupported("it does not work on a tensor that comes from the input")
        if shape == ():
            raise Consequence
        return x

    def laid(self, *ranks: int) -> Value:
        """The value of the tensor it works on, lying as torch has it; raises Unsupported unless
        that has so many axes, any number if none are said.
        """
        shape = shape_of(self.source)
        if ranks and (shape is None or len(shape) not in ranks):
            wanted = " or ".join(map(str, ranks))
            raise Unsupported(f"its input has shape {shape}, rank {wanted} is supported")
        value = self.value()
        return value if value.as_traced else canonical(value)

    def input(self, *ranks: int) -> Step:
        """The step of `laid`."""
        return self.laid(*ranks).step

    def image(self, make: Callable[[Step], Step]) -> Value:
        """What a step makes of an image, of every channel by itself."""
        x = self.value()
        if len(x.axes) != RANKS[-1] or not in_windows(x):
            return made_by(make(self.input(RANKS[-1])), self.sizes, self.varied)
        x = beside_channels(x)
        return with_windows(x, make(x.step), self.sizes)

    def value(self, node: Any = None) -> Value:
        """The value of an operand, of the tensor it works on if none is said."""
        made = self.values(self.source if node is None else node)
        if isinstance(made, list):
            raise Unsupported("it works on several tensors at once")
        return made

    def operand(self, argument: Any) -> Value | float:
        """A number, or the value of an operand."""
        if isinstance(argument, (int, float)):
            return float(argument)
        if not isinstance(argument, fx.Node):
            raise Unsupported("its operands are not tensors from the input and numbers")
        if argument.op == "get_attr":
            made = self.value(argument)
            number = known_number(made.step)
            return made if number is None else number
        if shape_of(argument) is None:
            found = shapes_of(argument)
            if len(set(found)) == 1 and isinstance(found[0], (int, float)):
                return float(found[0])
            raise Unsupported("a number it computes with depends on the size of the input")
        return self.value(argument)

    def values(self, node: fx.Node) -> Made:
        """The value of an operand, or the values of one that is several tensors."""
        if node in self._values:
            return self._values[node]
        if node.op == "get_attr":
            found = attribute_of(node.graph.owning_module, str(node.target))
            if isinstance(found, Tensor) and not found.is_floating_point():
                raise Unsupported(f"programs compute in float32, this reads {found.dtype}")
            raise Unsupported("it works on a parameter or buffer")
        if is_empty(node):
            raise Unsupported("it works on a tensor of no numbers")
        raise Consequence

    def number(self, argument: Any) -> Sizes:
        """An integer of the call, constant or made of sizes, for each example."""
        if isinstance(argument, int):
            return (argument,) * len(shapes_of(self.node))
        found = shapes_of(argument) if isinstance(argument, fx.Node) else ()
        if not found or not all(isinstance(number, int) for number in found):
            raise Unsupported("its sizes are neither constants nor sizes of tensors")
        return tuple(found)

    def leave_chain(self, value: Value) -> Range | None:
        """Compute the node behind its layer, which made `value`, not in it.

        Returns the range that calibrate saw, as the layer's own, of the whole chain: it is that of
        the node's result. Nothing is known of what the layer alone makes, which stays float.
        """
        step, chain = value.step, self.chain
        layer = None if chain is None else self.layers.get(str(chain.layer.target))
        self.chain = None
        if layer is None or not layer.integer:
            return None
        while step.layer is not layer:
            (step,) = step.inputs[:1]
        step.layer, step.precise = replace(layer, output_range=None), True
        return layer.output_range

    def refuse(self) -> NoReturn:
        """Raises Unsupported: nothing in a program computes this."""
        _ = self.source  # of a constant, or of what is unsupported: that is the reason
        raise Unsupported("there is no program op for it")

    def arguments(self, free: tuple[str, ...] = ()) -> dict[str, Any]:
        """Arguments after the tensor, or a module's attributes: constants, except for `free`."""
        op: TorchOp = self.operator  # type: ignore[assignment]  # rows of a table have one
        if self.module is not None:
            return {name: getattr(self.module, name, v) for name, v in op.arguments.items()}
        found = arguments_of(self.node, op)
        traced = [n for n, v in (found or {}).items() if isinstance(v, fx.Node) and n not in free]
        if found is None or traced != ["input"]:
            raise Unsupported("its arguments are not all constants this package knows")
        return found


def shape_of(node: fx.Node) -> tuple[int, ...] | None:
    """The shape of a traced value that `trace_check` noted: None for sizes and constants, () for
    several tensors at once.
    """
    shape: tuple[int, ...] | None = node.meta.get("shape")
    return shape


def is_empty(node: Any) -> bool:
    """True for a tensor of no numbers, for all examples that the trace ran on."""
    return bool(shape_of(node)) and all(0 in shape for shape in shapes_of(node))


def shapes_of(node: fx.Node) -> tuple[Any, ...]:
    """What a node makes, as `trace_check` noted it, for each example that the trace ran on."""
    found: tuple[Any, ...] = node.meta["shapes"]
    return found


def sizes_of(node: fx.Node, part: int | None = None) -> list[Sizes]:
    """The shape of a traced value, or of one of its parts, axis by axis, for each example."""
    shapes: Sequence[Any] = shapes_of(node)
    return list(zip(*(s if part is None else s[part] for s in shapes), strict=True))


def pair(value: Any) -> tuple[int, int]:
    """`two`; raises Unsupported where it is None."""
    found = two(value)
    if found is None:
        raise Unsupported(f"{value!r} is not one or two integers")
    return found
