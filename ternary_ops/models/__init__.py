# SPDX-License-Identifier: Apache-2.0
"""Plain float networks to compress, in torchvision's layout, for the demo and the benchmarks."""

from ternary_ops.models.mobilenet import MobileNet, efficientnet_lite0, mobilenet_v2
from ternary_ops.models.regnet import RegNet, regnet_x_400mf
from ternary_ops.models.resnet import (
    ResNet,
    cifar_resnet,
    cifar_resnet18,
    digits_resnet,
    resnet18,
    resnet34,
    resnet50,
)
from ternary_ops.models.vgg import VGG, vgg16_bn

__all__ = [
    "VGG",
    "MobileNet",
    "RegNet",
    "ResNet",
    "cifar_resnet",
    "cifar_resnet18",
    "digits_resnet",
    "efficientnet_lite0",
    "mobilenet_v2",
    "regnet_x_400mf",
    "resnet18",
    "resnet34",
    "resnet50",
    "vgg16_bn",
]
