# SPDX-License-Identifier: Apache-2.0
"""What the operators refuse, on real and on fake tensors, and what they say: need, got, do."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import ternary_ops as tops
from ternary_ops.errors import BadWeights, TernaryOpsError, UnsupportedDevice, UnsupportedShape

OPS = torch.ops.ternary_ops
U8 = {"x_scale": 0.1, "x_zero_point": 7}


def conv_call(**changes: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A valid conv2d call (6 channels in 2 groups, 4 filters 3x3), with some arguments changed."""
    call = {
        "x": torch.randn(1, 6, 5, 5),
        "codes": torch.from_numpy(tops.ops.codes.conv_codes(np.ones((4, 3, 3, 3), np.int8))),
        "scale": torch.ones(4),
        "bias": torch.ones(4),
        "stride": [1, 1],
        "padding": [0, 0],
        "dilation": [1, 1],
        "groups": 2,
        **changes,
    }
    names = ("x", "codes", "scale", "bias", "stride", "padding", "dilation", "groups")
    return tuple(call.pop(name) for name in names), call


def u8(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8)


CONV: dict[str, tuple[dict[str, Any], str]] = {
    "rank": ({"x": torch.randn(6, 5)}, r"x \[N, C, H, W\] or \[C, H, W\], got \[6, 5\]"),
    "channels": (
        {"x": torch.randn(1, 12, 5, 5)},
        r"codes \[4, 3, 3, 2\] for x with C=12 in 2 group",
    ),
    "groups": ({"groups": 4}, "groups=4, C=6, O=4"),
    "no groups": ({"groups": 0}, "groups >= 1"),
    "codes rank": ({"codes": u8(4, 1)}, r"codes \[O, R, S, ceil\(I/4\)\], got \[4, 1\]"),
    "codes dtype": ({"codes": torch.ones(4, 3, 3, 1)}, "codes of dtype uint8 or int8"),
    "int8 width": ({"codes": u8(4, 3, 3, 3).to(torch.int8)}, r"codes \[4, 3, 3, 4\] for x"),
    "scale length": ({"scale": torch.ones(3)}, r"scale float32 \[4\], one per output channel"),
    "scale dtype": ({"scale": torch.ones(4).half()}, "got torch.float16"),
    "bias": ({"bias": torch.ones(5)}, r"bias float32 \[4\].*got torch.float32 \[5\]"),
    "stride": ({"stride": [0, 1]}, "stride and dilation >= 1"),
    "padding": ({"padding": [0, -1]}, "padding >= 0"),
    "dilation": ({"dilation": [3, 1]}, r"at least the 7 pixels that a filter spans, got 5 \+ 2\*0"),
    "empty image": ({"x": torch.randn(1, 6, 0, 5), "padding": [3, 3]}, "image, kernel"),
    "float64": ({"x": torch.randn(1, 6, 5, 5).double()}, "got torch.float64"),
    "int32": ({"x": torch.ones(1, 6, 5, 5, dtype=torch.int32)}, "x of uint8, float32"),
    "float and x_scale": (U8, "no quantization parameters with float x"),
    "uint8 alone": ({"x": u8(1, 6, 5, 5)}, "x_scale and x_zero_point with uint8 x"),
    "zero scale": ({"x": u8(1, 6, 5, 5), **U8, "x_scale": 0.0}, "finite x_scale above 0"),
    "nan scale": ({"x": u8(1, 6, 5, 5), **U8, "x_scale": float("nan")}, "finite x_scale"),
    "zero point": ({"x": u8(1, 6, 5, 5), **U8, "x_zero_point": 256}, "x_zero_point in 0..255"),
    "half of y": ({"x": u8(1, 6, 5, 5), **U8, "y_scale": 1.0}, "y_scale and y_zero_point together"),
}


@pytest.mark.parametrize("name", CONV)
@pytest.mark.parametrize("op", ["conv2d", "sparse_conv2d"])
@pytest.mark.parametrize("fake", [False, True], ids=["real", "fake"])
def test_convolutions_refuse(name: str, op: str, fake: bool) -> None:
    changes, message = CONV[name]
    args, kwargs = conv_call(**changes)
    if fake:
        mode = FakeTensorMode()
        args = tuple(mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for a in args)
    with pytest.raises(UnsupportedShape, match=message) as caught:
        getattr(OPS, op)(*args, **kwargs)
    starts = (
        f"expected in ternary_ops.{op} ",
        "expected at least the 7 pixels that a filter spans",
    )
    assert str(caught.value).startswith(starts)
    assert "\n  " in str(caught.value), "says what to do"


