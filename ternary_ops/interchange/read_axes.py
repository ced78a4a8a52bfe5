# SPDX-License-Identifier: Apache-2.0
"""ONNX operators that permute, cut and pad the axes of traced values."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from ternary_ops.interchange import import_constants
from ternary_ops.interchange.loader import Loader
from ternary_ops.interchange.onnx_package import Unsupported
from ternary_ops.interchange.rules import Attributes, Made

_MODES = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}
_FAR = 2**31 - 1  # exporters write such ends for none


def transpose(loader: Loader, node: Any, at: Attributes) -> Made:
    """Axes in another order; by default reversed."""
    if import_constants.is_fact(loader, node.input[0]):
        array = import_constants.fact(loader, node, 0, "sizes or a constant")
        return import_constants.keep(loader, node, array.transpose(at.get("perm")))
    rank = loader.rank(node.input[0])
    order = [int(axis) for axis in at.get("perm", range(rank)[::-1])]
    return loader.call(torch.permute, loader.value(node, 0), order)


def slices(loader: Loader, node: Any, at: Attributes) -> Made:
    """Slice of computed values, or of facts."""
    if import_constants.is_fact(loader, node.input[0]):
        return import_constants.slices(loader, node, at)
    rank = loader.rank(node.input[0])
    index = [slice(None)] * rank
    for axis, cut in import_constants.cuts(loader, node, at, rank).items():
        end = None if cut.stop >= _FAR else cut.stop
        index[axis] = slice(cut.start or None, end, None if cut.step == 1 else cut.step)
    return loader.call(operator.getitem, loader.value(node, 0), tuple(index))


def pad(loader: Loader, node: Any, at: Attributes) -> Made:
    """Pad by known widths."""
    x, rank = loader.value(node, 0), loader.rank(node.input[0])
    widths = at.get("pads") or import_constants.whole_numbers(loader, node, 1, "pads")
    axes = import_constants.whole_numbers(loader, node, 3, "axes") or list(range(rank))
    if widths is None or len(widths) != 2 * len(axes):
        raise Unsupported(f"two pads for each of {len(axes)} axes", widths)
    mode = _MODES.get(at.get("mode", "constant"))
    if mode is None:
        raise Unsupported(f"mode {' or '.join(_MODES)}", at["mode"])
    ends = {a % rank: (widths[i], widths[i + len(axes)]) for i, a in enumerate(axes)}
    padded = [axis for axis, both in ends.items() if any(both)]
    if mode != "constant" and (rank != 4 or min(padded, default=2) < 2):
        raise Unsupported("rows and columns of an image for this mode", f"axes {padded}")
    first = min([*padded, 2] if mode != "constant" else padded, default=rank - 1)
    given = [end for axis in range(rank - 1, first - 1, -1) for end in ends.get(axis, (0, 0))]
    value = _value(loader, node, at) if mode == "constant" else None
    return loader.call(F.pad, x, [int(v) for v in given], mode, value)


def _value(loader: Loader, node: Any, at: Attributes) -> float:
    if "value" in at:
        return float(at["value"])
    array = loader.constant(node, 2)
    if array is None:
        return 0.0
    if array.size != 1 or array.dtype != np.float32:
        raise Unsupported("a value as one float32", f"{array.dtype} {list(array.shape)}")
    return float(array.reshape(-1)[0])
