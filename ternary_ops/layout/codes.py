# SPDX-License-Identifier: Apache-2.0
"""Ternary codes: four weights to a byte, and the layouts the operators read. NumPy only.

A code is two bits of two's complement: 00 -> 0, 01 -> +1, 11 -> -1; 10 is invalid. Element k of a
row sits in bits 2*(k%4) of byte k//4, and a last, incomplete byte is filled with 00. Filters are
stored [O, R, S, I], so that the four weights of a byte are four consecutive input channels of one
tap: a quad.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ternary_ops.errors import BadWeights, UnsupportedShape, need

_T = TypeVar("_T", bound=np.generic)

FINE_PARTS = 8  # steps of an eleven-bit value's second code in one of its first

_VALUE_OF_CODE = np.array([0, 1, 2, -1], np.int8)  # 2 marks the invalid code; validate() refuses it
_DECODE = _VALUE_OF_CODE[(np.arange(256)[:, None] >> np.array([0, 2, 4, 6])) & 3]  # [256, 4]
_BYTE_HAS_INVALID = (_DECODE == 2).any(axis=1)  # [256]


def quads(channels: int) -> int:
    """Number of quads that hold `channels` values: ceil(channels / 4)."""
    return -(-channels // 4)


def pack_codes(t: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Pack int8 [..., I] in {-1, 0, 1} into uint8 [..., ceil(I/4)].

    Raises BadWeights naming the first value that is not ternary.
    """
    t = np.asarray(t)
    if t.ndim == 0:
        raise UnsupportedShape(
            need("an array of at least one axis for pack_codes", "a scalar", "Pass [..., I].")
        )
    bad = (t != 0) & (t != 1) & (t != -1)
    if bad.any():
        at = tuple(int(i) for i in np.argwhere(bad)[0])
        raise BadWeights(
            need("ternary values in {-1, 0, 1}", f"{t[at]} at {at}", "Ternarize first.")
        )
    # The two low bits of a two's complement number are its code: -1 & 3 == 0b11.
    two_bits = np.zeros((*t.shape[:-1], 4 * quads(t.shape[-1])), np.uint8)
    two_bits[..., : t.shape[-1]] = t.astype(np.int8).view(np.uint8) & 3
    lanes = two_bits.reshape(*t.shape[:-1], quads(t.shape[-1]), 4)
    packed: NDArray[np.uint8] = (
        lanes[..., 0] | lanes[..., 1] << 2 | lanes[..., 2] << 4 | lanes[..., 3] << 6
    )
    return packed


def validate(codes: NDArray[np.uint8], channels: int) -> None:
    """Check uint8 [..., ceil(channels/4)]: shape, no invalid code, padding zero.

    Raises UnsupportedShape or BadWeights; the latter names the first offending [..., channel].
    """
    codes = np.asarray(codes)
    if codes.dtype != np.uint8 or codes.ndim == 0 or codes.shape[-1] != quads(channels):
        raise UnsupportedShape(
            need(
                f"codes of {channels} channels as uint8 [..., {quads(channels)}]",
                f"{codes.dtype} {list(codes.shape)}",
                "Make them with pack_codes or conv_codes.",
            )
        )
    tail = channels % 4
    bad = _BYTE_HAS_INVALID[codes]
    if tail:
        bad[..., -1] |= (codes[..., -1] >> (2 * tail)) != 0
    if not bad.any():
        return
    at = tuple(int(i) for i in np.argwhere(bad)[0])
    lanes = _DECODE[codes[at]]
    first_padding = channels - 4 * at[-1]
    lane = next(i for i in range(4) if lanes[i] == 2 or (i >= first_padding and lanes[i] != 0))
    where = (*at[:-1], 4 * at[-1] + lane)
    what = "the invalid code 10" if lanes[lane] == 2 else "a weight in the padding"
    raise BadWeights(
        need(
            "codes 00, 01 or 11, and 00 in the padding",
            f"{what} at {where}",
            "Pack the weights again.",
        )
    )


def unpack_codes(codes: NDArray[np.uint8], channels: int) -> NDArray[np.int8]:
    """Undo pack_codes: uint8 [..., ceil(I/4)] -> int8 [..., I]; validates first."""
    validate(codes, channels)
    return _expand(np.asarray(codes), channels)


def _expand(codes: NDArray[np.uint8], channels: int) -> NDArray[np.int8]:
    lanes = _DECODE[codes].reshape(*codes.shape[:-1], 4 * codes.shape[-1])
    return np.ascontiguousarray(lanes[..., :channels])


@dataclass(frozen=True, eq=False)
class TernaryCodes:
    """Ternary values kept as codes, a quarter of the memory: uint8 [..., ceil(I/4)] of I channels.

    The codes are taken to be valid.
    """

    codes: NDArray[np.uint8]
    channels: int

    @property
    def shape(self) -> tuple[int, ...]:
        """[..., I]."""
        return (*self.codes.shape[:-1], self.channels)

    def unpack(self) -> NDArray[np.int8]:
        """The values, int8 [..., I]."""
        return _expand(self.codes, self.channels)


def to_array(values: NDArray[Any] | TernaryCodes) -> NDArray[Any]:
    """The values themselves: codes are unpacked, an array is returned as it is."""
    return values.unpack() if isinstance(values, TernaryCodes) else values


def conv_codes(t: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Pack PyTorch's filter layout, int8 [O, I, R, S], into codes uint8 [O, R, S, ceil(I/4)]."""
    return pack_codes(channels_last(t))


def conv_from_codes(codes: NDArray[np.uint8], channels: int) -> NDArray[np.int8]:
    """Undo conv_codes: uint8 [O, R, S, ceil(I/4)] -> int8 [O, I, R, S]."""
    return channels_first(unpack_codes(codes, channels))


def pad_int8(w: NDArray[np.int8]) -> NDArray[np.int8]:
    """Fill the last axis with zeros to whole quads: int8 [..., I] -> int8 [..., 4*ceil(I/4)]."""
    w = np.asarray(w)
    out = np.zeros((*w.shape[:-1], 4 * quads(w.shape[-1])), np.int8)
    out[..., : w.shape[-1]] = w
    return out


def fine_filters(w: NDArray[np.int8]) -> NDArray[np.int8]:
    """Filters [O, R, S, I] as [O, R, S, 8 * ceil(I/4)], for eleven-bit input.

    Behind each quad lies an eighth of it, rounded half to even: what the second code of a value
    (reference.quantize_fine) is multiplied with.
    """
    o, r, s, i = w.shape
    padded = np.zeros((o, r, s, quads(i), 4), np.int8)
    padded.reshape(o, r, s, -1)[..., :i] = w
    eighth = np.rint(padded / FINE_PARTS).astype(np.int8)
    return np.ascontiguousarray(np.stack([padded, eighth], 4).reshape(o, r, s, -1))


def channels_last(w: NDArray[_T]) -> NDArray[_T]:
    """[O, I, R, S] -> contiguous [O, R, S, I]."""
    _need_rank_4(w)
    return np.ascontiguousarray(np.transpose(w, (0, 2, 3, 1)))


def channels_first(w: NDArray[_T]) -> NDArray[_T]:
    """[O, R, S, I] -> contiguous [O, I, R, S]."""
    _need_rank_4(w)
    return np.ascontiguousarray(np.transpose(w, (0, 3, 1, 2)))


def _need_rank_4(w: NDArray[_T]) -> None:
    if w.ndim != 4:
        raise UnsupportedShape(need("a filter bank of 4 axes", list(w.shape), "Reshape it first."))
