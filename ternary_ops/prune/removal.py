# SPDX-License-Identifier: Apache-2.0
"""Physical removal of channels: tensors get smaller, and with them time, memory and files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ternary_ops.errors import UnsupportedModel, check_type, need
from ternary_ops.prune.filter_network import FilterNetwork
from ternary_ops.prune.kept_filters import settle
from ternary_ops.prune.masked_run import (
    check_same,
    check_training,
    failure_in_training,
    masked_outputs,
)
from ternary_ops.prune.optimizer_state import STALE, plan_state
from ternary_ops.prune.tensor_cuts import Surgery
from ternary_ops.table import Table

if TYPE_CHECKING:
    from ternary_ops.prune.pruner import Pruner


@dataclass(frozen=True)
class Removal:
    """What `remove_` did; str() is a table.

    rows: of each group that became narrower its name, its width before and after. parameters,
    multiply_adds (of convolutions and linear layers, of one sample): before and after. kept: for
    each group that was named, the indices of the channels that were kept, as applied. Passed to
    remove_, it narrows another copy of the network, such as a moving average, alike.
    """

    rows: tuple[tuple[str, int, int], ...]
    parameters: tuple[int, int]
    multiply_adds: tuple[int, int]
    kept: Mapping[str, Tensor]

    def __str__(self) -> str:
        """One row a group, then the totals."""
        totals = (("parameters", *self.parameters), ("multiply-adds", *self.multiply_adds))
        rows = [
            (name, f"{before:,}", f"{after:,}", f"{after / max(before, 1):.0%}")
            for name, before, after in (*self.rows, *totals)
        ]
        return str(Table(("group", "before", "after", "left"), rows))


def remove_(
    model: nn.Module,
    example: Any,
    kept: Mapping[str, Any],
    optimizer: torch.optim.Optimizer | None = None,
    pruner: Pruner | None = None,
    round_to: int = 4,
) -> Removal:
    """Remove channels from a network, in place: filters, vectors beside them, and whatever reads
    them. It then computes what it did with those maps at zero, behind norm and activation.

    example: an input, as for compile; on it the network is held to that, to float rounding (where
    quantized layers have left phase "float", it must run).
    kept: for groups of `prune.groups`, by name, the channels that stay: indices, or a bool mask
        [width]. Groups that it does not name stay whole.
    optimizer: gets the new parameters in place of the old ones, and the state of what is left of
        them, by value. An optimizer that keeps the old ones raises at its next step.
    pruner: a Pruner of this network, which goes on with the smaller weights.
    round_to: widths are rounded up to a multiple of this, and so that each part of a grouped
        convolution keeps as many: of the channels to remove those of the largest L2 norm stay. The
        engine works on packets of four channels.

    Parameters that get smaller are new objects: wrap it in DistributedDataParallel after this.
    Raises, with network, optimizer and Pruner as they were: BadConfig for unknown groups, indices
    that are out of range or repeated, and no channel left; UnsupportedModel, which names the
    operator, where channels are fixed, and where the network cannot be traced.
    """
    _check_wrapper(model)
    check_type("round_to", round_to, int, "4 suits the engine, 1 changes nothing.")
    network = FilterNetwork(model, example)
    chosen = settle(network, kept, round_to)
    _check_operators(network, chosen)
    before = network.totals()
    surgery = Surgery(network, chosen)
    commit = plan_state(optimizer, surgery.replaced)
    wanted, fails = masked_outputs(network, chosen), failure_in_training(network)
    try:
        surgery.apply()
        check_same(network, wanted)
        check_training(network, fails)
        if pruner is not None:
            pruner.resize(surgery.replaced)
    except BaseException:
        surgery.undo()
        raise
    commit()
    after = network.totals()
    STALE.add(list(surgery.replaced))
    rows = [(g.name, g.width, len(chosen[g.name])) for g in network.groups if g.name in chosen]
    return Removal(
        rows=tuple(row for row in rows if row[1] != row[2]),
        parameters=(before[0], after[0]),
        multiply_adds=(before[1], after[1]),
        kept=chosen,
    )


def _check_wrapper(model: nn.Module) -> None:
    if isinstance(model, nn.parallel.DistributedDataParallel):
        do = "Pass its .module, and wrap that anew."
        what = "a network outside DistributedDataParallel, which keeps its own list of parameters"
        raise UnsupportedModel(need(what, type(model).__name__, do))


def _check_operators(network: FilterNetwork, chosen: Mapping[str, Tensor]) -> None:
    for miss in network.miscounted(chosen):
        do = "Keep more of the groups that it reads, or all of them."
        raise UnsupportedModel(need("operators that follow when channels go", str(miss), do))
