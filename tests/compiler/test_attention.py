# SPDX-License-Identifier: Apache-2.0
"""Reductions along any axes, constants, products of two values: attention and gates compile."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from attention_networks import ANY, SIZED, sample
from torch import nn

import ternary_ops as tops

NETWORKS = ANY | SIZED


def agree(model: nn.Module, program: tops.runtime.Program, x: torch.Tensor) -> None:
    with torch.no_grad():
        want = model(x).numpy()
    got = program(x.numpy())
    assert got.shape == want.shape
    assert np.ptp(want) > 0
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize("name", NETWORKS)
def test_floats_equal_pytorch(name: str) -> None:
    torch.manual_seed(1)
    model = NETWORKS[name]().eval()
    program = tops.compile(model, sample(0))
    agree(model, program, sample(1, 3))
    if name in ANY:
        agree(model, program, sample(2, 1, 7, 5))


@pytest.mark.parametrize("name", ["split", "factors", "attention", "crossed", "two pools"])
def test_layers_around_stay_integers(name: str) -> None:
    torch.manual_seed(1)
    model = nn.Sequential(NETWORKS[name]()).eval()
    tops.quantize_(model, tops.plan(model, tops.TernaryConfig("int8")))
    tops.calibrate(model, [sample(3, 8)])
    program = tops.compile(model, sample(0))
    nodes = list(zip(program.graph.nodes, program.graph.values, strict=True))
    for node, _ in nodes:
        if node.operator.is_layer and program.graph.weight(node).kind == "int8":
            assert program.graph.values[node.inputs[0]].y is not None
    if name == "split":  # sums of groups are integers between layers
        first = next(value for node, value in nodes if node.op == "add")
        assert first.y is not None
    x = sample(4, 3)
    with torch.no_grad():
        want = model(x).numpy()
    assert np.linalg.norm(program(x.numpy()) - want) < 0.05 * np.linalg.norm(want)


def test_attention_moves_nothing_between_its_products() -> None:
    program = tops.compile(SIZED["attention"]().eval(), sample(0))
    made = [node.op for node in program.graph.nodes]
    begin = made.index("concat")
    assert "rearrange" not in made[begin:]
    assert not {"matmul", "softmax", "add"} & set(made[begin:])
    attention = next(n for n in program.graph.nodes if n.op == "attention")
    said = attention.operator.without_defaults(attention.attrs)
    assert said == {"heads": 3, "scale": 0.5, "tokens": 49}
    assert len(attention.inputs) == 4  # with the bias


@pytest.mark.parametrize("name", ["attention", "fused attention", "heads innermost"])
def test_attention_is_one_operator_wherever_its_heads_lie(name: str) -> None:
    made = [node.op for node in tops.compile(SIZED[name]().eval(), sample(0)).graph.nodes]
    assert made.count("attention") == 1 and not {"matmul", "softmax"} & set(made)


def test_shares_that_something_else_reads_stay_a_value() -> None:
    """The mean over heads of the weights of attention, beside its output."""
    model = Both().eval()
    program = tops.compile(model, sample(0))
    assert {"matmul", "softmax"} <= {node.op for node in program.graph.nodes}
    agree(model, program, sample(1, 3))


class Both(nn.Module):
    """An output of attention plus the largest of its weights, for each token."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.qkv = nn.Conv2d(3, 12, 3, padding=1), nn.Linear(12, 36)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x).flatten(2).transpose(1, 2)
        n, length, c = x.shape
        q, k, v = self.qkv(x).reshape(n, length, 3, 3, 4).permute(2, 0, 3, 1, 4).unbind(0)
        shares = (q @ k.transpose(-2, -1)).softmax(-1)
        y = (shares @ v).transpose(1, 2).reshape(n, length, c)
        return y + shares.amax((1, 3)).unsqueeze(2)
