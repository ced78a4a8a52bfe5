# SPDX-License-Identifier: Apache-2.0
"""One search over widths, empty units and kinds of weights, by measured costs."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ternary_ops.budget.allocate import Budget
from ternary_ops.budget.found import Found, FrontPoint
from ternary_ops.budget.problem import Problem, levels_of
from ternary_ops.budget.search_state import SearchState, digest
from ternary_ops.budget.solving import Solution, solve
from ternary_ops.budget.space import Design
from ternary_ops.budget.units import SHARES
from ternary_ops.budget.width_costs import fitted, measured, settings
from ternary_ops.errors import BadConfig, UnsupportedModel, need
from ternary_ops.graph.batches import samples
from ternary_ops.graph.nodes import is_ours
from ternary_ops.graph.signature import tensor_of
from ternary_ops.graph.wrappers import copy_of, unwrap
from ternary_ops.nn.config import TernaryConfig
from ternary_ops.program.cpu import isa, processor
from ternary_ops.program.layer_costs import KINDS
from ternary_ops.progress import Progress
from ternary_ops.prune.filter_costs import Cost
from ternary_ops.prune.filter_network import groups
from ternary_ops.prune.filter_scores import filter_score
from ternary_ops.prune.filters import FilterGroups
from ternary_ops.quantize.plan_rows import Plan
from ternary_ops.quantize.plans import free_layers, plan
from ternary_ops.train.distributed import from_first

VARY = ("widths", "zeros", "bits")


def search(
    model: nn.Module,
    example: Any,
    data: Iterable[Any],
    *,
    target_ms: float | None = None,
    target_bytes: int | None = None,
    config: TernaryConfig | None = None,
    rules: Mapping[str, TernaryConfig] | None = None,
    vary: Sequence[str] = VARY,
    scores: Mapping[str, Tensor] | None = None,
    threads: int = 1,
    state: str | Path | None = None,
    progress: Progress | None = None,
) -> Found:
    """Choose filters to remove, empty units of each layer and its kind of weights, all at once, so
    that the compiled network keeps to a target and its output changes least. Nothing is changed.

        found = tops.search(model, x, batches, target_ms=0.5)
        print(found)  # the front, and the network on it
        found.apply_(model)  # removes filters, quantizes; then train as ever, with a Pruner

    example: one input, as for compile; time is measured on one sample of it. data: batches, as for
    calibrate; 32 to 64 samples are plenty.
    target_ms, target_bytes: one of them: milliseconds of a call on this machine, with its
        instruction set and so many threads, or bytes of the file. The network that comes out was
        built and measured; a warning says so where none within 3 % of the target was found.
    config, rules: as for plan. Chosen for are the layers that follow `config` alone; what rules
        name, the first and last layer and depthwise ones keep what plan gives them.
    vary: what is chosen: "widths" of filter groups (`prune.groups`), "zeros", and "bits": ternary
        or 8-bit weights. What is left out stays as it is, or as in `config`.
    scores: by group, which channels stay, [width]; None: L2 norms of the filters.
    state: a JSON file of what was measured, written as it goes; with it, a search that was cut off
        goes on, and one for another target measures little. Delete it to measure anew.
    progress: who watches the stages; None: bars, or lines, on stderr.

    The error of a choice is the noise it brings to the output before training, over the signal, for
    each layer and group alone; errors are added. What training gives back does not count.

    Raises BadConfig for a target out of reach (naming the nearest within) and for none or two,
    FormatError for the state of another search, UnsupportedModel as compile does.
    """
    budget = _budget(target_ms, target_bytes, threads)
    varied = _varied(vary)
    network, x = at_hand(model, example)
    inputs = [x.detach().cpu() for x, _ in samples(network, data)]
    # Each layer's zeros are its own: nothing is left for a scope to spread.
    config = replace(TernaryConfig() if config is None else config, scope="layer")
    file = None if state is None else Path(state)

    def found() -> dict[str, Any]:
        problem = posed(network, x, inputs, budget, config, rules, varied, scores, file, progress)
        return _found(problem, solve(problem), budget, x).to_dict()

    return Found.from_dict(from_first(found), x)


def at_hand(model: nn.Module, example: Any) -> tuple[nn.Module, Tensor]:
    """A float network's copy on the CPU, and an input of one sample."""
    model = unwrap(model)
    if any(is_ours(module) for module in model.modules()):
        do = "Search before plan and quantize_."
        raise UnsupportedModel(need("a float network", "quantized layers", do))
    network = copy_of(model).cpu().eval()
    x = tensor_of(network, example)
    if not isinstance(x, Tensor):
        do = "Pass an input of the network."
        raise UnsupportedModel(need("an example that is a tensor", type(x).__name__, do))
    return network, x.detach().cpu()[:1]


def _budget(target_ms: float | None, target_bytes: int | None, threads: int) -> Budget:
    limits = [value for value in (target_ms, target_bytes) if value is not None]
    if len(limits) != 1 or not limits[0] > 0:
        got = f"target_ms={target_ms}, target_bytes={target_bytes}"
        do = "Pass target_ms=2.5 or target_bytes=500_000."
        raise BadConfig(need("one limit > 0, target_ms or target_bytes", got, do))
    return Budget(target_ms, target_bytes, threads)


def _varied(vary: Sequence[str]) -> frozenset[str]:
    chosen = (vary,) if isinstance(vary, str) else tuple(vary)
    if not chosen or set(chosen) - set(VARY):
        names = ", ".join(map(repr, VARY))
        raise BadConfig(need(f"vary as some of {names}", repr(vary), "Leave it out for all."))
    return frozenset(chosen)


