# SPDX-License-Identifier: Apache-2.0
"""Traced values reduced along any of their axes, and how two combine number by number."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from ternary_ops.compiler.arrange import placed
from ternary_ops.compiler.axes import Atom, Axis, Value
from ternary_ops.compiler.combine import paired
from ternary_ops.compiler.parts import selected
from ternary_ops.compiler.step import Step
from ternary_ops.compiler.unsupported import Unsupported

_FEW = 4  # parts of the channels whose sum is cheaper by slices


def activation(x: Value, fn: str, *params: float) -> Value:
    """A function of `reference.activations`."""
    return x.of(Step("activation", [x.step], {"fn": fn, "params": params}))


def combined(op: str, a: Value, b: Value) -> Value:
    """The sum or product of two values, along axes of size 1 as torch has it."""
    x, y, result = paired(a, b)
    if op == "mul" and len(x.atoms) < len(y.atoms):
        x, y = y, x  # a gate comes second
    return result.of(Step(op, [x.step, y.step]))


def difference(a: Value, b: Value) -> Value:
    """a - b."""
    return combined("add", a, activation(b, "affine", -1.0, 0.0))


def quotient(a: Value, b: Value) -> Value:
    """a / b."""
    return combined("mul", a, activation(b, "reciprocal"))


def reduced(value: Value, axes: Sequence[int], fn: str, keep: bool) -> Value:
    """The sum, mean, max or min along traced axes, which keep the size 1 or go."""
    places = sorted({axis % len(value.axes) for axis in axes})
    atoms = [atom for place in places for atom in value.axes[place]]
    if any(atom in value.form[0] for atom in atoms):
        raise Unsupported("it works along the batch")
    repeated = [atom for atom in atoms if atom in value.repeated]
    there = {atom for atom in atoms if atom not in repeated}
    if fn == "sum" and repeated:
        value = activation(value, "affine", float(_count(repeated)), 0.0)
    if len(places) == 1 and fn in ("sum", "mean") and _few_of_channels(value, there):
        value = _sum_of_parts(value, places[0], fn)
    elif there:
        value = _along(_apart(value, there), there, fn)
    gone = value.with_parts({atom: () for atom in atoms})
    kept = [axis for i, axis in enumerate(gone.axes) if keep or i not in places]
    return gone.seen_as(kept)


def logsumexp(x: Value, axes: Sequence[int], keep: bool) -> Value:
    """By way of the largest number, which no exponential exceeds."""
    most = reduced(x, axes, "max", True)
    total = reduced(activation(difference(x, most), "exp"), axes, "sum", keep)
    return combined(
        "add", activation(total, "log"), most if keep else reduced(x, axes, "max", False)
    )


def count_of(value: Value, axes: Sequence[int]) -> int:
    """How many numbers a mean along these axes is taken of; raises Unsupported where that depends
    on the input.
    """
    atoms = [atom for axis in axes for atom in value.axes[axis]]
    if any(len(set(atom.sizes)) > 1 for atom in atoms):
        raise Unsupported("how many numbers it sums over depends on the input")
    return _count(atoms)


def _count(atoms: Sequence[Atom]) -> int:
    return math.prod(atom.sizes[0] for atom in atoms)


def _few_of_channels(value: Value, there: Collection[Atom]) -> bool:
    """True for a small factor of the channels."""
    channels = value.form[1]
    inside = bool(there) and set(there) < set(channels)
    return inside and all(atom.known for atom in there) and _count(list(there)) <= _FEW


def _sum_of_parts(value: Value, axis: int, fn: str) -> Value:
    """By slices of the channels, which may stay integers; along an axis that stays, of size 1."""
    count = value.sizes[axis][0]
    parts = [selected(value, axis, (i,) * value.examples) for i in range(count)]
    total = parts[0]
    for part in parts[1:]:
        total = combined("add", total, part)
    if fn == "mean":
        total = activation(total, "affine", 1 / count, 0.0)
    return total.seen_as([*total.axes[:axis], (), *total.axes[axis:]])


def _along(value: Value, there: Collection[Atom], fn: str) -> Value:
    """Along axes of the step's value that hold these atoms alone."""
    image = set(value.form[2]) | set(value.form[3]) if len(value.form) == 4 else set()
    if fn == "mean" and image and image == set(there):  # a pool, which may stay integers
        return value.of(Step("adaptive_avg_pool2d", [value.step], {"size": (1, 1)}))
    places = [i for i, axis in enumerate(value.form) if axis and i and set(axis) <= set(there)]
    return value.of(Step("reduce", [value.step], {"fn": fn, "axes": tuple(places)}))


def _apart(value: Value, there: Collection[Atom]) -> Value:
    """The value with these atoms in axes of their own, behind the others."""

    def some(axis: Axis, inside: bool) -> Axis:
        return tuple(atom for atom in axis if (atom in there) == inside)

    if all(not some(axis, True) or not some(axis, False) for axis in value.form[1:]):
        return value
    kept = [some(axis, False) for axis in value.form[1:]]
    channels, rest = kept[0], tuple(atom for axis in kept[1:] for atom in axis)
    own = tuple(atom for axis in value.form[1:] for atom in some(axis, True))
    return placed(value, (value.form[0], channels, *([rest] if rest else []), own))
