# SPDX-License-Identifier: Apache-2.0
"""Networks of inverted residuals: MobileNetV2 and EfficientNet-Lite0.

Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks" (2018); Tan and Le,
"EfficientNet" (2019) in its Lite form: ReLU6, no squeeze-and-excitation. Names of parameters follow
torchvision's MobileNetV2, so that its checkpoint loads strictly; EfficientNet-Lite0 goes by the
same names, and pads both sides alike where the original pads as TensorFlow does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn


class Stage(NamedTuple):
    """Blocks of equal width: the first one strides, every one expands its input `expand` times."""

    expand: int
    width: int
    blocks: int
    stride: int
    kernel: int = 3


_MOBILENET_V2 = (
    Stage(1, 16, 1, 1),
    Stage(6, 24, 2, 2),
    Stage(6, 32, 3, 2),
    Stage(6, 64, 4, 2),
    Stage(6, 96, 3, 1),
    Stage(6, 160, 3, 2),
    Stage(6, 320, 1, 1),
)
_EFFICIENTNET_LITE0 = (
    Stage(1, 16, 1, 1),
    Stage(6, 24, 2, 2),
    Stage(6, 40, 2, 2, 5),
    Stage(6, 80, 3, 2),
    Stage(6, 112, 3, 1, 5),
    Stage(6, 192, 4, 2, 5),
    Stage(6, 320, 1, 1),
)


def _conv(i: int, o: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(i, o, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(o), nn.ReLU6())


class InvertedResidual(nn.Module):
    """1x1 up, depthwise, 1x1 down: [N, i, H, W] -> [N, o, H/stride, W/stride].

    The input is added where the shape stays the same.
    """

    def __init__(self, i: int, o: int, expand: int, stride: int, kernel: int) -> None:
        super().__init__()
        hidden = i * expand
        layers = [] if expand == 1 else [_conv(i, hidden, 1)]
        layers.append(_conv(hidden, hidden, kernel, stride, groups=hidden))
        self.conv = nn.Sequential(*layers, nn.Conv2d(hidden, o, 1, bias=False), nn.BatchNorm2d(o))
        self.adds = stride == 1 and i == o

    def forward(self, x: Tensor) -> Tensor:
        """The branch, plus x where shapes allow."""
        y: Tensor = self.conv(x)
        return x + y if self.adds else y


class MobileNet(nn.Module):
    """float32 [N, 3, H, W] -> float32 [N, num_classes] logits.

    Args:
        stages: what lies between the 32-channel stem and the 1280-channel head.
        num_classes: logits.
    """

    def __init__(self, stages: Sequence[Stage], num_classes: int) -> None:
        super().__init__()
        channels, head = 32, 1280
        features: list[nn.Module] = [_conv(3, channels, 3, 2)]
        for stage in stages:
            for position in range(stage.blocks):
                stride = stage.stride if position == 0 else 1
                block = InvertedResidual(channels, stage.width, stage.expand, stride, stage.kernel)
                features.append(block)
                channels = stage.width
        self.features = nn.Sequential(*features, _conv(channels, head, 1))
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(head, num_classes))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N, num_classes]."""
        logits: Tensor = self.classifier(self.avgpool(self.features(x)).flatten(1))
        return logits


def mobilenet_v2(num_classes: int = 1000) -> MobileNet:
    """MobileNetV2 for 224x224 images: 3.5 M parameters, 0.30 G multiply-adds."""
    return MobileNet(_MOBILENET_V2, num_classes)


def efficientnet_lite0(num_classes: int = 1000) -> MobileNet:
    """EfficientNet-Lite0 for 224x224 images: 4.7 M parameters, 0.39 G multiply-adds."""
    return MobileNet(_EFFICIENTNET_LITE0, num_classes)
