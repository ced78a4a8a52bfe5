# SPDX-License-Identifier: Apache-2.0
"""A network with a plan applied at once, without training: what choices are judged by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import nn

from ternary_ops.graph.wrappers import copy_of
from ternary_ops.nn.config import TernaryConfig
from ternary_ops.prune import Pruner
from ternary_ops.quantize.convert import quantize_
from ternary_ops.quantize.plan_rows import Plan, PlanRow


def pruned_at_once(network: nn.Module, planned: Plan) -> nn.Module:
    """A quantized copy in eval mode, its smallest units empty."""
    trial = copy_of(network).eval()
    quantize_(trial, planned)
    if any(row.config is not None and row.config.zeros > 0 for row in planned):
        Pruner(trial, "one_shot", total_steps=1).step()
    return trial


def with_configs(
    planned: Plan, configs: Mapping[str, TernaryConfig], reasons: Mapping[str, str] | None = None
) -> Plan:
    """The plan with other configs of some layers, each with the pattern that the layer takes."""
    said = reasons or {}
    rows = (_with(row, configs.get(row.name), said.get(row.name)) for row in planned)
    return Plan(tuple(rows))


def _with(row: PlanRow, config: TernaryConfig | None, reason: str | None) -> PlanRow:
    if config is None:
        return row
    if row.config is not None:
        config = replace(config, pattern=row.config.pattern)
    pattern = config.pattern if config.zeros > 0 or config.weights == "ternary" else ""
    reason = row.reason if reason is None else reason
    return replace(row, action=config.weights, config=config, pattern=pattern, reason=reason)
