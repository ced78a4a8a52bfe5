# SPDX-License-Identifier: Apache-2.0
"""Gradients of every operator against autograd of PyTorch's own operators in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import ConvShape, LinearShape, Operands, conv2d, linear, operands, sparse_conv2d
from torch import Tensor

import ternary_ops as tops

Shape = LinearShape | ConvShape
# float32 sums of up to some thousand products (gradients sum over pixels too), as a share of the
# largest gradient; a wrong product is a thousandth of it at least.
CLOSE = {"rtol": 0.0, "atol": 2e-5}

CASES = [
    (c.op, shape)
    for c in (linear.CASE, conv2d.CASE, sparse_conv2d.CASE)
    for shape in c.shapes
    if shape.terms * shape.weight[0] > 0  # PyTorch has no convolution without channels
]
IDS = [f"{op}-{shape}" for op, shape in CASES]


def float64(shape: Shape, x: Tensor, o: Operands, scale: Tensor, bias: Tensor | None) -> Tensor:
    """The operator in PyTorch's terms."""
    w = torch.from_numpy(o.w).double()
    if isinstance(shape, LinearShape):
        y = F.linear(x, w) * scale
        return y if bias is None else y + bias
    y = F.conv2d(x, w, None, **shape.geometry) * scale[:, None, None]
    return y if bias is None else y + bias[:, None, None]


