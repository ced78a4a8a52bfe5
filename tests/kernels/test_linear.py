# SPDX-License-Identifier: Apache-2.0
"""The linear kernels under the interpreter: integers exact, floats within rounding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ternary_ops.kernels._block_sizes import linear_blocks
from torch import Tensor

from ternary_ops import reference
from ternary_ops.errors import BadWeights, UnsupportedDevice, UnsupportedShape
from ternary_ops.kernels import _target, linear
from ternary_ops.layout import codes as layout
from ternary_ops.ops import _gpu
from ternary_ops.ops._linear import _gpu as linear_op
from ternary_ops.ops._prepack import _gpu as prepack_op

SHAPES = [(1, 37, 300), (1, 8, 2304), (2, 5, 1), (5, 130, 520), (17, 257, 256), (70, 40, 31)]
FLOATS = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


def weights(n: int, k: int, ternary: bool) -> Tensor:
    low, high = (-1, 2) if ternary else (-127, 128)
    return torch.randint(low, high, (n, k), dtype=torch.int8)


def stored(values: Tensor, ternary: bool) -> Tensor:
    array = values.numpy()
    return torch.from_numpy(layout.pack_codes(array) if ternary else layout.pad_int8(array))


@pytest.mark.parametrize("ternary", [True, False])
@pytest.mark.parametrize(("m", "n", "k"), SHAPES)
@pytest.mark.parametrize("codes_out", [False, True])
def test_integers_are_exact(m: int, n: int, k: int, ternary: bool, codes_out: bool) -> None:
    values = weights(n, k, ternary)
    x = torch.randint(0, 256, (m, k), dtype=torch.uint8)
    scale, bias = torch.rand(n) * 0.01, torch.randn(n)
    params = {"x_scale": 0.0371, "x_zero_point": 77}
    if codes_out:
        params |= {"y_scale": 0.213, "y_zero_point": 131}
    made = linear_op(x, stored(values, ternary), scale, bias, **params)
    acc = reference.linear_acc(x.numpy(), 77, values.numpy())
    effective = scale.numpy() * np.float32(0.0371)
    y = (0.213, 131) if codes_out else None
    wanted = reference.epilogue(acc, effective, bias.numpy(), y=y)
    assert made.dtype == (torch.uint8 if codes_out else torch.float32)
    np.testing.assert_array_equal(made.numpy(), wanted)


@pytest.mark.parametrize("ternary", [True, False])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("m", "n", "k"), [(1, 20, 1000), (3, 129, 300), (66, 17, 256)])
def test_floats_are_within_rounding(
    m: int, n: int, k: int, dtype: torch.dtype, ternary: bool
) -> None:
    values = weights(n, k, ternary)
    x, scale, bias = torch.randn(m, k).to(dtype), torch.rand(n), torch.randn(n)
    made = linear_op(x, stored(values, ternary), scale, bias)
    assert made.dtype == dtype
    wanted = x.double() @ values.double().T * scale.double() + bias.double()
    size = x.double().abs() @ values.double().abs().T * scale.double()
    off = (made.double() - wanted).abs() / (size + bias.abs() + 1)
    assert float(off.max()) < FLOATS[dtype]


@pytest.mark.parametrize("m", [1, 4])
def test_floats_that_are_quantized_here_are_quantized_as_the_reference_does(m: int) -> None:
    values = weights(12, 100, True)
    x, scale = torch.randn(2, m, 100), torch.rand(12)
    x[0, 0, :3] = torch.tensor([float("nan"), float("inf"), -float("inf")])
    made = linear_op(x, stored(values, True), scale, x_scale=0.02, x_zero_point=120)
    q = reference.quantize(x.numpy(), 0.02, 120)
    acc = reference.linear_acc(q, 120, values.numpy())
    wanted = reference.epilogue(acc.reshape(-1, 12), scale.numpy() * np.float32(0.02))
    np.testing.assert_array_equal(made.numpy().reshape(-1, 12), wanted)


@pytest.mark.parametrize("split", [1, 2, 8])
def test_parts_of_the_depth_add_up_to_the_same_bits(
    split: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    values, x = weights(30, 2048, True), torch.randint(0, 256, (3, 2048), dtype=torch.uint8)
    scale = torch.rand(30)
    run = {"x_scale": 0.1, "x_zero_point": 3}
    wanted = linear_op(x, stored(values, True), scale, **run)

    def choice(*shape: object) -> object:
        return linear_blocks(*shape)._replace(split=split)  # type: ignore[arg-type]

    monkeypatch.setattr(linear, "linear_blocks", choice)
    assert torch.equal(linear_op(x, stored(values, True), scale, **run), wanted)


def test_packed_weights_are_those_of_the_op_and_their_length_is_checked() -> None:
    values, x = weights(9, 50, True), torch.randint(0, 256, (2, 50), dtype=torch.uint8)
    codes, scale = stored(values, True), torch.rand(9)
    packed = prepack_op(codes, "dense", 50)
    run = {"x_scale": 0.1, "x_zero_point": 3}
    wanted = linear_op(x, codes, scale, **run)
    assert torch.equal(linear_op(x, codes, scale, packed=packed, **run), wanted)
    with pytest.raises(UnsupportedShape, match="packed weights on cpu"):
        linear_op(x, codes, scale, packed=packed[:-4], **run)
    broken = codes.clone()
    broken[3, 2] = 0b10
    with pytest.raises(BadWeights, match="a 10"):
        prepack_op(broken, "dense", 50)


@pytest.mark.parametrize(("m", "k"), [(0, 20), (3, 0)])
def test_empty_sizes(m: int, k: int) -> None:
    bias = torch.randn(4)
    codes = torch.zeros(4, layout.quads(k), dtype=torch.uint8)
    made = linear_op(torch.zeros(m, k), codes, torch.ones(4), bias)
    assert torch.equal(made, bias.expand(m, 4))


def test_rows_may_be_strided_and_batched() -> None:
    values, wide = weights(7, 40, True), torch.randn(2, 3, 80)
    x = wide[..., ::2]
    made = linear_op(x, stored(values, True), torch.ones(7))
    torch.testing.assert_close(made, x @ values.float().T, rtol=1e-5, atol=1e-5)


def test_block_sizes_fit_their_target() -> None:
    for arch, limit in ((80, 163), (86, 99), (89, 99), (90, 227), (120, 99), ("gfx942", 64)):
        backend = "hip" if isinstance(arch, str) else "cuda"
        where = _target.Target(backend, arch, 100)
        for m in (1, 7, 40, 500):
            for itemsize in (1, 2, 4):
                blocks = linear_blocks(m, 1000, 1024, itemsize, where)
                stage = blocks.rows * 64 + 256 * blocks.columns * itemsize
                assert (blocks.stages - 1) * stage <= limit * 1024 or blocks.columns == 1
                assert linear.ROWS % blocks.rows == 0
    small = linear_blocks(16, 4096, 4096, 1, _target.Target("cuda", 90, 132))
    assert small.split > 1
    assert linear_blocks(16, 4096, 256, 1, _target.Target("cuda", 90, 132)).split == 1


def test_what_the_compiler_breaks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "target", lambda: _target.Target("cuda", 100, 148))
    monkeypatch.setattr(_target.triton, "__version__", "3.7.1")
    codes = stored(weights(8, 16, True), True)
    with pytest.raises(UnsupportedDevice, match=r"Triton 3\.9"):
        linear_op(torch.randn(2, 16), codes, torch.ones(8))
    monkeypatch.setattr(_target.triton, "__version__", "3.9.0")
    linear_op(torch.randn(2, 16), codes, torch.ones(8))


def test_without_triton_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError("No module named 'triton'", name="triton")

    monkeypatch.setattr(_gpu.importlib, "import_module", missing)
    codes = stored(weights(8, 16, True), True)
    with pytest.raises(UnsupportedDevice, match=r"ternary-ops\[gpu\]"):
        linear_op(torch.randn(2, 16), codes, torch.ones(8))
