# SPDX-License-Identifier: Apache-2.0
"""Plain float networks to compress: the ResNet family, for the demo and the benchmarks."""

from ternary_ops.models.resnet import ResNet, cifar_resnet, digits_resnet, resnet18, resnet50

__all__ = ["ResNet", "cifar_resnet", "digits_resnet", "resnet18", "resnet50"]
