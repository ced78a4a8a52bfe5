# SPDX-License-Identifier: Apache-2.0
"""Rearrange: numbers move among the axes behind the batch, as reshape and permute do."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np

from ternary_ops import reference
from ternary_ops.errors import FormatError, UnsupportedShape, need
from ternary_ops.program.attributes import (
    MAX_CHANNELS,
    REWRITE,
    Attribute,
    Check,
    among,
    integer,
    integers,
    items,
    short,
)
from ternary_ops.program.operator import (
    BoundNode,
    ChannelPairs,
    Operand,
    Operator,
    Shape,
    Value,
    need_few,
    need_known,
    plain,
    register,
)
from ternary_ops.program.weight import Array

# Factors of one axis; REST stands for what the others leave, None for what only a size tells.
Factors: TypeAlias = tuple[int, ...]
REST = -1
MAX_FACTORS = 16  # of all axes


def _read_split(where: str, value: Any) -> tuple[Factors, ...]:
    if type(value) not in (list, tuple) or not 1 <= len(value) <= 3:
        raise FormatError(need(f"{where} as a list for each axis", short(value), REWRITE))
    return tuple(_read_factors(where, factors) for factors in value)


def _read_factors(where: str, value: Any) -> Factors:
    length = len(value) if type(value) in (list, tuple) and len(value) <= MAX_FACTORS else 0
    factors = [integer(where, v, REST, MAX_CHANNELS) for v in items(where, value, length)]
    if 0 in factors or factors.count(REST) > 1:
        wanted = f"{where} as factors of at least 1, one of them -1 at most"
        raise FormatError(need(wanted, factors, REWRITE))
    return tuple(factors)


_SPLIT = Check("for each axis its factors, 1..2^24, or -1 for the rest", _read_split)


@register
class Rearrange(Operator):
    """Numbers moved among the axes behind the batch: each axis of the input is `split` into
    factors, outermost first; these, in the new `order`, become axes again, the first `axes`[0] of
    them the channels
    """

    name = "rearrange"
    attrs = {
        "split": Attribute(_SPLIT),
        "order": Attribute(integers(0, MAX_FACTORS - 1, MAX_FACTORS)),
        "axes": Attribute(integers(0, MAX_FACTORS, 3)),
        "rank": Attribute(among(2, 3, 4)),
    }
    keeps_params = rearranges = True

    def value(self, node: BoundNode) -> Value:
        """Of the rank that it says; only rows may have channels that depend on the size."""
        at, x = node.at, node.inputs[0]
        _need_axes(at, x.rank)
        channels = _channel_factors(at, x)
        known = [*channels, *(f if f != REST else None for axis in at["split"][1:] for f in axis)]
        made = [known[i] for i in at["order"][: at["axes"][0]]]
        multiple = math.prod(f for f in made if f is not None)
        width = None if None in made else multiple
        if at["rank"] != 2:
            need_known(width)
        need_few(multiple)
        return replace(x, rank=at["rank"], channels=width, multiple=multiple)

    def shape(self, node: BoundNode, inputs: Sequence[Shape]) -> Shape:
        """Axes of the products of their factors."""
        x = inputs[0]
        sizes = _sizes(node.at["split"], x[1:])
        return x[0], *reference.joined([sizes[i] for i in node.at["order"]], node.at["axes"])

    def channel_pairs(self, node: BoundNode) -> list[ChannelPairs] | None:
        """A permutation, where the channels are made of channels alone; else None."""
        at = node.at
        count, order = len(at["split"][0]), at["order"][: at["axes"][0]]
        factors = _channel_factors(at, node.inputs[0])
        if sorted(order) != list(range(count)) or None in factors:
            return None
        made = np.arange(math.prod(f or 1 for f in factors))
        return [(made, made.reshape([f or 1 for f in factors]).transpose(order).ravel())]

    def reference(self, node: BoundNode, operands: Sequence[Operand]) -> Array:
        """Reshape, transpose, reshape."""
        x, at = plain(operands[0]), node.at
        return reference.rearrange(x, _sizes(at["split"], x.shape[1:]), at["order"], at["axes"])


def _need_axes(at: Mapping[str, Any], rank: int) -> None:
    """Raise FormatError unless factors, order and axes fit each other and the ranks."""
    split, order, axes = at["split"], at["order"], at["axes"]
    if len(split) != rank - 1:
        raise FormatError(need(f"factors of {rank - 1} axes", len(split), REWRITE))
    if len(axes) != at["rank"] - 1:
        raise FormatError(need(f"axes of rank {at['rank']}", len(axes), REWRITE))
    count = sum(map(len, split))
    if sorted(order) != list(range(count)):
        raise FormatError(need(f"an order of 0..{count - 1}", list(order), REWRITE))
    if sum(axes) != count:
        raise FormatError(need(f"axes of {count} factors together", list(axes), REWRITE))


def _channel_factors(at: Mapping[str, Any], x: Value) -> list[int | None]:
    """Factors of the channels, as far as they are known before the size is."""
    factors, known = at["split"][0], x.channels
    product = math.prod(f for f in factors if f != REST)
    free = REST in factors
    width = x.multiple if known is None else known
    fits = product % width == 0 if known is None else width % product == 0
    if not ((known is None and free) or (fits and (free or known in (None, product)))):
        raise FormatError(need(f"factors of {width} channels", list(factors), REWRITE))
    rest = None if known is None else known // product
    return [rest if f == REST else f for f in factors]


def _sizes(split: Sequence[Factors], sizes: Sequence[int]) -> list[int]:
    """Factors of all axes in a row; raises UnsupportedShape where one does not divide."""
    made: list[int] = []
    for factors, size in zip(split, sizes, strict=True):
        product = math.prod(f for f in factors if f != REST)
        if size % product or (REST not in factors and size != product):
            wanted = f"axes that split into {[list(f) for f in split]}"
            raise UnsupportedShape(need(wanted, list(sizes), "Use the size it was made for."))
        made += [size // product if f == REST else f for f in factors]
    return made
