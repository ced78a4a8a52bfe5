# SPDX-License-Identifier: Apache-2.0
"""Small networks in the spellings of torchvision and of popular repositories, for compile tests."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv_bn(i: int, o: int, k: int, stride: int = 1, groups: int = 1, act: Any = nn.ReLU6) -> Any:
    parts = [nn.Conv2d(i, o, k, stride, k // 2, groups=groups, bias=False), nn.BatchNorm2d(o)]
    return nn.Sequential(*parts, *([] if act is None else [act(inplace=True)]))


class SqueezeExcitation(nn.Module):
    def __init__(self, width: int, squeeze: int, act: Any, gate: Any) -> None:
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1, self.fc2 = nn.Conv2d(width, squeeze, 1), nn.Conv2d(squeeze, width, 1)
        self.activation, self.scale_activation = act(), gate()

    def _scale(self, x: Tensor) -> Tensor:
        scale = self.avgpool(x)
        scale = self.activation(self.fc1(scale))
        return self.scale_activation(self.fc2(scale))

    def forward(self, x: Tensor) -> Tensor:
        return self._scale(x) * x


class InvertedResidual(nn.Module):
    """MobileNetV2, V3 and EfficientNet blocks: expand, depthwise, gate, project, add."""

    def __init__(
        self, i: int, o: int, stride: int, act: Any = nn.ReLU6, se: tuple[Any, Any] | None = None
    ) -> None:
        super().__init__()
        wide = 3 * i
        gate = [] if se is None else [SqueezeExcitation(wide, max(4, i // 2), *se)]
        self.block = nn.Sequential(
            conv_bn(i, wide, 1, act=act),
            conv_bn(wide, wide, 3, stride, wide, act),
            *gate,
            conv_bn(wide, o, 1, act=None),
        )
        self.use_res_connect = stride == 1 and i == o

    def forward(self, x: Tensor) -> Tensor:
        result = self.block(x)
        if self.use_res_connect:
            result += x
        return result


class Classifier(nn.Module):
    def __init__(self, features: nn.Module, width: int, head: nn.Module | None = None) -> None:
        super().__init__()
        self.features, self.avgpool = features, nn.AdaptiveAvgPool2d(1)
        self.classifier = head or nn.Sequential(nn.Dropout(0.2), nn.Linear(width, 7))

    def forward(self, x: Tensor) -> Tensor:
        x = self.avgpool(self.features(x))
        return self.classifier(torch.flatten(x, 1))


def mobilenet_v2() -> nn.Module:
    blocks = InvertedResidual(8, 8, 1), InvertedResidual(8, 12, 2), InvertedResidual(12, 12, 1)
    return Classifier(nn.Sequential(conv_bn(3, 8, 3, 2), *blocks, conv_bn(12, 24, 1)), 24)


def mobilenet_v3() -> nn.Module:
    se = (nn.ReLU, nn.Hardsigmoid)
    act = nn.Hardswish
    features = nn.Sequential(
        conv_bn(3, 8, 3, 2, act=act),
        InvertedResidual(8, 8, 1, nn.ReLU, se),
        InvertedResidual(8, 12, 2, act, se),
        InvertedResidual(12, 12, 1, act, se),
        conv_bn(12, 24, 1, act=act),
    )
    head = nn.Sequential(nn.Linear(24, 20), nn.Hardswish(), nn.Dropout(0.2), nn.Linear(20, 7))
    return Classifier(features, 24, head)


def efficientnet() -> nn.Module:
    se = (nn.SiLU, nn.Sigmoid)
    blocks = (
        InvertedResidual(8, 8, 1, nn.SiLU, se),
        InvertedResidual(8, 12, 2, nn.SiLU, se),
        InvertedResidual(12, 12, 1, nn.SiLU, se),
    )
    features = nn.Sequential(conv_bn(3, 8, 3, 2, act=nn.SiLU), *blocks)
    return Classifier(nn.Sequential(features, conv_bn(12, 24, 1, act=nn.SiLU)), 24)


class RegNetBlock(nn.Module):
    def __init__(self, i: int, o: int, stride: int) -> None:
        super().__init__()
        self.proj = conv_bn(i, o, 1, stride, act=None) if stride > 1 or i != o else None
        self.f = nn.Sequential(
            conv_bn(i, o, 1, act=nn.ReLU),
            conv_bn(o, o, 3, stride, o // 8, nn.ReLU),
            SqueezeExcitation(o, 4, nn.ReLU, nn.Sigmoid),
            conv_bn(o, o, 1, act=None),
        )
        self.activation = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.proj is None else self.proj(x)
        return self.activation(shortcut + self.f(x))


def regnet() -> nn.Module:
    blocks = RegNetBlock(8, 16, 2), RegNetBlock(16, 16, 1), RegNetBlock(16, 24, 2)
    return Classifier(nn.Sequential(conv_bn(3, 8, 3, 2, act=nn.ReLU), *blocks), 24)


class VGG(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        i = 3
        for o in (8, "M", 12, "M", 16, 16, "M"):
            if o == "M":
                layers.append(nn.MaxPool2d(kernel_size=2, stride=2))
                continue
            layers += [nn.Conv2d(i, int(o), 3, padding=1), nn.BatchNorm2d(int(o)), nn.ReLU(True)]
            i = int(o)
        self.features, self.avgpool = nn.Sequential(*layers), nn.AdaptiveAvgPool2d((3, 3))
        self.classifier = nn.Sequential(
            nn.Linear(16 * 9, 32), nn.ReLU(True), nn.Dropout(), nn.Linear(32, 7)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


class DenseLayer(nn.Module):
    def __init__(self, i: int, growth: int) -> None:
        super().__init__()
        self.norm1, self.relu1 = nn.BatchNorm2d(i), nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(i, 4 * growth, 1, bias=False)
        self.norm2, self.relu2 = nn.BatchNorm2d(4 * growth), nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, inputs: list[Tensor]) -> Tensor:
        bottleneck = self.conv1(self.relu1(self.norm1(torch.cat(inputs, 1))))
        return self.conv2(self.relu2(self.norm2(bottleneck)))


class DenseNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8, 3, 2, act=nn.ReLU)
        self.layers = nn.ModuleList([DenseLayer(8 + 6 * k, 6) for k in range(3)])
        self.norm, self.conv = nn.BatchNorm2d(26), nn.Conv2d(26, 13, 1, bias=False)
        self.pool, self.fc = nn.AvgPool2d(2, 2), nn.Linear(13, 7)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for layer in self.layers:
            features.append(layer(features))
        x = self.pool(self.conv(F.relu(self.norm(torch.cat(features, 1)), inplace=True)))
        return self.fc(F.adaptive_avg_pool2d(x, (1, 1)).flatten(1))


class UNet(nn.Module):
    """One level by a transposed convolution, one by resizing to the skip's size."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv_bn(3, 8, 3, act=nn.ReLU), conv_bn(8, 12, 3, act=nn.ReLU)
        self.c, self.down = conv_bn(12, 16, 3, act=nn.ReLU), nn.MaxPool2d(2)
        self.up = nn.ConvTranspose2d(16, 12, 2, stride=2)
        self.merge, self.last = conv_bn(24, 12, 3, act=nn.ReLU), conv_bn(20, 8, 3, act=nn.ReLU)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        b = self.b(self.down(a))
        up = self.up(self.c(self.down(b)))
        up = F.interpolate(up, size=b.shape[2:], mode="bilinear", align_corners=False)
        x = self.merge(torch.cat([b, up], dim=1))
        x = F.interpolate(x, size=a.size()[2:], mode="bilinear", align_corners=True)
        return self.head(self.last(torch.cat((x, a), 1)))


