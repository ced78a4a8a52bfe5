# SPDX-License-Identifier: Apache-2.0
"""TernaryLinear and TernaryConv2d: exact integers, gradients, phases, shapes and dtypes."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ternary_ops import reference
from ternary_ops.errors import BadConfig, BadWeights, UnsupportedShape
from ternary_ops.nn import TernaryConv2d, TernaryLayer, TernaryLinear, fake_quant
from ternary_ops.quantize import TernaryConfig

TERNARY = TernaryConfig()
INT8 = TernaryConfig(weights="int8")
FLOAT_INPUT = TernaryConfig(activations="float32")

# in, out, kernel, stride, padding, dilation, groups, padding_mode, image
CONVS: dict[str, tuple[Any, ...]] = {
    "3x3": (8, 12, 3, 1, 1, 1, 1, "zeros", (9, 7)),
    "stride": (5, 7, 3, 2, 1, 1, 1, "zeros", (9, 8)),
    "pointwise": (6, 9, 1, (2, 1), 0, 1, 1, "zeros", (5, 4)),
    "uneven": (3, 4, (5, 2), (1, 3), (3, 0), (2, 1), 1, "zeros", (8, 9)),
    "groups": (12, 8, 3, 1, 1, 1, 4, "zeros", (6, 6)),
    "depthwise": (6, 12, 3, 1, 2, 2, 6, "zeros", (7, 7)),
    "same": (4, 4, (4, 3), 1, "same", 1, 1, "zeros", (6, 5)),
    "valid": (4, 4, 2, 2, "valid", 1, 2, "zeros", (6, 5)),
    "reflect": (4, 6, 3, 1, (1, 2), 1, 1, "reflect", (6, 5)),
    "circular": (4, 6, 3, 2, 1, 1, 1, "circular", (6, 5)),
    "replicate": (4, 6, 3, 1, "same", 2, 1, "replicate", (6, 5)),
    "padding > filter": (2, 3, 2, 3, 4, 1, 1, "zeros", (3, 1)),
    "wide": (600, 3, 3, 1, 1, 1, 1, "zeros", (3, 3)),  # 5400 terms: int8 sums may pass 2**24
}


def conv(case: str, config: TernaryConfig, bias: bool = True) -> tuple[TernaryConv2d, Tensor]:
    i, o, k, s, p, d, g, mode, image = CONVS[case]
    layer = TernaryConv2d(i, o, k, s, p, d, g, bias, mode, config=config)
    return layer, torch.randn(2, i, *image)


def set_range(layer: TernaryLayer, lo: float, hi: float) -> None:
    layer.input_range.data.copy_(torch.tensor([lo, hi]))


def expected(layer: TernaryLayer, x: Tensor) -> np.ndarray[Any, Any]:
    """The layer's integer semantics by ops.reference alone."""
    params = layer.input_params()
    assert params is not None
    q = reference.quantize(x.numpy(), *params)
    codes, scale = (t.numpy() for t in layer.integer_weight())
    if isinstance(layer, TernaryLinear):
        acc = reference.linear_acc(q, params[1], codes)
    else:
        assert isinstance(layer, TernaryConv2d)
        left, right, top, bottom = layer.edges
        mode = {"zeros": "constant", "reflect": "reflect", "circular": "wrap", "replicate": "edge"}
        fill = {"constant_values": params[1]} if layer.padding_mode == "zeros" else {}
        edges = ((0, 0), (0, 0), (top, bottom), (left, right))
        q = np.pad(q, edges, mode[layer.padding_mode], **fill)  # type: ignore[call-overload]
        acc = reference.conv2d_acc(
            q, params[1], codes, layer.stride, 0, layer.dilation, layer.groups
        )
    bias = None if layer.bias is None else layer.bias.detach().numpy()
    return np.asarray(reference.epilogue(acc, scale * params[0], bias))


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("phase", ["ternary", "frozen"])
@pytest.mark.parametrize("config", [TERNARY, INT8], ids=["ternary", "int8"])
@pytest.mark.parametrize("case", CONVS)
def test_conv_equals_the_integer_reference_bit_for_bit(
    case: str, config: TernaryConfig, phase: str
) -> None:
    layer, x = conv(case, config, bias=phase == "ternary")
    layer.mask &= torch.rand(layer.mask.shape) < 0.7
    layer.phase = phase
    layer.weight.data += 0.01 * torch.randn_like(layer.weight)  # frozen codes do not follow
    set_range(layer, -1.7, 2.2)
    y = layer(x)
    assert y.dtype == torch.float32
    np.testing.assert_array_equal(y.detach().numpy(), expected(layer, x))


