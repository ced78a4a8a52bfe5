# SPDX-License-Identifier: Apache-2.0
"""Programs of the operator matmul, whose operands are tokens, and shapes to time."""

from __future__ import annotations

from typing import Any

# (groups, channels of a group, tokens): the attention of DeiT-tiny, and odd ones.
BENCH = ("deit tiny", (3, 64, 197))
SHAPES = ((1, 1, 1), (3, 5, 17), (2, 16, 33), (4, 9, 50))


def build(b: Any, groups: int = 3, width: int = 5, tokens: int = 9) -> None:
    """Self-attention with products of both kinds, beside keys and values that every image shares;
    the input is tokens of 12 channels.
    """
    channels = groups * width
    x = b("linear", 0, w=b.weight("int8", channels, 12, zeros=0.0))
    keys = b("constant", 0, w=b.weight("float", channels, 1, 1, tokens, False, 0.0), rank=3)
    values = b("constant", 0, w=b.weight("float", channels, 1, 1, tokens, False, 0.0), rank=3)
    at = {"groups": groups, "tokens": tokens}
    shares = b("matmul", x, keys, transpose=True, scale=width**-0.5, **at)
    y = b("matmul", b("softmax", shares, groups=groups), values, **at)
    b("add", x, y)
