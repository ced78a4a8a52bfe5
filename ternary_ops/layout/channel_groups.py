# SPDX-License-Identifier: Apache-2.0
"""Channel groups: which channels of a network can only be permuted, removed or scaled together.

A dependency graph of channel axes. Every value of a network has an axis of channels, and every
operator ties channels of what it reads to channels of what it makes: an add ties channel c of both
operands and of the sum, a concat ties a part to a range of the whole, a flatten ties one channel
to all of its pixels. Parameters run along these axes: filters make a value, input channels of
filters read one, vectors (norms, slopes, depthwise filters) have an element a channel.

Two readers fill the graph: `program.channels` from a program, `graph.channels` from a traced torch
network. Permutation, equalization and narrowing ask it.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Change: TypeAlias = Literal["order", "removal", "scale"]
Role: TypeAlias = Literal["producer", "consumer", "vector"]
Index: TypeAlias = NDArray[np.intp]

EVERY: tuple[Change, ...] = ("order", "removal", "scale")


@dataclass(frozen=True)
class Use:
    """A layer whose parameters run along the channels of a value.

    role: "producer", output channels of filters, with their biases and scales; "consumer", input
    channels of filters; "vector", an element a channel: a norm, slopes, depthwise filters. groups:
    those of a grouped convolution. Where a program reads a flattened image, each channel of the
    value stands for a run of a consumer's input channels.
    """

    owner: Hashable
    role: Role
    value: Hashable
    groups: int = 1


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that can take each other's place, in everything that holds them.

    positions: value -> [channels, copies], where each of them stands; a flattened image has a copy
    a pixel. widths: value -> how many channels it has. uses: of these values, in order of reading.
    labels: [channels]; only channels of one label may change places. splits: value -> numbers of
    consecutive parts (of grouped convolutions), which must stay of one size. fixed: why the order
    or the number of channels cannot change; a change that it does not name is free.
    """

    positions: Mapping[Hashable, Index]
    widths: Mapping[Hashable, int]
    uses: tuple[Use, ...]
    labels: Index
    splits: Mapping[Hashable, tuple[int, ...]]
    fixed: Mapping[Change, str]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def producers(self) -> tuple[Use, ...]:
        """Filters that make the channels."""
        return self._of("producer")

    @property
    def consumers(self) -> tuple[Use, ...]:
        """Filters that read them."""
        return self._of("consumer")

    @property
    def vectors(self) -> tuple[Use, ...]:
        """Parameters with an element for each of them."""
        return self._of("vector")

    @property
    def whole(self) -> bool:
        """True where the values have these channels and no other, each once and in one order."""
        return all(
            self.widths[value] == len(self) and np.array_equal(at, np.arange(len(self))[:, None])
            for value, at in self.positions.items()
        )

    def order_of(self, value: Hashable, order: Index) -> Index:
        """Source index of each channel of the value, [width], when the group's channels take the
        order [channels].
        """
        found = np.arange(self.widths[value])
        found[self.positions[value]] = self.positions[value][order]
        return found

    def _of(self, role: Role) -> tuple[Use, ...]:
        return tuple(use for use in self.uses if use.role == role)


