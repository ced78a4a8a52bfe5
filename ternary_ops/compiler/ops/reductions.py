# SPDX-License-Identifier: Apache-2.0
"""Means, sums, extremes, variances and norms along any axes but the batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ternary_ops.compiler.axes import Value
from ternary_ops.compiler.call import Call
from ternary_ops.compiler.ops.row import Row
from ternary_ops.compiler.reduced import (
    activation,
    count_of,
    difference,
    logsumexp,
    quotient,
    reduced,
)
from ternary_ops.compiler.step import Step
from ternary_ops.compiler.unsupported import Unsupported
from ternary_ops.graph import torch_ops
from ternary_ops.graph.nodes import operator_of


def _axes(x: Value, dim: Any) -> list[int]:
    """The axes that an argument names."""
    if dim is None:
        raise Unsupported("it works along the batch; say the axes")
    dims = dim if isinstance(dim, Sequence) else (dim,)
    if not dims or not all(type(d) is int for d in dims):
        raise Unsupported("its axes are not constants")
    return [d % len(x.axes) for d in dims]


def _plain(call: Call) -> tuple[Value, dict[str, Any], list[int]]:
    """The value, the arguments and the axes."""
    x, at = call.value(), call.arguments()
    if at.get("dtype") is not None:
        raise Unsupported("another dtype is not supported")
    return x, at, _axes(x, at["dim"])


def _function(fn: str) -> Row:
    def make(call: Call) -> Value:
        x, at, axes = _plain(call)
        return reduced(x, axes, fn, at["keepdim"])

    return Row(make)


def _extreme(fn: str) -> Row:
    """max and min along one axis, which return places as well."""

    def make(call: Call) -> list[Value]:
        x, at, axes = _plain(call)
        for user in call.node.users:
            if operator_of(user) is not torch_ops.GETITEM or user.args[1] != 0:
                raise Unsupported("the places of extremes are not supported")
        return [reduced(x, axes, fn, at["keepdim"])]

    return Row(make)


def _variance(call: Call) -> Value:
    x, at, axes = _plain(call)
    correction = 1 if at["correction"] is None else at["correction"]
    if isinstance(at["unbiased"], bool):
        correction = int(at["unbiased"])
    return variance(x, axes, correction, at["keepdim"])


def variance(x: Value, axes: Sequence[int], correction: float, keep: bool) -> Value:
    """The mean of squared deviations, of `correction` numbers less."""
    spread = activation(difference(x, reduced(x, axes, "mean", True)), "square")
    made = reduced(spread, axes, "mean", keep)
    if not correction:
        return made
    count = count_of(x, axes)
    return activation(made, "affine", count / (count - correction), 0.0)


def _deviation(call: Call) -> Value:
    return activation(_variance(call), "sqrt")


def _norm(call: Call) -> Value:
    x, at, axes = _plain(call)
    order = at.get("p", at.get("ord"))
    return norm(x, axes, 2.0 if order in (None, "fro") else order, at["keepdim"])


def norm(x: Value, axes: Sequence[int], order: Any, keep: bool) -> Value:
    """Of order 1, 2 or infinity."""
    if order == 2:
        return activation(reduced(activation(x, "square"), axes, "sum", keep), "sqrt")
    if order == 1 or order == math.inf:
        return reduced(activation(x, "abs"), axes, "sum" if order == 1 else "max", keep)
    raise Unsupported(f"a norm of order {order} is not supported")


def _normalize(call: Call) -> Value:
    """x over its norm, which is at least eps."""
    x, at = call.value(), call.arguments()
    length = norm(x, _axes(x, at["dim"]), at["p"], True)
    return quotient(x, length.of(Step("clamp", [length.step], clamp=(float(at["eps"]), None))))


def _logsumexp(call: Call) -> Value:
    x, at, axes = _plain(call)
    return logsumexp(x, axes, at["keepdim"])


ROWS = {
    torch_ops.MEAN: _function("mean"),
    torch_ops.SUM: _function("sum"),
    torch_ops.AMAX: _function("max"),
    torch_ops.AMIN: _function("min"),
    torch_ops.MAX: _extreme("max"),
    torch_ops.MIN: _extreme("min"),
    torch_ops.VAR: Row(_variance),
    torch_ops.STD: Row(_deviation),
    torch_ops.NORM: Row(_norm),
    torch_ops.VECTOR_NORM: Row(_norm, ""),
    torch_ops.NORMALIZE: Row(_normalize),
    torch_ops.LOGSUMEXP: Row(_logsumexp),
}
