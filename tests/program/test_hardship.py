# SPDX-License-Identifier: Apache-2.0
"""What a program meets in service: spawned processes, many threads, interrupts, little memory,
shapes beyond reason, and Python without asserts.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from checkout import SUPPORT, TESTS
from numpy.typing import NDArray
from programs import PROGRAMS, Builder, example

import ternary_ops as tops
from ternary_ops import runtime
from ternary_ops.errors import TernaryOpsError, UnsupportedShape
from ternary_ops.program import program_file
from ternary_ops.program.graph import Graph


def heavy() -> Graph:
    """One layer that runs for a while on a large image."""
    b = Builder(0, c=32)
    x = b("quantize", 0, y=b.params())
    for _ in range(4):
        w = b.weight("int8", 32, 32, 3, 3, zeros=0.0)
        x = b("conv2d", x, w=w, padding=(1, 1), y=b.params())
    b("dequantize", x)
    return b.graph()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hardship") / "p.safetensors"
    graph = PROGRAMS["image"](1)
    program_file.write(path, graph, example(graph, 1, 40, 44).shape)
    return path


def child(path: Path, x: NDArray[np.float32], threads: int) -> NDArray[np.float32]:
    with runtime.num_threads(threads):
        return runtime.load(path)(x)


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_other_processes_get_the_same_bits(saved: Path, method: str) -> None:
    program = runtime.load(saved)
    x = example(program.graph, 3, 40, 44)
    want = program(x)
    with multiprocessing.get_context(method).Pool(2) as pool:
        for got in pool.starmap(child, [(saved, x, t) for t in (1, 2, 3)]):
            np.testing.assert_array_equal(got, want)


def test_forked_while_another_thread_runs_the_program(saved: Path) -> None:
    """The child has neither the pool's threads nor whoever held its lock."""
    program, stop = runtime.load(saved), threading.Event()
    x = example(program.graph, 8, 90, 94)
    want = program(x[:1])

    def busy() -> None:
        with runtime.num_threads(3):
            while not stop.is_set():
                program(x)

    thread = threading.Thread(target=busy)
    thread.start()
    try:
        for _ in range(10):
            time.sleep(0.01)
            pid = os.fork()
            if pid == 0:
                try:
                    with runtime.num_threads(2):
                        same = np.array_equal(program(x[:1]), want)
                    os._exit(0 if same else 1)
                finally:
                    os._exit(2)
            assert os.waitpid(pid, 0)[1] == 0
    finally:
        stop.set()
        thread.join()


def test_sixteen_threads_share_one_program(saved: Path) -> None:
    """Sizes, thread counts and instruction sets of each its own; nothing leaks between them."""
    program = runtime.load(saved)
    inputs = [example(program.graph, 1 + i % 3, 20 + i, 24 + 2 * i, i) for i in range(16)]
    want = [program(x) for x in inputs]
    isas, wrong = runtime.available_isas(), []

    def work(i: int) -> None:
        with runtime.num_threads(1 + i % 3), runtime.force_isa(isas[i % len(isas)]):
            for _ in range(20):
                if not np.array_equal(program(inputs[i]), want[i]):
                    wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def run_python(script: str, *arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    folders = [str(Path(__file__).parent), str(TESTS), str(SUPPORT)]
    text = f"import sys; sys.path[:0] = {folders!r}\n{script}"
    command = [sys.executable, *arguments, "-c", text]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload, no-any-return]


def test_an_interrupt_leaves_a_program_that_works() -> None:
    script = """
import os, signal, threading, time
import numpy as np
from programs import example
from test_hardship import heavy
from ternary_ops.runtime import Program
program = Program(heavy(), (1, 32, 64, 64))
small = example(program.graph, 1, 30, 30)
want = program(small)
x = example(program.graph, 4, 200, 200)
interrupted = 0
for wait in (0.0, 0.003, 0.02):
    try:
        threading.Timer(wait, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        end = time.monotonic() + 300
        while time.monotonic() < end:
            program(x)
    except KeyboardInterrupt:
        interrupted += 1
    assert np.array_equal(program(small), want)
assert interrupted == 3
print("works")
"""
    default = signal.default_int_handler  # a background job ignores interrupts
    done = run_python(script, preexec_fn=lambda: signal.signal(signal.SIGINT, default))
    assert done.stdout == "works\n", done.stderr


