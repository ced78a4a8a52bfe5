# SPDX-License-Identifier: Apache-2.0
"""Reports of compressed networks and files."""

from ternary_ops.reporting.layers import Layer
from ternary_ops.reporting.network_report import Comparison, Report, of_program, report
from ternary_ops.reporting.per_weight import Efficiency, efficiency

__all__ = ["Comparison", "Efficiency", "Layer", "Report", "efficiency", "of_program", "report"]
