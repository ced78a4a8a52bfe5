# SPDX-License-Identifier: Apache-2.0
"""A BatchNorm that does not fold: what it makes in 8 bits has a range that calibration saw."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
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


def _network(block: Callable[[int], nn.Module], blocks: int, c: int = 16) -> nn.Sequential:
    """Channels of the stem differ in size, as weight decay leaves them, and one has died."""
    norm = nn.BatchNorm2d(c)
    with torch.no_grad():
        norm.weight.copy_(torch.logspace(-1.5, 0, c))
        norm.bias[0] = -1.0
    stem = nn.Sequential(nn.Conv2d(3, c, 3, 2, 1, bias=False), norm, nn.ReLU())
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c, _CLASSES))
    return nn.Sequential(stem, *(block(c) for _ in range(blocks)), head)


def _images(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Bright strokes of ten kinds on black, as handwriting is."""
    g = torch.Generator().manual_seed(1)
    kinds = F.interpolate(torch.randn(_CLASSES, 3, 6, 6, generator=g), size=16, mode="bilinear")
    strokes = (kinds - 0.8).clamp_min(0)
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, _CLASSES, (n,), generator=g)
    light = 0.5 + torch.rand(n, 1, 1, 1, generator=g)
    return strokes[labels] * light + 0.02 * torch.randn(n, 3, 16, 16, generator=g), labels


def _trained(network: nn.Module) -> nn.Module:
    """One epoch."""
    x, y = _images(_BATCH * _STEPS, seed=2)
    optimizer = torch.optim.SGD(network.parameters(), 0.2, 0.9, weight_decay=1e-3)
    for images, labels in zip(x.split(_BATCH), y.split(_BATCH), strict=True):
        optimizer.zero_grad()
        F.cross_entropy(network(images), labels).backward()
        optimizer.step()
    return network.eval()


def _calibrated(network: nn.Module) -> nn.Module:
    quantized = copy.deepcopy(network)
    tops.quantize_(quantized, tops.plan(quantized, tops.TernaryConfig("int8")))
    tops.calibrate(quantized, _images(128, seed=5)[0].split(32))
    return quantized


def _sqnr(made: NDArray[np.float32], exact: NDArray[np.float32]) -> float:
    return float(10 * np.log10(np.square(exact).mean() / np.square(made - exact).mean()))


def _fewest_codes(program: tops.Program, x: NDArray[np.float32]) -> int:
    """Of the values that a BatchNorm makes, in 8 bits."""
    used = [
        len(np.unique(value))
        for node, y, value in zip(
            program.graph.nodes, program.graph.values, program.trace(x), strict=True
        )
        if node.op == "conv2d" and y.y and program.graph.weight(node).kind == "ternary"
    ]
    return min(used, default=256)


@pytest.mark.parametrize("block", [RepVGG, PreActivationDense, ConvMixer])
def test_calibration_alone_is_enough(block: Callable[[int], nn.Module]) -> None:
    """8-bit weights and activations of a network one epoch old: 20 dB, and most codes in use."""
    torch.manual_seed(1)
    network = _trained(_network(block, 2))
    x, _ = _images(64, seed=4)
    program = tops.compile(_calibrated(network), x)
    assert _sqnr(program(x.numpy()), network(x).detach().numpy()) >= 20
    assert _fewest_codes(program, x.numpy()) >= 140


def _block(kind: type[nn.Module] = RepVGG) -> tuple[nn.Module, Tensor]:
    """An untrained network of two blocks whose statistics are those of some images."""
    torch.manual_seed(7)
    network = _network(kind, 2)
    with torch.no_grad():
        for _ in range(3):
            network(_images(64, seed=2)[0])
    return network.eval(), _images(8, seed=4)[0]


def test_ranges_travel(tmp_path: Path) -> None:
    """Copies, states, packed networks and files give the program of the calibrated network; a
    state of an earlier version, which has no such ranges, still loads, and says so.
    """
    network, x = _block()
    quantized = _calibrated(network)
    expected = tops.compile(quantized, x)(x.numpy())
    fresh = copy.deepcopy(network)
    tops.quantize_(fresh, tops.plan(fresh, tops.TernaryConfig("int8")))
    state = quantized.state_dict()
    fresh.load_state_dict(state)
    packed = tops.pack_(copy.deepcopy(quantized))
    tops.save(quantized, tmp_path / "w.safetensors")
    loaded = tops.load(tmp_path / "w.safetensors", copy.deepcopy(network))
    wrapped = nn.DataParallel(copy.deepcopy(fresh))
    wrapped.load_state_dict({f"module.{key}": value for key, value in state.items()})
    averaged = torch.optim.swa_utils.AveragedModel(quantized, use_buffers=True)
    averaged.update_parameters(quantized)
    for copied in (copy.deepcopy(quantized), fresh, packed, loaded, wrapped, averaged):
        assert np.array_equal(tops.compile(copied, x)(x.numpy()), expected)


def test_states_without_ranges(caplog: pytest.LogCaptureFixture) -> None:
    """A state of an earlier version loads, gives what it gave, and says what is missing."""
    network, x = _block(PreActivationDense)
    quantized = _calibrated(network)
    state = {k: v for k, v in quantized.state_dict().items() if "_tops_" not in k}
    with caplog.at_level(logging.WARNING):
        tops.compile(quantized, x)
    assert not caplog.records
    quantized.load_state_dict(state)
    with caplog.at_level(logging.WARNING):
        tops.compile(quantized, x)
    assert "(BatchNorm2d)" in caplog.text and "calibrate" in caplog.text
