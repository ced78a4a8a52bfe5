# SPDX-License-Identifier: Apache-2.0
"""Programs as files: kind "program" of `ternary_ops.io.container`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ternary_ops.errors import FormatError, UnsupportedShape, need
from ternary_ops.io import container
from ternary_ops.program import attributes
from ternary_ops.program.graph import Graph
from ternary_ops.program.operator import TOKENS
from ternary_ops.program.serialize import from_index, to_arrays, to_index
from ternary_ops.program.shapes import infer_from

KIND = "program"
# A program with what a downscaling model knows besides, in entries under this name: climate/.
DOWNSCALER = "downscaler"
_STORED_AS = {"ternary": "ternary", "int8": "int8", "float": "float32"}


def write(path: Path, graph: Graph, sample: tuple[int, ...]) -> None:
    """Write a program and its sample input shape, atomically."""
    container.write(path, KIND, *contents(graph, sample))


def contents(
    graph: Graph, sample: tuple[int, ...]
) -> tuple[dict[str, Any], list[container.WeightEntry]]:
    """Index and entries of a program's file."""
    index = {**to_index(graph), "sample": list(sample)}
    kinds = {f"{i}.w": _STORED_AS[w.kind] for i, w in enumerate(graph.weights)}
    entries = [
        container.WeightEntry(name, kinds.get(name, "float32"), values)
        for name, values in to_arrays(graph).items()
    ]
    return index, entries


def read(path: Path) -> tuple[Graph, tuple[int, ...]]:
    """Undo write; raises FormatError for a file that is anything else.

    Of a downscaling model it reads the program alone.
    """
    return from_document(path, container.read(path))


def from_document(path: Path, document: container.Document) -> tuple[Graph, tuple[int, ...]]:
    """The program of a file that has been read."""
    if document.kind not in (KIND, DOWNSCALER):
        raise FormatError(
            need(
                f"a program in {path}",
                f"kind {document.kind!r}",
                "Load a network's weights with ternary_ops.load, then compile it.",
            )
        )
    index: dict[str, Any] = dict(document.index)
    sample = index.pop("sample", None)
    weights = document.weights
    if document.kind == DOWNSCALER:
        index.pop(DOWNSCALER, None)
        weights = {k: w for k, w in weights.items() if not k.startswith(f"{DOWNSCALER}.")}
    try:
        graph = from_index(index, {name: w.stored for name, w in weights.items()})
        return graph, _sample(graph, sample)
    except (FormatError, UnsupportedShape) as error:
        raise FormatError(f"{path}: {error}") from None


def _sample(graph: Graph, sizes: Any) -> tuple[int, ...]:
    """The file's sample input shape, if the program can run it."""
    listed = attributes.items("sample", sizes, graph.values[0].rank)
    sample = tuple(attributes.integer("sample", size, 0, 2**31) for size in listed)
    infer_from(graph, sample)
    channels = sample[2] if len(sample) == TOKENS else sample[1]
    attributes.integer("sample: channels", channels, *[graph.nodes[0].attrs["c"]] * 2)
    return sample