class ChannelGroups:
    """The dependency graph, filled value by value.

    What moves or removes a channel must do so to all that is tied to it; what scales one, to all
    that is tied with scale=True: those are fewer, since layers and norms can undo a factor.
    """

    def __init__(self) -> None:
        self._slots: dict[Hashable, Index] = {}  # the numbers of each value's channels
        self._ties: list[tuple[Index, Index]] = []
        self._splits: dict[Hashable, list[int]] = {}
        self._uses: list[Use] = []
        self._moves, self._factors = _Classes(), _Classes()

    def __contains__(self, value: Hashable) -> bool:
        return value in self._slots

    def width(self, value: Hashable) -> int:
        """Number of channels of the value."""
        return len(self._slots[value])

    def add(self, value: Hashable, channels: int) -> None:
        """A value with so many channels, tied to nothing yet."""
        self._slots[value] = self._moves.new(channels)
        self._factors.new(channels)

    def tie(
        self,
        value: Hashable,
        other: Hashable,
        index: Index | None = None,
        at: Index | None = None,
        scale: bool = False,
    ) -> None:
        """Channel at[j] of value, by default j, belongs to channel index[j] of other. With scale
        they also have one factor.
        """
        mine, others = self._slots[value], self._slots[other]
        mine = mine if at is None else mine[at]
        others = others if index is None else others[index]
        self._ties.append((mine, others))
        self._moves.tie(mine, others)
        if scale:
            self._factors.tie(mine, others)

    def fix(self, value: Hashable, reason: str, *changes: Change) -> None:
        """No such change of this value's channels; by default none at all."""
        for change in changes or EVERY:
            classes = self._factors if change == "scale" else self._moves
            classes.fix(self._slots[value], change, reason)

    def is_fixed(self, value: Hashable, change: Change) -> bool:
        """True when no channel of the value may change so, by what is known up to now."""
        classes = self._factors if change == "scale" else self._moves
        return all(change in classes.reasons(slot) for slot in self._slots[value])

    def split(self, value: Hashable, parts: int) -> None:
        """The channels are so many consecutive parts of one size, of a grouped operator: they stay
        in their part, and parts stay of one size.
        """
        self._splits.setdefault(value, []).append(parts)

    def use(self, owner: Hashable, role: Role, value: Hashable, groups: int = 1) -> None:
        """Parameters of `owner` run along the value's channels, see Use."""
        self._uses.append(Use(owner, role, value, groups))

    def classes(self, value: Hashable) -> Index:
        """The number of what each channel is, [width]: tied channels have one."""
        return self._moves.numbers()[self._slots[value]]

    def factors(self, value: Hashable) -> Index:
        """The number of the factor of each channel, [width]."""
        numbers = self._factors.numbers()
        return numbers[self._slots[value]]

    def free_factors(self) -> NDArray[np.bool_]:
        """For each number of `factors`, whether a factor other than 1 is possible."""
        return np.array(["scale" not in r for r in self._factors.reasons_by_number()], bool)

    def groups(self) -> list[ChannelGroup]:
        """Every group, in the order in which their channels were added."""
        numbers = self._moves.numbers()
        in_order = np.argsort(np.unique(numbers, return_index=True)[1])
        classes = np.argsort(in_order)[numbers]  # numbered by their first channel
        of_class, representative = self._alike(classes)
        positions: list[dict[Hashable, Index]] = [{} for _ in representative]
        for value, slots in self._slots.items():
            order = np.argsort(classes[slots], kind="stable")
            mine = of_class[classes[slots]][order]
            for g in np.unique(mine):
                at = order[mine == g]
                copies = int((classes[slots][at] == classes[slots][at[0]]).sum())
                positions[g][value] = at.reshape(-1, copies)
        fixed = self._moves.reasons_by_number()
        return [
            self._group(where, fixed[in_order[first]])
            for where, first in zip(positions, representative, strict=True)
        ]

    def _alike(self, classes: Index) -> tuple[Index, list[int]]:
        """The group of each class, and a class of each group.

        Channels are interchangeable when the operators cannot tell them apart: they stand equally
        often in the same values, and every tie joins the same copies of them.
        """
        copy = np.empty(len(classes), np.intp)
        rows = []
        for number, slots in enumerate(self._slots.values()):
            copy[slots] = _copies(classes[slots])
            rows.append(_rows(classes[slots], 0, number, copy[slots], copy[slots]))
        for number, (a, b) in enumerate(self._ties):
            rows.append(_rows(classes[a], 1, number, copy[a], copy[b]))
        table = np.unique(np.concatenate(rows), axis=0) if rows else np.empty((0, 5), np.intp)
        ends = np.flatnonzero(np.diff(table[:, 0])) + 1
        groups: dict[bytes, int] = {}
        of_class: list[int] = []
        representative: list[int] = []
        for number, part in enumerate(np.split(table[:, 1:], ends) if len(table) else []):
            g = groups.setdefault(part.tobytes(), len(groups))
            of_class.append(g)
            if g == len(representative):
                representative.append(number)
        return np.array(of_class, np.intp), representative

    def _group(self, positions: dict[Hashable, Index], fixed: dict[Change, str]) -> ChannelGroup:
        widths = {value: self.width(value) for value in positions}
        splits = {v: tuple(self._splits[v]) for v in positions if v in self._splits}
        rows = [
            copy // (widths[value] // parts)
            for value in splits
            for parts in splits[value]
            for copy in positions[value].T
        ]
        count = len(next(iter(positions.values())))
        labels = np.zeros(count, np.intp)
        if rows:
            labels = np.unique(np.stack(rows), axis=1, return_inverse=True)[1].reshape(-1)
        uses = tuple(use for use in self._uses if use.value in positions)
        return ChannelGroup(positions, widths, uses, labels, splits, dict(fixed))


class _Classes:
    """Disjoint sets of slots (union-find); a set may be fixed, with the first reason given."""

    def __init__(self) -> None:
        self._parents: list[int] = []
        self._reasons: dict[int, dict[Change, str]] = {}  # of roots
        self._numbers: Index | None = None  # as they are now

    def new(self, count: int) -> Index:
        self._numbers = None
        first = len(self._parents)
        self._parents += range(first, first + count)
        return np.arange(first, first + count)

    def tie(self, a: Index, b: Index) -> None:
        self._numbers = None
        for first, second in zip(a, b, strict=True):
            one, other = self._root(int(first)), self._root(int(second))
            if one != other:
                self._parents[other] = one
                reasons = self._reasons.pop(other, {})
                if reasons:
                    self._reasons[one] = reasons | self._reasons.get(one, {})

    def fix(self, slots: Index, change: Change, reason: str) -> None:
        for slot in slots:
            self._reasons.setdefault(self._root(int(slot)), {}).setdefault(change, reason)

    def reasons(self, slot: int) -> Mapping[Change, str]:
        return self._reasons.get(self._root(int(slot)), {})

    def numbers(self) -> Index:
        """The set of each slot, numbered by roots."""
        if self._numbers is None:
            roots = np.array([self._root(i) for i in range(len(self._parents))], np.intp)
            self._numbers = np.unique(roots, return_inverse=True)[1].reshape(-1)
        return self._numbers

    def reasons_by_number(self) -> list[dict[Change, str]]:
        roots = [i for i, parent in enumerate(self._parents) if i == parent]
        return [self._reasons.get(root, {}) for root in roots]

    def _root(self, i: int) -> int:
        while self._parents[i] != i:
            self._parents[i] = self._parents[self._parents[i]]
            i = self._parents[i]
        return i


def _copies(classes: Index) -> Index:
    """Of each channel of a value, how many of its class stand before it."""
    order = np.argsort(classes, kind="stable")
    ordered = classes[order]
    first = np.searchsorted(ordered, ordered, side="left")
    found = np.empty(len(classes), np.intp)
    found[order] = np.arange(len(classes)) - first
    return found


def _rows(classes: Index, kind: int, number: int, a: Index, b: Index) -> Index:
    same = np.ones(len(classes), np.intp)
    return np.stack([classes, kind * same, number * same, a, b], axis=1)
