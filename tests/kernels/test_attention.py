# SPDX-License-Identifier: Apache-2.0
"""The attention kernels of super-resolution networks under the interpreter."""

from __future__ import annotations

from typing import Any

import interpreter
import numpy as np
import pytest
import torch
from torch import Tensor

from ternary_ops import reference
from ternary_ops.errors import UnsupportedShape
from ternary_ops.ops._attention import _gpu_esa, _gpu_hf
from ternary_ops.ops._sr_gate import _gpu as gate_op

BOUNDS = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}
dtypes = pytest.mark.parametrize("dtype", BOUNDS)


def close(made: Tensor, wanted: Any, dtype: torch.dtype) -> None:
    assert made.dtype == dtype and made.isfinite().all()
    off = np.abs(made.double().numpy() - wanted).max()
    assert off <= BOUNDS[dtype] * max(1.0, np.abs(wanted).max())


def arrays(tensors: list[Tensor]) -> list[Any]:
    return [t.float().numpy() for t in tensors]


@dtypes
@pytest.mark.parametrize(
    ("shape", "low", "options"),
    [
        ((2, 3, 7, 33), None, {"offset": 0.5}),
        ((1, 2, 45, 31), (5, 4), {}),
        ((1, 2, 9, 40), (5, 9), {"image": (50, 100), "origin": (41, 13)}),
        ((1, 1, 1, 1), (1, 1), {"offset": -0.25}),
    ],
)
@pytest.mark.parametrize("with_residual", [False, True])
def test_gate(
    shape: Any, low: Any, options: dict[str, Any], with_residual: bool, dtype: torch.dtype
) -> None:
    x, gate, rest = (torch.randn(shape).to(dtype) for _ in range(3))
    small = None if low is None else torch.randn(*shape[:2], *low).to(dtype)
    residual = rest if with_residual else None
    made = gate_op(x, gate, small, residual, **options)
    plain = [None if t is None else t.float().numpy() for t in (x, gate, small, residual)]
    close(made, reference.sr_gate(*plain, **options), dtype)


def test_gate_moves_each_map_once() -> None:
    x, gate = torch.randn(2, 1, 5, 16, 64)
    with interpreter.traffic() as moved:
        gate_op(x, gate)
    assert (moved.loaded, moved.stored) == (2 * x.nbytes, x.nbytes)


def esa_layers(channels: int, inner: int, count: int) -> tuple[list[Tensor], list[Tensor]]:
    shapes = [(inner, channels, 1), (inner, inner, 1), (inner, inner, 3)]
    shapes += [(inner, inner, 3)] * count + [(channels, inner, 1)]
    weights = [torch.randn(o, i, k, k) / (i * k * k) ** 0.5 for o, i, k in shapes]
    return weights, [torch.randn(o) for o, _, _ in shapes]


@dtypes
@pytest.mark.parametrize(
    ("channels", "inner", "count", "size"), [(10, 6, 3, (33, 40)), (20, 5, 1, (15, 15))]
)
def test_esa(channels: int, inner: int, count: int, size: Any, dtype: torch.dtype) -> None:
    weights, biases = esa_layers(channels, inner, count)
    x = torch.randn(2, channels, *size).to(dtype)
    made = _gpu_esa(x, weights, biases)
    close(made, reference.esa(x.float().numpy(), arrays(weights), arrays(biases)), dtype)


@dtypes
@pytest.mark.parametrize("layers", [2, 3, 4])
def test_hf_attention_over_several_tiles(layers: int, dtype: torch.dtype) -> None:
    sizes = [10, *[4] * (layers - 1), 10]
    pairs = list(zip(sizes[:-1], sizes[1:], strict=True))
    weights = [torch.randn(o, i, 3, 3) / (9 * i) ** 0.5 for i, o in pairs]
    biases, slopes = [torch.randn(o) for _, o in pairs], [0.1, 1.0, 0.2][: layers - 1]
    x = torch.randn(1, 10, 35, 67).to(dtype)
    made = _gpu_hf(x, weights, biases, slopes)
    wanted = reference.hf_attention(x.float().numpy(), arrays(weights), arrays(biases), slopes)
    close(made, wanted, dtype)


def test_what_has_no_kernel_is_refused() -> None:
    x = torch.randn(1, 4, 20, 20)
    weights, biases = [torch.randn(4, 4, 5, 5)] * 2, [torch.randn(4)] * 2
    with pytest.raises(UnsupportedShape, match="3 x 3"):
        _gpu_hf(x, weights, biases, [0.1])
    weights, biases = esa_layers(4, 3, 1)
    with pytest.raises(UnsupportedShape, match="kernels of 1, 1, 3 and 1"):
        _gpu_esa(x, [torch.randn(3, 4, 3, 3), *weights[1:]], biases)
    assert gate_op(x[:0], x[:0]).shape == (0, 4, 20, 20)
