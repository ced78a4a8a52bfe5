# SPDX-License-Identifier: Apache-2.0
"""The safetensors layout, as far as these files need it: named byte tensors and string metadata.

8 bytes little-endian header length | JSON header | data. Read here rather than with the safetensors
package because a program has to run with NumPy alone, its metadata must be readable from bytes, and
every refusal names what was found; tests hold both readers to the same files.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any, BinaryIO

from ternary_ops.errors import FormatError, need

MAX_HEADER = 2**20
_PREFIX = 8
DAMAGED = "The file is damaged or is another kind of file; fetch or write it again."


def pack(metadata: Mapping[str, str], tensors: Mapping[str, bytes]) -> bytes:
    """A whole file; each tensor has dtype U8."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, data in tensors.items():
        offsets = [end, end + len(data)]
        header[name] = {"dtype": "U8", "shape": [len(data)], "data_offsets": offsets}
        end += len(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([struct.pack("<Q", len(text)), text, *tensors.values()])


def read(file: BinaryIO, size: int) -> tuple[dict[str, str], dict[str, bytes]]:
    """Metadata and U8 tensors of a file of `size` bytes; raises FormatError.

    The header is checked before the data is read, so that a large file of another kind costs
    nothing. Bytes outside every tensor, overlaps and repeated names are refused.
    """
    prefix = file.read(_PREFIX)
    length = int.from_bytes(prefix, "little")
    if len(prefix) < _PREFIX or length > min(size - _PREFIX, MAX_HEADER):
        what = f"a safetensors file, which begins with a header length of at most {MAX_HEADER}"
        got = f"{length} in a file of {size} bytes"
        raise FormatError(need(what, got, DAMAGED))
    text = file.read(length)
    if text[:1] != b"{":
        raise FormatError(need("a safetensors header that begins with {", repr(text[:1]), DAMAGED))
    header = parse_json(text, f"the safetensors header (bytes {_PREFIX} to {_PREFIX + length})")
    metadata = header.pop("__metadata__", {})
    if type(metadata) is not dict or any(type(v) is not str for v in metadata.values()):
        what = "safetensors metadata of names and strings"
        raise FormatError(need(what, type(metadata).__name__, DAMAGED))
    spans = _spans(header)
    data = file.read(size - _PREFIX - length)
    end = 0
    for name, (first, last) in sorted(spans.items(), key=lambda item: item[1]):
        if first != end:
            what = f"tensor {name!r} at byte {end} of the data"
            raise FormatError(need(what, first, DAMAGED))
        end = last
    if end != len(data):
        raise FormatError(need(f"{end} bytes of data, which the tensors cover", len(data), DAMAGED))
    return metadata, {name: data[first:last] for name, (first, last) in spans.items()}


def parse_json(text: str | bytes, what: str) -> dict[str, Any]:
    """A JSON object without repeated names; raises FormatError, `what` naming the place."""
    try:
        text = text if isinstance(text, str) else text.decode("utf-8")
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise FormatError(need(f"{what} as JSON", _short(error), DAMAGED)) from None
    if type(value) is not dict:
        raise FormatError(need(f"{what} as a JSON object", type(value).__name__, DAMAGED))
    return value


def _spans(header: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """First and last byte of every tensor."""
    spans = {}
    for name, entry in header.items():
        entry = entry if type(entry) is dict else {}
        if entry.get("dtype") != "U8" or set(entry) != {"dtype", "shape", "data_offsets"}:
            what = f"dtype U8, a shape and data_offsets of tensor {name!r}"
            raise FormatError(need(what, _short(entry), DAMAGED))
        shape, offsets = _counts(entry["shape"]), _counts(entry["data_offsets"])
        if len(shape) != 1 or len(offsets) != 2 or offsets[0] + shape[0] != offsets[1]:
            what = f"one axis of tensor {name!r}, as long as its two offsets are apart"
            raise FormatError(need(what, _short(entry), DAMAGED))
        spans[name] = (offsets[0], offsets[1])
    return spans


def _counts(value: Any) -> list[int]:
    """A list of integers >= 0, or an empty one."""
    valid = type(value) is list and all(type(v) is int and v >= 0 for v in value)
    return value if valid else []


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a repeated name")
    return made


def _no_constant(name: str) -> None:
    raise ValueError(f"the constant {name}")


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 120 else text[:117] + "..."
