# SPDX-License-Identifier: Apache-2.0
"""Pruning while training: schedules, units of a pattern, and the Pruner that applies them."""

from ternary_ops.prune.pruner import Pruner, SummaryRow
from ternary_ops.prune.reconstruct import reconstruct_
from ternary_ops.prune.schedules import SCHEDULES, Schedule, get_schedule, iterative, one_cycle

__all__ = [
    "SCHEDULES",
    "Pruner",
    "Schedule",
    "SummaryRow",
    "get_schedule",
    "iterative",
    "one_cycle",
    "reconstruct_",
]
