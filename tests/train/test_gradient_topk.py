# SPDX-License-Identifier: Apache-2.0
"""Gradients of which only the largest entries are sent: error feedback, momentum, warm-up."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from topk_problem import OPTIONS, minimized, quadratic, trained
from torch import nn

from ternary_ops.errors import BadConfig, BadWeights, FormatError
from ternary_ops.train.gradient_topk import TopKGradients


def test_one_percent_with_feedback_finds_the_dense_optimum_and_without_does_not() -> None:
    problem = quadratic()
    wanted = problem.optimum
    off = {
        feedback: float((minimized(problem, feedback) - wanted).norm() / wanted.norm())
        for feedback in (True, False)
    }
    assert off[True] <= 1e-3
    assert off[False] > 0.1


def test_what_is_sent_and_what_stays_add_up_to_all_gradients() -> None:
    weight = nn.Parameter(torch.zeros(20, 5))
    topk = TopKGradients([weight], 0.1)
    seen, sent = torch.zeros(2, 20, 5, dtype=torch.float64)
    for _ in range(7):
        grad = torch.randn(20, 5)
        weight.grad = grad.clone()
        total = seen - sent + grad
        topk.sparsify_()
        assert int((weight.grad != 0).sum()) == 10
        largest = total.abs().flatten().topk(10).indices
        assert set(weight.grad.flatten().nonzero().flatten().tolist()) == set(largest.tolist())
        seen, sent = seen + grad, sent + weight.grad
    torch.testing.assert_close(
        topk.unsent[0].view(20, 5).double(), seen - sent, rtol=1e-5, atol=1e-6
    )


def test_small_parts_of_half_precision_gradients_are_not_lost() -> None:
    weight = nn.Parameter(torch.zeros(4, dtype=torch.bfloat16))
    topk = TopKGradients([weight], 0.25)
    sent = torch.zeros(4)
    for _ in range(400):
        weight.grad = torch.tensor([1.0, 0.003, 0.0, 0.0], dtype=torch.bfloat16)
        topk.sparsify_()
        sent += weight.grad.float()
    unsent = topk.unsent[0]
    given = torch.tensor([1.0, 0.003, 0, 0], dtype=torch.bfloat16).float() * 400
    torch.testing.assert_close(sent + unsent, given, rtol=1e-4, atol=1e-4)
    assert sent[1] > 0.5


def test_momentum_is_summed_before_the_choice_and_forgotten_where_sent() -> None:
    weight = nn.Parameter(torch.zeros(3))
    topk = TopKGradients([weight], 0.3, momentum=0.5)
    for grad, wanted in (
        ([4.0, 1, 0], [4.0, 0, 0]),
        ([0.0, 1, 0], [0, 2.5, 0]),
        ([1.0, 0, 0], [1.0, 0, 0]),
    ):
        weight.grad = torch.tensor(grad)
        topk.sparsify_()
        assert weight.grad.tolist() == wanted


def test_warm_up_goes_from_dense_to_the_fraction() -> None:
    weight = nn.Parameter(torch.zeros(1000))
    topk = TopKGradients([weight], 0.01, warmup=4)
    counts = []
    for _ in range(6):
        weight.grad = torch.randn(1000)
        topk.sparsify_()
        counts.append(int((weight.grad != 0).sum()))
    assert counts == [1000, 316, 100, 32, 10, 10]


@pytest.mark.parametrize("name", list(OPTIONS))
def test_a_state_goes_on_where_it_was(name: str) -> None:
    options: dict[str, Any] = OPTIONS[name]
    for one, other in zip(trained(options), trained(options, resume_at=5), strict=True):
        assert torch.equal(one, other)


def test_bad_input() -> None:
    weight = nn.Parameter(torch.ones(4))
    for bad in ({"fraction": 0.0}, {"fraction": 1.1}, {"momentum": 1.0}, {"warmup": -1}):
        with pytest.raises(BadConfig, match="0 < fraction <= 1"):
            TopKGradients([weight], **bad)
    topk = TopKGradients([weight])
    weight.grad = torch.tensor([1.0, torch.nan, 0, 0])
    with pytest.raises(BadWeights, match="parameter 0"):
        topk.sparsify_()
    assert not topk.unsent and weight.grad[0] == 1
    weight.grad = torch.ones(4)
    topk.sparsify_()
    with pytest.raises(FormatError, match="these parameters"):
        TopKGradients([nn.Parameter(torch.ones(5))]).load_state_dict(topk.state_dict())
