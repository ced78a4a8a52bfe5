# SPDX-License-Identifier: Apache-2.0
"""One file of any kind: a JSON index and named weights, in one safetensors file (docs/formats.md).

    container.write(path, "program", index, [WeightEntry("0.w", "ternary", codes), ...])
    document = container.read(path)        # document.kind, .index, .weights["0.w"].array

Metadata `ternary_ops` = {"format", "version", "kind", "crc32"}; tensor `index` = deflated JSON
{"index": ..., "weights": [[name, stored, shape], ...]}; tensor `payload` = all weights, one stream
of the native codec. Every flipped bit and every truncation is a FormatError.
"""

from __future__ import annotations

import io
import json
import math
import os
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ternary_ops._atomic import replace_file
from ternary_ops._native import core
from ternary_ops.errors import FormatError, need
from ternary_ops.io import safetensors
from ternary_ops.io.safetensors import DAMAGED
from ternary_ops.layout.codes import TernaryCodes, quads, to_array

FORMAT = "ternary_ops"
VERSION = 1
KNOWN_VERSIONS = (1,)
KINDS = ("ternary", "int8", "float32", "raw")
# dtypes of kind raw; the payload keeps their bytes
_INTEGERS = ("uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "uint64")
RAW = (*_INTEGERS, "bool", "float16", "float64")
MAX_NAME = 1024
_MAX_AXES = 8
_MAX_VALUES = 2**48
# A deflated index may not inflate beyond this many times its size (and this much for nothing).
_INDEX_RATIO, _INDEX_FREE = 16, 2**16

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class WeightEntry:
    """A named array of a file.

    kind     array
    ternary  int8 in {-1, 0, 1}, last axis = input channels: [O, R, S, I] (linear [O, 1, 1, I])
    int8     int8, the same layout
    float32  float32 of any shape; stored in half the bytes where float16 holds the same values
    raw      any shape, dtype one of RAW

    What is read from a file keeps ternary values as codes.
    """

    name: str
    kind: str
    stored: Array | TernaryCodes

    @property
    def array(self) -> Array:
        """The values; where they are kept as codes, unpacked at every call."""
        return to_array(self.stored)


@dataclass(frozen=True, eq=False)
class Document:
    """Contents of a file, in the order written; `size` and `payload` are in bytes."""

    kind: str
    index: dict[str, Any]
    weights: dict[str, WeightEntry] = field(default_factory=dict)
    size: int = 0
    payload: int = 0


def write(
    path: str | os.PathLike[str],
    kind: str,
    index: Mapping[str, Any],
    weights: Iterable[WeightEntry],
) -> None:
    """Write a file, atomically: `path` holds the old or the new one, whatever happens.

    index: anything JSON. Raises BadWeights for ternary values outside {-1, 0, 1}, FormatError for
    entries that a file cannot hold, OSError.
    """
    data = dumps(kind, index, weights)
    replace_file(path, lambda temporary: temporary.write_bytes(data))


def dumps(kind: str, index: Mapping[str, Any], weights: Iterable[WeightEntry]) -> bytes:
    """The bytes of such a file; the same content always gives the same bytes."""
    rows, tensors = [], []
    names = set()
    for entry in weights:
        if entry.name in names or not 0 < len(entry.name) <= MAX_NAME:
            what = f"names of their own for weights, of 1 to {MAX_NAME} characters"
            raise FormatError(need(what, repr(entry.name[:80]), "Rename it."))
        names.add(entry.name)
        stored, array = _stored(entry)
        rows.append([entry.name, stored, list(array.shape)])
        tensors.append(_to_codec(stored, array))
    text = _json({"index": dict(index), "weights": rows})
    deflated = zlib.compress(text, 9)
    if len(text) > _index_limit(len(deflated)):
        deflated = zlib.compress(text, 0)
    payload = core().codec_encode(tensors).tobytes()
    metadata = {"format": FORMAT, "version": VERSION, "kind": kind}
    metadata["crc32"] = _crc32(metadata, deflated, payload)
    return safetensors.pack(
        {FORMAT: _json(metadata).decode()}, {"index": deflated, "payload": payload}
    )


def read(source: str | os.PathLike[str] | bytes) -> Document:
    """Read a file (or its bytes). Raises FormatError; a missing path stays FileNotFoundError.

    A file of n bytes makes at most 2**20 + 1024 n bytes of weights and 2**16 + 16 n of JSON text.
    """
    if isinstance(source, bytes):
        return _read(io.BytesIO(source), len(source))
    path = Path(source)
    with path.open("rb") as file:
        try:
            return _read(file, os.fstat(file.fileno()).st_size)
        except FormatError as error:
            raise FormatError(f"{path}: {error}") from None


def _read(file: Any, size: int) -> Document:
    metadata, tensors = safetensors.read(file, size)
    if FORMAT not in metadata:
        what = f"{FORMAT!r} in the metadata"
        raise FormatError(need(what, sorted(metadata)[:8], DAMAGED))
    about = safetensors.parse_json(metadata[FORMAT], f"metadata {FORMAT!r}")
    _check_version(about)
    if sorted(tensors) != ["index", "payload"]:
        got = sorted(tensors)[:8]
        raise FormatError(need("the tensors 'index' and 'payload'", got, DAMAGED))
    if set(about) != {"format", "version", "kind", "crc32"} or type(about["kind"]) is not str:
        what = f"format, version, kind and crc32 in metadata {FORMAT!r}"
        raise FormatError(need(what, sorted(about)[:8], DAMAGED))
    crc = about.pop("crc32")
    found = _crc32(about, tensors["index"], tensors["payload"])
    if type(crc) is not int or crc != found:
        raise FormatError(need(f"a file with checksum {crc!r:.40}", found, DAMAGED))
    index = _inflate(tensors["index"])
    if set(index) != {"index", "weights"} or type(index["index"]) is not dict:
        what = "an object 'index' and 'weights' in the index"
        raise FormatError(need(what, sorted(index)[:8], DAMAGED))
    weights = _decode(index["weights"], tensors["payload"])
    return Document(about["kind"], index["index"], weights, size, len(tensors["payload"]))


def _check_version(about: dict[str, Any]) -> None:
    if about.get("format") != FORMAT:
        got = repr(about.get("format"))[:80]
        raise FormatError(need(f"the format {FORMAT!r}", got, DAMAGED))
    version = about.get("version")
    if type(version) is not int or version not in KNOWN_VERSIONS:
        known = ", ".join(map(str, KNOWN_VERSIONS))
        what = f"file versions known here: {known}"
        raise FormatError(need(what, f"version {version!r:.80}", "Install a newer ternary-ops."))


def _crc32(about: Mapping[str, Any], index: bytes, payload: bytes) -> int:
    return zlib.crc32(payload, zlib.crc32(index, zlib.crc32(_json(about, sort=True))))


def _json(value: Any, sort: bool = False) -> bytes:
    return json.dumps(value, separators=(",", ":"), sort_keys=sort, allow_nan=False).encode()


def _index_limit(deflated: int) -> int:
    return _INDEX_FREE + _INDEX_RATIO * deflated


def _inflate(data: bytes) -> dict[str, Any]:
    limit = _index_limit(len(data))
    inflater = zlib.decompressobj()
    try:
        text = inflater.decompress(data, limit + 1)
    except zlib.error as error:
        raise FormatError(need("a zlib stream as the index", error, DAMAGED)) from None
    if len(text) > limit or not inflater.eof or inflater.unused_data:
        got = f"{len(text)} bytes so far" if inflater.unused_data == b"" else "bytes after its end"
        what = f"as index one zlib stream of at most {limit} bytes"
        raise FormatError(need(what, got, DAMAGED))
    return safetensors.parse_json(text, "the index")


def _stored(entry: WeightEntry) -> tuple[str, Array]:
    """Storage form of an entry, and the array in that form."""
    array = np.asarray(entry.array)
    name = array.dtype.name
    allowed = {"ternary": ("int8",), "int8": ("int8",), "float32": ("float32",), "raw": RAW}
    if entry.kind not in allowed or name not in allowed[entry.kind]:
        what = f"as kind of {entry.name!r} one of {', '.join(KINDS)}, in its dtype"
        raise FormatError(need(what, f"{name} of {entry.kind!r}", "Convert the array."))
    _check_shape(entry.name, entry.kind, list(array.shape))
    if entry.kind == "raw":
        return f"raw:{name}", array
    if entry.kind == "float32":
        half = _as_half(array)
        return ("float32", array) if half is None else ("float16", half)
    return entry.kind, array


def _as_half(array: Array) -> NDArray[np.float16] | None:
    """Lossless float16 copy, or None where a number would change (a NaN's payload included)."""
    with np.errstate(over="ignore", invalid="ignore"):
        half = array.astype(np.float16)
        back = half.astype(np.float32)
    same = np.array_equal(back.view(np.uint32), np.ascontiguousarray(array).view(np.uint32))
    return half if same else None


def _dtype(stored: str) -> np.dtype[Any]:
    """The dtype in the payload: little-endian."""
    name = {"ternary": "int8"}.get(stored, stored.removeprefix("raw:"))
    return np.dtype(name).newbyteorder("<")


def _codec_spec(stored: str, shape: list[int]) -> tuple[str, int, int]:
    """Kind, rows and width for the codec."""
    if stored in ("ternary", "int8"):
        return stored, math.prod(shape[:-1]), shape[-1]
    return "bytes", math.prod(shape), _dtype(stored).itemsize


def _to_codec(stored: str, array: Array) -> tuple[str, NDArray[np.int8]]:
    kind, rows, width = _codec_spec(stored, list(array.shape))
    little = np.ascontiguousarray(array, _dtype(stored))
    return kind, little.reshape(-1).view(np.int8).reshape(rows, width)


def _decode(rows: Any, payload: bytes) -> dict[str, WeightEntry]:
    if type(rows) is not list:
        raise FormatError(need("'weights' of the index as a list", type(rows).__name__, DAMAGED))
    listed: dict[str, tuple[str, list[int]]] = {}
    for row in rows:
        name, stored, shape = row if type(row) is list and len(row) == 3 else [None] * 3
        if type(name) is not str or not 0 < len(name) <= MAX_NAME or name in listed:
            what = "a weight as [name, stored, shape] with a name of its own"
            raise FormatError(need(what, f"{row!r:.80}", DAMAGED))
        if type(stored) is not str or not _is_stored(stored):
            what = f"{name!r} stored as ternary, int8, float32, float16 or raw:dtype"
            raise FormatError(need(what, f"{stored!r:.80}", DAMAGED))
        listed[name] = (stored, _check_shape(name, stored, shape))
    specs = [_codec_spec(stored, shape) for stored, shape in listed.values()]
    decoded = core().codec_decode(np.frombuffer(payload, np.uint8), specs, codes=True)
    weights = {}
    for (name, (stored, shape)), values in zip(listed.items(), decoded, strict=True):
        if stored == "raw:bool" and ((values != 0) & (values != 1)).any():
            raise FormatError(need(f"booleans in {name!r}", "a byte above 1", DAMAGED))
        if stored == "ternary":
            codes = values.view(np.uint8).reshape(*shape[:-1], quads(shape[-1]))
            weights[name] = WeightEntry(name, stored, TernaryCodes(codes, shape[-1]))
            continue
        array = values.reshape(-1).view(_dtype(stored)).reshape(shape)
        weights[name] = _entry(name, stored, array)
    return weights


def _is_stored(stored: str) -> bool:
    plain = stored in ("ternary", "int8", "float32", "float16")
    return plain or (stored.startswith("raw:") and stored.removeprefix("raw:") in RAW)


def _entry(name: str, stored: str, array: Array) -> WeightEntry:
    if stored in ("float32", "float16"):
        return WeightEntry(name, "float32", array.astype(np.float32, copy=False))
    if stored.startswith("raw:"):
        return WeightEntry(name, "raw", array.astype(array.dtype.newbyteorder("="), copy=False))
    return WeightEntry(name, stored, array)


def _check_shape(name: str, kind: str, shape: Any) -> list[int]:
    valid = type(shape) is list and len(shape) <= _MAX_AXES
    valid = valid and all(type(n) is int and n >= 0 for n in shape)
    if not valid or math.prod(max(n, 1) for n in shape) > _MAX_VALUES:
        what = f"{name!r} of at most {_MAX_AXES} axes and {_MAX_VALUES} values"
        raise FormatError(need(what, f"{shape!r:.80}", DAMAGED))
    if kind in ("ternary", "int8") and not shape:
        raise FormatError(
            need(f"{name!r} of kind {kind} with at least one axis", "a scalar", DAMAGED)
        )
    checked: list[int] = shape
    return checked
