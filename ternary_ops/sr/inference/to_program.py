# SPDX-License-Identifier: Apache-2.0
"""Networks to programs, whose white is 1."""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import Tensor, nn

from ternary_ops import runtime
from ternary_ops.compiler import compile as compile_network
from ternary_ops.nn import TernaryLayer
from ternary_ops.sr.models.base import SRNetwork


class _Unit(nn.Module):
    """A network for images whose white is 1, where its ends take no factor: packed, or unknown."""

    def __init__(self, network: SRNetwork) -> None:
        super().__init__()
        self.network, self.white = network, network.input_range

    def forward(self, x: Tensor) -> Tensor:
        """x [N, C, H, W] in 0..1."""
        y: Tensor = self.network(x * self.white) / self.white
        return y


def to_program(network: SRNetwork) -> runtime.Program:
    """The network as a program that takes and makes images whose white is 1.

    Raises what `ternary_ops.compile` raises.
    """
    side = network.smallest + 1
    x = torch.zeros(1, network.image_channels, side, side)
    if network.input_range == 1.0:
        return compile_network(network, x)
    ends = [network.get_submodule(name) for name in network.ends]
    if ends and all(isinstance(end, nn.Conv2d | TernaryLayer) for end in ends):
        return compile_network(_with_white_1(network), x)
    return compile_network(_Unit(network).eval(), x)


@torch.no_grad()
def _with_white_1(network: SRNetwork) -> SRNetwork:
    """A copy for images of 0..1, the factor taken into the first and the last convolution."""
    white = network.input_range
    network = copy.deepcopy(network)
    first, last = (cast(Any, network.get_submodule(name)) for name in network.ends)
    first.weight.mul_(white)
    if isinstance(first, TernaryLayer):
        first.input_range = first.input_range / white
    last.weight.div_(white)
    last.bias.div_(white)
    network.input_range = 1.0
    return network
