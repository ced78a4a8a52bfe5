# SPDX-License-Identifier: Apache-2.0
"""Traced values that one operator reads together: number by number, or one behind the other."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ternary_ops.compiler.arrange import (
    canonical,
    channels_at,
    concat_axis,
    in_windows,
    placed,
    real,
    shown,
    whole_axes,
)
from ternary_ops.compiler.axes import (
    RANKS,
    Atom,
    Axes,
    Axis,
    Mixed,
    Value,
    canonical_order,
    one_batch,
    refined,
    repetition,
)
from ternary_ops.compiler.step import Step
from ternary_ops.compiler.unsupported import Unsupported


def paired(a: Value, b: Value, keep_first: bool = False) -> tuple[Value, Value, Value]:
    """Two operands where an operator of programs combines them number by number, and how its
    result lies. Axes of size 1 meet all of the other operand's.

    keep_first: the first stays where it lies.
    """
    axes, a, b = _met(a, b)
    best: tuple[Value, Value, Value] | None = None
    least = math.inf
    for form in _forms(a, b, axes)[: 1 if keep_first else None]:
        first, second = _spread_over(a, form), _spread_over(b, form)
        if first is None or second is None:
            continue
        cost = _cost(a, first) + _cost(b, second)
        if cost < least:
            least, best = cost, (first, second, Value(first.step, form, axes))
    if best is None:
        raise Unsupported(f"it combines {shown(a)} and {shown(b)}, whose axes lie too differently")
    return best


def _cost(old: Value, new: Value) -> int:
    """Of moving a value; a constant moves while the network is compiled."""
    if new.step is old.step or old.step.op == "constant":
        return 0
    return 1 + 10 * new.step.fixed


def _met(a: Value, b: Value) -> tuple[Axes, Value, Value]:
    """The axes of a combination, and both operands with the atoms of these."""
    rank = max(len(a.axes), len(b.axes))
    a, b = (_of_rank(x, rank) for x in (a, b))
    pairs = []
    for i in range(rank):
        if not a.axes[i] or not b.axes[i]:
            continue
        if a.length(a.axes[i]) == b.length(b.axes[i]):
            pairs.append((i, i))
        elif set(a.length(a.axes[i])) == {1}:
            a = a.with_parts({atom: () for atom in a.axes[i]})
        else:
            b = b.with_parts({atom: () for atom in b.axes[i]})
    try:
        a, b = refined(a, b, pairs)
    except Mixed:
        a, b = refined(whole_axes(a), whole_axes(b), pairs)
    n, m = one_batch(a), one_batch(b)
    if not any(m in axis for axis in b.axes):  # the same for every image
        b = b.with_parts({m: (n,)})
    elif not any(n in axis for axis in a.axes):
        a = a.with_parts({n: (m,)})
    return tuple(x or y for x, y in zip(a.axes, b.axes, strict=True)), a, b


def _of_rank(value: Value, rank: int) -> Value:
    """With axes of size 1 before its own. What is the same for every image has no batch elsewhere
    than there: a first axis of that size is another.
    """
    axes = [*[()] * (rank - len(value.axes)), *value.axes]
    if axes[0] != value.form[0] and value.step.op == "constant":
        axes = [axis if axis != value.form[0] else (repetition(axis[0].sizes),) for axis in axes]
    return value.seen_as(axes)


def _forms(a: Value, b: Value, axes: Axes) -> list[Axes]:
    """Where the result may lie: as either operand, as torch has it, or with what either has alone
    in an axis of its own.
    """
    forms = [_filled(a, b), _filled(b, a)]
    there = {*a.atoms, *b.atoms}
    if len(axes) in RANKS:
        wanted = (axes[i] for i in canonical_order(len(axes)))
        forms.append(tuple(tuple(x for x in axis if x in there) for axis in wanted))
    batch, only_b = a.form[0], tuple(x for x in b.atoms if x not in a.atoms)
    both, only_a = (
        tuple(x for x in a.atoms if x not in batch and (x in b.atoms) is shared)
        for shared in (True, False)
    )
    # Channels must be of a known number.
    channels, *pixels = sorted((both, only_a, only_b), key=lambda axis: not _is_known(axis))
    forms.append((batch, channels, *pixels))
    return forms


def _is_known(axis: Axis) -> bool:
    return all(atom.known for atom in axis)


def _filled(a: Value, b: Value) -> Axes:
    """The form of a, where what b has alone stands in empty axes."""
    if len(a.form) != len(b.form):
        return a.form
    there = set(a.atoms)
    return tuple(
        mine or (() if there & set(other) else other)
        for mine, other in zip(a.form, b.form, strict=True)
    )


def _spread_over(value: Value, form: Axes) -> Value | None:
    """The value at its part of a form, where operators broadcast along whole axes."""
    there = set(value.atoms)
    own = tuple(axis if there.issuperset(axis) else () for axis in form)
    if {atom for axis in own for atom in axis} != there or own[0] != value.form[0]:
        return None
    return placed(value, own)


def joined(values: Sequence[Value], axis: int) -> Value:
    """One behind the other along a traced axis."""
    axis %= len(values[0].axes)
    others = [i for i in range(len(values[0].axes)) if i != axis]
    whole = [real(value) for value in values]
    for _ in range(2):  # the last may split what the first has
        for i in range(1, len(whole)):
            try:
                whole[0], whole[i] = refined(whole[0], whole[i], [(k, k) for k in others])
            except Mixed:
                whole = [whole_axes(value) for value in whole]
                return joined(whole, axis)
    first = _base(whole, axis)
    at = _place(first, axis)
    made = Atom(_total(whole, axis), all(a.known for v in whole for a in v.axes[axis]))
    rest = first.form[at][len(first.axes[axis]) :]
    parts = []
    for value in whole:
        form = list(first.form)
        form[at] = (*value.axes[axis], *rest)
        parts.append(placed(value, form).step)
    form = [*first.form]
    form[at] = (made, *rest)
    axes = [*first.axes]
    axes[axis] = (made,)
    return Value(Step("concat", parts, concat_axis(at)), tuple(form), tuple(axes))


def _base(values: Sequence[Value], axis: int) -> Value:
    """The first value that can be joined where it lies, or one that is moved there."""
    varying = [value for value in values if value.step.op != "constant"] or values
    for value in varying:
        if _place(value, axis):
            return value
    first = varying[0]
    whole = len(first.axes) in RANKS and not in_windows(first)
    return canonical(first) if whole else channels_at(first, axis)


def _place(value: Value, axis: int) -> int:
    """The axis of the step's value whose outermost part this traced axis is; 0 for none."""
    wanted = value.axes[axis]
    if wanted == value.form[0]:
        raise Unsupported("it works along the batch")
    places = range(1, len(value.form))
    exact = [i for i in places if value.form[i] == wanted]
    begins = [i for i in places if value.form[i][: len(wanted)] == wanted]
    return [*reversed(exact), *begins, 0][0]


def _total(values: Sequence[Value], axis: int) -> tuple[int, ...]:
    return tuple(map(sum, zip(*(v.length(v.axes[axis]) for v in values), strict=True)))