LINEAR: dict[str, tuple[tuple[Any, ...], dict[str, Any], str]] = {
    "features": (
        (torch.randn(2, 9), u8(3, 2), torch.ones(3)),
        {},
        r"codes \[N, 3\] for x \[\.\.\., K=9\]",
    ),
    "scalar": ((torch.tensor(1.0), u8(3, 2), torch.ones(3)), {}, "got a scalar"),
    "codes rank": (
        (torch.randn(2, 9), u8(3, 1, 3), torch.ones(3)),
        {},
        r"codes \[N, ceil\(K/4\)\]",
    ),
    "float and y_scale": (
        (torch.randn(2, 8), u8(3, 2), torch.ones(3)),
        {**U8, "y_scale": 1.0, "y_zero_point": 0},
        "no y_scale and y_zero_point with float x",
    ),
    "float and half of x": (
        (torch.randn(2, 8), u8(3, 2), torch.ones(3)),
        {"x_scale": 1.0},
        "x_scale and x_zero_point together",
    ),
    "float and zero scale": (
        (torch.randn(2, 8), u8(3, 2), torch.ones(3)),
        {**U8, "x_scale": 0.0},
        "finite x_scale above 0",
    ),
    "scale rank": (
        (torch.randn(2, 8), u8(3, 2), torch.ones(3, 1)),
        {},
        r"got torch.float32 \[3, 1\]",
    ),
}


@pytest.mark.parametrize("name", LINEAR)
def test_linear_refuses(name: str) -> None:
    args, kwargs, message = LINEAR[name]
    with pytest.raises(UnsupportedShape, match=message):
        OPS.linear(*args, **kwargs)
    on_meta = [a.to("meta") for a in args]
    with pytest.raises(UnsupportedShape, match=message):
        OPS.linear(*on_meta, **kwargs)


def test_invalid_codes_are_refused_wherever_they_are_packed() -> None:
    codes = torch.from_numpy(tops.ops.codes.pack_codes(np.ones((3, 9), np.int8)))
    bad, padding = codes.clone(), codes.clone()
    bad[1, 1] = 0b01_10_01_01
    padding[2, 2] = 0b01_01
    x, scale = torch.randn(2, 9), torch.ones(3)
    for broken, message in (
        (bad, r"10 at \(1, (0, 0, )?6\)"),
        (padding, r"padding at \(2, (0, 0, )?9\)"),
    ):
        for call in (
            lambda c: OPS.prepack(c, "dense", 9),
            lambda c: OPS.prepack(c, "sparse", 9, 1, True),
            lambda c: OPS.linear(x, c, scale),
            lambda c: OPS.linear(u8(2, 9), c, scale, **U8),
            lambda c: OPS.conv2d(x[:, :, None, None], c[:, None, None], scale),
            lambda c: OPS.sparse_conv2d(u8(2, 9, 1, 1), c[:, None, None], scale, **U8),
        ):
            with pytest.raises(BadWeights, match=message):
                call(broken)
            call(codes)


def test_packed_weights_of_another_layer_are_refused() -> None:
    args, kwargs = conv_call(x=u8(1, 6, 5, 5), **U8)
    codes = args[1]
    want = OPS.conv2d(*args, **kwargs)
    good = OPS.prepack(codes, "dense", 6, 2)
    assert torch.equal(OPS.conv2d(*args, **kwargs, packed=good), want)
    wrong = {
        "other channels": OPS.prepack(codes, "dense", 3, 1),
        "other filters": OPS.prepack(torch.cat([codes, codes]), "dense", 6, 2),
        "other taps": OPS.prepack(codes[:, :2].contiguous(), "dense", 6, 2),
        "for floats": OPS.prepack(codes, "dense", 6, 2, True),
        "truncated": good[:-1],
        "noise": u8(500),
        "empty": good[:0],
        "strided": torch.stack([good, good], 1)[:, 0],
        "float": good.float(),
        "matrix": good[None],
    }
    for name, packed in wrong.items():
        with pytest.raises(TernaryOpsError):
            pytest.fail(f"{name}: {OPS.conv2d(*args, **kwargs, packed=packed)}")


def test_prepack_refuses() -> None:
    codes = conv_call()[0][1]
    for args, message in (
        ((codes, "thick", 6, 2), "got 'thick'"),
        ((codes, "dense", 9, 2), "groups=2, in_channels=9"),
        ((codes, "dense", 10, 2), r"codes \[\.\.\., 2\] for 10 channels"),
        ((codes[0], "dense", 6, 2), "2 or 4 axes"),
        ((codes.int(), "dense", 6, 2), "uint8, int8 or float32"),
    ):
        with pytest.raises(UnsupportedShape, match=message):
            OPS.prepack(*args)
    wide = torch.ones(1, 70000, dtype=torch.int8)
    with pytest.raises(UnsupportedShape, match="overflow int32"):
        OPS.prepack(wide, "dense", 70000)


