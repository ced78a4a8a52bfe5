# SPDX-License-Identifier: Apache-2.0
"""Programs of the operator attention, whose operands are tokens."""

from __future__ import annotations

from typing import Any

# (heads, channels of a query, of a value, keys, queries): odd ones, one query, and more keys than
# the scores of a vector of queries leave room for in what the engine keeps of them at once.
SHAPES = ((1, 1, 1, 1, 1), (3, 5, 7, 17, 13), (2, 8, 24, 9, 200), (1, 4, 4, 2100, 37))


def build(b: Any) -> None:
    """Two heads over the input's tokens, 12 channels, with keys and values that every image shares;
    added to it the mean of three heads with a bias, and two heads of codes.
    """
    x = b("linear", 0, w=b.weight("int8", 10, 12, zeros=0.0))
    keys = b("constant", 0, w=b.weight("float", 10, 1, 1, 9, False, 0.0), rank=3)
    values = b("constant", 0, w=b.weight("float", 6, 1, 1, 9, False, 0.0), rank=3)
    y = b("attention", x, keys, values, heads=2, tokens=9, scale=0.4)
    y = b("add", y, b("reduce", with_bias(b), fn="mean", axes=(2,)))
    b("add", y, b("linear", of_codes(b), w=b.weight("int8", 6, 16)))


def of_codes(b: Any) -> Any:
    """Queries of 12 channels a head, values of 8."""
    q = b("quantize", 0, y=b.params())
    q = b("linear", q, w=b.weight("int8", 24, 12, zeros=0.0), y=b.params())
    parts = []
    for channels in (24, 16):
        w = b.weight("float", channels, 1, 1, 9, False, 0.0)
        parts.append(b("quantize", b("constant", 0, w=w, rank=3), y=b.params()))
    return b("attention", q, *parts, heads=2, tokens=9, scale=0.3, y=b.params(-1, 1))


def with_bias(b: Any, **changes: Any) -> Any:
    """Queries are constants, so that their number is known, as a bias needs it."""
    shapes = ((6, 4), (6, 7), (6, 7), (21, 4))
    weights = [b.weight("float", c, 1, 1, tokens, False, 0.0) for c, tokens in shapes]
    parts = [b("constant", 0, w=w, rank=3) for w in weights]
    return b("attention", *parts, **{"heads": 3, "tokens": 7, "scale": -0.7, **changes})
