# SPDX-License-Identifier: Apache-2.0
"""Streams: paired and unpaired images of a semi-supervised training, proven disjoint."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np

from ternary_ops.errors import BadConfig, UnsupportedShape, need
from ternary_ops.sr.training.patches import Ids, PairedPatches, UnpairedPatches

_SHOWN = 3


@dataclass(frozen=True)
class Streams:
    """Pairs, small images without a large one, large ones without a small one.

    pairs     every batch has some
    low       small images whose large form nobody has; None: no such stream
    high      large images whose small form nobody has; None: no such stream
    held_out  ids of validation and test images, which no stream may hold
    batch     images of each unpaired stream a step

    Where there is an unpaired stream or held_out, every stream needs ids: names of scenes, or dates
    (datetime64). No two may share one. Dates are compared by whole days, since an hour tells much
    of the next; pairs alone may have hours of a day that an unpaired stream has other hours of.

    Raises BadConfig for streams without ids or with a shared one, UnsupportedShape for images that
    do not fit each other.
    """

    pairs: PairedPatches
    low: UnpairedPatches | None = None
    high: UnpairedPatches | None = None
    held_out: Ids = ()
    batch: int = 4

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise BadConfig(need("a batch of at least 1", self.batch, "4 is the default."))
        self._check_shapes()
        streams = {"pairs": self.pairs, "low": self.low, "high": self.high}
        ids = {name: stream.ids for name, stream in streams.items() if stream is not None}
        if len(ids) == 1 and not len(self.held_out):
            return
        for name, found in ids.items():
            if found is None:
                do = "Pass ids=, a scene or a date for each image."
                raise BadConfig(need(f"ids of the stream {name}", "none", do))
        known = {name: np.asarray(i) for name, i in (ids | {"held_out": self.held_out}).items()}
        for first, second in combinations(known, 2):
            exact = "held_out" not in (first, second) and "pairs" in (first, second)
            _check_disjoint(first, known[first], second, known[second], whole_days=not exact)

    def _check_shapes(self) -> None:
        small, large = self.pairs.patch_shapes
        for name, stream, wanted in (("low", self.low, small), ("high", self.high, large)):
            if stream is not None and stream.patch_shapes[0] != wanted:
                do = "Pass patch=, or cut the images alike."
                got = list(stream.patch_shapes[0])
                what = f"patches {list(wanted)} in the stream {name}"
                raise UnsupportedShape(need(what, got, do))


def _check_disjoint(
    first: str, ours: np.ndarray, second: str, theirs: np.ndarray, whole_days: bool
) -> None:
    if not len(ours) or not len(theirs):
        return
    if ours.dtype.kind != theirs.dtype.kind:
        got = f"{ours.dtype} and {theirs.dtype}"
        do = "Pass names or dates everywhere, dates as numpy.datetime64."
        raise BadConfig(need(f"ids of one kind for {first} and {second}", got, do))
    if ours.dtype.kind == "M" and whole_days:
        ours, theirs = (dates.astype("datetime64[D]") for dates in (ours, theirs))
    shared = np.intersect1d(ours, theirs)
    if len(shared):
        some = ", ".join(str(one) for one in shared[:_SHOWN])
        got = f"{some} in both" + (f", {len(shared)} in all" if len(shared) > _SHOWN else "")
        what = "dates" if ours.dtype.kind == "M" else "ids"
        do = "Leave them out of one."
        raise BadConfig(need(f"no shared {what} of {first} and {second}", got, do))
