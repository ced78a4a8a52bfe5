# SPDX-License-Identifier: Apache-2.0
"""Subclasses of torch.nn's layers: of their parent's forward, and with a forward of their own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from folded import close, settled
from torch import Tensor, nn

import ternary_ops as tops


class NormAct(nn.BatchNorm2d):
    """A BatchNorm with an activation and the checks of its input that libraries write."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.drop, self.act = nn.Identity(), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        torch._assert(x.ndim == 4, "images")
        mean = self.running_mean if not self.training or self.track_running_stats else None
        y = F.batch_norm(
            x, mean, self.running_var, self.weight, self.bias, self.training, 0.1, self.eps
        )
        return self.act(self.drop(y))


class Doubled(nn.BatchNorm2d):
    """What its parent does, times two."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Standardized(nn.Conv2d):
    """Weights of mean 0 and variance 1, times a gain."""

    def __init__(self, *sizes: Any, **more: Any) -> None:
        super().__init__(*sizes, **more)
        self.gain = nn.Parameter(torch.rand(self.out_channels, 1, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        flat = self.weight.reshape(1, self.out_channels, -1)
        scale = (self.gain * 0.3).view(-1)
        weight = F.batch_norm(flat, None, None, scale, training=True, momentum=0.0, eps=1e-6)
        weight = weight.reshape_as(self.weight)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, 1, self.groups)


class Named(nn.Conv2d):
    """A subclass in name alone."""

    def init(self) -> None:
        nn.init.ones_(self.weight)


class Renormed(nn.Conv2d):
    """Its forward is the parent's, which calls a method that is not."""

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Any) -> Tensor:
        return super()._conv_forward(x, weight / weight.abs().amax(), bias)


class Plain(nn.Linear):
    """The parent's forward, written again."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        Named(3, 8, 3, padding=1, bias=False),
        NormAct(8),
        Standardized(8, 8, 3, groups=2),
        Doubled(8),
        Renormed(8, 6, 1),
        NormAct(6),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        Plain(6, 5),
    )


def test_subclasses_compile_as_what_they_compute() -> None:
    model, x = settled(net()), torch.randn(2, 3, 9, 9)
    program = tops.compile(model, x)
    close(program(x.numpy()), model(x))
    ops = [node.op for node in program.graph.nodes]
    assert ops[:5] == ["input", *["conv2d"] * 3, "adaptive_avg_pool2d"]
    assert [weight.name for weight in program.graph.weights] == ["0", "2", "4", "8"]
    assert isinstance(model[1], NormAct) and not hasattr(model, "_tops_folded")


@pytest.mark.parametrize("train", [False, True])
def test_quantized_subclasses_of_the_parents_forward(train: bool) -> None:
    model, x = settled(net()), torch.randn(8, 3, 9, 9)
    made = tops.quantize_(model, tops.plan(model, tops.TernaryConfig("int8")))
    assert (made["0"].type, made["0"].action) == ("Named", "int8")
    model.train(train)
    tops.calibrate(model, [x])
    assert model.training is train
    wanted = model.eval()(x).detach()
    found = torch.from_numpy(tops.compile(model, x)(x.numpy()))
    assert (found - wanted).norm() < 0.01 * wanted.norm()  # a last bit may turn a code


def test_a_subclass_that_runs_twice_is_one_layer() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 1), NormAct(3)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.conv(self.norm(x)))

    model, x = settled(Twice()), torch.randn(2, 3, 5, 5)
    program = tops.compile(model, x)
    close(program(x.numpy()), model(x))
    assert {w.name for w in program.graph.weights} == {"norm", "conv"}
