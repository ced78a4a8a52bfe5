# SPDX-License-Identifier: Apache-2.0
"""Arguments of a Pruner that do not fit each other or the model, named before training starts."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ternary_ops.errors import BadConfig, UnsupportedModel, check_type, need
from ternary_ops.prune.growth import Growth
from ternary_ops.prune.schedules import Schedule
from ternary_ops.prune.targets import Target


def check_optimizer(optimizer: torch.optim.Optimizer | None, targets: Sequence[Target]) -> None:
    """Raise UnsupportedModel unless the optimizer, if any, holds every target's weight."""
    if optimizer is None:
        return
    known = {id(p) for group in optimizer.param_groups for p in group["params"]}
    missing = [t.name for t in targets if id(t.weight) not in known]
    if missing:
        raise UnsupportedModel(
            need(
                "an optimizer that holds the weights to prune",
                f"none of it for {', '.join(missing)}",
                "Make it after quantize_ from model.parameters(), or leave it out of Pruner.",
            )
        )


def check_options(
    schedule: Schedule,
    growth: Growth | None,
    nested: bool,
    min_nnz: int | None,
    decay: float,
    optimizer: torch.optim.Optimizer | None,
) -> None:
    """Raise BadConfig for values out of range and for arguments that exclude each other."""
    if min_nnz is not None and min_nnz < 0:
        raise BadConfig(need("min_nnz as a count >= 0", min_nnz, "0 lets filters be empty."))
    if nested and schedule.last != 1.0:
        raise BadConfig(
            need(
                f"nested=False for schedule {schedule.name!r}, which gives weights back",
                "nested=True",
                "Pass nested=False, or a schedule that ends at its target.",
            )
        )
    check_type("quantized_decay", decay, (int, float), "Pass a factor.")
    if optimizer is not None:
        do = "Pass the optimizer itself, made after quantize_."
        check_type("optimizer", optimizer, torch.optim.Optimizer, do)
    given = f"optimizer={'None' if optimizer is None else 'given'}"
    if not decay >= 0.0 or (decay and optimizer is None):
        what = "quantized_decay >= 0, and an optimizer with it"
        raise BadConfig(need(what, f"quantized_decay={decay}, {given}", "Pass both."))
    if growth is not None and (not nested or optimizer is None):
        what = "the optimizer and nested=True with growth: no latent values of pruned weights"
        raise BadConfig(need(what, f"nested={nested}, {given}", "Pass both."))
