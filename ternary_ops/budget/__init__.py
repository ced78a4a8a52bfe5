# SPDX-License-Identifier: Apache-2.0
"""Budgets: zeros by layer for a size, and channels in an order that leaves more quads empty."""

from ternary_ops.budget.allocate import Budget
from ternary_ops.budget.reorder_channels import ReorderRow, reorder_channels_

__all__ = ["Budget", "ReorderRow", "reorder_channels_"]