@pytest.mark.parametrize("config", [TERNARY, INT8], ids=["ternary", "int8"])
@pytest.mark.parametrize("shape", [(7,), (5, 7), (2, 3, 7), (2, 1, 3, 1, 7), (0, 7)])
def test_linear_equals_the_integer_reference_at_any_rank(
    shape: tuple[int, ...], config: TernaryConfig
) -> None:
    layer = TernaryLinear(7, 5, config=config)
    set_range(layer, -0.4, 3.0)
    x = torch.randn(shape)
    rows = x.reshape(-1, 7)
    want = expected(layer, rows).reshape(*shape[:-1], 5)
    np.testing.assert_array_equal(layer(x).detach().numpy(), want)


def test_a_long_int8_sum_is_exact() -> None:
    layer = TernaryLinear(4099, 2, bias=False, config=INT8)
    layer.weight.data.uniform_(0.9, 1.0)
    set_range(layer, -0.001, 1.0)
    x = torch.rand(3, 4099)
    want = expected(layer, x)
    assert (want > 2**24 * layer.integer_weight()[1].numpy() / 255).all()  # float32 would round
    np.testing.assert_array_equal(layer(x).detach().numpy(), want)


RANGES = [
    (-1.0, 1.0),
    (0.0, 6.0),
    (0.0, 0.0),
    (-3.0, 0.0),
    (0.3, 0.7),
    (-2.0, -1.0),
    (-1e-3, 1e30),
    (-1e-44, 1e-44),
    (0.0, 1e-40),
    (-0.1, 25.4),
]


@pytest.mark.parametrize("bounds", [*RANGES, *np.random.default_rng(0).normal(size=(50, 2))])
def test_scale_and_zero_point_equal_the_reference_bit_for_bit(bounds: Any) -> None:
    lo, hi = sorted(float(np.float32(b)) for b in bounds)
    scale, zero_point, known = fake_quant.affine_params(torch.tensor([lo, hi]))
    want = reference.affine_params(lo, hi)
    assert (np.float32(scale.item()), int(zero_point)) == want and bool(known)
    # Among values half-way between steps are some where x / scale would round the other way.
    halves = (torch.arange(-300, 300) + 0.5) * scale
    x = torch.cat([torch.randn(1000) * max(abs(lo), abs(hi), 1e-30), halves])
    q, _ = fake_quant.quantize(x, torch.tensor([lo, hi]))
    np.testing.assert_array_equal(q.numpy() + want[1], reference.quantize(x.numpy(), *want))


@pytest.mark.parametrize("phase", ["float", "ternary", "frozen"])
@pytest.mark.parametrize("config", [TERNARY, INT8, FLOAT_INPUT], ids=["ternary", "int8", "float"])
def test_without_a_range_the_input_stays_float(config: TernaryConfig, phase: str) -> None:
    layer, x = conv("groups", config)
    layer.phase = phase
    twin = layer.to_float()
    torch.testing.assert_close(layer(x), twin(x), rtol=1e-5, atol=1e-6)
    assert layer.input_params() is None


