# SPDX-License-Identifier: Apache-2.0
"""Optimal brain surgeon: which units to remove from rows of weights, and what the others become.

A row w has the loss (v - w)^T H (v - w) for other values v, H a positive definite matrix that rows
may share. Removing unit u costs w_u^T ((H^-1)_uu)^-1 w_u, and the best change of the other weights
follows in closed form (Hassibi and Stork 1993; units of several weights as in Frantar and
Alistarh 2022, arXiv 2208.11580). `reconstruct_` and `fisher_` share these functions; they differ in
H.

Rows [N, K] stand beside matrices [B, K, K]; `which` [N] says which of them is a row's. A unit's
weights lie side by side in K.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

_LAST = 0.97  # of a row's units whose order is worked out; the rest would go last
_RISE = 1 + 1e-6  # costs along an order rise by this at least: ties would lose the order
_BYTES = 256 << 20  # of columns, or of matrices, held at once
_SHRINK = 0.6  # of the rows that are left: then the finished ones are dropped


def damped(matrix: Tensor, damp: float) -> Tensor:
    """Matrices [..., K, K] with damp times their mean diagonal added to the diagonal, where that
    is positive; where it is zero the identity is added.
    """
    mean = matrix.diagonal(dim1=-2, dim2=-1).mean(-1)
    added = torch.where(mean > 0, damp * mean, torch.ones_like(mean))
    eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    return matrix + added[..., None, None] * eye


def inverse_of(matrix: Tensor) -> Tensor:
    """Inverse of positive definite matrices [..., K, K]."""
    return torch.cholesky_inverse(torch.linalg.cholesky(matrix))


@torch.no_grad()
def removal(
    rows: Tensor, inverse: Tensor, which: Tensor, unit: int, limits: Tensor | None = None
) -> Tensor:
    """Cost of removing each unit when a row's units go cheapest first, float32 [N, units].

    inverse: of H, [B, K, K]. Costs rise along a row's order. Infinite: what comes after a cost
    above the row's limit, limits [N]; the last 3 % of a row, at least one unit.
    """
    count, depth = rows.shape
    units = depth // unit
    last = min(max(1, int(_LAST * units)), units - 1)
    costs = torch.full((count, units), torch.inf, device=rows.device)
    rows, inverse = rows.float(), inverse.float()
    limits = costs.new_full((count,), torch.inf) if limits is None else limits
    chunk = max(1, _BYTES // (4 * depth * (last * unit + 4 * unit + 1)))
    for part in torch.split(torch.arange(count, device=rows.device), chunk):
        surgeon = _Surgeon(rows[part], inverse, which[part], unit, last * unit)
        for _ in range(last):
            live = surgeon.rows_left(limits[part])
            if not len(live):
                break
            found, chosen = surgeon.step()
            costs[part[live], chosen] = found
    return costs


class _Surgeon:
    """Rows from which one unit after the other is removed.

    The inverse of what is left of H is base - N^T N with a row of N for each weight removed (a
    Cholesky factor, pivot by pivot), so that no matrix but `base` exists: each step computes the
    rows of the removed unit alone, and updates the weights and the diagonal blocks.
    Lane-major copies [lane, row, unit] let element-wise work run along units.
    """

    def __init__(self, rows: Tensor, base: Tensor, which: Tensor, unit: int, width: int) -> None:
        count, depth = rows.shape
        self.base, self.which, self.unit, self.done = base, which, unit, 0
        self.factor = rows.new_empty(count, width, depth)
        self.weights = self._lanes(rows[:, None])[:, 0]  # [lane, row, unit]
        grid = base.view(len(base), depth // unit, unit, depth // unit, unit)
        diagonal = grid.diagonal(dim1=1, dim2=3)  # [B, lane, lane, unit]
        self.diagonal = diagonal[which].permute(1, 2, 0, 3).contiguous()
        self.gone = torch.zeros(count, depth // unit, dtype=torch.bool, device=rows.device)
        self.least = rows.new_zeros(count)
        self.index = torch.arange(count, device=rows.device)

    def _lanes(self, rows: Tensor) -> Tensor:
        """[row, X, K] as [lane, X, row, unit]."""
        count, wide, depth = rows.shape
        split = rows.reshape(count, wide, depth // self.unit, self.unit)
        return split.permute(3, 1, 0, 2).contiguous()

    def rows_left(self, limit: Tensor) -> Tensor:
        """Numbers of the rows still worked on: those whose last cost is within their limits."""
        live = self.least <= limit[self.index]
        if float(live.sum()) < _SHRINK * len(live):
            at = live.nonzero()[:, 0]
            kept = self.factor.new_empty(len(at), *self.factor.shape[1:])
            kept[:, : self.done] = self.factor[at, : self.done]
            self.factor = kept
            self.which, self.gone, self.least = self.which[at], self.gone[at], self.least[at]
            self.weights, self.diagonal = self.weights[:, at], self.diagonal[:, :, at]
            self.index = self.index[at]
        return self.index

    def step(self) -> tuple[Tensor, Tensor]:
        """Remove the cheapest unit of each row; its cost, and which it is, [rows]."""
        count, unit = len(self.index), self.unit
        blocks = _cholesky(self.diagonal)
        solved = _forward(blocks, self.weights)  # F^-1 w of each unit
        cost = torch.stack(solved).square().sum(0).masked_fill(self.gone, torch.inf)
        cost, chosen = cost.min(1)
        self.least = torch.maximum(self.least * _RISE, cost)
        row = torch.arange(count, device=chosen.device)
        at = chosen[:, None] * unit + torch.arange(unit, device=chosen.device)
        new = self.base[self.which[:, None], at]  # [row, lane, K]
        if self.done:
            before = self.factor[:, : self.done]
            own = before.gather(2, at[:, None].expand(-1, self.done, -1))
            new = new.baddbmm_(own.mT, before, alpha=-1)
        block = new.new_zeros(count, unit, unit)
        for i in range(unit):
            for j in range(i + 1):
                block[:, i, j] = blocks[i][j][row, chosen]
        eye = torch.eye(unit, dtype=new.dtype, device=new.device).expand_as(block)
        new = torch.linalg.solve_triangular(block, eye, upper=False) @ new
        self.factor[:, self.done : self.done + unit] = new
        self.done += unit
        lanes = self._lanes(new)  # [lane, lane removed, row, unit]
        for i in range(unit):
            self.weights.addcmul_(lanes[:, i], solved[i][row, chosen][:, None], value=-1)
            self.diagonal.addcmul_(lanes[:, None, i], lanes[None, :, i], value=-1)
        self.weights[:, row, chosen] = 0.0
        self.gone[row, chosen] = True
        return self.least, chosen


def _cholesky(blocks: Tensor) -> list[list[Tensor]]:
    """Lower Cholesky factors of [M, M, ...], element by element over what follows."""
    factor: list[list[Tensor]] = []
    for i in range(len(blocks)):
        row: list[Tensor] = []
        for j in range(i + 1):
            rest = blocks[i, j].clone()
            for k in range(j):
                rest.addcmul_(row[k], row[k] if i == j else factor[j][k], value=-1)
            # Of a unit that is gone the block is zero but for rounding.
            rest = rest.clamp_min_(1e-30).sqrt_() if i == j else rest.div_(factor[j][j])
            row.append(rest)
        factor.append(row)
    return factor


def _forward(factor: list[list[Tensor]], right: Tensor) -> list[Tensor]:
    """The solution of F z = right, [M, ...]."""
    solved: list[Tensor] = []
    for i, row in enumerate(factor):
        rest = right[i].clone()
        for k in range(i):
            rest.addcmul_(row[k], solved[k], value=-1)
        solved.append(rest.div_(row[i]))
    return solved


@torch.no_grad()
def refit(matrix: Tensor, which: Tensor, right: Tensor, kept: Tensor) -> Tensor:
    """Rows v [N, K] that are zero where `kept` is False and solve H v = right where it is True.

    matrix: H, [B, K, K]. Of a row that keeps most, what it loses is solved for instead, by the
    inverse of H.
    """
    made = torch.zeros_like(right)
    few = 2 * kept.sum(-1) <= kept.shape[-1]
    made[few] = _solve(matrix, which[few], right[few], kept[few])
    if not bool(few.all()):
        inverse, part = inverse_of(matrix), ~few
        full = _times(right[part], inverse, which[part])
        made[part] = surgery(full, inverse, which[part], kept[part])
    return made


@torch.no_grad()
def surgery(rows: Tensor, inverse: Tensor, which: Tensor, kept: Tensor) -> Tensor:
    """Rows [N, K] after the best removal of all weights where `kept` is False, zero there:
    w - H^-1 z, with z the solution of (H^-1) z = w in what is removed.
    """
    removed = _solve(inverse, which, rows, ~kept)
    return (rows - _times(removed, inverse, which)).masked_fill(~kept, 0.0)


def _times(rows: Tensor, matrix: Tensor, which: Tensor) -> Tensor:
    """Each row times its (symmetric) matrix."""
    counts = which.bincount(minlength=len(matrix))
    if bool((counts == 1).all()):
        return torch.bmm(matrix[which], rows[..., None])[..., 0]
    made = torch.empty_like(rows)
    for number, at in enumerate(torch.split(which.argsort(stable=True), counts.tolist())):
        made[at] = rows[at] @ matrix[number]
    return made


def _solve(matrix: Tensor, which: Tensor, right: Tensor, chosen: Tensor) -> Tensor:
    """Solutions of the chosen equations and unknowns [N, K] alone, zeros elsewhere."""
    made = torch.zeros_like(right)
    for part, size in _alike(chosen.sum(-1)):
        # The chosen places first, in order; what a row lacks is filled with the identity.
        at = (~chosen[part]).to(torch.uint8).argsort(dim=-1, stable=True)[:, :size]
        real = chosen[part].gather(1, at)
        square = matrix[which[part][:, None, None], at[:, :, None], at[:, None, :]]
        if not bool(real.all()):
            square.masked_fill_(~(real[:, :, None] & real[:, None, :]), 0.0)
            square.diagonal(dim1=-2, dim2=-1).add_((~real).to(square))
        given = right[part].gather(1, at) * real
        found = torch.cholesky_solve(given[..., None], torch.linalg.cholesky(square))[..., 0]
        made[part] = made[part].scatter(1, at, found * real)
    return made


def _alike(counts: Tensor) -> Iterator[tuple[Tensor, int]]:
    """Numbers of rows with about as many unknowns, and the most that one of them has."""
    order = counts.argsort(descending=True, stable=True)
    first = 0
    while first < len(order) and int(counts[order[first]]) > 0:
        size = int(counts[order[first]])
        alike = int((counts >= 0.9 * size).sum()) - first
        alike = min(alike, max(1, _BYTES // (3 * 8 * size * size)))
        yield order[first : first + alike], size
        first += alike
