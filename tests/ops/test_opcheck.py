# SPDX-License-Identifier: Apache-2.0
"""PyTorch's own checks of an operator: schema, autograd registration, fake tensors, tracing."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from cases import ConvShape, LinearShape, operands

import ternary_ops as tops

LINEAR = LinearShape((2, 3), 18, 6)
CONV = ConvShape(2, 6, (7, 8), 4, (3, 3), stride=(2, 1), padding=(1, 0), groups=2, density=0.5)
U8 = {"x_scale": 0.1, "x_zero_point": 7}
U8_TO_U8 = {**U8, "y_scale": 0.7, "y_zero_point": 90}


def sample(op: str, variant: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of one call; float variants and the scale require gradients."""
    shape = LINEAR if op == "linear" else CONV
    o = operands(shape, "int8" if variant == "int8" else "ternary", seed=1)
    quantized = variant.startswith("u8")
    x = torch.from_numpy(o.q if quantized else o.x)
    if variant == "float16":
        x = x.half()
    x.requires_grad_(not quantized)
    codes = torch.from_numpy(o.codes)
    trains = variant != "u8 to u8"
    scale = torch.from_numpy(o.scale).requires_grad_(trains)
    bias = None if variant == "no bias" else torch.from_numpy(o.bias).requires_grad_(trains)
    options = {"u8": U8, "u8 to u8": U8_TO_U8, "u8 packed": U8}.get(variant, {})
    if variant in ("u8 packed", "packed"):
        channels = shape.x[1] if op != "linear" else shape.k
        groups = shape.geometry.get("groups", 1)
        packed = torch.ops.ternary_ops.prepack(codes, "sparse", channels, groups, not quantized)
        options = {**options, "packed": packed}
    geometry = [list(v) if isinstance(v, tuple) else v for v in shape.geometry.values()]
    return (x, codes, scale, bias, *geometry), options


def test_operators_are_there_after_the_import() -> None:
    first = "import torch, ternary_ops; torch.ops.ternary_ops.conv2d"
    after = (
        "import ternary_ops.ops, torch; ternary_ops.ops.register(); torch.ops.ternary_ops.linear"
    )
    for script in (first, after):
        assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


VARIANTS = ("float32", "float16", "int8", "no bias", "packed", "u8", "u8 to u8", "u8 packed")


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("op", ["linear", "conv2d", "sparse_conv2d"])
def test_opcheck(op: str, variant: str) -> None:
    args, kwargs = sample(op, variant)
    torch.library.opcheck(getattr(torch.ops.ternary_ops, op).default, args, kwargs)


@pytest.mark.parametrize("x_shape", [(0, 18), (18,), (3, 0)])
def test_opcheck_of_thin_shapes(x_shape: tuple[int, ...]) -> None:
    o = operands(LinearShape(x_shape[:-1], x_shape[-1], 6), seed=1)
    args = tuple(torch.from_numpy(a) for a in (o.x, o.codes, o.scale, o.bias))
    torch.library.opcheck(torch.ops.ternary_ops.linear.default, args)


@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_opcheck_prepack(kind: str) -> None:
    codes = torch.from_numpy(operands(CONV).codes)
    torch.library.opcheck(torch.ops.ternary_ops.prepack.default, (codes, kind, 6, 2))


def test_opcheck_block_sparse() -> None:
    weight = torch.randn(4, 3, 3, 3) * (torch.rand(4, 3, 3, 3) > 0.7)
    values, crow, col = tops.ops.blocks.from_dense(weight, (2, 2))
    x = torch.randn(2, 6, 7, 8, requires_grad=True)
    bias = torch.randn(4, requires_grad=True)
    tail = (4, [3, 3], bias, [2, 1], [1, 0], [1, 1], 2)
    args = (x, values.requires_grad_(), crow, col, *tail)
    torch.library.opcheck(torch.ops.ternary_ops.block_sparse_conv2d.default, args)


