# SPDX-License-Identifier: Apache-2.0
"""Every operator, every case, every instruction set and thread count, against the reference.

Integer results are compared bit for bit. Float results are held to cases.float_bound, with the
error measured in units of eps * (scale * sum |w||x| + |bias|): one wrong product shows at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from cases import (
    ConvShape,
    LinearShape,
    Operands,
    conv2d,
    float_bound,
    linear,
    normalized_error,
    operands,
    sparse_conv2d,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from machines import ISAS, THREADS, machines

import ternary_ops as tops
from ternary_ops import reference
from ternary_ops._native import core
from ternary_ops.layout import codes as layout

Shape = LinearShape | ConvShape

CASES = [(c, shape) for c in (linear.CASE, conv2d.CASE, sparse_conv2d.CASE) for shape in c.shapes]
IDS = [f"{c.op}-{shape}" for c, shape in CASES]
each_case = pytest.mark.parametrize(("case", "shape"), CASES, ids=IDS)


@pytest.fixture(autouse=True)
def restore_core() -> Iterator[None]:
    yield
    core().set_isa("")
    core().set_num_threads(0)


def torch_operands(o: Operands) -> tuple[torch.Tensor, ...]:
    return tuple(torch.from_numpy(a) for a in (o.codes, o.scale, o.bias))


def packed_for(op: str, shape: Shape, codes: torch.Tensor, float_x: bool) -> torch.Tensor | None:
    channels, groups = (
        shape.x[-3 if len(shape.weight) == 4 else -1],
        shape.geometry.get("groups", 1),
    )
    kind = "sparse" if op == "sparse_conv2d" else "dense"
    return tops.ops.prepack(codes, kind, channels, groups, float_x) if channels else None


def expected(shape: Shape, o: Operands) -> np.ndarray[Any, Any]:
    """The float32 result for uint8 x, from the reference."""
    function = reference.conv2d_acc if isinstance(shape, ConvShape) else reference.linear_acc
    acc = function(o.q, o.x_zero_point, o.w, **shape.geometry)
    scale = o.scale * np.float32(o.x_scale)
    if isinstance(shape, ConvShape):
        return reference.epilogue(acc, scale, o.bias)
    rows = acc.reshape(int(np.prod(shape.lead)), shape.n)
    return reference.epilogue(rows, scale, o.bias).reshape(acc.shape)


def trustworthy(shape: Shape, o: Operands, y: np.ndarray[Any, Any]) -> None:
    """A result that is mostly one value proves nothing."""
    if y.size > 50 and shape.density > 0.2 and shape.terms:
        assert len(np.unique(y)) > y.size // 50


@each_case
@pytest.mark.parametrize("weights", ["ternary", "int8"])
def test_integers_are_exact_everywhere(case: Any, shape: Shape, weights: str) -> None:
    o = operands(shape, weights, seed=len(str(shape)))
    codes, scale, bias = torch_operands(o)
    packed = packed_for(case.op, shape, codes, float_x=False)
    op = getattr(tops.ops, case.op)
    x, before = torch.from_numpy(o.q), o.q.copy()
    x_params = {"x_scale": o.x_scale, "x_zero_point": o.x_zero_point}
    want = expected(shape, o)
    trustworthy(shape, o, want)
    lo, hi = (float(want.min()), float(want.max())) if want.size else (0.0, 1.0)
    y_scale, y_zp = reference.affine_params(lo, hi)
    want_u8 = reference.quantize(want, y_scale, y_zp)
    y_params = {"y_scale": float(y_scale), "y_zero_point": y_zp}
    for machine in machines():
        y = op(x, codes, scale, bias, **shape.geometry, **x_params, packed=packed)
        assert y.dtype == torch.float32
        assert np.array_equal(y.numpy(), want), machine
        y = op(x, codes, scale, bias, **shape.geometry, **x_params, **y_params, packed=packed)
        assert y.dtype == torch.uint8
        assert np.array_equal(y.numpy(), want_u8), machine
    unpacked = op(x, codes, scale, bias, **shape.geometry, **x_params)
    assert np.array_equal(unpacked.numpy(), want)
    assert np.array_equal(o.q, before)


@pytest.mark.parametrize("shape", linear.CASE.shapes, ids=str)
@pytest.mark.parametrize("kind", ["dense", "sparse", "two_bit", "base_three"])
def test_linear_quantizes_floats_itself(shape: LinearShape, kind: str) -> None:
    weights = "ternary" if "t" in kind or len(shape.lead) == 1 else "int8"
    o = operands(shape, weights, seed=len(str(shape)))
    codes, scale, bias = torch_operands(o)
    x = o.x * np.float32(60 * o.x_scale)  # on both sides of the range
    x.reshape(-1)[: x.size // 50] = np.nan
    want = expected(shape, replace(o, q=reference.quantize(x, o.x_scale, o.x_zero_point)))
    packed = None
    if shape.k:
        rows = core().prepack_linear(kind, weights, codes.data_ptr(), shape.n, shape.k)
        packed = torch.from_numpy(rows)
    params = {"x_scale": o.x_scale, "x_zero_point": o.x_zero_point, "packed": packed}
    for machine in machines():
        y = tops.ops.linear(torch.from_numpy(x), codes, scale, bias, **params)
        assert y.dtype == torch.float32
        assert np.array_equal(y.numpy(), want), machine
    half = tops.ops.linear(torch.from_numpy(x).half(), codes, scale, bias, **params)
    rounded = reference.quantize(x.astype(np.float16), o.x_scale, o.x_zero_point)
    assert np.array_equal(half.numpy(), expected(shape, replace(o, q=rounded)).astype(np.float16))


@st.composite
def conv_shapes(draw: st.DrawFn) -> ConvShape:
    def pair(low: int, high: int) -> tuple[int, int]:
        return draw(st.integers(low, high)), draw(st.integers(low, high))

    kernel, dilation, padding, stride = pair(1, 5), pair(1, 3), pair(0, 4), pair(1, 4)
    spans = [dilation[a] * (kernel[a] - 1) + 1 - 2 * padding[a] for a in range(2)]
    size = (max(1, spans[0]) + draw(st.integers(0, 9)), max(1, spans[1]) + draw(st.integers(0, 40)))
    groups = draw(st.integers(1, 3))
    channels, outputs = groups * draw(st.integers(1, 11)), groups * draw(st.integers(1, 11))
    density = draw(st.sampled_from((0.1, 0.5, 1.0)))
    batch = draw(st.integers(1, 3))
    return ConvShape(
        batch, channels, size, outputs, kernel, stride, padding, dilation, groups, density
    )


@settings(max_examples=60)
@given(conv_shapes(), st.sampled_from(("ternary", "int8")), st.integers(0, 2**20))
def test_any_geometry_is_exact_on_every_instruction_set(
    shape: ConvShape, weights: str, seed: int
) -> None:
    o = operands(shape, weights, seed)
    codes, scale, bias = torch_operands(o)
    want, x = expected(shape, o), torch.from_numpy(o.q)
    params = {"x_scale": o.x_scale, "x_zero_point": o.x_zero_point}
    for isa in ISAS:
        core().set_isa(isa)
        for op in (tops.ops.conv2d, tops.ops.sparse_conv2d):
            y = op(x, codes, scale, bias, **shape.geometry, **params)
            assert np.array_equal(y.numpy(), want), isa


EXTREME = (
    (conv2d.CASE, ConvShape(1, 66, (7, 9), 10, (3, 3), padding=(1, 1))),
    (sparse_conv2d.CASE, ConvShape(1, 66, (7, 9), 10, (3, 3), padding=(1, 1), density=0.5)),
    (linear.CASE, LinearShape((1,), 4096, 6)),
    (linear.CASE, LinearShape((9,), 8192, 6)),
)


@pytest.mark.parametrize(("case", "shape"), EXTREME, ids=[f"{c.op}-{s}" for c, s in EXTREME])
@pytest.mark.parametrize("weights", ["ternary", "int8"])
@pytest.mark.parametrize("zero_point", [0, 255])
def test_extreme_values_do_not_saturate(
    case: Any, shape: Shape, weights: str, zero_point: int
) -> None:
    # 255 * -128 * 2 does not fit the int16 that a pair of products may pass through.
    o = operands(shape, weights, seed=3, extreme=True)
    o = Operands(**{**vars(o), "x_zero_point": zero_point})
    codes, scale, bias = torch_operands(o)
    packed = packed_for(case.op, shape, codes, float_x=False)
    want = expected(shape, o)
    op = getattr(tops.ops, case.op)
    params = {"x_scale": o.x_scale, "x_zero_point": zero_point, "packed": packed}
    for machine in machines():
        y = op(torch.from_numpy(o.q), codes, scale, bias, **shape.geometry, **params)
        assert np.array_equal(y.numpy(), want), machine


def test_large_layers_pack_as_measured_and_the_same_each_time() -> None:
    n, k = 1030, 2048  # past the size below which nothing is measured
    o = operands(LinearShape((1,), k, n), seed=5)
    address = o.codes.ctypes.data
    kinds = ("two_bit", "base_three")
    forms = [core().prepack_linear(kind, "ternary", address, n, k) for kind in kinds]
    assert len(forms[1]) < 0.9 * len(forms[0])
    chosen = [core().prepack_linear("dense", "ternary", address, n, k) for _ in range(3)]
    assert any(np.array_equal(chosen[0], form) for form in forms)
    assert all(np.array_equal(chosen[0], again) for again in chosen[1:])


@pytest.mark.parametrize("kind", ["two_bit", "base_three", "int8"])
@pytest.mark.parametrize("value", [0, 255])
def test_long_rows_of_one_sign_do_not_overflow(kind: str, value: int) -> None:
    # Signed inputs and codes 0 .. 2: 0 meets 2 as -256, of which a 16-bit sum holds 128.
    rows, k, n = 9, 6000, 3
    rng = np.random.default_rng(value)
    w = np.where(rng.random((n, k)) < 0.999, [[1], [-1], [1]], 0).astype(np.int8)
    w = w * np.int8(127) if kind == "int8" else w
    x = np.where(rng.random((rows, k)) < 0.999, value, 255 - value).astype(np.uint8)
    codes = torch.from_numpy(layout.pad_int8(w) if kind == "int8" else layout.pack_codes(w))
    weights, form = ("int8", "dense") if kind == "int8" else ("ternary", kind)
    packed = torch.from_numpy(core().prepack_linear(form, weights, codes.data_ptr(), n, k))
    want = reference.linear_acc(x, 255 - value, w).astype(np.float32)
    for machine in machines():
        for m in (1, 2, 4, 9):
            y = tops.ops.linear(
                torch.from_numpy(x[:m]), codes, torch.ones(n),
                x_scale=1.0, x_zero_point=255 - value, packed=packed,
            )  # fmt: skip
            assert np.array_equal(y.numpy(), want[:m]), (machine, m)


@pytest.mark.parametrize("weights", ["ternary", "int8"])
@pytest.mark.parametrize("rows", [1, 3, 8, 17, 40])
@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_linear_quantizes_floats_as_the_reference(weights: str, rows: int, kind: str) -> None:
    shape = LinearShape((rows,), 203, 37)
    o = operands(shape, weights, seed=rows)
    codes, scale, bias = torch_operands(o)
    params = {"x_scale": o.x_scale, "x_zero_point": o.x_zero_point}
    q = reference.quantize(o.x, np.float32(o.x_scale), o.x_zero_point)
    want = expected(shape, Operands(**{**vars(o), "q": q}))
    packed = tops.ops.prepack(codes, kind, 203, 1, False)
    for machine in machines():
        for blob in (packed, None):
            y = tops.ops.linear(torch.from_numpy(o.x), codes, scale, bias, packed=blob, **params)
            assert np.array_equal(y.numpy(), want), machine


@each_case
@pytest.mark.parametrize("weights", ["ternary", "int8"])
def test_floats_are_within_the_bound(case: Any, shape: Shape, weights: str) -> None:
    o = operands(shape, weights, seed=1 + len(str(shape)))
    codes, scale, bias = torch_operands(o)
    packed = packed_for(case.op, shape, codes, float_x=True)
    op = getattr(tops.ops, case.op)
    for isa in ISAS:
        core().set_isa(isa)
        results = []
        for threads in THREADS:
            core().set_num_threads(threads)
            y = op(torch.from_numpy(o.x), codes, scale, bias, **shape.geometry, packed=packed)
            assert y.dtype == torch.float32
            assert normalized_error(shape, o, y.numpy(), o.w) <= float_bound(shape.terms), isa
            results.append(y)
        assert all(torch.equal(r, results[0]) for r in results), f"threads change {isa}"
    unpacked = op(torch.from_numpy(o.x), codes, scale, bias, **shape.geometry)
    assert normalized_error(shape, o, unpacked.numpy(), o.w) <= float_bound(shape.terms)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("case", "shape"),
    [(linear.CASE, LinearShape((5,), 131, 67)), (conv2d.CASE, conv2d.SHAPES[1])],
    ids=["linear", "conv2d"],
)
def test_half_floats_are_rounded_once(case: Any, shape: Shape, dtype: torch.dtype) -> None:
    o = operands(shape, seed=5)
    codes, scale, bias = torch_operands(o)
    x = torch.from_numpy(o.x).to(dtype)
    op = getattr(tops.ops, case.op)
    y = op(x, codes, scale, bias, **shape.geometry)
    exact = op(x.float(), codes, scale, bias, **shape.geometry)
    assert y.dtype == dtype
    assert torch.equal(y, exact.to(dtype))


def test_half_sums_may_pass_what_half_holds() -> None:
    x = torch.full((1, 64), 4096.0, dtype=torch.float16)
    x[0, 32:] *= -1
    x[0, 0] = 2.0
    codes = torch.from_numpy(tops.ops.codes.pack_codes(np.ones((3, 64), np.int8)))
    y = tops.ops.linear(x, codes, torch.ones(3))
    assert y.tolist() == [[2.0 - 4096.0] * 3]  # 31 * 4096 on the way is above 65504


LAYOUTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "sliced": lambda x: torch.cat([x, x + 1, x], 3)[..., x.shape[3] : 2 * x.shape[3]] - 1,
    "strided": lambda x: x.repeat_interleave(2, dim=3)[..., ::2],
    "offset": lambda x: torch.cat([x.flatten()[:1], x.flatten()])[1:].view(x.shape),
    "expanded": lambda x: x[:1, :1].expand(x.shape),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("quantized", [True, False])
def test_any_memory_layout(layout: str, quantized: bool) -> None:
    shape = ConvShape(2, 5, (6, 7), 9, (3, 3), padding=(1, 1))
    o = operands(shape, seed=9)
    codes, scale, bias = torch_operands(o)
    x = LAYOUTS[layout](torch.from_numpy(o.q if quantized else o.x))
    params = {"x_scale": 0.1, "x_zero_point": 5} if quantized else {}
    run = lambda x, c, s, b: tops.ops.conv2d(x, c, s, b, 1, 1, **params)  # noqa: E731
    want = run(x.contiguous().clone(), codes, scale, bias)
    wide = torch.stack([scale, bias], 1)  # scale and bias with stride 2
    codes_t = codes.permute(3, 1, 2, 0).contiguous().permute(3, 1, 2, 0)
    assert not codes_t.is_contiguous()
    assert torch.equal(run(x, codes_t, wide[:, 0], wide[:, 1]), want)


def test_unbatched_input_is_a_batch_of_one() -> None:
    shape = ConvShape(1, 6, (7, 8), 4, (3, 3), stride=(2, 1), groups=2)
    o = operands(shape, seed=2)
    codes, scale, bias = torch_operands(o)
    for x in (torch.from_numpy(o.x), torch.from_numpy(o.q)):
        params = {} if x.is_floating_point() else {"x_scale": 0.5, "x_zero_point": 9}
        for op in (tops.ops.conv2d, tops.ops.sparse_conv2d):
            batched = op(x, codes, scale, bias, **shape.geometry, **params)
            single = op(x[0], codes, scale, bias, **shape.geometry, **params)
            assert torch.equal(single, batched[0])


def test_a_row_does_not_depend_on_its_batch() -> None:
    o = operands(LinearShape((19,), 130, 33), seed=4)
    codes, scale, bias = torch_operands(o)
    for x in (torch.from_numpy(o.x), torch.from_numpy(o.q)):
        params = {} if x.is_floating_point() else {"x_scale": 0.5, "x_zero_point": 9}
        whole = tops.ops.linear(x, codes, scale, bias, **params)
        for i in range(19):
            assert torch.equal(
                tops.ops.linear(x[i : i + 1], codes, scale, bias, **params)[0], whole[i]
            )


def test_sparse_packing_works_in_every_operator() -> None:
    o = operands(LinearShape((6,), 37, 20, density=0.2), seed=6)
    codes, scale, bias = torch_operands(o)
    x = torch.from_numpy(o.q)
    dense, sparse = (tops.ops.prepack(codes, kind, 37) for kind in ("dense", "sparse"))
    run = lambda p: tops.ops.linear(x, codes, scale, bias, x_scale=0.1, x_zero_point=3, packed=p)  # noqa: E731
    assert torch.equal(run(dense), run(sparse))
    assert sparse.numel() != dense.numel()


def test_infinity_under_a_zero_weight() -> None:
    # Sparse: weight 0 counts as absent, so 0 * inf is 0. Dense: NaN, as in PyTorch.
    t = np.zeros((2, 8), np.int8)
    t[0, 1], t[1, 5] = 1, -1
    codes = torch.from_numpy(tops.ops.codes.pack_codes(t))
    x = torch.zeros(1, 8)
    x[0, 2], x[0, 1], x[0, 5] = float("inf"), 3.0, 4.0
    for isa in ISAS:
        core().set_isa(isa)
        sparse, dense = (
            tops.ops.linear(
                x, codes, torch.ones(2), packed=tops.ops.prepack(codes, kind, 8, 1, True)
            )
            for kind in ("sparse", "dense")
        )
        assert sparse.tolist() == [[3.0, -4.0]], isa
        assert dense.isnan().all(), isa


def test_prepacked_weights_do_not_depend_on_the_instruction_set() -> None:
    o = operands(ConvShape(1, 20, (4, 4), 17), seed=1)
    codes = torch.from_numpy(o.codes)
    for kind in ("dense", "sparse"):
        packs = []
        for isa in ISAS:
            core().set_isa(isa)
            packs.append(tops.ops.prepack(codes, kind, 20))
        assert all(torch.equal(p, packs[0]) for p in packs)
