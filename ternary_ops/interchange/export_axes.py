# SPDX-License-Identifier: Apache-2.0
"""Operators that move numbers among axes or cut and pad these, as ONNX nodes, a function each."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ternary_ops import reference
from ternary_ops.interchange.export_node import NodeExport, outside_axis, writes
from ternary_ops.program.ops.rearrange import REST

# A size of a Reshape: a number, or a value [1] of the graph.
_Size = int | str
_TO_END = 2**31 - 1


@writes("rearrange")
def rearrange(e: NodeExport) -> str:
    """Reshape to the factors, Transpose, Reshape to the axes; tokens have their channels last."""
    at, rank = e.node.at, e.node.inputs[0].rank
    sizes, places = _factors(e), _outside(list(range(len(at["split"]))), rank)
    ends = np.cumsum([0, *map(len, at["split"])])
    read = [i for axis in places for i in range(ends[axis], ends[axis + 1])]
    ends = np.cumsum([0, *at["axes"]])
    parts = [list(at["order"][a:b]) for a, b in zip(ends, ends[1:], strict=False)]
    made = _outside(parts, at["rank"])
    order = [read.index(i) for part in made for i in part]
    wide = _reshape(e, e.x[0], [sizes[i] for i in read])
    moved = e.out.add("Transpose", wide, perm=[0, *(i + 1 for i in order)])
    return _reshape(e, moved, [_product(e, [sizes[i] for i in part]) for part in made])


def _outside(axes: list, rank: int) -> list:  # type: ignore[type-arg]
    """Axes behind the batch in the order that callers have."""
    return axes[::-1] if rank == 3 else axes


def _factors(e: NodeExport) -> list[_Size]:
    """Every factor's size; of the rest of an axis that is not known, computed from the shape."""
    made: list[_Size] = []
    rank = e.node.inputs[0].rank
    for axis, factors in enumerate(e.node.at["split"], 1):
        known = math.prod(f for f in factors if f != REST)
        rest: _Size = 1
        channels = e.node.inputs[0].channels
        if axis == 1 and channels is not None:
            rest = channels // known
        elif REST in factors:
            place = outside_axis(axis, rank)
            size = e.out.add("Shape", e.x[0], start=place, end=place + 1)
            rest = e.out.add("Div", size, e.out.ends([known])) if known > 1 else size
        made += [rest if f == REST else f for f in factors]
    return made


def _product(e: NodeExport, sizes: Sequence[_Size]) -> _Size:
    known = math.prod(size for size in sizes if isinstance(size, int))
    values = [size for size in sizes if isinstance(size, str)]
    if not values:
        return known
    total = values[0]
    for value in values[1:]:
        total = e.out.add("Mul", total, value)
    return e.out.add("Mul", total, e.out.ends([known])) if known > 1 else total


def _reshape(e: NodeExport, value: str, sizes: Sequence[_Size]) -> str:
    """Behind the batch; one size that is not known follows from the others."""
    free = [size for size in sizes if isinstance(size, str)]
    if len(free) < 2:
        shape = e.out.ends([0, *(-1 if isinstance(size, str) else size for size in sizes)])
    else:
        parts = [size if isinstance(size, str) else e.out.ends([size]) for size in sizes]
        shape = e.out.add("Concat", e.out.ends([0]), *parts, axis=0)
    return e.out.add("Reshape", value, shape)


@writes("crop")
def crop(e: NodeExport) -> str:
    """Slice, with ends counted from behind."""
    at, rank = e.node.at, e.value.rank
    axes = [outside_axis(axis, rank) for axis in range(2, rank)]
    ends = [-end or _TO_END for end in at["end"]]
    steps = at["step"] or [1] * len(axes)
    return e.out.add("Slice", e.x[0], *map(e.out.ends, (at["begin"], ends, axes, steps)))


@writes("pad")
def pad(e: NodeExport) -> str:
    """Pad; ONNX joins no ends, so a circle is a Concat."""
    at, out, x, rank = e.node.at, e.out, e.x[0], e.value.rank
    if at["mode"] == "circular":
        return _circle(e)
    widths = [0, 0, *at["before"]], [0, 0, *at["after"]]
    pads = [w for side in widths for w in (side if rank == 4 else [0, side[2], 0])]
    mode = {"replicate": "edge"}.get(at["mode"], at["mode"])
    if mode != "constant":
        return out.add("Pad", x, out.ends(pads), mode=mode)
    value = -np.inf if at["value"] is None else at["value"]
    if e.y is None:
        return out.add("Pad", x, out.ends(pads), out.number(value), mode=mode)
    code = out.number(int(reference.quantize(np.array(value, np.float32), *e.y)), np.uint8)
    return out.add("Pad", x, out.ends(pads), code, mode=mode)


def _circle(e: NodeExport) -> str:
    """The other end's rows and columns, or tokens, before and after."""
    at, out, made = e.node.at, e.out, e.x[0]
    for axis, before, after in zip((2, 3), at["before"], at["after"], strict=False):
        place = outside_axis(axis, e.value.rank)
        parts = [made]
        if before:
            limits = ([-before], [_TO_END], [place])
            parts.insert(0, out.add("Slice", made, *map(out.ends, limits)))
        if after:
            parts.append(out.add("Slice", made, *map(out.ends, ([0], [after], [place]))))
        made = out.add("Concat", *parts, axis=place) if len(parts) > 1 else made
    return made
