# SPDX-License-Identifier: Apache-2.0
"""Allocation: how a fraction of zeros is spread over layers. The values of `scope`.

    global  all layers are ranked together: zeros fall where scores are low
    time    likewise, by score per millisecond of the engine (prune.time_scope)
    layer   the same fraction in every layer ("uniform" in the literature)
    erk     Erdos-Renyi kernels: a layer's density is in proportion to (O + I + R + S) / (O I R S),
            at most 1, so that the total is met exactly; Evci et al. 2020 (arXiv 1911.11134),
            after Mocanu et al. 2018. A reconstruction

`register_allocation` adds one: a function from targets and zeros to groups.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from ternary_ops.errors import BadConfig, need
from ternary_ops.nn.config import SCOPES
from ternary_ops.prune.apportion import apportion
from ternary_ops.prune.ranking import Group
from ternary_ops.prune.registry import Registry
from ternary_ops.prune.targets import Target
from ternary_ops.prune.time_scope import by_time

Allocation = Callable[[Sequence[Target], float], list[Group]]

ALLOCATIONS: Registry[Allocation] = Registry(
    "a scope", "add yours with prune.register_allocation(name, rule)"
)


def register_allocation(name: str, rule: Allocation) -> None:
    """Make `name` a value of scope, for Pruner and TernaryConfig.

    rule(targets, zeros): groups that hold each target once, for targets of one pattern with equal
    zeros. Raises BadConfig for a taken name and for what cannot be called.
    """
    if not callable(rule):
        do = "Pass a function of targets and zeros."
        raise BadConfig(need("an allocation that can be called", repr(rule), do))
    ALLOCATIONS.add(name, rule)
    if name not in SCOPES:
        SCOPES.append(name)


def make_groups(targets: Sequence[Target]) -> list[Group]:
    """The groups of all targets, in the order of their first ones."""
    alike: dict[object, list[Target]] = {}
    for target in targets:
        alike.setdefault((target.scope, target.pattern, target.zeros), []).append(target)
    made = [
        group
        for members in alike.values()
        for group in ALLOCATIONS.find(members[0].scope)(members, members[0].zeros)
    ]
    place = {target.name: number for number, target in enumerate(targets)}
    return sorted(made, key=lambda group: place[group.targets[0].name])


def globally(targets: Sequence[Target], zeros: float) -> list[Group]:
    """One total over all layers."""
    return [Group(targets, zeros)]


def per_layer(targets: Sequence[Target], zeros: float) -> list[Group]:
    """Equal zeros in every layer."""
    return [Group([target], zeros) for target in targets]


def erdos_renyi_kernel(targets: Sequence[Target], zeros: float) -> list[Group]:
    """Each layer its own zeros; the counts of all sum up to that of zeros."""
    total = Group(targets, zeros)
    kept = _erk_counts(targets, total.total - total.wanted())
    return [Group([t], (t.units - k) / t.units) for t, k in zip(targets, kept, strict=True)]


def _erk_counts(targets: Sequence[Target], total: int) -> list[int]:
    """Units to keep in each layer, between `protected` and what the pattern leaves; their sum is
    `total`.
    """
    weights = [sum(t.weight.shape) / math.prod(t.weight.shape) * t.units for t in targets]
    most = [t.units - round(t.pattern.least_zeros * t.units) for t in targets]
    return apportion(total, weights, [t.protected for t in targets], most)


register_allocation("global", globally)
register_allocation("layer", per_layer)
register_allocation("erk", erdos_renyi_kernel)
register_allocation("time", by_time)
