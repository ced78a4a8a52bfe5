# SPDX-License-Identifier: Apache-2.0
"""Views: permuted, reshaped, cut and joined values compile to what PyTorch computes, and move
numbers only where an operator needs them elsewhere.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from random_views import Moved
from small_networks import error, images, ready
from torch import Tensor, nn

import ternary_ops as tops

SHAPES = (2, 3, 4, 6), (3, 6, 5), (2, 10), (1, 4, 3, 3)


def test_random_views() -> None:
    for seed in range(40):
        shape = SHAPES[seed % len(SHAPES)]
        model, x = Moved(seed, shape).eval(), torch.randn(shape)
        more = torch.randn(len(x) + 1, *x.shape[1:])
        assert error(tops.compile(model, x), model, more) < 1e-4, (seed, model.said)


class Net(nn.Module):
    """A convolution, something between, another convolution."""

    def __init__(self, between: Callable[[nn.Module, Tensor], Tensor], channels: int = 12) -> None:
        super().__init__()
        self.stem, self.between = nn.Conv2d(3, 12, 3, padding=1), between
        self.norm, self.up, self.down = nn.LayerNorm(12), nn.Linear(12, 20), nn.Linear(20, 12)
        self.space = nn.Conv2d(48, 48, 1, groups=3)
        self.along = nn.Conv2d(1, 1, (1, 5), padding=(0, 2))
        self.last = nn.Conv2d(channels, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.between(self, self.stem(x)))


def channels_last(net: nn.Module, x: Tensor) -> Tensor:
    """As ConvNeXt has it."""
    y = net.norm(x.permute(0, 2, 3, 1))
    return x + net.down(F.relu(net.up(y))).permute(0, 3, 1, 2)


def tokens(net: nn.Module, x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    y = net.down(F.relu(net.up(x.flatten(2).transpose(1, 2))))
    return x + y.transpose(1, 2).view(n, c, h, w)


def windows(net: nn.Module, x: Tensor) -> Tensor:
    """Parts of 2 x 2 pixels as a batch of their own, which no layer here minds."""
    n, c, h, w = x.shape
    y = x.permute(0, 2, 3, 1).view(n, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 2, 4, 5)
    y = net.norm(y.reshape(-1, 4, c))
    y = y.view(n, h // 2, w // 2, 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(n, h, w, c)
    return y.permute(0, 3, 1, 2)


def shuffled(net: nn.Module, x: Tensor) -> Tensor:
    n, c, h, w = x.size()
    return x.view(n, 3, c // 3, h, w).swapaxes(1, 2).contiguous().view(n, -1, h, w)


def unshuffled(net: nn.Module, x: Tensor) -> Tensor:
    """Pixel unshuffle and its inverse by hand."""
    n, c, h, w = x.shape
    y = x.reshape(n, c, h // 2, 2, w // 2, 2).permute(0, 1, 3, 5, 2, 4)
    y = net.space(y.reshape(n, 4 * c, h // 2, w // 2)).reshape(n, c, 2, 2, h // 2, w // 2)
    return y.permute(0, 1, 4, 2, 5, 3).reshape(n, c, h, w)


def halves(net: nn.Module, x: Tensor) -> Tensor:
    """As a radix of groups and as a stack of parts."""
    n, c, h, w = x.shape
    a, b = x.view(n, 2, c // 2, h, w).unbind(1)
    y = torch.stack([a + b, b], 2)
    return y.flatten(1, 2)


def focus(net: nn.Module, x: Tensor) -> Tensor:
    parts = (x[..., i::2, j::2] for i in (0, 1) for j in (0, 1))
    return torch.cat(list(parts), 1)[:, ::4]


def mixed(net: nn.Module, x: Tensor) -> Tensor:
    """Rolled, turned over, cut, joined along columns."""
    y = torch.roll(x, 2, 1)
    left, right = y[..., :-3], y.narrow(1, 0, 12)[:, [3, 4, 5, 0, 1, 2, 11, 6, 7, 8, 9, 10], :, 2:]
    return torch.cat([right, left], -1)[:, :, 1:]


def efficient_attention(net: nn.Module, x: Tensor) -> Tensor:
    """A convolution along channels, as ECA has it."""
    y = x.mean((2, 3))[:, None, None]
    y = net.along(y).squeeze(1).transpose(-1, -2).unsqueeze(-1)
    return x * torch.sigmoid(y).expand_as(x)


def bordered(net: nn.Module, x: Tensor) -> Tensor:
    """Negative borders, borders of a channels-last image, and channels of zeros."""
    y = F.pad(x, (-1, 2, 1, -1))
    y = F.pad(y.permute(0, 2, 3, 1), (0, 0, 1, 0, 0, 2), value=0.5).permute(0, 3, 1, 2)
    return F.pad(y[:, 2:], (0, 0, 0, 0, 1, 1))


def repeated(net: nn.Module, x: Tensor) -> Tensor:
    """One pixel spread over the image and the channels of one repeated, summed with all."""
    one = x.mean((2, 3), keepdim=True).expand(-1, -1, *x.shape[2:])
    return torch.relu(x + one) + x[:, :1].repeat(1, 12, 1, 1) * x.amax(1, keepdim=True)


# What lies between, the number of channels behind it, and how many steps move numbers.
CASES: list[tuple[Callable[[nn.Module, Tensor], Tensor], int, dict[str, int]]] = [
    (channels_last, 12, {}),
    (tokens, 12, {}),
    (windows, 12, {}),
    (shuffled, 12, {"channel_shuffle": 1}),
    (unshuffled, 12, {"pixel_unshuffle": 1, "pixel_shuffle": 1}),
    (halves, 12, {"slice": 2, "concat": 1, "channel_shuffle": 1}),
    (focus, 12, {"crop": 4, "concat": 1, "channel_shuffle": 1, "slice": 1}),
    (mixed, 12, {"crop": 3, "concat": 3, "slice": 6}),
    (efficient_attention, 12, {"rearrange": 2}),
    (bordered, 12, {"crop": 1, "slice": 1}),
    (repeated, 12, {"slice": 1}),
]
MOVES = set("rearrange crop slice concat channel_shuffle pixel_shuffle pixel_unshuffle".split())


@pytest.mark.parametrize(("between", "channels", "moves"), CASES)
def test_views_of_images(
    between: Callable[[nn.Module, Tensor], Tensor], channels: int, moves: dict[str, int]
) -> None:
    torch.manual_seed(0)
    model = Net(between, channels).eval()
    program = tops.compile(model, images(2, 3, 8, 10))
    for shape in ((2, 3, 8, 10), (1, 3, 12, 6)):
        assert error(program, model, images(*shape, seed=1)) < 1e-5
    assert Counter(n.op for n in program.graph.nodes if n.op in MOVES) == moves


@pytest.mark.parametrize("between", [tokens, shuffled, unshuffled, halves, focus, mixed])
def test_codes_move_as_they_are(between: Callable[[nn.Module, Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    x = images(4, 3, 8, 10)
    model = ready(Net(between), x, weights="int8")
    program = tops.compile(model, x)
    inner = program.graph.values[1:-1]
    assert all(value.y is not None for value in inner)
    with torch.no_grad():
        wanted = model(x).numpy()
    assert np.abs(program(x.numpy()) - wanted).max() < 0.03 * np.abs(wanted).max()


def test_a_layer_with_a_residual_that_lies_elsewhere() -> None:
    """The sum stays in the layer's chain; its other operand is moved."""

    class Summed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.linear = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            y = self.stem(x)
            n, c, h, w = y.shape
            z = y.view(n, c // 2, 2, h, w).transpose(1, 2).reshape(n, c, h, w)
            z = torch.relu(z.permute(0, 2, 3, 1) + self.linear(y.permute(0, 2, 3, 1)))
            return z.permute(0, 3, 1, 2)

    for quantized in (False, True):
        torch.manual_seed(0)
        x = images(4, 3, 6, 7)
        model = ready(Summed(), x, weights="int8") if quantized else Summed().eval()
        program = tops.compile(model, x)
        kinds = Counter(node.op for node in program.graph.nodes)
        assert kinds["conv2d"] == 2 and kinds["add"] == 0
        assert error(program, model, x) < (0.03 if quantized else 1e-5)
