# SPDX-License-Identifier: Apache-2.0
"""One traced call, as the tables of `compiler.ops` see it: its properties, looked up once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

from torch import fx

from ternary_ops.compiler.read_layers import Layer
from ternary_ops.compiler.step import Step
from ternary_ops.graph.nodes import arguments_of, look_up
from ternary_ops.graph.torch_ops import TorchOp
from ternary_ops.program.operator import TOKENS


class Unsupported(Exception):
    """Why a node has no program op; reading collects them all."""


class Consequence(Unsupported):
    """The node reads one that is unsupported, which is reason enough to name that one only."""


class Call:
    """A traced node, its module and operator, and the steps that it reads.

    layers: those read so far, by name. complete: false where an operand has no step, because it is
    unsupported itself.
    """

    def __init__(
        self, node: fx.Node, steps: Mapping[fx.Node, Step], layers: dict[str, Layer]
    ) -> None:
        self.node = node
        self.name = str(node.target)
        self.module: Any
        self.module, self.operator = look_up(node)
        self.shape: tuple[int, ...] = node.meta["shape"]
        self.layers = layers
        self.complete = True
        self._steps = steps

    @property
    def source(self) -> fx.Node:
        """The node of the tensor it works on; raises Unsupported when that is a constant."""
        x = self.node.args[0] if self.node.args else self.node.kwargs.get("input")
        if not isinstance(x, fx.Node) or shape_of(x) is None:
            raise Unsupported("it does not work on a tensor that comes from the input")
        if shape_of(x) == ():
            raise Consequence
        return x

    def input(self, *ranks: int) -> Step:
        """The step of the tensor it works on; raises Unsupported unless that has so many axes, any
        number if none are said.
        """
        shape = shape_of(self.source)
        if ranks and (shape is None or len(shape) not in ranks):
            wanted = " or ".join(map(str, ranks))
            raise Unsupported(f"its input has shape {shape}, rank {wanted} is supported")
        return self.step(self.source)

    def step(self, node: fx.Node) -> Step:
        """The step of an operand."""
        if node.op == "get_attr":
            raise Unsupported("it works on a parameter or buffer")
        if node not in self._steps:
            self.complete = False
            return Step("missing", [])
        return self._steps[node]

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


def channel_axis(rank: int) -> int:
    """Axis of the channels: the last one for tokens [N, L, C]."""
    return 2 if rank == TOKENS else 1


def pair(value: Any) -> tuple[int, int]:
    """An int or two of them as two; raises Unsupported."""
    two = (value, value) if isinstance(value, int) else tuple(value)
    if len(two) == 1:
        two *= 2
    if len(two) != 2 or not all(isinstance(v, int) for v in two):
        raise Unsupported(f"{value!r} is not one or two integers")
    return int(two[0]), int(two[1])
