# SPDX-License-Identifier: Apache-2.0
"""Subclasses of layers that pad or compute their weight are quantized as what they compute."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_networks import images
from torch import Tensor, nn

import ternary_ops as tops
from ternary_ops.graph.subclass_twins import twin_of
from ternary_ops.nn.geometry import PaddedConv2d


class SamePadding(nn.Conv2d):
    """Padding for one image size, more at the bottom and right."""

    def __init__(self, *args: Any, border: tuple[int, ...], **options: Any) -> None:
        super().__init__(*args, **options)
        self.border = nn.ZeroPad2d(border)

    def forward(self, x: Tensor) -> Tensor:
        x = self.border(x)
        return F.conv2d(
            x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups
        )


class BySize(nn.Conv2d):
    """Padding as TensorFlow's, which the size of the image decides; `flip` puts more at the top."""

    flip = False

    def forward(self, x: Tensor) -> Tensor:
        ends: list[int] = []
        for axis in (1, 0):
            size, step = x.shape[2 + axis], self.stride[axis]
            span = self.dilation[axis] * (self.kernel_size[axis] - 1) + 1
            missing = max((math.ceil(size / step) - 1) * step + span - size, 0)
            sides = missing // 2, missing - missing // 2
            ends += reversed(sides) if self.flip else sides
        x = F.pad(x, ends)
        return F.conv2d(x, self.weight, self.bias, self.stride, (0, 0), self.dilation, self.groups)


class Flipped(BySize):
    flip = True


class Standardized(nn.Conv2d):
    """The weight of each filter has mean 0 and variance 1."""

    def forward(self, x: Tensor) -> Tensor:
        mean = self.weight.mean((1, 2, 3), keepdim=True)
        weight = (self.weight - mean) / self.weight.std((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


class Scaled(nn.Linear):
    """What a layer does behind its weight is none of its twin's."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(super().forward(x))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        SamePadding(3, 8, 3, 2, bias=False, border=(0, 1, 0, 1)),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        SamePadding(8, 8, (3, 2), (2, 1), padding=(1, 0), groups=8, border=(1, 2, 0, 1)),
        nn.ReLU(),
        Standardized(8, 12, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 5),
    ).eval()


def test_twins_share_parameters_and_values() -> None:
    model, x = network(), images(2, 3, 12, 10)
    for layer in model:
        twin = twin_of(layer)
        if type(layer) in (SamePadding, Standardized):
            assert type(twin) is (PaddedConv2d if type(layer) is SamePadding else nn.Conv2d)
            assert torch.equal(twin(x), layer(x))
            assert (twin.weight is layer.weight) == (type(layer) is SamePadding)
        else:
            assert twin is None
        x = layer(x)
    assert twin_of(Scaled(3, 4)) is None
    assert twin_of(SamePadding(3, 4, 3, border=(1, 0, 0, 0))) is None


@pytest.mark.parametrize("weights", ["int8", "ternary"])
def test_quantized_packed_saved_and_compiled(weights: str, tmp_path: Path) -> None:
    model, x = network(), images(4, 3, 12, 10)
    with torch.no_grad():
        exact = model(x).numpy()
    config = tops.TernaryConfig(weights, zeros=0.0)
    plan = tops.plan(model, config, rules={"*": config})
    assert all(row.action == weights for row in plan)
    tops.quantize_(model, plan)
    tops.calibrate(model, [x], method="minmax")
    program = tops.compile(model, x)
    assert "pad" not in [node.op for node in program.graph.nodes]
    with torch.no_grad():
        trained = model(x).numpy()
        packed = tops.pack_(model)
        np.testing.assert_allclose(packed(x).numpy(), trained, atol=0.02 * np.abs(trained).max())
        tops.save(packed, tmp_path / "net.safetensors")
        loaded = tops.load(tmp_path / "net.safetensors", network())
        assert torch.equal(loaded(x), packed(x))
    np.testing.assert_allclose(program(x.numpy()), trained, atol=0.02 * np.abs(trained).max())
    if weights == "int8":
        np.testing.assert_allclose(trained, exact, atol=0.05 * np.abs(exact).max())
        layer = packed[3].to_float()
        assert type(layer) is PaddedConv2d and "edges=(1, 2, 1, 2)" in repr(layer)
        with torch.no_grad():
            y = torch.relu(images(1, 8, 7, 6))
            near = F.conv2d(F.pad(y, (1, 2, 1, 2)), layer.weight, layer.bias, (2, 1), groups=8)
            assert torch.equal(layer(y), near)


@pytest.mark.parametrize(
    "window", [(3, 2, 1), ((5, 2), (2, 3), 1), (3, 3, 2), (2, 2, 1), (1, 2, 1), (4, 1, 1)]
)
def test_padding_by_the_size_of_the_image_has_a_twin(window: tuple[Any, Any, int]) -> None:
    kernel, stride, dilation = window
    layer = BySize(4, 6, kernel, stride, dilation=dilation).eval()
    twin = twin_of(layer)
    assert type(twin) is PaddedConv2d and twin.weight is layer.weight
    for h, w in ((13, 9), (14, 8), (15, 16), (9, 11)):
        x = images(2, 4, h, w)
        assert torch.equal(twin(x), layer(x))
    other = twin_of(Flipped(4, 6, kernel, stride, dilation=dilation))
    assert (other is None) == (window != (1, 2, 1))  # which never pads


@pytest.mark.parametrize("weights", ["int8", "ternary"])
def test_padding_by_size_is_quantized_for_the_size_of_the_example(
    weights: str, tmp_path: Path
) -> None:
    def made() -> nn.Sequential:
        torch.manual_seed(0)
        by_size = BySize(3, 8, 3, 2, bias=False), BySize(8, 8, (5, 4), (2, 1), groups=8)
        rest = nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
        return nn.Sequential(by_size[0], nn.BatchNorm2d(8), nn.ReLU(), by_size[1], *rest).eval()

    model, x = made(), images(4, 3, 17, 22)
    config = tops.TernaryConfig(weights, zeros=0.0)
    plan = tops.plan(model, config, rules={"*": config})
    assert [row.action for row in plan] == [weights] * 3
    tops.quantize_(model, plan)
    tops.calibrate(model, [x, images(3, 3, 12, 13)], method="minmax")
    with torch.no_grad():
        for size in ((17, 22), (12, 13), (14, 14)):
            y = images(2, 3, *size)
            program = tops.compile(model, y)
            assert program.graph.nodes[0].attrs["size"] == size
            assert "pad" not in [node.op for node in program.graph.nodes]
            np.testing.assert_allclose(program(y.numpy()), model(y).numpy(), rtol=0, atol=0.02)
        trained = model(x)
        packed = tops.pack_(model, example=x)
        np.testing.assert_allclose(packed(x).numpy(), trained.numpy(), rtol=0, atol=0.02)
        tops.save(packed, tmp_path / "net.safetensors")
        loaded = tops.load(tmp_path / "net.safetensors", made())
        assert torch.equal(loaded(x), packed(x))
        assert type(loaded[3].to_float()) is PaddedConv2d
