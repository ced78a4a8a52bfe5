# SPDX-License-Identifier: Apache-2.0
"""Gradients of the weights to prune, read before each step of the optimizer."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from ternary_ops.errors import BadWeights, need
from ternary_ops.prune.targets import Target

_log = logging.getLogger(__name__)


class GradientReader:
    """Checks gradients, keeps those that growth reads, and knows which weights ever had one.

    dense: gradients of the step that updates masks, by layer, also where weights are pruned.
    """

    def __init__(self) -> None:
        """With nothing read."""
        self.dense: dict[str, Tensor] = {}
        self._learning: set[str] = set()

    def read(self, target: Target, step: int, keep: bool) -> None:
        """Check the gradient of one weight; keep: hold a copy of it until the masks are updated.

        Raises BadWeights for a gradient that is not finite.
        """
        grad = target.weight.grad
        if grad is None:
            return
        self._learning.add(target.name)
        if not bool(torch.isfinite(grad.sum())):
            raise BadWeights(
                need(
                    f"finite gradients, step {step}",
                    f"NaN or infinity in that of {target.name}",
                    "No weight has changed. Lower the learning rate or clip gradients.",
                )
            )
        if keep:
            self.dense[target.name] = grad.detach().clone()

    def warn_idle(self, targets: Sequence[Target]) -> None:
        """Name weights that never had a gradient, if others had."""
        idle = [target.name for target in targets if target.name not in self._learning]
        if idle and self._learning:
            _log.warning("pruned, but never run in training: %s", ", ".join(idle))
