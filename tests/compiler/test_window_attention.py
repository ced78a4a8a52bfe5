# SPDX-License-Identifier: Apache-2.0
"""Attention in shifted windows, with a bias that windows share and a mask that heads share, in
several spellings: one operator, whose biases are stored once.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_networks import ready
from torch import Tensor, nn

import ternary_ops as tops

SIZE, HEADS, WIDTH = 4, 3, 24
_WINDOWS = 4


class Windows(nn.Module):
    """Swin's attention over an image [N, 8, 8, C], rolled by half a window where `mask` is there.

    spelling: "summed" (torchvision: bias and mask added to the scores one after the other), or
    "fused" (timm: both together as the mask of PyTorch's own function), or "windows first" (heads
    and windows the other way round).
    """

    def __init__(self, spelling: str, shifted: bool) -> None:
        super().__init__()
        self.spelling, self.shift = spelling, SIZE // 2 if shifted else 0
        self.conv = nn.Conv2d(3, WIDTH, 3, padding=1)
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.bias = nn.Parameter(torch.randn(HEADS, SIZE**2, SIZE**2))
        mask = torch.zeros(_WINDOWS, SIZE**2, SIZE**2)
        mask[1:, : SIZE**2 // 2, SIZE**2 // 2 :] = -100.0
        mask[2:, SIZE**2 // 2 :, : SIZE**2 // 2] = -100.0
        self.register_buffer("mask", mask)

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        """[N * windows, heads, L, L]."""
        scores = (q * (WIDTH // HEADS) ** -0.5) @ k.transpose(-2, -1) + self.bias
        if not self.shift:
            return scores
        if self.spelling == "windows first":
            return scores + self.mask.repeat(scores.shape[0] // _WINDOWS, 1, 1).unsqueeze(1)
        split = scores.view(-1, _WINDOWS, HEADS, SIZE**2, SIZE**2)
        return (split + self.mask.unsqueeze(1).unsqueeze(0)).view(-1, HEADS, SIZE**2, SIZE**2)

    def mixed(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """What queries make of values."""
        if self.spelling != "fused":
            return self.scores(q, k).softmax(-1) @ v
        bias = self.bias.unsqueeze(0)
        if self.shift:
            mask = self.mask.view(1, _WINDOWS, 1, SIZE**2, SIZE**2)
            mask = mask.expand(q.shape[0] // _WINDOWS, -1, HEADS, -1, -1)
            bias = bias + mask.reshape(-1, HEADS, SIZE**2, SIZE**2)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x).permute(0, 2, 3, 1)
        if self.shift:
            y = torch.roll(y, (-self.shift, -self.shift), (1, 2))
        n, h, w, c = y.shape
        y = y.view(n, h // SIZE, SIZE, w // SIZE, SIZE, c).permute(0, 1, 3, 2, 4, 5)
        y = y.reshape(-1, SIZE**2, c)
        parts = self.qkv(y).reshape(-1, SIZE**2, 3, HEADS, c // HEADS).permute(2, 0, 3, 1, 4)
        made = self.mixed(*parts.unbind(0)).transpose(1, 2).reshape(-1, SIZE**2, c)
        made = self.proj(made).view(n, h // SIZE, w // SIZE, SIZE, SIZE, c)
        made = made.permute(0, 1, 3, 2, 4, 5).reshape(n, h, w, c)
        if self.shift:
            made = torch.roll(made, (self.shift, self.shift), (1, 2))
        return made.permute(0, 3, 1, 2)


def images(n: int) -> Tensor:
    return torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(n))


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("spelling", ["summed", "fused", "windows first"])
def test_one_operator_whose_biases_are_stored_once(spelling: str, shifted: bool) -> None:
    torch.manual_seed(0)
    model = Windows(spelling, shifted).eval()
    program = tops.compile(model, images(2))
    made = [node.op for node in program.graph.nodes]
    assert made.count("attention") == 1 and not {"matmul", "softmax"} & set(made)
    stored = sum(w.array.size for w in program.graph.weights if w.shape[2] == SIZE**2)
    together = spelling == "fused" and shifted  # timm adds them up before
    assert stored == SIZE**4 * (HEADS * _WINDOWS if together else HEADS + _WINDOWS * shifted)
    x = images(3)
    with torch.no_grad():
        want = model(x).numpy()
    np.testing.assert_allclose(program(x.numpy()), want, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize("shifted", [False, True])
def test_codes_in_windows(shifted: bool) -> None:
    torch.manual_seed(0)
    model = ready(Windows("summed", shifted), images(4), weights="int8")
    program = tops.compile(model, images(2))
    attention = next(n for n in program.graph.nodes if n.op == "attention")
    assert all(program.graph.values[j].y is not None for j in attention.inputs[:3])
    assert attention.attrs["y"] is not None
    x = images(3)
    with torch.no_grad():
        want = model(x).numpy()
    assert np.linalg.norm(program(x.numpy()) - want) < 0.03 * np.linalg.norm(want)


def test_sums_over_anything_but_keys_are_no_attention() -> None:
    """A softmax over queries, and one of heads that change places behind it."""

    class Other(Windows):
        def mixed(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            if self.spelling == "queries":
                return self.scores(q, k).softmax(-2) @ v
            return self.scores(q, k).softmax(-1)[:, [2, 0, 1]] @ v

    for spelling in ("queries", "moved"):
        model = Other(spelling, shifted=False).eval()
        program = tops.compile(model, images(2))
        assert "attention" not in {node.op for node in program.graph.nodes}
        with torch.no_grad():
            want = model(images(3)).numpy()
        found = program(images(3).numpy())
        np.testing.assert_allclose(found, want, atol=1e-5 * np.abs(want).max())
