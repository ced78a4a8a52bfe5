# SPDX-License-Identifier: Apache-2.0
"""Axes of a traced value, and where they lie in the value of its step.

A value of a program has the axes N, C and, of tokens, L or, of an image, H and W. A traced value
may have others: [N, H, W, C], [N, heads, L, D], [windows, pixels, C]. Every axis of either is a row
of atoms, outermost first; the same atoms make both, so permute, reshape, squeeze and expand write
other axes and move nothing. `arrange` moves atoms where an operator needs them elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from ternary_ops.compiler.step import Step
from ternary_ops.compiler.unsupported import Unsupported
from ternary_ops.program.operator import TOKENS

# The size of an axis for each example that the network ran on.
Sizes: TypeAlias = tuple[int, ...]
RANKS = (2, 3, 4)  # of the values of a program


@dataclass(frozen=True, eq=False)
class Atom:
    """A factor of an axis. known: its size holds for every input, and a program may say it."""

    sizes: Sizes
    known: bool


Axis: TypeAlias = tuple[Atom, ...]
Axes: TypeAlias = tuple[Axis, ...]


class Mixed(Exception):
    """A reshape that is no regrouping of factors, as [6, 4] to [4, 6]."""


@dataclass(frozen=True, eq=False)
class Value:
    """A traced value of these `axes`, which lie in the step's value as `form` says: N first, then
    C. An atom that is in no axis of the step repeats what is there, as after expand.

    as_traced: it lies as torch has it: [N, C, H, W], [N, L, C] or [N, C].
    """

    step: Step
    form: Axes
    axes: Axes
    as_traced: bool = False

    @property
    def sizes(self) -> list[Sizes]:
        """The traced shape, for each example."""
        return [self.length(axis) for axis in self.axes]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the step's value for the first example."""
        return tuple(self.length(axis)[0] for axis in self.form)

    @property
    def examples(self) -> int:
        """How many examples sizes are known for."""
        return len(self.form[0][0].sizes)

    @property
    def atoms(self) -> list[Atom]:
        """All that lie in the step's value, in its order."""
        return [atom for axis in self.form for atom in axis]

    @property
    def repeated(self) -> list[Atom]:
        """Atoms that the step's value lacks."""
        there = set(self.atoms)
        return [atom for axis in self.axes for atom in axis if atom not in there]

    def length(self, axis: Axis) -> Sizes:
        """Size of a row of atoms."""
        ones = (1,) * self.examples
        return tuple(math.prod(sizes) for sizes in zip(ones, *(a.sizes for a in axis), strict=True))

    def of(self, step: Step) -> Value:
        """A value that lies as this one does, made by another step."""
        return replace(self, step=step)

    def with_channels(self, axis: int, count: int, step: Step) -> Value:
        """What a layer makes of the channels of the step's value, which are the traced `axis`."""
        sizes = (count,) * self.examples
        made: Axis = () if count == 1 else (Atom(sizes, True),)
        axes = (*self.axes[:axis], made, *self.axes[axis + 1 :])
        return Value(step, (self.form[0], made, *self.form[2:]), axes)

    def seen_as(self, axes: Sequence[Axis]) -> Value:
        """The same numbers under other axes."""
        return Value(self.step, self.form, tuple(axes))

    def with_parts(self, parts: Mapping[Atom, Axis]) -> Value:
        """With these atoms replaced by rows of others."""

        def written(axes: Axes) -> Axes:
            return tuple(tuple(b for a in axis for b in parts.get(a, (a,))) for axis in axes)

        return Value(self.step, written(self.form), written(self.axes))

    def reshaped(self, shape: Sequence[Sizes]) -> Value:
        """Under axes of these sizes, in row-major order; raises Mixed."""
        left = [atom for axis in self.axes for atom in axis]
        parts: dict[Atom, Axis] = {}
        axes: list[list[Atom]] = []
        for wanted in shape:
            axes.append(left[:1] if set(wanted) == {1} and left and is_one(left[0]) else [])
            left = left[len(axes[-1]) :]
            while set(wanted) != {1}:
                if not left:
                    raise Mixed
                atom = left.pop(0)
                if not divides(atom.sizes, wanted):
                    if not divides(wanted, atom.sizes):
                        raise Mixed
                    parts[atom] = split(atom, wanted)
                    atom, inner = parts[atom]
                    left.insert(0, inner)
                axes[-1].append(atom)
                wanted = quotient(wanted, atom.sizes)
        if not all(map(is_one, left)):
            raise Mixed
        axes[-1] += left  # of one number each
        whole = self.with_parts(_flat(parts))
        return whole.seen_as([tuple(axis) for axis in axes])

    def expanded(self, shape: Sequence[Sizes]) -> Value:
        """Axes of size 1 become these sizes, new ones stand before the others."""
        axes: list[Axis] = [()] * (len(shape) - len(self.axes))
        axes += self.axes
        for place, wanted in enumerate(shape):
            if self.length(axes[place]) != wanted:
                axes[place] = self.repeated_as(place, wanted)
        return self.seen_as(axes)

    def repeated_as(self, place: int, sizes: Sizes) -> Axis:
        """What an axis of size 1 becomes that repeats: of what is the same for every image, the
        first one is the batch.
        """
        batch = one_batch(self)
        own = any(batch in axis for axis in self.axes)
        if place == 0 and not own and sizes == batch.sizes:
            return self.form[0]
        return (repetition(sizes),)


