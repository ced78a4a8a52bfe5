# SPDX-License-Identifier: Apache-2.0
"""Losses for super-resolution, and weights within the range of float16."""

from __future__ import annotations

import copy
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from ternary_ops import sr
from ternary_ops.errors import BadConfig, UnsupportedShape

_HERE = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("TERNARY_OPS_DATA", _HERE.parent / "shared" / "data"))


def by_hand(a: np.ndarray, b: np.ndarray, patch: int, kernel: list[list[int]]) -> float:
    """One term of one image pair [3, H, W], plain loops."""

    def variances(image: np.ndarray) -> list[float]:
        gray = 0.2989 * image[0] + 0.5870 * image[1] + 0.1140 * image[2]
        padded = np.pad(gray, 1, mode="edge")
        h, w = gray.shape
        found = np.zeros((h, w))
        for y in range(h):
            for x in range(w):
                for u in range(3):
                    for v in range(3):
                        found[y, x] += padded[y + u, x + v] * kernel[u][v]
        return [
            float(np.var(found[y : y + patch, x : x + patch], ddof=1))
            for y in range(0, h - patch + 1, patch)
            for x in range(0, w - patch + 1, patch)
        ]

    return float(np.mean((np.array(variances(a)) - np.array(variances(b))) ** 2))


def test_terms_are_those_computed_by_hand() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 3, 8, 11))
    loss = sr.EdgeLoss(patch=4).double()
    found = loss.terms(torch.from_numpy(a)[None], torch.from_numpy(b)[None])
    kernels = ([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]], [[1, 2, 1], [0, 0, 0], [-1, -2, -1]],
               [[0, 1, 0], [1, -4, 1], [0, 1, 0]])  # fmt: skip
    wanted = [by_hand(a, b, 4, kernel) for kernel in kernels]
    np.testing.assert_allclose([float(t) for t in found], wanted, rtol=1e-6)
    total = loss(torch.from_numpy(a)[None], torch.from_numpy(b)[None])
    assert float(total) == pytest.approx(float(np.dot(wanted, (0.2, 0.2, 0.1))), rel=1e-6)


@pytest.mark.parametrize("distance", ["mse", "norm"])
def test_equal_images_cost_nothing_and_brightness_does_not_matter(distance: str) -> None:
    loss = sr.EdgeLoss(distance=distance).double()
    a, b = torch.rand(2, 2, 3, 17, 24, dtype=torch.float64)
    assert float(loss(a, a.clone())) <= 1e-12
    torch.testing.assert_close(loss(a + 0.25, b), loss(a, b), rtol=1e-9, atol=1e-12)
    theirs = sr.EdgeLoss(distance=distance, padding="zeros").double()
    assert abs(float(theirs(a + 0.25, b) - theirs(a, b))) > 1e-6


@pytest.mark.parametrize("distance", ["mse", "norm"])
def test_gradients(distance: str) -> None:
    loss = sr.EdgeLoss(patch=4, distance=distance).double()
    a = torch.rand(1, 3, 8, 9, dtype=torch.float64, requires_grad=True)
    b = torch.rand(1, 3, 8, 9, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: loss(x, b), (a,))
    same = b.clone().requires_grad_()
    (grad,) = torch.autograd.grad(loss(same, b), same)
    assert bool(grad.isfinite().all()) and float(grad.abs().max()) < 1e-6


def test_what_does_not_fit_is_refused() -> None:
    loss = sr.EdgeLoss()
    for shapes in (((1, 3, 8, 7), (1, 3, 8, 7)), ((1, 3, 9, 9), (1, 3, 9, 8)), ((1, 1, 9, 9),) * 2):
        with pytest.raises(UnsupportedShape, match="of one size"):
            loss(*(torch.rand(shape) for shape in shapes))
    with pytest.raises(BadConfig, match="weights"):
        sr.EdgeLoss(weights=(1, 2))
    with pytest.raises(BadConfig, match="patch"):
        sr.EdgeLoss(patch=1)
    with pytest.raises(BadConfig, match="distance"):
        sr.EdgeLoss(distance="l1")


def test_balanced_networks_keep_their_bits() -> None:
    torch.manual_seed(1)
    network = sr.FMEN(2, 6, 5, 4, 2, [2, 0, 1]).eval()
    with torch.no_grad():
        for block in (network.warmup[1], *network.HFABs):
            block.squeeze.weight.mul_(1e5)
            block.excitate.weight.mul_(1e-6)
    x = torch.rand(1, 3, 12, 13) * 255
    balanced = copy.deepcopy(network)
    sr.balance_(balanced, x)
    largest: list[float] = []
    for module in balanced.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda m, a, y: largest.append(float(y.abs().max())))
    with torch.no_grad():
        assert torch.equal(balanced(x), network(x))
    assert max(largest) < 1200
    before = [p.clone() for p in balanced.parameters()]
    sr.balance_(balanced, x)
    assert all(torch.equal(a, b) for a, b in zip(before, balanced.parameters(), strict=True))
    with pytest.raises(BadConfig, match="folded"):
        sr.balance_(sr.FMEN(2, 6, 5, 4, 2, [2, 0, 1], train=True), x)


def test_the_published_network_fits_float16() -> None:
    if not (DATA / "sr_weights").is_dir():
        pytest.skip("no published weights at hand")
    from PIL import Image

    network = sr.load(DATA / "sr_weights" / "FMEN-S_x4.npz")
    low = np.asarray(Image.open(DATA / "set5" / "LR_x4" / "butterflyx4.png").convert("RGB"))
    x = torch.from_numpy(low.copy()).permute(2, 0, 1)[None].float()
    with torch.no_grad():
        wanted = network(x)
        assert not network.half()(x.half()).isfinite().all() or (
            float((network(x.half()).float() - wanted).abs().mean()) > 5
        )
        network = sr.load(DATA / "sr_weights" / "FMEN-S_x4.npz")
        sr.balance_(network, x)
        assert torch.equal(network(x), wanted)
        found = network.half()(x.half()).float()
    assert float((found - wanted).square().mean().sqrt()) < 0.2  # grey levels
