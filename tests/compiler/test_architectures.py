# SPDX-License-Identifier: Apache-2.0
"""Networks as torchvision writes them compile and compute what PyTorch does."""

from __future__ import annotations

import fake_quant
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from architectures import NETWORKS
from small_networks import error, images, ready
from torch import Tensor, nn

import ternary_ops as tops
from ternary_ops import runtime
from ternary_ops.errors import UnsupportedModel, UnsupportedShape
from ternary_ops.program.interpret import simulate
from ternary_ops.runtime import Program


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


def test_a_norm_of_a_flattened_image_fixes_its_size() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.LayerNorm(4 * 6 * 5)).eval()
    program = tops.compile(model, images(2, 3, 8, 7))
    assert error(program, model, images(3, 3, 8, 7, seed=1)) < 1e-5
    with pytest.raises(UnsupportedShape, match="120"):
        program(images(1, 3, 7, 7).numpy())
    with pytest.raises(UnsupportedModel, match="LayerNorm"):
        tops.compile(nn.Sequential(nn.Conv2d(3, 4, 3), nn.LayerNorm((6, 5))), images(1, 3, 8, 7))


def test_functions_of_parameters_that_are_no_layers_are_refused() -> None:
    class Odd(nn.Module):
        def __init__(self, what: str) -> None:
            super().__init__()
            self.what, self.w = what, nn.Parameter(torch.randn(6, 6))

        def forward(self, x: Tensor) -> Tensor:
            if self.what == "left":
                return self.w @ x.t()
            if self.what == "two":
                return x @ x.t()
            if self.what == "sizes":
                return F.linear(x, self.w.reshape(x.shape[1], 6))
            if self.what == "changed":
                return x @ self.w.mul_(2)
            if self.what == "groups":
                image = x[:, :, None, None]
                return F.conv2d(image, self.w[:, :1, None, None], groups=image.size(1))
            return torch.addmm(x, x, self.w, beta=2)

    for what in ("sizes", "groups"):  # known once the example's sizes are
        model, x = Odd(what), images(4, 6)
        assert error(tops.compile(model, x), model, x) < 1e-5
    for what in ("left", "two", "scaled"):
        with pytest.raises(UnsupportedModel, match="without"):
            tops.compile(Odd(what), images(6, 6))
    with pytest.raises(UnsupportedModel):  # its weight grows at every call
        tops.compile(Odd("changed"), images(6, 6))
