# SPDX-License-Identifier: Apache-2.0
"""Data movement: concatenation, rolls and shuffles; values stay as they are."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from ternary_ops.compiler.axes import Value
from ternary_ops.compiler.call import Call, is_empty, pair
from ternary_ops.compiler.combine import joined
from ternary_ops.compiler.ops.row import Row
from ternary_ops.compiler.parts import rolled
from ternary_ops.compiler.step import Step
from ternary_ops.compiler.unsupported import Unsupported
from ternary_ops.graph import torch_ops


def _parts(call: Call) -> list[Value]:
    """The tensors that a call joins."""
    node = call.node
    given = node.args[0] if node.args else node.kwargs.get("tensors")
    if isinstance(given, fx.Node):
        made = call.values(given)
        return made if isinstance(made, list) else [made]
    if not isinstance(given, Sequence) or not all(isinstance(p, fx.Node) for p in given):
        raise Unsupported("its parts are not a list of tensors")
    return [call.value(part) for part in given if not is_empty(part)]


def _axis(call: Call) -> int:
    node = call.node
    dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", node.kwargs.get("axis", 0))
    if not isinstance(dim, int):
        raise Unsupported("its axis is not a constant")
    return dim


def _concat(call: Call) -> Value:
    parts, axis = _parts(call), _axis(call)
    return parts[0] if len(parts) == 1 else joined(parts, axis)


def _stack(call: Call) -> Value:
    """Along a new axis."""
    parts, axis = _parts(call), _axis(call) % len(call.shape)
    parts = [part.seen_as([*part.axes[:axis], (), *part.axes[axis:]]) for part in parts]
    return parts[0] if len(parts) == 1 else joined(parts, axis)


def _roll(call: Call) -> Value:
    x, at = call.value(), call.arguments()
    shifts, dims = ((v,) if isinstance(v, int) else v for v in (at["shifts"], at["dims"]))
    if dims is None or len(dims) != len(shifts):
        raise Unsupported("a roll is supported along said axes")
    for shift, axis in zip(shifts, dims, strict=True):
        x = rolled(x, axis, call.number(shift))
    return x


def _shuffle(op: str, argument: str) -> Row:
    """Pixel shuffle and unshuffle."""

    def make(call: Call) -> Step:
        x, factor = call.input(4), call.arguments()[argument]
        return Step(op, [x], {"factor": pair(factor)})

    return Row(make)


def _channel_shuffle(call: Call) -> Step:
    x, groups = call.input(4), call.arguments()["groups"]
    return Step("channel_shuffle", [x], {"groups": groups})


ROWS = {
    torch_ops.CONCAT: Row(_concat),
    torch_ops.STACK: Row(_stack),
    torch_ops.ROLL: Row(_roll),
    torch_ops.PIXEL_SHUFFLE: _shuffle("pixel_shuffle", "upscale_factor"),
    torch_ops.PIXEL_UNSHUFFLE: _shuffle("pixel_unshuffle", "downscale_factor"),
    torch_ops.CHANNEL_SHUFFLE: Row(_channel_shuffle),
}
