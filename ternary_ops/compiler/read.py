# SPDX-License-Identifier: Apache-2.0
"""First pass: a traced network as steps, one for each call, nothing fused yet."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from operator import attrgetter

from torch import Tensor, fx, nn

from ternary_ops.compiler.arrange import canonical
from ternary_ops.compiler.axes import RANKS, Value, made_by
from ternary_ops.compiler.call import Call, Made, shape_of, shapes_of, sizes_of
from ternary_ops.compiler.constants import constant_value
from ternary_ops.compiler.ops import ROWS, supported
from ternary_ops.compiler.problems import Problem, called, problem_of, refusal
from ternary_ops.compiler.read_layers import Layer, Range
from ternary_ops.compiler.step import Step
from ternary_ops.compiler.unsupported import Consequence, Unsupported
from ternary_ops.errors import UnsupportedModel, need
from ternary_ops.graph.constants import FOLDED
from ternary_ops.graph.nodes import fused_chains, look_up
from ternary_ops.graph.observed import range_seen
from ternary_ops.graph.torch_op import TorchOp
from ternary_ops.graph.trace import ON_EXAMPLE
from ternary_ops.nn.planned import listed

FIRST, LAST = (0, 3, 1, 2), (0, 2, 3, 1)  # [N, H, W, C] as [N, C, H, W], and back


def read(traced: fx.GraphModule, ranges: Mapping[str, Range]) -> list[Step]:
    """The steps, in order, that the output needs; the first is the input, the last the output.

    ranges: of values without a layer (`graph.observed`). Shapes must have been noted
    (`trace_check`). Raises one UnsupportedModel that lists every node without a program form, or
    those that hold for the example's size alone, unless the trace does as well.
    """
    reader = _Reader(traced, ranges)
    if reader.problems:
        raise refusal([problem for _, problem in reader.problems], supported())
    steps = _reachable(Step("output", [reader.output]))
    if not traced.meta.get(ON_EXAMPLE):
        _check(steps)
    return steps


def _check(steps: Sequence[Step]) -> None:
    """Raise UnsupportedModel for steps that hold for the example's size alone."""
    fixed = [step for step in steps if step.fixed]
    if fixed:
        places = listed(list(dict.fromkeys(_reader_of(step) for step in fixed)))
        what = "a network whose axes can be moved for images and tokens of any size"
        do = "Give the layer the channels on axis 1 of an image, or as the last of tokens."
        raise UnsupportedModel(need(what, f"sizes said by the example, for {places}", do))


def _reader_of(step: Step) -> str:
    """The place of a step, or of the first that reads it."""
    while not step.place and step.users:
        step = step.users[0]
    return step.place or "the output"


def unsupported(
    traced: fx.GraphModule, islands: Collection[fx.Node] = (), last: bool = False
) -> list[tuple[fx.Node, str]]:
    """Every node without a program form, with its place and the reason; `islands` pass as inputs,
    their images with the channels first or `last`.

    Shapes must have been noted.
    """
    found = _Reader(traced, {}, islands, last).problems
    return [(node, str(problem)) for node, problem in found]


