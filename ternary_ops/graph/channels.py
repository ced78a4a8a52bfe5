# SPDX-License-Identifier: Apache-2.0
"""Which channels of a network's values must be scaled by one factor, for the output to stay.

A value's channel may be multiplied by a positive factor if what makes it can be (filters and biases
of a layer, scale and shift of a BatchNorm) and everything that reads it either divides (a layer's
weights) or passes the factor on (sums, ReLU and its kin, pools, resizes, concatenation).
"""

from __future__ import annotations

import math
import operator
from collections import Counter
from collections.abc import Iterable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ternary_ops.graph.nodes import (
    clamp_bounds,
    is_add,
    is_batchnorm,
    is_pass,
    is_slope,
    module_of,
)

# Of each channel alone, and f(a * x) = a * f(x) for a > 0.
_MODULES = (
    nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Upsample, nn.UpsamplingNearest2d,
    nn.UpsamplingBilinear2d, nn.ZeroPad2d,
)  # fmt: skip
_FUNCTIONS: tuple[Any, ...] = (
    F.max_pool2d, torch.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d,
    F.interpolate,
)  # fmt: skip
_SUBTRACT: tuple[Any, ...] = (operator.sub, torch.sub, "sub")
_MULTIPLY: tuple[Any, ...] = (operator.mul, operator.imul, torch.mul, "mul", "mul_")
_CONCAT: tuple[Any, ...] = (torch.cat, torch.concat)


