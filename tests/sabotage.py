# SPDX-License-Identifier: Apache-2.0
"""One-line faults in the native code, each of which the tests must notice.

python tests/sabotage.py                 # all of them, about an hour
python tests/sabotage.py halo overflow   # some
python tests/sabotage.py --list

Each fault is put into a copy of the checkout, which is built again; then the native tests run and,
if they notice nothing, the Python tests of PYTEST (a fault may name tests to begin with). The
seconds are those of the tests. A fault that nothing notices is a hole in the tests: the command
ends with 1 and names it. tests/test_sabotage.py sees to it that every fault still applies.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PYTEST = (
    "ops/test_ops.py",
    "program/test_runtime.py",
    "nn/test_fake_quantize.py",
    "io/test_codec.py",
    "program/test_pools.py",
    "program/test_worst_case.py",
)


# The tests of the schedule of rows, which notice most of its faults without computing a value.
ROWS = ("program/test_row_schedule.py", "program/test_bands.py", "compiler/test_random_graphs.py")


class Fault(NamedTuple):
    """`old`, which the file holds exactly once, becomes `new`. tests: run first, before the native
    ones.
    """

    file: str
    old: str
    new: str
    tests: tuple[str, ...] = ()


def _rows(file: str, old: str, new: str) -> Fault:
    return Fault(file, old, new, ROWS)


def _operators(file: str, old: str, new: str) -> Fault:
    return Fault(file, old, new, ("program/test_native_engine.py",))


_TOTALS = ("program/test_statistics.py",)
_AT_EVERY_NODE = ("program/test_runtime.py",)

FAULTS = {
    "clamp of the high code": Fault(
        "kernels/epilogue.inl", "e.qlo > 0 || e.qhi < 255", "e.qlo > 0"
    ),
    "fourth channel of a residual": Fault(
        "kernels/epilogue.inl", "residual(V::shr<24>(r))", "residual(V::shr<16>(r))"
    ),
    "cap before the conversion": Fault(
        "kernels/epilogue.inl", "    if (capped)\n", "    if (capped && clamped)\n"
    ),
    "halo": Fault(
        "kernels/conv_tile.inl",
        "    if (bits != V::kAll) q = V::select(bits, q, outside);\n",
        "    if (bits == 0) q = V::select(bits, q, outside);\n",
    ),
    "second chain of sums": Fault(
        "kernels/conv_sparse.inl",
        "for (int c = 1; c < kChains; ++c) sums[0][v] = V::add(",
        "for (int c = 2; c < kChains; ++c) sums[0][v] = V::add(",
    ),
    "zero point of the input": Fault(
        "ops/conv.cpp", "start_[i] = -spec.x_zero_point * packed_.sums[o];", "start_[i] = 0;"
    ),
    "scale of the last channel": Fault(
        "ops/conv.cpp", "spec.scale[o];", "spec.scale[o - (o == outputs - 1)];"
    ),
    "overflow of narrow sums": Fault(
        "isa/policy_avx2.inl", "kNarrowSteps = 64;", "kNarrowSteps = 68;"
    ),
    "overflow of groups": Fault("weights/overflow_groups.cpp", "kMost = 128;", "kMost = 140;"),
    "rounding of halves": Fault(
        "isa/policy_scalar.inl", "__builtin_lrintf(a)", "__builtin_floorf(a + 0.5f)"
    ),
    "last bytes of a row": Fault(
        "kernels/linear.inl",
        "b < last; b += kRowBlock,",
        "b + kRowBlock < last; b += kRowBlock,",
    ),
    "depthwise mask": Fault(
        "kernels/depthwise.inl",
        "        if (bits != V::kAll) q = V::select(bits, q, finish.outside);\n",
        "",
    ),
    "last column of a max pool": Fault(
        "kernels/elementwise.inl",
        "    for (int64_t j = 1; j < taps; ++j) {",
        "    for (int64_t j = 1; j + 1 < taps; ++j) {",
    ),
    "sums of squares that overflow": Fault(
        "kernels/channel_sums.inl", "kSumSteps = 8192;", "kSumSteps = 20000;", _TOTALS
    ),
    "padding in the totals of channels": Fault(
        "program/totals.cpp", "g.packet(i, task.rows.begin, 0);", "i * g.image;", _TOTALS
    ),
    "second channel of quantized packets": Fault(
        "kernels/elementwise.inl",
        "y[1] = V::mulf(V::to_f(V::sub(V::and_(V::shr<8>(packets), low), zp)), s);",
        "y[1] = V::mulf(V::to_f(V::sub(V::and_(V::shr<8>(packets), low), low)), s);",
    ),
    "gradient where clipped": Fault(
        "kernels/fake_quant.inl",
        "const float inside = q < r.lo || q > r.hi ? 0.0f : g;",
        "const float inside = q < r.lo ? 0.0f : g;",
    ),
    "task left out": Fault(
        "base/threads.cpp",
        "for (int64_t i = next_.fetch_add(1); i < tasks_; i = next_.fetch_add(1))",
        "for (int64_t i = next_.fetch_add(1); i < tasks_ - (use_ > 2); i = next_.fetch_add(1))",
    ),
    "rows: end of a window": _rows(
        "tensor/conv_input.h", "+ (taps - 1) * w.dil_h + 1};", "+ (taps - 1) * w.dil_h};"
    ),
    "rows: begin of a window": _rows(
        "tensor/conv_input.h",
        "{rows.begin * w.stride_h - w.pad_h,",
        "{rows.begin * w.stride_h - w.pad_h + 1,",
    ),
    "rows: begin of a pixel shuffle": _rows(
        "ops/data_movement.cpp",
        "{divide_down(rows.begin, factor_h_),",
        "{divide_down(rows.begin, factor_h_) + 1,",
    ),
    "rows: begin of a pixel unshuffle": _rows(
        "ops/data_movement.cpp",
        "{rows.begin * factor_h_,",
        "{rows.begin * factor_h_ + 1,",
    ),
    "rows: first row of a blend": _rows(
        "ops/resize.cpp", "{s.first, s.second + 1}", "{s.first + 1, s.second + 1}"
    ),
    "rows: begin of what a reader needs": _rows(
        "program/row_schedule.cpp", ".begin + v.grid.margin;", ".begin + v.grid.margin + 1;"
    ),
    "rows: a reader in the memory it reads": _rows(
        "program/row_schedule.cpp",
        "        const Rows next{done_[id], done_[id] + 1};\n",
        "        if (v.memory == values_[id].memory) return;\n"
        "        const Rows next{done_[id], done_[id] + 1};\n",
    ),
    "rows: padding below the last": _rows(
        "program/row_schedule.cpp", "(end < g.h ? 1 : 2)", "(end < g.h ? 1 : 1)"
    ),
    "rows: own rows let go": _rows(
        "program/row_schedule.cpp",
        "own = std::min(own, top(id));",
        "own = std::min(own, top(id) + 1);",
    ),
    "rows: kept when moved": _rows(
        "program/row_schedule.cpp",
        "task.keep = had - demand.low(m);",
        "task.keep = had - demand.low(m) - 1;",
    ),
    "rows: dropped when moved": _rows(
        "program/row_schedule.cpp",
        "task.drop = demand.low(m) - first[m];",
        "task.drop = demand.low(m) - first[m] + 1;",
    ),
    "rows: a memory's last": _rows(
        "program/row_schedule.cpp", "top - first[m] > room[m]", "top - first[m] > room[m] + 1"
    ),
    "rows: a memory's size": _rows(
        "program/row_schedule.cpp",
        "(*rows)[m], top - demand.low(m)",
        "(*rows)[m], top - demand.low(m) - 1",
    ),
    "rows: pairs": _rows(
        "program/row_schedule.cpp", "p == Pairs::kOdd ? 1 : 0", "p == Pairs::kOdd ? 0 : 1"
    ),
    "rows: padding of a reader": _rows(
        "program/streaming_plan.cpp",
        "std::max(margin, wanted)",
        "std::max(margin, wanted - 1)",
    ),
    "rows: bytes moved": _rows(
        "program/run.cpp",
        "task.keep * g.pitch + g.halo",
        "(task.keep - 1) * g.pitch + g.halo",
    ),
    "rows: first of a memory": _rows("program/run.cpp", "+= task.drop;", "+= task.drop - 1;"),
    "rows: a grid's size": _rows(
        "program/streaming_plan.cpp",
        "keep(schedule.rows[v.memory],",
        "keep(schedule.rows[v.memory] - 1,",
    ),
    "operators: order of four rearranged cells": Fault(
        "tensor/strided_copy.cpp", "cd[2], cd[3]}", "cd[3], cd[2]}", _AT_EVERY_NODE
    ),
    "operators: lanes of rearranged codes": Fault(
        "ops/rearrange_codes.cpp", "aligned && fours_[i]", "fours_[i]", _AT_EVERY_NODE
    ),
    "rows: what a reflection reads": _rows(
        "ops/borders.cpp", "(mode_ == Mode::kReflect ? after_.rows : 0)", "0"
    ),
    "operators: group_norm of a batch": _operators("ops/group_norm.cpp", " + n * in.image;", ";"),
    "operators: rows of tokens": _operators(
        "ops/linear_node.cpp", "return g.n * g.h * g.w;", "return g.n * g.h;"
    ),
    "operators: a product of a batch": Fault(
        "ops/matmul.cpp", " a.packet(n, 0, 0),", " a.packet(0, 0, 0),", _AT_EVERY_NODE
    ),
    "operators: attention of a batch": Fault(
        "ops/attention.cpp", "x.packet(part.n, 0, 0)", "x.packet(0, 0, 0)", _AT_EVERY_NODE
    ),
    "operators: the bias of attention": Fault(
        "kernels/softmax.inl", "c * a.bias_stride + p", "p", _AT_EVERY_NODE
    ),
    "operators: a mean": Fault("ops/reduce.cpp", "v / count : v", "v : v", _AT_EVERY_NODE),
    "operators: one row for all": Fault(
        "ops/elementwise.cpp", "spreads(g.h, out.h) ? 0 : y", "y", _AT_EVERY_NODE
    ),
    "damaged end of a block": Fault(
        "codec/rans.h", "if (state_ != kStateFloor) damaged", "if (state_ < kStateFloor) damaged"
    ),
}


def applied(text: str, fault: Fault) -> str:
    """The text with the fault; ValueError unless `old` stands in it exactly once."""
    if text.count(fault.old) != 1:
        raise ValueError(f"{fault.file} holds {text.count(fault.old)} times: {fault.old!r}")
    return text.replace(fault.old, fault.new)


def copy_checkout(target: Path) -> None:
    """Tracked and new files, as git sees them."""
    names = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    found = subprocess.run(names, cwd=ROOT, capture_output=True, check=True).stdout
    for name in filter(None, found.decode().split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)


def build(folder: Path) -> None:
    """The native module of the copy."""
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    subprocess.run(command, cwd=folder, capture_output=True, check=True)


def noticed_by_native(folder: Path) -> str | None:
    """The first native test of the copy that fails."""
    native = [sys.executable, "tests/cpp/build.py", "--", "--seed", "1"]
    done = subprocess.run(native, cwd=folder, capture_output=True, text=True, check=False)
    if not done.returncode:
        return None
    lines = [line for line in done.stdout.splitlines() if "FAILED" in line]
    return f"native: {lines[0] if lines else done.stderr[-200:]}"


def noticed_by_pytest(folder: Path, tests: tuple[str, ...]) -> str | None:
    """The first of these Python tests that fails in the copy."""
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    names = [str(Path("tests", name)) for name in tests]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *names]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, env=environment
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
    return None if done.returncode == 0 else f"pytest: {lines[0] if lines else done.returncode}"


def noticed_by(folder: Path, first: tuple[str, ...] = ()) -> str | None:
    """Which tests fail in the copy, which is built: these first, then all."""
    found = noticed_by_pytest(folder, first) if first else None
    return found or noticed_by_native(folder) or noticed_by_pytest(folder, PYTEST)


def _first_of(faults: dict[str, Fault]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for fault in faults.values() for name in fault.tests))


def main() -> int:
    """A line for each fault; 1 when one goes unnoticed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="first words of faults; all without any")
    parser.add_argument("--list", action="store_true")
    options = parser.parse_args()
    chosen = {
        name: fault
        for name, fault in FAULTS.items()
        if not options.names or any(name.startswith(n) for n in options.names)
    }
    if options.list or not chosen:
        print(*FAULTS, sep="\n")
        return 0 if options.list else 2
    unnoticed = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        copy_checkout(folder)
        build(folder)
        if (found := noticed_by(folder, _first_of(chosen))) is not None:
            print(f"the tests fail without any fault: {found}")
            return 2
        for name, fault in chosen.items():
            path = folder / "csrc" / fault.file
            sound = path.read_text()
            path.write_text(applied(sound, fault))
            build(folder)
            start = time.monotonic()
            found = noticed_by(folder, fault.tests)
            path.write_text(sound)
            unnoticed += [name] if found is None else []
            seconds = time.monotonic() - start
            print(f"{name:38} {seconds:4.0f} s  {found or 'NOT NOTICED'}", flush=True)
    print(f"{len(chosen) - len(unnoticed)} of {len(chosen)} noticed", *unnoticed)
    return 1 if unnoticed else 0


if __name__ == "__main__":
    raise SystemExit(main())
