# SPDX-License-Identifier: Apache-2.0
"""The cost table: interpolation, sums, and random codes at exact shares of empty quads."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import ternary_ops as tops
from ternary_ops.errors import BadConfig
from ternary_ops.models import digits_resnet
from ternary_ops.program import layer_costs
from ternary_ops.program.layer_costs import MOST_EMPTY, CostTable, LayerCost, measure
from ternary_ops.program.random_codes import Emptied
from ternary_ops.runtime import Program


@pytest.fixture(scope="module")
def program() -> Program:
    torch.manual_seed(0)
    model, x = digits_resnet(8).eval(), torch.rand(4, 1, 8, 8)
    tops.quantize_(model, tops.plan(model))
    tops.calibrate(model, [x])
    return tops.compile(model, x[:1])


def table() -> CostTable:
    steep = LayerCost({"ternary": ((0.0, 4.0), (0.5, 4.0), (0.9, 1.0)), "int8": ((0.0, 6.0),)})
    flat = LayerCost({"ternary": ((0.0, 1.0), (0.9, 1.0))})
    return CostTable("here", "avx2", 1, (1, 3, 8, 8), {"a": steep, "b": flat}, 0.5)


def test_milliseconds_between_and_beyond_what_was_measured() -> None:
    costs = table()
    assert costs.ms("a", "ternary", 0.25) == 4.0 and costs.ms("a", "int8", 0.3) == 6.0
    assert costs.ms("a", "ternary", 0.7) == pytest.approx(2.5)
    assert costs.ms("a", "ternary", 0.98) == pytest.approx(0.4)
    assert costs.ms("a", "ternary", 1.0) == pytest.approx(0.25)
    choices = {"a": ("ternary", 0.9), "b": ("ternary", 0.0)}
    assert costs.total(choices) == pytest.approx(2.5)
    assert costs.evenly("ternary", 0.9) == pytest.approx(2.5)
    with pytest.raises(BadConfig, match="none for b"):
        costs.total({"a": ("ternary", 0.9)})
    with pytest.raises(BadConfig, match="one of the kinds ternary, int8"):
        costs.ms("a", "float", 0.0)
    with pytest.raises(BadConfig, match=r"a layer of the cost table \(a, b\)"):
        costs.ms("c", "ternary", 0.0)


def test_savings_are_positive_and_in_units_of_the_whole_layer() -> None:
    found = table().savings({"a": "ternary", "b": "ternary"})
    at_most = table().ms("a", "ternary", MOST_EMPTY)
    assert found["a"] == pytest.approx((4.0 - at_most) / MOST_EMPTY, rel=1e-2)
    assert 0 < found["b"] < 0.02 * found["a"]


@pytest.mark.parametrize("kind", ["ternary", "int8"])
@pytest.mark.parametrize("share", [0.0, 0.37, 0.97])
def test_random_codes_have_exactly_that_share_empty(
    program: Program, kind: str, share: float
) -> None:
    graph = Emptied(program.graph).at(share, kind)
    before = {w.name: w for w in program.graph.weights}
    changed = [w for w in graph.weights if before[w.name].kind == "ternary"]
    assert len(changed) > 3
    for w in changed:
        lanes = np.prod(w.shape[:3]) * -(-w.shape[3] // 4)
        assert w.kind == kind and round((1 - w.density) * lanes) == round(share * lanes)
    fixed = [w for w in graph.weights if before[w.name].kind != "ternary"]
    assert fixed and all(w is before[w.name] for w in fixed)


def test_what_is_measured_falls_with_zeros_and_says_where(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layer_costs, "_SECONDS", 0.02)
    with tops.runtime.num_threads(1), tops.runtime.force_isa("scalar"):
        costs = measure(program, points=[("ternary", 0.0), ("ternary", MOST_EMPTY)])
        single = measure(program, ["layer1.0.conv1"], [("int8", 0.5)])
    assert (costs.isa, costs.threads, costs.sample) == ("scalar", 1, (1, 1, 8, 8))
    assert costs.machine and costs.others > 0
    assert set(costs.layers) == {w.name for w in program.graph.weights if w.kind == "ternary"}
    # Scalar dense loops take many times as long as three quads in a hundred.
    assert all(costs.ms(n, "ternary", 0) > costs.ms(n, "ternary", MOST_EMPTY) for n in costs.layers)
    assert set(single.layers) == {"layer1.0.conv1"} and single.others > costs.others
