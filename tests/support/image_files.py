# SPDX-License-Identifier: Apache-2.0
"""PNG and TIFF files made byte by byte, so that what is in them is known without a decoder."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_ADAM7 = [
    (0, 0, 8, 8),
    (0, 4, 8, 8),
    (4, 0, 8, 4),
    (0, 2, 4, 4),
    (2, 0, 4, 2),
    (0, 1, 2, 2),
    (1, 0, 2, 1),
]


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _rows(samples: NDArray[Any], depth: int) -> bytes:
    """Packed rows, each behind filter 0."""
    made = b""
    for row in samples.reshape(len(samples), -1):
        made += b"\0" + packed(row, depth)
    return made


def packed(row: NDArray[Any], depth: int) -> bytes:
    """Samples of so many bits, the highest bit first, up to a whole byte."""
    bits = (row.astype(np.int64)[:, None] >> np.arange(depth - 1, -1, -1)) & 1
    return np.packbits(bits.ravel().astype(np.uint8)).tobytes()


def png(samples: NDArray[Any], color: int, depth: int, laced: bool = False, **more: bytes) -> bytes:
    """A file of samples [H, W] or [H, W, C]; more: chunks by name, before the pixels."""
    height, width = samples.shape[:2]
    samples = samples.reshape(height, width, _CHANNELS[color])
    passes = _ADAM7 if laced else [(0, 0, 1, 1)]
    parts = [samples[top::down, left::right] for top, left, down, right in passes]
    pixels = b"".join(_rows(part, depth) for part in parts if part.size)
    head = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, int(laced))
    made = b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", head)
    for name, data in more.items():
        made += _chunk(name.encode(), data)
    return made + _chunk(b"IDAT", zlib.compress(pixels)) + _chunk(b"IEND", b"")


def tiff(index: NDArray[Any], depth: int, photometric: int, order: str, *colors: int) -> bytes:
    """A file of samples [H, W] in one strip; order: "<" or ">". colors: of its palette, if any."""
    height, width = index.shape
    data = b"".join(packed(row, depth) for row in index)
    tags = [(256, 3, width), (257, 3, height), (258, 3, depth), (259, 3, 1), (262, 3, photometric)]
    tags += [(273, 4, 8), (277, 3, 1), (278, 3, height), (279, 4, len(data))]
    end = 8 + len(data) + len(data) % 2
    if colors:
        tags.append((320, 3, end + 2 + 12 * (len(tags) + 1) + 4))
    made = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, end)
    made += data.ljust(end - 8, b"\0") + struct.pack(order + "H", len(tags))
    for tag, kind, value in tags:
        count = len(colors) if tag == 320 else 1
        form = "HHIHxx" if kind == 3 and count == 1 else "HHII"
        made += struct.pack(order + form, tag, kind, count, value)
    return made + struct.pack(order + f"I{len(colors)}H", 0, *colors)
