# SPDX-License-Identifier: Apache-2.0
"""Criteria that read gradients of the loss: during training, or of batches before it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ternary_ops.prune.criteria.probe import (
    Loss,
    Pairs,
    check_finite,
    gradients,
    mean_gradients,
    weights_of,
)
from ternary_ops.prune.criteria.score import Score, magnitude


class Movement(Score):
    """-sum of g * w; magnitude before the first step."""

    reads = ("gradients",)

    def observe(self, name: str, weight: Tensor) -> None:
        """Subtract g * w of this step."""
        if weight.grad is not None:
            value = (weight.grad * weight.detach()).float()
            self.memory[name] = self.memory.get(name, torch.zeros_like(value)) - value

    def scores(self, name: str, weight: Tensor, groups: int) -> Tensor:
        """The sums."""
        known = self.known(name, weight)
        return magnitude(weight) if known is None else known


class Taylor(Movement):
    """Running mean of (g * w)^2; magnitude before the first step."""

    def observe(self, name: str, weight: Tensor) -> None:
        """Average (g * w)^2 of this step."""
        if weight.grad is not None:
            self.average(name, (weight.grad * weight.detach()).float().square())


def snip(model: nn.Module, batches: Pairs, loss: Loss) -> dict[str, Tensor]:
    """|g w|, g the mean gradient of the batches: the connection sensitivity."""
    slopes = mean_gradients(model, batches, loss)
    weights = weights_of(model)
    return {name: (slope * weights[name].detach()).abs() for name, slope in slopes.items()}


def grasp(model: nn.Module, batches: Pairs, loss: Loss) -> dict[str, Tensor]:
    """w (H g), g the mean gradient and H the Hessian of the mean loss: weights whose removal lets
    the gradient's norm grow go first.
    """
    slopes = mean_gradients(model, batches, loss)
    weights = weights_of(model)
    once = {weight: name for name, weight in weights.items()}.values()  # shared ones count once
    products = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for x, y in batches:
        own = gradients(model, x, y, loss, graph=True)
        inner = torch.stack([(own[name] * slopes[name]).sum() for name in once]).sum()
        if not inner.requires_grad:
            continue  # a linear loss of a linear network: the Hessian is 0
        found = torch.autograd.grad(inner, list(weights.values()), allow_unused=True)
        for name, product in zip(weights, found, strict=True):
            if product is not None:
                products[name] += product / len(batches)
    check_finite("Hessian of the batches", products)
    return {name: weights[name].detach() * product for name, product in products.items()}


def obd(model: nn.Module, batches: Pairs, loss: Loss) -> dict[str, Tensor]:
    """w^2 F / 2, F the mean over samples of squared gradients: the diagonal of the empirical Fisher
    matrix in place of the Hessian's. In eval mode: one backward pass a sample.
    """
    model.eval()
    weights = weights_of(model)
    fisher = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    count = sum(len(x) for x, _ in batches)
    for x, y in batches:
        for sample, label in zip(torch.split(x, 1), torch.split(y, 1), strict=True):
            for name, slope in gradients(model, sample, label, loss).items():
                fisher[name] += slope.square() / count
    return {name: weights[name].detach().square() * f / 2 for name, f in fisher.items()}
