# SPDX-License-Identifier: Apache-2.0
"""Our GPU kernels beside others' Triton kernels, by machine code, no GPU needed.

    pip install '.[gpu,bench]'
    python bench/gpu_rivals.py                    # writes bench/results/gpu_rivals.csv
    python bench/gpu_rivals.py --targets sm_90

gemlite (2-bit weights; float16, and int8 with its quantization of x), block-sparse products of
torch.sparse: their own launchers, unmodified, compiled in the same run for the same shapes. Where
they tune themselves they get, of all they would try, what has the fewest thread instructions.
Columns as in gpu_static.py; `ours` is the row's thread instructions a unit over ours.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from itertools import product
from types import SimpleNamespace
from typing import Any

import torch
from _measure import command_line, write_csv
from torch.overrides import TorchFunctionMode

from ternary_ops.gpu import capture, cases, perf_model, report
from ternary_ops.gpu.capture import Launch
from ternary_ops.gpu.devices import DEVICES, find_target

TABLE = "gpu_rivals.csv"
SIDE = 4096  # of linear weights
ROWS = (1, 16, 512)
TARGETS = ("sm_80", "sm_89", "sm_90")


class _OnCPU(TorchFunctionMode):
    """Tensors that are asked for on a GPU stay in memory: launches are recorded, not run."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """The call, without CUDA."""
        given = dict(kwargs or {})
        if "cuda" in str(given.get("device", "")):
            given["device"] = "cpu"
        kept = [
            "cpu" if isinstance(a, (str, torch.device)) and "cuda" in str(a) else a for a in args
        ]
        return function(*kept, **given)


def _pretend(target: str) -> None:
    """What gemlite asks of torch.cuda when it is imported."""
    found = find_target(target)
    major, minor = divmod(int(found.arch), 10)
    device = next((d.name for d in DEVICES.values() if d.target.name == target), "none")
    asked = SimpleNamespace(name=device.lower(), multi_processor_count=found.multiprocessors)
    cuda: Any = torch.cuda
    cuda.get_device_capability = lambda *a: (major, minor)
    cuda.get_device_properties = lambda *a: asked
    cuda.device_count, cuda.empty_cache = lambda: 1, lambda: None


def _turns(one: Launch) -> list[float]:
    """Of gemlite's loops, along the depth."""
    at = one.arguments
    if not one.binary.loops:
        return []
    return [math.ceil(int(at["K"]) / int(at["BLOCK_SIZE_K"]) / int(at.get("SPLIT_K", 1)))]


def _instructions(launches: list[Launch], turns: Callable[[Launch], Any]) -> float:
    return sum(one.binary.thread_instructions(turns(one)) * math.prod(one.grid) for one in launches)


def _row(
    case: Any, engine: str, target: str, launches: list[Launch], turns: Callable[[Launch], Any]
) -> dict[str, Any]:
    """As card.rows, of somebody else's launches of the same job."""
    longest = max(launches, key=lambda one: _instructions([one], turns))
    row: dict[str, Any] = {"case": case.name, "engine": engine, "target": target}
    row |= {"kernel": longest.name, "registers": longest.binary.registers}
    row |= {"spill_bytes": max(one.binary.spill_bytes for one in launches)}
    row |= {"tensor_core": longest.binary.tensor_core or ""}
    row |= {"per_unit": round(_instructions(launches, turns) / case.units, 4), "unit": case.unit}
    # The first device of the target, as for ours.
    device = next(d for d in DEVICES.values() if d.target.name == target)
    timed = [(one, turns(one)) for one in launches]
    found = perf_model.predict(timed, device, case.least_bytes, case.least_bytes, macs=case.macs)
    return row | {"device": device.name, "predicted_us": round(found.us, 2)}


