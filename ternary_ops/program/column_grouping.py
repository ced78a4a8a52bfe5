# SPDX-License-Identifier: Apache-2.0
"""Put channels into fours so that few (row, four) pairs hold a nonzero weight. NumPy only.

The same question as column grouping in systolic arrays (Kung et al. 2019, arXiv 1811.04770), here
without moving a weight to another row: a start by greedy clustering, then the best exchanges of two
channels until none helps. Costs are whole numbers that floats hold exactly, the same everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

QUAD = 4
_SWEEPS = 400  # every sweep lowers the cost; real layers stop after some dozens
_EXACT_FLOAT32 = 2**24

Mask = NDArray[np.bool_]
Order = NDArray[np.intp]
_Floats = NDArray[np.floating[Any]]


def cost(mask: Mask, weights: _Floats) -> float:
    """Weighted sum over rows of the fours of columns that hold anything; mask [rows, C]."""
    return float(weights @ _filled(mask).sum(axis=1))


def best_order(mask: Mask, weights: _Floats, labels: Sequence[int]) -> Order:
    """An order of the columns of mask [rows, C], of low cost and never above that of the present.

    Columns with different labels never change places; weights [rows] are whole numbers >= 0.
    """
    labels_ = np.asarray(labels)
    used = mask.any(axis=1)
    mask, weights = mask[used], weights[used]
    same = np.arange(mask.shape[1], dtype=np.intp)
    if len(mask) == 0 or len(np.unique(labels_)) == len(labels_):
        return same
    weights = _whole(weights)
    starts = (_by_weight(mask, weights, labels_), _greedy(mask, weights, labels_))
    start = min(starts, key=lambda order: cost(mask[:, order], weights))
    found = _exchange(mask, weights, labels_, start)
    return min((same, found), key=lambda order: cost(mask[:, order], weights))


def strongest_fours(likeness: _Floats, labels: Sequence[int]) -> Order:
    """An order of C columns with a large sum of likeness [C, C], symmetric, within the fours.

    Never below that of the present order. Columns with different labels never change places. From a
    greedy start the best exchanges of two columns are made until none helps.
    """
    labels_ = np.asarray(labels)
    likeness = likeness - np.diag(np.diagonal(likeness))
    same = np.arange(len(labels_), dtype=np.intp)

    def arrange(columns: Order) -> Order:
        free, order = np.ones(len(columns), bool), []
        mine = likeness[np.ix_(columns, columns)]
        while free.any():
            pick = int(np.argmax(np.where(free, mine.sum(1), -np.inf)))
            four: list[int] = []
            for _ in range(min(QUAD, int(free.sum()))):
                four.append(pick)
                free[pick] = False
                pick = int(np.argmax(np.where(free, mine[four].sum(0), -np.inf)))
            order += four
        return columns[order]

    found = _swap_alike(likeness, labels_, _within(labels_, arrange))
    return max((same, found), key=lambda order: _within_fours(likeness, order))


def _within_fours(likeness: _Floats, order: Order) -> float:
    fours = np.arange(len(order)) // QUAD
    return float(likeness[np.ix_(order, order)][fours[:, None] == fours[None, :]].sum())


def _swap_alike(likeness: _Floats, labels: NDArray[Any], order: Order) -> Order:
    order = order.copy()
    fours = np.arange(len(order)) // QUAD
    member = np.eye(int(fours[-1]) + 1)[fours]
    least = 1e-9 * max(float(np.abs(likeness).max()), 1e-300)
    for _ in range(_SWEEPS):
        alike = likeness[np.ix_(order, order)]
        to_four = (alike @ member)[:, fours]  # [p, q]: of the column at p with q's four
        now = np.diagonal(to_four)
        gain = to_four + to_four.T - now[:, None] - now[None, :] - 2 * alike
        movable = (labels[order][:, None] == labels[order]) & (fours[:, None] != fours)
        gain = np.triu(np.where(movable & (gain > least), gain, 0.0))
        if not len(_take(gain, fours, order)):
            break
    return order


def _whole(weights: _Floats) -> _Floats:
    """The weights in the type that adds them fastest without rounding."""
    small: _Floats = weights / np.gcd.reduce(weights.astype(np.int64))
    return small.astype(np.float32) if QUAD * small.sum() < _EXACT_FLOAT32 else small


def _filled(mask: Mask) -> Mask:
    return np.logical_or.reduceat(mask, np.arange(0, mask.shape[1], QUAD), axis=1)


def _by_weight(mask: Mask, weights: _Floats, labels: NDArray[Any]) -> Order:
    """Within each label, the fullest columns first."""
    full = weights @ mask
    return _within(labels, lambda columns: columns[np.argsort(-full[columns], kind="stable")])


def _within(labels: NDArray[Any], arrange: Any) -> Order:
    """Rearrange the columns of each label among the places that label has."""
    order = np.empty(len(labels), np.intp)
    for label in np.unique(labels):
        columns = np.flatnonzero(labels == label)
        order[columns] = arrange(columns)
    return order


def _greedy(mask: Mask, weights: _Floats, labels: NDArray[Any]) -> Order:
    """Fours that begin with the fullest column left and take what adds the least to their union."""
    values = mask.T.astype(weights.dtype, order="C")
    full = values @ weights

    def arrange(columns: Order) -> Order:
        mine = values[columns]
        free, order = np.ones(len(columns), bool), []
        while free.any():
            pick = int(np.argmax(np.where(free, full[columns], -1)))
            open_rows = weights
            for _ in range(min(QUAD, int(free.sum()))):
                order.append(pick)
                free[pick] = False
                open_rows = open_rows * (1 - mine[pick])
                pick = int(np.argmin(np.where(free, mine @ open_rows, np.inf)))
        return columns[order]

    return _within(labels, arrange)


def _exchange(mask: Mask, weights: _Floats, labels: NDArray[Any], order: Order) -> Order:
    """Exchange the two columns that help the most, many at a time in different fours, to the end.

    joined[p, q] is the weight of the union of place p's three neighbors with the column at place q;
    an exchange of p and q leads to joined[p, q] + joined[q, p]. |A or B| = |A| + |B| - |A and B|
    makes it a matrix product, of which a sweep renews the rows of the fours it touched.
    """
    order = order.copy()
    values = mask[:, order].T.astype(weights.dtype, order="C")  # [places, rows]
    fours = np.arange(len(order)) // QUAD
    movable = (labels[order][:, None] == labels[order][None, :]) & (fours[:, None] != fours)
    full = values @ weights
    others = _neighbors(values)
    joined = _joined(others, values, weights, full)
    for _ in range(_SWEEPS):
        now = np.diagonal(joined)  # the weight of each place's four
        gain = now[:, None] + now[None, :] - joined - joined.T
        gain = np.triu(np.where(movable, gain, 0.0))
        touched = _take(gain, fours, order, values)
        if not len(touched):
            break
        full = values @ weights
        others[touched] = _neighbors(values)[touched]
        joined[touched] = _joined(others[touched], values, weights, full)
        # the columns of moved channels changed place for everyone
        joined[:, touched] = _joined(others, values[touched], weights, full[touched])
    return order


def _take(gain: _Floats, fours: Order, *arrays: NDArray[Any]) -> Order:
    """In every array [places, ...] make the best exchanges no two of which share a four.

    Returns every place of those fours.
    """
    helps = np.flatnonzero(gain > 0)
    candidates = helps[np.argsort(-gain.flat[helps], kind="stable")]
    busy = np.zeros(int(fours[-1]) + 1, bool)
    for at in candidates:
        p, q = divmod(int(at), len(fours))
        if not (busy[fours[p]] or busy[fours[q]]):
            for array in arrays:
                array[[p, q]] = array[[q, p]]
            busy[[fours[p], fours[q]]] = True
    return np.flatnonzero(busy[fours])


def _joined(others: _Floats, columns: _Floats, weights: _Floats, full: _Floats) -> _Floats:
    weighted = others * weights
    union: _Floats = weighted.sum(axis=1)[:, None] + full[None, :] - weighted @ columns.T
    return union


def _neighbors(values: _Floats) -> _Floats:
    """Per place, the union of the other columns of its four; values [places, rows]."""
    places = len(values)
    padded = np.zeros((-(-places // QUAD) * QUAD, values.shape[1]), values.dtype)
    padded[:places] = values
    fours = padded.reshape(-1, QUAD, values.shape[1])
    count = fours.sum(axis=1, keepdims=True)
    others: _Floats = ((count - fours) > 0).reshape(padded.shape).astype(values.dtype)
    return others[:places]
