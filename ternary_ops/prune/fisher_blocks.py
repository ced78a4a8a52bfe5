# SPDX-License-Identifier: Apache-2.0
"""The empirical Fisher matrix of a weight in blocks along its diagonal, and their inverses.

F = 1/N sum g g^T over the gradients g of N samples' losses stands for the Hessian; WoodFisher
(Singh and Alistarh 2020, arXiv 2004.14340) inverts it block by block, damped by a multiple of the
identity. Here blocks are consecutive weights in the order of LayerMatrix, a unit's side by side,
and Woodbury's identity, where there are fewer samples than weights in a block, or a factorization
serve in place of the recursion sample by sample: the result is the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ternary_ops.errors import BadConfig, need
from ternary_ops.prune.criteria.probe import Loss, Pairs, gradients, probing
from ternary_ops.prune.layer_matrix import LayerMatrix
from ternary_ops.prune.obs import inverse_of

_CHUNK = 64 << 20  # bytes of inverses at a time


def fisher_inverse(slopes: Tensor, damp: float) -> Tensor:
    """Inverse of damp + 1/N sum g g^T for each block, float64 [B, K, K]; slopes: [N, B, K]."""
    count, _, size = slopes.shape
    each = slopes.double().transpose(0, 1)  # [B, N, K]
    eye = torch.eye(size, dtype=torch.float64, device=slopes.device)
    if count >= size:
        return inverse_of(each.mT @ each / count + damp * eye)
    inner: Tensor = torch.eye(count, dtype=torch.float64, device=slopes.device) * (count * damp)
    factor = torch.linalg.cholesky(inner + each @ each.mT)
    half = torch.linalg.solve_triangular(factor, each, upper=False)
    inverse: Tensor = (eye - half.mT @ half) / damp
    return inverse


def in_parts(blocks: Mapping[str, Blocks], count: int, memory: float) -> list[list[str]]:
    """The weights, by name, whose gradients for so many samples are held together, in bytes of
    memory; BadConfig where a single one's are too many.
    """
    parts: list[list[str]] = []
    held = memory
    for name, block in blocks.items():
        size = 4 * count * block.blocks * block.size
        if size > memory:
            do = "Raise memory, pass fewer samples, or skip the layer."
            what = f"{size} bytes of memory for gradients of {count} samples by {name!r}"
            raise BadConfig(need(what, f"{memory:.0f}", do))
        if held + size > memory:
            parts.append([])
            held = 0
        parts[-1].append(name)
        held += size
    return parts


class Blocks:
    """A weight as blocks [B, K] of consecutive weights, a unit's side by side; the last one is
    filled with zeros.
    """

    def __init__(self, layer: nn.Module, unit: int, block: int) -> None:
        self.matrix = LayerMatrix(layer, unit, plain=False)
        rows = self.matrix.rows(cast(Tensor, layer.weight).detach())
        self.shape, self.count = rows.shape, rows.numel()
        self.size = min(block, self.count) // unit * unit
        self.blocks = -(-self.count // self.size)

    def split(self, values: Tensor) -> Tensor:
        """Values of the weight's shape as blocks, float64."""
        flat = self.matrix.rows(values).flatten()
        return F.pad(flat, (0, self.blocks * self.size - self.count)).view(self.blocks, self.size)

    def join(self, blocks: Tensor) -> Tensor:
        """The inverse of split()."""
        return self.matrix.weight(blocks.flatten()[: self.count].view(self.shape))

    def units(self, values: Tensor) -> Tensor:
        """Of numbers of each unit of each block those of the weight's units, [units]."""
        return values.flatten()[: self.count // self.matrix.unit]

    def chunks(self) -> Iterator[slice]:
        """Blocks whose inverses are held together."""
        step = max(1, _CHUNK // (8 * self.size**2))
        return (slice(first, first + step) for first in range(0, self.blocks, step))


@dataclass(frozen=True)
class Slopes:
    """Gradients of each sample's loss by one weight, float32 [N, B, K], and what is added to the
    diagonal of their Fisher matrix.
    """

    values: Tensor
    damp: float

    def inverse(self, part: slice) -> Tensor:
        """Of these blocks, float64 [b, K, K]."""
        return fisher_inverse(self.values[:, part], self.damp)


def slopes_of(
    model: nn.Module,
    names: Iterable[Sequence[str]],
    blocks: Sequence[Blocks],
    data: Pairs,
    loss: Loss,
    damp: float,
) -> list[Slopes]:
    """For each weight, given by the names of the layers that hold it, the gradients of all samples.

    One backward pass a sample, in eval mode, on a copy: whatever the network does, samples do not
    meet. damp: relative to the mean of the diagonal, 0 where all gradients are.
    """
    names = list(names)
    wanted = {name for owners in names for name in owners}
    count = sum(len(x) for x, _ in data)
    made = [torch.empty(count, b.blocks, b.size) for b in blocks]
    with probing(model) as trial:
        trial.eval()
        at = 0
        for x, y in data:
            for sample, label in zip(torch.split(x, 1), torch.split(y, 1), strict=True):
                found = gradients(trial, sample, label, loss, names=wanted)
                for owners, block, out in zip(names, blocks, made, strict=True):
                    parts = {id(found[name]): found[name] for name in owners}  # tied: one gradient
                    out[at] = block.split(torch.stack(list(parts.values())).sum(0)).to(out)
                at += 1
    diagonals = [float(value.double().square().sum()) / count for value in made]
    return [
        Slopes(value, damp * diagonal / block.count)
        for value, diagonal, block in zip(made, diagonals, blocks, strict=True)
    ]
