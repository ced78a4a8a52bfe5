# SPDX-License-Identifier: Apache-2.0
"""A BatchNorm that does not fold: what it makes in 8 bits has a range that calibration saw."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ternary_ops as tops

_CLASSES, _BATCH, _STEPS = 10, 32, 24


class RepVGG(nn.Module):
    """Three branches: 3x3, 1x1 and a BatchNorm of the input alone."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.dense = nn.Sequential(nn.Conv2d(c, c, 3, 1, 1, bias=False), nn.BatchNorm2d(c))
        self.point = nn.Sequential(nn.Conv2d(c, c, 1, bias=False), nn.BatchNorm2d(c))
        self.identity = nn.BatchNorm2d(c)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.dense(x) + self.point(x) + self.identity(x))


class PreActivationDense(nn.Module):
    """DenseNet's block: every layer normalizes all that came before it."""

    def __init__(self, c: int, layers: int = 3) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm2d(c + i * 8) for i in range(layers))
        convs = (nn.Conv2d(c + i * 8, 8, 3, 1, 1, bias=False) for i in range(layers))
        self.convs = nn.ModuleList(convs)
        self.last = nn.Sequential(nn.BatchNorm2d(c + layers * 8), nn.SiLU())
        self.out = nn.Conv2d(c + layers * 8, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        for norm, conv in zip(self.norms, self.convs, strict=True):
            x = torch.cat([x, conv(F.relu(norm(x)))], 1)
        return self.out(self.last(x))


class ConvMixer(nn.Module):
    """Activation before BatchNorm, the first half around a residual."""

    def __init__(self, c: int) -> None:
        super().__init__()
        depthwise = nn.Conv2d(c, c, 5, 1, 2, groups=c)
        self.space = nn.Sequential(depthwise, nn.GELU(), nn.BatchNorm2d(c))
        self.channels = nn.Sequential(nn.Conv2d(c, c, 1), nn.GELU(), nn.BatchNorm2d(c))

    def forward(self, x: Tensor) -> Tensor:
        return self.channels(self.space(x) + x)


def _network(block: Callable[[int], nn.Module], c: int = 16) -> nn.Sequential:
    stem = nn.Sequential(nn.Conv2d(3, c, 3, 2, 1, bias=False), nn.BatchNorm2d(c), nn.ReLU())
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c, _CLASSES))
    return nn.Sequential(stem, block(c), block(c), head)


def _images(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Noisy pictures of ten smooth patterns."""
    patterns = F.interpolate(
        torch.randn(_CLASSES, 3, 5, 5, generator=torch.Generator().manual_seed(1)),
        size=16,
        mode="bilinear",
    )
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, _CLASSES, (n,), generator=g)
    return patterns[labels] + 0.5 * torch.randn(n, 3, 16, 16, generator=g), labels


def _trained(network: nn.Module) -> nn.Module:
    """One epoch."""
    x, y = _images(_BATCH * _STEPS, seed=2)
    optimizer = torch.optim.SGD(network.parameters(), 0.1, 0.9, weight_decay=1e-3)
    for images, labels in zip(x.split(_BATCH), y.split(_BATCH), strict=True):
        optimizer.zero_grad()
        F.cross_entropy(network(images), labels).backward()
        optimizer.step()
    return network.eval()


def _sqnr(made: np.ndarray, exact: np.ndarray) -> float:
    return float(10 * math.log10(np.square(exact).mean() / np.square(made - exact).mean()))


@pytest.mark.parametrize("block", [RepVGG, PreActivationDense, ConvMixer])
def test_calibration_alone_is_enough(block: Callable[[int], nn.Module]) -> None:
    """8-bit weights and activations of a network one epoch old: 20 dB, and most codes in use."""
    torch.manual_seed(3)
    network = _trained(_network(block))
    x, _ = _images(64, seed=4)
    exact = network(x).detach().numpy()
    quantized = copy.deepcopy(network)
    tops.quantize_(quantized, tops.plan(quantized, tops.TernaryConfig("int8")))
    tops.calibrate(quantized, _images(128, seed=5)[0].split(32))
    program = tops.compile(quantized, x)
    print(program.summary()); print(_sqnr(program(x.numpy()), exact))
    assert _sqnr(program(x.numpy()), exact) >= 20
