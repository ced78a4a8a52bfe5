# SPDX-License-Identifier: Apache-2.0
"""Packed layers: equal to their trainable twins, and good citizens of PyTorch."""

from __future__ import annotations

import copy
import io
from typing import Any

import numpy as np
import pytest
import torch
from cases import LinearShape, operands
from torch import nn

import ternary_ops as tops
from ternary_ops import reference
from ternary_ops.errors import BadConfig, BadWeights, UnsupportedShape
from ternary_ops.nn import PackedConv2d, PackedLayer, PackedLinear, TernaryConv2d, TernaryLinear
from ternary_ops.nn.packed import quantize

GEOMETRIES: list[dict[str, Any]] = [
    {},
    {"stride": 2, "padding": 1},
    {"stride": (2, 1), "padding": (0, 2), "dilation": (1, 2)},
    {"padding": "same", "groups": 2},
    {"padding": "same", "kernel_size": (2, 3)},
    {"padding": "valid", "bias": False},
    {"padding": 1, "padding_mode": "reflect"},
    {"padding": (2, 1), "padding_mode": "circular", "groups": 6},
]


def config(weights: str = "ternary", activations: str = "uint8") -> tops.TernaryConfig:
    return tops.TernaryConfig(weights=weights, ternarizer="twn", activations=activations)


def conv(
    weights: str = "ternary", activations: str = "uint8", empty: float = 0.0, **geometry: Any
) -> TernaryConv2d:
    arguments = {"in_channels": 6, "out_channels": 12, "kernel_size": 3, **geometry}
    layer = TernaryConv2d(**arguments, config=config(weights, activations))
    return calibrated(layer, empty)


def calibrated(layer: Any, empty: float = 0.0) -> Any:
    with torch.no_grad():
        layer.input_range.copy_(torch.tensor([-2.5, 3.0]))
        if empty:
            kept = torch.rand_like(layer.weight[:, :1]) >= empty  # all quads of a tap together
            layer.mask &= kept
    return layer.eval()


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("weights", ["ternary", "int8"])
@pytest.mark.parametrize("activations", ["uint8", "float32"])
def test_conv_equals_its_trainable_twin(
    geometry: dict[str, Any], weights: str, activations: str
) -> None:
    layer = conv(weights, activations, **geometry)
    packed = PackedConv2d.from_layer(layer)
    x = torch.randn(2, 6, 11, 9) * 2
    want = layer(x)
    if activations == "uint8":
        assert torch.equal(packed(x), want)
        assert torch.equal(packed(x[0]), want[0])
    else:
        torch.testing.assert_close(packed(x), want, rtol=1e-5, atol=1e-5)
    assert packed(x[:0]).shape == (0, *want.shape[1:])


@pytest.mark.parametrize("weights", ["ternary", "int8"])
@pytest.mark.parametrize("shape", [(3, 30), (30,), (2, 3, 30), (0, 30), (40, 30)])
def test_linear_equals_its_trainable_twin(weights: str, shape: tuple[int, ...]) -> None:
    layer = calibrated(TernaryLinear(30, 11, config=config(weights)))
    packed = PackedLinear.from_layer(layer)
    x = torch.randn(shape)
    assert torch.equal(packed(x), layer(x))


def test_an_unset_range_is_weight_only() -> None:
    layer = TernaryLinear(30, 11, config=config()).eval()
    packed = PackedLinear.from_layer(layer)
    assert packed.input_scale.isnan()
    x = torch.randn(5, 30)
    torch.testing.assert_close(packed(x), layer(x))
    assert "activations=float" in repr(packed)


def test_quantize_is_the_reference_bit_for_bit() -> None:
    x = torch.randn(10000) * 100
    x[:6] = torch.tensor([0.0, -0.0, float("inf"), float("-inf"), float("nan"), 3e38])
    for scale, zp in ((0.5, 128), (0.017, 3), (1e-20, 0), (1e20, 255), (float(np.pi), 77)):
        x[6:106] = (torch.arange(100) - 50 + 0.5) * scale  # ties
        scale = float(np.float32(scale))
        want = reference.quantize(x.numpy(), scale, zp)
        before = x.clone()
        assert np.array_equal(quantize(x, scale, zp).numpy(), want)
        assert torch.equal(x.nan_to_num(7), before.nan_to_num(7))


