# SPDX-License-Identifier: Apache-2.0
"""One-shot pruning by the loss: optimal brain surgeon with the empirical Fisher matrix.

With H = F, in blocks (`fisher_blocks`), removing unit q costs w_q^T ((H^-1)_qq)^-1 w_q / 2 of the
loss; a block's units go cheapest first, the others making up for it, and what survives takes the
best values for all that is gone (WoodFisher: Singh and Alistarh 2020, arXiv 2004.14340; in groups,
as the block surgeon of Kurtic et al. 2022, arXiv 2203.07259). Both leave the update of several
weights at once to a sum of single updates or to batches; here it is exact within a block, by the
functions that `reconstruct_` uses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ternary_ops.errors import BadConfig, UnsupportedModel, check_type, need
from ternary_ops.graph.wrappers import unwrap
from ternary_ops.memory import free_memory
from ternary_ops.prune.allocation import make_groups
from ternary_ops.prune.criteria.probe import Loss, Pairs, check_finite, pairs
from ternary_ops.prune.fisher_blocks import Blocks, Slopes, in_parts, slopes_of
from ternary_ops.prune.obs import removal, surgery
from ternary_ops.prune.one_shot import in_float, row_targets
from ternary_ops.prune.ranking import Group, SummaryRow, summary
from ternary_ops.prune.targets import Target


def fisher_(
    model: nn.Module,
    batches: Iterable[Any],
    zeros: float | Mapping[str, float] | None = None,
    pattern: str | None = None,
    scope: str | None = None,
    skip: str | Sequence[str] = (),
    *,
    loss: Loss = F.cross_entropy,
    block: int = 64,
    damp: float = 1e-3,
    steps: int = 1,
    memory: float | None = None,
    on_layer: Callable[[str], None] = lambda name: None,
) -> list[SummaryRow]:
    """One-shot pruning: prune `model` in place to its target where the loss rises least, and change
    the remaining weights to make up for it.

    zeros, pattern, scope, skip: as for Pruner, which on a quantized model continues from the
    resulting masks; patterns of one output channel. Under scope "time" units count by what they
    cost for each millisecond they save. batches: pairs of input and label, some hundred samples.
    loss: of output and label. block: weights whose second derivatives are taken together. damp:
    added to the diagonal of H, relative to its mean in each layer. steps: of equal factors in what
    is left, each with gradients of its own. memory: bytes for the gradients of samples (default:
    half of what is free); with fewer than all need at once they are computed in parts, twice.
    on_layer: called with each layer's name, when ranked and when changed.

    One backward pass a sample and step. A second call goes on from the zeros of a first. Returns
    one row for each pruned weight. Raises BadConfig for other patterns, sizes and too little
    memory, UnsupportedModel for layers without a gradient, BadWeights for gradients and weights
    that are not finite; the model is then as it was.
    """
    _check_options(damp, steps, block)
    model = unwrap(model)
    targets = row_targets(model, zeros, pattern, scope, skip)
    check_finite("weights", {t.name: t.weight.detach() for t in targets})
    groups = make_groups(targets)
    data = pairs(model, batches, labels=True)
    surgeon = _Surgeon(model, targets, data, loss, block, damp, memory, on_layer)
    with in_float(model):
        for step in range(1, steps + 1):
            surgeon.step(groups, step / steps)
    return summary(targets, groups)


class _Surgeon:
    """The network, its weights in blocks and the data, over all steps."""

    def __init__(
        self,
        model: nn.Module,
        targets: list[Target],
        data: Pairs,
        loss: Loss,
        block: int,
        damp: float,
        memory: float | None,
        on_layer: Callable[[str], None],
    ) -> None:
        self.model, self.data, self.loss, self.damp = model, data, loss, damp
        self.on_layer = on_layer
        largest = max(target.pattern.cols for target in targets)
        if block < largest:
            do = "64 to 512 suit most networks."
            raise BadConfig(need(f"a block of at least one unit, {largest} weights", block, do))
        self.blocks = {t.name: Blocks(t.owners[0], t.pattern.cols, block) for t in targets}
        self.names = {
            t.name: [name for name, layer in model.named_modules() if layer in t.owners]
            for t in targets
        }
        self.targets = {target.name: target for target in targets}
        count = sum(len(x) for x, _ in data)
        self.parts = in_parts(self.blocks, count, free_memory() / 2 if memory is None else memory)
        self._known: dict[str, Slopes] = {}

    def _slopes(self) -> Iterator[tuple[Target, Slopes]]:
        """Gradients by each target; with memory for all, those of the last call."""
        for part in self.parts:
            if not self._known:
                owners = [self.names[name] for name in part]
                blocks = [self.blocks[name] for name in part]
                found = slopes_of(self.model, owners, blocks, self.data, self.loss, self.damp)
                self._known = dict(zip(part, found, strict=True))
                _check_used(self._known)
            for name in part:
                yield self.targets[name], self._known[name]
            if len(self.parts) > 1:
                self._known = {}

    def step(self, groups: Sequence[Group], progress: float) -> None:
        """Prune to the zeros due, and change what is left."""
        self._known = {}
        costs = {}
        for target, slopes in self._slopes():
            costs[target.name] = self._costs(target, slopes)
            self.on_layer(target.name)
        for group in groups:
            due = (1 - (1 - group.zeros) ** progress) / group.zeros if group.zeros else 1.0
            weights = zip(group.targets, group.loss_weights(), strict=True)
            group.prune([costs[t.name] * weight for t, weight in weights], group.wanted(due))
        changed = []
        for target, slopes in self._slopes():  # of the weights as they were, so none changes yet
            changed.append((target, self._changed(target, slopes)))
            self.on_layer(target.name)
        with torch.no_grad():
            for target, weight in changed:
                target.weight.copy_(weight)

    def _costs(self, target: Target, slopes: Slopes) -> Tensor:
        """What removing each unit adds to the loss, [units]."""
        blocks = self.blocks[target.name]
        rows, found = blocks.split(target.weight.detach()), []
        for part in blocks.chunks():
            own = torch.arange(len(rows[part]))
            found.append(removal(rows[part], slopes.inverse(part), own, target.pattern.cols) / 2)
        return blocks.units(torch.cat(found))

    @torch.no_grad()
    def _changed(self, target: Target, slopes: Slopes) -> Tensor:
        """The weight with zeros where the mask says so, and the best values for the others."""
        blocks = self.blocks[target.name]
        rows = blocks.split(target.weight)
        kept = blocks.split(target.mask.to(rows.dtype)) > 0
        for part in blocks.chunks():
            own = torch.arange(len(rows[part]))
            rows[part] = surgery(rows[part], slopes.inverse(part), own, kept[part])
        return blocks.join(rows).to(target.weight.dtype)


def _check_used(slopes: Mapping[str, Slopes]) -> None:
    idle = [name for name, own in slopes.items() if own.damp == 0]
    if idle:
        do = "Skip these layers, or pass batches that reach them."
        raise UnsupportedModel(need("gradients of every layer to prune", f"none of {idle}", do))


def _check_options(damp: float, steps: int, block: int) -> None:
    check_type("steps", steps, int, "1 prunes at one stroke.")
    check_type("block", block, int, "64 to 512 suit most networks.")
    check_type("damp", damp, (int, float), "1e-3 suits most networks.")
    if steps < 1:
        raise BadConfig(need("steps >= 1", steps, "1 prunes at one stroke."))
    if not damp > 0:
        raise BadConfig(need("a positive damp", damp, "1e-3 suits most networks."))
