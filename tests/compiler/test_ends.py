# SPDX-License-Identifier: Apache-2.0
"""First and last layers: every policy trains, compiles, and gives PyTorch's results."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import nn

import ternary_ops as tops
from ternary_ops.models import digits_resnet, mobilenet_v2

KINDS = ("ternary", "int8", "float")


def trained(model: nn.Module, x: torch.Tensor, rules: dict[str, str]) -> nn.Module:
    """A few steps through all phases."""
    given = {
        name: tops.TernaryConfig(kind, zeros=0.5 * (kind == "ternary"))
        for name, kind in rules.items()
    }
    tops.quantize_(model, tops.plan(model, tops.TernaryConfig(zeros=0.5), rules=given))
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    pruner = tops.prune.Pruner(model, total_steps=10, optimizer=optimizer)
    for _ in range(10):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
        pruner.step()
    tops.calibrate(model, [x])
    return model.eval()


@pytest.mark.parametrize("first, last", list(itertools.product(KINDS, KINDS)))
def test_every_policy_for_the_first_and_the_last_layer(first: str, last: str) -> None:
    torch.manual_seed(0)
    model, x = digits_resnet(8), torch.randn(32, 1, 8, 8)
    model = trained(model, x, {"conv1": first, "fc": last})
    program = tops.compile(model, x[:1])
    kinds = {w.name: w.kind for w in program.graph.weights}
    assert (kinds["conv1"], kinds["fc"]) == (first, last)
    assert {kind for name, kind in kinds.items() if name not in ("conv1", "fc")} == {"ternary"}
    with torch.no_grad():
        expected = model(x).numpy()
    found = program(x.numpy())
    # Sums of skip connections are rounded to 8 bits in the program only.
    assert np.abs(found - expected).max() < 0.15 * np.abs(expected).max()
    assert (found.argmax(1) == expected.argmax(1)).mean() > 0.9


def test_depthwise_filters_never_become_empty() -> None:
    """Nine weights a filter at 90 % zeros: each keeps at least one (MobileNetV2's layers)."""
    torch.manual_seed(0)
    model = mobilenet_v2(num_classes=10)
    depthwise = {n: m for n, m in model.named_modules() if getattr(m, "groups", 1) > 1}
    config = tops.TernaryConfig(zeros=0.9, pattern="element")
    tops.quantize_(model, tops.plan(model, config, rules=dict.fromkeys(depthwise, config)))
    tops.prune.Pruner(model, "one_shot", 1).step()
    assert len(depthwise) == 17
    for name in depthwise:
        layer = model.get_submodule(name)
        codes, scale = layer.ternary()
        assert bool((codes.flatten(1) != 0).any(1).all()) and bool((scale > 0).all()), name
