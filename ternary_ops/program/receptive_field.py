# SPDX-License-Identifier: Apache-2.0
"""Receptive field: how far an output pixel of a program sees, read from its nodes.

Tiles of an image that are computed with that many pixels more to each side, from where the image
has them, give the whole image's numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

from ternary_ops.program.graph import Graph, Node

# Modes of `pad` that read no farther than the border they stand for. "circular" reads the far end.
_NEAR_MODES = ("constant", "reflect", "replicate")


@dataclass(frozen=True)
class _Reach:
    """Of a value's pixel i: it stands at i * step and sees from `before` before that to `after`
    after it, in pixels of the input.
    """

    step: Fraction
    before: Fraction
    after: Fraction


def radius(graph: Graph) -> int | None:
    """Input pixels that an output pixel sees to the farther side; None: more than a part.

    Programs of convolutions of stride 1, borders, pixel shuffles and operators of single pixels
    have one.
    """
    reaches: list[_Reach] = []
    for node in graph.nodes:
        if node.op == "input":
            reaches.append(_Reach(Fraction(1), Fraction(0), Fraction(0)))
            continue
        seen = [reaches[i] for i in node.inputs]
        one = _after(graph, node, seen)
        if one is None:
            return None
        reaches.append(one)
    return math.ceil(max(reaches[-1].before, reaches[-1].after))


def _after(graph: Graph, node: Node, seen: list[_Reach]) -> _Reach | None:
    """The reach of what a node makes of values with these."""
    step = seen[0].step
    if any(one.step != step for one in seen) or node.attrs.get("stride", (1, 1)) != (1, 1):
        return None
    before, after = max(one.before for one in seen), max(one.after for one in seen)
    if node.op == "conv2d":
        low, high = _window(graph, node)
        return _Reach(step, before + step * low, after + step * high)
    if node.op == "pad" and node.attrs["mode"] in _NEAR_MODES:
        put = node.attrs["before"]
        return _Reach(step, before + step * max(put), after - step * min(put))
    if node.op == "pixel_shuffle" and node.attrs["crop"] == (0, 0):
        return _Reach(step / node.attrs["factor"][0], before, after)
    if node.operator.per_pixel or (node.op == "concat" and node.attrs["axis"] == 1):
        return _Reach(step, before, after)
    return None


def _window(graph: Graph, node: Node) -> tuple[int, int]:
    """Pixels that a filter reads before and after that of its output."""
    sides = list(
        zip(
            graph.weight(node).shape[1:3],
            node.attrs["padding"],
            node.attrs["dilation"],
            strict=True,
        )
    )
    return max(p for _, p, _ in sides), max(d * (k - 1) - p for k, p, d in sides)
