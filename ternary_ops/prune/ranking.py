# SPDX-License-Identifier: Apache-2.0
"""Groups: targets whose units are ranked together and whose zeros are counted as one total."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ternary_ops.errors import BadConfig, BadWeights, need
from ternary_ops.nn.patterns import best_units, from_mask, lowest, surplus, to_mask
from ternary_ops.prune.apportion import apportion
from ternary_ops.prune.criteria import Score
from ternary_ops.prune.exchange import Exchange
from ternary_ops.prune.targets import Target


class Group:
    """Targets ranked together: a fraction `zeros` of all their units is to be pruned.

    A subclass may protect more units of a target, and rank them by other numbers than their scores.
    """

    survivors: ClassVar[str] = "min_nnz survivors and one per layer"  # what `protected` leaves

    def __init__(self, targets: Sequence[Target], zeros: float) -> None:
        """Raises BadConfig where zeros leave too little for min_nnz and one unit per layer."""
        self.targets = list(targets)
        self.zeros = zeros
        self.measure()

    def measure(self) -> None:
        """Count the targets' units and those of them that are pruned, by their masks. Raises
        BadConfig, see __init__.
        """
        self.sizes = [target.units for target in self.targets]
        self.total = sum(self.sizes)
        self.limit = self.total - sum(self.protected(target) for target in self.targets)
        if self.zeros * self.total - self.limit >= 1:
            raise BadConfig(
                need(
                    f"zeros={self.zeros} of the {self.total} units of {_names(self.targets)} that "
                    f"leave {self.survivors}",
                    f"room for {self.limit} zeros",
                    "Lower zeros or min_nnz, or skip these layers.",
                )
            )
        least = self.targets[0].pattern.least_zeros  # alike in all targets
        if round(self.zeros * self.total) < round(least * self.total):
            what = f"zeros >= {least:g} with pattern {self.targets[0].pattern.name!r}"
            do = "Raise or leave out zeros, or take the pattern of its blocks alone."
            raise BadConfig(need(f"{what} for {_names(self.targets)}", self.zeros, do))
        self.set_pruned(torch.cat([~from_mask(t.mask, t.pattern) for t in self.targets]))

    def protected(self, target: Target) -> int:
        """Number of units of the target that stay."""
        return target.protected

    def ranked(self, parts: list[Tensor]) -> list[Tensor]:
        """The numbers by which units are ranked, from the scores of each target."""
        return parts

    def loss_weights(self) -> list[float]:
        """By what changes of the loss count in each target, where scores are such changes."""
        return [1.0] * len(self.targets)

    def set_pruned(self, pruned: Tensor) -> None:
        """Remember which units are pruned, bool [total], in the order of the targets."""
        self.pruned = pruned
        self.count = int(pruned.sum())

    def share_masks(self) -> None:
        """Expand the pruned units into the targets' masks."""
        for target, pruned in zip(self.targets, torch.split(self.pruned, self.sizes), strict=True):
            target.set_mask(to_mask(~pruned, target.weight.shape, target.pattern))

    def wanted(self, share: float = 1.0) -> int:
        """Number of units to prune when the fraction `share` of the target is due."""
        return min(round(share * self.zeros * self.total), self.limit)

    def update(
        self,
        share: float,
        criterion: Score,
        *,
        nested: bool,
        normalize: bool,
        exchange: Exchange | None = None,
    ) -> None:
        """Prune the weakest units so that `share` of this group's target is reached, to one unit.

        nested: what is pruned stays pruned. normalize: rank scores relative to their layer's mean.
        exchange: drop a fraction of the survivors too, and let as many pruned units grow.
        """
        first = self.count == 0
        count = max(self.wanted(share), self.count if nested else 0)
        trades = exchange is not None and exchange.fraction > 0 and not first
        if nested and count == self.count and not trades:
            return
        if exchange is not None and first:
            parts = [exchange.start_scores(target, criterion) for target in self.targets]
        elif exchange is not None and trades:
            parts = [exchange.drop_scores(target) for target in self.targets]
        else:
            parts = [target.scores(criterion) for target in self.targets]
        self._check(parts)
        dropped = 0
        if exchange is not None and trades:
            dropped = min(exchange.drop_count(parts, self.total - count), self.limit - count)
        if nested and count == self.count and not dropped:
            return
        if normalize:
            parts = [_relative(part) for part in parts]
        shares = exchange.shares(self.targets) if exchange is not None and dropped else None
        if shares is None:
            self.prune(self.ranked(parts), count + dropped, nested)
        else:
            self.prune(self.ranked(parts), count, nested)
            self.prune(self._by_layer(parts, dropped), count + dropped, nested=True)
        if exchange is not None and dropped:
            grown = [exchange.scores(target) for target in self.targets]
            ranked = self.ranked(grown) if shares is None else self._shared(grown, dropped, shares)
            self.grow(ranked, dropped)

    def _by_layer(self, parts: list[Tensor], count: int) -> list[Tensor]:
        """Scores of which the lowest `count` are the same fraction of every layer."""
        pruned = torch.split(self.pruned, self.sizes)
        kept = [size - int(gone.sum()) for size, gone in zip(self.sizes, pruned, strict=True)]
        most = [n - self.protected(t) for n, t in zip(kept, self.targets, strict=True)]
        counts = apportion(count, kept, [0] * len(kept), most)
        marked = [
            part.masked_fill(gone.to(part.device), torch.inf)
            for part, gone in zip(parts, pruned, strict=True)
        ]
        return [_places(part) - n for part, n in zip(marked, counts, strict=True)]

    def _shared(self, parts: list[Tensor], count: int, shares: Sequence[float]) -> list[Tensor]:
        """Scores of which the highest `count` of pruned units are, by layer, in these shares."""
        pruned = [gone.to(parts[0].device) for gone in torch.split(self.pruned, self.sizes)]
        counts = apportion(count, shares, [0] * len(pruned), [int(gone.sum()) for gone in pruned])
        marked = [
            (-part).masked_fill(~gone, torch.inf) for part, gone in zip(parts, pruned, strict=True)
        ]
        return [n - _places(part) for part, n in zip(marked, counts, strict=True)]

    def release(self) -> None:
        """Give all pruned units back, as the zeros that they are."""
        self.set_pruned(torch.zeros_like(self.pruned))
        self.share_masks()

    def chosen(self, criterion: Score, normalize: bool) -> Tensor:
        """The units that would be pruned if the whole target were due now, bool [total]."""
        parts = [target.scores(criterion) for target in self.targets]
        self._check(parts)
        if normalize:
            parts = [_relative(part) for part in parts]
        return self.select(self.ranked(parts), self.wanted())

    def resettle(self, share: float, criterion: Score, nested: bool, normalize: bool) -> None:
        """After the targets' sizes changed: prune to `share` of the target again, to one unit;
        where too many are pruned by then, some come back. Nothing where pruning has not begun.
        """
        if self.count == 0:
            return
        excess = self.count - self.wanted(share)
        if nested and excess > 0:
            self.grow(self.ranked([t.scores(criterion) for t in self.targets]), excess)
        self.update(share, criterion, nested=nested, normalize=normalize)

    def prune(self, parts: list[Tensor], count: int, nested: bool = False) -> None:
        """Prune the `count` units of the lowest scores; parts: those of each target, [units]."""
        self.set_pruned(self.select(parts, count, nested))
        self.share_masks()

    def select(self, parts: list[Tensor], count: int, nested: bool = False) -> Tensor:
        """The `count` units of the lowest scores, bool [total], those that are pruned first where
        nested; never those that are protected.
        """
        scores = torch.cat(parts)
        if nested:
            scores.masked_fill_(self.pruned.to(scores.device), -torch.inf)
        scores = _first(self._surplus(scores), scores, count)
        first = 0
        for target, size in zip(self.targets, self.sizes, strict=True):
            rows, own = target.pattern.grid(target.weight.shape)[0], scores[first : first + size]
            safe = [best_units(own, rows, target.min_nnz)]
            if self.protected(target) > target.protected:
                safe.append(best_units(own, 1, self.protected(target)))
            best = torch.cat(safe) + first
            scores[best] = scores[best].masked_fill(scores[best] > -torch.inf, torch.inf)
            first += size
        return lowest(scores, count)

    def grow(self, parts: list[Tensor], count: int) -> None:
        """Give back the `count` pruned units of the highest scores; of equal ones the first."""
        scores = torch.cat(parts)
        kept = ~self.pruned.to(scores.device)
        ranked = (-scores).masked_fill(kept, torch.inf)
        room = ~(kept | self._surplus(scores.masked_fill(kept, torch.inf)))
        ranked = _first(room, ranked, count)
        self.set_pruned(self.pruned.to(scores.device) & ~lowest(ranked, count))
        self.share_masks()

    def _surplus(self, scores: Tensor) -> Tensor:
        """Bool [total]: what N:M patterns leave no room for, see patterns.surplus."""
        parts = zip(self.targets, torch.split(scores, self.sizes), strict=True)
        return torch.cat([surplus(part, t.pattern, t.weight.shape) for t, part in parts])

    def _check(self, parts: list[Tensor]) -> None:
        bad = [
            t.name for t, part in zip(self.targets, parts, strict=True) if not part.isfinite().all()
        ]
        if not bad:
            return
        raise BadWeights(
            need(
                "finite weights to prune",
                f"NaN or infinity in {', '.join(bad)}",
                "Lower the learning rate or clip gradients; GradScaler: step(skipped=...).",
            )
        )


