# SPDX-License-Identifier: Apache-2.0
"""Criteria that a user adds: functions of what they read, and subclasses of Score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from criterion_scores import BATCHES, scores, tiny
from torch import Tensor, nn

from ternary_ops.errors import BadConfig
from ternary_ops.prune import CRITERIA, Pruner, Score, register_criterion
from ternary_ops.prune.criteria import weights_of


@pytest.fixture
def own() -> Any:
    """Whatever a test registers is gone after it."""
    known = dict(CRITERIA)
    yield register_criterion
    CRITERIA.clear()
    CRITERIA.update(known)


def test_a_criterion_of_ones_own_is_a_function_of_what_it_reads(own: Any) -> None:
    own("square", lambda w: w.square())
    own("mine", lambda g, w: (g * w).abs(), reads=("gradients", "weight"))
    own("norms", lambda x, w: (x * w).abs(), reads=("inputs", "weight"))

    def whole(model: nn.Module, batches: Sequence[Any]) -> dict[str, Tensor]:
        assert len(batches) == 2
        return {name: w.abs() for name, w in weights_of(model).items()}

    own("whole", whole, reads="batches")
    model = tiny()
    for name, other in (("mine", "snip"), ("norms", "wanda"), ("whole", "magnitude")):
        one, two = scores(name, model), scores(other, model)
        for key in one:
            torch.testing.assert_close(one[key], two[key], rtol=1e-6, atol=1e-9)


def test_a_criterion_of_ones_own_reads_training_and_resumes(own: Any) -> None:
    own("both", lambda w, g, x: (w * g * x).abs(), reads=("weight", "gradients", "inputs"))
    with pytest.raises(BadConfig, match="an optimizer for criterion 'both'"):
        Pruner(tiny(), "agp", 5, 0.5, criterion="both")
    model = tiny()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    pruner = Pruner(model, "linear", 6, 0.5, optimizer=optimizer, criterion="both")
    layer = model[0]
    grads, power = [], []
    for x, y in BATCHES:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        assert layer.weight.grad is not None
        grads.append(layer.weight.grad.clone())
        power.append(x.float().square().mean(0))
        before = layer.weight.detach().clone()
        optimizer.step()
    seen = (0.9 * power[0] + 0.1 * power[1]).sqrt()
    wanted = (before * (0.9 * grads[0] + 0.1 * grads[1]) * seen).abs()
    found = pruner.criterion.scores("0", before, 1)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-9)
    state = pruner.state_dict()
    fresh = tiny()
    again = Pruner(
        *(fresh, "linear", 6, 0.5),
        optimizer=torch.optim.SGD(fresh.parameters(), 0.05),
        criterion="both",
    )
    again.load_state_dict(state)
    assert torch.equal(again.criterion.scores("0", before, 1), found)


def test_functions_that_do_not_fit_are_refused(own: Any) -> None:
    for reads in (("weight", "batches"), ("loss",), (), ("weights",), ("weight", "weight")):
        with pytest.raises(BadConfig, match="reads as some of weight"):
            own("bad", lambda w: w, reads=reads)
    own("thin", lambda w: w.sum(1))
    own("some", lambda model, batches: {"0": torch.zeros(5, 6)}, reads="batches")
    with pytest.raises(BadConfig, match="scores of '0' of its weight's shape"):
        scores("thin", tiny())
    with pytest.raises(BadConfig, match="scores of every layer to prune.*'2'"):
        scores("some", tiny())


class Old(Score):
    """As users wrote them for earlier versions."""

    reads_gradients = True

    def observe(self, name: str, weight: Tensor) -> None:
        assert weight.grad is not None
        self.memory[name] = weight.grad.abs()

    def scores(self, name: str, weight: Tensor, groups: int) -> Tensor:
        known = self.known(name, weight)
        return weight.detach().abs() if known is None else known


def test_scores_of_earlier_versions_go_on(own: Any) -> None:
    own("old", Old)
    with pytest.raises(BadConfig, match="optimizer"):
        Pruner(tiny(), "agp", 5, 0.5, criterion="old")
    model = tiny()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    pruner = Pruner(model, "linear", 2, 0.5, optimizer=optimizer, criterion="old")
    for x, y in BATCHES:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        pruner.step()
    assert sum(int((w == 0).sum()) for w in weights_of(model).values()) == round(0.5 * 45)