@pytest.mark.parametrize("case", CONVS)
def test_float_phase_is_the_torch_layer(case: str) -> None:
    layer, x = conv(case, TERNARY)
    layer.phase = "float"
    layer.mask &= torch.rand(layer.mask.shape) < 0.5
    i, o, k, s, p, d, g, mode, _ = CONVS[case]
    twin = nn.Conv2d(i, o, k, s, p, d, g, True, mode)
    twin.load_state_dict({"weight": layer.weight * layer.mask, "bias": layer.bias})
    torch.testing.assert_close(layer(x), twin(x), rtol=1e-4, atol=1e-5)
    assert layer(x[:0]).shape == twin(x[:0]).shape
    torch.testing.assert_close(layer(x[0]), twin(x[0]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("config", [TERNARY, INT8], ids=["ternary", "int8"])
def test_gradient_of_the_weight_is_that_of_the_effective_weight(config: TernaryConfig) -> None:
    layer, x = conv("stride", config)
    set_range(layer, -1.5, 1.5)
    upstream = torch.randn_like(layer(x))
    layer(x).backward(upstream)
    codes, scale = layer.integer_weight()
    effective = (codes * scale.view(-1, 1, 1, 1)).requires_grad_()
    q, s = fake_quant.quantize(x, layer.input_range)
    F.conv2d(q * s, effective, None, layer.stride, 1).backward(upstream)
    assert layer.weight.grad is not None
    torch.testing.assert_close(layer.weight.grad, effective.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer.bias.grad, upstream.sum((0, 2, 3)))


def test_frozen_codes_stay_while_the_scale_learns() -> None:
    layer = TernaryLinear(24, 6, config=TERNARY)
    set_range(layer, -2.0, 2.0)
    layer.phase = "frozen"
    codes, scale = layer.ternary()
    x, upstream = torch.randn(9, 24), torch.randn(9, 6)
    layer(x).backward(upstream)
    q, s = fake_quant.quantize(x, layer.input_range.detach())
    by_scale = ((q * s) @ codes.float().T * upstream).sum(0)
    want = by_scale[:, None] * codes / codes.abs().sum(1, keepdim=True)
    torch.testing.assert_close(layer.weight.grad, want, rtol=1e-4, atol=1e-5)
    layer.weight.data -= 0.5 * layer.weight.grad
    after, moved = layer.ternary()
    assert torch.equal(after, codes) and not torch.allclose(moved, scale)
    layer.phase = "frozen"  # once more: no new snapshot
    assert torch.equal(layer.ternary()[0], codes)
    layer.phase = "ternary"
    assert torch.equal(layer.ternary()[0], layer.ternarizer(layer.weight, layer.mask, "1x4")[0])


def test_gradient_of_the_input_stops_where_it_is_clipped() -> None:
    layer = TernaryLinear(64, 3, config=TERNARY)
    set_range(layer, -1.0, 0.8)
    x = (torch.randn(20, 64) * 1.2).requires_grad_()
    layer(x).sum().backward()
    codes, scale = layer.ternary()
    full = (codes * scale[:, None]).sum(0).expand_as(x)
    inside = (x > -0.995) & (x < 0.795)  # half a step from the bounds
    clipped = (x < -1.01) | (x > 0.81)
    torch.testing.assert_close(x.grad[inside], full[inside], rtol=1e-4, atol=1e-6)
    assert x.grad[clipped].abs().max() == 0 and inside.any() and clipped.any()


def test_gradient_of_the_range() -> None:
    bounds = torch.tensor([-1.0, 0.9], requires_grad=True)
    x, upstream = torch.randn(4000), torch.randn(4000)
    q, scale = fake_quant.quantize(x, bounds)
    (q * scale * upstream).sum().backward()
    value, zp = x.double() / scale.double(), round(1.0 / scale.item())
    steps = value.round()
    below, above = steps + zp < 0, steps + zp > 255
    rounding = torch.where(below | above, 0.0, steps - value) / 255
    by_hi = (upstream * (above.double() + rounding)).sum() / (4000 * 255) ** 0.5
    by_lo = (upstream * (below.double() - rounding)).sum() / (4000 * 255) ** 0.5
    torch.testing.assert_close(bounds.grad, torch.stack([by_lo, by_hi]).float(), rtol=1e-3, atol=0)


def test_learning_a_range_lowers_the_error() -> None:
    x = torch.randn(5000)
    bounds = nn.Parameter(torch.tensor([-0.5, 8.0]))
    optimizer = torch.optim.SGD([bounds], 2.0)

    def error() -> Tensor:
        q, scale = fake_quant.quantize(x, bounds)
        return (q * scale - x).square().sum()

    first = error().item()
    for _ in range(200):
        optimizer.zero_grad()
        error().backward()
        optimizer.step()
    assert error().item() < 0.2 * first
    assert bounds[0] < -2.0 and bounds[1] < 8.0


def test_a_bound_at_zero_stays_and_an_unset_range_gets_no_gradient() -> None:
    x = torch.rand(3, 8)
    for bounds, free in (((0.0, 0.7), [False, True]), ((float("nan"),) * 2, None)):
        layer = TernaryLinear(8, 2, config=TERNARY)
        set_range(layer, *bounds)
        layer(x).sum().backward()
        grad = layer.input_range.grad
        assert (None if grad is None else (grad != 0).tolist()) == free


def test_every_parameter_gets_a_gradient_in_every_phase(monkeypatch: pytest.MonkeyPatch) -> None:
    # DistributedDataParallel waits for all of them.
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    others = [TernaryConfig(ternarizer=name) for name in ("absmean", "ttq")]
    for config in (TERNARY, INT8, FLOAT_INPUT, *others):
        for phase in ("float", "ternary", "frozen"):
            layer = TernaryLinear(8, 2, config=config)
            layer.phase = phase
            layer(torch.randn(3, 8)).sum().backward()
            missing = [n for n, p in layer.named_parameters() if p.requires_grad and p.grad is None]
            assert not missing, (config, phase)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("config", [TERNARY, FLOAT_INPUT], ids=["uint8", "float32"])
def test_other_dtypes_go_in_and_come_out(dtype: torch.dtype, config: TernaryConfig) -> None:
    layer, x = conv("3x3", config)
    layer, x = layer.to(dtype), x.to(dtype)
    y = layer(x)
    y.float().sum().backward()
    assert y.dtype == dtype and layer.weight.grad is not None and layer.weight.grad.dtype == dtype
    assert layer.to_float()(x).dtype == dtype
    if config is TERNARY:
        set_range(layer, -2.0, 2.0)
        wide = copy.deepcopy(layer).float()
        assert torch.equal(layer(x), wide(x.float()).to(dtype))  # one rounding, at the end


def test_weight_only_float64_is_not_rounded_to_float32() -> None:
    layer, x = conv("3x3", FLOAT_INPUT)
    layer, x = layer.double(), x.double()
    torch.testing.assert_close(layer(x), layer.to_float()(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("config", [TERNARY, INT8], ids=["ternary", "int8"])
def test_to_float_and_back_gives_the_same_codes(config: TernaryConfig) -> None:
    layer, _ = conv("uneven", config)
    layer.mask &= torch.rand(layer.mask.shape) < 0.6
    twin = layer.to_float()
    assert type(twin) is nn.Conv2d and "padding=(3, 0)" in repr(twin)
    again = TernaryConv2d.from_float(twin, config)
    assert torch.equal(again.integer_weight()[0], layer.integer_weight()[0])
    torch.testing.assert_close(again.integer_weight()[1], layer.integer_weight()[1])
    assert again.to_float().weight.data_ptr() != again.weight.data_ptr()


def test_from_float_takes_over_everything() -> None:
    twin = nn.Linear(6, 4, bias=False, dtype=torch.bfloat16).eval()
    layer = TernaryLinear.from_float(twin, INT8)
    assert layer.weight is twin.weight and layer.bias is None and not layer.training
    assert layer.mask.all() and layer.config == INT8 and layer.phase == "ternary"
    assert layer.int8()[0].dtype == torch.int8
    with pytest.raises(BadConfig, match="ternary weights, got int8"):
        layer.ternary()


@pytest.mark.parametrize("phase", ["float", "ternary", "frozen"])
def test_state_goes_into_a_fresh_layer(phase: str) -> None:
    layer, x = conv("groups", TERNARY)
    layer.mask &= torch.rand(layer.mask.shape) < 0.6
    set_range(layer, -1.0, 2.0)
    layer.phase = phase
    layer.weight.data += 0.1 * torch.randn_like(layer.weight)
    fresh, _ = conv("groups", TERNARY)
    fresh.load_state_dict(layer.state_dict(), strict=True)
    assert fresh.phase == phase and torch.equal(fresh(x), layer(x))
    with torch.device("meta"):
        empty, _ = conv("groups", TERNARY)
    empty.load_state_dict(layer.state_dict(), assign=True)
    assert empty.phase == phase and torch.equal(empty(x), layer(x))
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert twin.phase == phase and torch.equal(twin(x), layer(x))
        assert twin.weight is not layer.weight


def test_inputs_are_not_changed_and_views_do() -> None:
    layer, _ = conv("3x3", TERNARY)
    set_range(layer, -1.0, 1.0)
    base = torch.randn(2, 9, 7, 16)
    x = base.permute(0, 3, 1, 2)[:, ::2]
    before = base.clone()
    assert torch.equal(layer(x), layer(x.contiguous())) and torch.equal(base, before)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((2, 7, 9, 7), torch.float32),
        ((8, 9), torch.float32),
        ((1, 2, 8, 9, 7), torch.float32),
        ((2, 8, 0, 7), torch.float32),
        ((2, 8, 9, 7), torch.int64),
    ],
)
def test_wrong_inputs_are_named(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    layer, _ = conv("3x3", TERNARY)
    if shape[2:3] == (0,):
        layer.padding, layer.edges = (0, 0), (0, 0, 0, 0)
    with pytest.raises(UnsupportedShape, match=r"(?s)got .*\n  \S"):
        layer(torch.zeros(shape, dtype=dtype))
    with pytest.raises(UnsupportedShape):
        TernaryLinear(3, 2)(torch.zeros(3, 4))


def test_bad_weights_phases_and_configs_are_named() -> None:
    layer = TernaryLinear(4, 3)
    with pytest.raises(BadConfig, match="'float', 'ternary', 'frozen'"):
        layer.phase = "packed"
    with pytest.raises(BadConfig, match="torch.nn layer"):
        TernaryLinear(4, 3, config=TernaryConfig(weights="float"))
    layer.weight.data[1, 2] = float("nan")
    with pytest.raises(BadWeights, match=r"\(1, 2\)"):
        layer.ternary()
    assert layer(torch.randn(2, 4)).isnan().any()  # training shows it too


def test_repr_says_what_it_is() -> None:
    layer, _ = conv("groups", TernaryConfig(ternarizer="twn", pattern="element"))
    text = repr(layer)
    for part in ("12, 8, kernel_size=(3, 3)", "groups=4", "twn", "element", "uint8", "ternary"):
        assert part in text
    assert "pattern" not in repr(TernaryLinear(3, 2, config=INT8))


@pytest.mark.parametrize(("i", "o"), [(0, 3), (3, 0), (1, 1)])
@pytest.mark.parametrize("config", [TERNARY, INT8], ids=["ternary", "int8"])
@pytest.mark.filterwarnings("ignore:Initializing zero-element")
def test_tiny_and_empty_layers(i: int, o: int, config: TernaryConfig) -> None:
    layer = TernaryLinear(i, o, config=config)
    set_range(layer, -1.0, 1.0)
    y = layer(torch.randn(4, i))
    assert y.shape == (4, o)
    if i == 0:
        assert torch.equal(y, layer.bias.expand_as(y))  # no inputs give the bias
