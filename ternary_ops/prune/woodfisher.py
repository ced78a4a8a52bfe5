# SPDX-License-Identifier: Apache-2.0
"""Criterion "woodfisher": w_u^T ([F^-1]_uu)^-1 w_u / 2, the rise of the loss without unit u.

F is the empirical Fisher matrix of the Pruner's batches before training, in blocks
(`fisher_blocks`); Singh and Alistarh 2020 (arXiv 2004.14340), a reconstruction. Units as wholes as
in Kurtic et al. 2022 (arXiv 2203.07259): of single weights this is w^2 / (2 [F^-1]_ii). What a
pattern puts together beyond one output channel and tap (filters, rows of a block, strides) lies in
several blocks of F, and counts by the sum over its parts. `fisher_` ranks by the same cost, and
changes what survives.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ternary_ops.memory import free_memory
from ternary_ops.nn.patterns import Pattern
from ternary_ops.prune.criteria import register_criterion, weights_of
from ternary_ops.prune.criteria.probe import Loss, Pairs
from ternary_ops.prune.criteria.register import OfNetwork
from ternary_ops.prune.fisher_blocks import Blocks, in_parts, slopes_of

_BLOCK, _DAMP = 64, 1e-3


class WoodFisher(OfNetwork):
    """A weight's score is its part of its unit's: w_i times the i-th of ([F^-1]_uu)^-1 w_u, / 2."""

    def __init__(self) -> None:
        super().__init__(self._scores, ("batches", "loss"))
        self._units: dict[str, int] = {}

    def watch_units(self, name: str, pattern: Pattern) -> None:
        """Remember how many weights of an output channel and tap are pruned together."""
        self._units[name] = 1 if pattern.stride else max(1, pattern.cols)

    def _scores(self, model: nn.Module, batches: Pairs, loss: Loss) -> dict[str, Tensor]:
        """The scores of each weight; zeros where the gradients of all samples are."""
        layers, weights = dict(model.named_modules()), weights_of(model)
        sizes = {name: self._units.get(name, 1) for name in weights}
        blocks = {
            name: Blocks(layers[name], unit, max(unit, _BLOCK)) for name, unit in sizes.items()
        }
        scores = {name: torch.zeros_like(weight).detach() for name, weight in weights.items()}
        count = sum(len(x) for x, _ in batches)
        for part in in_parts(blocks, count, free_memory() / 2):
            own = [blocks[name] for name in part]
            slopes = slopes_of(model, [[name] for name in part], own, batches, loss, _DAMP)
            for name, block, known in zip(part, own, slopes, strict=True):
                if known.damp == 0:
                    continue
                rows = block.split(weights[name].detach())
                found = [_shares(rows[at], known.inverse(at), sizes[name]) for at in block.chunks()]
                scores[name] = block.join(torch.cat(found)).to(scores[name])
        return scores


def _shares(rows: Tensor, inverse: Tensor, unit: int) -> Tensor:
    """Of each weight of rows [B, K] its part of w_u^T ((H^-1)_uu)^-1 w_u / 2; inverse: of H,
    [B, K, K].
    """
    count, depth = rows.shape
    grid = inverse.view(count, depth // unit, unit, depth // unit, unit)
    own = grid.diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2)  # [B, units, unit, unit]
    w = rows.view(count, -1, unit, 1)
    solved = torch.cholesky_solve(w, torch.linalg.cholesky(own))
    return (w * solved / 2).view(count, depth)


register_criterion("woodfisher", WoodFisher)
