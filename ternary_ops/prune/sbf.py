# SPDX-License-Identifier: Apache-2.0
"""SbF: filters scored by attention over their weights, and removed in mid-training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ternary_ops.errors import BadConfig, FormatError, UnsupportedModel, check_type, need
from ternary_ops.graph.nodes import is_ours
from ternary_ops.graph.wrappers import unwrap
from ternary_ops.prune.choice import channels_of, widths_above, widths_for
from ternary_ops.prune.filter_costs import Cost, FilterCosts
from ternary_ops.prune.filter_network import FilterNetwork
from ternary_ops.prune.filter_price import Price
from ternary_ops.prune.filter_scaling import LiveScores, Multiply, fold_, offsets, scaled_modules
from ternary_ops.prune.optimizer_state import forget
from ternary_ops.prune.removal import Removal, remove_

# Shares of the steps: prices begin, a target is met by what scores expect, and between these two
# and the third scores turn into a mask, with which the network trains until filters go.
_WARMUP, _ARRIVAL, _HARD = 0.1, 0.5, 0.9
_EVERY = 10  # steps between looks at which channels the mask keeps
_OFF = 0.5  # without a target the mask drops what scores less


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
        target_ms: the time to be left, by `cost`, a function of the widths of groups:
            `tops.budget.width_cost(model, example)`, measured in the engine, or one of your own.
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
        self.steps, self.round_to, self._head, self._done = steps, round_to, head, 0
        count: Cost = FilterCosts(self.groups).parameters
        target = None if target_params is None else target_params * count({})
        if target_ms is not None and cost is not None:
            count, target = cost, target_ms
        ends = (_WARMUP * steps, _ARRIVAL * steps)
        self._price = Price(self.groups, count, target, strength, *ends, round_to)
        self._kept: dict[str, Tensor] | None = None
        self._live = LiveScores(self.model, self.groups, head)
        self._scaled = scaled_modules(network.traced, self.groups)
        self._handles: list[Any] = []
        self._attach()

    def _attach(self) -> None:
        self._handles.append(self.model.register_forward_pre_hook(self._live.renew))
        for scaled in self._scaled:
            module = self.model.get_submodule(scaled.name)
            self._handles.append(module.register_forward_hook(Multiply(self._live, scaled)))

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
        """What the heads say, before clipping: the order in which filters go."""
        return self._by_name(0)

    def loss(self) -> Tensor:
        """The price of the scores, to be added to the loss of the task; 0 after finish_."""
        if self.finished:
            return torch.zeros(())
        return self._price.of(self._live.parts(self._live()[1]))

    def step(self) -> None:
        """Count a step of the optimizer; call it after each."""
        if self.finished:
            return
        self._done += 1
        widths = torch.stack([score.sum() for score in self.scores().values()]).tolist()
        names = (group.name for group in self.groups)
        self._price.step(self._done, dict(zip(names, widths, strict=True)))
        before, self._live.hardness = self._live.hardness, self._hardness()
        if self._live.hardness > 0 and before < 1 and (before == 0 or self._done % _EVERY == 0):
            self._live.mask = self._mask(self._choice())
        self._live.renew()

    def finish_(self, optimizer: torch.optim.Optimizer | None = None) -> Removal:
        """Remove the filters that are off, in place, and let go of heads and hooks.

        The lowest go, until the target is met; without one, those below 1/2. Widths are multiples
        of round_to. BatchNorm, or filters where none follows, take the scores of the others up,
        which are 1 where all steps were done. The optimizer, if given, goes on with what is left.
        Raises as remove_ does, with nothing changed.
        """
        if self.finished:
            raise BadConfig(need("finish_ once", "a second call", "Train on."))
        scores, kept = torch.cat(list(self.scores().values())), self._choice()
        self._detach()
        try:
            removal = remove_(self.model, self.example, kept, optimizer, round_to=self.round_to)
        except Exception:
            self._attach()
            raise
        fold_(self.model, self._scaled, scores, self._mask(removal.kept) > 0)
        self._end(removal.kept, optimizer)
        return removal

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on: heads, steps, the controller, and what was removed."""
        return {
            "plan": self._plan(),
            "done": self._done,
            "price": self._price.state_dict(),
            "heads": self._live.heads.state_dict(),
            "mask": self._live.mask.bool(),
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
        self._done = int(state["done"])
        self._price.load_state_dict(state["price"])
        self._live.mask, self._live.hardness = state["mask"].float(), self._hardness()
        self._live.renew()

    def _plan(self) -> dict[str, Any]:
        return {
            "groups": [[group.name, group.width] for group in self.groups],
            "head": self._head,
            "steps": self.steps,
            "strength": self._price.strength,
            "target": self._price.target,
        }

    @torch.no_grad()
    def _by_name(self, which: int) -> dict[str, Tensor]:
        if self.finished:
            raise BadConfig(need("scores before finish_", "none any more", "Ask before."))
        self._live.renew()
        parts = self._live.parts(self._live()[which])
        return {group.name: part for group, part in zip(self.groups, parts, strict=True)}

    def _hardness(self) -> float:
        way = (self._done / self.steps - _ARRIVAL) / (_HARD - _ARRIVAL)
        return min(1.0, max(0.0, way))

    def _choice(self) -> dict[str, Tensor]:
        """The channels to keep: those of the mask, once it counts fully."""
        if self._live.hardness == 1:
            parts = zip(self.groups, self._live.parts(self._live.mask), strict=True)
            return {group.name: part.nonzero().flatten() for group, part in parts}
        raw, price = self.raw_scores(), self._price
        if price.target is None:
            widths = widths_above(self.groups, raw, _OFF, self.round_to)
        else:
            widths = widths_for(self.groups, raw, price.cost, price.target, round_to=self.round_to)
        return channels_of(self.groups, raw, widths)

    def _mask(self, kept: Mapping[str, Tensor]) -> Tensor:
        """1 for each channel that is kept, 0 for others: float32 [n]."""
        starts, total = offsets(self.groups)
        mask = torch.zeros(total)
        for group in self.groups:
            mask[starts[group.name] + kept[group.name]] = 1
        return mask

    def _end(self, kept: Mapping[str, Tensor], optimizer: torch.optim.Optimizer | None) -> None:
        """Let go of heads and hooks."""
        self._kept = dict(kept)
        forget(optimizer, self.parameters())


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
        do = "Pass both, cost=tops.budget.width_cost(model, example), or neither."
        raise BadConfig(need("target_ms with its cost", got, do))
    if strength == 0 and (target_params is not None or target_ms is not None):
        do = "The controller multiplies the strength: pass one above 0."
        raise BadConfig(need("a strength above 0 with a target", 0, do))