def _gemlite(target: str) -> Iterator[dict[str, Any]]:
    with capture.record(target, lambda tried: _instructions(tried, _turns)) as launches, _OnCPU():
        import gemlite
        from gemlite.helper import A16W158_INT, A8W158_INT_dynamic

        gemlite.set_autotune("fast")
        weight = torch.randint(-1, 2, (SIDE, SIDE), dtype=torch.int8)
        for kind, dtype in ((A16W158_INT, torch.float16), (A8W158_INT_dynamic, torch.uint8)):
            layer = kind(device="cpu", dtype=torch.float16).from_weights(weight, torch.ones(()))
            for m in ROWS:
                before = len(launches)
                layer(torch.zeros(m, SIDE, dtype=torch.float16))
                case = cases.linear(m, SIDE, SIDE, dtype)
                name = f"gemlite {version('gemlite')}"
                yield _row(case, name, target, launches[before:], _turns)


def _torch_sparse(target: str) -> Iterator[dict[str, Any]]:
    """25 % of 64x64 blocks, of every choice of columns, warps and stages that it has."""
    import torch.sparse._triton_ops as upstream
    import torch.utils._triton as detection

    # Its kernels are defined where a GPU is found.
    vars(detection)["has_triton"] = lambda: True
    upstream = importlib.reload(upstream)
    upstream.check_device = lambda *a: None
    case = cases.block_sparse(1, SIDE, 32, SIDE, 1, 0.25)
    across, each = SIDE // 64, SIDE // 64 // 4
    crow = torch.arange(0, each * across + 1, each)
    col = torch.arange(each).repeat(across)
    values = torch.zeros(len(col), 64, 64, dtype=torch.float16)
    weight = torch.sparse_bsr_tensor(crow, col, values, (SIDE, SIDE))
    x, y = (torch.zeros(SIDE, 1024, dtype=torch.float16) for _ in range(2))
    tried = []
    for columns, warps, stages in product((64, 128, 256), (4, 8), (2, 3)):
        meta = {"SPLIT_N": 1024 // columns, "num_warps": warps, "num_stages": stages}
        meta |= {"GROUP_SIZE_ROW": 4}
        with capture.record(target) as launches:
            try:
                upstream.bsr_dense_addmm(y, weight, x, beta=0, out=y, meta=meta)
            except Exception as error:  # too much shared memory
                if "OutOfResources" not in type(error).__name__:
                    raise
                continue
        tried.append(_row(case, f"torch.sparse {torch.__version__}", target, launches, _blocks))
    yield min(tried, key=lambda row: float(row["per_unit"]))


def _blocks(one: Launch) -> list[float]:
    return [SIDE / 64 / 4] if one.binary.loops else []


def rows(target: str) -> list[dict[str, Any]]:
    """Ours and theirs for one target."""
    jobs = [cases.linear(m, SIDE, SIDE, d) for d in (torch.float16, torch.uint8) for m in ROWS]
    jobs.append(cases.block_sparse(1, SIDE, 32, SIDE, 1, 0.25))
    ours = {}
    for case in jobs:
        row = report.rows(case, target)[0]
        ours[case.name] = {"engine": "ternary_ops"} | row
    _pretend(target)
    theirs = [*_gemlite(target), *_torch_sparse(target)]
    made = []
    for name, row in ours.items():
        for one in (row, *(t for t in theirs if t["case"] == name)):
            ratio = one["per_unit"] / row["per_unit"] if "per_unit" in row else ""
            made.append(one | {"ours": ratio and round(ratio, 2)})
    return made


COLUMNS = (
    *("case", "engine", "target", "device", "kernel", "registers", "spill_bytes", "tensor_core"),
    *("per_unit", "unit", "ours", "predicted_us", "note"),
)


def main() -> int:
    """A process a target: gemlite keeps what it learned of its first GPU."""
    parser = command_line(__doc__)
    parser.add_argument("--targets", nargs="+", default=list(TARGETS))
    parser.add_argument("--json", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.json:
        print("ROWS", json.dumps(rows(options.json)))
        return 0
    found = []
    for target in options.targets:
        command = [sys.executable, "-W", "ignore", __file__, "--json", target]
        text = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        line = next(line for line in text.splitlines() if line.startswith("ROWS "))
        for row in json.loads(line.removeprefix("ROWS ")):
            found.append({name: row.get(name, "") for name in COLUMNS})
            print(*(f"{k}={v}" for k, v in found[-1].items() if v != ""), flush=True)
    if options.targets == list(TARGETS):
        print("written:", write_csv(TABLE, [r | {"triton": version("triton")} for r in found]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
