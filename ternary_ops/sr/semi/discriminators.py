# SPDX-License-Identifier: Apache-2.0
"""Discriminators: score images, or places in them, for how real they look; logits."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from ternary_ops.errors import BadConfig, UnsupportedShape, need
from ternary_ops.sr.models.base import conv

SLOPE = 0.2  # of every leaky ReLU


class VGGDiscriminator(nn.Module):
    """The discriminator of SRGAN and ESRGAN: x [N, C, size, size] -> one score an image, [N, 1].

    A 3x3 and a strided 4x4 convolution a level, BatchNorm after each but the first, then two linear
    layers. width: channels of the first level; levels widen up to eight times that. size: a
    multiple of 32, as BasicSR has it 128.
    """

    def __init__(self, image_channels: int = 3, size: int = 128, width: int = 64) -> None:
        super().__init__()
        if size < 32 or size % 32:
            raise BadConfig(need("size as a multiple of 32", size, "Take patches of that size."))
        self.size, self.image_channels = size, image_channels
        widths = [width * factor for factor in (1, 2, 4, 8, 8)]
        layers: list[nn.Module] = [conv(image_channels, width, 3), nn.LeakyReLU(SLOPE)]
        inputs = width
        for level, outputs in enumerate(widths):
            if level:
                layers += _normed(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False))
            layers += _normed(nn.Conv2d(outputs, outputs, 4, 2, 1, bias=False))
            inputs = outputs
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Linear(inputs * (size // 32) ** 2, 100), nn.LeakyReLU(SLOPE), nn.Linear(100, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N, 1]."""
        wanted = (self.image_channels, self.size, self.size)
        if tuple(x.shape[1:]) != wanted:
            do = "Take patches of that size, or sr.hosts.PatchGAN."
            raise UnsupportedShape(need(f"images {list(wanted)}", list(x.shape[1:]), do))
        y: Tensor = self.classifier(self.features(x).flatten(1))
        return y


def _normed(layer: nn.Conv2d) -> list[nn.Module]:
    return [layer, nn.BatchNorm2d(layer.out_channels), nn.LeakyReLU(SLOPE)]


class PatchGAN(nn.Module):
    """Scores overlapping patches: x [N, C, H, W] of any size -> logits [N, 1, h, w].

    Strided 4x4 convolutions whose width doubles, under spectral normalization: with few images of
    few kinds a discriminator would else learn them by heart.
    """

    def __init__(self, image_channels: int = 3, width: int = 64, levels: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = image_channels
        for level in range(levels):
            outputs = width * 2 ** min(level, 3)
            layers += [spectral_norm(nn.Conv2d(inputs, outputs, 4, 2, 1)), nn.LeakyReLU(SLOPE)]
            inputs = outputs
        self.layers = nn.Sequential(*layers, spectral_norm(conv(inputs, 1, 3)))

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N, 1, h, w]."""
        y: Tensor = self.layers(x)
        return y
