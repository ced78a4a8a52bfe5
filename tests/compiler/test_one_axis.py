# SPDX-License-Identifier: Apache-2.0
"""Convolutions, norms and pools along one axis."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from small_networks import error, images, ready
from torch import Tensor, nn

import ternary_ops as tops


class Lines(nn.Module):
    """Along the columns of an image, as [N, C, L]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3)
        self.conv = nn.Conv1d(6, 8, 5, 2, padding=2, bias=False)
        self.norm = nn.BatchNorm1d(8)
        self.ring = nn.Conv1d(8, 8, 3, padding=2, dilation=2, groups=4, padding_mode="circular")
        self.same = nn.Conv1d(8, 4, 4, padding="same")
        self.pools = nn.Sequential(nn.MaxPool1d(3, 2, 1), nn.AvgPool1d(2, 1, 1))
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2)
        x = F.relu(self.norm(self.conv(x)))
        x = self.same(self.pools(self.ring(x) + x))
        return self.fc(F.adaptive_avg_pool1d(x, 1).squeeze(-1))


class Attention(nn.Module):
    """A convolution along the channels' means, whose sigmoid is a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.fc = nn.Conv2d(3, 12, 3), nn.Linear(12, 5)
        self.weight = nn.Parameter(torch.randn(1, 1, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        gate = x.mean((2, 3)).view(x.shape[0], 1, -1)
        gate = F.conv1d(gate, self.weight, padding=1).view(x.shape[0], -1, 1, 1).sigmoid()
        return self.fc((x * gate.expand_as(x)).mean((2, 3)))


@pytest.mark.parametrize("kind", [Lines, Attention])
def test_along_one_axis(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model, x = kind(), images(2, 3, 9, 8)
    model(x)
    program = tops.compile(model.eval(), x)
    assert [node.op for node in program.graph.nodes].count("conv2d") == (4 if kind is Lines else 2)
    other = images(3, 3, 9, 12, seed=1)
    assert error(program, model, other) < 1e-5
    model = ready(model, x, weights="int8")
    program = tops.compile(model, x)
    assert error(program, model, other) < 0.03
    if kind is Attention:  # the gate is rounded, the image stays integers
        (product,) = [i for i, node in enumerate(program.graph.nodes) if node.op == "mul"]
        reads = program.graph.nodes[product].inputs
        assert None not in [program.graph.values[i].y for i in (product, *reads)]


class Pooled(nn.Module):
    """Attention to tokens that a pool makes of all, one at the smallest size (Next-ViT)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.pool = nn.Conv2d(3, 8, 3), nn.BatchNorm1d(8), nn.AvgPool1d(4)
        self.keys = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2)
        keys = self.keys(self.norm(self.pool(x)).transpose(1, 2))
        return ((x.transpose(1, 2) @ keys.transpose(-2, -1)).softmax(-1) @ keys).mean(1)


@pytest.mark.parametrize("size", [4, 8])
def test_tokens_of_a_pool_meet_others(size: int) -> None:
    model, x = Pooled().eval(), images(2, 3, size, size)
    assert error(tops.compile(model, x), model, x) < 1e-5