def posed(
    network: nn.Module,
    x: Tensor,
    inputs: list[Tensor],
    budget: Budget,
    config: TernaryConfig,
    rules: Mapping[str, TernaryConfig] | None = None,
    varied: Collection[str] = VARY,
    scores: Mapping[str, Tensor] | None = None,
    state: Path | None = None,
    progress: Progress | None = None,
) -> Problem:
    """What a search chooses for a float network on the CPU, an example of one sample, batches."""
    replan = partial(plan, config=config, rules=rules, example=x)
    planned = replan(network)
    free = free_layers(network, planned, config, rules)
    if not free:
        do = "Pass fewer rules."
        raise BadConfig(need("layers to choose for", "none that follow `config` alone", do))
    cut, ranks = _groups(network, x, "widths" in varied, scores)
    kinds = KINDS if "bits" in varied else (config.weights,)
    return Problem(
        model=network,
        example=x,
        inputs=inputs,
        planned=planned,
        replan=replan,
        free=dict.fromkeys(free, kinds),
        zeros=SHARES if "zeros" in varied else (config.zeros,),
        groups=cut,
        scores=ranks,
        unit=budget.measure(),
        limit=budget.limit,
        state=SearchState(state, _about(network, x, inputs, budget, planned)),
        progress=progress,
    )


def width_cost(model: nn.Module, example: Any, threads: int = 1) -> Cost:
    """Milliseconds of a call by the widths of filter groups, for `prune.SbF(target_ms=, cost=)`.

    The network, dense at 8 bits, is narrowed to a few sets of widths and measured in the engine on
    this machine; between these a layer's time follows the shares of its channels. In a distributed
    run the first process measures, and all have its costs. Raises UnsupportedModel as compile does.
    """
    network, x = at_hand(model, example)
    config = TernaryConfig("int8", zeros=0.0, scope="layer")
    budget = Budget(ms=math.inf, threads=threads)
    problem = posed(network, x, [x], budget, config, varied=("widths",))
    tables = from_first(lambda: measured(problem, settings(problem), lambda: None))
    costs = fitted(problem, tables)

    def cost(widths: Mapping[str, float]) -> float:
        each = (costs.layer(name, "int8", 0.0, widths) for name in costs.parts)
        return costs.others(widths) + sum(each)

    return cost


def _groups(
    network: nn.Module, x: Tensor, wanted: bool, scores: Mapping[str, Tensor] | None
) -> tuple[FilterGroups, dict[str, Tensor]]:
    """Groups whose channels can go, and a score for each channel."""
    if not wanted:
        return FilterGroups([], {}, {}), {}
    read = groups(network, x).free
    free = FilterGroups([g for g in read if len(levels_of(g)) > 1], read.pixels, read.shapes)
    given = filter_score("l2")(free, network) if scores is None else scores
    found = {}
    for group in free:
        score = given.get(group.name)
        if score is None or tuple(score.shape) != (group.width,):
            got = "none" if score is None else list(score.shape)
            do = "prune.groups(model, example) lists the groups."
            raise BadConfig(need(f"scores [{group.width}] of {group.name!r}", got, do))
        found[group.name] = score.detach().cpu()
    return free, found


def _about(
    network: nn.Module,
    x: Tensor,
    inputs: Sequence[Tensor],
    budget: Budget,
    planned: Plan,
) -> dict[str, Any]:
    """What measurements hold for."""
    machine = f"{processor()}, {isa()}, {budget.threads} threads"
    return {
        "version": 1,
        "model": digest(network.state_dict().values()),
        "plan": hashlib.sha256(str(planned.to_dict()).encode()).hexdigest()[:16],
        "example": list(x.shape),
        "data": digest(inputs),
        "unit": budget.unit,
        "machine": machine if budget.unit == "ms" else "",
    }


def _found(problem: Problem, solution: Solution, budget: Budget, x: Tensor) -> Found:
    design = solution.design
    kept = problem.kept(design.widths)
    widths = [(g.name, g.width, len(kept[g.name])) for g in problem.groups if g.name in kept]
    points = [_point(problem, path) for path in solution.path]
    return Found(
        plan=solution.planned,
        kept=kept,
        unit=budget.unit,
        limit=budget.limit,
        cost=solution.cost,
        own=_point(problem, design),
        widths=tuple(widths),
        front=tuple(_front(points)),
        where=f"{processor()}, {isa()}, {budget.threads} thread{'s' * (budget.threads > 1)}",
        example=x,
    )


def _point(problem: Problem, design: Design) -> FrontPoint:
    whole = sum(group.width for group in problem.groups)
    left = sum(design.widths.get(group.name, group.width) for group in problem.groups)
    configs = [design.choices[name].config for name in problem.free]
    return FrontPoint(
        cost=design.cost,
        error=design.error,
        filters=left / whole if whole else 1.0,
        units=sum(config.zeros for config in configs) / len(configs),
        int8=sum(config.weights == "int8" for config in configs) / len(configs),
    )


def _front(points: Iterable[FrontPoint]) -> list[FrontPoint]:
    """Those that no other one beats in cost and error, cheapest first."""
    found: list[FrontPoint] = []
    for point in sorted(points, key=lambda p: (p.cost, p.error)):
        if not found or point.error < found[-1].error:
            found.append(point)
    return found
