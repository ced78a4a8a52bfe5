# SPDX-License-Identifier: Apache-2.0
"""First pass: a traced network as steps, one for each call, nothing fused yet."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import fx

from ternary_ops.compiler.call import Call, Consequence, Unsupported
from ternary_ops.compiler.ops import ROWS, supported
from ternary_ops.compiler.problems import Problem, called, problem_of, refusal
from ternary_ops.compiler.read_layers import Layer, Range
from ternary_ops.compiler.step import Step
from ternary_ops.graph.nodes import fused_chains
from ternary_ops.graph.observed import value_name


def read(traced: fx.GraphModule, ranges: Mapping[str, Range]) -> list[Step]:
    """The steps, in order, that the output needs; the first is the input, the last the output.

    ranges: of values without a layer (`graph.observed`). Shapes must have been noted
    (`trace_check`). Raises one UnsupportedModel that lists every node without a program form.
    """
    reader = _Reader(traced, ranges)
    if reader.problems:
        raise refusal([problem for _, problem in reader.problems], supported())
    return _reachable(Step("output", [reader.steps[reader.output]]))


def unsupported(
    traced: fx.GraphModule, islands: Collection[fx.Node] = ()
) -> list[tuple[fx.Node, str]]:
    """Every node without a program form, with its place and the reason; `islands` pass as inputs.

    Shapes must have been noted.
    """
    found = _Reader(traced, {}, islands).problems
    return [(node, str(problem)) for node, problem in found]


class _Reader:
    """Turns traced nodes into steps, and collects what has no program form."""

    def __init__(
        self,
        traced: fx.GraphModule,
        ranges: Mapping[str, Range],
        islands: Collection[fx.Node] = (),
    ) -> None:
        self.problems: list[tuple[fx.Node, Problem]] = []
        self.steps: dict[fx.Node, Step] = {}
        self.output: fx.Node
        self._ranges = ranges
        self._layers: dict[str, Layer] = {}
        self._chains = fused_chains(traced.graph)
        for node in traced.graph.nodes:
            if node in islands or node.op == "placeholder":
                self.steps[node] = Step("input", [], shape=node.meta["shape"])
            elif node.op == "output":
                self._read_output(node)
            elif node.op != "get_attr" and node.meta["shape"] is not None:
                self._read(node)

    def _read(self, node: fx.Node) -> None:
        """The step of a call; what cannot be read is a problem, what reads that is none."""
        call = Call(node, self.steps, self._layers)
        try:
            row = None if call.operator is None else ROWS.get(call.operator)
            step = call.refuse() if row is None else row.make(call)
        except Consequence:
            return
        except Unsupported as error:
            self.problems.append((node, problem_of(call, error)))
            return
        if step is None or not call.complete:
            return
        self.steps[node] = step
        if step.shape is None:  # made by this call, not handed on
            step.shape = call.shape
            self._join(step, node)
        step.place = _place(call)
        step.observed = self._ranges.get(value_name(node), step.observed)

    def _join(self, step: Step, node: fx.Node) -> None:
        """Note the layer whose chain the node belongs to; of a sum, that operand comes first."""
        chain = self._chains.get(node)
        if chain is not None:
            step.chain = chain.layer
            if node is chain.add and node.args[0] is chain.residual:
                step.inputs.reverse()

    def _read_output(self, node: fx.Node) -> None:
        value = node.args[0]
        if isinstance(value, fx.Node) and value in self.steps:
            self.output = value
        elif not self.problems:
            reason = f"one tensor is supported, this is {value}"
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
