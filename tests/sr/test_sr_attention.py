# SPDX-License-Identifier: Apache-2.0
"""Operators of super-resolution attention: references, gradients, compilation, fused modules."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from cases import esa, gate_layers, hf_attention, sr_gate
from torch import Tensor, nn

import ternary_ops as tops
from ternary_ops import ops, reference, runtime, sr
from ternary_ops.errors import BadConfig, UnsupportedDevice, UnsupportedShape
from ternary_ops.sr.models.attention import ESA
from ternary_ops.sr.models.fmen import HFAB

ISAS = runtime.available_isas()


def close(found: Tensor, wanted: Any, bound: float = 2e-6) -> None:
    """Within bound of the reference, relative to its largest value."""
    assert found.isfinite().all()
    off = np.abs(found.detach().double().numpy() - wanted).max()
    assert off <= bound * max(1.0, np.abs(wanted).max())


def tensors(arrays: Any) -> Any:
    return [None if a is None else torch.from_numpy(a) for a in arrays]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("shape", sr_gate.CASE.shapes, ids=str)
def test_gate_is_its_reference(isa: str, shape: sr_gate.GateShape) -> None:
    arrays = shape.operands()
    wanted, operands = reference.sr_gate(*arrays, **shape.options), tensors(arrays)
    with runtime.force_isa(isa):
        made = ops.sr_gate(*operands, **shape.options)
        close(made, wanted)
        with runtime.num_threads(2):
            assert torch.equal(ops.sr_gate(*operands, **shape.options), made)


def test_gates_of_crops_are_crops_of_the_gate() -> None:
    x, gate = torch.randn(2, 1, 4, 30, 37)
    low = torch.randn(1, 4, 5, 6)
    whole = ops.sr_gate(x, gate, low)
    for top, left, h, w in ((0, 0, 7, 9), (11, 3, 19, 34), (29, 36, 1, 1)):
        part = np.s_[:, :, top : top + h, left : left + w]
        crop = ops.sr_gate(x[part], gate[part], low, image=(30, 37), origin=(top, left))
        assert torch.equal(crop, whole[part])


def test_extreme_gates_saturate() -> None:
    gate = torch.tensor([[[[-1e30, -200.0, 0.0, 200.0, 1e30]]]])
    made = ops.sr_gate(torch.full_like(gate, 2.0), gate)
    wanted = torch.tensor([[[[0.0, 0.0, 1.0, 2.0, 2.0]]]])
    torch.testing.assert_close(made, wanted, rtol=0, atol=1e-30)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_once(dtype: torch.dtype) -> None:
    x, gate = (torch.randn(1, 3, 8, 8).to(dtype) for _ in range(2))
    made = ops.sr_gate(x, gate)
    assert made.dtype == dtype
    wanted = ops.sr_gate(x.float(), gate.float()).to(dtype)
    assert torch.equal(made, wanted)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("shape", hf_attention.CASE.shapes, ids=str)
def test_hf_attention_is_its_reference(isa: str, shape: hf_attention.HfShape) -> None:
    arrays = gate_layers.layers(shape.layers)
    x = torch.randn(shape.x)
    with runtime.force_isa(isa):
        close(
            ops.hf_attention(x, *map(tensors, arrays), shape.slopes),
            reference.hf_attention(x.numpy(), *arrays, shape.slopes),
        )


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("shape", esa.CASE.shapes, ids=str)
def test_esa_is_its_reference(isa: str, shape: esa.EsaShape) -> None:
    arrays = gate_layers.layers(shape.layers)
    x = torch.randn(shape.x)
    with runtime.force_isa(isa):
        close(ops.esa(x, *map(tensors, arrays)), reference.esa(x.numpy(), *arrays), 1e-5)


def esa_layers(channels: int, inner: int, count: int) -> tuple[list[Tensor], list[Tensor]]:
    shape = esa.EsaShape(1, channels, inner, (16, 15), count)
    weights, biases = gate_layers.layers(shape.layers)
    return tensors(weights), tensors(biases)


def hf_layers() -> tuple[list[Tensor], list[Tensor]]:
    weights, biases = gate_layers.layers([(3, 4, 3), (4, 3, 3)])
    return tensors(weights), tensors(biases)


def test_weights_changed_in_place_are_seen() -> None:
    weights, biases = hf_layers()
    x = torch.randn(1, 4, 6, 6)
    before = ops.hf_attention(x, weights, biases, [0.1])
    weights[0].neg_()
    after = ops.hf_attention(x, weights, biases, [0.1])
    assert not torch.equal(before, after)
    weights[0].neg_()
    assert torch.equal(ops.hf_attention(x, weights, biases, [0.1]), before)


def calls() -> list[tuple[Any, tuple[Any, ...], dict[str, Any]]]:
    torch.manual_seed(3)
    weights, biases = hf_layers()
    esa_weights = esa_layers(4, 3, 1)
    x = torch.randn(1, 4, 16, 15)
    named = {"low": torch.randn(1, 4, 2, 3), "residual": torch.randn_like(x), "offset": 0.5}
    t = torch.ops.ternary_ops
    return [
        (t.sr_gate.default, (x, torch.randn_like(x)), named),
        (t.hf_attention.default, (x, weights, biases, [0.1]), {}),
        (t.esa.default, (x, *esa_weights), {}),
    ]


def grown(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone().requires_grad_()
    return [grown(v) for v in value] if isinstance(value, list) else value


@pytest.mark.parametrize("index", range(3))
def test_opcheck_gradients_and_compile(index: int) -> None:
    op, args, kwargs = calls()[index]
    torch.library.opcheck(op, args, kwargs)
    args = tuple(grown(a) for a in args)
    kwargs = {k: grown(v) for k, v in kwargs.items()}
    torch.library.opcheck(op, args, kwargs)
    flat = [t for t in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)]

    def plain(value: Any) -> Any:
        return torch.utils._pytree.tree_map(
            lambda t: t.detach() if isinstance(t, Tensor) else t, value
        )

    with torch.no_grad():
        wanted = op(*args, **kwargs)
    made = op(*args, **kwargs)
    torch.testing.assert_close(made, wanted, rtol=1e-5, atol=1e-5)
    assert all(g is not None for g in torch.autograd.grad(made.square().sum(), flat))
    compiled = torch.compile(op, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*plain(args), **plain(kwargs)), wanted)


def test_gradients_are_those_of_finite_differences() -> None:
    from ternary_ops.ops import _attention, _sr_gate

    x, gate, residual = (torch.randn(1, 2, 3, 4).double().requires_grad_() for _ in range(3))
    low = torch.randn(1, 2, 2, 2).double().requires_grad_()

    def gated(*operands: Tensor) -> Tensor:
        total = operands[1] + _sr_gate.stretched(operands[2], (6, 8), (2, 3), (3, 4))
        return operands[0] * (torch.sigmoid(total) - 0.5) + operands[3]

    assert torch.autograd.gradcheck(gated, (x, gate, low, residual), atol=1e-4)
    single = [t.detach().float().requires_grad_() for t in (x, gate, low, residual)]
    made = _sr_gate.composed(*single, offset=0.5, image=(6, 8), origin=(2, 3))
    torch.testing.assert_close(made.double(), gated(x, gate, low, residual), rtol=1e-5, atol=1e-5)
    assert _attention.composed_hf(*calls()[1][1]).shape == (1, 4, 16, 15)


def test_what_does_not_fit_is_refused() -> None:
    x = torch.randn(1, 4, 16, 16)
    weights, biases = hf_layers()
    wrong: list[tuple[Any, str]] = [
        (lambda: ops.sr_gate(x, x[:, :2]), "gate"),
        (lambda: ops.sr_gate(x[0], x[0]), "N, C, H, W"),
        (lambda: ops.sr_gate(x, x.half()), "gate"),
        (lambda: ops.sr_gate(x, x, x[:, :1]), "low"),
        (lambda: ops.sr_gate(x, x, image=(8, 8)), "lies in its image"),
        (lambda: ops.sr_gate(x, x, image=(20, 20), origin=(5, 0)), "lies in its image"),
        (lambda: ops.sr_gate(x.int(), x.int()), "float"),
        (lambda: ops.hf_attention(x, weights, biases, []), "slope"),
        (lambda: ops.hf_attention(x, weights[::-1], biases[::-1], [0.1]), "weight 0"),
        (lambda: ops.hf_attention(x, weights[:1], biases[:1], []), "last layer"),
        (lambda: ops.esa(x, weights, biases), "at least 5"),
        (lambda: ops.esa(x[:, :, :14], *esa_layers(4, 3, 1)), "15 x 15"),
    ]
    for call, words in wrong:
        with pytest.raises(UnsupportedShape, match=words):
            call()
    with pytest.raises((UnsupportedDevice, UnsupportedShape, NotImplementedError)):
        torch.ops.ternary_ops.sr_gate(x.to_sparse(), x)
    assert ops.sr_gate(x[:0], x[:0]).shape == (0, 4, 16, 16)


@pytest.mark.parametrize("full", [True, False])
def test_a_fused_esa_is_the_module(full: bool) -> None:
    block = ESA(12, 4, full).eval()
    network = nn.Sequential(block, nn.Conv2d(12, 3, 3))
    x = torch.randn(1, 12, 31, 40)
    with torch.no_grad():
        wanted = network(x)
        assert sr.fuse_attention_(network) == 1
        torch.testing.assert_close(network(x), wanted, rtol=1e-5, atol=1e-5)
    program = tops.compile(copy.deepcopy(network), x)
    torch.testing.assert_close(torch.from_numpy(program(x.numpy())), wanted, rtol=1e-5, atol=1e-5)
    seen: list[int] = []
    block.conv3.register_forward_hook(lambda *a: seen.append(1))
    network(x)
    assert seen == [1]


@pytest.mark.parametrize("blocks", [0, 1, 2])
def test_a_fused_hfab_is_the_module(blocks: int) -> None:
    block = HFAB(10, 4, blocks, train=False)
    x = torch.randn(1, 10, 13, 14)
    with torch.no_grad():
        wanted = block(x)
        sr.fuse_attention_(block)
        torch.testing.assert_close(block(x), wanted, rtol=1e-5, atol=1e-5)
    block(x).sum().backward()
    assert block.squeeze.weight.grad is not None
    with pytest.raises(BadConfig, match="Call sr.fold first"):
        sr.fuse_attention_(HFAB(10, 4, 1, train=True))


def test_a_quantized_fused_network_computes_with_its_codes() -> None:
    torch.manual_seed(0)
    network = sr.FMEN(2, 8, 5, 4, 1, [0, 1]).eval()
    sr.fuse_attention_(network)
    x = torch.rand(1, 3, 12, 12) * 255
    with torch.no_grad():
        dense = network(x)
        tops.quantize_(network, tops.plan(network, tops.TernaryConfig("ternary", zeros=0.0)))
        assert not torch.equal(network.eval()(x), dense)
