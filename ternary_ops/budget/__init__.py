# SPDX-License-Identifier: Apache-2.0
"""Budgets: one search over widths, zeros and kinds of weights for a time or a size, and channels in
an order that leaves more quads empty.
"""

from ternary_ops.budget.allocate import Budget
from ternary_ops.budget.found import Found, FrontPoint
from ternary_ops.budget.reorder_channels import ReorderRow, reorder_channels_
from ternary_ops.budget.searching import search, width_cost

__all__ = [
    "Budget",
    "Found",
    "FrontPoint",
    "ReorderRow",
    "reorder_channels_",
    "search",
    "width_cost",
]
