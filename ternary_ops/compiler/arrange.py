# SPDX-License-Identifier: Apache-2.0
"""Brings traced values to the place that an operator needs: the steps that move numbers.

Nothing moves where a value lies right already; where `flatten`, `unflatten`, `channel_shuffle` or a
pixel shuffle says the same as `rearrange`, it is that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ternary_ops.compiler.axes import (
    RANKS,
    Atom,
    Axes,
    Axis,
    Mixed,
    Sizes,
    Value,
    canonical_order,
    is_one,
)
from ternary_ops.compiler.step import Step
from ternary_ops.compiler.unsupported import Unsupported

_REST = -1  # a factor of what the others leave


def placed(value: Value, form: Sequence[Axis]) -> Value:
    """The value with its atoms where `form` says."""
    form = tuple(tuple(axis) for axis in form)
    if form == value.form:
        return value
    if form[0] != value.form[0]:
        raise Unsupported("it mixes the images of a batch")
    move = _Move.of(value.form, form)
    if len(form) == len(value.form) and move.source == move.target:
        return Value(value.step, form, value.axes)
    op, attrs = move.step()
    key = op, repr(attrs)
    if key not in value.step.moved:
        value.step.moved[key] = Step(op, [value.step], attrs, fixed=move.fixed)
    return Value(value.step.moved[key], form, value.axes)


@dataclass(frozen=True)
class _Move:
    """Rows of atoms that stay together, numbered in the order of the source: which of them make
    the axes behind N before and after.
    """

    rows: list[Axis]
    source: list[list[int]]
    target: list[list[int]]

    @classmethod
    def of(cls, before: Axes, after: Axes) -> _Move:
        """The move from one form to the other."""
        follows = {a: b for axis in after for a, b in zip(axis, axis[1:], strict=False)}
        rows: list[Axis] = []
        source: list[list[int]] = []
        for axis in before[1:]:
            source.append([])
            for atom in axis:
                if source[-1] and follows.get(rows[-1][-1]) is atom:
                    rows[-1] = (*rows[-1], atom)
                else:
                    source[-1].append(len(rows))
                    rows.append((atom,))
        number = {row[0]: i for i, row in enumerate(rows)}
        target = [[number[atom] for atom in axis if atom in number] for axis in after[1:]]
        return cls(rows, source, target)

    def size(self, row: int) -> int:
        """Of the first example, which is that of every input where it is known."""
        return math.prod(atom.sizes[0] for atom in self.rows[row])

    def known(self, row: int) -> bool:
        """True for a size that a program may say."""
        return all(atom.known for atom in self.rows[row])

    @property
    def split(self) -> list[list[int]]:
        """Sizes of the rows of every axis, one unknown one as the rest."""
        channels = self.target[0] if len(self.target) > 1 else []  # rows may have any number
        made = []
        for axis in self.source:
            free = [row for row in axis if not self.known(row)]
            rest = free if len(free) == 1 and free[0] not in channels else []
            made.append([_REST if row in rest else self.size(row) for row in axis])
        return made

    @property
    def fixed(self) -> bool:
        """True where an unknown size had to be said."""
        said = [size for axis in self.split for size in axis]
        return any(size != _REST and not self.known(row) for row, size in enumerate(said))

    def step(self) -> tuple[str, dict[str, Any]]:
        """Operator and attributes."""
        shape = self.source, self.target
        last = [row for axis in self.source for row in axis]
        known = all(map(self.known, last))
        if len(self.source) == 3 and self.target == [last] and not known:
            return "flatten", {}  # whose width is left to the size
        if len(self.source) == 1 and self.target == [last, [], []] and known:
            return "unflatten", {}
        if self.source[0] == [0, 1] and self.target == [[1, 0], *self.source[1:]]:
            if len(self.source) == 3:
                return "channel_shuffle", {"groups": self.size(0)}
        for c in ([0], []):
            r, s, h, w = range(len(c), len(c) + 4)
            if shape == ([[*c, r, s], [h], [w]], [c, [h, r], [w, s]]):
                return "pixel_shuffle", {"factor": (self.size(r), self.size(s))}
            h, r, w, s = range(len(c), len(c) + 4)
            if shape == ([c, [h, r], [w, s]], [[*c, r, s], [h], [w]]):
                if self.known(r) and self.known(s):
                    return "pixel_unshuffle", {"factor": (self.size(r), self.size(s))}
        order = tuple(row for axis in self.target for row in axis)
        attrs = {
            "split": tuple(map(tuple, self.split)),
            "order": order,
            "axes": tuple(map(len, self.target)),
            "rank": len(self.target) + 1,
        }
        return "rearrange", attrs


def real(value: Value) -> Value:
    """The value with a place for all its atoms: what repeats is written as often."""
    value = value.with_parts({atom: () for atom in value.repeated if is_one(atom)})
    step, form = value.step, list(value.form)
    for atom in value.repeated:
        empty = [place for place in range(2, len(form)) if not form[place]]
        at = empty[0] if empty else 1
        copies = [step] * atom.sizes[0]
        step = Step("concat", copies, concat_axis(at), fixed=not atom.known)
        form[at] = (atom, *form[at])
    return Value(step, tuple(form), value.axes)


def concat_axis(axis: int) -> dict[str, Any]:
    """Attributes of a concatenation."""
    return {} if axis == 1 else {"axis": axis}


def canonical(value: Value) -> Value:
    """The value as torch has it: [N, C, H, W], [N, L, C] or [N, C]."""
    if len(value.axes) not in RANKS:
        raise Unsupported(f"it needs rank 2, 3 or 4, this has shape {shown(value)}")
    value = real(value)
    return placed(value, [value.axes[i] for i in canonical_order(len(value.axes))])


def shown(value: Value) -> tuple[int, ...]:
    """The traced shape, for people."""
    return tuple(sizes[0] for sizes in value.sizes)


def channels_at(value: Value, axis: int, ranks: Sequence[int] = RANKS) -> Value:
    """The value with this traced axis, and nothing else, as channels; a value of these ranks."""
    value, axis = real(value), axis % len(value.axes)
    channels = value.axes[axis]
    if value.form[1] == channels and len(value.form) in ranks:
        return value
    (batch,) = value.form[:1]
    if any(atom in batch for atom in channels):
        raise Unsupported("it works along the batch")
    rest = [_without(a, batch) for i, a in enumerate(value.axes) if i != axis]
    pixels = [a for a in rest if a]
    if not pixels and 2 in ranks:
        return placed(value, [batch, channels])
    if 4 not in ranks or (len(pixels) < 2 and 3 in ranks and len(value.axes) < 4):
        return placed(value, [batch, channels, joined_axes(pixels)])
    return placed(value, [batch, channels, joined_axes(pixels[:-1]), joined_axes(pixels[-1:])])


def in_windows(value: Value) -> bool:
    """True where the first traced axis has more than the images of the batch."""
    return value.axes[0] != value.form[0]


def beside_channels(value: Value) -> Value:
    """[N * windows, C, H, W] as images whose channels are those of every window, one after the
    other.
    """
    value, batch = real(value), value.form[0]
    if not set(batch) <= set(value.axes[0]):
        raise Unsupported("it mixes the images of a batch")
    channels = joined_axes([_without(value.axes[0], batch), value.axes[1]])
    return placed(value, [batch, channels, *value.axes[2:]])


def with_windows(value: Value, step: Step, sizes: Sequence[Sizes]) -> Value:
    """What a step makes of `beside_channels`, under axes of these sizes."""
    windows = _without(value.axes[0], value.form[0])
    made: list[Axis] = []
    for size, axis in zip(sizes[1:], value.axes[1:], strict=True):
        known = all(atom.known for atom in axis) and len(set(size)) == 1
        made.append(() if known and size[0] == 1 else (Atom(size, known),))
    form = (value.form[0], (*windows, *made[0]), *made[1:])
    return Value(step, form, (value.axes[0], *made))


def _without(axis: Axis, others: Axis) -> Axis:
    return tuple(atom for atom in axis if atom not in others)


def reshaped(value: Value, shape: Sequence[Sizes]) -> Value:
    """Under axes of these sizes; numbers move only where their factors do not fit."""
    try:
        return value.reshaped(shape)
    except Mixed:
        row = _in_a_row(value, shape)
    try:
        return row.reshaped(shape)
    except Mixed:
        raise Unsupported(_across(value, shape)) from None


def _across(value: Value, shape: Sequence[Sizes]) -> str:
    return f"it reshapes {shown(value)} to {tuple(s[0] for s in shape)}, across the batch"


def _in_a_row(value: Value, shape: Sequence[Sizes]) -> Value:
    """With the axes that a reshape changes as one atom."""
    value, sizes = real(value), value.sizes
    least = min(len(sizes), len(shape)) - 1
    first = next((i for i in range(least) if sizes[i] != shape[i]), least)
    last = next((i for i in range(least - first) if sizes[~i] != shape[~i]), least - first)
    (batch, *_), end = value.form, len(sizes) - last
    if value.axes[0] != batch or first == 0:
        raise Unsupported(_across(value, shape))
    before, after = joined_axes(value.axes[1:first]), joined_axes(value.axes[end:])
    if not (before or after) or not all(a.known for a in joined_axes(value.axes[first:end])):
        first, end, before, after = 1, len(sizes), (), ()
    between = joined_axes(value.axes[first:end])
    around = (before, after) if before or after else ()
    moved = placed(value, (batch, between, *around))
    one = Atom(value.length(between), all(a.known for a in between))
    axes = *moved.axes[:first], (one,), *moved.axes[end:]
    return Value(moved.step, (batch, (one,), *around), axes)


def whole_axes(value: Value) -> Value:
    """With one atom an axis."""
    value = canonical(value)
    parts = {
        axis[0]: (Atom(value.length(axis), all(a.known for a in axis)),)
        for axis in value.axes
        if len(axis) > 1
    }
    rest: dict[Atom, Axis] = {a: () for axis in value.axes for a in axis[1:]}
    return value.with_parts({**parts, **rest})


def joined_axes(axes: Sequence[Axis]) -> Axis:
    """The atoms of several axes in a row."""
    return tuple(atom for axis in axes for atom in axis)