def test_blocks_refuse() -> None:
    weight = torch.randn(6, 6, 3, 3)
    blocks = tops.ops.blocks.from_dense(weight, (2, 3))
    x = torch.randn(1, 6, 5, 5)

    def run(**changes: Any) -> torch.Tensor:
        return tops.ops.block_sparse_conv2d(x, blocks._replace(**changes), 6, 3)

    run()
    col = blocks.col_indices
    for bad, message in (
        (col + 1, "18 at 17"),
        (col - 1, "-1 at 0"),
        (col.flip(0), "that rise within a row"),
    ):
        with pytest.raises(BadWeights, match=message):
            run(col_indices=bad)
    with pytest.raises(BadWeights, match="crow_indices that rise from 0 to 54"):
        run(crow_indices=blocks.crow_indices.flip(0))
    with pytest.raises(UnsupportedShape, match="indices of int32 or int64"):
        run(col_indices=col.float())
    with pytest.raises(UnsupportedShape, match=r"crow_indices \[4\]"):
        run(crow_indices=blocks.crow_indices[:-1])
    with pytest.raises(UnsupportedShape, match=r"values \[nnz, N, M\]"):
        run(values=blocks.values[0])
    with pytest.raises(UnsupportedShape, match="float dtype"):
        tops.ops.block_sparse_conv2d(u8(1, 6, 5, 5), blocks, 6, 3)
    with pytest.raises(UnsupportedShape, match="torch.sparse_bsr"):
        tops.ops.blocks.from_bsr(weight)
    with pytest.raises(UnsupportedShape, match="sides of blocks >= 1"):
        tops.ops.blocks.from_dense(weight, (0, 3))


def on_cuda(op: str, *args: Any, **named: Any) -> Any:
    """What the dispatcher would run on a CUDA device: there is none here."""
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
    return getattr(OPS, op).default.redispatch(keys, *args, **named)


GPU_OPS = ["conv2d", "sparse_conv2d", "block_sparse_conv2d", "linear", "prepack", "sr_gate", "esa"]


@pytest.mark.parametrize("op", [*GPU_OPS, "hf_attention", "attention", "layer_norm_codes"])
def test_cuda_without_triton_says_what_to_install(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    for name in [n for n in sys.modules if n.startswith("ternary_ops.kernels.")]:
        monkeypatch.delitem(sys.modules, name)
    image = torch.randn(1, 4, 16, 16)
    weights = [torch.randn(4, 4, k, k) for k in (1, 1, 3, 3, 1)]
    biases = [torch.randn(4)] * 5
    args: dict[str, tuple[Any, ...]] = {
        "conv2d": (image, u8(3, 1, 1, 1), torch.ones(3)),
        "sparse_conv2d": (image, u8(3, 1, 1, 1), torch.ones(3)),
        "block_sparse_conv2d": (
            *(image, *tops.ops.blocks.from_dense(torch.randn(2, 4, 1, 1), (1, 1))),
            *(2, [1, 1]),
        ),
        "linear": (torch.randn(2, 4), u8(3, 1), torch.ones(3)),
        "prepack": (torch.zeros(3, 1, dtype=torch.uint8), "dense", 4),
        "sr_gate": (image, image),
        "esa": (image, weights, biases),
        "hf_attention": (image, [weights[3]] * 2, biases[:2], [0.1]),
        "attention": (image, image, image),
        "layer_norm_codes": (image, torch.ones(16), None, 1e-5, 0.1, 128),
    }
    named = {"scale": 0.5} if op == "attention" else {}
    with pytest.raises(UnsupportedDevice, match=r"pip install 'ternary-ops\[gpu\]'"):
        on_cuda(op, *args[op], **named)


def test_wrong_arguments_leave_inputs_alone() -> None:
    args, kwargs = conv_call(scale=torch.ones(3))
    before = [a.clone() if isinstance(a, torch.Tensor) else a for a in args]
    with pytest.raises(UnsupportedShape):
        OPS.conv2d(*args, **kwargs)
    for a, b in zip(args, before, strict=True):
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="no attribute 'conv3d'"):
        tops.ops.conv3d  # noqa: B018


@pytest.mark.parametrize("rows", [1, 9])
def test_linear_refuses_packed_weights_of_another_layer(rows: int) -> None:
    codes = torch.from_numpy(tops.ops.codes.pack_codes(np.ones((5, 9), np.int8)))
    x, scale = u8(rows, 9), torch.ones(5)
    good = OPS.prepack(codes, "dense", 9)
    want = OPS.linear(x, codes, scale, **U8)
    assert torch.equal(OPS.linear(x, codes, scale, **U8, packed=good), want)
    rows_alone = OPS.prepack(codes, "dense", 9, 1, True)  # weight-only, and good for both
    assert torch.equal(OPS.linear(x, codes, scale, **U8, packed=rows_alone), want)
    wrong = {
        "other outputs": OPS.prepack(torch.cat([codes, codes]), "dense", 9),
        "other inputs": OPS.prepack(codes[:, :2].contiguous(), "dense", 8),
        "int8": OPS.prepack(torch.ones(5, 12, dtype=torch.int8), "dense", 9),
        "for floats": OPS.prepack(codes, "sparse", 9, 1, True),
        "truncated": good[:-8],
        "header only": good[:64],
        "empty": good[:0],
    }
    for name, packed in wrong.items():
        with pytest.raises(TernaryOpsError):
            pytest.fail(f"{name}: {OPS.linear(x, codes, scale, **U8, packed=packed)}")
