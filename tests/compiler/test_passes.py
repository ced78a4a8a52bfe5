# SPDX-License-Identifier: Apache-2.0
"""The passes of the compiler: their tables hold together, and a new fusion is one function."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest
import torch
from scripts import script
from small_networks import error, images
from torch import Tensor, nn

import ternary_ops as tops
from ternary_ops.compiler import fuse
from ternary_ops.compiler.ops import ROWS, supported
from ternary_ops.compiler.step import Step
from ternary_ops.graph import torch_ops
from ternary_ops.graph.torch_op import TorchOp


def test_every_spelling_belongs_to_one_operator() -> None:
    known = [v for v in vars(torch_ops).values() if isinstance(v, TorchOp)]
    spelled = Counter(s for op in known for s in {*op.calls, *op.modules, *op.named})
    assert not [spelling for spelling, count in spelled.items() if count > 1]
    tables = torch_ops.BY_CALL, torch_ops.BY_MODULE, torch_ops.BY_NAME
    assert len(spelled) == sum(map(len, tables))


def test_what_is_supported_is_said_of_every_row() -> None:
    text = supported()
    for op, row in ROWS.items():
        assert (op.name if row.text is None else row.text) in text


def positive_anyway(step: Step) -> Sequence[Step]:
    """relu(softplus(x)) is softplus(x)."""
    if step.op == "clamp" and step.clamp == (0.0, None):
        (inner,) = step.inputs
        if inner.attrs.get("fn") == "softplus":
            fuse.hand_over(step, inner)
    return ()


def test_a_fusion_is_one_function(monkeypatch: pytest.MonkeyPatch) -> None:
    class Positive(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 5, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            return torch.relu(nn.functional.softplus(y)) + y

    model, x = Positive().eval(), images(2, 3, 7, 8)
    before = tops.compile(model, x)
    monkeypatch.setattr(fuse, "FUSIONS", (positive_anyway, *fuse.FUSIONS))
    after = tops.compile(model, x)
    assert len(after.graph.nodes) == len(before.graph.nodes) - 1
    assert error(after, model, x) < 1e-5


def test_a_gate_that_is_spread_by_hand() -> None:
    """A convolution of one pixel is no gate of a whole map, though expand_as gives it that size."""

    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.squeeze = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            gate = torch.sigmoid(self.squeeze(x.mean((2, 3), keepdim=True)))
            return x * gate.expand_as(x)

    model, x = Gated().eval(), images(2, 3, 9, 8)
    assert error(tops.compile(model, x), model, images(1, 3, 12, 7, seed=1)) < 1e-5


def test_a_convolution_seldom_comes_back_to_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """A third of the returns that there were when matchers asked each node in turn."""
    bench = script("compile_walk", monkeypatch)
    rows = bench.read_rows(bench.RESULTS / "compile_walk.csv")
    before = next(int(row["returns"]) for row in rows if row["what"] == bench.LAYER)
    found = bench.walk(everything=False).row()
    assert 10 < found["files"] and 3 * found["returns"] <= before, found
