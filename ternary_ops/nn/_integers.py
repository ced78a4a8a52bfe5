# SPDX-License-Identifier: Apache-2.0
"""Integer buffers that never change but by their layer: averages of networks do write into them."""

from __future__ import annotations

import hashlib

from torch import Tensor

from ternary_ops.errors import BadWeights, need


def versions(*tensors: Tensor | None) -> tuple[tuple[int, int], ...]:
    """Changes whenever PyTorch sees one of the tensors replaced or written into."""
    return tuple(
        (0, 0) if t is None else (t.data_ptr(), 0 if t.is_inference() else t._version)
        for t in tensors
    )


def digest(*tensors: Tensor) -> bytes | None:
    """A checksum of their values; None if there are none, on the meta device."""
    made = hashlib.blake2b(digest_size=8)
    for tensor in tensors:
        if tensor.is_meta:
            return None
        made.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return made.digest()


def check_digest(layer: str, what: str, expected: bytes | None, *tensors: Tensor) -> None:
    """Raise BadWeights unless the tensors are those of the digest; None fits any."""
    found = digest(*tensors)
    if expected is not None and found is not None and found != expected:
        do = "Do not average them: pack the average of the trainable network, or copy the buffers."
        got = "others, written by something else"
        raise BadWeights(need(f"loading or refresh() to change {what} of a {layer}", got, do))
