# SPDX-License-Identifier: Apache-2.0
"""Damaged and hostile files by the million: they load and run, or raise one of our errors.

python tests/fuzz.py --count 1000000 --workers 2     # about 25 minutes on two cores
python tests/fuzz.py --case 123456                   # one case again
python tests/fuzz.py --count 5000 --keep tests/data/fuzz
python tests/fuzz.py --count 30000 --reasons tests/data/refused.zip

Case n is a program file that n alone decides: a random program of programs.py, damaged in one
to four places, either in its bytes (which checksums must catch) or in its index, its payload or its
metadata with the checksum made right again (which every later check must catch). Cases run in child
processes; one that kills its process, or takes more than --seconds, is found by its number, and
kept with --keep as a file that program/test_fuzz.py reads from then on. --reasons keeps the
smallest file for every reason that files are refused for, which must stay refused.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import mmap
import re
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent / "support"))

from containers import forge  # noqa: E402
from programs import PROGRAMS, example, random_program  # noqa: E402

from ternary_ops import runtime  # noqa: E402
from ternary_ops.errors import FormatError, TernaryOpsError  # noqa: E402
from ternary_ops.io import safetensors  # noqa: E402
from ternary_ops.program import program_file, shapes  # noqa: E402

_CHUNK = 5000
# What survives is run, unless the program is larger than this.
_MOST_WORK = 2_000_000
_POWERS = (2**15, 2**16, 2**31 - 1, 2**31, 2**63, -(2**31), 1e-45)
_NUMBERS = (0, 1, -1, 2, 3, 4, 5, 7, 255, 256, *_POWERS)
# Of damage to the bytes, the payload, the index (which reaches furthest), and all of them.
_SHARES = (0.1, 0.15, 0.6, 0.15)
_ODD = (None, True, False, "", "x", [], {}, 0.5, 1e300, "ternary", "y")


def seeds() -> list[bytes]:
    """Small valid files."""
    made = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "a.safetensors")
        for build in (*PROGRAMS.values(), random_program):
            for seed in range(3):
                graph = build(seed)
                program_file.write(file, graph, example(graph, 1, 11, 9).shape)
                made.append(file.read_bytes())
    return made


def damaged(case: int, valid: list[bytes]) -> bytes:
    """The file of a case."""
    rng = np.random.default_rng([2026, case])
    data = valid[rng.integers(len(valid))]
    kind, places = rng.choice(4, p=_SHARES), min(4, int(rng.geometric(0.6)))
    if kind == 0:
        for _ in range(places):
            data = _damage_bytes(rng, data)
        return data
    tensors = safetensors.read(io.BytesIO(data), len(data))[1]
    deflated, payload = bytes(tensors["index"]), bytes(tensors["payload"])
    about: dict[str, Any] = {"kind": program_file.KIND}
    index: Any = json.loads(zlib.decompress(deflated))
    for _ in range(places):
        if kind == 1:
            payload = _damage_bytes(rng, payload)
        elif kind == 2:
            index = _damage_nodes(rng, index)
        else:
            part = rng.integers(3)
            if part == 0:
                payload = _damage_bytes(rng, payload)
            elif part == 1:
                index = _damage_value(rng, index)
            else:
                about = _damage_value(rng, {"version": 1, **about})
                about = about if isinstance(about, dict) else {"kind": about}
    try:
        json.dumps(about, allow_nan=False)
    except ValueError:  # such metadata has no checksum
        about["crc32"] = 0
    return forge(zlib.compress(json.dumps(index).encode()), payload, about)


def _damage_bytes(rng: np.random.Generator, data: bytes) -> bytes:
    at = int(rng.integers(len(data) + 1))
    end = min(len(data), at + int(rng.integers(1, 33)))
    kind = rng.integers(6)
    if kind == 0 and at < len(data):
        return data[:at] + bytes([data[at] ^ 1 << int(rng.integers(8))]) + data[at + 1 :]
    if kind == 1:
        return data[:at] + data[end:]
    if kind == 2:
        return data[:at] + rng.bytes(int(rng.integers(1, 17))) + data[at:]
    if kind == 3:
        return data[:at] + data[at:end] * 2 + data[end:]
    if kind == 4:
        return data[:at]
    value = int(rng.choice([0, 1, 127, 128, 255]))
    return data[:at] + bytes([value] * (end - at)) + data[end:]


def _damage_nodes(rng: np.random.Generator, index: Any) -> Any:
    """One change inside of a node: what its weights are stays true, so that the file is decoded."""
    nodes = list(index["index"]["nodes"])
    at = int(rng.integers(len(nodes)))
    node = list(nodes[at])
    part = int(rng.integers(len(node))) if rng.random() < 0.2 else len(node) - 1
    node[part] = _damage_value(rng, node[part])
    nodes[at] = node
    return {**index, "index": {**index["index"], "nodes": nodes}}


def _damage_value(rng: np.random.Generator, value: Any) -> Any:
    """One change somewhere inside of a JSON value."""
    if isinstance(value, dict) and value and rng.random() < 0.95:
        key = list(value)[rng.integers(len(value))]
        if rng.random() < 0.05:
            return {k: v for k, v in value.items() if k != key}
        return {**value, key: _damage_value(rng, value[key])}
    if isinstance(value, list) and value and rng.random() < 0.95:
        at = int(rng.integers(len(value)))
        kind = rng.random()
        if kind < 0.05:
            return value[:at] + value[at + 1 :]
        if kind < 0.1:
            return [*value[:at], value[at], *value[at:]]
        if kind < 0.15:
            other = int(rng.integers(len(value)))
            swapped = list(value)
            swapped[at], swapped[other] = value[other], value[at]
            return swapped
        return [*value[:at], _damage_value(rng, value[at]), *value[at + 1 :]]
    if isinstance(value, (int, float)) and rng.random() < 0.8:
        if rng.random() < 0.7:
            return value + int(rng.integers(-2, 3))
        return _NUMBERS[rng.integers(len(_NUMBERS))]
    return _ODD[rng.integers(len(_ODD))]


def survive(data: bytes, file: Path) -> str:
    """What became of a file: "refused", "ran" or "large"; raises what should not have happened."""
    file.write_bytes(data)
    try:
        program = runtime.load(file)
        at = program.graph.nodes[0].attrs
        rank, c = at["rank"], at["c"]
        sizes = program._shapes_of((1, 11, c) if rank == 3 else (1, c, 11, 9)[:rank])
        work = sum(shapes.macs(program.graph, sizes)) + sum(map(math.prod, sizes))
        if work > _MOST_WORK:
            return "large"
        with np.errstate(all="ignore"):
            program(example(program.graph, 1, 11, 9))
    except TernaryOpsError as error:
        return "refused" if isinstance(error, FormatError) else "not run"
    return "ran"


def reason_of(data: bytes, file: Path) -> str | None:
    """Why a file is refused, without what is particular to it; None where it is not."""
    file.write_bytes(data)
    try:
        runtime.load(file)
    except FormatError as error:
        first = str(error).partition("\n")[0].partition(", got ")[0].replace(str(file), "FILE")
        first = re.sub(r"(node \d+: )\w+\.", r"\1", first)  # attributes of any operator
        return re.sub(r"'[^']*'|\"[^\"]*\"|\[.*\]|[-+]?\d[\d.e+-]*", "#", first)
    return None


def keep_reasons(begin: int, end: int, target: Path) -> int:
    """Write a zip with the smallest file for each reason; how many there are."""
    valid, found = seeds(), dict[str, bytes]()
    with tempfile.TemporaryDirectory() as folder:
        for case in range(begin, end):
            data = damaged(case, valid)
            reason = reason_of(data, Path(folder, "a.safetensors"))
            if reason is not None and len(data) < len(found.get(reason, data + b"x")):
                found[reason] = data
    target.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as pack:
        for number, (reason, data) in enumerate(sorted(found.items())):
            pack.writestr(zipfile.ZipInfo(f"{number:03}.safetensors"), data)
            pack.writestr(zipfile.ZipInfo(f"{number:03}.txt"), reason + "\n")
    return len(found)


def run_cases(begin: int, end: int, place: Path) -> dict[str, Any]:
    """In a child: run the cases and note each number before it begins."""
    valid, file, failures = seeds(), place.with_suffix(".safetensors"), []
    outcomes: Counter[str] = Counter()
    with place.open("r+b") as handle, mmap.mmap(handle.fileno(), 8) as note:
        for case in range(begin, end):
            note[:] = case.to_bytes(8, "little")
            try:
                outcomes[survive(damaged(case, valid), file)] += 1
            except Exception as error:  # whatever it is, it is a finding
                failures.append([case, f"{type(error).__name__}: {error}"])
    return {"outcomes": dict(outcomes), "failures": failures}


def in_child(begin: int, end: int, seconds: float) -> dict[str, Any]:
    """Cases in processes of their own: another one goes on behind a case that killed one."""
    total: Counter[str] = Counter()
    failures: list[list[Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, "case")
        while begin < end:
            place.write_bytes(begin.to_bytes(8, "little"))
            part = ["--child", str(place), "--range", str(begin), str(end)]
            command = [sys.executable, __file__, *part]
            limit = seconds + (end - begin) * 0.05
            try:
                done = subprocess.run(command, capture_output=True, timeout=limit, check=False)
                if done.returncode == 0:
                    found = json.loads(done.stdout)
                    total.update(found["outcomes"])
                    failures += found["failures"]
                    break
                reason = f"the process ended with {done.returncode}: {done.stderr.decode()[-300:]}"
            except subprocess.TimeoutExpired:
                reason = f"more than {limit:.0f} s"
            case = int.from_bytes(place.read_bytes(), "little")
            failures.append([case, reason])
            total["lost"] += case - begin
            begin = case + 1
    return {"outcomes": dict(total), "failures": failures}


def main() -> int:
    """Run the cases, print what became of them; 1 after any failure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=60.0, help="at most, for a case")
    parser.add_argument("--case", type=int, help="run one, in this process")
    parser.add_argument("--keep", type=Path, help="a folder for files that failed")
    parser.add_argument("--reasons", type=Path, help="a zip for a file of each reason")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--range", type=int, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(run_cases(*options.range, options.child)))
        return 0
    if options.case is not None:
        with tempfile.TemporaryDirectory() as folder:
            print(survive(damaged(options.case, seeds()), Path(folder, "a.safetensors")))
        return 0
    if options.reasons:
        count = keep_reasons(options.first, options.first + options.count, options.reasons)
        print(f"{count} reasons in {options.reasons}")
        return 0
    start, total, failures = time.monotonic(), Counter[str](), []
    last = options.first + options.count
    parts = [(a, min(a + _CHUNK, last)) for a in range(options.first, last, _CHUNK)]
    with ThreadPoolExecutor(options.workers) as pool:
        for found in pool.map(lambda part: in_child(*part, options.seconds), parts):
            total.update(found["outcomes"])
            failures += found["failures"]
            done = sum(total.values()) + len(failures)
            print(f"\r{done:,} of {options.count:,}", end="", file=sys.stderr, flush=True)
    print(f"\n{dict(total)}, {len(failures)} failures, {time.monotonic() - start:.0f} s")
    for case, reason in failures[:50]:
        print(f"case {case}: {reason}")
        if options.keep:
            options.keep.mkdir(parents=True, exist_ok=True)
            kept = options.keep / f"case{case}.safetensors"
            kept.write_bytes(damaged(case, seeds()))
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
