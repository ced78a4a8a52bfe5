# SPDX-License-Identifier: Apache-2.0
"""SbF: filters scored by attention over their weights, and removed in mid-training."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ternary_ops.errors import BadConfig, FormatError, UnsupportedModel, check_type, need
from ternary_ops.graph.nodes import is_ours
from ternary_ops.graph.wrappers import unwrap
from ternary_ops.prune.choice import channels_of, round_up, widths_above, widths_for
from ternary_ops.prune.filter_costs import Cost, FilterCosts
from ternary_ops.prune.filter_network import FilterNetwork
from ternary_ops.prune.filter_scaling import LiveScores, Multiply, fold_, offsets, scaled_modules
from ternary_ops.prune.removal import Removal, remove_

# Scores below go; one that stays all the same is no lower, so that its filter can learn.
_OFF = 1e-2
# How concave the price of a score is at the end; steps between looks at what channels cost.
_BEND, _EVERY = 4.0, 10
# Shares of the steps: none costs anything before the first, and a target is met at the second.
_WARMUP, _ARRIVAL = 0.1, 0.9
# The controller of a target: log strength = integral + proportional part of the gap to the line.
_INTEGRAL, _PROPORTIONAL = 100.0, 20.0


class SbF:
    """Scores every filter of a network while it trains, and then removes the lowest.

        sbf = prune.SbF(model, example, strength=0.1, steps=3000)
        optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9, weight_decay=5e-4)
        optimizer.add_param_group({"params": sbf.parameters(), "weight_decay": 0.0})
        for step, (x, y) in enumerate(batches):
            loss = F.cross_entropy(model(x), y) + sbf.loss()
            optimizer.zero_grad(); loss.backward(); optimizer.step(); sbf.step()
            if sbf.due:
                print(sbf.finish_(optimizer))  # and go on training the smaller network

    A head per layer looks at the layer's filters, all at once, and gives each a score in 0..1, by
    which its map is multiplied behind BatchNorm. All heads learn with the weights, by the loss of
    the task and a price on scores. Layers whose channels a residual sum joins share one score.

    What is verified, of Babaiee et al. 2022 (arXiv 2204.07412, 2210.11114): scores are a function
    of the filters' weights, learned end to end, aware of correlations within a layer by attention,
    all layers at once, in one stage from scratch, without settings of single layers; scores are
    continuous and stand in the loss as an additive term. Everything else is a reconstruction: the
    form of the heads, where scores multiply, squashing, schedules, the controller, the removal.
    """

    def __init__(
        self,
        model: nn.Module,
        example: Any,
        strength: float,
        steps: int,
        target_params: float | None = None,
        target_ms: float | None = None,
        cost: Cost | None = None,
        head: str = "attention",
        round_to: int = 4,
    ) -> None:
        """Begin to score. The network is on its device, and not yet quantized or wrapped.

        example: an input, as for compile.
        strength: the price of a score, lambda; with a target, the one it begins with.
        steps: optimizer steps until finish_ is due.
        target_params: the share of all parameters to be left, in 0..1.
        target_ms: the time to be left, in the unit of `cost`: a function of the widths of groups.
        head: "attention", or "gates", which do not see the weights.
        """
        _check(strength, steps, target_params, target_ms, cost, round_to)
        self.model, self.example = unwrap(model), example
        if any(is_ours(module) for module in self.model.modules()):
            do = "Score and remove filters first, then plan and quantize_."
            raise UnsupportedModel(need("a float network", "quantized layers", do))
        network = FilterNetwork(self.model, example)
        self.groups = network.groups.free
        if not self.groups:
            do = "prune.groups(model, example) says why each is fixed."
            raise UnsupportedModel(need("filters that can be removed", "none", do))
        self.strength, self.steps, self.round_to = strength, steps, round_to
        self._cost: Cost = FilterCosts(self.groups).parameters
        self._target: float | None = None
        if target_params is not None:
            self._target = target_params * self._cost({})
        if target_ms is not None and cost is not None:
            self._cost, self._target = cost, target_ms
        self._whole = self._cost({})
        self._head, self._done, self._integral, self._gap = head, 0, 0.0, 0.0
        self._kept: dict[str, Tensor] | None = None
        self._live = LiveScores(self.model, self.groups, head)
        self._places = scaled_modules(network.traced, self.groups)
        self._handles: list[Any] = []
        self._shares = self._marginal({group.name: float(group.width) for group in self.groups})
        self._attach()

    def _attach(self) -> None:
        self._handles.append(self.model.register_forward_pre_hook(self._live.renew))
        for place in self._places:
            module = self.model.get_submodule(place.name)
            self._handles.append(module.register_forward_hook(Multiply(self._live, place)))

    def _detach(self) -> None:
        while self._handles:
            self._handles.pop().remove()

    def parameters(self) -> Iterator[nn.Parameter]:
        """Those of the heads, for a group of the optimizer's without weight decay."""
        return self._live.heads.parameters()

    @property
    def due(self) -> bool:
        """True once the steps are done, until finish_."""
        return self._done >= self.steps and self._kept is None

    @property
    def finished(self) -> bool:
        """True after finish_."""
        return self._kept is not None

    def scores(self) -> dict[str, Tensor]:
        """The scores in 0..1 of each group, [width], without gradient."""
        return self._by_name(1)

    def raw_scores(self) -> dict[str, Tensor]:
        """The scores before squashing, of one order with scores(): what the removal ranks by."""
        return self._by_name(0)

    def loss(self) -> Tensor:
        """The price of the scores, to be added to the loss of the task; 0 after finish_."""
        if self.finished:
            return torch.zeros(())
        parts = self._live.parts(self._live()[1])
        bend = self._bend()
        prices = [
            share * (part + bend * part * (1 - part)).sum()
            for share, part in zip(self._shares, parts, strict=True)
        ]
        return self._price() * torch.stack(prices).sum()

    def step(self) -> None:
        """Count a step of the optimizer; call it after each."""
        if self.finished:
            return
        self._done += 1
        expected = self._expected()
        if self._done % _EVERY == 0:
            self._shares = self._marginal(expected)
        if self._target is not None and self._done >= _WARMUP * self.steps:
            self._gap = self._measure(expected, self._target)
            self._integral += _INTEGRAL / self.steps * self._gap

    def finish_(self, optimizer: torch.optim.Optimizer | None = None) -> Removal:
        """Remove the filters that are off, in place; others keep what their scores made of them.

        The lowest go, until the target is met; without one, all below 0.01. BatchNorm, or filters
        where none follows, take the scores of the others up, and heads and hooks are gone. The
        optimizer, if given, goes on with what is left: see remove_. It raises as that does, with
        nothing changed.
        """
        if self.finished:
            raise BadConfig(need("finish_ once", "a second call", "Train on."))
        raw = self.raw_scores()
        scores = torch.cat(list(self.scores().values()))
        widths = self._widths(raw)
        kept = channels_of(self.groups, raw, widths)
        self._detach()
        try:
            removal = remove_(
                self.model, self.example, kept, optimizer=optimizer, round_to=self.round_to
            )
        except Exception:
            self._attach()
            raise
        self._fold(scores.clamp(min=_OFF), removal.kept)
        self._end(removal.kept, optimizer)
        return removal

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on: heads, steps, the controller, and what was removed."""
        return {
            "plan": self._plan(),
            "done": self._done,
            "integral": self._integral,
            "gap": self._gap,
            "heads": self._live.heads.state_dict(),
            "kept": self._kept,
        }

    def load_state_dict(
        self, state: Mapping[str, Any], optimizer: torch.optim.Optimizer | None = None
    ) -> None:
        """The inverse, before the states of network and optimizer are loaded: filters that were
        removed there are removed here.

        Raises FormatError for a state of another network or other arguments.
        """
        plan = state.get("plan") if isinstance(state, Mapping) else None
        if plan != self._plan() or self.finished:
            got = "another" if not self.finished else "one that has removed its filters already"
            do = "Build SbF with the same arguments on the untouched network."
            raise FormatError(need("a state of this SbF", got, do))
        if state["kept"] is not None:
            self._detach()
            removal = remove_(self.model, self.example, state["kept"], optimizer, round_to=1)
            self._end(removal.kept, optimizer)
        else:
            self._live.heads.load_state_dict(state["heads"])
        self._done, self._integral = int(state["done"]), float(state["integral"])
        self._gap = float(state["gap"])

    def _plan(self) -> dict[str, Any]:
        return {
            "groups": [[group.name, group.width] for group in self.groups],
            "head": self._head,
            "steps": self.steps,
            "strength": self.strength,
            "target": self._target,
        }

    @torch.no_grad()
    def _by_name(self, which: int) -> dict[str, Tensor]:
        self._live.renew()
        parts = self._live.parts(self._live()[which])
        return {group.name: part for group, part in zip(self.groups, parts, strict=True)}

    def _price(self) -> float:
        """The strength at this step: 0 while the network warms up."""
        if self._done < _WARMUP * self.steps:
            return 0.0
        if self._target is None:
            return self.strength
        return self.strength * math.exp(self._integral + _PROPORTIONAL * self._gap)

    def _expected(self) -> dict[str, float]:
        """The sum of each group's scores."""
        widths = torch.stack([score.sum() for score in self.scores().values()]).tolist()
        return {group.name: width for group, width in zip(self.groups, widths, strict=True)}

    def _marginal(self, expected: Mapping[str, float]) -> list[float]:
        """What a channel of each group costs, as a share of the whole network's cost, at these
        widths; nothing where no more of them can go.
        """
        cost, shares = self._cost(expected), []
        for group in self.groups:
            width = expected[group.name]
            least = round_up(group, 1, self.round_to)
            down = min(1.0, width - least)
            fewer = {**expected, group.name: width - down}
            shares.append((cost - self._cost(fewer)) / down / self._whole if down > 0 else 0.0)
        return shares

    def _measure(self, expected: Mapping[str, float], target: float) -> float:
        """How far the expected cost lies above a straight line to the target, of the whole cost."""
        way = min(1.0, (self._done / self.steps - _WARMUP) / (_ARRIVAL - _WARMUP))
        line = 1 + way * (target / self._whole - 1)
        return self._cost(expected) / self._whole - line

    def _bend(self) -> float:
        """How concave the price is."""
        return _BEND * min(1.0, max(0.0, 2 * self._done / self.steps - 1))

    def _widths(self, raw: Mapping[str, Tensor]) -> dict[str, int]:
        if self._target is not None:
            return widths_for(self.groups, raw, self._cost, self._target, round_to=self.round_to)
        return widths_above(self.groups, raw, _OFF, self.round_to)

    def _fold(self, scores: Tensor, kept: Mapping[str, Tensor]) -> None:
        starts, total = offsets(self.groups)
        alive = torch.ones(total, dtype=torch.bool)
        for group in self.groups:
            if group.name in kept:
                alive[starts[group.name] : starts[group.name] + group.width] = False
                alive[starts[group.name] + kept[group.name]] = True
        fold_(self.model, self._places, scores, alive)

    def _end(self, kept: Mapping[str, Tensor], optimizer: torch.optim.Optimizer | None) -> None:
        """Let go of heads and hooks."""
        self._kept = dict(kept)
        mine = {id(p) for p in self.parameters()}
        if optimizer is None:
            return
        for p in self.parameters():
            optimizer.state.pop(p, None)
        for group in optimizer.param_groups:
            group["params"][:] = [p for p in group["params"] if id(p) not in mine]
        optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]


