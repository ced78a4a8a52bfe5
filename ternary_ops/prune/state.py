# SPDX-License-Identifier: Apache-2.0
"""A Pruner's state: masks as bits, and the checks before it is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from ternary_ops.errors import FormatError, need
from ternary_ops.graph.wrappers import plain_name
from ternary_ops.prune.phases import Phases
from ternary_ops.prune.ranking import Group
from ternary_ops.prune.targets import Target


def pruned_bits(group: Group) -> Tensor:
    """The pruned units of a group, one bit each, uint8."""
    return torch.from_numpy(np.packbits(group.pruned.cpu().numpy()))


def restore_bits(group: Group, packed: Tensor) -> None:
    """The inverse of pruned_bits, masks included."""
    bits = np.unpackbits(packed.cpu().numpy(), count=group.total).astype(bool)
    group.set_pruned(torch.from_numpy(bits).to(group.pruned.device))
    group.share_masks()


def plan_of(phases: Phases, targets: Sequence[Target]) -> dict[str, Any]:
    """Steps and layers as a state has them; keys are those of the first version."""
    return {
        "total_steps": phases.total,
        "steps": [phases.start, phases.end, phases.ternary, phases.freeze],
        "every": phases.every,
        "layers": [
            [t.name, list(t.weight.shape), t.pattern.name, t.scope, t.zeros, t.min_nnz]
            for t in targets
        ],
    }


def check_state(state: Mapping[str, Any], here: Mapping[str, Any], groups: Sequence[Group]) -> None:
    """Raise FormatError unless the state fits a Pruner whose plan is `here`."""
    try:
        there = {key: state["plan"].get(key) for key in here}
        bits = [packed.numel() for packed in state["pruned"]]
        complete = bits == [-(-group.total // 8) for group in groups]
        complete &= isinstance(state["step"], int)
        complete &= all(isinstance(state[key], Mapping) for key in ("latent", "scores"))
    except (KeyError, AttributeError, TypeError) as error:
        raise FormatError(
            need("a state of a Pruner", repr(error), "Pass what Pruner.state_dict() returned.")
        ) from error
    differ = [
        f"{key} {there[key]} there, {here[key]} here" for key in here if there[key] != here[key]
    ]
    if differ or not complete:
        raise FormatError(
            need(
                "a state of a Pruner of the same model and arguments",
                "; ".join(differ) or "masks of another size",
                "Build both with the same arguments.",
            )
        )


def plain_names(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """A state with layers named as in the network itself: earlier versions wrote the names that
    they have in DataParallel and other wrappers.
    """
    plan = state.get("plan") if isinstance(state, Mapping) else None
    rows = plan.get("layers") if isinstance(plan, Mapping) else None
    if not isinstance(rows, list) or not all(isinstance(row, list) and row for row in rows):
        return state  # the check says what is wrong
    named = {
        key: {plain_name(str(name)): value for name, value in state[key].items()}
        for key in ("latent", "scores")
        if isinstance(state.get(key), Mapping)
    }
    layers = [[plain_name(str(row[0])), *row[1:]] for row in rows]
    return {**state, "plan": {**cast("dict[str, Any]", plan), "layers": layers}, **named}
