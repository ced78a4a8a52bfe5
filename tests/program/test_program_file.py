# SPDX-License-Identifier: Apache-2.0
"""A saved program comes back whole, or not at all."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import PROGRAMS, example

from ternary_ops import runtime
from ternary_ops.errors import FormatError
from ternary_ops.io import container
from ternary_ops.layout.codes import TernaryCodes
from ternary_ops.program.compact import round_vectors
from ternary_ops.program.graph import Graph, Node
from ternary_ops.program.interpret import simulate
from ternary_ops.program.serialize import to_arrays, to_index
from ternary_ops.program.weight import Weight
from ternary_ops.runtime import Program


def _saved(folder: Path, name: str = "image") -> tuple[Program, Path]:
    graph = PROGRAMS[name]()
    program = Program(graph, example(graph, 1, 20, 20).shape)
    path = folder / f"{name}.safetensors"
    program.save(path)
    return program, path


@pytest.mark.parametrize("name", PROGRAMS)
def test_round_trip(name: str, tmp_path: Path) -> None:
    program, path = _saved(tmp_path, name)
    again = runtime.load(str(path))
    assert again.graph.nodes == program.graph.nodes and again.sample == program.sample
    assert list(to_arrays(program.graph)) == list(to_arrays(again.graph))
    for a, b in zip(program.graph.weights, again.graph.weights, strict=True):
        assert (a.name, a.kind, a.shape, a.density) == (b.name, b.kind, b.shape, b.density)
        # Only codes are kept of what comes from a file.
        assert isinstance(b.values, TernaryCodes) == (b.kind == "ternary")
        for key in ("array", "scale", "bias"):
            one, two = getattr(a, key), getattr(b, key)
            assert (one is None) == (two is None)
            if one is not None:
                assert one.dtype == two.dtype and not two.flags.writeable
                np.testing.assert_array_equal(one, two)
    x = example(program.graph, 2, 17, 19)
    np.testing.assert_array_equal(again(x), program(x))
    assert again.summary() == program.summary()
    second = tmp_path / "second.safetensors"
    again.save(second)
    assert second.read_bytes() == path.read_bytes()


def test_file_is_smaller_than_its_codes(tmp_path: Path) -> None:
    program, path = _saved(tmp_path)
    assert path.stat().st_size < program.info()["bytes"] + 2000


def test_other_kinds_and_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    container.write(path, "weights", {}, [])
    with pytest.raises(FormatError, match="kind 'weights'"):
        runtime.load(path)
    path.write_bytes(b"PK\x03\x04 not ours" * 20)
    with pytest.raises(FormatError):
        runtime.load(path)
    path.write_bytes(b"")
    with pytest.raises(FormatError):
        runtime.load(path)
    with pytest.raises(FileNotFoundError):
        runtime.load(tmp_path / "absent")


def _rewritten(program: Program, path: Path, index: dict[str, Any], **kinds: str) -> None:
    """A sound container around a changed program."""
    stored = {"ternary": "ternary", "int8": "int8", "float": "float32"}
    entries = []
    for key, array in to_arrays(program.graph).items():
        weight = program.graph.weights[int(key.split(".")[0])]
        kind = stored[weight.kind] if key.endswith(".w") else "float32"
        if key in kinds.values():
            continue
        entries.append(container.WeightEntry(key, kind, array))
    container.write(path, "program", index, entries)


def _damages(index: dict[str, Any]) -> list[tuple[str, Any]]:
    nodes = index["nodes"]
    return [
        ("no sample", {k: v for k, v in index.items() if k != "sample"}),
        ("short sample", {**index, "sample": [1, 3, 20]}),
        ("sample", {**index, "sample": [1, 3, 20, -1]}),
        ("text sample", {**index, "sample": "1320"}),
        ("fractions", {**index, "sample": [1, 3, 20, 20.0]}),
        ("extra key", {**index, "code": "import os"}),
        ("no weights", {**index, "weights": []}),
        ("swapped", {**index, "nodes": [nodes[0], nodes[2], nodes[1], *nodes[3:]]}),
        ("longer", {**index, "nodes": [*nodes, ["flatten"]]}),
    ]


def test_a_sound_container_does_not_excuse_a_bad_program(tmp_path: Path) -> None:
    program, path = _saved(tmp_path)
    index = {**to_index(program.graph), "sample": list(program.sample)}
    _rewritten(program, path, index)
    np.testing.assert_array_equal(
        runtime.load(path)(example(program.graph, 1, 15, 15)),
        program(example(program.graph, 1, 15, 15)),
    )
    for name, damaged in _damages(json.loads(json.dumps(index))):
        _rewritten(program, path, damaged)
        with pytest.raises(FormatError, match="image.safetensors"):
            runtime.load(path)
            pytest.fail(name)
    _rewritten(program, path, index, leave_out="3.s")
    with pytest.raises(FormatError, match=r"3\.s"):
        runtime.load(path)


def test_a_sample_the_program_cannot_run_is_refused(tmp_path: Path) -> None:
    program, path = _saved(tmp_path, "mixed")
    for sample in ([1, 5, 1, 1], [1, 4, 20, 20], [0, 5, 0, 20]):
        _rewritten(program, path, {**to_index(program.graph), "sample": sample})
        with pytest.raises(FormatError):
            runtime.load(path)


def test_truncated_files_are_refused(tmp_path: Path) -> None:
    _, path = _saved(tmp_path)
    data = path.read_bytes()
    for length in [*range(0, 200), *range(200, len(data), 97), len(data) - 1]:
        path.write_bytes(data[:length])
        with pytest.raises(FormatError):
            runtime.load(path)
            pytest.fail(f"{length} of {len(data)} bytes")


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> tuple[Program, Path, bytes]:
    program, path = _saved(tmp_path_factory.mktemp("program"), "flat")
    return program, path, path.read_bytes()


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_flipped_bits_never_crash(original: tuple[Program, Path, bytes], data: Any) -> None:
    program, path, good = original
    bad = bytearray(good)
    for _ in range(data.draw(st.integers(1, 3))):
        bad[data.draw(st.integers(0, len(bad) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    if bytes(bad) == good:
        return
    path.write_bytes(bytes(bad))
    with pytest.raises(FormatError):
        runtime.load(path)


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program, path = _saved(tmp_path)
    before = path.read_bytes()

    def full(self: Path, data: bytes) -> int:
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="no space"):
        program.save(path)
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["image.safetensors"]


@pytest.mark.parametrize("name", PROGRAMS)
def test_rounded_scales_and_biases_have_8_digits(name: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    graph = PROGRAMS[name]()
    weights = (
        dataclasses.replace(w, scale=_uneven(w.scale, rng), bias=_uneven(w.bias, rng))
        for w in graph.weights
    )
    program, _ = _saved(tmp_path, name)
    program = Program(dataclasses.replace(graph, weights=tuple(weights)), program.sample)
    short = program.rounded()
    for before, after in zip(program.graph.weights, short.graph.weights, strict=True):
        assert np.array_equal(before.array, after.array) and before.kind == after.kind
        for a, b in ((before.scale, after.scale), (before.bias, after.bias)):
            if a is None or b is None or before.kind == "float":
                assert (a is None and b is None) or np.array_equal(a, b)
                continue
            assert not np.any(b.view(np.uint32) << 16)
            assert np.all(np.abs(b.astype(np.float64) - a) <= np.abs(a) * 2.0**-8)
    program.save(tmp_path / "long.safetensors")
    short.save(tmp_path / "short.safetensors")
    sizes = [(tmp_path / f"{which}.safetensors").stat().st_size for which in ("short", "long")]
    assert sizes[0] < sizes[1]
    x = example(program.graph, 2, 17, 19)
    assert np.array_equal(runtime.load(tmp_path / "short.safetensors")(x), short(x))
    # Float layers sum in another order than the reference.
    np.testing.assert_allclose(simulate(short.graph, x)[-1], short(x), rtol=1e-5, atol=1e-6)


def test_rounding_is_to_nearest_and_ends_where_it_began() -> None:
    largest = np.finfo(np.float32).max
    scale = np.array([1 + 2**-8, 1 + 3 * 2**-8, -1.2345678, 0.0, largest, 1e-45], np.float32)
    weight = Weight("w", "int8", np.ones((6, 1, 1, 4), np.int8), scale, scale)
    nodes = (Node("input", (), {"c": 4}), Node("conv2d", (0,), {"w": 0}))
    once = round_vectors(Graph(nodes, (weight,)))
    found = once.weights[0].scale
    assert found is not None
    assert found.tolist() == [1.0, 1 + 2**-6, -1.234375, 0.0, largest, scale[5]]
    assert np.array_equal(round_vectors(once).weights[0].scale, found)


def _uneven(values: np.ndarray[Any, Any] | None, rng: np.random.Generator) -> Any:
    if values is None:
        return None
    return (values * rng.uniform(0.5, 1.5, values.shape)).astype(np.float32)
