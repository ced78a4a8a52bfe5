# SPDX-License-Identifier: Apache-2.0
"""Float 3 x 3 convolutions by pairs of rows: close to float64, and the same bits however an image
is cut, bands and tiles of even rows included.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import ternary_ops as tops
from ternary_ops import runtime


def chain(channels: int, depth: int = 3) -> nn.Sequential:
    torch.manual_seed(channels)
    layers: list[nn.Module] = [nn.Conv2d(3, channels, 3, padding=1), nn.PReLU(channels)]
    for _ in range(depth - 1):
        layers += [nn.Conv2d(channels, channels, 3, padding=1), nn.LeakyReLU(0.1)]
    return nn.Sequential(*layers).eval()


@pytest.mark.parametrize("size", [(1, 1), (2, 5), (7, 49), (64, 33), (301, 96)])
@pytest.mark.parametrize("channels", [16, 27, 50])
def test_close_to_float64(channels: int, size: tuple[int, int]) -> None:
    net = chain(channels)
    x = torch.randn(2, 3, *size)
    made = tops.compile(net, x)(x.numpy())
    net.double()
    with torch.no_grad():
        expected = net(x.double()).numpy()
    assert np.abs(made - expected).max() < 2e-6 * np.abs(expected).max() + 1e-7


def test_an_image_cut_at_even_rows_keeps_its_bits() -> None:
    net = chain(20)
    x = np.random.default_rng(0).standard_normal((1, 3, 301, 130), np.float32)
    program = tops.compile(net, torch.from_numpy(x))
    whole = program(x)
    for low, high in ((0, 50), (40, 130), (200, 301)):
        part = program(np.ascontiguousarray(x[:, :, low:high]))
        first, last = (0 if low == 0 else 3), (None if high == 301 else -3)
        assert np.array_equal(part[:, :, first:last], whole[:, :, low:high][:, :, first:last])


def test_threads_and_batches_change_no_bit() -> None:
    net = chain(33)
    x = np.random.default_rng(1).standard_normal((3, 3, 45, 70), np.float32)
    program = tops.compile(net, torch.from_numpy(x))
    with runtime.num_threads(1):
        expected = program(x)
    for threads in (2, 7):
        with runtime.num_threads(threads):
            assert np.array_equal(program(x), expected)
    assert np.array_equal(program(x[1:2]), expected[1:2])


def test_what_follows_is_fused_as_before() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = (nn.Conv2d(24, 24, 3, padding=1) for _ in range(2))
            self.head = nn.Conv2d(3, 24, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.head(x)
            y = torch.relu(self.a(x) + x)
            return y * torch.sigmoid(self.b(y))

    torch.manual_seed(0)
    net = Block().eval()
    x = torch.randn(1, 3, 37, 41)
    made = tops.compile(net, x)(x.numpy())
    with torch.no_grad():
        expected = net(x).numpy()
    assert np.abs(made - expected).max() < 3e-6 * np.abs(expected).max()
    quantized = Block().eval()
    tops.quantize_(quantized, tops.plan(quantized, tops.TernaryConfig("int8"), skip=("a",)))
    tops.calibrate(quantized, [x])
    program = tops.compile(quantized, x)  # the float layer's sums end as codes
    with torch.no_grad():
        wanted = quantized(x).numpy()
    # A sum on the edge of a code may go either way.
    assert np.abs(program(x.numpy()) - wanted).mean() < 0.02 * np.abs(wanted).max()


class Skip(nn.Module):
    """What a first layer makes is added to what many more make of it."""

    def __init__(self, channels: int, depth: int, skip: bool) -> None:
        super().__init__()
        self.skip = skip
        self.head, self.body = nn.Conv2d(3, channels, 1), chain(channels, depth + 1)[2:]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        head = self.head(x)
        return self.body(head) + head if self.skip else self.body(head)


def test_a_long_skip_keeps_a_row_a_layer() -> None:
    """One layer's pairs end where the next one's stop reading: none is made rows too early."""
    depth, width, channels = 30, 1000, 16
    plain, skipped = (
        tops.compile(Skip(channels, depth, skip).eval(), torch.randn(1, 3, 8, 8)).peak_bytes(
            (1, 3, 800, width)
        )
        for skip in (False, True)
    )
    rows = (skipped - plain) / (4 * channels * width)
    assert depth - 4 < rows < 1.4 * depth
