# SPDX-License-Identifier: Apache-2.0
"""Super-resolution: losses, training on patches, and weights within the range of float16."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from packs import DATA, needs_weights

import ternary_ops as tops
from ternary_ops import sr
from ternary_ops.errors import BadConfig, BadWeights, UnsupportedShape
from ternary_ops.train.checkpoint import Checkpoint


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
    for shapes in (((1, 3, 8, 7), (1, 3, 8, 7)), ((1, 3, 9, 9), (1, 3, 9, 8)), ((1, 9, 9),) * 2):
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


@needs_weights
def test_the_published_network_fits_float16() -> None:
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


def scenes(count: int, size: int = 40) -> list[np.ndarray]:
    """Smooth images with edges, uint8 [size, size + 5, 3]."""
    rng = np.random.default_rng(1)
    rows, columns = np.mgrid[0:size, 0 : size + 5] / size
    made = []
    for _ in range(count):
        a, b, c = rng.random((3, 3))
        wave = np.sin(6 * (a * rows[..., None] + b * columns[..., None]) + 6 * c)
        made.append(np.where(wave > 0.2, 200 + 50 * wave, 90 + 60 * wave).astype(np.uint8))
    return made


def small_network(seed: int = 0) -> sr.FMEN:
    torch.manual_seed(seed)
    return sr.FMEN(2, 8, 5, 4, 1, [0, 0])


COURSE = sr.SRTrainConfig(steps=8, rate=2e-3, batch=2, patch=10)


def test_patches_are_what_the_large_image_shows() -> None:
    patches = sr.Patches(scenes(3), 2, 12)
    small, large = patches.batch(5, 20, 0)
    assert small.shape == (20, 3, 12, 12) and large.shape == (20, 3, 24, 24)
    assert 0 <= float(large.min()) and 0.5 < float(large.max()) <= 1
    pooled = torch.nn.functional.avg_pool2d(large, 2)
    off = (pooled - small).abs()
    assert float(off.mean()) < 0.02  # the same place, turned alike
    again = patches.batch(5, 20, 0)
    assert torch.equal(again[0], small) and torch.equal(again[1], large)
    assert not torch.equal(patches.batch(6, 20, 0)[0], small)
    assert not torch.equal(patches.batch(5, 20, 1)[0], small)
    with pytest.raises(UnsupportedShape, match="at least 48"):
        sr.Patches([np.zeros((47, 60, 3), np.uint8)], 4, 12)
    with pytest.raises(UnsupportedShape, match="uint8 or float"):
        sr.Patches([np.zeros((60, 60), np.uint8)], 4, 12)
    with pytest.raises(BadConfig, match="images"):
        sr.Patches([], 4, 12)


def _loss(network: sr.SRNetwork, patches: sr.Patches) -> float:
    small, large = patches.batch(999, 16, 3)
    with torch.no_grad():
        return float((network(small * 255) / 255 - large).abs().mean())


def test_training_helps_with_a_teacher_edges_and_an_average() -> None:
    patches = sr.Patches(scenes(4), 2, 10)
    plain = small_network()
    before = _loss(plain.eval(), patches)
    sr.train(plain, patches, replace(COURSE, steps=60))
    assert not plain.training and _loss(plain, patches) < 0.5 * before
    taught = small_network()
    course = replace(COURSE, steps=60, edges=0.1, share=0.5, average=0.9)
    sr.train(taught, patches, course, teacher=plain)
    assert _loss(taught, patches) < 0.5 * before
    other = small_network()
    sr.train(other, patches, replace(course, average=0.0), teacher=plain)
    assert not torch.equal(other.head.weight, taught.head.weight)


def test_a_teacher_leads_the_blocks() -> None:
    """Blocks come nearer to the teacher's, and nothing is left hooked to either network."""
    patches = sr.Patches(scenes(3), 2, 10)
    teacher = small_network(seed=1)
    sr.train(teacher, patches, replace(COURSE, steps=40))
    small = patches.batch(0, 16, 9)[0] * 255

    def apart(network: sr.FMEN) -> float:
        made: list[torch.Tensor] = []
        hooks = [
            block.register_forward_hook(lambda m, x, y: made.append(y.detach()))
            for n in (network, teacher)
            for block in n.HFABs
        ]
        network(small), teacher(small)
        for hook in hooks:
            hook.remove()
        half = len(made) // 2
        return sum(
            float((a - b).square().sum() / b.square().sum())
            for a, b in zip(made[:half], made[half:], strict=True)
        )

    led, alone = small_network(), small_network()
    course = replace(COURSE, steps=60, share=0.0)
    sr.train(alone, patches, course, teacher=teacher)
    sr.train(led, patches, replace(course, stages=1.0), teacher=teacher)
    assert apart(led) < 0.5 * apart(alone)
    hooks = [m._forward_hooks for n in (led, teacher) for m in n.modules()]
    assert not any(hooks)


