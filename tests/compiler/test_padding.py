# SPDX-License-Identifier: Apache-2.0
"""Borders: zeros become padding of the convolutions that read them, all others a step."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_networks import error, images, ready
from torch import Tensor, nn

import ternary_ops as tops
from ternary_ops.program.interpret import simulate


class Borders(nn.Module):
    """Convolutions behind all kinds of borders."""

    def __init__(self, form: Callable[[Borders, Tensor], Tensor]) -> None:
        super().__init__()
        self.stem, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)
        self.plain = nn.Conv2d(8, 8, 3)
        self.even = nn.Conv2d(8, 8, (2, 4), padding="same")
        self.depthwise = nn.Conv2d(8, 8, 3, 2, groups=8)
        self.padded = nn.Conv2d(8, 8, 3, 2, padding=1, dilation=(1, 2))
        self.ring = nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular")
        self.mirror = nn.Conv2d(8, 8, 3, padding="same", padding_mode="reflect")
        self.zeros, self.ones = nn.ZeroPad2d((0, 1, 0, 1)), nn.ConstantPad2d((1, 2, 0, 1), 1.0)
        self.edge = nn.ReplicationPad2d((2, 0, 1, 1))
        self.form = form

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.form(self, F.relu(self.stem(x)))).mean((2, 3)))


FORMS: dict[str, tuple[Callable[[Borders, Tensor], Tensor], int]] = {
    "same stride": (lambda m, x: m.depthwise(m.zeros(x)), 0),
    "same": (lambda m, x: m.even(x), 0),
    "both": (lambda m, x: m.padded(F.pad(x, (1, 2, 0, 1))), 0),
    "columns": (lambda m, x: m.plain(F.pad(x, (1, 1))), 0),
    "two readers": (lambda m, x: m.plain(y := m.zeros(x)) + m.plain(y), 0),
    "another reader": (lambda m, x: m.depthwise(y := m.zeros(x)) + F.max_pool2d(y, 3, 2), 1),
    "top and left": (lambda m, x: m.plain(F.pad(x, (1, 0, 2, 0))), 1),
    "ones": (lambda m, x: m.plain(m.ones(x)), 1),
    "edge": (lambda m, x: m.plain(m.edge(x)), 1),
    "ring": (lambda m, x: m.ring(x), 1),
    "mirror": (lambda m, x: m.mirror(x), 1),
    "pool": (lambda m, x: m.plain(F.max_pool2d(F.pad(x, (0, 1, 0, 1), value=-1e9), 2, 2)), 1),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_borders(name: str) -> None:
    form, pads = FORMS[name]
    torch.manual_seed(0)
    model, x = Borders(form).eval(), images(2, 3, 11, 10)
    program = tops.compile(model, x)
    assert [node.op for node in program.graph.nodes].count("pad") == pads
    other = images(1, 3, 14, 13, seed=1)
    assert error(program, model, other) < 1e-5
    if name == "pool":
        return
    model = ready(model, x, weights="int8")
    program = tops.compile(model, x)
    assert error(program, model, other) < 0.03
    for value, exact in zip(
        program.trace(other.numpy()), simulate(program.graph, other.numpy()), strict=True
    ):
        if value.dtype == np.uint8:
            np.testing.assert_array_equal(value, exact)
        else:
            np.testing.assert_allclose(value, exact, rtol=1e-4, atol=1e-4)


class Token(nn.Module):
    """A token of zeros before the others, then a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.out = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        return self.out(F.pad(tokens, (0, 0, 1, 0)))


def test_tokens_are_padded() -> None:
    model, x = Token().eval(), torch.randn(2, 3, 12, 8)
    torch.testing.assert_close(torch.from_numpy(tops.compile(model, x)(x.numpy())), model(x))


class Ones(nn.Module):
    """A border far outside the range of the image."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = 0.01 * self.first(x)
        border = F.pad(y, (1, 1, 1, 1), value=1.0)
        return self.last(y) + torch.softmax(border, 1)[:, :4, :-2, :-2] + border[:, :4, 2:, 2:]


def test_a_border_outside_the_range_of_codes_keeps_its_value() -> None:
    torch.manual_seed(3)
    x = images(2, 3, 9, 8)
    model = ready(Ones(), x, weights="int8")
    assert error(tops.compile(model, x), model, x) < 0.02
