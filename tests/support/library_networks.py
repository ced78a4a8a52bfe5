# SPDX-License-Identifier: Apache-2.0
"""Stand-ins for torchvision and timm."""

from __future__ import annotations

import sys
import types

import pytest
import torch
from torch import nn


def small(classes: int, channels: int = 3) -> nn.Module:
    torch.manual_seed(classes)
    body = [nn.Conv2d(channels, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.ReLU()]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes))


def stand_in_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins for torchvision and timm, with the calls that are made of them."""

    def published(progress: bool) -> dict[str, torch.Tensor]:
        return {k: torch.full_like(v, 0.5) for k, v in small(1000).state_dict().items()}

    def get_model(name: str, weights: None, num_classes: int) -> nn.Module:
        return small(num_classes)

    def create_model(
        name: str, num_classes: int, in_chans: int, pretrained: bool = False
    ) -> nn.Module:
        if pretrained:
            raise OSError("no network")
        return small(num_classes, in_chans)

    default = types.SimpleNamespace(DEFAULT=types.SimpleNamespace(get_state_dict=published))
    models = types.SimpleNamespace(
        list_models=lambda: ["resnet18", "resnet34"],
        get_model=get_model,
        get_model_weights=lambda name: default,
    )
    torchvision = types.SimpleNamespace(models=models)
    timm = types.SimpleNamespace(list_models=lambda: ["tiny"], create_model=create_model)
    monkeypatch.setitem(sys.modules, "torchvision", torchvision)
    monkeypatch.setitem(sys.modules, "timm", timm)
