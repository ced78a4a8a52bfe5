# SPDX-License-Identifier: Apache-2.0
"""torchvision's own networks compile and compute what PyTorch does; skipped where it is missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_networks import error, images, ready
from torch import nn

import ternary_ops as tops
from ternary_ops import runtime

models: Any = pytest.importorskip("torchvision.models")
NAMES = ("resnet18", "resnet50", "mobilenet_v2", "vgg16_bn")
SHAPE = (2, 3, 64, 64)


@pytest.mark.parametrize("name", NAMES)
def test_float(name: str) -> None:
    torch.manual_seed(0)
    model = getattr(models, name)().train()
    with torch.no_grad():
        for seed in range(3):
            model(images(*SHAPE, seed=seed))
    program = tops.compile(model.eval(), images(*SHAPE))
    assert error(program, model, images(*SHAPE, seed=5)) < 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_ternary_networks_keep_every_layer_and_their_answers(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = ready(getattr(models, name)(), images(*SHAPE), pattern="1x4")
    weighted = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert not [m for m in weighted if not isinstance(m, tops.nn.TernaryLayer)]
    program = tops.compile(model, images(*SHAPE))
    x = images(3, 3, 64, 64, seed=7)
    assert error(program, model, x) < 0.03
    program.save(tmp_path / "net.safetensors")
    kept = runtime.load(tmp_path / "net.safetensors")
    np.testing.assert_array_equal(kept(x.numpy()), program(x.numpy()))