def leaves(*tensors: Tensor, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [t.detach().clone().to(dtype).requires_grad_() for t in tensors]


def compare(got: Tensor, want: Tensor, ours: list[Tensor], theirs: list[Tensor]) -> None:
    grad = torch.randn(want.shape, dtype=torch.float64)
    a = torch.autograd.grad(got, ours, grad.to(got.dtype))
    b = torch.autograd.grad(want, theirs, grad)
    for mine, reference in zip(a, b, strict=True):
        assert mine.dtype == torch.float32
        largest = max(1e-3, float(reference.abs().max())) if reference.numel() else 1.0
        torch.testing.assert_close(mine.double() / largest, reference / largest, **CLOSE)


@pytest.mark.parametrize(("op", "shape"), CASES, ids=IDS)
@pytest.mark.parametrize("weights", ["ternary", "int8"])
def test_weight_only_gradients(op: str, shape: Shape, weights: str) -> None:
    o = operands(shape, weights, seed=11)
    tensors = [torch.from_numpy(a) for a in (o.x, o.scale, o.bias)]
    ours, theirs = leaves(*tensors), leaves(*tensors, dtype=torch.float64)
    x, scale, bias = ours
    got = getattr(tops.ops, op)(x, torch.from_numpy(o.codes), scale, bias, **shape.geometry)
    want = float64(shape, theirs[0], o, theirs[1], theirs[2])
    compare(got, want, ours, theirs)


@pytest.mark.parametrize(
    ("op", "shape"),
    [("linear", LinearShape((2, 3), 18, 6)), ("conv2d", conv2d.SHAPES[10])],
    ids=["linear", "conv2d"],
)
def test_uint8_input_trains_scale_and_bias(op: str, shape: Shape) -> None:
    o = operands(shape, seed=12)
    tensors = [torch.from_numpy(a) for a in (o.scale, o.bias)]
    ours, theirs = leaves(*tensors), leaves(*tensors, dtype=torch.float64)
    params = {"x_scale": o.x_scale, "x_zero_point": o.x_zero_point}
    q, codes = torch.from_numpy(o.q), torch.from_numpy(o.codes)
    got = getattr(tops.ops, op)(q, codes, *ours, **shape.geometry, **params)
    real = (q.double() - o.x_zero_point) * o.x_scale
    compare(got, float64(shape, real, o, *theirs), ours, theirs)


def test_unbatched_and_no_bias() -> None:
    shape = ConvShape(1, 5, (6, 7), 4, (3, 3), stride=(2, 1), padding=(1, 1))
    o = operands(shape, seed=13)
    tensors = [torch.from_numpy(o.x[0]), torch.from_numpy(o.scale)]
    ours, theirs = leaves(*tensors), leaves(*tensors, dtype=torch.float64)
    codes = torch.from_numpy(o.codes)
    packed = tops.ops.prepack(codes, "dense", 5, 1, True)
    got = tops.ops.conv2d(ours[0], codes, ours[1], None, (2, 1), 1, packed=packed)
    compare(got, float64(shape, theirs[0], o, theirs[1], None), ours, theirs)


def test_a_vector_through_linear() -> None:
    shape = LinearShape((), 17, 9)
    o = operands(shape, seed=14)
    tensors = [torch.from_numpy(a) for a in (o.x, o.scale, o.bias)]
    ours, theirs = leaves(*tensors), leaves(*tensors, dtype=torch.float64)
    got = tops.ops.linear(ours[0], torch.from_numpy(o.codes), ours[1], ours[2])
    compare(got, float64(shape, *[theirs[0], o], *theirs[1:]), ours, theirs)


@pytest.mark.parametrize("wanted", [0, 1, 2])
def test_one_gradient_alone(wanted: int) -> None:
    o = operands(LinearShape((4,), 18, 6), seed=15)
    tensors = [torch.from_numpy(a) for a in (o.x, o.scale, o.bias)]
    tensors[wanted].requires_grad_()
    y = tops.ops.linear(tensors[0], torch.from_numpy(o.codes), tensors[1], tensors[2])
    y.square().sum().backward()
    assert [t.grad is not None for t in tensors] == [i == wanted for i in range(3)]
    assert float(tensors[wanted].grad.abs().sum()) > 0  # type: ignore[union-attr]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_input_gets_a_half_gradient(dtype: torch.dtype) -> None:
    o = operands(LinearShape((4,), 18, 6), seed=16)
    x = torch.from_numpy(o.x).to(dtype).requires_grad_()
    scale = torch.from_numpy(o.scale).requires_grad_()
    codes = torch.from_numpy(o.codes)
    grad = torch.randn(4, 6).to(dtype)
    d_x, d_scale = torch.autograd.grad(tops.ops.linear(x, codes, scale), (x, scale), grad)
    wide = x.detach().float().requires_grad_()
    y = tops.ops.linear(wide, codes, scale)
    exact_x, exact_scale = torch.autograd.grad(y, (wide, scale), grad.float())
    assert d_x.dtype == dtype
    assert torch.equal(d_x, exact_x.to(dtype))
    assert torch.equal(d_scale, exact_scale)


def test_uint8_results_carry_no_gradient() -> None:
    o = operands(LinearShape((4,), 18, 6), seed=17)
    scale = torch.from_numpy(o.scale).requires_grad_()
    params: dict[str, Any] = {"x_scale": 0.1, "x_zero_point": 3, "y_scale": 0.5, "y_zero_point": 9}
    y = tops.ops.linear(torch.from_numpy(o.q), torch.from_numpy(o.codes), scale, **params)
    assert not y.requires_grad


def test_block_sparse_gradients() -> None:
    shape = ConvShape(2, 6, (7, 6), 5, (3, 3), stride=(1, 2), padding=(1, 1), groups=1)
    weight = torch.randn(shape.weight) * (torch.rand(shape.weight) > 0.8)
    blocks = tops.ops.blocks.from_dense(weight, (2, 4))
    tensors = [torch.randn(shape.x), blocks.values, torch.randn(5)]
    ours, theirs = leaves(*tensors), leaves(*tensors, dtype=torch.float64)
    got = tops.ops.block_sparse_conv2d(
        ours[0], blocks._replace(values=ours[1]), 5, 3, ours[2], (1, 2), 1
    )
    grid = theirs[1].new_zeros(3, 9 * 2, 2, 4)
    rows = torch.arange(3).repeat_interleave(blocks.crow_indices.diff())
    grid = grid.index_put((rows, blocks.col_indices), theirs[1])
    dense = grid.reshape(3, 9, 2, 2, 4).permute(0, 3, 2, 4, 1).reshape(6, 8, 3, 3)[:5, :6]
    want = F.conv2d(theirs[0], dense, theirs[2], (1, 2), 1)
    compare(got, want, ours, theirs)


def test_the_second_derivative_is_refused_in_words() -> None:
    o = operands(LinearShape((4,), 18, 6), seed=18)
    x = torch.from_numpy(o.x).requires_grad_()
    scale = torch.from_numpy(o.scale).requires_grad_()
    y = tops.ops.linear(x, torch.from_numpy(o.codes), scale)
    (d_x,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        d_x.sum().backward()