def test_kind_follows_the_empty_quads() -> None:
    assert PackedConv2d.from_layer(conv()).kind == "dense"
    for weights in ("ternary", "int8"):
        layer = conv(weights, empty=0.8)
        packed = PackedConv2d.from_layer(layer)
        assert packed.kind == "sparse"
        x = torch.randn(1, 6, 8, 8)
        assert torch.equal(packed(x), layer(x))


@pytest.mark.parametrize("weights", ["ternary", "int8"])
def test_state_dict_into_a_fresh_layer(weights: str) -> None:
    packed = PackedConv2d.from_layer(conv(weights, empty=0.8, padding=1))
    state = packed.state_dict()
    params = {"input_scale", "input_zero_point", "output_range"}
    assert set(state) == {"codes", "scale", "bias"} | params
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    x = torch.randn(2, 6, 8, 8)
    for device, assign in (("cpu", False), ("meta", True)):
        fresh = PackedConv2d(6, 12, 3, padding=1, weights=weights, device=device)
        buffer.seek(0)
        fresh.load_state_dict(torch.load(buffer, weights_only=True), strict=True, assign=assign)
        assert torch.equal(fresh(x), packed(x))
        assert fresh.kind == "sparse"


def test_state_of_another_layer_is_refused_untouched() -> None:
    packed = PackedLinear.from_layer(calibrated(TernaryLinear(30, 11, config=config())))
    x = torch.randn(3, 30)
    before = packed(x)
    with pytest.raises(
        UnsupportedShape, match=r"uint8 \[11, 8\] for PackedLinear, got torch.int8 \[11, 32\]"
    ):
        packed.load_state_dict(PackedLinear(30, 11, weights="int8").state_dict())
    state = copy.deepcopy(packed.state_dict())
    state["codes"][4, 2] = 0b10
    state["scale"] += 1
    with pytest.raises(BadWeights, match=r"invalid code 10 at \(4, 8\)"):
        packed.load_state_dict(state)
    with pytest.raises(RuntimeError, match="Missing key.*scale"):
        packed.load_state_dict({"codes": packed.codes.clone()})
    fresh = PackedLinear(30, 11)
    with pytest.raises(BadWeights):
        fresh.load_state_dict(state)
    assert torch.equal(fresh.scale, torch.ones(11))
    state = packed.state_dict()
    packed.load_state_dict(state)
    assert torch.equal(packed(x), before)


def test_deepcopy_and_pickle() -> None:
    packed = PackedConv2d.from_layer(conv(padding=1))
    x = torch.randn(1, 6, 5, 5)
    twin = copy.deepcopy(packed)
    assert torch.equal(twin(x), packed(x))
    assert twin.codes.data_ptr() != packed.codes.data_ptr()
    buffer = io.BytesIO()
    torch.save(packed, buffer)
    buffer.seek(0)
    assert torch.equal(torch.load(buffer, weights_only=False)(x), packed(x))


def test_half_and_double_leave_the_numbers_alone() -> None:
    packed = PackedConv2d.from_layer(conv(padding=1))
    x = torch.randn(1, 6, 5, 5)
    want = packed(x)
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        model = nn.Sequential(copy.deepcopy(packed)).to(dtype)
        layer = model[0]
        assert isinstance(layer, PackedLayer)
        assert torch.equal(layer.scale, packed.scale)
        assert torch.equal(layer.input_scale, packed.input_scale)
        assert torch.equal(model(x), want)
        y = model(x.to(dtype))
        assert y.dtype == dtype
        assert torch.equal(y, packed(x.to(dtype).float()).to(dtype))


def test_meta_and_back() -> None:
    packed = PackedLinear.from_layer(calibrated(TernaryLinear(30, 11, config=config())))
    assert packed.to("meta")(torch.randn(4, 30, device="meta")).shape == (4, 11)
    empty = PackedLinear(30, 11, device="meta").to_empty(device="cpu")
    empty.load_state_dict(PackedLinear(30, 11).state_dict())
    assert torch.equal(empty(torch.randn(2, 30)), torch.zeros(2, 11))


