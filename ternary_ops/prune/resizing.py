# SPDX-License-Identifier: Apache-2.0
"""Targets of a Pruner whose weights have lost channels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from ternary_ops.prune.cutter import Cutter
from ternary_ops.prune.optimizer_state import Replaced
from ternary_ops.prune.ranking import Group
from ternary_ops.prune.targets import Target


class Follower(Protocol):
    """Keeps something of each layer: a criterion, or the run of a rule of growth."""

    def resize(self, name: str, cut: Cutter) -> None:
        """The layer's weight has lost channels."""


def resize_targets(
    targets: Sequence[Target],
    groups: Sequence[Group],
    followers: Sequence[Follower],
    replaced: Replaced,
) -> list[Group]:
    """See Pruner.resize, which has the arguments' meanings and what is raised. Returns the groups
    that have other units now. followers: what keeps numbers by layer.
    """
    cutters = {id(made): cutter for made, cutter in replaced.values()}
    smaller = {t: cut for t in targets if (cut := cutters.get(id(t.weight))) is not None}
    undo: list[Callable[[], None]] = []
    former = [dict(vars(group)) for group in groups]
    touched = [g for g in groups if not smaller.keys().isdisjoint(g.targets)]
    try:
        undo.extend(target.resize(cut) for target, cut in smaller.items())
        for group in touched:
            group.measure()
    except BaseException:
        for step in undo:
            step()
        for group, known in zip(groups, former, strict=True):
            vars(group).update(known)
        raise
    for target, cut in smaller.items():
        for follower in followers:
            follower.resize(target.name, cut)
    return touched
