# SPDX-License-Identifier: Apache-2.0
"""What lies between the two products of attention: numbers moved to where constants are added, as
windows with a relative position bias and a mask do, and back.

Every score is given a number, which goes the way from one product to the other. Where each softmax
sums over all keys of one query of one head, and where every constant meets each score, can be read
from these numbers, however many steps move them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import mul
from typing import Any

import numpy as np

from ternary_ops.compiler.constants import constant_beside, known_value
from ternary_ops.compiler.step import Step, rewire
from ternary_ops.program.operator import BoundNode
from ternary_ops.program.operator import Value as Made
from ternary_ops.program.ops import OPS
from ternary_ops.program.weight import Array

_MOST_BIASES = 2


@dataclass(frozen=True)
class _Scores:
    """A product [N, G * M, L] of queries and keys, G groups and M keys, and what stands behind it
    up to the second product.
    """

    step: Step
    between: Sequence[Step]

    @property
    def sizes(self) -> tuple[int, int, int]:
        """G, M and L of the example."""
        at, shape = self.step.attrs, self.step.shape
        return at["groups"], at["tokens"], 0 if shape is None else shape[-1]


def attention_by_numbers(step: Step) -> Sequence[Step]:
    """softmax(scale * queries . keys + constants) . values, however scores are moved between."""
    at = step.attrs
    if step.op != "matmul" or at["transpose"] or at.get("scale", 1.0) != 1.0:
        return ()
    scores = _scores_before(step.inputs[0])
    if scores is None or scores.sizes[:2] != (at["groups"], at["tokens"]):
        return ()
    followed = _followed(scores)
    if followed is None:
        return ()
    numbers, added = followed
    order = _order_of_groups(numbers, scores.sizes)
    biases = [_fewest_groups(bias) for bias in added]
    if order is None or len(biases) > _MOST_BIASES:
        return ()
    queries, keys, values = *scores.step.inputs, step.inputs[1]
    made: list[Step] = []
    if order > 1:
        queries, keys = (_regrouped(x, at["groups"], order) for x in (queries, keys))
        biases = [_fewest_groups(_of_order(bias, order)) for bias in added]
        made += [queries, keys]
    constants = [
        constant_beside(step, f"bias of {step.place}", groups.reshape(1, -1, groups.shape[-1]))
        for groups, _ in biases
    ]
    step.op = "attention"
    step.attrs = {
        "heads": at["groups"],
        "tokens": at["tokens"],
        "scale": scores.step.attrs.get("scale", 1.0),
        "repeats": tuple(repeats for _, repeats in biases),
    }
    step.fixed = step.fixed or scores.step.fixed
    rewire(step, queries, keys, values, *constants)
    return [*made, *constants]


def _scores_before(step: Step) -> _Scores | None:
    """The product that a softmax, moves and sums with constants stand behind, all read once."""
    between: list[Step] = []
    while step.op != "matmul":
        if len(step.users) != 1 or step.chain is not None:
            return None
        between.append(step)
        if step.op == "softmax" or (OPS[step.op].rearranges and len(step.inputs) == 1):
            step = step.inputs[0]
        elif step.op == "add" and step.clamp == (None, None) and len(step.inputs) == 2:
            known = [known_value(x) is not None for x in step.inputs]
            if sum(known) != 1:
                return None
            step = step.inputs[known.index(False)]
        else:
            return None
    alone = len(step.users) == 1 and step.chain is None and step.shape is not None
    found = alone and step.attrs["transpose"] and [s.op for s in between].count("softmax") == 1
    return _Scores(step, between[::-1]) if found else None


def _followed(scores: _Scores) -> tuple[Array, list[Array]] | None:
    """The numbers of all scores where the second product reads them, and every constant as what is
    added to each score [G, M, L]; None where a softmax sums over anything else than keys.
    """
    groups, keys, queries = scores.sizes
    count = groups * keys * queries
    numbers: Array = np.arange(count).reshape(1, groups * keys, queries)
    added: list[Array] = []
    normalized = False
    for step in scores.between:
        if step.op == "softmax":
            columns = numbers.reshape(step.attrs.get("groups", 1), -1, numbers[0, 0].size)
            queries_of = columns // (keys * queries) * queries + columns % queries
            if columns.shape[1] != keys or (queries_of != queries_of[:, :1]).any():
                return None
            normalized = True
        elif step.op == "add":
            constant = next(v for x in step.inputs if (v := known_value(x)) is not None)
            shapes = zip(constant.shape, numbers.shape, strict=False)
            same_rank = constant.ndim == numbers.ndim
            if normalized or not same_rank or any(a not in (1, b) for a, b in shapes):
                return None
            bias = np.empty(count, np.float32)
            bias[numbers] = np.broadcast_to(constant, numbers.shape)
            added.append(bias.reshape(groups, keys, queries))
        else:
            operator = OPS[step.op]
            at = operator.completed(1, step.attrs)
            kind = Made(numbers.ndim, numbers.shape[1], numbers.shape[1], None)
            numbers = operator.reference(BoundNode(at, (kind,), None), [numbers])
    return numbers, added


def _order_of_groups(numbers: Array, sizes: tuple[int, int, int]) -> int | None:
    """A, where the second product has the A * B groups of the first as B of A; 1 for the same
    order, None for any other, or scores within a group that are not as they were.
    """
    groups, keys, queries = sizes
    blocks = numbers.reshape(groups, keys * queries)
    first = blocks[:, 0] // (keys * queries)
    if (blocks != first[:, None] * keys * queries + np.arange(keys * queries)).any():
        return None
    wanted = np.arange(groups)
    fits = (a for a in _divisors(groups) if (_of_order(wanted, a) == first).all())
    return next(fits, None)


def _of_order(groups: Array, order: int) -> Array:
    """A * B groups as B of A."""
    split = groups.reshape(order, -1, *groups.shape[1:])
    return split.swapaxes(0, 1).reshape(groups.shape)


def _divisors(number: int) -> Iterator[int]:
    return (a for a in range(1, number + 1) if number % a == 0)


def _fewest_groups(bias: Array) -> tuple[Array, int]:
    """Groups [G', M, L] and repeats such that group g of `bias` is g // repeats mod G'."""
    groups = len(bias)
    for count in _divisors(groups):
        for repeats in _divisors(groups // count):
            kept = bias[::repeats][:count]
            if (kept[np.arange(groups) // repeats % count] == bias).all():
                return kept, repeats
    return bias, 1


def _regrouped(x: Step, groups: int, order: int) -> Step:
    """Tokens whose A * B groups of channels come as B of A: moved so by the step that makes them,
    where it moves them already and nothing else reads them.
    """
    made = Step("rearrange", [], _swapped(order, groups), shape=x.shape)
    attrs = _with_swap(x.attrs, order, groups // order) if x.op == "rearrange" else None
    if attrs is not None and len(x.users) == 1:
        made.attrs = attrs
        rewire(made, *x.inputs)
    else:
        rewire(made, x)
    return made


def _swapped(order: int, groups: int) -> dict[str, Any]:
    split = ((order, groups // order, -1), (-1,))
    return {"split": split, "order": (1, 0, 2, 3), "axes": (3, 1), "rank": 3}


def _with_swap(at: dict[str, Any], first: int, second: int) -> dict[str, Any] | None:
    """Attributes of a rearrange that swaps the two outer parts of its channels as well; None where
    its factors do not end there.
    """
    split, order, axes = (at[name] for name in ("split", "order", "axes"))
    factors = [factor for axis in split for factor in axis]
    sizes = list(accumulate((factors[i] for i in order[: axes[0]]), mul))
    if min(factors[i] for i in order[: axes[0]]) < 1 or first not in sizes:
        return None
    i = sizes.index(first) + 1
    if first * second not in sizes[i:]:
        return None
    j = sizes.index(first * second, i) + 1
    return {**at, "order": (*order[i:j], *order[:i], *order[j:])}
