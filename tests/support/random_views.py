# SPDX-License-Identifier: Apache-2.0
"""Random networks that permute, reshape, cut and join a layer's value before another reads it."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

Move = Callable[[Tensor], Tensor]
_MOST_AXES = 6


class Moved(nn.Module):
    """A layer, up to seven moves, and an operator on the last axis, an image or all axes.

    said: the moves, for people.
    """

    def __init__(self, seed: int, shape: Sequence[int]) -> None:
        super().__init__()
        self.rng, self.said, self.moves = random.Random(seed), list[str](), list[Move]()
        torch.manual_seed(seed)
        image = len(shape) == 4
        self.stem: nn.Module = nn.Conv2d(shape[1], 12, 1) if image else nn.Linear(shape[-1], 12)
        with torch.no_grad():
            y = self.stem(torch.randn(tuple(shape)))
            for _ in range(self.rng.randrange(1, 8)):
                name = self.rng.choice(sorted(MOVES))
                move = MOVES[name](self.rng, y)
                if move is not None:
                    self.said.append(name)
                    self.moves.append(move)
                    y = move(y)
            self.op = self._operator(y)
            self.flattens = self.op(y).ndim > 4

    def _operator(self, y: Tensor) -> nn.Module:
        kinds: list[Callable[[], nn.Module]] = [
            lambda: nn.Linear(y.shape[-1], 5),
            nn.Identity,
        ]
        longer = [axis for axis in range(1, y.ndim) if y.shape[axis] > 1]
        if longer:
            kinds.append(lambda: nn.Softmax(self.rng.choice(longer)))
        if y.shape[-1] > 2:  # of one number it makes zeros, of two signs
            kinds.append(lambda: nn.LayerNorm(y.shape[-1]))
        if y.ndim == 4:
            kinds.append(lambda: nn.Conv2d(y.shape[1], 3, 3, padding=1))
        return self.rng.choice(kinds)()

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for move in self.moves:
            x = move(x)
        x = self.op(x)
        return x.flatten(2) if self.flattens else x


def _permute(rng: random.Random, y: Tensor) -> Move:
    order = [0, *rng.sample(range(1, y.ndim), y.ndim - 1)]
    return lambda t: t.permute(order)


def _swap(rng: random.Random, y: Tensor) -> Move | None:
    if y.ndim < 3:
        return None
    a, b = rng.sample(range(1, y.ndim), 2)
    return lambda t: t.transpose(a, b)


def _regroup(rng: random.Random, y: Tensor) -> Move | None:
    """One axis as two, or two as one."""
    sizes = list(y.shape[1:])
    i = rng.randrange(len(sizes))
    factors = [v for v in range(2, sizes[i]) if sizes[i] % v == 0]
    if factors and len(sizes) < _MOST_AXES - 1 and rng.random() < 0.5:
        sizes[i : i + 1] = [v := rng.choice(factors), sizes[i] // v]
    elif i + 1 < len(sizes):
        sizes[i : i + 2] = [sizes[i] * sizes[i + 1]]
    else:
        return None
    return lambda t: t.reshape(t.shape[0], *sizes)


def _reshape(rng: random.Random, y: Tensor) -> Move:
    """Other axes, whose bounds may lie anywhere."""
    total, factors = y[0].numel(), list[int]()
    for prime in (2, 3, 5, 7, 11, 13):
        while total % prime == 0:
            factors.append(prime)
            total //= prime
    factors.append(total)
    rng.shuffle(factors)
    sizes = [1] * rng.randrange(1, 5)
    for factor in factors:
        sizes[rng.randrange(len(sizes))] *= factor
    return lambda t: t.reshape(t.shape[0], *sizes)


def _squeeze(rng: random.Random, y: Tensor) -> Move | None:
    ones = [i for i in range(1, y.ndim) if y.shape[i] == 1]
    if not ones or y.ndim < 3:
        return None
    axis = rng.choice(ones)
    return lambda t: t.squeeze(axis)


def _unsqueeze(rng: random.Random, y: Tensor) -> Move | None:
    axis = rng.randrange(1, y.ndim + 1)
    return None if y.ndim == _MOST_AXES else lambda t: t.unsqueeze(axis)


def _cut(rng: random.Random, y: Tensor) -> Move:
    axis = rng.randrange(1, y.ndim)
    begin = rng.randrange(y.shape[axis])
    index = slice(begin, rng.randrange(begin + 1, y.shape[axis] + 1), rng.choice([1, 1, 2, 3]))
    return lambda t: t[(slice(None),) * axis + (index,)]


def _select(rng: random.Random, y: Tensor) -> Move | None:
    axis = rng.randrange(1, y.ndim)
    place = rng.randrange(y.shape[axis])
    return None if y.ndim < 3 else lambda t: t.select(axis, place)


def _roll(rng: random.Random, y: Tensor) -> Move:
    axis = rng.randrange(1, y.ndim)
    shift = rng.randrange(y.shape[axis])
    return lambda t: torch.roll(t, shift, axis)


def _cat(rng: random.Random, y: Tensor) -> Move:
    axis = rng.randrange(1, y.ndim)
    return lambda t: torch.cat([t, torch.relu(t)], axis)


def _stack(rng: random.Random, y: Tensor) -> Move | None:
    axis = rng.randrange(1, y.ndim + 1)
    return None if y.ndim == _MOST_AXES else lambda t: torch.stack([t, torch.relu(t)], axis)


def _halves(rng: random.Random, y: Tensor) -> Move | None:
    axis = rng.randrange(1, y.ndim)
    if y.shape[axis] % 2:
        return None

    def move(t: Tensor) -> Tensor:
        a, b = t.chunk(2, axis)
        return a + torch.tanh(b)

    return move


def _gate(rng: random.Random, y: Tensor) -> Move:
    axis = rng.randrange(1, y.ndim)
    return lambda t: t * torch.sigmoid(t.narrow(axis, 0, 1))


def _repeat(rng: random.Random, y: Tensor) -> Move:
    times = [1] * y.ndim
    times[rng.randrange(1, y.ndim)] = 2
    return lambda t: t.repeat(times)


MOVES: dict[str, Callable[[random.Random, Tensor], Move | None]] = {
    move.__name__[1:]: move
    for move in (
        *(_permute, _swap, _regroup, _reshape, _squeeze, _unsqueeze, _cut, _select),
        *(_roll, _cat, _stack, _halves, _gate, _repeat),
    )
}
