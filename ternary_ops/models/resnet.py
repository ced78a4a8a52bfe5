# SPDX-License-Identifier: Apache-2.0
"""Residual networks after He et al., "Deep Residual Learning for Image Recognition" (2015).

One class covers the ImageNet networks (7x7 stem, four stages) and the small-image ones (3x3 stem,
three stages). Names of parameters follow torchvision's, so that its checkpoints load strictly. As
there, the stride of a bottleneck sits on its 3x3 convolution; shortcuts that change shape are 1x1
convolutions (option B of the paper) in every network. Traceable with torch.fx.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ternary_ops.errors import UnsupportedModel, need


def _conv(i: int, o: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(i, o, kernel, stride, padding=kernel // 2, bias=False)


def _shortcut(i: int, o: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and i == o:
        return None
    return nn.Sequential(_conv(i, o, 1, stride), nn.BatchNorm2d(o))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut: [N, i, H, W] -> [N, width, H/stride, W/stride]."""

    expansion = 1

    def __init__(self, i: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = _conv(i, width, 3, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.conv2 = _conv(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _shortcut(i, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Residual branch plus shortcut, then ReLU."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y = y + (x if self.downsample is None else self.downsample(x))
        out: Tensor = self.relu(y)
        return out


class Bottleneck(nn.Module):
    """1x1 down, 3x3, 1x1 up beside a shortcut: [N, i, H, W] -> [N, 4*width, H/stride, W/stride]."""

    expansion = 4

    def __init__(self, i: int, width: int, stride: int = 1) -> None:
        super().__init__()
        o = width * self.expansion
        self.conv1 = _conv(i, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv(width, width, 3, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = _conv(width, o, 1)
        self.bn3 = nn.BatchNorm2d(o)
        self.relu = nn.ReLU()
        self.downsample = _shortcut(i, o, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Residual branch plus shortcut, then ReLU."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        y = y + (x if self.downsample is None else self.downsample(x))
        out: Tensor = self.relu(y)
        return out


class ResNet(nn.Module):
    """A residual network: float32 [N, in_channels, H, W] -> float32 [N, num_classes] logits.

    Args:
        block: BasicBlock or Bottleneck.
        blocks: how many blocks each stage has; every stage after the first halves the image.
        widths: base width of each stage.
        num_classes: logits.
        in_channels: channels of the image.
        large_stem: 7x7 stride-2 convolution and a stride-2 max pool (ImageNet) in place of one 3x3.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        blocks: Sequence[int],
        widths: Sequence[int],
        num_classes: int,
        in_channels: int = 3,
        large_stem: bool = False,
    ) -> None:
        super().__init__()
        stem = widths[0]
        self.conv1 = _conv(in_channels, stem, 7, 2) if large_stem else _conv(in_channels, stem, 3)
        self.bn1 = nn.BatchNorm2d(stem)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1) if large_stem else None
        self._stages: list[str] = []
        channels = stem
        for index, (count, width) in enumerate(zip(blocks, widths, strict=True)):
            stage = nn.Sequential()
            for position in range(count):
                stride = 2 if index > 0 and position == 0 else 1
                stage.append(block(channels, width, stride))
                channels = width * block.expansion
            self._stages.append(f"layer{index + 1}")
            self.add_module(self._stages[-1], stage)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(channels, num_classes)
        self._initialize()

    def _initialize(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N, num_classes]."""
        x = self.relu(self.bn1(self.conv1(x)))
        if self.maxpool is not None:
            x = self.maxpool(x)
        for stage in self._stages:
            x = getattr(self, stage)(x)
        logits: Tensor = self.fc(self.avgpool(x).flatten(1))
        return logits


def resnet18(num_classes: int = 1000) -> ResNet:
    """ResNet-18 for 224x224 images: 11.7 M parameters, 1.82 G multiply-adds."""
    return ResNet(BasicBlock, (2, 2, 2, 2), (64, 128, 256, 512), num_classes, large_stem=True)


def resnet34(num_classes: int = 1000) -> ResNet:
    """ResNet-34 for 224x224 images: 21.8 M parameters, 3.7 G multiply-adds."""
    return ResNet(BasicBlock, (3, 4, 6, 3), (64, 128, 256, 512), num_classes, large_stem=True)


def resnet50(num_classes: int = 1000) -> ResNet:
    """ResNet-50 for 224x224 images: 25.6 M parameters, 4.1 G multiply-adds."""
    return ResNet(Bottleneck, (3, 4, 6, 3), (64, 128, 256, 512), num_classes, large_stem=True)


def cifar_resnet(depth: int = 20, num_classes: int = 10, width: int = 16) -> ResNet:
    """The 6n+2 layer networks of the paper's section 4.2, for 32x32 images; width: first stage's.

    Raises UnsupportedModel when depth is not 6n+2 with n >= 1.
    """
    n, rest = divmod(depth - 2, 6)
    if n < 1 or rest:
        raise UnsupportedModel(
            need("a depth of 6n+2 for cifar_resnet", depth, "Use 20, 32, 44, 56 or 110.")
        )
    return ResNet(BasicBlock, (n, n, n), (width, 2 * width, 4 * width), num_classes)


def cifar_resnet18(width: int = 64, num_classes: int = 10) -> ResNet:
    """ResNet-18 for 32x32 images: 3x3 stem, four stages; 2.8 M parameters with width 32."""
    widths = (width, 2 * width, 4 * width, 8 * width)
    return ResNet(BasicBlock, (2, 2, 2, 2), widths, num_classes)


def digits_resnet(width: int = 32, num_classes: int = 10) -> ResNet:
    """A small network for 8x8 gray images, as in scikit-learn's digits: 0.3 M parameters."""
    return ResNet(BasicBlock, (1, 1, 1), (width, 2 * width, 4 * width), num_classes, in_channels=1)
