# SPDX-License-Identifier: Apache-2.0
"""A traced network as a list of steps, one for each node of the program to be, fusions done."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import fx, nn

from ternary_ops.compiler.match import SUPPORTED, match
from ternary_ops.compiler.node import Consequence, Op, Unsupported, shape_of, source
from ternary_ops.compiler.read_layers import (
    Layer,
    Range,
    channelwise,
    read_batchnorm,
    read_layer,
    read_layer_norm,
    read_slopes,
    read_transposed,
)
from ternary_ops.errors import UnsupportedModel, first_line, need
from ternary_ops.graph.observed import value_name
from ternary_ops.graph.trace import Chain, clamp_bounds, fused_chain, is_layer, links, module_of
from ternary_ops.program.weight import Array

Bounds = tuple[float | None, float | None]
_MOVES = ("flatten", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle")
_CLAMPS = ("conv2d", "linear", "add", "mul", "clamp")


@dataclass(eq=False)
class Step:
    """One op, the steps it reads and those that read it.

    slope: of a layer, [O] or [1]: a PReLU behind it. wanted: range that the layers reading this
    value ask for. flexible: an op that has no range of its own would read it as uint8. fine: range
    that layers reading it as uint11 ask for; it is then made as floats. observed: range that
    calibrate saw of a value without a layer. shape and place: of what a traced node made, None and
    "" for steps between.
    """

    op: str
    inputs: list[Step]
    attrs: dict[str, Any] = field(default_factory=dict)
    layer: Layer | None = None
    clamp: Bounds = (None, None)
    slope: Array | None = None
    users: list[Step] = field(default_factory=list)
    wanted: Range | None = None
    flexible: bool = False
    fine: Range | None = None
    observed: Range | None = None
    shape: tuple[int, ...] | None = None
    place: str = ""


def read_steps(traced: fx.GraphModule, ranges: Mapping[str, Range] | None = None) -> list[Step]:
    """The steps, in order, that the output needs; the first is the input, the last the output.

    ranges: of values without a layer (`graph.observed`). Shapes must have been noted
    (`match.Shapes`). Raises one UnsupportedModel that lists every node without a program form.
    """
    reader = _read(traced, ranges=ranges or {})
    if reader.problems:
        lines = "".join(f"\n  {line}" for _, line in reader.problems)
        raise UnsupportedModel(
            need(
                "every part of a compiled model needs a program form",
                f"{len(reader.problems)} without:{lines}",
                f"Supported: {SUPPORTED}.",
            )
        )
    return _fuse_gates(_fuse_clamps(_reachable(reader.values[reader.output])))


def unsupported(
    traced: fx.GraphModule, islands: Collection[fx.Node] = ()
) -> list[tuple[fx.Node, str]]:
    """Every node without a program form, with its place and the reason; `islands` pass as inputs.

    Shapes must have been noted.
    """
    return _read(traced, islands).problems


def _read(
    traced: fx.GraphModule,
    islands: Collection[fx.Node] = (),
    ranges: Mapping[str, Range] | None = None,
) -> _Reader:
    reader = _Reader(traced, ranges or {})
    for node in traced.graph.nodes:
        if node in islands:
            reader.values[node] = Step("input", [])
        else:
            reader.read(node)
    return reader


def merge(first: Bounds, second: Bounds) -> Bounds:
    """Bounds of clamp(clamp(x, first), second)."""
    return _clip(first[0], second, second[0]), _clip(first[1], second, second[1])


def _clip(bound: float | None, by: Bounds, otherwise: float | None) -> float | None:
    if bound is None:
        return otherwise
    lo, hi = by
    bound = bound if lo is None else max(bound, lo)
    return bound if hi is None else min(bound, hi)


class _Reader:
    """Turns traced nodes into steps, and collects what has no program form."""

    def __init__(self, traced: fx.GraphModule, ranges: Mapping[str, Range]) -> None:
        self.problems: list[tuple[fx.Node, str]] = []
        self.values: dict[fx.Node, Step] = {}
        self.output: fx.Node
        self._layers: dict[str, Layer] = {}
        self._ranges = ranges
        chains = [fused_chain(node) for node in traced.graph.nodes if is_layer(node)]
        self._ends = {chain.end: chain for chain in chains}
        self._inner = {node for chain in chains for node in links(chain)} - set(self._ends)

    def read(self, node: fx.Node) -> None:
        """Add the steps of a node, or a problem."""
        if node.op == "placeholder":
            if self.values:
                self.problems.append((node, f"{node.target}: a second input"))
                return
            self.values[node] = Step("input", [], shape=shape_of(node))
        elif node.op == "output":
            self._read_output(node)
        elif node.op != "get_attr" and shape_of(node) is not None:
            try:
                ops = match(node)
                if node in self._ends:
                    self.values[node] = self._chain(self._ends[node])
                elif node not in self._inner:
                    self.values[node] = self._ops(node, ops)
                if node in self.values:
                    self._note(self.values[node], node)
            except Consequence:
                pass
            except Unsupported as error:
                self.problems.append((node, f"{_place(node)}: {error}"))

    def _note(self, step: Step, node: fx.Node) -> None:
        """What is known of the value that a step and a node have in common."""
        step.shape, step.place = shape_of(node), _place(node)
        step.observed = self._ranges.get(value_name(node), step.observed)
        halves = step.op == "add" and all(part.shape is None for part in step.inputs)
        for part in step.inputs if halves else ():  # of a PReLU: each is the sum, or zero
            part.observed = step.observed

    def _read_output(self, node: fx.Node) -> None:
        value = node.args[0]
        if isinstance(value, fx.Node) and value in self.values:
            self.output = value
        elif not self.problems:
            self.problems.append((node, f"the output: one tensor is supported, this is {value}"))

    def _chain(self, chain: Chain) -> Step:
        """A layer with what fuses behind it. A BatchNorm that would not fold becomes a step."""
        step = self._layer(chain.layer, self._value(source(chain.layer)))
        if chain.batchnorm is not None:
            step = self._batchnorm(chain.batchnorm, step)
        if chain.residual is not None:
            step.inputs.append(self._value(chain.residual))
        for clamp in chain.clamps:
            step.clamp = merge(step.clamp, clamp_bounds(clamp) or (None, None))
        return step if chain.slope is None else self._sloped(chain.slope, step)

    def _sloped(self, node: fx.Node, step: Step) -> Step:
        """A PReLU or leaky ReLU behind a layer, or behind a BatchNorm that would not fold."""
        ((op, attrs),) = match(node)
        if step.layer is None or step.layer.follows:
            return self._op(node, op, attrs, [step])
        if op == "prelu":
            step.slope = read_slopes(str(node.target), _module(module_of(node)))
        else:
            step.slope = np.array(attrs["params"], np.float32)
        return step

    def _ops(self, node: fx.Node, ops: Sequence[Op]) -> Step:
        operands = ops[0][1].pop("operands", None) if ops else None
        inputs = [self._value(x) for x in operands or (source(node),)]
        for op, attrs in ops:
            inputs = [self._op(node, op, attrs, inputs)]
        return inputs[0]

    def _op(self, node: fx.Node, op: str, attrs: dict[str, Any], inputs: list[Step]) -> Step:
        if op == "same":
            return inputs[0]
        if op == "batchnorm":
            return self._batchnorm(node, inputs[0])
        if op == "layer_norm":
            layer = read_layer_norm(str(node.target), _module(module_of(node)))
            return Step(op, inputs, layer.attrs, layer)
        if op == "conv_transpose2d":
            layer, shuffled = read_transposed(str(node.target), _module(module_of(node)))
            return Step("pixel_shuffle", [Step("conv2d", inputs, layer.attrs, layer)], shuffled)
        if op == "prelu":
            name = str(node.target)
            slopes = channelwise(name, read_slopes(name, _module(module_of(node))), None)
            below = Step("clamp", inputs, clamp=(None, 0.0))
            above = Step("clamp", inputs, clamp=(0.0, None))
            return Step("add", [above, Step("conv2d", [below], slopes.attrs, slopes)])
        if op == "clamp":
            return Step(op, inputs, clamp=attrs["clamp"])
        if op == "sub":
            negated = Step("activation", inputs[1:], {"fn": "affine", "params": (-1.0, 0.0)})
            return Step("add", [inputs[0], negated])
        return Step(op, inputs, attrs)

    def _layer(self, node: fx.Node, x: Step) -> Step:
        name, module = str(node.target), module_of(node)
        if name not in self._layers:
            try:
                self._layers[name] = read_layer(name, _module(module))
            except UnsupportedModel as error:
                raise Unsupported(first_line(error)) from error
        layer = self._layers[name]
        return Step(layer.op, [x], layer.attrs, layer)

    def _batchnorm(self, node: fx.Node, x: Step) -> Step:
        layer = read_batchnorm(str(node.target), _module(module_of(node)))
        return Step(layer.op, [x], layer.attrs, layer)

    def _value(self, node: fx.Node) -> Step:
        if node.op == "get_attr":
            raise Unsupported("it works on a parameter or buffer")
        if node not in self.values:
            raise Consequence
        return self.values[node]


def _reachable(output: Step) -> list[Step]:
    """What the output needs, every step after those it reads; fills `users`."""
    order: list[Step] = []
    seen: set[Step] = set()
    stack = [(output, False)]
    while stack:
        step, ready = stack.pop()
        if ready:
            order.append(step)
            for source_step in step.inputs:
                source_step.users.append(step)
        elif step not in seen:
            seen.add(step)
            stack.append((step, True))
            stack.extend((s, False) for s in reversed(step.inputs))
    return order


def _fuse_clamps(steps: Sequence[Step]) -> list[Step]:
    """Let a step that can clamp do so itself where a clamp alone reads it, behind what only moves
    values or not.
    """
    kept: list[Step] = []
    for step in steps:
        maker = _clampable(step.inputs[0]) if step.op == "clamp" else None
        if maker is None:
            kept.append(step)
            continue
        before = step.inputs[0]
        maker.clamp, before.users = merge(maker.clamp, step.clamp), step.users
        maker.observed = step.observed
        for user in step.users:
            user.inputs = [before if s is step else s for s in user.inputs]
    return kept


def _fuse_gates(steps: Sequence[Step]) -> list[Step]:
    """Make x * sigmoid(conv(...)), and what is added to it, one step: the convolution's."""
    gone: set[Step] = set()
    for step in steps:
        convolution = _gate_of(step)
        if convolution is None:
            continue
        (x,) = (s for s in step.inputs if s is not convolution.users[0])
        gone |= {convolution, convolution.users[0]}
        step.op, step.layer, step.shape = "conv2d", convolution.layer, None
        step.attrs = {**convolution.attrs, "gate": True}
        step.inputs = [convolution.inputs[0], x]
        convolution.inputs[0].users = [
            step if s is convolution else s for s in convolution.inputs[0].users
        ]
        _fuse_residual(step, x.shape, gone)
    return [step for step in steps if step not in gone]


