# SPDX-License-Identifier: Apache-2.0
"""Parts of a traced value along one of its axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ternary_ops.compiler.arrange import (
    canonical,
    channels_at,
    in_windows,
    placed,
    real,
    reshaped,
    shown,
)
from ternary_ops.compiler.axes import RANKS, Atom, Axis, Sizes, Value, repetition
from ternary_ops.compiler.combine import joined
from ternary_ops.compiler.read_layers import Layer
from ternary_ops.compiler.step import Step
from ternary_ops.compiler.unsupported import Unsupported
from ternary_ops.program.weight import Array, Weight

_MOST_RUNS = 8  # parts of an axis that are joined; more are taken by filters


class Range(NamedTuple):
    """Numbers of an axis from `begin` to before `end`, for each example, every step-th."""

    begin: Sizes
    end: Sizes
    step: int = 1

    @property
    def length(self) -> Sizes:
        """How many."""
        ends = zip(self.begin, self.end, strict=True)
        return tuple(max(0, -(-(b - a) // self.step)) for a, b in ends)


def part(value: Value, axis: int, kept: Range) -> Value:
    """Those numbers of a traced axis."""
    axis %= len(value.axes)
    whole, length = value.length(value.axes[axis]), kept.length
    if min(length) < 1:
        raise Unsupported(f"it takes nothing of shape {shown(value)}")
    if kept.step == 1 and (set(kept.begin), kept.end) == ({0}, whole):
        return value
    at = value.axes[axis]
    if at and all(atom in value.repeated for atom in at):
        axes = [*value.axes]
        axes[axis] = () if set(length) == {1} else (repetition(length),)
        return value.seen_as(axes)
    if at == value.form[0]:
        raise Unsupported("it takes some images of the batch")
    value, place = _at_the_start(_as_tokens(value), axis)
    if place > 1 and value.form[place] == value.axes[axis]:
        return _cropped(value, axis, place, kept)
    if kept.step == 1:
        return _sliced(value, axis, place, kept)
    return _every(value, axis, kept)


def _as_tokens(value: Value) -> Value:
    """Rows whose width no program knows as tokens of one number, which can be cropped."""
    batch, channels, *others = value.form
    if others or all(atom.known for atom in channels):
        return value
    return placed(value, (batch, (), channels))


def _at_the_start(value: Value, axis: int) -> tuple[Value, int]:
    """The value with a traced axis as the outermost part of an axis of its step, and which."""
    wanted, value = value.axes[axis], real(value)
    for place in range(1, len(value.form)):
        have = value.form[place]
        if have[: len(wanted)] == wanted:
            return value, place
        if set(wanted) <= set(have):
            form = [*value.form]
            form[place] = (*wanted, *(atom for atom in have if atom not in wanted))
            return placed(value, form), place
    if len(value.axes) in RANKS and not in_windows(value):
        value = _as_tokens(canonical(value))
        return value, value.form.index(wanted)
    return channels_at(value, axis), 1


def _with_axis(value: Value, axis: int, place: int, made: Axis, step: Step) -> Value:
    """With another row of atoms as a traced axis, outermost in an axis of the step."""
    form, axes = [*value.form], [*value.axes]
    form[place] = (*made, *form[place][len(axes[axis]) :])
    axes[axis] = made
    return Value(step, tuple(form), tuple(axes))


def _remaining(value: Value, axis: int, kept: Range) -> Axis:
    """What an axis becomes."""
    length = kept.length
    known = len(set(length)) == 1 and all(atom.known for atom in value.axes[axis])
    return () if set(length) == {1} else (Atom(length, known),)


def _cropped(value: Value, axis: int, place: int, kept: Range) -> Value:
    """By `crop`, which counts from both ends."""
    whole = value.length(value.axes[axis])
    left = [size - end for size, end in zip(whole, kept.end, strict=True)]
    fixed = not (len(set(kept.begin)) == len(set(left)) == 1)
    step = _crop(value, place - 2, (kept.begin[0], left[0], kept.step), fixed)
    return _with_axis(value, axis, place, _remaining(value, axis, kept), step)


def _crop(value: Value, at: int, cut: tuple[int, int, int], fixed: bool) -> Step:
    """A crop of one axis: how many go at either end, and the step; one with that of other axes."""
    count, source = len(value.form) - 2, value.step
    ends = {"begin": [0] * count, "end": [0] * count, "step": [1] * count}
    if source.op == "crop" and [source.attrs[name][at] for name in ends] == [0, 0, 1]:
        ends = {name: list(source.attrs[name]) for name in ends}
        fixed |= source.fixed
        (source,) = source.inputs
    for name, number in zip(ends, cut, strict=True):
        ends[name][at] = number
    return Step("crop", [source], {k: tuple(v) for k, v in ends.items()}, fixed=fixed)


def _sliced(value: Value, axis: int, place: int, kept: Range) -> Value:
    """By `slice` of channels, or `crop`, of whole blocks."""
    inner = value.form[place][len(value.axes[axis]) :]
    block = value.length(inner)
    begin, end = ([n * b for n, b in zip(ends, block, strict=True)] for ends in kept[:2])
    known = all(a.known for a in value.form[place]) and len(set(begin)) == len(set(end)) == 1
    if place == 1:
        step = Step("slice", [value.step], {"begin": begin[0], "end": end[0]}, fixed=not known)
        return _with_axis(value, axis, place, _remaining(value, axis, kept), step)
    left = value.length(value.form[place])[0] - end[0]
    step = _crop(value, place - 2, (begin[0], left, 1), not known)
    return _with_axis(value, axis, place, _remaining(value, axis, kept), step)


def _every(value: Value, axis: int, kept: Range) -> Value:
    """Every step-th number: the first of each block of so many, and a last one by itself."""
    length, step = kept.length, kept.step
    blocks = tuple(
        (size - b) // step for size, b in zip(value.sizes[axis], kept.begin, strict=True)
    )
    blocks = tuple(map(min, blocks, length))
    parts = []
    if min(blocks):
        end = tuple(b + n * step for b, n in zip(kept.begin, blocks, strict=True))
        run = part(value, axis, Range(kept.begin, end))
        shape = run.sizes
        steps = (step,) * len(end)
        split = reshaped(run, [*shape[:axis], blocks, steps, *shape[axis + 1 :]])
        parts.append(selected(split, axis + 1, (0,) * len(end)))
    if blocks != length:
        last = tuple(b + n * step for b, n in zip(kept.begin, blocks, strict=True))
        parts.append(part(value, axis, Range(last, tuple(n + 1 for n in last))))
    return parts[0] if len(parts) == 1 else joined(parts, axis)


def selected(value: Value, axis: int, index: Sizes) -> Value:
    """One number of a traced axis, without that axis."""
    axis %= len(value.axes)
    one = part(value, axis, Range(index, tuple(i + 1 for i in index)))
    return dropped(one, axis)


def dropped(value: Value, axis: int) -> Value:
    """Without an axis of size 1."""
    one = value.with_parts({atom: () for atom in value.axes[axis]})
    return one.seen_as([a for i, a in enumerate(one.axes) if i != axis])


def picked(value: Value, axis: int, places: Sequence[int]) -> Value:
    """The numbers of a traced axis at constant places."""
    runs: list[list[int]] = []
    for place in places:
        if runs and runs[-1][1] == place:
            runs[-1][1] += 1
        else:
            runs.append([place, place + 1])
    n = value.examples
    if len(runs) > _MOST_RUNS and len(set(value.sizes[axis])) == 1:
        filters = np.zeros((len(places), value.sizes[axis][0]), np.int8)
        filters[np.arange(len(places)), places] = 1
        return filtered("places", channels_at(value, axis), axis, filters)
    found = [part(value, axis, Range((begin,) * n, (end,) * n)) for begin, end in runs]
    return found[0] if len(found) == 1 else joined(found, axis)


def filtered(name: str, x: Value, axis: int, filters: Array) -> Value:
    """Other channels, which are the traced axis, each a copy of one there was or zeros: by filters
    [O, C] of codes, exactly.
    """
    scale = np.ones(len(filters), np.float32)
    weight = Weight(name, "ternary", filters[:, None, None], scale, None)
    op = "conv2d" if len(x.form) == RANKS[-1] else "linear"
    return x.with_channels(
        axis, len(filters), Step(op, [x.step], {}, Layer(op, weight, follows=True))
    )


def unfolded(value: Value, axis: int, size: int, step: int) -> Value:
    """Windows of `size` numbers of a traced axis, each `step` behind the last: their number in the
    place of the axis, their numbers behind all axes.
    """
    axis, n = axis % len(value.axes), value.examples
    counts = {(length - size) // step + 1 for length in value.sizes[axis]}
    if len(counts) > 1 or min(counts) < 1:
        raise Unsupported("how many windows it makes depends on the input")
    starts = range(0, counts.pop() * step, step)
    parts = [part(value, axis, Range((i,) * n, (i + size,) * n)) for i in starts]
    new = [p.seen_as([*p.axes[:axis], (), *p.axes[axis:]]) for p in parts]
    made = new[0] if len(new) == 1 else joined(new, axis)
    return made.seen_as([*made.axes[: axis + 1], *made.axes[axis + 2 :], made.axes[axis + 1]])


def rolled(value: Value, axis: int, shift: Sizes) -> Value:
    """The last `shift` numbers of a traced axis before the others."""
    size = value.sizes[axis]
    cut = tuple((-s) % n for s, n in zip(shift, size, strict=True))
    if not any(cut):
        return value
    parts = part(value, axis, Range(cut, size)), part(value, axis, Range((0,) * len(cut), cut))
    return joined(parts, axis)