@pytest.mark.parametrize("op", ["linear", "conv2d", "sparse_conv2d"])
@pytest.mark.parametrize("variant", ["float32", "u8", "u8 to u8"])
def test_meta_tensors_give_shapes(op: str, variant: str) -> None:
    args, kwargs = sample(op, variant)
    want = getattr(torch.ops.ternary_ops, op)(*args, **kwargs)
    on_meta = [a.detach().to("meta") if isinstance(a, torch.Tensor) else a for a in args]
    got = getattr(torch.ops.ternary_ops, op)(*on_meta, **kwargs)
    assert (got.shape, got.dtype, got.device.type) == (want.shape, want.dtype, "meta")


def test_compiles_whole_with_free_sizes() -> None:
    o = operands(CONV, seed=3)
    codes, scale, bias = (torch.from_numpy(a) for a in (o.codes, o.scale, o.bias))

    def run(x: torch.Tensor) -> torch.Tensor:
        return tops.ops.conv2d(x.relu(), codes, scale, bias, 2, 1, groups=2).relu()

    compiles = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(run, fullgraph=True, dynamic=True, backend=compiles)
    for n, h in ((2, 7), (3, 9), (5, 12), (4, 20)):
        x = torch.randn(n, 6, h, h + 1)
        assert torch.equal(compiled(x), run(x))
    assert compiles.frame_count == 1


def test_gradients_flow_through_compile() -> None:
    args, _ = sample("conv2d", "float32")

    def run(x: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = torch.ops.ternary_ops.conv2d(x, args[1], scale, bias, *args[4:])
        return y.square().sum()

    tensors = (args[0], args[2], args[3])
    want = torch.autograd.grad(run(*tensors), tensors)
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    for a, b in zip(torch.autograd.grad(compiled(*tensors), tensors), want, strict=True):
        torch.testing.assert_close(a, b)


def test_vmap_equals_the_batch() -> None:
    o = operands(LinearShape((4, 3), 18, 6), seed=1)
    codes, scale = torch.from_numpy(o.codes), torch.from_numpy(o.scale)
    x = torch.from_numpy(o.x)
    y = torch.vmap(lambda row: tops.ops.linear(row, codes, scale))(x)
    torch.testing.assert_close(y, tops.ops.linear(x, codes, scale))


def test_inference_mode_and_no_grad_agree() -> None:
    (x, codes, scale, bias), _ = sample("linear", "float32")
    want = torch.ops.ternary_ops.linear(x, codes, scale, bias)
    assert want.requires_grad
    with torch.no_grad():
        assert torch.equal(torch.ops.ternary_ops.linear(x, codes, scale, bias), want)
    with torch.inference_mode():
        y = torch.ops.ternary_ops.linear(x, codes, scale, bias)
    assert torch.equal(y, want)
    assert not y.requires_grad


QUANTIZATION = (
    "float? x_scale=None, int? x_zero_point=None, float? y_scale=None, int? y_zero_point=None, "
    "Tensor? packed=None) -> Tensor"
)
GEOMETRY = "SymInt[2] stride=[1, 1], SymInt[2] padding=[0, 0], SymInt[2] dilation=[1, 1], "
SCHEMAS = {
    "linear": f"(Tensor x, Tensor codes, Tensor scale, Tensor? bias=None, *, {QUANTIZATION}",
    "conv2d": "(Tensor x, Tensor codes, Tensor scale, Tensor? bias=None, "
    f"{GEOMETRY}SymInt groups=1, *, {QUANTIZATION}",
    "prepack": "(Tensor codes, str kind, SymInt in_channels, SymInt groups=1, "
    "bool float_x=False) -> Tensor",
}
SCHEMAS["sparse_conv2d"] = SCHEMAS["conv2d"]


@pytest.mark.parametrize("op", SCHEMAS)
def test_schemas_are_the_documented_ones(op: str) -> None:
    schema = str(getattr(torch.ops.ternary_ops, op).default._schema)
    assert schema == f"ternary_ops::{op}{SCHEMAS[op]}"
