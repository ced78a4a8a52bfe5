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
from ternary_ops.models.spach_costs import costs_by_part
from ternary_ops.models.spach_networks import Spach, SpachConfig, hybrid_ms, spach, spach_ms
from ternary_ops.models.spach_weights import KeyReport, load_spach
from ternary_ops.models.vgg import VGG, vgg16_bn

__all__ = [
    "VGG",
    "KeyReport",
    "MobileNet",
    "RegNet",
    "ResNet",
    "Spach",
    "SpachConfig",
    "cifar_resnet",
    "cifar_resnet18",
    "costs_by_part",
    "digits_resnet",
    "efficientnet_lite0",
    "hybrid_ms",
    "load_spach",
    "mobilenet_v2",
    "regnet_x_400mf",
    "resnet18",
    "resnet34",
    "resnet50",
    "spach",
    "spach_ms",
    "vgg16_bn",
]