def test_autocast_gives_what_the_torch_twin_gives() -> None:
    layer = conv(padding=1)
    packed = PackedConv2d.from_layer(layer)
    x = torch.randn(1, 6, 5, 5)
    with torch.autocast("cpu", torch.bfloat16):
        y = packed(x)
        assert y.dtype == layer.to_float()(x).dtype == torch.bfloat16
    assert torch.equal(y, packed(x).bfloat16())


@pytest.mark.parametrize("activations", ["uint8", "float32"])
def test_compile_and_export(activations: str) -> None:
    model = nn.Sequential(
        PackedConv2d.from_layer(conv(activations=activations, padding=1)),
        nn.ReLU(),
        PackedConv2d.from_layer(conv(activations=activations, in_channels=12, empty=0.8)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        PackedLinear.from_layer(
            calibrated(TernaryLinear(12, 5, config=config("int8", activations)))
        ),
    ).eval()
    x = torch.randn(2, 6, 8, 9)
    want = model(x)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), want)
    batch, height = torch.export.Dim("batch"), torch.export.Dim("height", min=4)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: batch, 2: height},))
    assert torch.equal(program.module()(x), want)
    other = torch.randn(3, 6, 13, 9)
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    loaded = torch.export.load(buffer).module()
    assert torch.equal(loaded(other), model(other))


def test_inductor_quantizes_the_same() -> None:
    packed = PackedConv2d.from_layer(conv(padding=1))
    x = torch.randn(2, 6, 8, 8)
    assert torch.equal(torch.compile(packed, fullgraph=True)(x), packed(x))


def test_no_recompilation_over_batch_sizes() -> None:
    packed = PackedLinear.from_layer(calibrated(TernaryLinear(30, 11, config=config())))
    counter = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(packed, fullgraph=True, dynamic=True, backend=counter)
    for batch in (2, 3, 5, 8, 13):
        x = torch.randn(batch, 30)
        assert torch.equal(compiled(x), packed(x))
    assert counter.frame_count == 1


def test_to_float_and_ternary() -> None:
    layer = conv(padding=1, groups=2)
    packed = PackedConv2d.from_layer(layer)
    codes, scale = packed.ternary()
    want_codes, want_scale = layer.ternary()
    assert codes.dtype == torch.int8
    assert torch.equal(codes, want_codes)
    assert torch.equal(scale, want_scale)
    x = torch.randn(2, 6, 7, 7)
    float_twin = packed.to_float()
    assert type(float_twin) is nn.Conv2d
    assert torch.equal(float_twin(x), layer.to_float()(x))
    linear = PackedLinear.from_layer(calibrated(TernaryLinear(30, 11, config=config("int8"))))
    with pytest.raises(BadConfig, match="integer_weight"):
        linear.ternary()
    assert linear.integer_weight()[0].abs().max() == 127


def test_repr_says_what_matters() -> None:
    packed = PackedConv2d.from_layer(conv(empty=0.8, padding=1, groups=2))
    text = repr(packed)
    for part in (
        "6, 12, kernel_size=(3, 3)",
        "groups=2",
        "weights=ternary",
        "kind=sparse",
        "uint8",
    ):
        assert part in text
    assert "in_features=30, out_features=11, bias=True" in repr(PackedLinear(30, 11))


def test_wrong_inputs_are_named() -> None:
    packed = PackedConv2d.from_layer(conv(padding=1))
    with pytest.raises(UnsupportedShape, match="float input of .*, got torch.uint8"):
        packed(torch.zeros(1, 6, 5, 5, dtype=torch.uint8))
    with pytest.raises(UnsupportedShape, match="C=9"):
        packed(torch.zeros(1, 9, 5, 5))
    with pytest.raises(BadConfig, match='"ternary" or "int8", got \'binary\''):
        PackedLinear(4, 4, weights="binary")


def test_many_threads_share_a_layer() -> None:
    from concurrent.futures import ThreadPoolExecutor

    o = operands(LinearShape((8,), 64, 32), seed=1)
    packed = PackedLinear(64, 32)
    state = {"codes": o.codes, "scale": o.scale, "bias": o.bias}
    packed.load_state_dict({k: torch.from_numpy(v) for k, v in state.items()}, strict=False)
    xs = [torch.randn(8, 64) for _ in range(64)]
    want = [packed(x) for x in xs]
    with ThreadPoolExecutor(16) as pool:
        for a, b in zip(pool.map(packed, xs), want, strict=True):
            assert torch.equal(a, b)
