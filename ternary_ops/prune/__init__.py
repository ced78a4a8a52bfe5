# SPDX-License-Identifier: Apache-2.0
"""Pruning while training: the Pruner, and its strategies, each kind with a registry of its own:
criteria (scores), growth, schedules and allocation over layers.

>>> optimizer = torch.optim.SGD(model.parameters(), 1e-3)
>>> pruner = tops.prune.Pruner(model, "agp", 10, zeros=0.5, scope="layer", optimizer=optimizer)
>>> for _ in range(10):
...     optimizer.zero_grad()
...     model(x).square().mean().backward()
...     optimizer.step()
...     pruner.step()
>>> {row.measured for row in pruner.summary()}
{0.5}
"""

from ternary_ops.prune.allocation import ALLOCATIONS, register_allocation
from ternary_ops.prune.choice import choose
from ternary_ops.prune.criteria import CRITERIA, Score, register_criterion
from ternary_ops.prune.filter_network import groups
from ternary_ops.prune.filter_scores import FILTER_SCORES, filter_score, register_filter_score
from ternary_ops.prune.filters import FilterGroup, FilterGroups, Place
from ternary_ops.prune.fisher import fisher_
from ternary_ops.prune.growth import GROWTHS, SET, Growth, RigL, register_growth
from ternary_ops.prune.network_file import load_network, save_network
from ternary_ops.prune.pruner import Pruner
from ternary_ops.prune.ranking import SummaryRow
from ternary_ops.prune.reconstruct import reconstruct_
from ternary_ops.prune.removal import Removal, remove_
from ternary_ops.prune.sbf import SbF
from ternary_ops.prune.schedules import (
    SCHEDULES,
    Schedule,
    get_schedule,
    iterative,
    one_cycle,
    register_schedule,
)
from ternary_ops.prune.woodfisher import woodfisher as _woodfisher  # noqa: F401 - registers it

__all__ = [
    "ALLOCATIONS",
    "CRITERIA",
    "FILTER_SCORES",
    "GROWTHS",
    "SCHEDULES",
    "SET",
    "FilterGroup",
    "FilterGroups",
    "Growth",
    "Place",
    "Pruner",
    "Removal",
    "RigL",
    "SbF",
    "Schedule",
    "Score",
    "SummaryRow",
    "choose",
    "filter_score",
    "fisher_",
    "get_schedule",
    "groups",
    "iterative",
    "load_network",
    "one_cycle",
    "reconstruct_",
    "register_allocation",
    "register_criterion",
    "register_filter_score",
    "register_growth",
    "register_schedule",
    "remove_",
    "save_network",
]
