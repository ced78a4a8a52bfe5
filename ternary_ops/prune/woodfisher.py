# SPDX-License-Identifier: Apache-2.0
"""Criterion "woodfisher": w^2 / (2 [F^-1]_ii), the rise of the loss without weight w.

F is the empirical Fisher matrix of the Pruner's batches before training, in blocks
(`fisher_blocks`); Singh and Alistarh 2020 (arXiv 2004.14340), a reconstruction. A unit counts by
the sum over its weights, as with every criterion; `fisher_` takes units as wholes, and changes what
survives.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ternary_ops.memory import free_memory
from ternary_ops.prune.criteria import register_criterion, weights_of
from ternary_ops.prune.criteria.probe import Loss, Pairs
from ternary_ops.prune.fisher_blocks import Blocks, in_parts, slopes_of

_BLOCK, _DAMP = 64, 1e-3


def woodfisher(model: nn.Module, batches: Pairs, loss: Loss) -> dict[str, Tensor]:
    """The scores of each weight; zeros where the gradients of all samples are."""
    layers, weights = dict(model.named_modules()), weights_of(model)
    blocks = {
        name: Blocks(layers[name], 4 if weight.shape[1] >= 4 else 1, _BLOCK)
        for name, weight in weights.items()
    }
    scores = {name: torch.zeros_like(weight).detach() for name, weight in weights.items()}
    count = sum(len(x) for x, _ in batches)
    for part in in_parts(blocks, count, free_memory() / 2):
        own = [blocks[name] for name in part]
        slopes = slopes_of(model, [[name] for name in part], own, batches, loss, _DAMP)
        for name, block, known in zip(part, own, slopes, strict=True):
            if known.damp == 0:
                continue
            diagonal = torch.cat(
                [known.inverse(at).diagonal(dim1=1, dim2=2) for at in block.chunks()]
            )
            score = block.split(weights[name].detach()).square() / (2 * diagonal)
            scores[name] = block.join(score).to(scores[name])
    return scores


register_criterion("woodfisher", woodfisher, reads=("batches", "loss"))
