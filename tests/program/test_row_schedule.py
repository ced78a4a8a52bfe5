# SPDX-License-Identifier: Apache-2.0
"""Rows of an image that go through a network in bands: each is there when it is read.

Schedules are held against support/row_oracle.py without computing a value, and then with values.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import engine_access as access
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from programs import Builder, example
from row_oracle import RowError, check_schedule
from topologies import network
from torch import Tensor, nn

import ternary_ops as tops


def _schedules(seed: int) -> int:
    """Check those of a network for several bands and heights; how many went in bands."""
    graph, rng = network(seed), np.random.default_rng((seed, 23))
    banded = 0
    for _ in range(3):
        h, w, band = int(rng.integers(6, 90)), int(rng.integers(4, 12)), int(rng.integers(1, 20))
        try:
            shapes = access.infer(graph, 1, h, w)
        except access.UnsupportedShape:
            continue
        program = access.Program(graph, (1, graph.nodes[0].attrs["c"], h, w))
        access.debug(program, band, poison=False)
        schedule = access.schedule(program, h, w)
        if schedule.band:
            banded += 1
            check_schedule(graph, shapes, schedule)
    return banded


@pytest.mark.parametrize("part", range(4))
def test_every_row_is_there_when_it_is_read(part: int) -> None:
    assert sum(_schedules(seed) for seed in range(part * 100, part * 100 + 100)) >= 120


def _pool_beside(band: int) -> tuple[access.Graph, access.Schedule, list[Any]]:
    """A concat of a value and its pool, in one memory."""
    b = Builder(1, c=4)
    x = b("conv2d", 0, w=b.weight("float", 4, 4, 3, 3), padding=(1, 1))
    pool = b("max_pool2d", x, kernel=(9, 9), stride=(1, 1), padding=(4, 4))
    y = b("concat", x, pool)
    b("conv2d", y, w=b.weight("float", 4, 8, 3, 3), padding=(1, 1))
    graph = b.graph()
    program = access.Program(graph, (1, 4, 40, 10))
    access.debug(program, band, poison=True)
    return graph, access.schedule(program, 40, 10), access.infer(graph, 1, 40, 10)


def test_a_pool_beside_what_it_reads_in_one_memory() -> None:
    graph, schedule, shapes = _pool_beside(3)
    assert schedule.band == 3
    assert schedule.places[1].memory == schedule.places[2].memory == schedule.places[3].memory
    check_schedule(graph, shapes, schedule)


@pytest.mark.parametrize("change", ["drop", "keep", "end", "margin", "capacity"])
def test_the_oracle_notices_one_row_too_few(change: str) -> None:
    graph, schedule, shapes = _pool_beside(3)
    tasks, places = list(schedule.tasks), list(schedule.places)
    if change in ("drop", "keep", "end"):
        at = max(i for i, t in enumerate(tasks) if t.drop and t.keep and t.value == 1)
        more = {"drop": 1, "keep": -1, "end": -1}[change]
        tasks[at] = replace(tasks[at], **{change: getattr(tasks[at], change) + more})
    else:
        places = [replace(p, **{change: getattr(p, change) - 1}) for p in places]
    with pytest.raises(RowError):
        check_schedule(graph, shapes, replace(schedule, tasks=tasks, places=places))


class Neck(nn.Module):
    """Down, up and down again, with a concat and a pool."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.stem, self.down = _conv(c, c, 3, 2), _conv(c, c, 3, 2)
        self.pooled, self.up, self.last = _conv(2 * c, c), _conv(2 * c, c), _conv(2 * c, c)
        self.head, self.out = _conv(c, c, 3), _conv(c, c, 3)

    def forward(self, x: Tensor) -> Tensor:
        b = self.stem(x)
        b = self.pooled(torch.cat([b, F.max_pool2d(b, 13, 1, 6)], 1))
        m = self.up(torch.cat([F.interpolate(b, scale_factor=2.0), x], 1))
        return self.out(self.head(self.last(torch.cat([self.down(m), b], 1))))  # type: ignore[no-any-return]


def _conv(i: int, o: int, kernel: int = 1, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(i, o, kernel, stride, kernel // 2)


@pytest.mark.parametrize(("channels", "weights"), [(48, "float"), (96, "int8")])
def test_networks_that_go_down_up_and_down_again(channels: int, weights: str) -> None:
    x = torch.randn(1, channels, 52, 52)
    model: nn.Module = Neck(channels).eval()
    if weights == "int8":
        model = access.quantized(model, x.numpy(), "int8")
    program = tops.compile(model, x)
    y = program(x.numpy())
    assert program._untuned.band(52, 52)
    np.testing.assert_array_equal(y, program.trace(x.numpy())[-1])
    expected = model(x).detach().numpy()
    bound = 1e-5 if weights == "float" else 0.05
    assert np.abs(y - expected).max() <= bound * np.abs(expected).max()


def test_one_row_stretched_over_many_is_planned_at_all() -> None:
    """With aligned corners the rows of the output ask for the same row however far above it they
    lie; the search for the first band did not end.
    """
    b = Builder(0, c=8)
    x = b("conv2d", 0, w=b.weight("float", 8, 8, 3, 3), padding=(1, 1))
    v = b("max_pool2d", x, kernel=(96, 1), stride=(96, 1))
    v = b("conv2d", v, w=b.weight("float", 8, 8))
    v = b("resize", v, x, mode="bilinear", align=True)
    v = b("add", v, x)
    b("conv2d", v, w=b.weight("float", 8, 8, 3, 3), padding=(1, 1))
    graph = b.graph()
    program = access.Program(graph, (1, 8, 96, 900))
    image = example(graph, 1, 96, 900)
    assert program._untuned.band(96, 900)
    np.testing.assert_array_equal(program(image), program.trace(image)[-1])
