# SPDX-License-Identifier: Apache-2.0
"""The native entropy coder through its Python binding."""

from __future__ import annotations

import lzma
import threading

import codec_reference
import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from ternary_ops._native import core
from ternary_ops.errors import BadWeights, FormatError, UnsupportedShape
from ternary_ops.io.sizes import entropy_bound
from ternary_ops.layout.codes import pack_codes


def quad_sparse(rng, rows, width, density, shares=(0.35, 0.3, 0.35)):
    """int8 [rows, width]: `density` of the quads hold something, values inside drawn by shares."""
    values = rng.choice([-1, 0, 1], (rows * width // 4, 4), p=shares).astype(np.int8)
    values[(values == 0).all(1), 0] = 1
    values[rng.random(len(values)) >= density] = 0
    return values.reshape(rows, width)


def element_sparse(rng, rows, width, density, positive=0.5):
    shares = [density * (1 - positive), 1 - density, density * positive]
    return rng.choice([-1, 0, 1], (rows, width), p=shares).astype(np.int8)


def encode(kind, array):
    return core().codec_encode([(kind, array)])


def decode(payload, kind, array):
    return core().codec_decode(payload, [(kind, *array.shape)])[0]


DENSITIES = [0.005, 0.02, 0.1, 0.3, 0.5, 1.0]
CASES = [("1x4", d, None) for d in DENSITIES] + [
    ("element", d, positive) for d in DENSITIES for positive in (0.5, 0.9)
]


@pytest.mark.parametrize(("pattern", "density", "positive"), CASES)
def test_a_large_tensor_is_within_3_percent_of_its_bound_and_below_xz_and_zstd(
    pattern, density, positive
):
    rng = np.random.default_rng(1)
    shape = (9 * 256, 512)
    codes = (
        quad_sparse(rng, *shape, density)
        if pattern == "1x4"
        else element_sparse(rng, *shape, density, positive)
    )
    payload = encode("ternary", codes)
    assert np.array_equal(decode(payload, "ternary", codes), codes)
    assert payload.size <= 1.03 * entropy_bound(codes, pattern) / 8
    two_bit = pack_codes(codes).tobytes()
    assert payload.size < len(lzma.compress(two_bit, preset=6))
    assert payload.size < len(zstandard.ZstdCompressor(level=19).compress(two_bit))


@pytest.mark.parametrize("kind", ["ternary", "int8"])
@pytest.mark.parametrize("width", [*range(1, 10), 31])
def test_every_row_width_comes_back(kind, width):
    rng = np.random.default_rng(width)
    low, high = (-1, 2) if kind == "ternary" else (-128, 128)
    codes = rng.integers(low, high, (57, width)).astype(np.int8)
    codes[rng.random(57) < 0.3] = 0
    assert np.array_equal(decode(encode(kind, codes), kind, codes), codes)


def test_the_documented_format_decodes_to_the_same_values():
    rng = np.random.default_rng(6)
    kinds = {"ternary": (-1, 2), "int8": (-128, 128), "bytes": (-128, 128)}
    tensors = []
    for kind, width in [("ternary", 23), ("int8", 9), ("bytes", 4), ("ternary", 8), ("bytes", 0)]:
        values = rng.integers(*kinds[kind], (90, width)).astype(np.int8)
        values[rng.random(90) < 0.5] = 0
        tensors.append((kind, values))
    # Enough for two blocks, and for counts to be halved.
    tensors.append(("ternary", quad_sparse(rng, 4200, 256, 0.08)))
    tensors.append(("bytes", rng.integers(0, 3, (9000, 2)).astype(np.int8)))
    payload = core().codec_encode(tensors)
    specs = [(kind, *values.shape) for kind, values in tensors]
    decoded = codec_reference.decode(payload.tobytes(), specs)
    for (_, values), found in zip(tensors, decoded, strict=True):
        assert found == (values.tolist() if values.shape[1] else [])


def test_the_documented_padding_of_zeros():
    zeros = np.zeros((400, 4096), np.int8)
    payload = encode("ternary", zeros)
    assert codec_reference.decode(payload.tobytes(), [("ternary", 400, 4096)]) == [zeros.tolist()]


def test_statistics_carry_over_between_tensors():
    rng = np.random.default_rng(2)
    tensors = [quad_sparse(rng, 36, 64, 0.1) for _ in range(20)]
    together = core().codec_encode([("ternary", t) for t in tensors]).size
    assert together < 0.95 * sum(encode("ternary", t).size for t in tensors)


def test_structure_between_rows_pays():
    # Taps of a filter that are empty at the same places: far below the bound without context.
    rng = np.random.default_rng(3)
    alive = np.repeat(rng.random((256, 1, 64)) < 0.1, 9, axis=1).reshape(-1, 64)
    codes = quad_sparse(rng, 9 * 256, 256, 1.0) * np.repeat(alive, 4, axis=1).astype(np.int8)
    assert encode("ternary", codes).size < 0.9 * entropy_bound(codes, "1x4") / 8


def test_nothing_makes_nothing():
    assert core().codec_encode([]).size == 0
    assert core().codec_decode(np.zeros(0, np.uint8), []) == []
    empty = np.zeros((0, 7), np.int8)
    assert encode("ternary", empty).size == 0
    assert decode(np.zeros(0, np.uint8), "ternary", empty).shape == (0, 7)


def test_an_invalid_code_is_located():
    codes = np.ones((5, 9), np.int8)
    codes[2, 3] = 2
    with pytest.raises(BadWeights, match="got 2 at position 21 of tensor 1"):
        core().codec_encode([("ternary", np.ones((1, 1), np.int8)), ("ternary", codes)])


@pytest.mark.parametrize("shape", [(4,), (2, 2, 2)])
def test_only_matrices(shape):
    with pytest.raises(UnsupportedShape, match="rows, width"):
        encode("ternary", np.ones(shape, np.int8))


@pytest.mark.parametrize(
    ("claim", "said"),
    [
        (("ternary", 2**40, 4), "payload of at least"),
        (("int8", 2**40, 2**40), "overflow"),
        (("bytes", 1, 9), "byte columns"),
        (("float8", 1, 1), "float8"),
    ],
)
def test_claims_are_checked_before_memory_is_taken(claim, said):
    with pytest.raises(FormatError, match=said):
        core().codec_decode(np.zeros(1000, np.uint8), [claim])


def test_the_payload_of_zeros_has_the_least_size_allowed():
    zeros = np.zeros((3000, 4096), np.int8)
    payload = encode("ternary", zeros)
    assert payload.size == -(-(zeros.size - 2**20) // 1024)
    assert np.array_equal(decode(payload, "ternary", zeros), zeros)
    with pytest.raises(FormatError, match="payload of at least"):
        decode(payload[:-1], "ternary", zeros)
    with pytest.raises(FormatError, match="bytes that are used"):
        decode(np.append(payload, np.uint8(0)), "ternary", zeros)


@given(
    payload=st.binary(max_size=300),
    specs=st.lists(
        st.tuples(
            st.sampled_from(["ternary", "int8", "bytes"]), st.integers(0, 60), st.integers(0, 8)
        ),
        max_size=4,
    ),
)
def test_any_bytes_decode_or_are_refused(payload, specs):
    try:
        arrays = core().codec_decode(np.frombuffer(payload, np.uint8), specs)
    except FormatError:
        return
    for (kind, rows, width), array in zip(specs, arrays, strict=True):
        assert array.shape == (rows, width)
        assert kind != "ternary" or set(np.unique(array)) <= {-1, 0, 1}


def test_every_truncation_is_refused_and_every_flip_survived():
    rng = np.random.default_rng(4)
    codes = quad_sparse(rng, 60, 32, 0.4)
    payload = encode("ternary", codes)
    for n in range(payload.size):
        with pytest.raises(FormatError):
            decode(payload[:n], "ternary", codes)
    undetected = 0
    for bit in range(8 * payload.size):
        flipped = payload.copy()
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            undetected += not np.array_equal(decode(flipped, "ternary", codes), codes)
        except FormatError:
            continue
    # The end state catches nearly all; the container's checksum catches the rest.
    assert undetected <= 2


def test_threads_do_not_disturb_each_other():
    rng = np.random.default_rng(5)
    tensors = [quad_sparse(rng, 300, 64, 0.2) for _ in range(8)]
    payloads = [encode("ternary", t) for t in tensors]
    wrong = []

    def work(i):
        for _ in range(20):
            if not np.array_equal(decode(payloads[i], "ternary", tensors[i]), tensors[i]):
                wrong.append(i)
            if not np.array_equal(encode("ternary", tensors[i]), payloads[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


@pytest.mark.parametrize("density", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("width", [1, 3, 4, 7, 64])
def test_ternary_tensors_decode_into_codes_too(width: int, density: float) -> None:
    draw = np.random.default_rng(width)
    ternary = draw.integers(-1, 2, (37, width)).astype(np.int8)
    ternary[draw.random((37, width)) >= density] = 0
    int8 = draw.integers(-128, 128, (5, width)).astype(np.int8)
    specs = [("ternary", 37, width), ("int8", 5, width), ("ternary", 37, width)]
    payload = core().codec_encode([("ternary", ternary), ("int8", int8), ("ternary", ternary)])
    first, middle, last = core().codec_decode(payload, specs, codes=True)
    np.testing.assert_array_equal(first.view(np.uint8), pack_codes(ternary))
    np.testing.assert_array_equal(middle, int8)
    np.testing.assert_array_equal(last, first)