class Channels:
    """Classes of channels that share a factor, over all values of a traced network.

    ids: per node with a tensor of at least two axes, the class of each channel (axis 1), int64 [C].
    free: per class, whether a factor other than 1 is possible.
    """

    def __init__(self, traced: fx.GraphModule, shapes: dict[fx.Node, torch.Size]) -> None:
        self._parents: list[int] = []
        self._pinned: list[bool] = []
        self._ids: dict[fx.Node, list[int]] = {}
        self._shapes = shapes
        calls = Counter(id(module_of(n)) for n in traced.graph.nodes if n.op == "call_module")
        owners = Counter(
            id(t) for m in traced.modules() for t in m._parameters.values() if t is not None
        )
        for node in traced.graph.nodes:
            if node in shapes and len(shapes[node]) >= 2:
                self._ids[node] = self._new(shapes[node][1])
            self._visit(node, calls, owners)
        self._numbers = {root: i for i, root in enumerate(self._roots())}

    def of(self, node: fx.Node) -> Tensor:
        """Classes of a value's channels, int64 [C]; numbers below `count`."""
        return torch.tensor([self._numbers[self._root(i)] for i in self._ids[node]])

    def free(self) -> Tensor:
        """bool [count]: True where the factor is free."""
        return torch.tensor([not self._pinned[root] for root in self._numbers])

    def __contains__(self, node: fx.Node) -> bool:
        return node in self._ids

    def _roots(self) -> list[int]:
        return [i for i, parent in enumerate(self._parents) if i == parent]

    def _new(self, count: int) -> list[int]:
        first = len(self._parents)
        self._parents += range(first, first + count)
        self._pinned += [False] * count
        return list(range(first, first + count))

    def _root(self, i: int) -> int:
        while self._parents[i] != i:
            self._parents[i] = self._parents[self._parents[i]]
            i = self._parents[i]
        return i

    def _tie(self, a: Iterable[int], b: Iterable[int]) -> None:
        for first, second in zip(a, b, strict=True):
            one, other = self._root(first), self._root(second)
            self._parents[other] = one
            self._pinned[one] |= self._pinned[other]

    def _pin(self, node: fx.Node) -> None:
        for i in self._ids.get(node, ()):
            self._pinned[self._root(i)] = True

    def _pin_all(self, *nodes: fx.Node) -> None:
        for node in nodes:
            self._pin(node)

    def _visit(self, node: fx.Node, calls: Counter[int], owners: Counter[int]) -> None:
        inputs = self._inputs(node)
        made, read = self._ids.get(node), [self._ids.get(n) for n in inputs]
        same = made is not None and all(r is not None and len(r) == len(made) for r in read)
        if scales(node):
            owned = calls, owners
            if not self._alone(node, *owned) or not self._by_channel(node):
                self._pin_all(node, *inputs)
            elif is_batchnorm(node):
                self._pin(inputs[0])
        elif same and _keeps_factors(node, len(inputs)):
            for ids in read:
                self._tie(made or (), ids or ())
        elif _is_product(node) and len(inputs) == 2 and made is not None:
            self._product(node, made)
        elif made is not None and _is_concat(node):
            parts = [self._ids.get(n) for n in node.args[0]]  # type: ignore[union-attr,arg-type]
            self._tie(made, [i for part in parts for i in part or ()])
        elif made is not None and self._flattens(node) and read[0] is not None:
            repeats = len(made) // len(read[0])
            self._tie([i for i in read[0] for _ in range(repeats)], made)
        elif node.op == "output" or node in self._shapes:
            self._pin_all(node, *inputs)

    def _inputs(self, node: fx.Node) -> list[fx.Node]:
        """Tensors that it reads; sizes are none."""
        return [n for n in node.all_input_nodes if n in self._shapes]

    @staticmethod
    def _alone(node: fx.Node, calls: Counter[int], owners: Counter[int]) -> bool:
        """True when nothing else uses the module or its parameters."""
        module = cast(nn.Module, module_of(node))
        tensors = [t for t in module._parameters.values() if t is not None]
        return calls[id(module)] == 1 and all(owners[id(t)] == 1 for t in tensors)

    def _by_channel(self, node: fx.Node) -> bool:
        """True when axis 1 is that of the layer's channels."""
        axes = 4 if isinstance(module_of(node), nn.Conv2d) else 2
        return is_batchnorm(node) or len(self._shapes[node]) == axes

    def _product(self, node: fx.Node, made: list[int]) -> None:
        """A map times a gate: the gate, which is that of the two that cannot be scaled or else the
        second, keeps its size.
        """
        first, second = self._inputs(node)
        gate, value = (first, second) if self._is_pinned(first) else (second, first)
        self._pin(gate)
        ids = self._ids.get(value)
        if ids is None or len(ids) != len(made):
            self._pin_all(value, node)
            return
        self._tie(made, ids)

    def _is_pinned(self, node: fx.Node) -> bool:
        return all(self._pinned[self._root(i)] for i in self._ids.get(node, ()))

    def _flattens(self, node: fx.Node) -> bool:
        called = isinstance(module_of(node), nn.Flatten) or node.target in (
            torch.flatten, "flatten",
        )  # fmt: skip
        x = None if len(self._inputs(node)) != 1 else self._shapes[self._inputs(node)[0]]
        y = self._shapes.get(node)
        return called and x is not None and y is not None and y[1] == math.prod(x[1:])


def scales(node: fx.Node) -> bool:
    """True for what can multiply its output's channels: a layer, a BatchNorm with parameters."""
    module = module_of(node)
    if is_batchnorm(node):
        return getattr(module, "weight", None) is not None
    return type(module) in (nn.Conv2d, nn.Linear)


def _keeps_factors(node: fx.Node, inputs: int) -> bool:
    bounds = clamp_bounds(node)
    if bounds is not None:
        return all(b in (None, 0.0, math.inf, -math.inf) for b in bounds)
    if is_add(node) or (node.target in _SUBTRACT and inputs == 2 and not node.kwargs):
        return True
    if inputs != 1 or not node.args or not isinstance(node.args[0], fx.Node):
        return False
    by_number = _is_product(node) and isinstance(node.args[1], (int, float))
    called = node.op == "call_function" and node.target in _FUNCTIONS
    kept = isinstance(module_of(node), _MODULES) or called or by_number
    return kept or is_pass(node) or is_slope(node)


def _is_product(node: fx.Node) -> bool:
    call = node.op in ("call_function", "call_method") and node.target in _MULTIPLY
    return call and len(node.args) == 2


def _is_concat(node: fx.Node) -> bool:
    if node.op != "call_function" or node.target not in _CONCAT or not node.args:
        return False
    axis = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    return axis in (1, -3)
