# SPDX-License-Identifier: Apache-2.0
"""Zeros by a mask's bits beside masked_fill, bit for bit."""

from __future__ import annotations

import pytest
import torch

from ternary_ops.prune.mask_bits import MaskBits

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int8, torch.complex128)


@pytest.mark.parametrize("dtype", DTYPES)
def test_zeros_are_exact_in_every_dtype_and_layout(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    bits = MaskBits()
    for shape in ((8, 5, 3, 3), (7, 9)):
        mask = torch.rand(shape) < 0.4
        for channels_last in (False, len(shape) == 4):
            value = (20 * torch.randn(shape, dtype=torch.float64)).to(dtype)
            if value.is_floating_point():
                value[torch.rand(shape) < 0.2] = float("nan")
                value[torch.rand(shape) < 0.2] = -float("inf")
            if channels_last:
                value = value.contiguous(memory_format=torch.channels_last)
            leaf = torch.nn.Parameter(value, requires_grad=value.is_floating_point())
            wanted, version = value.masked_fill(~mask, 0.0), leaf._version
            with torch.no_grad():
                bits.clear_(leaf, mask)
            assert leaf._version > version
            torch.testing.assert_close(leaf.detach(), wanted, rtol=0, atol=0, equal_nan=True)
            if value.is_floating_point():
                assert not bool(leaf.detach()[~mask].signbit().any())  # no -0.0


def test_a_mask_that_is_written_into_or_replaced_is_made_anew() -> None:
    bits, mask = MaskBits(), torch.ones(6, dtype=torch.bool)
    for number in range(3):
        if number == 1:
            mask[2] = False
        if number == 2:
            mask = mask.logical_not()
        value = torch.rand(6) + 1
        wanted = value.masked_fill(~mask, 0.0)
        bits.clear_(value, mask)
        assert torch.equal(value, wanted)
