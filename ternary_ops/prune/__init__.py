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

from ternary_ops.prune.adaptive_schedules import early_bird, generalization_loss
from ternary_ops.prune.allocation import ALLOCATIONS, register_allocation
from ternary_ops.prune.choice import choose
from ternary_ops.prune.criteria import CRITERIA, Score, register_criterion
from ternary_ops.prune.filter_network import groups
from ternary_ops.prune.filter_scores import FILTER_SCORES, filter_score, register_filter_score
from ternary_ops.prune.filters import FilterGroup, FilterGroups, Place
from ternary_ops.prune.fisher import fisher_
from ternary_ops.prune.gates import GATES, Gate, register_gate
from ternary_ops.prune.growth import GROWTHS, Growth, register_growth
from ternary_ops.prune.growth_rules import DNW, SET, SNFS, DeepR, RigL, Static
from ternary_ops.prune.learned_sparsity import LearnedSparsity
from ternary_ops.prune.merging import fold_constants_, merge_similar_
from ternary_ops.prune.network_file import load_network, save_network
from ternary_ops.prune.penalties import PENALTIES, Penalty, penalty, register_penalty
from ternary_ops.prune.pruner import Pruner
from ternary_ops.prune.ranking import SummaryRow
from ternary_ops.prune.reconstruct import reconstruct_
from ternary_ops.prune.removal import Removal, remove_
from ternary_ops.prune.sbf import SbF
from ternary_ops.prune.schedules import (
    SCHEDULES,
    Schedule,
    get_schedule,
    iht,
    iterative,
    one_cycle,
    register_schedule,
)
from ternary_ops.prune.woodfisher import WoodFisher as _WoodFisher  # noqa: F401 - registers it

__all__ = [
    "ALLOCATIONS",
    "CRITERIA",
    "DNW",
    "FILTER_SCORES",
    "GATES",
    "GROWTHS",
    "PENALTIES",
    "SCHEDULES",
    "SET",
    "SNFS",
    "DeepR",
    "FilterGroup",
    "FilterGroups",
    "Gate",
    "Growth",
    "LearnedSparsity",
    "Penalty",
    "Place",
    "Pruner",
    "Removal",
    "RigL",
    "SbF",
    "Schedule",
    "Score",
    "Static",
    "SummaryRow",
    "choose",
    "early_bird",
    "filter_score",
    "fisher_",
    "fold_constants_",
    "generalization_loss",
    "get_schedule",
    "groups",
    "iht",
    "iterative",
    "load_network",
    "merge_similar_",
    "one_cycle",
    "penalty",
    "reconstruct_",
    "register_allocation",
    "register_criterion",
    "register_filter_score",
    "register_gate",
    "register_growth",
    "register_penalty",
    "register_schedule",
    "remove_",
    "save_network",
]
