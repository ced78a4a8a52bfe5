# SPDX-License-Identifier: Apache-2.0
"""Weights back from their codes, in PyTorch, so that gradients can be traced and compiled."""

from __future__ import annotations

import torch


def decode(codes: torch.Tensor, channels: int) -> torch.Tensor:
    """The integers the codes hold, int8 [..., channels].

    codes: uint8 [..., ceil(channels/4)] of 2-bit codes or int8 [..., 4*ceil(channels/4)].
    """
    if codes.dtype == torch.uint8:
        shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8, device=codes.device)
        two_bits = ((codes.unsqueeze(-1) >> shifts) & 3).to(torch.int8)
        codes = (two_bits - ((two_bits & 2) << 1)).flatten(-2)
    return codes[..., :channels]


def decode_weight(codes: torch.Tensor, channels: int) -> torch.Tensor:
    """As decode, in PyTorch's layout: [N, K], or [O, I, R, S]."""
    w = decode(codes, channels)
    return w.permute(0, 3, 1, 2) if w.dim() == 4 else w