class _Reader:
    """Turns traced nodes into steps, and collects what has no program form."""

    def __init__(
        self,
        traced: fx.GraphModule,
        ranges: Mapping[str, Range],
        islands: Collection[fx.Node] = (),
        last: bool = False,
    ) -> None:
        self._last = last
        self.problems: list[tuple[fx.Node, Problem]] = []
        self.values: dict[fx.Node, Made] = {}
        self.output: Step
        self._ranges = ranges
        self._layers: dict[str, Layer] = {}
        self._chains = fused_chains(traced.graph)
        inputs = [node for node in traced.graph.nodes if node.op == "placeholder"]
        self._varied = len({shape[1:] for node in inputs for shape in shapes_of(node)}) > 1
        for node in traced.graph.nodes:
            if node in islands or node.op == "placeholder":
                self._read_input(node)
            elif node.op == "output":
                self._read_output(node)
            elif node.op == "get_attr":
                self._read_constant(traced, node)
            elif node.op != "get_attr" and node.meta["shape"] is not None:
                self._read(node, look_up(node))

    def _read_input(self, node: fx.Node) -> None:
        """What a program is called with, after an island as well."""
        rank, sizes = len(shape_of(node) or ()), sizes_of(node)
        if rank == 4 and self._last and node.op != "placeholder":
            made = made_by(Step("input", []), [sizes[i] for i in FIRST], self._varied)
            self.values[node] = made.seen_as([made.axes[i] for i in LAST])
        elif rank in RANKS:
            self.values[node] = made_by(Step("input", []), sizes, self._varied)

    def _read_constant(self, traced: fx.GraphModule, node: fx.Node) -> None:
        """A tensor of the network; what else it has is no value."""
        found = attrgetter(str(node.target))(traced)
        sources = (value for value in self.values.values() if isinstance(value, Value))
        source = next((v for v in sources if v.step.op == "input"), None)
        if isinstance(found, Tensor) and found.is_floating_point() and source is not None:
            name, on_example = str(node.target), bool(traced.meta.get(ON_EXAMPLE))
            computed = name.startswith((FOLDED, "_tensor_constant"))  # no parameter
            self.values[node] = constant_value(name, found, source, on_example and computed)

    def _read(self, node: fx.Node, kind: tuple[nn.Module | None, TorchOp | None]) -> None:
        """The value of a call; what cannot be read is a problem, what reads that is none."""
        call = Call(node, kind, self.values, self._layers, self._varied, self._chains.get(node))
        try:
            if call.makes_nothing:
                return  # a cat leaves it out, what else reads it is refused
            if any(0 in sizes for sizes in call.sizes):
                raise Unsupported("it makes a tensor of no numbers at some sizes")
            row = None if call.operator is None else ROWS.get(call.operator)
            made = call.refuse() if row is None else row.make(call)
        except Consequence:
            return
        except Unsupported as error:
            self.problems.append((node, problem_of(call, error)))
            return
        if made is None:
            return
        if isinstance(made, Step):
            made = made_by(made, call.sizes, self._varied)
        self.values[node] = made
        for value in made if isinstance(made, list) else [made]:
            self._name(value, call)

    def _name(self, value: Value, call: Call) -> None:
        """Note in a value's step where it comes from."""
        step, node = value.step, call.node
        step.traced.append((node, value))
        if not step.place:  # made by this call, not handed on
            step.shape, step.place = step.shape or value.shape, _place(call)
            step.chain = None if call.chain is None else call.chain.layer
        if self._ranges:
            step.observed = range_seen(self._ranges, node) or step.observed

    def _read_output(self, node: fx.Node) -> None:
        made = self.values.get(node.args[0]) if isinstance(node.args[0], fx.Node) else None
        if isinstance(made, Value):
            try:
                self.output = canonical(made).step
            except Unsupported as error:
                self.problems.append((node, Problem("the output", "forward", "", str(error))))
        elif not self.problems:
            reason = f"one tensor is supported, this is {node.args[0]}"
            self.problems.append((node, Problem("the output", "forward", "", reason)))


def _reachable(output: Step) -> list[Step]:
    """Steps that the output depends on, in topological order; fills `users`."""
    order: list[Step] = []
    seen: set[Step] = set()
    stack = [(output, False)]
    while stack:
        step, ready = stack.pop()
        if ready:
            order.append(step)
            for operand in step.inputs:
                operand.users.append(step)
        elif step not in seen:
            seen.add(step)
            stack.append((step, True))
            stack.extend((s, False) for s in reversed(step.inputs))
    return order


def _place(call: Call) -> str:
    """Module path and kind of a node, for people."""
    if call.module is not None:
        return f"{call.name} ({type(call.module).__name__})"
    return f"{called(call)}() in {owner_of(call.node) or 'forward'}"


def owner_of(node: fx.Node) -> str:
    """The path of the module that a node calls, or in whose forward it stands; "": the model's."""
    if node.op == "call_module":
        return str(node.target)
    inside = [str(path) for path, _ in node.meta.get("nn_module_stack", {}).values()]
    return inside[-1] if inside else ""
