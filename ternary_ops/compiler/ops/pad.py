# SPDX-License-Identifier: Apache-2.0
"""Borders put around images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import nn

from ternary_ops.compiler.arrange import canonical, in_windows, joined_axes, placed, real
from ternary_ops.compiler.axes import RANKS, Atom, Value
from ternary_ops.compiler.call import Call
from ternary_ops.compiler.ops.row import Row
from ternary_ops.compiler.parts import Range, filtered, part
from ternary_ops.compiler.step import Step
from ternary_ops.compiler.unsupported import Unsupported
from ternary_ops.graph import torch_ops

Ends = tuple[int, int]
_MODES: dict[type[nn.Module], str] = {
    nn.ReflectionPad2d: "reflect",
    nn.ReplicationPad2d: "replicate",
    nn.CircularPad2d: "circular",
}


def padded(x: Step, ends: Sequence[int], mode: str, value: float = 0.0) -> Step:
    """An image with borders; ends: left, right, top and bottom, as torch says them."""
    left, right, top, bottom = ends
    return _pad_step(x, [(top, bottom), (left, right)], mode, value)


def _pad_step(x: Step, sides: Sequence[Ends], mode: str, value: float) -> Step:
    """With borders before and after each axis behind the channels."""
    before, after = zip(*sides, strict=True)
    attrs: dict[str, Any] = {"before": before, "after": after, "mode": mode}
    return Step("pad", [x], {**attrs, "value": None if value == -float("inf") else value})


def _pad(call: Call) -> Value:
    """Of rows, columns and channels; what is negative is cut off."""
    module = call.module
    if module is not None:
        mode, ends = _MODES.get(type(module), "constant"), module.padding
        value = getattr(module, "value", 0.0)
    else:
        at = call.arguments(free=("pad",))
        mode, ends, value = at["mode"], at["pad"], at["value"] or 0.0
    x = call.value()
    if not isinstance(ends, Sequence) or len(ends) % 2 or len(ends) > 2 * len(x.axes):
        raise Unsupported(f"its borders are {ends}")
    found = [set(call.number(end)) for end in ends]
    if any(len(sizes) > 1 for sizes in found):
        raise Unsupported("its borders depend on the size of the image")
    counts = [sizes.pop() for sizes in found]
    wanted: dict[int, Ends] = {}
    for i, (first, last) in enumerate(zip(counts[::2], counts[1::2], strict=True)):
        axis = len(x.axes) - 1 - i
        if min(first, last) < 0:
            x = _cut(x, axis, max(-first, 0), max(-last, 0))
        if max(first, last) > 0:
            wanted[axis] = max(first, 0), max(last, 0)
    return _bordered(call.name, x, wanted, mode, float(value)) if wanted else x


def _cut(x: Value, axis: int, first: int, last: int) -> Value:
    """Without so many numbers at either end of an axis."""
    end = tuple(size - last for size in x.sizes[axis])
    return part(x, axis, Range((first,) * x.examples, end))


def _bordered(name: str, x: Value, wanted: Mapping[int, Ends], mode: str, value: float) -> Value:
    """With borders at traced axes: channels by filters, rows and columns by `pad`."""
    if not all(x.axes[axis] in x.form[2:] and x.axes[axis] for axis in wanted):
        own = len(x.axes) not in RANKS or in_windows(x)
        x = _in_places(x, sorted(wanted)) if own else canonical(x)
    rows = {axis: ends for axis, ends in wanted.items() if x.axes[axis] in x.form[2:]}
    for axis in wanted.keys() - rows.keys():
        if mode != "constant" or value or x.axes[axis] != x.form[1] or len(x.form) != RANKS[-1]:
            raise Unsupported("rows and columns are padded, and channels of images with zeros")
        x = _more_channels(name, x, axis, *wanted[axis])
    if not rows:
        return x
    sides: list[Ends] = [(0, 0)] * (len(x.form) - 2)
    form, axes = [*x.form], [*x.axes]
    for axis, ends in rows.items():
        place = x.form.index(x.axes[axis], 2)
        sides[place - 2] = ends
        sizes = tuple(n + sum(ends) for n in x.length(axes[axis]))
        form[place] = axes[axis] = (Atom(sizes, all(atom.known for atom in axes[axis])),)
    return Value(_pad_step(x.step, sides, mode, value), tuple(form), tuple(axes))


def _in_places(x: Value, axes: Sequence[int]) -> Value:
    """With one or two traced axes as rows and columns, or tokens, of all that others have."""
    if len(axes) > 2 or any(set(x.axes[axis]) & set(x.form[0]) for axis in axes):
        raise Unsupported("two axes of each image are padded")
    x = real(x)
    rows = [x.axes[axis] for axis in axes]
    there = {*x.form[0], *joined_axes(rows)}
    rest = tuple(atom for atom in x.atoms if atom not in there)
    return placed(x, [x.form[0], rest, *rows])


def _more_channels(name: str, x: Value, axis: int, first: int, last: int) -> Value:
    """Channels of zeros before and behind the others."""
    count = x.length(x.axes[axis])[0]
    return filtered(name, x, axis, np.eye(first + count + last, count, -first, np.int8))


ROWS = {torch_ops.PAD: Row(_pad)}
