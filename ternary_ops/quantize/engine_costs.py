# SPDX-License-Identifier: Apache-2.0
"""Costs of a network's layers in the engine, measured before any training.

The network runs with every planned layer at 8 bits and ranges of one example: ternary codes need
not be computed, since the table that is measured from it (`program.layer_costs`) has random ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from ternary_ops.compiler import compile  # noqa: A004
from ternary_ops.compiler.island_program import IslandProgram
from ternary_ops.errors import BadConfig, UnsupportedModel, need
from ternary_ops.graph.fold_batchnorm import fold_batchnorm_
from ternary_ops.graph.wrappers import copy_of
from ternary_ops.nn import PackedLayer, TernaryLayer
from ternary_ops.nn.engine_cost import EngineCost
from ternary_ops.program.layer_costs import MOST_EMPTY, CostTable, measure
from ternary_ops.quantize.calibration import calibrate
from ternary_ops.quantize.plan_rows import Plan, PlanRow
from ternary_ops.quantize.planned_layers import replace_planned
from ternary_ops.runtime import Program
from ternary_ops.train.distributed import from_first


def eight_bits(
    model: nn.Module, x: Tensor, planned: Plan, islands: bool = False
) -> Program | IslandProgram:
    """A copy of the network with all planned layers dense at 8 bits and ranges of x, compiled.

    Layers that are quantized already stay as they are. Raises UnsupportedModel as compile does.
    """
    network = copy_of(model).eval()
    quantized = any(isinstance(m, (TernaryLayer, PackedLayer)) for m in network.modules())
    if not quantized:
        with suppress(UnsupportedModel):  # not traced as a whole: its parts are folded one by one
            fold_batchnorm_(network)  # as long as weights are floats, which is faster
    replace_planned(network, Plan(tuple(_dense(row) for row in planned)))
    layers = [m for m in network.modules() if isinstance(m, TernaryLayer)]
    if any(layer.config.integer_input for layer in layers):  # float activations have no ranges
        calibrate(network, [x], method="minmax")
    return compile(network, x, islands=islands, allow_unfinished=quantized)


def _dense(row: PlanRow) -> PlanRow:
    if row.config is None:
        return row
    config = replace(row.config, weights="int8", zeros=0.0)
    return replace(row, action="int8", pattern="", config=config)


def programs(made: Program | IslandProgram) -> list[Program]:
    """The programs that a compiled network is made of."""
    parts: Sequence[Any] = [made] if isinstance(made, Program) else made.parts
    return [part for part in parts if isinstance(part, Program)]


def with_costs(model: nn.Module, planned: Plan, example: Tensor | None) -> Plan:
    """The plan with the cost of every layer that scope "time" ranks.

    Nothing is measured where all have theirs. Raises BadConfig where an example is missing,
    UnsupportedModel, naming them, for layers that are in no program.
    """
    rows = {row.name: row for row in planned if _by_time(row)}
    if all(row.cost is not None for row in rows.values()):
        return planned
    if example is None:
        raise BadConfig(
            need(
                'an example for scope "time", which ranks by costs measured in the engine',
                f"none, and no costs of {', '.join(n for n, r in rows.items() if r.cost is None)}",
                'Pass plan(model, config, example=x), x one input, or scope="global".',
            )
        )
    found = from_first(lambda: _measured(model, planned, rows, example))
    costs = {name: EngineCost.from_dict(values) for name, values in found.items()}
    return Plan(tuple(replace(row, cost=costs.get(row.name, row.cost)) for row in planned))


def _by_time(row: PlanRow) -> bool:
    return row.config is not None and bool(row.pattern) and row.config.scope == "time"


def _measured(
    model: nn.Module, planned: Plan, rows: dict[str, PlanRow], example: Tensor
) -> dict[str, dict[str, Any]]:
    """Costs by name, as plain values."""
    kinds = {name: row.action for name, row in rows.items()}
    tables = cost_tables(model, planned, kinds, example)
    found: dict[str, dict[str, Any]] = {}
    for table in tables:
        here = {name: kind for name, kind in kinds.items() if name in table.layers}
        for name, ms in table.savings(here).items():
            cost = EngineCost(ms, table.machine, table.isa, table.threads)
            found[name] = cost.to_dict()
    missing = [name for name in kinds if name not in found]
    if missing:
        do = 'Give them scope="global" by a rule, or skip them.'
        got = f"{', '.join(missing)} outside of it"
        raise UnsupportedModel(need('layers that the engine runs for scope "time"', got, do))
    return found


def cost_tables(
    model: nn.Module, planned: Plan, kinds: dict[str, str], example: Tensor
) -> list[CostTable]:
    """The end points of each layer's costs, one table a program of the network."""
    points = [(kind, zeros) for kind in set(kinds.values()) for zeros in (0.0, MOST_EMPTY)]
    return tables_at(model, planned, list(kinds), points, example)


def tables_at(
    model: nn.Module,
    planned: Plan,
    names: list[str],
    points: list[tuple[str, float]],
    example: Tensor,
) -> list[CostTable]:
    """Costs of layers at these kinds and shares of empty quads, one table a program."""
    network, x = copy_of(model).cpu().float(), example[:1].detach().cpu()
    try:
        made = eight_bits(network, x, planned)
    except UnsupportedModel:
        made = eight_bits(network, x, planned, islands=True)
    return [measure(program, names, points) for program in programs(made)]


def share_saved(model: nn.Module, planned: Plan, name: str, zeros: float, example: Tensor) -> float:
    """The share of a call's time that so many empty quads of an 8-bit layer save, in the network as
    planned; 0 for a layer in no program. In a distributed run what the first process measures.
    """
    rows = [(row.name, row.action, row.config) for row in planned if row.pattern]
    kinds = {layer: (kind, config.zeros) for layer, kind, config in rows if config is not None}
    dense, emptied = ("int8", 0.0), ("int8", zeros)
    kinds[name] = dense

    def measured() -> float:
        points = sorted({*kinds.values(), emptied})
        tables = tables_at(model, planned, list(kinds), points, example)
        here = [table for table in tables if name in table.layers]
        saved = sum(table.ms(name, *dense) - table.ms(name, *emptied) for table in here)
        return saved / sum(table.total({n: kinds[n] for n in table.layers}) for table in tables)

    return float(from_first(measured))
