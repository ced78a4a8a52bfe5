# SPDX-License-Identifier: Apache-2.0
"""Containers for tests: the golden one, and forged ones whose checksum is right."""

from __future__ import annotations

import json
import zlib

import numpy as np
from checkout import DATA

from ternary_ops.io import container, safetensors
from ternary_ops.io.container import WeightEntry

GOLDEN = DATA / "container_v1.safetensors"
GOLDEN_KIND = "golden"
GOLDEN_INDEX: dict = {"name": "gölden", "list": [1, 2.5, None, True, {"deep": []}]}


def _numbers(count, modulus):
    """0 .. modulus-1 in an order that no library version can change."""
    x, out = 1, []
    for _ in range(count):
        x = (x * 1664525 + 1013904223) % 2**32
        out.append((x >> 16) % modulus)
    return np.array(out)


def golden_entries():
    ternary = np.array([0, 0, 0, 1, 0, -1, 0])[_numbers(6 * 3 * 3 * 10, 7)]
    int8 = _numbers(5 * 9, 255) - 127
    floats = _numbers(12, 1000) / 7
    return [
        WeightEntry("conv.w", "ternary", ternary.reshape(6, 3, 3, 10).astype(np.int8)),
        WeightEntry("conv.s", "float32", floats[:6].astype(np.float32)),
        WeightEntry("half", "float32", (_numbers(6, 64) / 8 - 4).astype(np.float32)),
        WeightEntry("fc.w", "int8", int8.reshape(5, 1, 1, 9).astype(np.int8)),
        WeightEntry("none", "ternary", np.zeros((0, 1, 1, 3), np.int8)),
        WeightEntry("count", "raw", np.array(-(2**40))),
        WeightEntry("flags", "raw", _numbers(9, 2).astype(bool).reshape(3, 3)),
        WeightEntry("double", "raw", floats[6:].astype(np.float64)),
    ]


def forge(index, payload=b"", about=None, extra=None):
    """A file with the right checksum; index is a dict, or the deflated bytes themselves.

    An entry of `about` that is ... is left out, as is a tensor of `extra` that is None.
    """
    if not isinstance(index, bytes):
        index = zlib.compress(json.dumps(index).encode())
    about = {"format": "ternary_ops", "version": 1, "kind": "x", **(about or {})}
    about = {key: value for key, value in about.items() if value is not ...}
    if "crc32" not in about:
        about["crc32"] = container._crc32(about, index, payload)
    tensors = {"index": index, "payload": payload, **(extra or {})}
    tensors = {name: data for name, data in tensors.items() if data is not None}
    return safetensors.pack({"ternary_ops": json.dumps(about)}, tensors)


def assert_same(entries, document):
    """Entries come back: order, kinds, dtypes, bits."""
    assert list(document.weights) == [entry.name for entry in entries]
    for entry in entries:
        found = document.weights[entry.name]
        assert (found.name, found.kind) == (entry.name, entry.kind)
        assert found.array.dtype == entry.array.dtype.newbyteorder("=")
        assert found.array.shape == entry.array.shape
        assert found.array.tobytes() == entry.array.astype(found.array.dtype).tobytes()


if __name__ == "__main__":
    container.write(GOLDEN, GOLDEN_KIND, GOLDEN_INDEX, golden_entries())
