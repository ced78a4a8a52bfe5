# SPDX-License-Identifier: Apache-2.0
"""Block-sparse float layers: any shape, block, dtype, instruction set and thread count, against
torch in float64 within a bound; packing, pruning, state dicts, programs, bad input.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import EPS, float_bound
from hypothesis import given, settings
from hypothesis import strategies as st

import ternary_ops as tops
from ternary_ops._native import core
from ternary_ops.errors import BadConfig, BadWeights, UnsupportedShape
from ternary_ops.nn import BlockSparseConv2d, BlockSparseLinear
from ternary_ops.ops import blocks as layout

ISAS = core().available_isas()
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
BSR = pytest.mark.filterwarnings("ignore:Sparse BSR tensor support is in beta")


@pytest.fixture(autouse=True)
def restore_core() -> Iterator[None]:
    yield
    core().set_isa("")
    core().set_num_threads(0)


def blocky(shape: tuple[int, ...], block: tuple[int, int], density: float) -> torch.Tensor:
    """A random weight whose N x M blocks at one tap are zero but for a share `density`."""
    o, i, *taps = shape
    grid = torch.rand(-(-o // block[0]), -(-i // block[1]), *taps) < density
    wide = grid.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
    return torch.randn(shape) * wide[:o, :i]


def excess(y: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, **geometry: Any) -> float:
    """Error of y in units of what cases.float_bound allows; a 16-bit y is rounded once more."""
    y, x, weight = y.detach(), x.double(), weight.detach().double()
    want = F.conv2d(x, weight, **geometry)
    size = F.conv2d(x.abs(), weight.abs(), **geometry)
    last = want.abs() * torch.finfo(y.dtype).eps / 2 if y.dtype != torch.float32 else 0
    allowed = float_bound(weight[0].numel()) * EPS * size * 1.01 + last + 1e-30
    if y.dtype == torch.float16:
        allowed = allowed + 2.0**-25  # float16's subnormals are that far apart
    assert y.shape == want.shape
    assert not y.isnan().any()
    return float(((y.double() - want).abs() / allowed).max()) if y.numel() else 0.0


shapes = st.fixed_dictionaries(
    {
        "n": st.integers(1, 3),
        "groups": st.integers(1, 3),
        "i": st.integers(1, 11),
        "o": st.integers(1, 13),
        "size": st.tuples(st.integers(4, 19), st.integers(4, 41)),
        "kernel": st.tuples(st.integers(1, 3), st.integers(1, 3)),
        "stride": st.tuples(st.integers(1, 3), st.integers(1, 3)),
        "padding": st.tuples(st.integers(0, 3), st.integers(0, 3)),
        "dilation": st.tuples(st.integers(1, 2), st.integers(1, 2)),
        "block": st.tuples(st.sampled_from([1, 2, 3, 4, 8]), st.sampled_from([1, 2, 4, 16])),
        "density": st.sampled_from([0.0, 0.1, 0.5, 1.0]),
        "dtypes": st.tuples(st.sampled_from(DTYPES), st.sampled_from(DTYPES)),
    }
)


@settings(max_examples=60)
@given(shapes)
def test_any_convolution_is_within_the_bound(s: dict[str, Any]) -> None:
    if any((k - 1) * d >= n for k, d, n in zip(s["kernel"], s["dilation"], s["size"], strict=True)):
        s["dilation"] = (1, 1)
    x = torch.randn(s["n"], s["i"] * s["groups"], *s["size"]).to(s["dtypes"][0])
    shape = (s["o"] * s["groups"], s["i"], *s["kernel"])
    weight = blocky(shape, s["block"], s["density"]).to(s["dtypes"][1])
    geometry = {name: s[name] for name in ("stride", "padding", "dilation", "groups")}
    blocks = layout.from_dense(weight, s["block"])
    assert blocks.values.dtype == weight.dtype
    results = []
    for isa in ISAS:
        core().set_isa(isa)
        for threads in (1, 3):
            core().set_num_threads(threads)
            y = tops.ops.block_sparse_conv2d(x, blocks, shape[0], s["kernel"], **geometry)
            results.append(y)
        assert torch.equal(results[-1], results[-2])
        assert y.dtype == x.dtype
        assert excess(y, x, weight, **geometry) <= 1, isa


@pytest.mark.parametrize("rows", [1, 2, 4])
@pytest.mark.parametrize("pixels", range(1, 60, 7))
def test_every_tile_of_every_row_group(rows: int, pixels: int) -> None:
    """Columns that are far apart for all but `rows` channels make the packing choose that many."""
    weight = blocky((16, 24, 1, 3), (rows, 1), 0.1)
    blocks = layout.from_dense(weight, (rows, 1))
    x = torch.randn(1, 24, 1, pixels)
    packed = layout.pack(blocks, 16, 24, (1, 3))
    assert int(packed[64 + 64 :][:4].view(torch.int32)) == rows  # after the header and the sums
    for isa in ISAS:
        core().set_isa(isa)
        y = tops.ops.block_sparse_conv2d(x, blocks, 16, (1, 3), padding=(0, 1), packed=packed)
        assert excess(y, x, weight, padding=(0, 1)) <= 1, isa


def test_values_exact_in_16_bits_take_half_the_bytes_and_change_nothing() -> None:
    weight = blocky((16, 32, 3, 3), (4, 4), 0.3)
    x = torch.randn(1, 32, 9, 10)
    for dtype in (torch.bfloat16, torch.float16):
        tiny = torch.where(torch.rand(weight.shape) < 0.2, weight * 2.0**-22, weight)
        rounded = tiny.to(dtype).float()
        other = rounded.clone()
        other[tuple(rounded.nonzero()[0])] = 1 / 3  # exact in neither: the rest stays as it was
        sizes = []
        for isa in ISAS:
            core().set_isa(isa)
            ys = []
            for w in (rounded, other):
                blocks = layout.from_dense(w, (4, 4))
                packed = layout.pack(blocks, 16, 32, (3, 3))
                sizes.append(packed.numel())
                ys.append(tops.ops.block_sparse_conv2d(x, blocks, 16, 3, packed=packed))
            first = int(rounded.nonzero()[0][0])
            same = [o for o in range(16) if o != first]
            assert torch.equal(ys[0][:, same], ys[1][:, same])
        assert sizes[0] < 0.7 * sizes[1]


def conv_layer(**options: Any) -> BlockSparseConv2d:
    conv = torch.nn.Conv2d(12, 10, 3, **options)
    return BlockSparseConv2d.from_float(conv, zeros=0.6, block=(2, 3)).eval()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"padding": 1, "stride": 2},
        {"padding": "same", "dilation": 2},
        {"padding": 2, "padding_mode": "reflect"},
        {"groups": 2, "bias": False},
    ],
)
def test_conv_layer_equals_its_float_twin(options: dict[str, Any]) -> None:
    layer = conv_layer(**options)
    twin = layer.to_float()
    for x in (torch.randn(2, 12, 9, 7), torch.randn(12, 8, 8)):
        torch.testing.assert_close(layer(x), twin(x))
    assert abs(layer.zeros - 0.6) <= 0.5 / (5 * 4 / (options.get("groups", 1)) * 9)
    again = BlockSparseConv2d.from_dense(
        layer.to_dense(), layer.bias, (2, 3), **{k: v for k, v in options.items() if k != "bias"}
    )
    for a, b in zip(again.blocks, layer.blocks, strict=True):
        assert torch.equal(a, b)


def test_pruning_keeps_the_largest_blocks() -> None:
    linear = torch.nn.Linear(20, 12)
    layer = BlockSparseLinear.from_float(linear, zeros=0.75, block=(4, 5))
    sums = linear.weight.detach().abs().reshape(3, 4, 4, 5).sum((1, 3))
    kept = layer.to_dense().reshape(3, 4, 4, 5).abs().sum((1, 3)) > 0
    assert int(kept.sum()) == 3
    assert sums[kept].min() > sums[~kept].max()
    assert "in_features=20, out_features=12, bias=True, block=4x5, zeros=75.0%" in repr(layer)
    x = torch.randn(3, 2, 20)
    torch.testing.assert_close(layer(x), F.linear(x, layer.to_dense(), linear.bias))


@pytest.mark.parametrize("dtype", DTYPES)
def test_layers_take_and_keep_16_bits(dtype: torch.dtype) -> None:
    conv = torch.nn.Conv2d(8, 8, 3, padding=1)
    layer = BlockSparseConv2d.from_float(conv, 0.5, (4, 4), dtype).eval()
    assert layer.values.dtype == dtype
    x = torch.randn(1, 8, 6, 6)
    assert excess(layer(x), x, layer.to_dense(), bias=conv.bias.detach().double(), padding=1) <= 2
    assert layer(x.to(dtype)).dtype == dtype


def test_layer_trains_and_then_runs_with_the_trained_values() -> None:
    layer = conv_layer(padding=1).train()
    twin = layer.to_float()
    x, target = torch.randn(2, 12, 6, 6), torch.randn(2, 10, 6, 6)
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    before = layer(x).detach()
    F.mse_loss(layer(x), target).backward()
    F.mse_loss(twin(x), target).backward()
    assert layer.bias is not None and twin.bias is not None
    torch.testing.assert_close(layer.bias.grad, twin.bias.grad)
    wanted = layout.gather(twin.weight.grad.permute(0, 2, 3, 1), layer.blocks)  # type: ignore[union-attr]
    torch.testing.assert_close(layer.values.grad, wanted)
    optimizer.step()
    with torch.no_grad():
        after = layer(x)
        torch.testing.assert_close(after, layer.to_float()(x))
        assert not torch.allclose(after, before, atol=1e-4)
        twice = copy.deepcopy(layer).eval()
        twice.values.mul_(2)
        torch.testing.assert_close(twice(x), twice.to_float()(x))
        torch.testing.assert_close(layer(x), after)


def test_state_dict_brings_other_blocks() -> None:
    layer = conv_layer(padding=1)
    empty = BlockSparseConv2d(12, 10, 3, padding=1, block=(2, 3)).eval()
    x = torch.randn(1, 12, 5, 5)
    assert torch.equal(empty(x), empty(x) * 0)
    empty.load_state_dict(layer.state_dict())
    assert torch.equal(empty(x), layer(x))
    with pytest.raises(UnsupportedShape, match=r"values \[nnz, 4, 4\]"):
        BlockSparseConv2d(12, 10, 3).load_state_dict(layer.state_dict())
    state = layer.state_dict()
    state["col_indices"] = state["col_indices"] + 100
    with pytest.raises(BadWeights, match="col_indices in 0..35"):
        empty.load_state_dict(state)


@BSR
def test_layers_take_over_torch_bsr() -> None:
    weight = blocky((8, 12), (2, 3), 0.4)
    linear = BlockSparseLinear.from_bsr(weight.to_sparse_bsr((2, 3)), torch.randn(8))
    assert linear.block == (2, 3)
    assert torch.equal(linear.to_dense(), weight)
    filters = blocky((8, 12, 3, 3), (4, 4), 0.4)
    matrix = filters.permute(0, 2, 3, 1).flatten(1).to_sparse_bsr((4, 4))
    conv = BlockSparseConv2d.from_bsr(matrix, (3, 3), padding=1)
    assert torch.equal(conv.to_dense(), filters)
    x = torch.randn(2, 12, 7, 7)
    torch.testing.assert_close(conv.eval()(x), F.conv2d(x, filters, padding=1))
    with pytest.raises(UnsupportedShape, match="for 4 taps of whole blocks of 4"):
        BlockSparseConv2d.from_bsr(matrix, (2, 2))
    with pytest.raises(UnsupportedShape, match="one torch.sparse_bsr matrix"):
        BlockSparseLinear.from_bsr(torch.randn(2, 4, 6).to_sparse_bsr((2, 3)))


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = conv_layer(padding=1, stride=2)
        self.norm = torch.nn.BatchNorm2d(10)
        self.fc = BlockSparseLinear.from_float(torch.nn.Linear(10, 7), 0.5, (1, 2))
        self.norm.running_mean, self.norm.running_var = torch.randn(10), torch.rand(10) + 0.5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.fc(F.relu(self.norm(self.conv(x))).mean((2, 3)))
        return y


def test_networks_compile_to_programs() -> None:
    net, x = Net().eval(), torch.randn(3, 12, 9, 8)
    program = tops.compile(net, x)
    assert [node.op for node in program.graph.nodes if node.op == "conv2d"] == ["conv2d"]
    with torch.no_grad():
        want = net(x)
    for isa in ISAS:
        core().set_isa(isa)
        torch.testing.assert_close(torch.from_numpy(program(x.numpy())), want)
    alone = BlockSparseLinear.from_float(torch.nn.Linear(9, 5), 0.5, (1, 2)).eval()
    z = torch.randn(2, 9)
    got = torch.from_numpy(tops.compile(alone, z)(z.numpy()))
    torch.testing.assert_close(got, alone(z).detach())


def test_torch_compile_and_export() -> None:
    layer, x = conv_layer(padding=1), torch.randn(2, 12, 6, 6)
    with torch.no_grad():
        want = layer(x)
        assert torch.equal(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), want)
        assert torch.equal(torch.export.export(layer, (x,)).module()(x), want)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value: float) -> None:
    conv = torch.nn.Conv2d(4, 5, 3)
    conv.weight.data[3, 2, 1, 0] = value
    with pytest.raises(BadWeights, match=f"got {value} at output 3, tap 3, input channel 2"):
        BlockSparseConv2d.from_float(conv, 0.5, (2, 2))


def test_bad_arguments_are_named() -> None:
    linear = torch.nn.Linear(8, 8)
    for zeros in (-0.1, 1.5, float("nan")):
        with pytest.raises(BadConfig, match=r"zeros as a fraction of the blocks, 0\.\.1"):
            BlockSparseLinear.from_float(linear, zeros)
    with pytest.raises(BadConfig, match="two numbers >= 1"):
        BlockSparseLinear(8, 8, block=(0, 4))
    with pytest.raises(BadConfig, match="float32, float16, bfloat16"):
        BlockSparseLinear(8, 8, dtype=torch.float64)
    layer = BlockSparseLinear.from_float(linear, 0.5)
    with pytest.raises(UnsupportedShape, match=r"x \[\.\.\., 8\]"):
        layer(torch.randn(2, 9))
    with pytest.raises(UnsupportedShape, match="a float input of"):
        layer(torch.ones(2, 8, dtype=torch.int64))
    with pytest.raises(UnsupportedShape, match="float dtype up to 32 bits"):
        layer.eval()(torch.randn(2, 8, dtype=torch.float64))
    with pytest.raises(UnsupportedShape, match=r"bias float32 \[8\]"):
        BlockSparseLinear.from_dense(linear.weight, torch.randn(3))


def test_damaged_packed_weights_are_refused() -> None:
    weight = blocky((8, 8, 3, 3), (4, 4), 0.3)
    blocks = layout.from_dense(weight, (4, 4))
    good = layout.pack(blocks, 8, 8, (3, 3))
    x = torch.randn(1, 8, 5, 5)
    refused = 0
    for at in range(0, good.numel() - 64, 3):
        bad = good.clone()
        bad[at] ^= 0xFF
        try:
            y = tops.ops.block_sparse_conv2d(x, blocks, 8, 3, packed=bad)
        except (BadWeights, UnsupportedShape):
            refused += 1
        else:
            assert y.shape == (1, 8, 3, 3)
    assert refused > 20
    for length in (10, 70, good.numel() - 1):
        with pytest.raises(BadWeights, match="packed weights as prepack makes them"):
            tops.ops.block_sparse_conv2d(x, blocks, 8, 3, packed=good[:length].clone())
