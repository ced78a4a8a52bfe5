# SPDX-License-Identifier: Apache-2.0
"""Arguments of a Pruner that do not fit each other or the model, named before training starts."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ternary_ops.errors import BadConfig, UnsupportedModel, check_type, need
from ternary_ops.prune.growth import Growth
from ternary_ops.prune.phases import Phases
from ternary_ops.prune.rewinding import Rewinding
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
    nested: bool, min_nnz: int | None, decay: float, optimizer: torch.optim.Optimizer | None
) -> None:
    """Raise BadConfig for values out of range."""
    check_type("nested", nested, bool, "True: what is pruned stays pruned.")
    if min_nnz is not None and min_nnz < 0:
        raise BadConfig(need("min_nnz as a count >= 0", min_nnz, "0 lets filters be empty."))
    check_type("quantized_decay", decay, (int, float), "Pass a factor.")
    if optimizer is not None:
        do = "Pass the optimizer itself, made after quantize_."
        check_type("optimizer", optimizer, torch.optim.Optimizer, do)
    given = f"optimizer={'None' if optimizer is None else 'given'}"
    if not decay >= 0.0 or (decay and optimizer is None):
        what = "quantized_decay >= 0, and an optimizer with it"
        raise BadConfig(need(what, f"quantized_decay={decay}, {given}", "Pass both."))


def check_strategies(
    schedule: Schedule,
    growth: Growth | None,
    phases: Phases,
    nested: bool,
    rewind: int | None,
    optimizer: torch.optim.Optimizer | None,
) -> None:
    """Raise BadConfig for strategies that exclude each other."""
    if nested and schedule.last != 1.0:
        what = f"nested=False for schedule {schedule.name!r}, which gives weights back"
        do = "Pass nested=False, or a schedule that ends at its target."
        raise BadConfig(need(what, "nested=True", do))
    if schedule.pace is not None and not nested:
        what = f"nested=True with schedule {schedule.name!r}, which fixes what it prunes"
        raise BadConfig(need(what, "nested=False", "Leave nested out."))
    if growth is not None:
        _check_growth(schedule, growth, phases, nested, rewind, optimizer)
    if rewind is not None:
        _check_rewind(schedule, phases, nested, rewind, optimizer)


def steps_between(growth: Growth | None, every: int | None) -> int | None:
    """Steps between updates of the masks; BadConfig where the two say different things."""
    if growth is None:
        return every
    if None not in (every, growth.every) and every != growth.every:
        what, do = "one number of steps between updates", "Pass one of the two."
        raise BadConfig(need(what, f"every={every}, growth.every={growth.every}", do))
    given = growth.every if every is None else every
    return growth.usual_every if given is None else given


def check_resize(rewinding: Rewinding | None) -> None:
    """Raise BadConfig where weights that would come back have other sizes."""
    if rewinding is not None:
        what, do = "a Pruner without rewind= for smaller weights", "Remove channels before."
        raise BadConfig(need(what, f"rewind={rewinding.step}", do))


def _share(schedule: Schedule, phases: Phases, step: int) -> float:
    """The share of a schedule's curve at a step."""
    return schedule(step / phases.total, start=phases.start, end=phases.end / phases.total)


def _check_growth(
    schedule: Schedule,
    growth: Growth,
    phases: Phases,
    nested: bool,
    rewind: int | None,
    optimizer: torch.optim.Optimizer | None,
) -> None:
    if not nested or optimizer is None:
        what = "the optimizer and nested=True with growth, which has rules of its own for pruned"
        got = f"nested={nested}, optimizer={'None' if optimizer is None else 'given'}"
        raise BadConfig(need(f"{what} weights", got, "Pass the optimizer, leave nested out."))
    if rewind is not None:
        what, do = "growth or rewind, not both", "Leave one out."
        raise BadConfig(need(what, f"growth and rewind={rewind}", do))
    if schedule.cyclic or schedule.pace is not None or schedule.last != 1.0:
        what = "a constant schedule with growth, or one that only rises"
        raise BadConfig(need(what, repr(schedule.name), "Leave schedule out."))
    rises = _share(schedule, phases, 1) != 1.0
    if rises and (growth.random_start or growth.latent):
        what = "a constant schedule with growth, whose first mask is at the target"
        do = "Leave schedule out; random_start=False grows along a schedule that rises."
        raise BadConfig(need(what, repr(schedule.name), do))


def _check_rewind(
    schedule: Schedule,
    phases: Phases,
    nested: bool,
    rewind: int,
    optimizer: torch.optim.Optimizer | None,
) -> None:
    if not nested or optimizer is None:
        got = f"nested={nested}, optimizer={'None' if optimizer is None else 'given'}"
        do = "Pass the optimizer, leave nested out."
        raise BadConfig(need("the optimizer and nested=True with rewind", got, do))
    whole = isinstance(rewind, int) and not isinstance(rewind, bool) and rewind >= 0
    jumps = not schedule.cyclic and schedule.pace is None
    jumps = jumps and _share(schedule, phases, phases.end - 1) == 1.0
    if not whole or not jumps or (rewind and _share(schedule, phases, rewind) > 0):
        what = "rewind as a step before the first zeros, of a schedule whose last jump comes before"
        got = f"rewind={rewind!r}, schedule {schedule.name!r}"
        do = "Use prune.iterative(rounds)."
        raise BadConfig(need(f"{what} its end", got, do))