@pytest.mark.parametrize("average", [0.0, 0.9])
def test_a_run_that_was_cut_off_goes_on_with_the_same_bits(average: float, tmp_path: Path) -> None:
    patches, course = sr.Patches(scenes(2), 2, 10), replace(COURSE, average=average)
    whole = small_network()
    sr.train(whole, patches, course)

    def stop() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise KeyboardInterrupt

    cut, left = small_network(), 4
    about = {"run": "test"}
    with pytest.raises(KeyboardInterrupt):
        sr.train(
            cut, patches, course, checkpoint=Checkpoint(tmp_path / "c", about, 0), on_step=stop
        )
    steps: list[None] = []
    again = small_network()
    kept = Checkpoint(tmp_path / "c", about, 0)
    sr.train(again, patches, course, checkpoint=kept, on_step=lambda: steps.append(None))
    assert len(steps) == course.steps
    for name, value in whole.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


@pytest.mark.parametrize("average", [0.0, 0.9])
def test_quantized_networks_train_to_a_program(average: float, tmp_path: Path) -> None:
    patches = sr.Patches(scenes(3), 2, 10)
    teacher = small_network()
    sr.train(teacher, patches, replace(COURSE, steps=60))
    network = copy.deepcopy(teacher)
    config = tops.TernaryConfig("int8", zeros=0.5, pattern="1x4")
    tops.quantize_(network, tops.plan(network, config, skip=["head", "tail.*"]))
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    pruner = tops.prune.Pruner(network, total_steps=30, optimizer=optimizer)
    course = replace(COURSE, steps=30, rate=1e-3, average=average)
    calibration = patches.batch(0, 8, 7)[0]
    sr.train(
        *(network, patches, course),
        **{"teacher": teacher, "pruner": pruner, "optimizer": optimizer},
        calibration=calibration,
    )
    assert pruner.zeros == pytest.approx(0.5, abs=0.01)
    assert _loss(network, patches) < 2.5 * _loss(teacher, patches)
    program = tops.compile(network, torch.rand(1, 3, 12, 12) * 255)
    program.save(tmp_path / "net.safetensors")
    x = patches.batch(1, 2, 7)[0] * 255
    with torch.no_grad():
        off = np.abs(program(x.numpy()) - network(x).numpy())
    assert off.mean() < 2.0  # grey levels


def test_training_that_cannot_be_is_refused() -> None:
    patches = sr.Patches(scenes(2), 2, 10)
    with pytest.raises(BadConfig, match="one scale"):
        sr.train(small_network(), patches, COURSE, teacher=sr.FMEN(3, 8, 5, 4, 1, [0, 0]))
    for teacher in (None, sr.IMDN(2, 8, 2), sr.FMEN(2, 6, 5, 4, 1, [0, 0])):
        with pytest.raises(BadConfig, match="of the network's shape"):
            sr.train(small_network(), patches, replace(COURSE, stages=0.1), teacher=teacher)
    broken = small_network()
    with torch.no_grad():
        broken.head.weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(BadWeights, match="finite loss"):
        sr.train(broken, patches, COURSE)


def test_a_network_of_the_unit_range_makes_the_same_image() -> None:
    network = sr.fold(sr.FMEN(2, 6, 5, 4, 2, [2, 0, 1], train=True).eval())
    x = torch.rand(2, 3, 11, 12) * 255
    with torch.inference_mode():
        wanted = network(x)
    sr.to_unit_range_(network)
    assert network.input_range == 255 / 256
    with torch.inference_mode():
        torch.testing.assert_close(network(x / 256) * 256, wanted, rtol=1e-6, atol=1e-6)
    with pytest.raises(BadConfig, match="rescaled before"):
        sr.to_unit_range_(network)
    with pytest.raises(BadConfig, match="Call sr.fold first"):
        sr.to_unit_range_(sr.FMEN(2, 6, 5, 4, 2, [2, 0, 1], train=True))
