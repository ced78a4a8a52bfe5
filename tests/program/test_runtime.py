# SPDX-License-Identifier: Apache-2.0
"""The runtime: right on every instruction set and thread count, without torch, for any input."""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from machines import HANGS
from programs import PROGRAMS, example, random_program

from ternary_ops import runtime
from ternary_ops.errors import BadConfig, UnsupportedDevice, UnsupportedShape
from ternary_ops.program.graph import Graph
from ternary_ops.program.interpret import simulate
from ternary_ops.program.shapes import infer
from ternary_ops.program.summary import rows

SIZES = [(2, 19, 22), (1, 15, 18), (3, 33, 17)]


def _program(name: str = "image", seed: int = 0) -> runtime.Program:
    graph = PROGRAMS[name](seed)
    return runtime.Program(graph, example(graph, 1, 20, 20).shape)


def _float_layer_before(graph: Graph) -> list[bool]:
    """Per node: did a float convolution or linear layer have a hand in its value?"""
    touched: list[bool] = []
    for node in graph.nodes:
        kind, floats = node.operator, bool(node.inputs) and graph.values[node.inputs[0]].y is None
        sums = kind.is_layer or kind.floats_only or "pool" in node.op
        sums = sums or node.op in ("activation", "attention", "reduce")
        touched.append((sums and floats) or any(touched[j] for j in node.inputs))
    return touched


@pytest.mark.parametrize("isa", runtime.available_isas())
@pytest.mark.parametrize("name", PROGRAMS)
def test_native_equals_the_oracle_at_every_node(name: str, isa: str) -> None:
    for seed in range(3):
        program = _program(name, seed)
        inexact = _float_layer_before(program.graph)
        for n, h, w in SIZES:
            x = example(program.graph, n, h, w, seed)
            with runtime.force_isa(isa):
                assert runtime.isa() == isa
                values = program.trace(x)
                y = program(x)
            np.testing.assert_array_equal(y, values[-1])
            for i, (a, b) in enumerate(zip(values, simulate(program.graph, x), strict=True)):
                where = f"{name} seed {seed} size {(n, h, w)} node {i} {program.graph.nodes[i].op}"
                assert (a.dtype, a.shape) == (b.dtype, b.shape), where
                if not inexact[i]:
                    np.testing.assert_array_equal(a, b, where)
                elif a.dtype == np.uint8:
                    assert np.abs(a.astype(int) - b).max(initial=0) <= 1, where
                else:
                    # K < 200 terms of unit size, each product and sum rounded once
                    np.testing.assert_allclose(a, b, rtol=3e-5, atol=3e-5, err_msg=where)


@settings(max_examples=400, deadline=None)
@given(
    st.integers(0, 2**32),
    st.integers(1, 3),
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(1, 4),
)
def test_random_programs_on_every_isa(seed: int, n: int, h: int, w: int, threads: int) -> None:
    graph = random_program(seed)
    try:
        infer(graph, n, h, w)
    except UnsupportedShape:
        return
    x = example(graph, n, h, w, seed)
    program, expected = runtime.Program(graph, x.shape), simulate(graph, x)
    integer = graph.values[1].y is not None
    for isa in runtime.available_isas():
        with runtime.force_isa(isa), runtime.num_threads(threads):
            values = program.trace(x)
            # the same without a place of its own for every value
            np.testing.assert_array_equal(program(x), values[-1])
        for node, a, b in zip(graph.nodes, values, expected, strict=True):
            if integer:
                np.testing.assert_array_equal(a, b, f"{isa} {node}")
            else:
                np.testing.assert_allclose(a, b, rtol=3e-5, atol=3e-5, err_msg=f"{isa} {node}")


@pytest.mark.parametrize("isa", runtime.available_isas())
@pytest.mark.parametrize("name", PROGRAMS)
def test_thread_count_and_batch_do_not_change_a_bit(name: str, isa: str) -> None:
    program = _program(name)
    x = example(program.graph, 5, 41, 38)
    with runtime.force_isa(isa):
        with runtime.num_threads(1):
            expected = program.trace(x)
        for threads in (2, 3, 7):
            with runtime.num_threads(threads):
                for a, b in zip(program.trace(x), expected, strict=True):
                    np.testing.assert_array_equal(a, b)
        parts = [program(x[i : i + 1]) for i in range(3)] + [program(x[3:])]
        np.testing.assert_array_equal(np.concatenate(parts), expected[-1])
        for _ in range(5):
            np.testing.assert_array_equal(program(x), expected[-1])


def test_force_isa_nests_and_is_local_to_the_thread() -> None:
    best, names = runtime.isa(), runtime.available_isas()
    assert best in names and "scalar" in names
    with runtime.force_isa("scalar"):
        with runtime.force_isa(names[-1]):
            assert runtime.isa() == names[-1]
        assert runtime.isa() == "scalar"
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(runtime.isa).result() == best
        with pytest.raises(RuntimeError, match="passed on"), runtime.force_isa(names[-1]):
            raise RuntimeError("passed on")
        assert runtime.isa() == "scalar"
    assert runtime.isa() == best


