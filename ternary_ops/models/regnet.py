# SPDX-License-Identifier: Apache-2.0
"""RegNetX after Radosavovic et al., "Designing Network Design Spaces" (2020).

Names of parameters follow torchvision's, so that its checkpoint loads strictly.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


def _conv(
    i: int, o: int, kernel: int, stride: int = 1, groups: int = 1, relu: bool = True
) -> nn.Sequential:
    conv = nn.Conv2d(i, o, kernel, stride, kernel // 2, groups=groups, bias=False)
    layers = nn.Sequential(conv, nn.BatchNorm2d(o))
    if relu:
        layers.append(nn.ReLU())
    return layers


class Block(nn.Module):
    """1x1, grouped 3x3, 1x1 beside a shortcut: [N, i, H, W] -> [N, o, H/stride, W/stride]."""

    def __init__(self, i: int, o: int, stride: int, group_width: int) -> None:
        super().__init__()
        changes = i != o or stride != 1
        self.proj = _conv(i, o, 1, stride, relu=False) if changes else None
        self.f = nn.Sequential()
        self.f.add_module("a", _conv(i, o, 1))
        self.f.add_module("b", _conv(o, o, 3, stride, groups=o // group_width))
        self.f.add_module("c", _conv(o, o, 1, relu=False))
        self.activation = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Branch plus shortcut, then ReLU."""
        y = self.f(x) + (x if self.proj is None else self.proj(x))
        out: Tensor = self.activation(y)
        return out


class RegNet(nn.Module):
    """float32 [N, 3, H, W] -> float32 [N, num_classes] logits.

    Args:
        blocks: how many blocks each stage has; the first of a stage halves the image.
        widths: channels of each stage, multiples of group_width.
        group_width: channels of a group in the 3x3 convolutions.
        num_classes: logits.
    """

    def __init__(
        self, blocks: Sequence[int], widths: Sequence[int], group_width: int, num_classes: int
    ) -> None:
        super().__init__()
        channels = 32
        self.stem = _conv(3, channels, 3, 2)
        self.trunk_output = nn.Sequential()
        for index, (count, width) in enumerate(zip(blocks, widths, strict=True), 1):
            stage = nn.Sequential()
            for position in range(count):
                stride = 2 if position == 0 else 1
                block = Block(channels, width, stride, group_width)
                stage.add_module(f"block{index}-{position}", block)
                channels = width
            self.trunk_output.add_module(f"block{index}", stage)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N, num_classes]."""
        x = self.trunk_output(self.stem(x))
        logits: Tensor = self.fc(self.avgpool(x).flatten(1))
        return logits


def regnet_x_400mf(num_classes: int = 1000) -> RegNet:
    """RegNetX-400MF for 224x224 images: 5.5 M parameters, 0.40 G multiply-adds."""
    return RegNet((1, 2, 7, 12), (32, 64, 160, 400), 16, num_classes)
