# SPDX-License-Identifier: Apache-2.0
"""Fashion-MNIST (Xiao et al. 2017, MIT licence) as Debian's dataset-fashion-mnist installs it."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ternary_ops.data.classification import Split
from ternary_ops.errors import BadConfig, need

INSTALLED = Path("/usr/share/datasets/fashion-mnist")


def load_fashion(folder: Path) -> Split:
    """60,000 images to train, 10,000 to test, float32 [N, 1, 28, 28], mean 0 and deviation 1."""
    if not folder.is_dir():
        do = "apt-get install dataset-fashion-mnist, or pass --fashion FOLDER."
        raise BadConfig(need("the four files of Fashion-MNIST lie in a folder", folder, do))
    x_train, x_test = (_images(folder / f"{part}-images-idx3-ubyte.gz") for part in _PARTS)
    y_train, y_test = (_read(folder / f"{part}-labels-idx1-ubyte.gz", 8) for part in _PARTS)
    return Split(x_train, y_train.long(), x_test, y_test.long())


def small_net() -> nn.Module:
    """Four convolutions and a classifier, 0.1 M weights: seconds an epoch."""
    widths = [1, 16, 32, 64, 64]
    layers: list[nn.Module] = []
    for index, (i, o) in enumerate(zip(widths, widths[1:], strict=False)):
        stride = 1 if index == 3 else 2
        layers += [nn.Conv2d(i, o, 3, stride, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 10))


_PARTS = ("train", "t10k")


def _images(file: Path) -> Tensor:
    pixels = _read(file, 16).float().view(-1, 1, 28, 28) / 255
    return (pixels - 0.2860) / 0.3530


def _read(file: Path, header: int) -> Tensor:
    with gzip.open(file) as stream:
        return torch.from_numpy(np.frombuffer(stream.read(), np.uint8, offset=header).copy())
