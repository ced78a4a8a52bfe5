# SPDX-License-Identifier: Apache-2.0
"""Super-resolution programs, whose white is 1: what they are, from files, and our own. No torch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ternary_ops import runtime
from ternary_ops.errors import BadConfig, FormatError, UnsupportedShape, need, needs_package
from ternary_ops.io import container
from ternary_ops.program.graph import Graph
from ternary_ops.program.receptive_field import radius
from ternary_ops.program.shapes import infer

if TYPE_CHECKING:
    from ternary_ops.sr.models.base import SRNetwork

# What comes with the package, by scale: models/README.md.
MODELS = {2: "efdn-x2", 4: "efdn-x4"}
_FOLDER = Path(__file__).parent.parent / "weights"
_MOST_SMALLEST = 256


def open_model(model: str | os.PathLike[str] | int) -> SRNetwork | runtime.Program:
    """Open a model by its scale (2 or 4: bundled with the package), its name, or its file.

    A file is a program that `to_program` made, or a checkpoint as `load` takes it, which needs
    torch. Raises BadConfig for an unknown scale or name, and the errors of reading the file.
    """
    if isinstance(model, int):
        if model not in MODELS:
            scales = " and ".join(map(str, MODELS))
            do = "Pass a checkpoint with --weights."
            raise BadConfig(
                need(f"a scale of {scales}, for which the package has models", model, do)
            )
        model = MODELS[model]
    if model in MODELS.values():
        return runtime.load(_FOLDER / f"{model}.safetensors")
    path = Path(model)
    if not path.exists() and not path.suffix:
        names = ", ".join(MODELS.values())
        raise BadConfig(need(f"as model {names} or a file", str(model), "Check the name."))
    if path.suffix == ".safetensors" and _is_program(path):
        return runtime.load(path)
    with needs_package("torch", "a checkpoint", "pip install 'ternary-ops[sr]'"):
        from ternary_ops.sr.models.checkpoint import load
    return load(path)


def _is_program(path: Path) -> bool:
    try:
        return container.read(path).kind == "program"
    except FormatError:
        return False  # a checkpoint: whoever loads it says what is wrong


@dataclass(frozen=True)
class Facts:
    """Scale, channels, least size and receptive field of a super-resolution program.

    channels  of the images that it takes and makes
    scale     factor of height and width
    smallest  least height and width it takes
    radius    input pixels that an output pixel sees to each side; None: more than a part
    """

    channels: int
    scale: int
    smallest: int
    radius: int | None


def facts(program: runtime.Program) -> Facts:
    """Read scale, channels, least size and radius from a program's nodes; raises FormatError
    where it does not make images larger.
    """
    graph = program.graph
    smallest = next((n for n in range(1, _MOST_SMALLEST) if _takes(graph, n)), None)
    shapes = None if smallest is None else infer(graph, 1, smallest, smallest)
    if smallest is None or shapes is None or {len(shapes[0]), len(shapes[-1])} != {4}:
        got, do = f"{program!r}", "Pass a program that sr.to_program made."
        raise FormatError(need("a model of images [N, C, H, W]", got, do))
    channels = shapes[0][1]
    scale, rest = divmod(shapes[-1][2], smallest)
    if rest or scale < 1 or shapes[-1][1:] != (channels, scale * smallest, scale * smallest):
        got, do = f"{list(shapes[0])} to {list(shapes[-1])}", "Pass a super-resolution program."
        what = "a model that makes images larger by a whole factor, and keeps their channels"
        raise FormatError(need(what, got, do))
    return Facts(channels, scale, smallest, radius(graph))


def _takes(graph: Graph, side: int) -> bool:
    try:
        infer(graph, 1, side, side)
    except UnsupportedShape:
        return False
    return True
