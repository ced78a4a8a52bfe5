# SPDX-License-Identifier: Apache-2.0
"""What a file keeps, what it costs, how it is replaced, and what each damage is called."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import textwrap
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest
import safetensors.numpy
from containers import GOLDEN, GOLDEN_INDEX, GOLDEN_KIND, assert_same, forge, golden_entries
from safetensors import safe_open

from ternary_ops._atomic import replace_file
from ternary_ops.errors import BadWeights, FormatError
from ternary_ops.io import container
from ternary_ops.io.container import WeightEntry


def one(array, kind="float32"):
    return [WeightEntry("a", kind, array)]


def back(entries):
    return container.read(container.dumps("x", {}, entries))


def test_everything_comes_back_in_order(tmp_path):
    entries = golden_entries()
    container.write(tmp_path / "f", "anything", GOLDEN_INDEX, entries)
    document = container.read(tmp_path / "f")
    assert (document.kind, document.index) == ("anything", GOLDEN_INDEX)
    assert document.size == (tmp_path / "f").stat().st_size > document.payload > 0
    assert_same(entries, document)


def test_the_golden_file_of_version_1_still_loads_and_its_payload_is_still_written():
    document = container.read(GOLDEN)
    assert (document.kind, document.index) == (GOLDEN_KIND, GOLDEN_INDEX)
    assert_same(golden_entries(), document)
    # Deflated bytes may change with the zlib library; the payload may not.
    again = container.dumps(GOLDEN_KIND, GOLDEN_INDEX, golden_entries())
    payloads = [safetensors.numpy.load(b)["payload"] for b in (again, GOLDEN.read_bytes())]
    assert np.array_equal(*payloads)


def test_the_same_content_gives_the_same_bytes():
    assert container.dumps("x", {"a": 1}, golden_entries()) == container.dumps(
        "x", {"a": 1}, golden_entries()
    )


def test_the_safetensors_package_reads_our_files_and_we_read_what_it_writes(tmp_path):
    with safe_open(GOLDEN, "np") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert set(tensors) == {"index", "payload"}
    safetensors.numpy.save_file(tensors, tmp_path / "f", {**metadata, "other": "tool"})
    assert_same(golden_entries(), container.read(tmp_path / "f"))


@pytest.mark.parametrize("dtype", container.RAW)
@pytest.mark.parametrize("shape", [(), (0,), (7,), (2, 0, 3), (3, 5)])
def test_raw_data_of_every_dtype(dtype, shape):
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 256, (*shape, np.dtype(dtype).itemsize), dtype=np.uint8)
    bits = bits % 2 if dtype == "bool" else bits
    array = bits.reshape(-1).view(dtype).reshape(shape)
    assert_same(one(array, "raw"), back(one(array, "raw")))


def test_any_memory_order_and_byte_order():
    array = np.random.default_rng(0).standard_normal((6, 8)).astype(np.float32)
    for given in (array.T, array[::-2, 1:], np.asfortranarray(array), array.astype(">f4")):
        assert_same(one(given), back(one(given)))
    codes = np.random.default_rng(0).integers(-1, 2, (4, 3, 3, 9)).astype(np.int8)
    assert_same(one(codes[:, :, ::-1], "ternary"), back(one(codes[:, :, ::-1], "ternary")))


def test_float32_takes_two_bytes_where_float16_holds_the_same_bits():
    exact = np.random.default_rng(0).standard_normal(400).astype(np.float16).astype(np.float32)
    special = np.array([0.0, -0.0, np.inf, -np.inf, 65504, 2.0**-24], np.float32)
    halves = np.concatenate([exact, special])
    stored = back(one(halves))
    assert_same(one(halves), stored)
    assert stored.payload < 2 * halves.size
    for spoiler in (1 / 3, 65520.0, 2.0**-25, 1e-40):
        spoiled = np.append(halves, np.float32(spoiler))
        document = back(one(spoiled))
        assert_same(one(spoiled), document)
        assert document.payload > 1.1 * stored.payload
    payload_nan = np.array([0x7FC00001, 0xFF800123], np.uint32).view(np.float32)
    assert_same(one(payload_nan), back(one(payload_nan)))


def test_floats_cost_less_than_they_weigh():
    scales = np.exp(np.random.default_rng(0).normal(-4, 0.5, 3000)).astype(np.float32)
    assert back(one(scales)).payload < 0.9 * scales.nbytes


def test_a_small_network_pays_little_for_its_names():
    rng = np.random.default_rng(0)
    entries = []
    for i in range(60):
        codes = rng.integers(-1, 2, (4, 3, 3, 4)).astype(np.int8)
        entries.append(WeightEntry(f"layer{i // 20}.{i}.weight", "ternary", codes))
    document = back(entries)
    assert (document.size - document.payload) / len(entries) < 20


@pytest.mark.parametrize(
    ("entries", "error", "said"),
    [
        (one(np.ones(3)), FormatError, "got float64"),
        (one(np.ones(3, np.float32), "int8"), FormatError, "got float32"),
        (one(np.ones(3, np.complex64), "raw"), FormatError, "got complex64"),
        (one(np.array(["a"]), "raw"), FormatError, "got str"),
        (one(np.array([object()]), "raw"), FormatError, "got object"),
        (one(np.ones(3, np.int8), "quaternary"), FormatError, "'quaternary'"),
        (one(np.ones((), np.int8), "ternary"), FormatError, "got a scalar"),
        (one(np.full((2, 3), 2, np.int8), "ternary"), BadWeights, "got 2 at position 0"),
        (one(np.ones([1] * 9, np.float32)), FormatError, "8 axes"),
        (one(np.ones(1, np.float32)) * 2, FormatError, "names of their own"),
        ([WeightEntry("", "int8", np.ones(1, np.int8))], FormatError, "names of their own"),
    ],
)
def test_what_a_file_cannot_hold_is_refused_and_nothing_is_written(tmp_path, entries, error, said):
    with pytest.raises(error, match=said):
        container.write(tmp_path / "f", "x", {}, entries)
    assert list(tmp_path.iterdir()) == []


def test_an_index_that_deflates_too_well_is_stored_larger():
    index = {"text": "a" * 3_000_000}
    data = container.dumps("x", index, [])
    assert len(data) > 3_000_000 / 20
    assert container.read(data).index == index


def test_the_index_may_be_as_long_as_its_limit_and_not_a_byte_longer():
    for length in range(65_000, 70_000):
        text = b'{"index":{"a":"%s"},"weights":[]}' % (b"a" * length)
        deflated = zlib.compress(text)
        limit = container._index_limit(len(deflated))
        if len(text) == limit:
            assert len(container.read(forge(deflated)).index["a"]) == length
        elif len(text) == limit + 1:
            with pytest.raises(FormatError, match="at most"):
                container.read(forge(deflated))
            return
    pytest.fail("no text of that length was made")


# Replacing


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "f"
    container.write(path, "old", {}, [])
    before = path.read_bytes()
    for module, name in ((os, "replace"), (os, "fsync")):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, _fail)
            with pytest.raises(OSError, match="disk full"):
                container.write(path, "new", {}, golden_entries())
        assert [p.name for p in tmp_path.iterdir()] == ["f"]
        assert path.read_bytes() == before
    with pytest.raises(KeyboardInterrupt):
        replace_file(path, _interrupt)
    assert [p.name for p in tmp_path.iterdir()] == ["f"]
    assert path.read_bytes() == before


def _fail(*_):
    raise OSError("disk full")


def _interrupt(path):
    path.write_bytes(b"half")
    raise KeyboardInterrupt


def test_a_process_killed_while_writing_leaves_the_old_file(tmp_path):
    path = tmp_path / "f"
    container.write(path, "old", {}, golden_entries())
    code = """
        import os, signal, sys
        from ternary_ops._atomic import replace_file
        def write(path):
            path.write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
        replace_file(sys.argv[1], write)
    """
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(code), str(path)], check=False)
    assert run.returncode == -signal.SIGKILL
    assert container.read(path).kind == "old"


def test_mode_follows_the_umask_and_a_link_stays_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    target, link = tmp_path / "real" / "f", tmp_path / "link"
    target.write_bytes(b"old")
    link.symlink_to(target)
    mask = os.umask(0o027)
    try:
        container.write(link, "x", {}, [])
    finally:
        os.umask(mask)
    assert link.is_symlink()
    assert container.read(target).kind == "x"
    assert target.stat().st_mode & 0o777 == 0o640


# Refusals


def test_a_missing_path_stays_file_not_found(tmp_path):
    with pytest.raises(FileNotFoundError):
        container.read(tmp_path / "none")
    with pytest.raises(FileNotFoundError):
        container.write(tmp_path / "no" / "folder", "x", {}, [])


def test_the_message_names_the_file(tmp_path):
    (tmp_path / "f").write_bytes(b"x")
    with pytest.raises(FormatError, match=r"/f: .* got .*1 bytes"):
        container.read(tmp_path / "f")


def test_files_of_other_kinds(tmp_path):
    zip_path = tmp_path / "zip.safetensors"
    with zipfile.ZipFile(zip_path, "w") as archive:
        archive.writestr("data.pkl", pickle.dumps([1]))
    others = [
        zip_path.read_bytes(),
        pickle.dumps(list(range(100))),
        b"",
        b"GGUF" + bytes(100),
        safetensors.numpy.save({"w": np.ones(3, np.float32)}),
        safetensors.numpy.save({"index": np.ones(3, np.uint8), "payload": np.ones(3, np.uint8)}),
    ]
    for data in others:
        with pytest.raises(FormatError):
            container.read(data)


def test_a_huge_header_length_costs_no_memory(tmp_path):
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.write((100_000_000).to_bytes(8, "little"))
        file.truncate(200_000_000)
    assert peak_of(lambda: container.read(path)) < 2**20


def entry(name="a", stored="int8", shape=(1, 4)):
    return {"index": {}, "weights": [[name, stored, list(shape)]]}


PAYLOAD = container.core().codec_encode([("int8", np.array([[1, 2, 3, 4]], np.int8))]).tobytes()
TWO = container.core().codec_encode([("bytes", np.array([[2]], np.int8))]).tobytes()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (forge(entry(), PAYLOAD, {"version": 2}), "known here: 1, got version 2"),
        (forge(entry(), PAYLOAD, {"version": "1"}), "got version '1'"),
        (forge(entry(), PAYLOAD, {"version": True}), "got version True"),
        (forge(entry(), PAYLOAD, {"version": ...}), "got version None"),
        (forge(entry(), PAYLOAD, {"format": "other"}), "the format 'ternary_ops', got 'other'"),
        (forge(entry(), PAYLOAD, {"kind": 3, "crc32": 0}), "format, version, kind and crc32 in"),
        (forge(entry(), PAYLOAD, {"kind": ...}), "format, version, kind and crc32 in"),
        (forge(entry(), PAYLOAD, {"x": 0}), "format, version, kind and crc32 in"),
        (forge(entry(), PAYLOAD, {"crc32": 7}), "checksum 7, got"),
        (forge(entry(), PAYLOAD, {"crc32": "7"}), "checksum '7', got"),
        (forge(entry(), PAYLOAD, extra={"more": b"1"}), "'more'"),
        (forge(entry(), PAYLOAD, extra={"payload": None}), r"got \['index'\]"),
        (forge(b"no zlib", PAYLOAD), "a zlib stream as the index"),
        (forge(zlib.compress(b"{}")[:-1], PAYLOAD), "one zlib stream"),
        (forge(zlib.compress(b"{}") + b"x", PAYLOAD), "bytes after its end"),
        (forge(zlib.compress(b"{"), PAYLOAD), "the index as JSON"),
        (forge(zlib.compress(b"\xff"), PAYLOAD), "the index as JSON"),
        (forge(zlib.compress(b"[]"), PAYLOAD), "JSON object, got list"),
        (forge(zlib.compress(b'{"index":{},"index":{}}'), PAYLOAD), "repeated name"),
        (forge(zlib.compress(b'{"index":{"a":NaN},"weights":[]}'), PAYLOAD), "constant NaN"),
        (forge(zlib.compress(b"[" * 60000), PAYLOAD), "the index as JSON"),
        (forge({"index": {}}, PAYLOAD), "'index' and 'weights'"),
        (forge({"index": [], "weights": []}, PAYLOAD), "'index' and 'weights'"),
        (forge({"index": {}, "weights": {}}, PAYLOAD), "as a list"),
        (forge({"index": {}, "weights": [["a", "int8"]]}, PAYLOAD), "a weight as"),
        (forge({"index": {}, "weights": [["a", "int8", [1]]] * 2}, PAYLOAD), "name of its own"),
        (forge(entry(name=""), PAYLOAD), "a weight as"),
        (forge(entry(name="n" * 1025), PAYLOAD), "a weight as"),
        (forge(entry(stored="int9"), PAYLOAD), "got 'int9'"),
        (forge(entry(stored="raw:object"), PAYLOAD), "got 'raw:object'"),
        (forge(entry(stored=["int8"]), PAYLOAD), "stored as"),
        (forge(entry(shape=(-1, 4)), PAYLOAD), "axes"),
        (forge(entry(shape=(1.0, 4)), PAYLOAD), "axes"),
        (forge(entry(shape=(True, 4)), PAYLOAD), "axes"),
        (forge(entry(shape=[1] * 9), PAYLOAD), "axes"),
        (forge(entry(shape=()), PAYLOAD), "got a scalar"),
        (forge(entry(shape=(0, 2**60)), PAYLOAD), "values"),
        (forge(entry(shape=(2**24, 2**24)), PAYLOAD), "payload of at least"),
        (forge(entry(shape=(1, 400)), PAYLOAD), "payload"),
        (forge(entry(shape=(0, 4)), PAYLOAD), "bytes that are used"),
        (forge(entry(), PAYLOAD + b"\0"), "bytes that are used"),
        (forge(entry(), PAYLOAD[:-1]), "ends before its last weight"),
        (forge(entry(stored="raw:bool", shape=(1,)), TWO), "booleans in .*, got a byte above 1"),
    ],
)
def test_each_damage_is_named_even_behind_a_right_checksum(data, said):
    with pytest.raises(FormatError, match=said):
        container.read(data)


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (b'{"a":1}', "dtype U8"),
        (b'{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}', "dtype U8"),
        (b'{"a":{"dtype":"U8","shape":[0]}}', "dtype U8"),
        (b'{"a":{"dtype":"U8","shape":[0,0],"data_offsets":[0,0]}}', "one axis"),
        (b'{"a":{"dtype":"U8","shape":[-4],"data_offsets":[4,0]}}', "one axis"),
        (b'{"a":{"dtype":"U8","shape":[3],"data_offsets":[0,4]}}', "one axis"),
        (b'{"a":{"dtype":"U8","shape":[3],"data_offsets":[1,4]}}', "at byte 0"),
        (
            b'{"a":{"dtype":"U8","shape":[3],"data_offsets":[0,3]}}',
            "3 bytes of data, which the tensors cover",
        ),
        (
            b'{"a":{"dtype":"U8","shape":[9],"data_offsets":[0,9]}}',
            "9 bytes of data, which the tensors cover",
        ),
        (
            b'{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},'
            b'"b":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}',
            "at byte 4",
        ),
        (b'{"a":0,"a":0}', "repeated name"),
        (b'{"__metadata__":{"a":1}}', "names and strings"),
        (b'{"__metadata__":[]}', "names and strings"),
        (b' {"__metadata__":{}}', "begins with {"),
        (b'{"__metadata__":{"ternary_ops":"\\ud800"}}', "JSON"),
    ],
)
def test_each_fault_of_the_safetensors_header_is_named(header, said):
    data = b"" if b"ud800" in header else b"1234"
    with pytest.raises(FormatError, match=said):
        container.read(len(header).to_bytes(8, "little") + header + data)


def peak_of(call):
    """Peak bytes allocated by a call that ends in FormatError."""
    tracemalloc.start()
    try:
        with pytest.raises(FormatError):
            call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "data",
    [
        forge(entry(shape=(2**20 + 2**10, 2**10)), PAYLOAD),
        forge(zlib.compress(b"[" + b"0," * 50_000_000, 9), PAYLOAD),
        forge(entry(shape=(2**24, 2**24)), bytes(10**6)),
    ],
    ids=["gigabyte", "bomb", "petabyte"],
)
def test_a_hostile_file_takes_little_memory(data):
    # 16 times is the limit of the index's text; growing to it takes the double for a moment.
    assert peak_of(lambda: container.read(data)) < 2**20 + 32 * len(data)
