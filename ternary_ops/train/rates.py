# SPDX-License-Identifier: Apache-2.0
"""The learning rate of every training here: up, then down (Smith and Topin 2018, "1cycle")."""

from __future__ import annotations

import torch

from ternary_ops.errors import BadConfig, need

_BELOW = 1 - 1e-9


def one_cycle(
    optimizer: torch.optim.Optimizer, peak: float, steps: int, warmup: float, momentum: bool = True
) -> torch.optim.lr_scheduler.OneCycleLR:
    """torch's OneCycleLR for any number of steps; `warmup`: the fraction with a rising rate.

    momentum: cycle it too, the other way. Raises BadConfig unless steps >= 1 and 0 <= warmup <= 1.
    """
    if steps < 1 or not 0 <= warmup <= 1:
        got = f"{steps} steps, warmup={warmup}"
        raise BadConfig(need("1 step or more, and warmup in 0..1", got, "Correct it."))
    total = max(steps, 2)  # it has a first and a last rate
    if warmup == 1.0 or float(warmup * total) == 1.0:
        # torch divides by zero where a rise or a fall starts and ends at one step.
        warmup *= _BELOW
    return torch.optim.lr_scheduler.OneCycleLR(
        optimizer, peak, total_steps=total, pct_start=warmup, cycle_momentum=momentum
    )
