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

    def read(self, targets: Sequence[Target], step: int) -> None:
        """Check the gradients of all weights; BadWeights, naming them, for some not finite."""
        found = {t.name: grad for t in targets if (grad := t.weight.grad) is not None}
        self._learning.update(found)
        sums = [grad.sum() for grad in found.values()]
        # One question for all, since each waits for the device. Infinity less infinity is NaN.
        if not sums or bool(torch.stack([s.to(sums[0]) for s in sums]).isfinite().all()):
            return
        bad = [name for name, value in zip(found, sums, strict=True) if not bool(value.isfinite())]
        if not bad:  # too large for the dtype of the first alone
            return
        raise BadWeights(
            need(
                f"finite gradients, step {step}",
                f"NaN or infinity in that of {', '.join(bad)}",
                "No weight has changed. Lower the learning rate or clip gradients.",
            )
        )

    def warn_idle(self, targets: Sequence[Target]) -> None:
        """Name weights that never had a gradient, if others had."""
        idle = [target.name for target in targets if target.name not in self._learning]
        if idle and self._learning:
            _log.warning("pruned, but never run in training: %s", ", ".join(idle))
