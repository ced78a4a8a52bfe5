# SPDX-License-Identifier: Apache-2.0
"""Products of two traced values, summed over axes that both have: matmul, einsum, attention."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ternary_ops.compiler.arrange import joined_axes, placed, real, whole_axes
from ternary_ops.compiler.axes import Axis, Mixed, Value, one_batch, refined
from ternary_ops.compiler.step import Step

Pairs = Sequence[tuple[int, int]]
# A move of numbers among channels and pixels, where channels stay, and a size of the example that
# had to be said.
_CROSSED, _MOVED, _FIXED = 3, 2, 30


@dataclass(frozen=True)
class _Way:
    """One way to compute a product: which operand is the first of `matmul`, where both lie, and
    whether the second is transposed; how its result lies.
    """

    first: Value
    second: Value
    forms: tuple[tuple[Axis, ...], tuple[Axis, ...]]
    transpose: bool
    result: tuple[Axis, ...]
    tokens: Axis
    groups: Axis

    @property
    def fixed(self) -> bool:
        """True where a size of the example must be said."""
        said = (*self.forms[0][1], *self.forms[1][1], *self.tokens)
        return not all(atom.known for atom in said)

    @property
    def mixes_tokens(self) -> bool:
        """True where a softmax weighs tokens as it lies: attention, which is one operator."""
        return self.first.step.op == "softmax" and not self.transpose

    @property
    def cost(self) -> int:
        """Of the moves."""
        pairs = zip((self.first, self.second), self.forms, strict=True)
        moved = [pair for pair in pairs if pair[0].form != pair[1] and _is_varying(pair[0])]
        costs = [_MOVED if value.form[1] == form[1] else _CROSSED for value, form in moved]
        return sum(costs) + _FIXED * self.fixed


def _is_varying(value: Value) -> bool:
    return value.step.op != "constant"


def contracted(a: Value, b: Value, batch: Pairs, shared: Pairs) -> Value:
    """The sum over the `shared` axes of a times b, for each place of the `batch` axes, N among
    them. Axes: those of batch, then the others of a, then those of b.
    """
    a, b = (real(x) for x in _expanded(a, b, batch))
    pairs = [(i, j) for i, j in (*batch, *shared) if a.axes[i] and b.axes[j]]
    try:
        a, b = refined(a, b, pairs)
    except Mixed:
        a, b = refined(whole_axes(a), whole_axes(b), pairs)
    b = _of_one_batch(a, b)
    a = _of_one_batch(b, a)
    free = [
        [axis for i, axis in enumerate(x.axes) if i not in [p[side] for p in (*batch, *shared)]]
        for side, x in enumerate((a, b))
    ]
    together = [a.axes[i] or b.axes[j] for i, j in batch]
    sums = joined_axes([a.axes[i] for i, _ in shared])
    ways = _ways(a, b, joined_axes(together), sums, free)
    best = min(ways, key=lambda way: (way.cost, not way.mixes_tokens))
    operands = []
    for value, form in zip((best.first, best.second), best.forms, strict=True):
        moved = placed(value, form)
        moved.step.shape = moved.step.shape or moved.shape
        operands.append(moved.step)
    attrs = {
        "groups": a.length(best.groups)[0],
        "tokens": a.length(best.tokens)[0],
        "transpose": best.transpose,
    }
    step = Step("matmul", operands, attrs, fixed=best.fixed)
    made = Value(step, best.result, (*together, *free[0], *free[1]))
    step.shape = made.shape
    return made


def _expanded(a: Value, b: Value, batch: Pairs) -> tuple[Value, Value]:
    """Both with the larger size along batch axes that have size 1 in one of them."""
    sizes_a, sizes_b = a.sizes, b.sizes
    for i, j in batch:
        if i == j == 0:
            continue  # that of the images, or a constant's 1
        if set(sizes_a[i]) == {1}:
            sizes_a[i] = sizes_b[j]
        elif set(sizes_b[j]) == {1}:
            sizes_b[j] = sizes_a[i]
    sizes_a[0], sizes_b[0] = a.sizes[0], b.sizes[0]
    return a.expanded(sizes_a), b.expanded(sizes_b)


def _of_one_batch(a: Value, b: Value) -> Value:
    """b, which is the same for every image where no axis says otherwise, under a's batch."""
    n, m = one_batch(a), one_batch(b)
    if n is not m and not any(m in axis for axis in b.axes):
        return b.with_parts({m: (n,)})
    return b


def _ways(
    a: Value, b: Value, together: Axis, sums: Axis, free: Sequence[Sequence[Axis]]
) -> Iterator[_Way]:
    """All four: either operand first, the other transposed or not."""
    n = a.form[0]
    left, right = joined_axes(free[0]), joined_axes(free[1])
    for first, second, own, other in ((a, b, left, right), (b, a, right, left)):
        groups = _as_it_lies(first, [atom for atom in together if atom not in n])
        inner, own = _as_it_lies(first, sums), _as_it_lies(first, own)
        other = _as_it_lies(second, other)
        form, result = (n, (*groups, *inner), own), (n, (*groups, *other), own)
        crossed, plain = (n, (*groups, *inner), other), (n, (*groups, *other), inner)
        yield _Way(first, second, (form, crossed), True, result, other, groups)
        yield _Way(first, second, (form, plain), False, result, inner, groups)


def _as_it_lies(value: Value, atoms: Sequence[object]) -> Axis:
    """These atoms in the order of a value."""
    wanted = set(atoms)
    return tuple(atom for atom in value.atoms if atom in wanted)
