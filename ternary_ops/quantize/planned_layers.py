# SPDX-License-Identifier: Apache-2.0
"""The layers of a plan take the place of a network's float ones."""

from __future__ import annotations

from torch import nn

import ternary_ops.nn as tnn
from ternary_ops.errors import UnsupportedModel, need
from ternary_ops.graph.function_calls import send_function_calls_
from ternary_ops.graph.nodes import layer_class
from ternary_ops.graph.observed import travel_in_state
from ternary_ops.graph.replace import replace_modules
from ternary_ops.graph.subclass_twins import twin_of
from ternary_ops.quantize.plan_rows import Plan, PlanRow, weight_shape


def replace_planned(model: nn.Module, chosen: Plan) -> None:
    """Replace layers in place, as planned: all are made before the first one is replaced.

    Raises UnsupportedModel for the plan of another model.
    """
    modules = dict(model.named_modules())
    new: dict[nn.Module, nn.Module] = {}
    for row in chosen:
        module = modules.get(row.name)
        shape = weight_shape(module)
        if module is None or shape != row.shape:
            raise UnsupportedModel(
                need(
                    f"a {row.type} {row.name!r} of shape {list(row.shape)}, as the plan has",
                    "no such layer here" if module is None else list(shape),
                    "Make the plan from this model.",
                )
            )
        if row.config is not None and not isinstance(module, tnn.TernaryLayer):
            new[module] = _quantized(module, row)
    replace_modules(model, new)
    send_function_calls_(model)
    travel_in_state(model)


def _quantized(module: nn.Module, row: PlanRow) -> nn.Module:
    plain = module if layer_class(module) in (nn.Linear, nn.Conv2d) else twin_of(module)
    if row.config is None or not isinstance(plain, (nn.Linear, nn.Conv2d)):
        what = f"a {row.type} {row.name!r}, as the plan has"
        do = "Make the plan from this model."
        raise UnsupportedModel(need(what, type(module).__name__, do))
    if isinstance(plain, nn.Linear):
        made: tnn.TernaryLayer = tnn.TernaryLinear.from_float(plain, row.config)
    else:
        made = tnn.TernaryConv2d.from_float(plain, row.config)
    made.cost = row.cost
    return made