class SuperResolution(nn.Module):
    """ESPCN / RealESRGAN-like: residual blocks, nearest resize, pixel shuffle."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.body = nn.Conv2d(3, 12, 3, 1, 1), nn.Conv2d(12, 12, 3, 1, 1)
        self.tail, self.up = nn.Conv2d(12, 12, 3, 1, 1), nn.Conv2d(12, 12, 3, 1, 1)
        self.lrelu, self.prelu = nn.LeakyReLU(0.2, inplace=True), nn.PReLU()
        self.shuffle, self.out = nn.PixelShuffle(2), nn.Conv2d(3, 3, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        feat = self.first(x)
        feat = feat + self.tail(self.prelu(self.body(feat))) * 0.2
        feat = self.lrelu(self.up(F.interpolate(feat, scale_factor=2, mode="nearest")))
        return self.out(self.shuffle(feat)) + F.interpolate(x, scale_factor=4, mode="nearest")


class ShuffleNet(nn.Module):
    """ShuffleNetV2 unit: chunk, branch, cat, shuffle by views."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch = conv_bn(3, 12, 3, 2, act=nn.ReLU), conv_bn(6, 6, 3, act=nn.ReLU)
        self.last, self.fc = conv_bn(12, 16, 1, act=nn.ReLU), nn.Linear(16, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x1, x2 = x.chunk(2, dim=1)
        x = torch.cat((x1, self.branch(x2)), dim=1)
        batch, channels, height, width = x.size()
        x = x.view(batch, 2, channels // 2, height, width)
        x = torch.transpose(x, 1, 2).contiguous().view(batch, channels, height, width)
        return self.fc(self.last(x).mean([2, 3]))


class SELayer(nn.Module):
    """Squeeze-excite by views and linear layers."""

    def __init__(self, channel: int, index: bool) -> None:
        super().__init__()
        self.avg_pool, self.index = nn.AdaptiveAvgPool2d(1), index
        self.fc = nn.Sequential(
            nn.Linear(channel, 4, bias=False),
            nn.ReLU(inplace=True),
            nn.Linear(4, channel, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        b, c, _, _ = x.size()
        y = self.fc(self.avg_pool(x).view(b, c))
        return y[:, :, None, None] * x if self.index else x * y.view(b, c, 1, 1).expand_as(x)


class SENet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv_bn(3, 10, 3, 2, act=nn.ReLU), conv_bn(10, 14, 3, act=nn.ReLU)
        self.se, self.other, self.last = SELayer(10, False), SELayer(14, True), nn.Conv2d(14, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.other(self.b(self.se(self.a(x)))))


class Arithmetic(nn.Module):
    """Differences, products and numbers, hand-written hardswish, slices, softmax, LayerNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 3, padding=1)
        self.c, self.fc = nn.Conv2d(8, 8, 1), nn.Linear(8, 6)
        self.norm = nn.LayerNorm(6)

    def forward(self, x: Tensor) -> Tensor:
        x = x * 2 - 0.5
        a, b = self.a(x), self.b(x)
        a = a * F.relu6(a + 3) / 6
        x = (1 - torch.sigmoid(b)) * a - b.tanh()
        x = self.c(torch.cat([x[:, 4:], F.gelu(x[:, :4])], 1))
        x = -x.mul(x)
        x = self.fc(F.softplus(F.elu(x).mean((2, 3))))
        return F.softmax(self.norm(x), dim=-1)


class ByFunctions(nn.Module):
    """Layers as functions of parameters, transposed or not; a slope a channel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.slopes = nn.PReLU(8)
        self.w, self.b = nn.Parameter(0.2 * torch.randn(12, 4, 3, 3)), nn.Parameter(torch.randn(12))
        self.up = nn.Parameter(0.2 * torch.randn(12, 6, 2, 2))
        self.norm_w, self.norm_b = nn.Parameter(torch.rand(6) + 0.5), nn.Parameter(torch.randn(6))
        self.product, self.linear = nn.Parameter(torch.randn(6, 9)), nn.Parameter(torch.randn(5, 9))
        self.shift, self.last = nn.Parameter(torch.randn(7)), nn.Parameter(torch.randn(7, 5))
        with torch.no_grad():
            self.slopes.weight.copy_(torch.linspace(-0.3, 1.2, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.slopes(self.stem(x))
        x = F.relu(F.conv2d(x, self.w, self.b, stride=2, padding=1, groups=2))
        x = F.conv_transpose2d(x, self.up, stride=2).mean((2, 3))
        x = F.layer_norm(x, (6,), self.norm_w, self.norm_b, 1e-3)
        x = F.linear(torch.relu(x @ self.product), self.linear)
        return torch.addmm(self.shift, x, self.last.t())


NETWORKS: dict[str, tuple[Any, tuple[int, ...], tuple[int, ...]]] = {
    # name: (how to make it, shape to compile with, another shape it must run)
    "mobilenet_v2": (mobilenet_v2, (2, 3, 17, 20), (1, 3, 24, 13)),
    "mobilenet_v3": (mobilenet_v3, (2, 3, 17, 20), (1, 3, 24, 13)),
    "efficientnet": (efficientnet, (2, 3, 17, 20), (1, 3, 24, 13)),
    "regnet": (regnet, (2, 3, 25, 20), (1, 3, 24, 17)),
    "vgg": (VGG, (2, 3, 24, 24), (1, 3, 33, 25)),
    "densenet": (DenseNet, (2, 3, 17, 20), (1, 3, 24, 13)),
    "unet": (UNet, (2, 3, 18, 20), (1, 3, 23, 13)),
    "super_resolution": (SuperResolution, (2, 3, 9, 8), (1, 3, 6, 11)),
    "senet": (SENet, (2, 3, 17, 20), (1, 3, 24, 13)),
    "shufflenet": (ShuffleNet, (2, 3, 17, 20), (1, 3, 24, 13)),
    "by_functions": (ByFunctions, (2, 3, 9, 8), (3, 3, 6, 11)),
    "arithmetic": (Arithmetic, (2, 3, 9, 8), (3, 3, 6, 11)),
}
