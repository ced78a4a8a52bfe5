# SPDX-License-Identifier: Apache-2.0
"""The networks: sizes of their papers, names of torchvision, traceable."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from ternary_ops.errors import UnsupportedModel
from ternary_ops.models import (
    cifar_resnet,
    digits_resnet,
    efficientnet_lite0,
    mobilenet_v2,
    regnet_x_400mf,
    resnet18,
    resnet34,
    resnet50,
    vgg16_bn,
)

# Parameters that torchvision and the EfficientNet authors document; the CIFAR ones are 6n+2
# networks with 1x1 shortcuts: 0.27 M (n=3) and 0.85 M (n=9) in table 6 of the paper, plus 2,752.
SIZES: list[tuple[Callable[[], nn.Module], int, tuple[int, ...], int]] = [
    (resnet18, 11_689_512, (1, 3, 64, 64), 1000),
    (resnet34, 21_797_672, (1, 3, 64, 64), 1000),
    (mobilenet_v2, 3_504_872, (1, 3, 64, 64), 1000),
    (efficientnet_lite0, 4_652_008, (1, 3, 64, 64), 1000),
    (regnet_x_400mf, 5_495_976, (1, 3, 64, 64), 1000),
    (vgg16_bn, 138_365_992, (1, 3, 32, 32), 1000),
    (resnet50, 25_557_032, (1, 3, 64, 64), 1000),
    (cifar_resnet, 269_722 + 2_752, (2, 3, 32, 32), 10),
    (lambda: cifar_resnet(56), 853_018 + 2_752, (1, 3, 32, 32), 10),
    (digits_resnet, 308_074, (3, 1, 8, 8), 10),
]


@pytest.mark.parametrize(("build", "parameters", "shape", "classes"), SIZES)
def test_size_output_and_trace(
    build: Callable[[], nn.Module], parameters: int, shape: tuple[int, ...], classes: int
) -> None:
    model = build().eval()
    assert sum(p.numel() for p in model.parameters()) == parameters
    x = torch.randn(shape)
    with torch.no_grad():
        y = model(x)
        traced = torch.fx.symbolic_trace(model)(x)
    assert y.shape == (shape[0], classes)
    assert torch.equal(y, traced)
    assert y.std() > 0


def test_parameter_names_are_torchvisions() -> None:
    names = set(resnet50().state_dict())
    assert len(names) == 320
    for name in (
        *("conv1.weight", "bn1.running_mean", "fc.bias", "layer1.0.downsample.0.weight"),
        *(
            "layer1.0.downsample.1.num_batches_tracked",
            "layer4.2.conv3.weight",
            "layer3.5.bn3.bias",
        ),
    ):
        assert name in names
    assert resnet50().layer2[0].conv2.stride == (2, 2)
    assert len(resnet18().state_dict()) == 122


@pytest.mark.parametrize(
    ("build", "entries", "names"),
    [
        (
            mobilenet_v2,
            314,
            ("features.0.1.running_var", "features.17.conv.1.0.weight", "classifier.1.bias"),
        ),
        (
            regnet_x_400mf,
            (22 * 3 + 4 + 1) * 6 + 2,  # convolutions with BatchNorm, fc
            (
                "stem.0.weight",
                "trunk_output.block1.block1-0.proj.1.bias",
                "trunk_output.block4.block4-11.f.c.1.num_batches_tracked",
            ),
        ),
        (vgg16_bn, 97, ("features.40.weight", "features.41.running_mean", "classifier.6.bias")),
    ],
)
def test_other_names_are_torchvisions_too(
    build: Callable[[], nn.Module], entries: int, names: tuple[str, ...]
) -> None:
    with torch.device("meta"):
        state = build().state_dict()
    assert set(names) <= set(state) and len(state) == entries


@pytest.mark.parametrize("depth", [0, 2, 9, 21])
def test_other_depths_are_refused(depth: int) -> None:
    with pytest.raises(UnsupportedModel, match="6n"):
        cifar_resnet(depth)
