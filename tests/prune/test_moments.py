# SPDX-License-Identifier: Apache-2.0
"""Moments of what enters layers, and runs of a network that wait for each other."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ternary_ops as tops
from ternary_ops.errors import UnsupportedModel
from ternary_ops.prune.layer_matrix import LayerMatrix
from ternary_ops.prune.moments import joined
from ternary_ops.prune.paused_runs import PausedRuns

LAYERS: list[tuple[nn.Module, tuple[int, ...], bool]] = [
    (nn.Conv2d(6, 5, 3, padding=1), (2, 6, 11, 9), True),
    (nn.Conv2d(5, 4, (3, 5), padding=(0, 2)), (3, 5, 9, 15), True),
    (nn.Conv2d(5, 4, (1, 3), padding=(0, 2), padding_mode="reflect"), (2, 5, 4, 12), True),
    (nn.Conv2d(5, 4, 3, padding=1), (2, 5, 6, 6), False),  # too small
    (nn.Conv2d(8, 4, 3, stride=2, padding=1), (2, 8, 12, 11), False),
    (nn.Conv2d(8, 4, 3, groups=2, dilation=2), (2, 8, 12, 11), False),
    (nn.Conv2d(6, 5, 3, padding=1), (6, 11, 9), True),  # one image, not in a batch
    (nn.Linear(10, 7), (3, 2, 10), False),
]


@pytest.mark.parametrize(("layer", "shape", "shifts"), LAYERS)
def test_products_are_those_of_the_columns(
    layer: nn.Module, shape: tuple[int, ...], shifts: bool
) -> None:
    matrix, x = LayerMatrix(layer.double(), 4), torch.randn(shape, dtype=torch.float64)
    columns = matrix.columns(x)
    assert matrix._by_shifts(x) == shifts
    torch.testing.assert_close(matrix.products(x), columns @ columns.mT)
    total, count = matrix.sums(x)
    torch.testing.assert_close(total, columns.sum(-1))
    assert count == columns.shape[-1]
    y = layer(x).detach()
    flat = y.flatten(0, -2).T if len(matrix.shape) == 2 else y.movedim(-3, 0).flatten(1)
    wanted = flat.view(matrix.groups, -1, count) @ columns.mT
    torch.testing.assert_close(matrix.output_products(y, x), wanted)


@pytest.mark.parametrize(("layer", "shape", "shifts"), LAYERS)
def test_a_large_mean_costs_no_digits(
    layer: nn.Module, shape: tuple[int, ...], shifts: bool
) -> None:
    """In float32, where the sums of squares alone have seven digits."""
    x = (1000 + torch.randn(shape)).double()
    exact = LayerMatrix(layer.double(), 4)
    (mean, count), products = exact.sums(x), exact.products(x)
    found = LayerMatrix(copy.deepcopy(layer).float(), 4).products(x.float())
    for values in (products, found):
        values -= mean[..., None] * mean[..., None, :] / count
    scale = float(products.diagonal(dim1=1, dim2=2).max())
    assert float((found - products).abs().max()) < 1e-3 * scale


def test_batches_are_joined_where_they_are_batches_of_one_size() -> None:
    conv, linear = LayerMatrix(nn.Conv2d(3, 4, 1), 1), LayerMatrix(nn.Linear(3, 4), 1)
    images = [torch.randn(2, 3, 4, 4), torch.randn(1, 3, 4, 4)]
    assert torch.equal(joined(conv, images)[0][0], torch.cat(images))
    rows = [torch.randn(2, 3), torch.randn(5, 3)]
    assert len(joined(linear, rows, rows)[1]) == 1
    for apart in ([torch.randn(3, 4, 4)] * 2, [torch.randn(1, 3, 4, 4), torch.randn(1, 3, 5, 4)]):
        assert joined(conv, apart)[0] is apart


class Padded(nn.Conv2d):
    """Pads in its own forward, more at the right and bottom, as networks made for TensorFlow do."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - as the base class names it
        return super().forward(F.pad(input, (0, 1, 0, 1)))


class Twice(nn.Module):
    """A padding subclass, one layer called twice, two that read one tensor, and one that only some
    images reach.
    """

    def __init__(self) -> None:
        super().__init__()
        self.pad = Padded(3, 8, 3, stride=2)
        self.again = nn.Conv2d(8, 8, 3, padding=1)
        self.q, self.k = nn.Linear(8, 8), nn.Linear(8, 8)
        self.bright, self.last = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.pad(x))
        y = F.relu(self.again(F.relu(self.again(y)))).mean((2, 3))
        y = torch.tanh(self.q(y)) + torch.tanh(self.k(y))
        if float(x.mean()) > 0:
            y = y + self.bright(y)
        made: Tensor = self.last(y)
        return made


def images() -> list[Tensor]:
    torch.manual_seed(3)
    return [torch.randn(12, 3, 9, 9, dtype=torch.float64) + shift for shift in (1, -1, 1)]


def test_nothing_pruned_gives_back_the_weights_of_any_network() -> None:
    torch.manual_seed(0)
    model = Twice().double()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    tops.prune.reconstruct_(model, images(), 0.0, "1x4", damp=1e-9)
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=1e-4, atol=1e-5)


def test_runs_wait_before_each_layer_and_see_it_changed() -> None:
    model, given = Twice().double(), images()
    with torch.no_grad(), PausedRuns(model, ["pad", "q", "k", "bright", "last"], given) as runs:
        assert all(a is b for a, b in zip(runs.at("pad") or [], given, strict=True))
        model.pad.weight.zero_()
        assert model.pad.bias is not None
        model.pad.bias.fill_(1.0)
        q, k = runs.at("q"), runs.at("k")
        assert q is not None and k is not None
        assert all(a is b for a, b in zip(q, k, strict=True))
        ones = torch.ones(12, 8, 4, 4, dtype=torch.float64)
        y = F.relu(model.again(F.relu(model.again(ones)))).mean((2, 3))
        torch.testing.assert_close(q[0], y)
        assert runs.at("bright") is None  # the second does not come there
        last = runs.at("last")
        assert last is not None and len(last) == 3
    with torch.no_grad(), PausedRuns(model, ["q"], given[:1], behind=True) as runs:
        left = runs.at("q")
        assert left is not None
        torch.testing.assert_close(left[0], model.q(q[0]))


class Failing(nn.Module):
    """Fails at its third call."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
        self.calls: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        self.calls.append(1)
        if float(x[0, 0]) > 100:
            raise ValueError("too bright")
        made: Tensor = self.b(y)
        return made


def test_what_a_run_raises_is_raised_and_all_threads_end() -> None:
    before = threading.active_count()
    given: list[Any] = [torch.zeros(2, 8), torch.full((2, 8), 101.0), torch.zeros(2, 8)]
    with (
        pytest.raises(UnsupportedModel, match="too bright"),
        PausedRuns(Failing(), ["a", "b"], given) as runs,
    ):
        assert len(runs.at("a") or []) == 3
        runs.at("b")
    assert threading.active_count() == before