def test_too_little_memory_is_an_error_and_no_end() -> None:
    script = """
import resource
import numpy as np
from programs import PROGRAMS, example
from ternary_ops.errors import TernaryOpsError
from ternary_ops.runtime import Program
graph = PROGRAMS["image"](1)
program = Program(graph, (1, 3, 40, 44))
small = example(graph, 1, 40, 44)
want = program(small)
x = np.lib.stride_tricks.as_strided(small[:, :, :1, :1], (1, 3, 20000, 20000), (0, 0, 0, 0))
with open("/proc/self/statm") as file:
    used = int(file.read().split()[0]) * resource.getpagesize()
for room in (2 << 20, 64 << 20, 1 << 30):
    resource.setrlimit(resource.RLIMIT_AS, (used + room, resource.RLIM_INFINITY))
    try:
        program(x)
        raise SystemExit("a picture of 1.2 GB fitted")
    except (MemoryError, TernaryOpsError):
        pass
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert np.array_equal(program(small), want)
print("works")
"""
    done = run_python(script)
    assert done.returncode == 0 and done.stdout == "works\n", done.stderr
    assert resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY


def huge(*shape: int) -> NDArray[np.float32]:
    """A shape without the memory: every stride is 0."""
    return np.lib.stride_tricks.as_strided(np.zeros(1, np.float32), shape, (0,) * len(shape))


def test_shapes_beyond_reason_are_refused(saved: Path) -> None:
    program = runtime.load(saved)
    for shape in ((1, 3, 2**20, 2**20), (2**31, 3, 40, 44), (2**40, 3, 9, 9), (1, 3, 2**40, 9)):
        with pytest.raises(UnsupportedShape):
            program(huge(*shape))


def test_operators_refuse_what_cannot_be() -> None:
    codes, scale = torch.full((8, 3, 3, 4), 0x41, dtype=torch.uint8), torch.ones(8)
    for shape in ((1, 16, 2**17, 2**17), (2**33, 16, 5, 5)):
        x = torch.zeros(1, dtype=torch.uint8).expand(*shape)
        with pytest.raises((TernaryOpsError, MemoryError, RuntimeError)) as caught:
            tops.ops.conv2d(x, codes, scale, None, 1, 1, x_scale=0.1, x_zero_point=3)
        known = isinstance(caught.value, (TernaryOpsError, MemoryError))
        assert known or "alloc" in str(caught.value)  # torch's own refusal


def test_nothing_depends_on_asserts(saved: Path) -> None:
    """python -O: the same results, and bad input is still refused."""
    x = example(runtime.load(saved).graph, 2, 40, 44)
    script = f"""
assert False, "asserts are on"
import numpy as np
from ternary_ops import runtime
from ternary_ops.errors import FormatError, UnsupportedShape
program = runtime.load({str(saved)!r})
np.save({str(saved.with_suffix(".npy"))!r}, program(np.load({str(saved.with_suffix(".in.npy"))!r})))
for bad in (np.zeros((1, 4, 40, 44), np.float32), np.zeros((3, 40), np.float32)):
    try:
        program(bad)
        raise SystemExit("not refused")
    except UnsupportedShape:
        pass
try:
    runtime.load({__file__!r})
    raise SystemExit("not refused")
except FormatError:
    print("works")
"""
    np.save(saved.with_suffix(".in.npy"), x)
    done = run_python(script, "-O")
    assert done.stdout == "works\n", done.stderr
    np.testing.assert_array_equal(np.load(saved.with_suffix(".npy")), runtime.load(saved)(x))