def _gate_of(step: Step) -> Step | None:
    """The convolution whose sigmoid a product of two maps of one size has as a factor."""
    for factor in step.inputs if step.op == "mul" and len(step.inputs) == 2 else []:
        if factor.op != "activation" or factor.attrs["fn"] != "sigmoid" or len(factor.users) > 1:
            continue
        maker = factor.inputs[0]
        alone = maker.op == "conv2d" and len(maker.users) == 1 and len(maker.inputs) == 1
        plain = alone and maker.slope is None and maker.clamp == (None, None)
        shapes = {s.shape for s in step.inputs}
        if plain and len(shapes) == 1 and None not in shapes:
            return maker
    return None


def _fuse_residual(step: Step, shape: tuple[int, ...] | None, gone: set[Step]) -> None:
    """Let a gated convolution add what an `add` that alone reads it adds."""
    if len(step.users) != 1 or step.clamp != (None, None):
        return
    (add,) = step.users
    others = [s for s in add.inputs if s is not step]
    if add.op != "add" or len(others) != 1 or others[0].shape != shape:
        return
    # The sum keeps its place, behind all that it reads.
    add.op, add.layer, add.attrs = "conv2d", step.layer, step.attrs
    add.inputs = [*step.inputs, others[0]]
    for source_step in step.inputs:
        source_step.users = [add if s is step else s for s in source_step.users]
    gone.add(step)


def _clampable(step: Step) -> Step | None:
    """The step whose values this one passes on, if it can clamp and nothing else reads them."""
    while step.op in _MOVES and len(step.users) == 1:
        step = step.inputs[0]
    fits = step.op in _CLAMPS and len(step.users) == 1 and step.slope is None
    return step if fits else None


def _module(module: nn.Module | None) -> nn.Module:
    if module is None:
        raise Unsupported("it calls no module")
    return module


def _place(node: fx.Node) -> str:
    """Module path and kind of a node, for people."""
    if node.op == "call_module":
        return f"{node.target} ({type(module_of(node)).__name__})"
    what = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "?")
    inside = [str(path) for path, _ in node.meta.get("nn_module_stack", {}).values()]
    return f"{what}() in {inside[-1] if inside else 'forward'}"
