# SPDX-License-Identifier: Apache-2.0
"""VGG-16 with BatchNorm, after Simonyan and Zisserman, "Very Deep Convolutional Networks" (2014).

Names of parameters follow torchvision's `vgg16_bn`, so that its checkpoint loads strictly.
"""

from __future__ import annotations

from torch import Tensor, nn

_POOL = 0
_VGG16 = (
    *(64, 64, _POOL, 128, 128, _POOL, 256, 256, 256, _POOL),
    *(512, 512, 512, _POOL, 512, 512, 512, _POOL),
)


class VGG(nn.Module):
    """float32 [N, 3, H, W] -> float32 [N, num_classes] logits; H and W of at least 32."""

    def __init__(self, num_classes: int = 1000) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width in _VGG16:
            if width == _POOL:
                layers.append(nn.MaxPool2d(2, 2))
                continue
            conv = nn.Conv2d(channels, width, 3, padding=1)
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            layers += [conv, nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d((7, 7))
        self.classifier = nn.Sequential(
            *(nn.Linear(channels * 49, 4096), nn.ReLU(), nn.Dropout()),
            *(nn.Linear(4096, 4096), nn.ReLU(), nn.Dropout()),
            nn.Linear(4096, num_classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N, num_classes]."""
        logits: Tensor = self.classifier(self.avgpool(self.features(x)).flatten(1))
        return logits


def vgg16_bn(num_classes: int = 1000) -> VGG:
    """VGG-16-BN for 224x224 images: 138.4 M parameters, 15.5 G multiply-adds."""
    return VGG(num_classes)
