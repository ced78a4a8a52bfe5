# SPDX-License-Identifier: Apache-2.0
"""Networks as torchvision writes them compile and compute what PyTorch does."""

from __future__ import annotations

import fake_quant
import numpy as np
import pytest
import torch
from architectures import NETWORKS
from networks import images, ready
from torch import Tensor, nn

import ternary_ops as tops
from ternary_ops import runtime
from ternary_ops.engine.simulate import simulate
from ternary_ops.runtime import Program


def error(program: Program, model: nn.Module, x: Tensor) -> float:
    """Relative to how much the output varies."""
    with torch.no_grad():
        expected = model(x.clone()).numpy()
    got = program(x.numpy())
    assert got.shape == expected.shape
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected - expected.mean()))


@pytest.mark.parametrize("name", NETWORKS)
def test_float(name: str) -> None:
    make, shape, other = NETWORKS[name]
    model = make().train()
    with torch.no_grad():
        for _ in range(3):
            model(images(*shape))
    program = tops.compile(model.eval(), images(*shape))
    assert all(value.y is None for value in program.graph.values)
    for size in (shape, other):
        assert error(program, model, images(*size, seed=2)) < 1e-5


@pytest.mark.parametrize("name", NETWORKS)
def test_quantized_equals_the_fake_quantized_network_at_every_node(name: str) -> None:
    make, shape, other = NETWORKS[name]
    model = ready(make(), images(*shape), weights="int8")
    program = tops.compile(model, images(*shape))
    touched = _floats_before(program)
    for size in (shape, other):
        x = images(*size, seed=1)
        oracle, fake = simulate(program.graph, x.numpy()), fake_quant.run(program.graph, x.numpy())
        for isa in runtime.available_isas():
            with runtime.force_isa(isa):
                values = program.trace(x.numpy())
            for i, (a, b, c) in enumerate(zip(values, oracle, fake, strict=True)):
                where = f"{isa} node {i} {program.graph.nodes[i].op}"
                assert a.dtype == b.dtype and a.shape == b.shape == tuple(c.shape), where
                if a.dtype == np.uint8 and not touched[i]:
                    np.testing.assert_array_equal(a, b, where)
                    np.testing.assert_array_equal(a, c.numpy(), where)
                elif a.dtype == np.uint8:  # a float sum may round to the next code
                    assert np.abs(a.astype(int) - b).max() <= 1, where
                elif not touched[i]:
                    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5, err_msg=where)
        found = error(program, model, x)
        assert found < 0.03, found


def _floats_before(program: Program) -> list[bool]:
    """Per node: could a float sum have moved its codes?"""
    moved: list[bool] = []
    for node in program.graph.nodes:
        sums = node.inputs and node.op != "quantize"
        floats = sums and any(program.graph.values[j].y is None for j in node.inputs)
        moved.append(bool(floats) or any(moved[j] for j in node.inputs))
    return moved