def _check(
    strength: float,
    steps: int,
    target_params: float | None,
    target_ms: float | None,
    cost: Cost | None,
    round_to: int,
) -> None:
    """Raise BadConfig for arguments out of range."""
    check_type("strength", strength, (int, float), "0 removes nothing; 0.1 is a start.")
    check_type("steps", steps, int, "Pass the number of optimizer steps until the removal.")
    check_type("round_to", round_to, int, "4 suits the engine, 1 any width.")
    if not (strength >= 0 and steps >= 1 and round_to >= 1):
        got = f"{strength}, {steps}, {round_to}"
        raise BadConfig(need("strength >= 0, steps >= 1, round_to >= 1", got, "Correct it."))
    if target_params is not None and target_ms is not None:
        raise BadConfig(need("one target", "target_params and target_ms", "Leave one out."))
    if target_params is not None and not 0 < target_params <= 1:
        do = "Pass the share of the parameters to be left."
        raise BadConfig(need("target_params in 0..1", target_params, do))
    if (target_ms is None) != (cost is None):
        got = f"target_ms={target_ms}, cost={'None' if cost is None else 'given'}"
        raise BadConfig(need("target_ms with its cost", got, "Pass both, or neither."))
    if strength == 0 and (target_params is not None or target_ms is not None):
        do = "The controller multiplies the strength: pass one above 0."
        raise BadConfig(need("a strength above 0 with a target", 0, do))