def one_batch(value: Value) -> Atom:
    """The one factor of the axis N; raises Unsupported where it has several, as of windows."""
    if len(value.form[0]) != 1:
        raise Unsupported("its operands have batches of several factors")
    return value.form[0][0]


def is_one(atom: Atom) -> bool:
    """True for a size of 1, known or not."""
    return set(atom.sizes) == {1}


def repetition(sizes: Sizes) -> Atom:
    """An atom along which the same numbers repeat."""
    return Atom(sizes, len(set(sizes)) == 1)


def canonical_order(rank: int) -> tuple[int, ...]:
    """The traced axes in the order of a program's value: channels of tokens [N, L, C] come last."""
    return (0, 2, 1) if rank == TOKENS else tuple(range(rank))


def made_by(step: Step, shape: Sequence[Sizes], varied: bool) -> Value:
    """The value of a step, new or not, that lies as torch has it.

    varied: the examples differ in the sizes of images and tokens, so that those which are equal are
    known to be.
    """
    order = canonical_order(len(shape))
    form: list[Axis] = []
    for place, axis in enumerate(order):
        sizes = shape[axis]
        known = place == 1 or (place > 1 and varied and len(set(sizes)) == 1)
        form.append(() if known and set(sizes) == {1} else (Atom(sizes, known),))
    step.shape = tuple(shape[axis][0] for axis in order)
    axes = tuple(form[i] for i in order)  # the order is its own inverse
    return Value(step, tuple(form), axes, as_traced=True)


def divides(part: Sizes, whole: Sizes) -> bool:
    """True where that holds of each example."""
    return all(a and b % a == 0 for a, b in zip(part, whole, strict=True))


def quotient(whole: Sizes, part: Sizes) -> Sizes:
    """Of each example."""
    return tuple(b // a for a, b in zip(part, whole, strict=True))


def split(atom: Atom, outer: Sizes) -> tuple[Atom, Atom]:
    """An atom as two, the first of these sizes."""
    inner = quotient(atom.sizes, outer)
    varied = len(set(atom.sizes)) > 1
    known = [(atom.known or varied) and len(set(sizes)) == 1 for sizes in (outer, inner)]
    return Atom(outer, known[0]), Atom(inner, known[1])


def _flat(parts: dict[Atom, Axis]) -> dict[Atom, Axis]:
    """Atoms that were split again, in their final parts."""
    made: dict[Atom, Axis] = {}
    for atom in reversed(parts):
        made[atom] = tuple(b for a in parts[atom] for b in made.get(a, (a,)))
    return made


def refined(a: Value, b: Value, pairs: Sequence[tuple[int, int]]) -> tuple[Value, Value]:
    """Both values with the same atoms, those of `a`, along these pairs of axes, which have equal
    sizes, and no other atom in common; raises Mixed.
    """
    b = b.with_parts({atom: (replace(atom),) for atom in (*b.atoms, *b.repeated)})
    for i, j in pairs:
        if [x.sizes for x in a.axes[i]] != [x.sizes for x in b.axes[j]]:
            a, b = _without_ones(a, i), _without_ones(b, j)
            parts_a, parts_b = _common(a.axes[i], b.axes[j])
            a, b = a.with_parts(parts_a), b.with_parts(parts_b)
        b = b.with_parts({y: (x,) for x, y in zip(a.axes[i], b.axes[j], strict=True)})
    return a, b


def _without_ones(value: Value, axis: int) -> Value:
    return value.with_parts({atom: () for atom in value.axes[axis] if is_one(atom)})


def _common(a: Axis, b: Axis) -> tuple[dict[Atom, Axis], dict[Atom, Axis]]:
    """How the atoms of either row split, so that both have the same sizes."""
    rows = list(a), list(b)
    parts: tuple[dict[Atom, Axis], dict[Atom, Axis]] = ({}, {})
    while rows[0] and rows[1]:
        large = 0 if divides(rows[1][0].sizes, rows[0][0].sizes) else 1
        whole, part = rows[large][0], rows[1 - large].pop(0)
        if whole.sizes == part.sizes:
            rows[large].pop(0)
        elif divides(part.sizes, whole.sizes):
            parts[large][whole] = split(whole, part.sizes)
            rows[large][0] = parts[large][whole][1]
        else:
            raise Mixed
    if rows[0] or rows[1]:
        raise Mixed
    return _flat(parts[0]), _flat(parts[1])
