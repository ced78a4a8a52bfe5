# SPDX-License-Identifier: Apache-2.0
"""Run a trace on the example: it must compute what the network does, and its shapes are noted.

A trace whose code says sizes runs on a second example of another batch and image size, so that
sizes which hold for every input are told from those that vary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from ternary_ops.errors import TernaryOpsError, UnsupportedModel, need
from ternary_ops.graph import torch_ops
from ternary_ops.graph.nodes import operator_of
from ternary_ops.graph.trace import ON_EXAMPLE, Interpreter
from ternary_ops.nn.planned import listed

_ROUNDING = 1e-3  # relative to the largest output
_SIZED = (
    torch_ops.RESHAPE,
    torch_ops.UNFLATTEN,
    torch_ops.SQUEEZE,
    torch_ops.EXPAND,
    torch_ops.REPEAT,
    torch_ops.CHUNK,
    torch_ops.SPLIT,
    torch_ops.TENSOR_SPLIT,
    torch_ops.UNBIND,
    torch_ops.NARROW,
    torch_ops.SELECT,
    torch_ops.GETITEM,
    torch_ops.ROLL,
)


class Shapes(Interpreter):
    """Runs a traced network and collects what every node makes: the shape of a tensor, a list of
    shapes of several, a number, or None.
    """

    def __init__(self, traced: fx.GraphModule) -> None:
        super().__init__(traced)
        self.found: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        """As the base class, and note what the node makes."""
        value = super().run_node(n)
        self.found[n] = _noted(value)
        return value


def _noted(value: Any) -> Any:
    if isinstance(value, Tensor):
        return tuple(value.shape)
    if isinstance(value, (tuple, list)) and any(isinstance(v, Tensor) for v in value):
        return [tuple(v.shape) if isinstance(v, Tensor) else None for v in value]
    return value if type(value) is int else None


def run_checked(traced: fx.GraphModule, x: Tensor, expected: Any) -> Any:
    """Output of the trace for x; records shapes. A trace misses what Python does to tensors without
    it: raises UnsupportedModel unless that is the network's output, `expected` (None: unknown).
    """
    shapes = Shapes(traced)
    made = shapes.run(x.clone())
    second = _second(traced, x, shapes.found) if _says_sizes(traced) else None
    _note([shapes.found] if second is None else [shapes.found, second])
    check_same(made, expected)
    return made


class Differs(UnsupportedModel):
    """A trace computes something else than its network."""


def differs(writes: Sequence[str] = ()) -> Differs:
    """The error; writes: what may be the reason (`graph.writes`)."""
    perhaps = f", perhaps by writes into parts of tensors: {listed(list(writes))}" if writes else ""
    return Differs(
        need(
            "a traced model that computes what the model does",
            f"another result for example_input{perhaps}",
            "Avoid x += y on a tensor that has a second name, and randomness in eval mode.",
        )
    )


def check_same(made: Any, expected: Any) -> None:
    """Raise Differs unless `made` is the network's output (None: unknown)."""
    if not isinstance(made, Tensor) or not isinstance(expected, Tensor):
        return  # read says that one output tensor is supported
    finite = expected.nan_to_num(0.0, 0.0, 0.0).abs()
    bound = _ROUNDING * float(finite.max()) if finite.numel() else 0.0
    same = expected.shape == made.shape
    if not (same and torch.allclose(expected, made, rtol=0.0, atol=bound, equal_nan=True)):
        raise differs()


def _note(runs: Sequence[Mapping[fx.Node, Any]]) -> None:
    """Keep shapes: of the example alone "shape", None for numbers and () for several tensors; for
    each run "shapes".
    """
    for node, made in runs[0].items():
        node.meta["shapes"] = tuple(run[node] for run in runs)
        node.meta["shape"] = () if isinstance(made, list) else made
        if isinstance(made, int):
            node.meta["shape"] = None


def _says_sizes(traced: fx.GraphModule) -> bool:
    """True where a trace for any size has sizes of its own, perhaps those of the example."""
    found = any(operator_of(node) in _SIZED for node in traced.graph.nodes)
    return found and not traced.meta.get(ON_EXAMPLE)


def _second(
    traced: fx.GraphModule, x: Tensor, first: Mapping[fx.Node, Any]
) -> dict[fx.Node, Any] | None:
    """What the nodes make of an example of other sizes, of another batch alone where the network
    takes no other sizes; None where it takes no other batch.
    """
    for sizes in _others(x.shape):
        shapes = Shapes(traced)
        try:
            shapes.run(torch.zeros(sizes))
        except TernaryOpsError:  # the network's own code runs here: this size is none of its own
            continue
        if all(_alike(made, first[node]) for node, made in shapes.found.items()):
            return shapes.found
    return None


def _alike(a: Any, b: Any) -> bool:
    """True for tensors of one rank, as many of them, and for other values."""
    return type(a) is type(b) and (not isinstance(a, (tuple, list)) or len(a) == len(b))


def _others(shape: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Shapes of a larger batch, of larger images or tokens first."""
    n, *rest = shape
    free = {3: (0,), 4: (1, 2)}.get(len(shape), ())
    for plus, times in ((32, 1), (0, 2), (0, 1)):
        sizes = list(rest)
        for count, axis in enumerate(free):
            sizes[axis] = rest[axis] * (times + count * (times > 1)) + plus * (1 + count)
        yield n + 1, *sizes
