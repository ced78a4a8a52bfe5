# SPDX-License-Identifier: Apache-2.0
"""A mask as bits: exact zeros by one AND, which takes a fraction of masked_fill_."""

from __future__ import annotations

import torch
from torch import Tensor

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class MaskBits:
    """A mask as integers of the masked tensor's size and layout, all bits set where it survives.

    Made once for a mask that stays: until it is another tensor, or written into.
    """

    def __init__(self) -> None:
        """Of no mask yet."""
        self._mask: Tensor | None = None
        self._version = 0
        self._made: dict[torch.dtype, Tensor] = {}

    def clear_(self, value: Tensor, mask: Tensor) -> None:
        """Write 0.0 into `value`, of any number, NaN included, where `mask` is False."""
        kind = _INTEGERS.get(value.element_size())
        if kind is None:
            value.masked_fill_(~mask, 0.0)
            return
        version = 0 if mask.is_inference() else mask._version
        if mask is not self._mask or version != self._version:
            self._mask, self._version, self._made = mask, version, {}
        bits = self._made.get(kind)
        if bits is None or bits.stride() != value.stride():
            bits = torch.empty_like(value, dtype=kind).copy_(mask).neg_()
            self._made[kind] = bits
        value.view(kind).bitwise_and_(bits)