@pytest.mark.parametrize("name", ["sse9", "AVX2", "neon", "scalar ", "", "\0"])
def test_unknown_isa_lists_what_there_is(name: str) -> None:
    before = runtime.isa()
    with pytest.raises(UnsupportedDevice, match="scalar"), runtime.force_isa(name):
        pytest.fail("entered")
    assert runtime.isa() == before


def test_num_threads_nests() -> None:
    before = runtime.info()["num_threads"]
    with runtime.num_threads(3):
        with runtime.num_threads(1):
            assert runtime.info()["num_threads"] == 1
        assert runtime.info()["num_threads"] == 3
    assert runtime.info()["num_threads"] == before
    for wrong in (0, -1, 257, 2**40, 1.5, True, "2", None):
        with pytest.raises(BadConfig), runtime.num_threads(wrong):  # type: ignore[arg-type]
            pytest.fail("entered")


CONVERSIONS: dict[str, Callable[[Any], Any]] = {
    "float64": lambda x: x.astype(np.float64),
    "float16": lambda x: x.astype(np.float16),
    "big endian": lambda x: x.astype(">f4"),
    "uint8": lambda x: np.abs(x * 40).astype(np.uint8),
    "transposed": lambda x: np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2),
    "Fortran": np.asfortranarray,
    "flipped": lambda x: x[:, :, ::-1, ::-1],
    "strided": lambda x: np.repeat(x, 2, axis=3)[..., ::2],
    "broadcast": lambda x: np.broadcast_to(x[:1, :, :1, :1], x.shape),
    "unaligned": lambda x: (
        np.frombuffer(b"\0" + x.tobytes(), np.uint8)[1:].view(np.float32).reshape(x.shape)
    ),
    "read-only": lambda x: np.frombuffer(x.tobytes(), np.float32).reshape(x.shape),
    "not a number": lambda x: np.where(x > 1, np.nan, x),
    "infinite": lambda x: np.where(x > 1, np.inf, np.where(x < -1, -np.inf, x)),
    "enormous": lambda x: x.astype(np.float64) * 1e300,
    "tiny": lambda x: x * np.float32(1e-42),
}


@pytest.mark.parametrize("kind", CONVERSIONS)
def test_every_dtype_and_layout_runs_by_value(kind: str) -> None:
    program = _program()
    given = CONVERSIONS[kind](example(program.graph, 2, 16, 17))
    before = given.copy()
    with np.errstate(over="ignore"):
        plain = np.ascontiguousarray(given.astype(np.float32))
    got = program(given)
    np.testing.assert_array_equal(got, simulate(program.graph, plain)[-1])
    np.testing.assert_array_equal(given, before)
    assert got.flags.c_contiguous and got.flags.writeable


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.zeros((3, 16, 16), np.float32), r"\[N, 3, H, W\]"),
        (np.zeros((1, 4, 16, 16), np.float32), r"\[N, 3, H, W\]"),
        (np.zeros((1, 3), np.float32), r"\[N, 3, H, W\]"),
        (np.zeros((), np.float32), r"\[N, 3, H, W\]"),
        (np.zeros((1, 3, 0, 16), np.float32), "H, W >= 1"),
        (np.zeros((1, 3, 16, 16), np.int64), "floats or uint8"),
        (np.zeros((1, 3, 16, 16), np.complex64), "floats or uint8"),
        (np.zeros((1, 3, 16, 16), bool), "floats or uint8"),
        (np.zeros((1, 3, 16, 16), object), "floats or uint8"),
        ([[1.0]], "NumPy array"),
        (None, "NumPy array"),
    ],
)
def test_wrong_inputs_are_refused(given: Any, message: str) -> None:
    program = _program()
    for call in (program, program.trace, program.profile):
        with pytest.raises(UnsupportedShape, match=message):
            call(given)


def test_image_that_is_too_small_names_the_node() -> None:
    with pytest.raises(UnsupportedShape, match=r"node 11 \(max_pool2d\)"):
        _program("mixed")(np.zeros((1, 5, 1, 1), np.float32))


def test_empty_batch() -> None:
    for name in PROGRAMS:
        program = _program(name)
        x = example(program.graph, 0, 20, 20)
        assert program(x).shape[1:] == program(example(program.graph, 1, 20, 20)).shape[1:]
        assert len(program(x)) == 0


