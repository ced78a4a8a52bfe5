# SPDX-License-Identifier: Apache-2.0
"""BatchNorm folding of subclasses that are layers, and a little more, in eval mode."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from folded import close, settled
from torch import Tensor, nn

import ternary_ops as tops
from ternary_ops.quantize import fold_batchnorm_


class NormAct(nn.BatchNorm2d):
    """A BatchNorm with an activation."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.drop, self.act = nn.Identity(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(x)))


class Standardized(nn.Conv2d):
    """A convolution whose weight is computed."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


@pytest.mark.parametrize("conv", [nn.Conv2d, Standardized])
def test_subclasses_fold(conv: Any) -> None:
    model = nn.Sequential(
        conv(3, 8, 3, padding=1, bias=False), NormAct(8), nn.Conv2d(8, 4, 1), nn.BatchNorm2d(4)
    )
    model, x = settled(model), torch.randn(2, 3, 9, 9)
    wanted = model(x)
    assert fold_batchnorm_(model) == ["1", "3"]
    close(model(x).detach(), wanted)
    assert type(model[0]) is nn.Conv2d and type(model[1]) is nn.Sequential
    assert list(dict(model[1].named_children())) == ["drop", "act"]


def test_norms_that_do_not_fold_are_in_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    layers = [layer for _ in range(8) for layer in (nn.Conv2d(4, 4, 1), NormAct(4))]
    model = nn.Sequential(*layers).eval()
    for hooked in range(1, 13, 2):
        model[hooked].register_forward_hook(lambda *_: None)
    model[14].weight = model[12].weight
    assert fold_batchnorm_(model) == []
    (record,) = caplog.records
    names = "1, 3, 5, 7, 9 and 1 more"
    assert record.getMessage().splitlines() == [
        f"{names} are not folded: {names}: hooks are registered on it",
        "13 is not folded: 12: weight tied to 14",
        "15 is not folded: 14: weight tied to 12",
    ]


class OnSizes(nn.Module):
    """Its code decides on sizes: a trace needs an example."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), NormAct(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        return y if max(y.shape[2:]) > 1 else -y


def test_a_network_that_decides_on_sizes_folds_with_an_example() -> None:
    model, x = settled(OnSizes()), torch.randn(5, 3, 9, 9)
    wanted = model(x)
    with pytest.raises(tops.errors.UnsupportedModel, match="example"):
        fold_batchnorm_(model)
    assert fold_batchnorm_(model, x) == ["norm"]
    close(model(x).detach(), wanted)


def test_packed_subclasses_load_again(tmp_path: Path) -> None:
    def made() -> nn.Sequential:
        return nn.Sequential(Standardized(3, 8, 3), NormAct(8), nn.Conv2d(8, 4, 1))

    model, x = settled(made()), torch.randn(4, 3, 9, 9)
    tops.quantize_(model, tops.plan(model, tops.TernaryConfig("int8")))
    tops.calibrate(model, [x])
    tops.pack_(model)
    assert model._tops_folded == ["1"] and type(model[1]) is nn.Sequential
    tops.save(model, tmp_path / "net.safetensors")
    again = tops.load(tmp_path / "net.safetensors", made()).eval()
    close(again(x).detach(), model(x))
