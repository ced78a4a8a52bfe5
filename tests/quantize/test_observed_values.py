# SPDX-License-Identifier: Apache-2.0
"""Which values calibrate observes, and the names by which compile finds their ranges."""

from __future__ import annotations

import operator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ternary_ops as tops
from ternary_ops.graph.channel_ops import keeps_range
from ternary_ops.graph.observed import name_values, value_name
from ternary_ops.graph.trace import trace
from ternary_ops.quantize import TernaryConfig, calibrate, quantize_


class Unread(nn.Module):
    """A layer whose result nothing reads takes the sum, a conv's output and a pool's too."""

    def __init__(self, dead: bool) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm, self.unread = nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)
        self.fc, self.dead = nn.Linear(8, 4), dead

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.a(x))
        y = self.b(x)
        if self.dead:
            self.unread(y)
        y = torch.relu(self.norm(y) + x)
        if self.dead:
            self.unread(y)
        y = F.avg_pool2d(y, 2)
        return self.fc(y.mean((2, 3)))


def test_what_nothing_reads_is_no_reader() -> None:
    x, programs = torch.randn(4, 3, 8, 8), []
    for dead in (False, True):
        torch.manual_seed(1)
        model = Unread(dead).eval()
        nn.init.normal_(model.norm.running_mean)
        quantize_(model, TernaryConfig("int8"))
        tops.calibrate(model, [x])
        programs.append(tops.compile(model, x))
    assert programs[0].summary() == programs[1].summary()
    np.testing.assert_array_equal(programs[0](x.numpy()), programs[1](x.numpy()))


class Shaped(nn.Module):
    """A value without a layer behind a reshape by sizes; a layer's output whose size is read."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(i, 8, 3, padding=1) for i in (3, 8, 8))
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        n, c, h, w = x.shape
        x = torch.relu(x)
        y = torch.tanh(x.view(n, c, h * w).view(n, c, h, w)) + self.b(x)
        return self.fc((y * torch.sigmoid(self.c(x))).mean((2, 3)))


def test_values_go_by_what_moves_them_and_not_by_the_sizes() -> None:
    x, model = torch.randn(2, 3, 8, 8), Shaped().eval()
    traces = trace(model), trace(model)
    symbolic, sized = (traced.graph for traced in traces)
    for node in list(sized.nodes):  # as a trace on the example has it: sizes are numbers
        if node.target == "view":
            node.args = (node.args[0], 2, 8, *((64,) if len(node.args) == 4 else (8, 8)))
    sized.eliminate_dead_code()
    name_values(sized)
    names = [
        {n.name: value_name(n) for n in graph.nodes if n.target not in (getattr, operator.getitem)}
        for graph in (symbolic, sized)
    ]
    assert all(names[0][name] == value for name, value in names[1].items())
    assert len(set(names[1].values())) > 8
    quantize_(model, TernaryConfig("int8"))
    calibrate(model, [x])
    ranges = model._tops_ranges
    assert {names[1][name] for name in ("tanh", "sigmoid", "mul_1")} <= set(ranges)
    assert model.a.output_range.isnan().all(), "its chain goes on to the ReLU, which layers read"


@pytest.mark.parametrize("name", ["view", "max_pool2d", "interpolate", "getitem_1", "pad", "cat"])
def test_ranges_are_kept_by_what_keeps_codes_in_a_program(name: str) -> None:
    class Moved(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            n, c, h, w = x.shape
            x = x.view(n, c, h, w)
            x = F.interpolate(F.max_pool2d(x, 2), scale_factor=2, mode="nearest")
            x = F.pad(x[:, :, ::2], (1, 1, 1, 1))
            return torch.tanh(torch.cat([x, x], 1))

    graph = trace(Moved()).graph
    node = next(n for n in graph.nodes if n.name.startswith(name.removesuffix("_1")))
    if name == "getitem_1":
        node = next(n for n in graph.nodes if n.name == "getitem_4")
    assert keeps_range(node) is (name != "cat")


class Parts(nn.Module):
    """A layer reads the channels of small numbers, sums and the layer behind read the others."""

    def __init__(self, pooled: bool) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.c, self.fc, self.pooled = nn.Conv2d(16, 8, 3), nn.Linear(8, 5), pooled
        with torch.no_grad():
            self.a.weight[8:] *= 20

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        if not self.pooled:
            x = torch.relu(x)
            y = torch.cat([torch.relu(self.b(x[:, :8])), x[:, 8:]], 1)
        else:  # a maximum is seldom negative
            y = F.interpolate(F.max_pool2d(x, 4), scale_factor=4.0)
            y = torch.cat([self.b(y[:, :8]), y[:, 8:]], 1)
        return self.fc(torch.relu(self.c(y + x)).mean((2, 3)))


@pytest.mark.parametrize("pooled", [False, True])
def test_a_value_read_in_parts_keeps_its_whole_range(pooled: bool) -> None:
    torch.manual_seed(0)
    model, x = Parts(pooled).eval(), torch.randn(16, 3, 12, 12)
    with torch.no_grad():
        wanted = model(x).numpy()
    quantize_(model, TernaryConfig("int8"))
    calibrate(model, [x])
    got = tops.compile(model, x)(x.numpy())
    assert np.square(got - wanted).sum() < 1e-3 * np.square(wanted).sum()
