# SPDX-License-Identifier: Apache-2.0
"""Networks to programs, whose white is 1."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ternary_ops import runtime
from ternary_ops.engine import compile as compile_network
from ternary_ops.sr.network import SRNetwork


class _Unit(nn.Module):
    """A network for images whose white is 1."""

    def __init__(self, network: SRNetwork) -> None:
        super().__init__()
        self.network, self.white = network, network.input_range

    def forward(self, x: Tensor) -> Tensor:
        """x [N, 3, H, W] in 0..1."""
        y: Tensor = self.network(x * self.white) / self.white
        return y


def to_program(network: SRNetwork) -> runtime.Program:
    """The network as a program that takes and makes images whose white is 1.

    Raises what `ternary_ops.compile` raises.
    """
    side = network.smallest + 1
    x = torch.zeros(1, 3, side, side)
    return compile_network(network if network.input_range == 1.0 else _Unit(network).eval(), x)
