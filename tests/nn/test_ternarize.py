# SPDX-License-Identifier: Apache-2.0
"""Codes and scales from weights, and the straight-through estimators."""

from __future__ import annotations

import math
import uuid

import pytest
import torch
from torch import Tensor

from ternary_ops.errors import BadConfig
from ternary_ops.nn import TernaryLinear
from ternary_ops.nn.ternarize import (
    INT8,
    StraightThrough,
    cosine,
    get_ternarizer,
    lsq_scale,
    unit_scale,
)
from ternary_ops.quantize import Ternarizer, TernaryConfig, ptq, register_ternarizer

NAMES = ["ptq", "twn", "absmean"]


def largest(weight: Tensor, share: float) -> Tensor:
    """Mask of the `share` largest weights of a tensor."""
    kept = round(share * weight.numel())
    threshold = weight.abs().flatten().sort(descending=True).values[kept - 1]
    return weight.abs() >= threshold


def quad_mask(shape: tuple[int, ...], kept: float) -> Tensor:
    """A random mask of whole quads along axis 1."""
    quads = torch.rand(shape[0], -(-shape[1] // 4), *shape[2:]) < kept
    return quads.repeat_interleave(4, 1)[:, : shape[1]]


# The table of Gaussian cosines: zeros, cos(W, T), cos(W * M, T), share of energy kept.
@pytest.mark.parametrize(
    ("zeros", "direct", "pruned", "energy"),
    [
        (0.0, 0.798, 0.798, 1.0),
        (0.424, 0.899, 0.919, 0.96),
        (0.459, 0.900, 0.925, 0.95),
        (0.70, 0.851, 0.962, 0.78),
        (0.90, 0.652, 0.984, 0.44),
    ],
)
def test_cosines_of_gaussian_weights(
    zeros: float, direct: float, pruned: float, energy: float
) -> None:
    weight = torch.randn(400, 1000)
    mask = largest(weight, 1 - zeros)
    codes, _ = get_ternarizer("ptq")(weight, mask, "element")
    assert cosine(weight, codes) == pytest.approx(direct, abs=0.005)
    assert cosine(weight * mask, codes) == pytest.approx(pruned, abs=0.005)
    assert (weight * mask).square().sum() / weight.square().sum() == pytest.approx(energy, abs=0.01)
    assert 1 - codes.abs().float().mean().item() == pytest.approx(zeros, abs=1e-5)


def test_twn_zeros_a_gaussian_as_its_paper_says() -> None:
    weight = torch.randn(300, 1000)
    codes, scale = get_ternarizer("twn")(weight, torch.ones_like(weight).bool(), "element")
    assert (codes == 0).float().mean().item() == pytest.approx(0.424, abs=0.005)
    for row, code, a in zip(weight, codes, scale, strict=True):
        assert row[code != 0].abs().double().mean().item() == pytest.approx(a.item(), rel=1e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("pattern", ["element", "1x4", "2x4", "filter"])
@pytest.mark.parametrize("shape", [(5, 12), (4, 7), (6, 9, 3, 3), (3, 1, 3, 3), (1, 1, 1, 1)])
def test_codes_are_ternary_masked_and_signed(
    name: str, pattern: str, shape: tuple[int, ...]
) -> None:
    weight = torch.randn(shape)
    mask = quad_mask(shape, 0.5)
    codes, scale = get_ternarizer(name)(weight, mask, pattern)
    assert codes.dtype == torch.int8 and codes.shape == weight.shape
    assert scale.dtype == torch.float32 and scale.shape == shape[:1]
    assert set(codes.unique().tolist()) <= {-1, 0, 1}
    assert not codes[~mask].any()
    assert torch.equal(codes, torch.sign(weight).to(torch.int8) * codes.abs())
    assert (scale > 0).all() and scale.isfinite().all()
    alive = mask.flatten(1).any(1)
    assert torch.equal(codes.flatten(1).any(1), alive)  # min_nnz: a filter with survivors keeps one
    assert torch.equal(scale[~alive], torch.ones_like(scale[~alive]))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(16, 10), (8, 18, 3, 3)])
def test_a_kept_quad_never_becomes_empty(name: str, shape: tuple[int, ...]) -> None:
    weight = torch.randn(shape)
    weight[:, 4:8] *= 1e-4  # a quad far below any threshold
    mask = quad_mask(shape, 0.6)
    codes, _ = get_ternarizer(name)(weight, mask, "1x4")

    def quads(t: Tensor) -> Tensor:
        padded = torch.zeros(shape[0], 4 * -(-shape[1] // 4), *shape[2:])
        padded[:, : shape[1]] = t
        return padded.unflatten(1, (-1, 4)).any(2)

    assert torch.equal(quads(codes.float()), quads(mask.float()))
    assert (codes[mask] == 0).any()  # zeros inside kept quads come on top


def test_ptq_threshold_inside_quads() -> None:
    weight = torch.randn(6, 40)
    mask = quad_mask((6, 40), 0.5)
    codes, _ = get_ternarizer("ptq")(weight, mask, "1x4")
    for row, kept, code in zip(weight, mask, codes, strict=True):
        delta = 0.5 * row[kept].abs().mean()
        for quad, alive, c in zip(row.view(-1, 4), kept.view(-1, 4), code.view(-1, 4), strict=True):
            expected = torch.sign(quad) * ((quad.abs() > delta) | (quad.abs() == quad.abs().max()))
            assert torch.equal(c, (expected * alive).to(torch.int8))


def test_thresholds_are_per_filter_and_neutral_to_its_scale() -> None:
    weight, gain = torch.randn(8, 24, 3, 3), 2.0 ** torch.randint(-12, 12, (8, 1, 1, 1))
    mask = quad_mask(tuple(weight.shape), 0.4)
    for name in ("ptq", "absmean"):
        codes, scale = get_ternarizer(name)(weight, mask, "1x4")
        again, scaled = get_ternarizer(name)(weight * gain, mask, "1x4")
        assert torch.equal(codes, again)
        assert torch.equal(scale * gain.flatten(), scaled)


def test_absmean_scale_is_the_mean_of_all_survivors() -> None:
    weight = torch.randn(4, 50)
    mask = torch.rand(4, 50) < 0.7
    codes, scale = get_ternarizer("absmean")(weight, mask, "element")
    for row, kept, code, a in zip(weight, mask, codes, scale, strict=True):
        mean = row[kept].abs().mean()
        assert a.item() == pytest.approx(mean.item(), rel=1e-6)
        assert torch.equal(code, ((row / mean).round().clamp(-1, 1) * kept).to(torch.int8))


@pytest.mark.parametrize("rules", [*map(get_ternarizer, NAMES), INT8])
def test_filters_without_survivors_and_zero_weights_have_scale_one(rules: Ternarizer) -> None:
    weight = torch.randn(4, 8)
    weight[1] = 0.0
    mask = torch.ones(4, 8, dtype=torch.bool)
    mask[2] = False
    codes, scale = rules(weight, mask, "1x4")
    assert codes[0].any() and codes[3].any() and not codes[1:3].any()
    assert scale[1] == scale[2] == 1.0
    assert scale.isfinite().all()


@pytest.mark.parametrize("rules", [*map(get_ternarizer, NAMES), INT8])
@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (2, 0, 3, 3)])
def test_empty_weights(rules: Ternarizer, shape: tuple[int, ...]) -> None:
    codes, scale = rules(torch.randn(shape), torch.ones(shape, dtype=torch.bool), "1x4")
    assert codes.shape == shape and torch.equal(scale, torch.ones(shape[0]))


def test_int8_codes_reach_127_and_are_within_half_a_step() -> None:
    weight = torch.randn(6, 9, 3, 3) * torch.logspace(-3, 3, 6).view(-1, 1, 1, 1)
    codes, scale = INT8(weight, torch.ones_like(weight).bool(), "1x4")
    assert codes.abs().flatten(1).amax(1).tolist() == [127] * 6
    error = (codes * scale.view(-1, 1, 1, 1) - weight).abs().flatten(1).amax(1)
    assert (error <= scale * 0.501).all()


def test_scales_against_their_definition() -> None:
    weight, mask = torch.randn(5, 30), torch.rand(5, 30) < 0.8
    codes = torch.sign(weight).to(torch.int8) * (torch.rand(5, 30) < 0.5) * mask
    lsq, unit = lsq_scale(weight, mask, codes), unit_scale(weight, mask, codes)
    for row, code, a, b in zip(weight.double(), codes.double(), lsq, unit, strict=True):
        assert a.item() == pytest.approx((row @ code / (code @ code)).item(), rel=1e-6)
        assert (b * code.float()).norm().item() == pytest.approx(row[code != 0].norm().item())


def gradient(weight: Tensor, mask: Tensor, scale: Tensor, upstream: Tensor, ste: str) -> Tensor:
    """What the latent weight gets when the gradient by scale * codes is `upstream`."""
    weight = weight.clone().requires_grad_()
    codes = torch.sign(weight.detach()).to(torch.int8)
    out = StraightThrough.apply(weight, mask, codes, scale, ste)
    assert torch.equal(out, codes.float())
    (out * scale.view(-1, *[1] * (weight.ndim - 1)) * upstream).sum().backward()
    assert weight.grad is not None
    return weight.grad


@pytest.mark.parametrize("shape", [(6, 20), (4, 5, 3, 3)])
def test_gradients_of_the_estimators(shape: tuple[int, ...]) -> None:
    weight, upstream = torch.randn(shape), torch.randn(shape)
    mask, scale = torch.rand(shape) < 0.5, torch.rand(shape[0]) + 0.1
    got = {s: gradient(weight, mask, scale, upstream, s) for s in ("identity", "masked", "sphere")}
    torch.testing.assert_close(got["identity"], upstream)
    torch.testing.assert_close(got["masked"], upstream * mask)
    inner = (got["sphere"] * weight).flatten(1).sum(1)
    bound = got["sphere"].flatten(1).norm(dim=1) * weight.flatten(1).norm(dim=1)
    assert (inner.abs() <= 1e-6 * bound).all()
    whole = gradient(weight, mask, scale, upstream, "layer_sphere")
    assert (whole * weight).sum().abs() <= 1e-6 * whole.norm() * weight.norm()
    assert not torch.allclose(whole, got["sphere"], rtol=1e-3)


def test_sphere_is_the_derivative_of_the_normalization() -> None:
    weight = torch.randn(3, 7, dtype=torch.float64)
    upstream = torch.randn(3, 7)
    norms = weight.norm(dim=1, keepdim=True)

    def loss(w: Tensor) -> Tensor:  # the quantizer taken as the identity on the sphere
        return (upstream * norms * w / w.norm(dim=1, keepdim=True)).sum()

    numeric, step = torch.zeros_like(weight), 1e-6
    for index in range(weight.numel()):
        moved = torch.zeros(weight.numel(), dtype=torch.float64)
        moved[index] = step
        change = loss(weight + moved.view_as(weight)) - loss(weight - moved.view_as(weight))
        numeric.view(-1)[index] = change / (2 * step)
    mask = torch.ones(3, 7, dtype=torch.bool)
    got = gradient(weight.float(), mask, torch.ones(3), upstream, "sphere")
    torch.testing.assert_close(got.double(), numeric, rtol=1e-4, atol=1e-5)


def test_second_derivatives_are_refused() -> None:
    weight = torch.randn(3, 4, requires_grad=True)
    mask, codes = torch.ones(3, 4).bool(), torch.ones(3, 4, dtype=torch.int8)
    out = StraightThrough.apply(weight, mask, codes, torch.ones(3), "identity")
    (grad,) = torch.autograd.grad(out.square().sum(), weight, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_unknown_names_list_those_there_are() -> None:
    with pytest.raises(BadConfig, match="'ptq', 'twn', 'ttq', 'absmean'.*'inq'"):
        TernaryConfig(ternarizer="inq")
    with pytest.raises(BadConfig, match="scale in"):
        ptq(scale="median")
    with pytest.raises(BadConfig, match="ste in"):
        ptq(ste="round")


def test_registered_ternarizers_are_used_and_names_stay_unique() -> None:
    name = f"signs-{uuid.uuid4()}"
    register_ternarizer(name, lambda weight, mask, pattern: torch.sign(weight) * mask)
    layer = TernaryLinear(8, 3, config=TernaryConfig(ternarizer=name, pattern="1x4"))
    codes, scale = layer.ternary()
    assert torch.equal(codes, torch.sign(layer.weight.detach()).to(torch.int8))
    assert torch.allclose(scale, layer.weight.detach().abs().mean(1))
    with pytest.raises(BadConfig, match="free name"):
        register_ternarizer(name, lambda weight, mask, pattern: weight)
    with pytest.raises(BadConfig, match="free name"):
        register_ternarizer("ptq", ptq())
    with pytest.raises(BadConfig, match="ste as one of"):
        register_ternarizer(f"{name}-2", lambda weight, mask, pattern: weight, ste="none")


def test_ptq_options_by_registration() -> None:
    name = f"unit-{uuid.uuid4()}"
    register_ternarizer(name, ptq(scale="unit", ste="sphere"))
    layer = TernaryLinear(16, 3, config=TernaryConfig(ternarizer=name, pattern="element"))
    codes, scale = layer.ternary()
    norms = (codes * scale[:, None]).norm(dim=1)
    torch.testing.assert_close(norms, layer.weight.detach().norm(dim=1))
    layer(torch.randn(5, 16)).square().sum().backward()
    assert layer.weight.grad is not None
    inner = (layer.weight.grad * layer.weight.detach()).sum(1)
    assert math.isclose(inner.abs().max().item(), 0.0, abs_tol=1e-5)
    layer.phase = "frozen"
    torch.testing.assert_close(layer.ternary()[1], scale)
