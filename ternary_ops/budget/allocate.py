# SPDX-License-Identifier: Apache-2.0
"""Mixed-precision allocation: weight type and sparsity by layer, within a budget of time or bytes.

Cost: in time, of the cost table of this machine (`program.layer_costs`), measured once; in bytes,
of the weights of the network compiled once per candidate, applied to all layers. Error: each
candidate's effect on the output, measured layer by layer, before any training. Choice: starting
from the cheapest candidates, greedily take the step that removes most error per cost (on the convex
hull of each layer's candidates; a Lagrangian relaxation of the knapsack problem).
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ternary_ops import runtime
from ternary_ops.compiler import compile  # noqa: A004
from ternary_ops.errors import BadConfig, need
from ternary_ops.graph.batches import samples
from ternary_ops.graph.wrappers import copy_of
from ternary_ops.io.container import WeightEntry, dumps
from ternary_ops.nn.config import TernaryConfig
from ternary_ops.program.layer_costs import CostTable, measure
from ternary_ops.progress import progress_bars
from ternary_ops.prune import Pruner
from ternary_ops.quantize.calibration import calibrate
from ternary_ops.quantize.convert import quantize_
from ternary_ops.quantize.engine_costs import eight_bits
from ternary_ops.quantize.plan_rows import Plan, PlanRow
from ternary_ops.runtime import Program

# Shares of empty units that are tried for ternary and for 8-bit weights.
TERNARY_ZEROS = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95)
INT8_ZEROS = (0.0, 0.5, 0.75, 0.9)
_LEVELS = [("ternary", z) for z in TERNARY_ZEROS] + [("int8", z) for z in INT8_ZEROS]


@dataclass(frozen=True)
class Budget:
    """Limit on the compiled network: either ms per call on one sample, or bytes of its file.

    threads: the engine's threads while time is measured. Raises BadConfig unless exactly one limit
    is given and all values are positive.
    """

    ms: float | None = None
    bytes: int | None = None
    threads: int = 1

    def __post_init__(self) -> None:
        limits = [value for value in (self.ms, self.bytes) if value is not None]
        if len(limits) != 1 or not limits[0] > 0 or self.threads < 1:
            do = "Pass Budget(ms=2.5) or Budget(bytes=500_000)."
            raise BadConfig(need("a budget with one limit > 0 and threads >= 1", self, do))

    @property
    def limit(self) -> float:
        """The one number."""
        return float(self.ms if self.ms is not None else self.bytes or 0)

    @property
    def unit(self) -> str:
        """ "ms" or "bytes"."""
        return "ms" if self.ms is not None else "bytes"

    def allocate(
        self, model: nn.Module, plan: Plan, free: list[str], batches: Iterable[Any]
    ) -> Plan:
        """See `allocate`: what plan(auto=True) asks for."""
        return allocate(model, plan, free, batches, self)


@dataclass(frozen=True)
class Choice:
    """One candidate of a layer: its config, its cost in the budget's unit, its error.

    error: summed squared change of the output over its sum of squares, this layer changed alone.
    """

    config: TernaryConfig
    cost: float
    error: float


def allocate(
    model: nn.Module, plan: Plan, free: list[str], batches: Iterable[Any], budget: Budget
) -> Plan:
    """`plan` with new configs for the layers named in `free`, chosen within the budget.

    model: float, on the CPU; not changed. Raises BadConfig when even the cheapest candidates exceed
    the budget, with their cost, and the errors of compile for a network that has no program form.
    """
    inputs = [x for x, _ in samples(model, batches)]
    table: dict[str, list[Choice]] = {name: [] for name in free}
    rest = 0.0
    candidates = _candidates(plan, free)
    times = _times(model, plan, free, inputs[0][:1], budget) if budget.unit == "ms" else None
    with progress_bars() as bars, bars.stage("cost table", len(candidates)) as advance:
        for configs in candidates:
            trial = copy_of(model).eval()
            rows = [_with(row, configs.get(row.name)) for row in plan]
            quantize_(trial, Plan(tuple(rows)))
            if any(row.config is not None and row.config.zeros > 0 for row in rows):
                Pruner(trial, "one_shot", total_steps=1).step()
            calibrate(trial, inputs)
            if times is None:
                costs, others = _bytes(trial, inputs[0][:1], free)
            else:
                kinds = {name: (configs[name].weights, configs[name].zeros) for name in free}
                costs, others = {n: times.ms(n, *kinds[n]) for n in free}, times.others
            rest = max(rest, others)
            for name, error in _output_errors(model, trial, free, inputs).items():
                table[name].append(Choice(configs[name], costs[name], error))
            advance()
    chosen = choose(table, budget.limit - rest)
    if chosen is None:
        least = rest + sum(min(c.cost for c in choices) for choices in table.values())
        raise BadConfig(
            need(
                f"a network that fits into {budget.limit:g} {budget.unit}",
                f"{least:.4g} {budget.unit} with every layer at its cheapest, {rest:.4g} of them "
                f"outside of these layers",
                "Raise the budget, or give fixed layers cheaper rules.",
            )
        )
    rows = []
    for row in plan:
        choice = chosen.get(row.name)
        reason = row.reason
        if choice is not None:
            reason = f"auto: {choice.cost:.3g} {budget.unit}, error {choice.error:.2g}"
        rows.append(_with(row, None if choice is None else choice.config, reason))
    return Plan(tuple(rows))


def choose(table: Mapping[str, list[Choice]], limit: float) -> dict[str, Choice] | None:
    """One choice a layer with costs that sum to at most `limit`; None where there is none.

    Steps along every layer's lower convex hull of error over cost, steepest first, as long as they
    fit; a layer whose next step does not fit is done.
    """
    hulls = {name: hull(choices) for name, choices in table.items()}
    at = dict.fromkeys(hulls, 0)
    spent = sum(points[0].cost for points in hulls.values())
    if spent > limit:
        return None
    open_layers = {name for name, points in hulls.items() if len(points) > 1}
    while open_layers:
        name = max(open_layers, key=lambda n: _slope(hulls[n], at[n]))
        points, k = hulls[name], at[name]
        more = points[k + 1].cost - points[k].cost
        if spent + more <= limit:
            spent += more
            at[name] = k + 1
        if spent + more > limit or at[name] + 1 == len(points):
            open_layers.discard(name)
    return {name: points[at[name]] for name, points in hulls.items()}


def hull(choices: list[Choice]) -> list[Choice]:
    """The choices on the lower convex hull, cost rising, error falling ever more slowly."""
    points: list[Choice] = []
    for choice in sorted(choices, key=lambda c: (c.cost, c.error)):
        if points and choice.error >= points[-1].error:
            continue
        points.append(choice)
        while len(points) > 2 and _slope(points, -3) <= _slope(points, -2):
            del points[-2]
    return points


def _slope(points: list[Choice], k: int) -> float:
    """Harm that goes away for one unit of cost between points k and k + 1."""
    a, b = points[k], points[k + 1]
    return (a.error - b.error) / max(b.cost - a.cost, 1e-12)


def _candidates(plan: Plan, free: list[str]) -> list[dict[str, TernaryConfig]]:
    """Every candidate for all free layers at once."""
    found = []
    for weights, zeros in _LEVELS:
        configs = {}
        for name in free:
            config = plan[name].config
            if config is None:
                raise TypeError(f"{name} has no config")  # unreachable: free layers have one
            configs[name] = replace(config, weights=weights, zeros=zeros, scope="layer")
        found.append(configs)
    return found


def _with(row: PlanRow, config: TernaryConfig | None, reason: str | None = None) -> PlanRow:
    if config is None:
        return row
    pattern = config.pattern if config.zeros > 0 or config.weights == "ternary" else ""
    reason = row.reason if reason is None else reason
    return replace(row, action=config.weights, config=config, pattern=pattern, reason=reason)


def _times(model: nn.Module, plan: Plan, free: list[str], x: Tensor, budget: Budget) -> CostTable:
    """Milliseconds of each free layer at every candidate's kind and share of empty quads."""
    program = eight_bits(model, x, plan)
    if not isinstance(program, Program):
        raise TypeError("a program without islands is one")  # unreachable: none were asked for
    with runtime.num_threads(budget.threads):
        return measure(program, free, _LEVELS, x.contiguous().numpy())


