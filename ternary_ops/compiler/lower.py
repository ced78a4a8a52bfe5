# SPDX-License-Identifier: Apache-2.0
"""Last pass: the nodes of the program, one for each step, and quantize and dequantize between
them where a reader needs the other form.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from ternary_ops.compiler.axes import canonical_order
from ternary_ops.compiler.domains import codes_of, is_cheap
from ternary_ops.compiler.step import CODES, FINE, FLOATS, Step
from ternary_ops.program.graph import Graph, Node
from ternary_ops.program.ops import OPS
from ternary_ops.program.weight import Weight
from ternary_ops.reference.arithmetic import fine_params


class Lowered(NamedTuple):
    """A program, and the index of the node that makes each step's value."""

    graph: Graph
    made: dict[Step, int]


def lower(steps: Sequence[Step], shape: Sequence[int]) -> Lowered:
    """The program of `steps` for inputs like `shape`, [N, C, H, W], [N, L, C] or [N, K]."""
    emitter = _Emitter(shape)
    for step in steps:
        emitter.emit(step)
    number = _numbers(emitter.drafts)
    nodes = (
        Node(draft.op, tuple(number[j] for j in draft.inputs), draft.attrs)
        for draft in (emitter.drafts[old] for old in number)
    )
    made = {step: number[old] for step, old in emitter.made.items() if old in number}
    return Lowered(Graph(tuple(nodes), tuple(emitter.weights)), made)


class _Draft(NamedTuple):
    """A node to be."""

    op: str
    inputs: tuple[int, ...]
    attrs: dict[str, Any]


def _numbers(drafts: Sequence[_Draft]) -> dict[int, int]:
    """Places without what nobody reads: codes of a value that all its readers took as floats."""
    live = {len(drafts) - 1}
    for i in range(len(drafts) - 1, 0, -1):
        if i in live:
            live.update(drafts[i].inputs)
    return {old: new for new, old in enumerate(sorted(live | {0}))}


class _Emitter:
    """Appends nodes; knows of every step the node of each form that it was read in."""

    def __init__(self, shape: Sequence[int]) -> None:
        rank = len(shape)
        self.drafts = [_Draft("input", (), {"c": shape[canonical_order(rank)[1]], "rank": rank})]
        self.weights: list[Weight] = []
        self.made: dict[Step, int] = {}
        self._other: dict[tuple[Step, Any], int] = {}  # by step and form
        self._weight_index: dict[Weight, int] = {}

    def emit(self, step: Step) -> None:
        """Append the nodes of a step, and of the forms in which it reads its operands."""
        if step.op == "input":
            self.made[step] = 0
            return
        inputs = []
        for operand, form in zip(step.inputs, step.reads, strict=True):
            inputs.append(self._node_of(operand, form, step))
        if step.op == "output":
            return
        attrs = {**step.attrs, **self._written(step)}
        self.made[step] = self._node(step.op, inputs, attrs)

    def _written(self, step: Step) -> dict[str, Any]:
        """Attributes that the passes decided."""
        known: dict[str, Any] = {"y": step.y, "clamp": step.clamp}
        if step.layer is not None:
            weight = step.layer.weight
            known["w"] = self._weight(
                weight if step.slope is None else replace(weight, slope=step.slope)
            )
        return {name: value for name, value in known.items() if name in OPS[step.op].attrs}

    def _node_of(self, step: Step, form: str | None, reader: Step) -> int:
        """The node of a step's value in a form."""
        made = self.made[step]
        if form == FINE and reader.layer is not None and reader.layer.input_range is not None:
            scale, zp = fine_params(*reader.layer.input_range)
            return self._quantized(step, {"y": (float(scale), zp), "fine": True})
        if form == FLOATS and step.y is not None:
            return self._floats(step)
        if form == CODES and step.y is None:
            return self._quantized(step, {"y": codes_of(step)})
        return made

    def _floats(self, step: Step) -> int:
        """Float value of a step that makes codes: unquantized, or the codes dequantized."""
        if (step, FLOATS) not in self._other:
            node = self.made[step]
            made = self.drafts[node]
            self._other[step, FLOATS] = (
                self._node(made.op, made.inputs, {**made.attrs, "y": None})
                if is_cheap(step)
                else self._node("dequantize", [node], {})
            )
        return self._other[step, FLOATS]

    def _quantized(self, step: Step, attrs: dict[str, Any]) -> int:
        """Codes of a step, which is made floats first if it makes others."""
        key = step, tuple(attrs.items())
        if key not in self._other:
            x = self.made[step] if step.y is None else self._floats(step)
            self._other[key] = self._node("quantize", [x], attrs)
        return self._other[key]

    def _node(self, op: str, inputs: Sequence[int], attrs: dict[str, Any]) -> int:
        self.drafts.append(_Draft(op, tuple(inputs), attrs))
        return len(self.drafts) - 1

    def _weight(self, weight: Weight) -> int:
        if weight not in self._weight_index:
            self._weight_index[weight] = len(self.weights)
            self.weights.append(weight)
        return self._weight_index[weight]
