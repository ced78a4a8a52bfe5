# SPDX-License-Identifier: Apache-2.0
"""Figures of a program's layers: bytes, zeros, multiply-adds, time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ternary_ops.io.sizes import lowest_bound
from ternary_ops.io.storage_formats import storage_bits
from ternary_ops.program.shapes import infer_from, macs
from ternary_ops.program.summary import stored_bytes, zeros_planned
from ternary_ops.program.weight import Weight

if TYPE_CHECKING:
    from ternary_ops.runtime import Program

Array = NDArray[Any]
REPEATS = 9


@dataclass(frozen=True)
class Layer:
    """One convolution or linear layer of a program.

    vectors: bytes of scales and biases. stored: bits of its weights in each of
    `io.storage_formats`.
    """

    name: str
    kind: str
    shape: tuple[int, int, int, int]
    weights: int
    zeros: int
    quads: int
    empty_quads: int
    macs: int
    ms: float
    fp32: int
    packed: int
    bound: float
    vectors: int
    stored: Mapping[str, int]
    planned: str = ""
    reached: str = ""

    @property
    def pruned(self) -> bool:
        """Ternary, or 8-bit with zeros that training put there: a tenth of the quads at least."""
        return self.kind == "ternary" or (
            self.kind == "int8" and 10 * self.empty_quads > self.quads
        )

    @property
    def nonzero(self) -> int:
        """Weights that are not zero."""
        return self.weights - self.zeros

    def to_row(self) -> dict[str, object]:
        """A row of a CSV."""
        fields = {name: value for name, value in self.__dict__.items() if name != "stored"}
        shape = " ".join(map(str, self.shape))
        return {**fields, "shape": shape, **{f"{n}_bits": v for n, v in self.stored.items()}}


def layers_of(program: Program, x: Array) -> list[Layer]:
    """One row a filter bank, timed on x."""
    graph = program.graph
    shapes = infer_from(graph, x.shape)
    counts = macs(graph, shapes)
    profile = program.profile(x, repeats=REPEATS)
    nodes: dict[int, list[int]] = {}  # of each filter bank, which may be read more than once
    for index, node in enumerate(graph.nodes):
        if node.operator.is_layer:
            nodes.setdefault(node.attrs["w"], []).append(index)
    return [
        _layer(
            graph.weights[w],
            sum(counts[i] for i in at),
            sum(float(profile[i]["ms"]) for i in at),
        )
        for w, at in nodes.items()
    ]


def _layer(weight: Weight, count: int, ms: float) -> Layer:
    quads = _quads(weight.array)
    biases = 0 if weight.bias is None else weight.bias.size
    vectors = sum(v.nbytes for v in (weight.scale, weight.bias) if v is not None)
    size = weight.array.size
    planned, reached = zeros_planned(weight)
    return Layer(
        name=weight.name,
        kind=weight.kind,
        shape=weight.shape,
        weights=size,
        zeros=int((weight.array == 0).sum()),
        quads=len(quads),
        empty_quads=int((quads == 0).all(1).sum()),
        macs=count,
        ms=ms,
        fp32=4 * (size + biases),
        packed=stored_bytes(weight),
        bound=lowest_bound(weight.kind, weight.array) / 8 + vectors,
        vectors=vectors,
        stored=storage_bits(weight.kind, weight.array),
        planned=planned,
        reached=reached,
    )


def _quads(values: Array) -> Array:
    """[quads, 4]: four consecutive input channels of one tap, the last ones padded with zeros."""
    rows = values.reshape(-1, values.shape[-1])
    return np.pad(rows, ((0, 0), (0, -rows.shape[1] % 4))).reshape(-1, 4)
