# SPDX-License-Identifier: Apache-2.0
"""Gradients of the weights to prune, read before each step of the optimizer."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch

from ternary_ops.errors import BadWeights, need
from ternary_ops.prune.targets import Target

_log = logging.getLogger(__name__)


class GradientReader:
    """Checks gradients, and knows which weights ever had one."""

    def __init__(self) -> None:
        """With nothing read."""
        self._learning: set[str] = set()

    def read(self, target: Target, step: int) -> None:
        """Check the gradient of one weight; BadWeights for one that is not finite."""
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

    def warn_idle(self, targets: Sequence[Target]) -> None:
        """Name weights that never had a gradient, if others had."""
        idle = [target.name for target in targets if target.name not in self._learning]
        if idle and self._learning:
            _log.warning("pruned, but never run in training: %s", ", ".join(idle))
