# SPDX-License-Identifier: Apache-2.0
"""Files by chance and by malice: read returns a document or raises FormatError, nothing else."""

from __future__ import annotations

import contextlib
import zlib

import pytest
from containers import GOLDEN, assert_same, forge, golden_entries
from hypothesis import given, settings
from hypothesis import strategies as st

from ternary_ops.errors import FormatError
from ternary_ops.io import container
from ternary_ops.io.container import WeightEntry

GOOD = GOLDEN.read_bytes()


def test_every_flipped_bit_is_refused():
    for bit in range(8 * len(GOOD)):
        flipped = bytearray(GOOD)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(FormatError):
            container.read(bytes(flipped))


def test_every_truncation_is_refused():
    for n in range(len(GOOD)):
        with pytest.raises(FormatError):
            container.read(GOOD[:n])


@given(st.binary(min_size=1, max_size=40))
def test_a_tail_is_refused(tail):
    with pytest.raises(FormatError):
        container.read(GOOD + tail)


@given(st.binary(max_size=400))
def test_any_bytes(data):
    with pytest.raises(FormatError):
        container.read(data)


@given(st.integers(0, len(GOOD)), st.integers(0, len(GOOD)), st.integers(0, len(GOOD)), st.binary())
def test_splices(start, stop, at, inserted):
    spliced = GOOD[:at] + inserted + GOOD[start:stop] + GOOD[at:]
    if spliced == GOOD:
        return
    with pytest.raises(FormatError):
        container.read(spliced)


@given(st.binary(max_size=300), st.integers(0, 40), st.integers(0, 12))
def test_any_payload_behind_a_right_checksum(payload, rows, width):
    kinds = ["ternary", "int8", "float32", "float16", "raw:int64", "raw:bool"]
    index = {"index": {}, "weights": [[kind, kind, [rows, width]] for kind in kinds]}
    with contextlib.suppress(FormatError):
        document = container.read(forge(index, payload))
        assert all(w.array.shape == (rows, width) for w in document.weights.values())


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5)
    | st.sampled_from(["index", "weights", "ternary", "int8", "float32", "raw:int8", "raw:"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["index", "weights", "a"]), inner, max_size=3)
    ),
    max_leaves=12,
)


@given(JSON)
def test_any_index_behind_a_right_checksum(value):
    for index in (value, {"index": {}, "weights": value}, {"index": {}, "weights": [value]}):
        with contextlib.suppress(FormatError):
            container.read(forge(index))


@given(st.lists(st.tuples(st.text(max_size=3), JSON, JSON), max_size=3), st.binary(max_size=40))
def test_any_weights_behind_a_right_checksum(rows, payload):
    with contextlib.suppress(FormatError):
        container.read(forge({"index": {}, "weights": [list(row) for row in rows]}, payload))


@given(st.dictionaries(st.sampled_from(["format", "version", "kind", "crc32", "x"]), JSON))
def test_any_metadata(about):
    with contextlib.suppress(FormatError):
        container.read(forge({"index": {}, "weights": []}, about={"crc32": 0, **about}))


@given(st.binary(max_size=200))
def test_any_deflated_text(text):
    with contextlib.suppress(FormatError):
        container.read(forge(zlib.compress(text)))


@settings(max_examples=40)
@given(
    st.data(),
    st.dictionaries(st.text(min_size=1, max_size=8), JSON, max_size=3),
    st.lists(st.text(min_size=1, max_size=8), unique=True, max_size=4),
)
def test_what_is_written_comes_back(data, index, names):
    entries = golden_entries()[: len(names)]
    entries = [WeightEntry(name, e.kind, e.array) for name, e in zip(names, entries, strict=True)]
    kind = data.draw(st.text(max_size=10))
    document = container.read(container.dumps(kind, index, entries))
    assert (document.kind, document.index) == (kind, index)
    assert_same(entries, document)
