# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: TID251
"""The convolution kernels under the interpreter: integers exact, floats within one rounding."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from ternary_ops.kernels._block_sizes import ConvBlocks
from ternary_ops.kernels.linear import Output
from torch import Tensor

from ternary_ops import reference
from ternary_ops.kernels import _im2col, _implicit_gemm, conv2d, sparse_conv2d


class Case(NamedTuple):
    x: tuple[int, int, int, int]
    out: int
    filter: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    @property
    def window(self) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int], int]:
        return self.stride, self.padding, self.dilation, self.groups

    @property
    def weight(self) -> tuple[int, int, int, int]:
        return self.out, *self.filter, self.x[1] // self.groups


CASES = {
    "3x3": Case((1, 64, 7, 9), 64, (3, 3), padding=(1, 1)),
    "odd": Case((2, 50, 7, 9), 50, (3, 3), (2, 2), (3, 1), (1, 2)),
    "colors": Case((1, 3, 9, 11), 16, (7, 7), (2, 2), (3, 3)),
    "im2col": Case((2, 3, 6, 8), 17, (3, 3), (1, 2), (1, 1), (2, 1)),
    "few channels": Case((2, 5, 9, 8), 16, (3, 3), (2, 1), (0, 2), (2, 2)),
    "one pixel": Case((1, 128, 1, 1), 70, (1, 1)),
    "strip": Case((2, 200, 3, 5), 40, (1, 7), padding=(0, 3)),
    "many rows": Case((1, 130, 6, 6), 200, (1, 1), (2, 2)),
    "groups": Case((1, 32, 5, 5), 32, (3, 3), padding=(1, 1), groups=2),
    "depthwise": Case((2, 12, 6, 5), 24, (3, 3), (2, 2), (1, 1), groups=12),
    "small groups": Case((1, 20, 5, 6), 10, (3, 2), (1, 1), (2, 0), (2, 3), groups=5),
}
EVERY = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
KERNELS = pytest.mark.parametrize("kernels", [conv2d, sparse_conv2d], ids=["dense", "sparse"])
HALF_STEP = {torch.float32: 0.0, torch.float16: 2**-11, torch.bfloat16: 2**-8}


@pytest.fixture(autouse=True)
def junk_in_new_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a kernel forgets to write shall be seen."""
    empty = torch.empty

    def junk(*size: int, **options: object) -> Tensor:
        tensor = empty(*size, **options)
        return tensor.fill_(float("nan") if tensor.is_floating_point() else 0x5A)

    monkeypatch.setattr(torch, "empty", junk)