def _bytes(trial: nn.Module, x: Tensor, free: list[str]) -> tuple[dict[str, float], float]:
    """Bytes of each free layer in the compiled network, and of everything else together."""
    program = compile(trial, x)
    found = dict.fromkeys(free, 0.0)
    for weight in program.graph.weights:
        if weight.name in found:
            found[weight.name] += _coded(weight.kind, weight.array)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "trial.safetensors")
        program.save(file)
        total = file.stat().st_size
    return found, total - sum(found.values())


def _coded(kind: str, values: NDArray[Any]) -> int:
    """Bytes of one weight in a file of its own, without what the file itself takes."""
    full, bare = (
        len(dumps("weights", {}, [WeightEntry("w", kind, v)])) for v in (values, values[:0])
    )
    return full - bare


@torch.no_grad()
def _output_errors(
    model: nn.Module, trial: nn.Module, free: list[str], inputs: list[Tensor]
) -> dict[str, float]:
    """The change of the output when one layer after the other has the trial's weights."""
    probe = copy.deepcopy(model).eval()
    for norm in probe.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            # Statistics of the very batch: training would adapt them, and their shift is no loss.
            norm.train()
            norm.momentum = 0.0
    reference = [probe(x).double() for x in inputs]
    signal = sum(float(y.square().sum()) for y in reference)
    found = {}
    for name in free:
        weight = probe.get_submodule(name).get_parameter("weight")
        kept = weight.clone()
        layer: Any = trial.get_submodule(name)
        weight.copy_(layer.to_float().weight)
        error = sum(
            float((probe(x).double() - y).square().sum())
            for x, y in zip(inputs, reference, strict=True)
        )
        weight.copy_(kept)
        found[name] = error / max(signal, 1e-30)
    return found