def test_many_sizes_in_turn() -> None:
    program = _program()
    for i in range(80):
        x = example(program.graph, 1 + i % 2, 9 + i % 9, 9 + i // 9, seed=i)
        np.testing.assert_array_equal(program(x), simulate(program.graph, x)[-1])


def test_threads_share_one_program() -> None:
    program = _program()
    inputs = [example(program.graph, 1 + i % 3, 15 + i % 4, 18, seed=i) for i in range(16)]
    expected = [simulate(program.graph, x)[-1] for x in inputs]
    start = threading.Barrier(8)

    def work(worker: int) -> bool:
        start.wait()
        names = runtime.available_isas()
        with runtime.force_isa(names[worker % len(names)]), runtime.num_threads(1 + worker % 3):
            got = [program(inputs[(worker + j) % 16]) for j in range(16)]
        return all(np.array_equal(y, expected[(worker + j) % 16]) for j, y in enumerate(got))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))


def _child(program: runtime.Program, x: Any, out: Any) -> None:
    out.put(program(x))


def test_fork_after_use() -> None:
    program = _program()
    x = example(program.graph, 3, 40, 40)
    context = multiprocessing.get_context("fork")
    with runtime.num_threads(3):
        expected = program(x)
        queue = context.Queue()
        child = context.Process(target=_child, args=(program, x, queue), daemon=True)
        child.start()
        got = queue.get(timeout=HANGS)
        child.join(HANGS)
    np.testing.assert_array_equal(got, expected)
    assert child.exitcode == 0


def test_copies_and_pickles() -> None:
    program = _program("mixed")
    x = example(program.graph, 1, 15, 18)
    expected = program(x)
    for again in (copy.deepcopy(program), pickle.loads(pickle.dumps(program))):
        np.testing.assert_array_equal(again(x), expected)


def test_summary_info_and_profile() -> None:
    program = _program()
    text = program.summary()
    assert "18x3x5x5" not in text and "1x18x10x10" in text and "w0" in text
    info = program.info()
    assert info["nodes"] == len(program.graph.nodes) and info["output"] == (1, 10)
    assert 0 < info["zeros"] < 1 and info["peak_bytes"] > 20 * 20 * 4
    x = example(program.graph, 2, 15, 18)
    profile = program.profile(x, repeats=3)
    assert [row["op"] for row in profile] == [node.op for node in program.graph.nodes]
    assert all(row["ms"] >= 0 for row in profile) and sum(row["ms"] for row in profile) > 0
    assert sum(row["macs"] for row in profile) > 10_000
    with pytest.raises(BadConfig):
        program.profile(x, repeats=0)
    described = rows(program.graph, [v.shape for v in program.trace(x)])
    assert [{k: row[k] for k in described[0]} for row in profile] == described
    for row in profile:
        if row["kind"] is None:
            assert row["gmac_s"] is None and row["of_ceiling"] is None
        else:
            assert row["gmac_s"] == pytest.approx(row["macs"] / row["ms"] / 1e6)
            assert 0 < row["of_ceiling"] < row["gmac_s"]
    assert repr(program) == "Program(17 nodes, input [1, 3, 20, 20])"


def test_info_says_why() -> None:
    info = runtime.info()
    assert info["isa"] in info["available_isas"] and info["isa_report"]["scalar"] == ""
    for name, reason in info["isa_report"].items():
        assert (reason == "") == (name in info["available_isas"])


_NO_TORCH = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "safetensors", "rich", "sklearn", "matplotlib"):
            raise ModuleNotFoundError(f"blocked: {name}", name=name)

sys.meta_path.insert(0, Refuse())
import numpy as np
from ternary_ops import runtime

program = runtime.load(sys.argv[1])
y = program(np.load(sys.argv[2]))
print(program.summary(), runtime.info(), program.info(), file=sys.stderr)
program.save(sys.argv[1] + ".again")
np.save(sys.argv[3], y)
assert not any(name.partition(".")[0] == "torch" for name in sys.modules)
"""


def test_runs_where_torch_is_absent(tmp_path: Path) -> None:
    program = _program("mixed")
    x = example(program.graph, 2, 15, 18)
    paths = [str(tmp_path / name) for name in ("net.safetensors", "x.npy", "y.npy")]
    program.save(paths[0])
    np.save(paths[1], x)
    subprocess.run([sys.executable, "-c", _NO_TORCH, *paths], check=True, timeout=HANGS)
    np.testing.assert_array_equal(np.load(paths[2]), program(x))
    assert Path(paths[0] + ".again").read_bytes() == Path(paths[0]).read_bytes()


@pytest.mark.parametrize(("value", "works"), [("scalar", True), ("nonsense", False)])
def test_environment_chooses_the_isa(value: str, works: bool) -> None:
    code = "from ternary_ops import runtime; print(runtime.isa())"
    environment = {**os.environ, "TERNARY_OPS_ISA": value}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=HANGS
    )
    if works:
        assert done.stdout.strip() == value
    else:
        assert done.returncode == 1 and "UnsupportedDevice" in done.stderr
        assert "scalar" in done.stderr and "nonsense" in done.stderr
