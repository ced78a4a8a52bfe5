# SPDX-License-Identifier: Apache-2.0
"""The one graph that compiling works on: a list of steps, each one operator of the program to be.

`read` makes it, `fuse` rewrites it, `choose_domains` decides which values are uint8, and `lower`
emits a node of the program for each step.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import fx

from ternary_ops.compiler.read_layers import Layer, Range
from ternary_ops.graph.nodes import Bounds
from ternary_ops.program.weight import Array, Params

# How a step reads an operand, or None for the form that it has: only its size counts.
FLOATS, CODES, FINE = "float32", "uint8", "uint11"


@dataclass(eq=False)
class Step:
    """One operator, the steps it reads and those that read it. The first step is the "input", the
    last the "output", which reads what the program returns.

    Set by read and fuse:
    slope       of a layer, [O] or [1]: a PReLU behind it
    chain       the layer into which `graph.fusion` fuses what this step computes
    observed    range that calibrate saw of a value without a layer
    shape       of what it makes, where a traced node made it; None for steps between
    place       where that node is, for people; "" for steps between
    fixed       it says a size of the example where that may vary
    moved       its value at other places, by what moves it there
    precise     it is made as floats: an operator reads it so, or a long stream or a sum adds to it
    traced      the traced nodes, each with its value (`axes.Value`), that may compute what it makes

    Set by choose_domains:
    wanted      range that the layers reading this value ask for
    fine        range that layers reading it as uint11 ask for; it is then made as floats
    flexible    an operator that has no range of its own would read it as uint8
    reads       the form in which each operand is read
    y           scale and zero point of its codes; None where it makes floats
    """

    op: str
    inputs: list[Step]
    attrs: dict[str, Any] = field(default_factory=dict)
    layer: Layer | None = None
    clamp: Bounds = (None, None)
    slope: Array | None = None
    users: list[Step] = field(default_factory=list)
    chain: fx.Node | None = None
    observed: Range | None = None
    shape: tuple[int, ...] | None = None
    place: str = ""
    fixed: bool = False
    moved: dict[Any, Step] = field(default_factory=dict, repr=False)
    traced: list[tuple[fx.Node, Any]] = field(default_factory=list, repr=False)
    wanted: Range | None = None
    fine: Range | None = None
    precise: bool = False
    flexible: bool = False
    reads: list[str | None] = field(default_factory=list)
    y: Params | None = None


def become(step: Step, made: Step, *more: Step) -> None:
    """Let a step do what `made` does as well, with `more` operands; nothing reads `made` then."""
    step.op, step.layer, step.attrs = made.op, made.layer, made.attrs
    rewire(step, *made.inputs, *more)


def rewire(step: Step, *inputs: Step) -> None:
    """Let a step read these in place of those it reads. What nothing reads any more reads nothing
    itself.
    """
    before, step.inputs = step.inputs, list(inputs)
    for operand in inputs:
        operand.users.append(step)
    for operand in before:
        operand.users.remove(step)
        if not operand.users:
            rewire(operand)


def hand_over(step: Step, to: Step) -> None:
    """Redirect all readers of a step to another one."""
    to.traced += step.traced
    for user in list(dict.fromkeys(step.users)):
        rewire(user, *(to if operand is step else operand for operand in user.inputs))
