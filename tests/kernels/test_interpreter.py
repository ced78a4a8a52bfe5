# SPDX-License-Identifier: Apache-2.0
"""What interpreter.py adds to Triton's, on kernels that are right, or wrong on purpose."""

import itertools
import math
import os
import subprocess
import sys
from pathlib import Path

import inline_ptx
import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from interpreter import OutOfBounds, Race, traffic
from torch.testing import assert_close

FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)
ODD_NAN = torch.tensor(2**31 - 1, dtype=torch.int32).view(torch.float32).item()
FLOATS = (torch.float32, torch.float16, torch.bfloat16, *FP8)


def _random(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    info = torch.iinfo(dtype)
    return torch.randint(info.min, info.max + 1, shape or (256,)).to(dtype)


@triton.jit
def _arithmetic(a, b, sums, quotients, chosen, N: tl.constexpr):
    i = tl.arange(0, N)
    x, y = tl.load(a + i), tl.load(b + i)
    tl.store(sums + i, x * y + x - 1.5)
    tl.store(quotients + i, x / y)
    tl.store(chosen + i, tl.where((x > y) & (i < N), x, y * 2.0))


def test_bfloat16_operations_round_each_result() -> None:
    a, b = torch.randn(2, 256).bfloat16()
    sums, quotients, chosen = torch.zeros(3, 256).bfloat16()
    _arithmetic[(1,)](a, b, sums, quotients, chosen, 256)
    assert torch.equal(sums, a * b + a - 1.5)
    assert torch.equal(quotients, a / b)
    assert torch.equal(chosen, torch.where(a > b, a, b * 2))


@triton.jit
def _cast(source, to, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(to + i, tl.load(source + i).to(to.dtype.element_ty))


@pytest.mark.parametrize("to", [torch.bfloat16, *FP8], ids=str)
def test_casts_round_half_to_even(to: torch.dtype) -> None:
    # From 2**-7 to 256: all of bfloat16, halfway between two of them, and next to either.
    x = torch.arange(0x3C000000, 0x43800000, 0x8000, dtype=torch.int32).view(torch.float32)
    source = torch.cat([x, torch.nextafter(x, x * 2), torch.nextafter(x, -x)])
    source = torch.nn.functional.pad(torch.cat([source, -source]), (0, 2**15 - 6 * len(x)))
    got = torch.zeros(2**15, dtype=to)
    _cast[(1,)](source, got, 2**15)
    assert torch.equal(got.float(), source.to(to).float())


def test_bfloat16_casts_at_the_ends() -> None:
    source = torch.tensor([0.0, -0.0, 1e-40, 3.3962e38, 3.3961e38, -math.inf, math.inf, ODD_NAN])
    got = torch.zeros(8).bfloat16()
    _cast[(1,)](source, got, 8)
    assert_close(got, source.bfloat16(), rtol=0, atol=0, equal_nan=True)
    assert got[3] == math.inf and torch.signbit(got[:2]).tolist() == [False, True]


@pytest.mark.parametrize("other", [torch.int32, torch.int8, torch.float16, torch.float32], ids=str)
def test_bfloat16_casts_to_and_from(other: torch.dtype) -> None:
    values = torch.randint(-128, 128, (64,))
    there, back = torch.zeros(64).bfloat16(), torch.zeros(64, dtype=other)
    _cast[(1,)](values.to(other), there, 64)
    _cast[(1,)](there, back, 64)
    assert torch.equal(there, values.bfloat16()) and torch.equal(back, values.to(other))


@pytest.mark.parametrize("dtype,largest", [(FP8[0], 448.0), (FP8[1], 57344.0)])
def test_what_is_too_large_for_fp8_stays_finite(dtype: torch.dtype, largest: float) -> None:
    got = torch.zeros(2, dtype=dtype)
    _cast[(1,)](torch.tensor([1e6, -1e6]), got, 2)
    assert got.float().tolist() == [largest, -largest]


@triton.jit
def _reduce(x, sums, most, where, running, ROWS: tl.constexpr, N: tl.constexpr):
    r, i = tl.arange(0, ROWS), tl.arange(0, N)
    v = tl.load(x + r[:, None] * N + i[None, :])
    tl.store(sums + r, tl.sum(v, 1))
    columns = tl.broadcast_to(i[None, :], (ROWS, N))
    best, at = tl.reduce((v, columns), 1, tl.standard._argmax_combine_tie_break_left)
    tl.store(most + r, best - tl.min(v, 1))
    tl.static_assert(at.dtype == tl.int32)
    tl.store(where + r, at)
    tl.store(running + r[:, None] * N + i[None, :], tl.associative_scan(v, 1, _add))


@triton.jit
def _add(a, b):
    return a + b


def test_bfloat16_reductions() -> None:
    x = torch.randn(8, 32).bfloat16()
    sums, most, where = torch.zeros(8).bfloat16(), torch.zeros(8).bfloat16(), torch.zeros(8).int()
    running = torch.zeros(8, 32).bfloat16()
    _reduce[(1,)](x, sums, most, where, running, 8, 32)
    assert_close(sums.double(), x.double().sum(1), rtol=2**-8, atol=1e-6)
    assert torch.equal(most, (x.float().amax(1) - x.float().amin(1)).bfloat16())
    assert torch.equal(where.long(), x.float().argmax(1))
    assert torch.equal(running, torch.stack([*itertools.accumulate(x.unbind(1))], 1))


@triton.jit
def _product(a, b, c, PRECISION: tl.constexpr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    m, n, k = tl.arange(0, M), tl.arange(0, N), tl.arange(0, K)
    left = tl.load(a + m[:, None] * K + k[None, :])
    right = tl.load(b + k[:, None] * N + n[None, :])
    sums = tl.load(c + m[:, None] * N + n[None, :])
    out = tl.dot(left, right, sums, input_precision=PRECISION, out_dtype=c.dtype.element_ty)
    tl.store(c + m[:, None] * N + n[None, :], out)


def _error(a: torch.Tensor, b: torch.Tensor, precision: str | None = None) -> float:
    c = torch.randn(16, 32)
    expected = a.double() @ b.double() + c
    _product[(1,)](a, b, c, precision, 16, 32, 64)
    return float((c - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("dtype", FLOATS[1:], ids=str)
def test_dot_of_small_floats_is_summed_in_float32(dtype: torch.dtype) -> None:
    assert _error(torch.randn(16, 64).to(dtype), torch.randn(64, 32).to(dtype)) < 1e-6


def test_dot_of_float32_is_tf32_unless_ieee() -> None:
    a, b = torch.randn(16, 64), torch.randn(64, 32)
    assert _error(a, b, "ieee") < 1e-6
    assert 1e-5 < _error(a, b) < 1e-3
    a, b = ((x.view(torch.int32) & -8192).view(torch.float32) for x in (a, b))
    assert _error(a, b) < 1e-6  # 10 bits of mantissa need no rounding
    for value, rounded in ((1 + 2**-11, 1 + 2**-10), (ODD_NAN, math.nan)):
        c, ones = torch.zeros(16, 32), torch.full_like(b, 1 / 64)
        _product[(1,)](torch.full_like(a, value), ones, c, None, 16, 32, 64)
        assert_close(c, torch.full_like(c, rounded), rtol=0, atol=0, equal_nan=True)


def test_dot_of_int8_is_exact() -> None:
    a, b = _random(torch.int8, 16, 2048), _random(torch.int8, 2048, 32)
    a[0], b[:, 0], a[0, 0], b[0, 0] = -128, -128, -127, -127  # 25 bits, an odd sum
    c = torch.full((16, 32), 2**24 + 1, dtype=torch.int32)
    expected = a.int() @ b.int() + c
    _product[(1,)](a, b, c, None, 16, 32, 2048)
    assert torch.equal(c, expected)


@triton.jit
def _asm1(x, y, ASM: tl.constexpr, PACK: tl.constexpr, N: tl.constexpr):
    v = tl.load(x + tl.arange(0, N))
    out = tl.inline_asm_elementwise(ASM, "=r,r", [v], y.dtype.element_ty, is_pure=True, pack=PACK)
    tl.store(y + tl.arange(0, N), out)


@triton.jit
def _asm3(a, b, c, y, ASM: tl.constexpr, N: tl.constexpr):
    i = tl.arange(0, N)
    v = [tl.load(a + i), tl.load(b + i), tl.load(c + i)]
    tl.store(y + i, tl.inline_asm_elementwise(ASM, "=r,r,r,r", v, tl.int32, is_pure=True, pack=1))


def _shift(places: int, mask: str) -> str:
    return f"{{ .reg .b32 t; shl.b32 t, $1, {places}; and.b32 $0, t, {mask}; }}"


@pytest.mark.parametrize("dtype,pack", [(torch.int8, 4), (torch.int16, 2), (torch.int32, 1)])
def test_plane_twins_do_what_registers_do(dtype: torch.dtype, pack: int) -> None:
    bits = 32 // pack
    mask = int(("11" + "0" * (bits - 2)) * pack, 2)
    x = _random(dtype)
    registers = x.numpy().view(np.uint32)
    for places in range(0, bits, 2):
        asm = _shift(places, hex(mask)) if places else f"and.b32  $0, $1, 0x{mask:08X};"
        y = torch.zeros_like(x)
        _asm1[(1,)](x, y, asm, pack, 256)
        expected = (registers << np.uint32(places)) & np.uint32(mask)
        assert np.array_equal(y.numpy().view(np.uint32), expected)


@pytest.mark.parametrize("asm", [_shift(2, "0xC1C1C1C1"), "and.b32 $0, $1, 0x000000FF;"])
def test_twins_refuse_what_elements_cannot_show(asm: str) -> None:
    x = _random(torch.int8)
    with pytest.raises(ValueError, match="element"):
        _asm1[(1,)](x, torch.zeros_like(x), asm, 4, 256)


@pytest.mark.parametrize("table", [0x00, 0x3A, 0x80, 0x96, 0xCA, 0xE8, 0xFE, 0xFF])
def test_lop3_looks_up_each_bit(table: int) -> None:
    a, b, c = (_random(torch.int32) for _ in range(3))
    y = torch.zeros_like(a)
    _asm3[(1,)](a, b, c, y, f"lop3.b32 $0, $1, $2, $3, 0x{table:02X};", 256)
    columns = [(x.numpy()[:, None] >> np.arange(32)) & 1 for x in (a, b, c)]
    looked_up = table >> (columns[0] * 4 + columns[1] * 2 + columns[2]) & 1
    assert np.array_equal((y.numpy()[:, None] >> np.arange(32)) & 1, looked_up)


def test_lop3_takes_numbers() -> None:
    a, y = _random(torch.int32), torch.zeros(256, dtype=torch.int32)
    _asm1[(1,)](a, y, "lop3.b32 $0, $1, 0x0F0F0F0F, 0x40404040, 0xEA;", 1, 256)
    assert torch.equal(y, (a & 0x0F0F0F0F) | 0x40404040)


def test_dp4a_adds_four_products() -> None:
    a, b, c = (_random(torch.int32) for _ in range(3))
    a[0] = b[0] = -2139062144  # four times -128
    y = torch.zeros_like(a)
    _asm3[(1,)](a, b, c, y, "dp4a.s32.s32 $0, $1, $2, $3;", 256)
    products = (a.view(torch.int8).long() * b.view(torch.int8).long()).view(-1, 4).sum(1)
    assert torch.equal(y, (products + c.long()).int())


def test_unknown_asm_is_named_until_it_has_a_twin(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = _random(torch.int32), torch.zeros(256, dtype=torch.int32)
    with pytest.raises(NotImplementedError, match=r"not\.b32 \$0, \$1;"):
        _asm1[(1,)](x, y, "not.b32 $0,  $1;", 1, 256)
    monkeypatch.setattr(inline_ptx, "_twins", {})
    inline_ptx.twin("not.b32   $0, $1;")(np.invert)
    _asm1[(1,)](x, y, "not.b32 $0,  $1;", 1, 256)
    assert torch.equal(y, ~x)


@triton.jit
def _copy(x, y, n, FIRST: tl.constexpr, N: tl.constexpr):
    i = tl.program_id(0) * N + tl.arange(0, N)
    tl.store(y + i, tl.load(x + FIRST + i, mask=i < n, other=0), mask=i < n)


@triton.jit
def _count(x, i, n):
    tl.atomic_add(x + i, 1, mask=i < n)
    tl.atomic_cas(x + i, 0, 0)


def test_loads_stores_and_atomics_stay_inside() -> None:
    x, y = torch.arange(100.0), torch.zeros(100)
    _copy[(4,)](x, y, 100, 0, 32)
    assert torch.equal(y, x)
    with pytest.raises(OutOfBounds, match=r"load of 4 bytes .* 3 of 4 lanes, program \(3, 0, 0\)"):
        _copy[(4,)](x, y, 100, 3, 32)
    with pytest.raises(OutOfBounds, match="load .* 1 of 32 lanes"):
        _copy[(1,)](x, y, 100, -1, 32)
    with pytest.raises(OutOfBounds, match="store .* 28 of 32 lanes"):
        _copy[(4,)](torch.zeros(128), y, 128, 0, 32)
    with pytest.raises(OutOfBounds, match="load .* 1 of 2 lanes"):
        _copy[(1,)](torch.zeros(6, dtype=torch.int8)[:4].view(torch.int32), y, 2, 0, 2)
    counts = torch.zeros(4, dtype=torch.int32)
    _count[(1,)](counts, 3, 4)
    assert counts.tolist() == [0, 0, 0, 1]
    for outside, n in ((-1, 4), (4, 5), (4, 4)):  # the last by its compare and swap alone
        with pytest.raises(OutOfBounds, match="atomic of 4 bytes"):
            _count[(1,)](counts, outside, n)


def test_storages_may_lie_in_one_another_and_behind_reinterpreted_tensors() -> None:
    outer = np.arange(32.0, dtype=np.float32)
    inner, bits = torch.from_numpy(outer[8:16]), torch.from_numpy(outer.view(np.int32))
    _copy[(1,)](triton.reinterpret(bits, tl.float32), inner, 8, 20, 8)
    assert inner.tolist() == list(range(20, 28))


@triton.jit
def _described(x, y, SHAPE: tl.constexpr, N: tl.constexpr):
    block = tl.make_tensor_descriptor(x, shape=[SHAPE], strides=[1], block_shape=[N])
    tl.store(y + tl.arange(0, N), block.load([0]))


def test_descriptors_are_checked() -> None:
    x, y = torch.ones(20), torch.zeros(32)
    _described[(1,)](x, y, 20, 32)
    assert y.sum() == 20
    with pytest.raises(OutOfBounds, match="12 of 32 lanes"):
        _described[(1,)](x, y, 32, 32)


@triton.jit
def _load_some(x, y, n, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(y + i, tl.load(x + i, mask=i < n))


@pytest.mark.parametrize("dtype", [*FLOATS, torch.int8, torch.uint8, torch.int64], ids=str)
def test_masked_off_lanes_hold_junk(dtype: torch.dtype) -> None:
    y = torch.zeros(32).to(dtype)
    _load_some[(1,)](torch.ones(32).to(dtype), y, 20, 32)
    assert (y[:20].float() == 1).all()
    junk = y[20:].float().isnan() if dtype.is_floating_point else y[20:].view(torch.uint8) == 0x5A
    assert junk.all()


@triton.jit
def _write(y, STEP: tl.constexpr, LANE_STEP: tl.constexpr, N: tl.constexpr):
    i = tl.program_id(0) * STEP + tl.arange(0, N) * LANE_STEP
    tl.store(y + i, tl.zeros((N,), tl.float32))
    tl.store(y + i, tl.zeros((N,), tl.float32) + 1)


def test_races() -> None:
    y = torch.zeros(64)
    for _ in range(2):  # a program may write twice, and so may two launches
        _write[(2,)](y, 32, 1, 32)
    with pytest.raises(Race, match=r"program \(1, 0, 0\) writes elements"):
        _write[(2,)](y, 31, 1, 32)
    with pytest.raises(Race, match="two lanes"):
        _write[(1,)](y, 0, 0, 32)
    count = torch.zeros(1, dtype=torch.int32)
    _count[(5,)](count, 0, 1)
    assert count.item() == 5


def test_races_are_found_across_views_of_one_storage() -> None:
    y = torch.zeros(64)

    @triton.jit
    def _write_both(words, halves):
        tl.store(words, 1.0, mask=tl.program_id(0) == 0)
        tl.store(halves + 1, 1, mask=tl.program_id(0) == 1)

    with pytest.raises(Race, match="another program"):
        _write_both[(2,)](y, y.view(torch.int16))


@triton.jit
def _checked(x, LIMIT: tl.constexpr, WRAP: tl.constexpr, N: tl.constexpr):
    v = tl.load(x + tl.arange(0, N))
    tl.device_assert(v < LIMIT, "too large")
    sums = tl.add(v, 2147483647, sanitize_overflow=False) if WRAP else v + 2147483640
    tl.store(x + tl.arange(0, N), sums)


def test_device_assert_and_overflow_fire() -> None:
    x = torch.arange(8, dtype=torch.int32)
    with pytest.raises(AssertionError, match=r"too large, program \(0, 0, 0\)"):
        _checked[(1,)](x, 7, True, 8)
    with pytest.raises(AssertionError, match="int32 overflow"):
        _checked[(1,)](x + 1, 9, False, 8)
    _checked[(1,)](x, 8, True, 8)
    assert x[1] == -(2**31)


def test_traffic_is_counted_by_the_byte() -> None:
    x, y = torch.ones(100).bfloat16(), torch.ones(100)
    with traffic() as outer:
        _copy[(4,)](x, y, 100, 0, 32)
        with traffic() as inner:
            _count[(3,)](torch.zeros(1, dtype=torch.int32), 0, 1)
    _copy[(4,)](x, y, 100, 0, 32)
    counted = (inner.loaded, inner.stored, outer.loaded, outer.stored)
    assert counted == (24, 24, 200 + 24, 400 + 24)


@triton.autotune([triton.Config({"N": 32}), triton.Config({"N": 64})], key=["n"])
@triton.jit
def _tuned(y, n, N: tl.constexpr):
    i = tl.program_id(0) * N + tl.arange(0, N)
    tl.store(y + i, tl.full((N,), N, tl.int32), mask=i < n)


def test_autotune_takes_the_first_configuration() -> None:
    y = torch.zeros(100, dtype=torch.int32)
    _tuned[lambda meta: (triton.cdiv(100, meta["N"]),)](y, 100)
    assert (y == 32).all()


def _without_interpreting(*command: str) -> str:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TRITON_")}
    result = subprocess.run(
        [sys.executable, *command],
        env=environment,
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
    )
    return result.stdout + result.stderr


def test_install_refuses_a_compiling_triton() -> None:
    said = _without_interpreting("-c", "import interpreter; interpreter.install()")
    assert "RuntimeError: Triton was imported without TRITON_INTERPRET=1" in said


def test_the_folder_is_skipped_where_triton_compiles() -> None:
    said = _without_interpreting("-m", "pytest", "-rs", "-p", "no:cacheprovider", __file__)
    assert "1 skipped" in said and "run with TRITON_INTERPRET=1" in said
