# SPDX-License-Identifier: Apache-2.0
"""Second moments of what enters a layer, and of what it is wanted to give for that."""

from __future__ import annotations

import torch
from torch import Tensor

from ternary_ops.prune.layer_matrix import LayerMatrix

_JOINED = 1 << 24  # numbers in a batch that is made of several
Sums = tuple[Tensor, Tensor, int]


def sums_of(matrix: LayerMatrix, x: Tensor) -> Sums:
    """Of the columns of an input x: the sum of products with themselves [G, K, K], their sum
    [G, K], and how many they are.
    """
    mean, count = matrix.sums(x)
    return matrix.products(x), mean, count


def joined(matrix: LayerMatrix, *values: list[Tensor]) -> tuple[list[Tensor], ...]:
    """Inputs or outputs of a layer in fewer batches, since each costs more than its share."""
    dims = 2 if len(matrix.shape) == 2 else 4  # fewer: not a batch
    few = sum(x.numel() for one in values for x in one) <= _JOINED
    alike = all(x.ndim >= dims and x.shape[1:] == one[0].shape[1:] for one in values for x in one)
    return tuple([torch.cat(one)] for one in values) if few and alike else values


class Moments:
    """Means over a layer's inputs, and over outputs wanted of it, float64.

    With a bias to take up means, second moments are those around the mean.
    """

    def __init__(self, matrix: LayerMatrix) -> None:
        self.matrix = matrix
        self.centered = getattr(matrix.layer, "bias", None) is not None
        self.count = 0  # columns
        self.calls = 0  # of the layer, those included whose input was not added
        self._products: Tensor | None = None
        self._sum: Tensor | None = None

    def add(self, sums: Sums) -> None:
        """Take up an input, from `sums_of`."""
        products, total, count = sums
        self._products = products if self._products is None else self._products + products
        self._sum = total if self._sum is None else self._sum + total
        self.count += count

    def mean(self) -> Tensor:
        """Of the input, [G, K]."""
        return self._known(self._sum) / self.count

    def own(self) -> Tensor:
        """Of the input with itself, [G, K, K]."""
        return self._around(self._known(self._products), self.mean(), self.mean())

    def wanted(self, inputs: list[Tensor], outputs: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Of the outputs with these inputs, which were added, [G, O/G, K], and of the outputs,
        [G, O/G].
        """
        pairs = list(zip(*joined(self.matrix, outputs, inputs), strict=True))
        total = torch.stack([self.matrix.output_products(y, x) for y, x in pairs]).sum(0)
        mean = torch.stack([self.matrix.per_filter(y.double()) for y in outputs]).sum(0)
        mean = mean / self.count
        return self._around(total, mean, self.mean()), mean

    def _around(self, products: Tensor, first: Tensor, second: Tensor) -> Tensor:
        moment = products / self.count
        return moment - first[..., None] * second[..., None, :] if self.centered else moment

    def _known(self, value: Tensor | None) -> Tensor:
        if value is None:
            raise RuntimeError("no input was added")  # unreachable: layers that never ran are named
        return value