class SummaryRow(NamedTuple):
    """One pruned weight: its layer, the fraction of zero units asked for and that measured now."""

    name: str
    target: float
    measured: float


def summary(targets: Sequence[Target], groups: Sequence[Group]) -> list[SummaryRow]:
    """One row per target; a target that shares a total has that of its group."""
    wanted = {target.name: group.zeros for group in groups for target in group.targets}
    return [SummaryRow(t.name, wanted[t.name], t.empty_units() / t.units) for t in targets]


def _relative(scores: Tensor) -> Tensor:
    """Scores relative to their layer's mean."""
    return scores / scores.abs().mean().clamp_min(1e-30)


def _places(scores: Tensor) -> Tensor:
    """The place of each score in ascending order, from 0, float64; equal ones keep theirs."""
    order = scores.argsort(stable=True)
    places = torch.empty_like(order, dtype=torch.float64)
    places[order] = torch.arange(len(order), device=order.device, dtype=torch.float64)
    return places


def _first(tier: Tensor, scores: Tensor, count: int) -> Tensor:
    """Scores by which the `count` lowest lie in the tier, or hold all of it."""
    if count <= int(tier.sum()):
        # Scores may be infinite: what is not in the tier comes after those too.
        return scores.clamp(max=torch.finfo(scores.dtype).max).masked_fill(~tier, torch.inf)
    return scores.masked_fill(tier, -torch.inf)


def _names(targets: list[Target]) -> str:
    names = [target.name for target in targets[:3]]
    return ", ".join(names) + (f" and {len(targets) - 3} more" if len(targets) > 3 else "")
