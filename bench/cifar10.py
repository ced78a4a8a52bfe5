# SPDX-License-Identifier: Apache-2.0
"""CIFAR-10 and a pretrained ResNet-20 for `ternary-ops compress`.

    python bench/cifar10.py resnet20.safetensors
    ternary-ops compress --model bench/cifar10.py:resnet20 --data bench/cifar10.py:images \
        --weights resnet20.safetensors --flip --shift 4 --epochs 8 -o resnet20-ternary.safetensors

The first line writes the published weights (trained on the original images, 91.8 %) in our names,
with shortcuts as 1x1 convolutions. The data pack holds the images as JPEG, on which they are worth
less; `compress` says how much before it trains.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
from _cifar import folder, keep_shortcuts_, load_cifar10, load_resnet
from safetensors.torch import save_file
from torch import Tensor, nn

from ternary_ops import models


def resnet20() -> nn.Module:
    """The network, untrained."""
    return models.cifar_resnet(20)


def images() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x and y to train, x and y to test."""
    split = load_cifar10()
    x_train, x_test = map(torch.as_tensor, (split.x_train, split.x_test))
    return x_train, split.y_train, x_test, split.y_test


def main() -> int:
    """Write the pretrained weights."""
    model = load_resnet(folder() / "cifar10_resnets" / "resnet20.npz")
    keep_shortcuts_(model, load_cifar10().x_train[::100])
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, sys.argv[1])
    return 0


if __name__ == "__main__":
    sys.exit(main())
