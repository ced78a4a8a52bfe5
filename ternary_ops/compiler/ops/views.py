# SPDX-License-Identifier: Apache-2.0
"""Views: other axes over the same numbers. Nothing moves until an operator asks for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ternary_ops.compiler.arrange import reshaped
from ternary_ops.compiler.axes import Axis, Sizes, Value, repetition
from ternary_ops.compiler.call import Call
from ternary_ops.compiler.constants import over_batch
from ternary_ops.compiler.ops.row import Row
from ternary_ops.compiler.parts import dropped
from ternary_ops.compiler.unsupported import Unsupported
from ternary_ops.graph import torch_ops

_ONE_BATCH = "its batch size is a constant; write x.size(0)"
_FLOATS = (torch.float32, torch.float64)


def constants(call: Call, *names: str) -> tuple[int, ...]:
    """The integers that a call has after its tensor, one by one or as a sequence."""
    given: Any = call.node.args[1:] or [call.node.kwargs[n] for n in names if n in call.node.kwargs]
    if len(given) == 1 and isinstance(given[0], Sequence):
        given = given[0]
    if not all(type(v) is int for v in given):
        raise Unsupported("its axes are not constants")
    return tuple(given)


def _reshape(call: Call) -> Value:
    """view, reshape, flatten and unflatten: what they make says all."""
    x, sizes = call.value(), call.sizes
    before, after = x.sizes, sizes
    one_batch = x.examples == 1 or (before[0] != after[0] and len(set(after[0])) == 1)
    if one_batch and call.any_size and _says_batch(call):
        raise Unsupported(_ONE_BATCH)
    return reshaped(x, sizes)


def _says_batch(call: Call) -> bool:
    """True where a view's first size is a constant."""
    given = call.node.args[1:]
    if len(given) == 1 and isinstance(given[0], Sequence):
        given = tuple(given[0])
    return (
        call.operator is torch_ops.RESHAPE
        and bool(given)
        and type(given[0]) is int
        and given[0] >= 0
    )


def _permute(call: Call) -> Value:
    x = call.value()
    return x.seen_as([x.axes[i] for i in constants(call, "dims")])


def _swapped(x: Value, a: int, b: int) -> Value:
    axes = [*x.axes]
    axes[a], axes[b] = axes[b], axes[a]
    return x.seen_as(axes)


def _transpose(call: Call) -> Value:
    return _swapped(call.value(), *constants(call, "dim0", "dim1"))


def _t(call: Call) -> Value:
    return _swapped(call.value(), 0, -1)


def _attribute(call: Call) -> Value:
    """x.T, x.mT and their kin."""
    x, name = call.value(), call.node.args[1]
    if name in ("mT", "mH"):
        return _swapped(x, -2, -1)
    if name in ("T", "H"):
        return x.seen_as(x.axes[::-1])
    raise Unsupported(f"{name} of a tensor is not supported")


def _movedim(call: Call) -> Value:
    x, at = call.value(), call.arguments()
    ends = [
        [i % len(x.axes) for i in ((v,) if isinstance(v, int) else v)]
        for v in (at["source"], at["destination"])
    ]
    kept = [axis for i, axis in enumerate(x.axes) if i not in ends[0]]
    for source, place in sorted(zip(*ends, strict=True), key=lambda move: move[1]):
        kept.insert(place, x.axes[source])
    return x.seen_as(kept)


def _squeeze(call: Call) -> Value:
    x = call.value()
    if call.node.args[1:] or call.node.kwargs:
        wanted = {i % len(x.axes) for i in constants(call, "dim")}
    else:
        wanted = set(range(1, len(x.axes)))
    for i in sorted(wanted, reverse=True):
        if set(x.sizes[i]) == {1} and x.axes[i] != x.form[0]:
            x = dropped(x, i)
    if x.sizes != call.sizes:
        raise Unsupported("which axes it drops depends on the batch")
    return x


def _unsqueeze(call: Call) -> Value:
    x, (at,) = call.value(), constants(call, "dim")
    axes = [*x.axes]
    axes.insert(at % (len(axes) + 1), ())
    return x.seen_as(axes)


def _expand(call: Call) -> Value:
    x = call.value()
    return over_batch(x, x.expanded(call.sizes))


def _repeat(call: Call) -> Value:
    """Every axis so many times, one behind the other."""
    x, wanted = call.value(), call.sizes
    axes: list[Axis] = [()] * (len(wanted) - len(x.axes))
    axes += x.axes
    for i, sizes in enumerate(wanted):
        have = x.length(axes[i])
        if have != sizes:
            times: Sizes = tuple(n // h for n, h in zip(sizes, have, strict=True))
            axes[i] = (*x.repeated_as(i, times), *axes[i])
    return over_batch(x, x.seen_as(axes))


def _repeat_interleave(call: Call) -> Value:
    """Every number of an axis so many times in a row."""
    x, at = call.value(), call.arguments()
    if type(at["repeats"]) is not int or type(at["dim"]) is not int:
        raise Unsupported("one number of repetitions along one axis is supported")
    axes = [*x.axes]
    repeats: Sizes = (at["repeats"],) * x.examples
    axes[at["dim"]] = (*axes[at["dim"]], repetition(repeats))
    return x.seen_as(axes)


def _to(call: Call) -> Value:
    """To another type of floats, or to where another tensor is."""
    given = (*call.node.args[1:], *call.node.kwargs.values())
    bad = [v for v in given if isinstance(v, torch.dtype) and v not in _FLOATS]
    if bad:
        raise Unsupported(f"programs compute in float32, this asks for {bad[0]}")
    return call.value()


ROWS = {
    torch_ops.FLATTEN: Row(_reshape),
    torch_ops.UNFLATTEN: Row(_reshape),
    torch_ops.RESHAPE: Row(_reshape, "view and reshape"),
    torch_ops.PERMUTE: Row(_permute),
    torch_ops.TRANSPOSE: Row(_transpose),
    torch_ops.MOVEDIM: Row(_movedim),
    torch_ops.T: Row(_t, ""),
    torch_ops.ATTRIBUTE: Row(_attribute, ""),
    torch_ops.SQUEEZE: Row(_squeeze),
    torch_ops.UNSQUEEZE: Row(_unsqueeze),
    torch_ops.EXPAND: Row(_expand),
    torch_ops.REPEAT: Row(_repeat),
    torch_ops.REPEAT_INTERLEAVE: Row(_repeat_interleave),
    torch_ops.CONTIGUOUS: Row(Call.value, ""),
    torch_ops.TO: Row(_to, ""),
}