def weights(case: Case, ternary: bool) -> Tensor:
    low, high = (-1, 2) if ternary else (-127, 128)
    values = torch.randint(low, high, case.weight, dtype=torch.int8)
    values[: case.out // 2, 0, -1] = 0  # what sparse_conv2d leaves out in some rows
    values[:, -1, 0] = 0  # and in all
    return values


def dense(values: Tensor) -> np.ndarray:
    return values.permute(0, 3, 1, 2).numpy()


def integer_case(
    run: Callable[..., Tensor], prepack: Callable[..., Tensor], case: Case, ternary: bool,
    codes: bool,
) -> None:  # fmt: skip
    values, x = weights(case, ternary), torch.randint(0, 256, case.x, dtype=torch.uint8)
    scale, bias, zero_point = torch.rand(case.out) * 0.01, torch.randn(case.out), case.out
    output = Output(torch.uint8, 0.213, 131) if codes else Output(torch.float32)
    packed = prepack(values, case.groups, ternary, False)
    given = None if codes else bias
    made = run(
        x, packed, case.weight, ternary, scale, given, *case.window, (0.5, zero_point), output
    )
    acc = reference.conv2d_acc(x.numpy(), zero_point, dense(values), *case.window)
    y = (0.213, 131) if codes else None
    wanted = reference.epilogue(acc, scale.numpy(), None if codes else bias.numpy(), y=y)
    assert made.dtype == output.dtype
    np.testing.assert_array_equal(made.numpy(), wanted)


def assert_close(made: Tensor, x: Tensor, w: np.ndarray, scale: Tensor, bias: Tensor, case: Case):
    """Float32's sums, and one rounding to the result's type."""
    image = x.double().numpy()
    wanted = reference.conv2d(image, w, scale.numpy(), bias.numpy(), *case.window)
    size = reference.conv2d(abs(image), abs(w), scale.numpy(), abs(bias.numpy()), *case.window)
    off = abs(made.double().numpy() - wanted)
    assert made.shape == wanted.shape
    assert (off <= 1.01 * HALF_STEP[made.dtype] * abs(wanted) + 1e-6 * size + 1e-7).all()


@KERNELS
@EVERY
@pytest.mark.parametrize(("ternary", "codes"), [(True, False), (False, True)])
def test_integers_are_exact(kernels: object, case: Case, ternary: bool, codes: bool) -> None:
    integer_case(kernels.run, kernels.prepack, case, ternary, codes)


@EVERY
@pytest.mark.parametrize("dtype", HALF_STEP)
def test_floats_are_rounded_once(case: Case, dtype: torch.dtype) -> None:
    ternary = dtype != torch.bfloat16
    values, x = weights(case, ternary), torch.randn(case.x).to(dtype)
    scale, bias = torch.rand(case.out), torch.randn(case.out)
    packed = conv2d.prepack(values, case.groups, ternary, True)
    made = conv2d.run(
        x, packed, case.weight, ternary, scale, bias, *case.window, None, Output(dtype)
    )
    assert made.dtype == dtype
    assert_close(made, x, dense(values), scale, bias, case)


@pytest.mark.parametrize("name", ["odd", "im2col", "strip", "groups", "depthwise"])
@pytest.mark.parametrize("dtype", HALF_STEP)
def test_sparse_floats_are_rounded_once(name: str, dtype: torch.dtype) -> None:
    case, ternary = CASES[name], dtype != torch.float16
    values, x = weights(case, ternary), torch.randn(case.x).to(dtype)
    scale, bias = torch.rand(case.out), torch.randn(case.out)
    packed = sparse_conv2d.prepack(values, case.groups, ternary, True)
    made = sparse_conv2d.run(
        x, packed, case.weight, ternary, scale, bias, *case.window, None, Output(dtype)
    )
    assert_close(made, x, dense(values), scale, bias, case)


@pytest.mark.parametrize("sides", [(64, 32), (16, 64), (128, 128)])
@pytest.mark.parametrize("ternary", [True, False])
def test_blocks_of_any_size(
    sides: tuple[int, int], ternary: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conv2d, "conv_blocks", lambda *_: ConvBlocks(*sides, 4, 2))
    integer_case(conv2d.run, conv2d.prepack, CASES["many rows"], ternary, False)


@pytest.mark.parametrize("name", ["odd", "im2col"])
def test_a_batch_too_large_for_one_launch(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_implicit_gemm, "_MOST_PIXELS", 30)
    integer_case(conv2d.run, conv2d.prepack, CASES[name], True, True)
    integer_case(sparse_conv2d.run, sparse_conv2d.prepack, CASES[name], True, True)


def test_results_too_large_for_32_bit_places(monkeypatch: pytest.MonkeyPatch) -> None:
    constants = _implicit_gemm.constants
    monkeypatch.setattr(conv2d, "constants", lambda *args: constants(*args) | {"FAR": True})
    integer_case(conv2d.run, conv2d.prepack, CASES["odd"], True, False)


@EVERY
@pytest.mark.parametrize("ternary", [True, False])
@pytest.mark.parametrize("float_x", [True, False])
def test_packed_bytes(case: Case, ternary: bool, float_x: bool) -> None:
    packed = conv2d.prepack(weights(case, ternary), case.groups, ternary, float_x)
    assert conv2d.packed_bytes(case.weight, case.groups, ternary, float_x) == packed.numel()


def test_an_infinity_stays_in_its_windows() -> None:
    """Neither padding of channels, nor chunks that fill up a step, may carry it further."""
    for case in (CASES["odd"], CASES["im2col"], CASES["few channels"], CASES["colors"]):
        values = torch.randint(0, 2, case.weight, dtype=torch.int8) * 2 - 1
        x = torch.randn(case.x)
        x[:, -1, 2, 3] = torch.inf
        ones = torch.ones(case.out)
        wanted = reference.conv2d(x.numpy(), dense(values), None, None, *case.window)
        for kernels in (conv2d, sparse_conv2d):
            packed = kernels.prepack(values, case.groups, True, True)
            made = kernels.run(
                x, packed, case.weight, True, ones, None, *case.window, None, Output(torch.float32)
            )
            np.testing.assert_array_equal(np.isfinite(made.numpy()), np.isfinite(wanted))


def test_empty_chunks_are_not_stored_nor_read() -> None:
    values = torch.zeros(128, 3, 3, 128, dtype=torch.int8)
    values[5, 0, 1, 70] = 1  # the first 64 rows need a chunk, the others none
    packed = sparse_conv2d.prepack(values, 1, True, False)
    step, numbers = 64 * 64, 4 * (3 + 3 + 128)
    assert packed.numel() == step + numbers
    x = torch.full((1, 128, 4, 4), torch.nan)
    x[:, 64:] = torch.randn(1, 64, 4, 4)
    packed = sparse_conv2d.prepack(values, 1, True, True)
    made = sparse_conv2d.run(
        x, packed, (128, 3, 3, 128), True, torch.ones(128), None, (1, 1), (1, 1), (1, 1), 1, None,
        Output(torch.float32),
    )  # fmt: skip
    wanted = torch.zeros(1, 128, 4, 4)
    wanted[:, 5, 1:] = x[:, 70, :3]
    np.testing.assert_array_equal(made.numpy(), wanted.numpy())


@triton.jit
def _quotients(p, out, multiplier, places):
    i = tl.arange(0, 1024)
    tl.store(out + i, _im2col.divide(tl.load(p + i), multiplier, places, 1))


def test_divide_is_exact_below_two_to_the_31() -> None:
    top = 2**31 - 1
    for divisor in (1, 2, 3, 7, 640, 641, 65535, 10**6 + 3, 2**30, 2**30 + 1, top):
        multiples = torch.randint(0, top // divisor + 1, (340,)) * divisor
        near = torch.cat([multiples + step for step in (-1, 0, 1)]).clamp(0, top)
        p = torch.cat([near, torch.tensor([0, 1, top - 1, top])]).to(torch.int32)
        out = torch.empty(1024, dtype=torch.int32)
        _quotients[(1,)](p, out, *_im2col.reciprocal(divisor))
        np.testing.assert_array_equal(out.numpy(), p.numpy() // divisor)
