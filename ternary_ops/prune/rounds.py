# SPDX-License-Identifier: Apache-2.0
"""Updates of the masks in rounds, and layers of which a criterion leaves nothing."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import torch

from ternary_ops.prune.ranking import Group

_log = logging.getLogger(__name__)


def in_rounds(groups: Sequence[Group], share: float, rounds: int) -> list[list[float]]:
    """For each round of an update the share of each group's target that is due then; in the last
    one it is `share`.

    rounds: of a whole run, from no zeros to the target. What is left falls by the same factor from
    round to round.
    """
    left = [(1 - group.count / group.total, 1 - share * group.zeros) for group in groups]
    falls = [math.log(now / then) for now, then in left]
    counts = [
        math.ceil(rounds * fall / -math.log1p(-group.zeros))
        for group, fall in zip(groups, falls, strict=True)
        if fall > 0 and group.zeros > 0
    ]
    made = []
    count = min(rounds, max([1, *counts]))
    for number in range(1, count):
        made.append(
            [
                (1 - now * math.exp(-fall * number / count)) / group.zeros if fall > 0 else share
                for group, (now, _), fall in zip(groups, left, falls, strict=True)
            ]
        )
    return [*made, [share] * len(groups)]


class Collapse:
    """Warns, once each, of layers of which the criterion alone would leave nothing."""

    def __init__(self) -> None:
        """With none named."""
        self._named: set[str] = set()

    def warn(self, groups: Sequence[Group], criterion: str) -> None:
        """Name the layers that have no more units than those which must survive."""
        found = []
        for group in groups:
            if len(group.targets) == 1:  # its count was asked for
                continue
            parts = torch.split(group.pruned, group.sizes)
            for target, pruned in zip(group.targets, parts, strict=True):
                left = target.units - int(pruned.sum())
                if left <= target.protected < target.units:
                    found.append(target.name)
        new = [name for name in found if name not in self._named]
        self._named.update(new)
        if new:
            _log.warning(
                "criterion %r leaves nothing of %s but what min_nnz, and one unit per layer, keep: "
                'lower zeros, raise min_nnz, or take scope="layer"',
                criterion,
                ", ".join(new),
            )
