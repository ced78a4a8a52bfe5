# SPDX-License-Identifier: Apache-2.0
"""Codegen report: machine code of every GPU kernel, target by target, without a GPU.

One row a case and target: figures of the machine code of its longest kernel, bytes against the
least the job needs, and the predicted time (`score`: it ranks, it measures nothing).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ternary_ops.gpu import perf_model
from ternary_ops.gpu.capture import Launch, record
from ternary_ops.gpu.cases import Case
from ternary_ops.gpu.devices import DEVICES, Device

# More thread instructions a unit than the committed card has are a regression from here on.
TOLERANCE = 1.10


@dataclass(frozen=True)
class Limits:
    """Limits of a row, from the committed report."""

    tensor_core: str
    per_unit: float
    spill_bytes: int = 0
    stack_bytes: int = 0


def rows(case: Case, target: str) -> list[dict[str, Any]]:
    """The row of a case on a target, once for each device of that target; one without device.

    A case the target cannot run has a row whose `note` says why.
    """
    from ternary_ops.errors import UnsupportedDevice

    head = {"case": case.name, "target": target}
    try:
        with record(target) as launches:
            case.launch()
    except UnsupportedDevice as error:
        return [head | {"device": "", "note": "unsupported: " + str(error).partition("\n")[0]}]
    costs = [
        one.binary.thread_instructions(case.trips(one)) * math.prod(one.grid) for one in launches
    ]
    longest = launches[costs.index(max(costs))]
    figures = _figures(longest) | {
        "spill_bytes": max(one.binary.spill_bytes for one in launches),
        "stack_bytes": max(one.binary.stack_bytes for one in launches),
        "trapped": any(one.binary.trapped for one in launches),
        "launches": len(launches),
        "kernel_per_unit": round(max(costs) / case.units, 4),
        "per_unit": round(sum(costs) / case.units, 4),
        "unit": case.unit,
        "bytes": case.bytes,
        "of_least_bytes": round(case.bytes / case.least_bytes, 3),
    }
    found = []
    for device in (d for d in DEVICES.values() if d.target.name == target):
        found.append(head | {"device": device.name} | figures | _predicted(case, launches, device))
    return found or [head | {"device": ""} | figures]


def _figures(one: Launch) -> dict[str, Any]:
    binary = one.binary
    return {
        "kernel": one.name,
        "grid": "x".join(map(str, one.grid)),
        "warps": one.num_warps,
        "registers": binary.registers,
        "shared_bytes": binary.shared_bytes,
        "tensor_core": binary.tensor_core or "",
        "widest_load": binary.widest_global_load,
    }


def _predicted(case: Case, launches: Sequence[Launch], device: Device) -> dict[str, Any]:
    timed = [(one, case.trips(one)) for one in launches]
    found = perf_model.predict(timed, device, case.bytes, case.bytes, macs=case.macs)
    least = perf_model.roofline(device, case.macs, case.least_bytes, case.dtype)
    return {
        "predicted_us": round(found.us, 2),
        "bound": found.bound,
        "blocks_per_sm": found.occupancy,
        "roofline_us": round(least.us, 2),
        "of_roofline": round(least.us / found.us, 3),
    }


def check(row: dict[str, Any], limits: Limits | None) -> list[str]:
    """Faults of a row: spills that the limits do not have, a trap, a lost tensor-core path, more
    instructions.
    """
    if "note" in row:
        return []
    where = f"{row['case']} on {row['target']}"
    wrong = []
    known = (limits.spill_bytes, limits.stack_bytes) if limits else (0, 0)
    if row["spill_bytes"] > known[0] or row["stack_bytes"] > known[1]:
        wrong.append(f"{where}: spills {row['spill_bytes']} bytes, stack {row['stack_bytes']}")
    if row["trapped"]:
        wrong.append(f"{where}: compiled to a trap")
    if limits is None:
        return wrong
    if row["tensor_core"] != limits.tensor_core:
        wrong.append(f"{where}: {row['tensor_core'] or 'no tensor core'}, was {limits.tensor_core}")
    if row["per_unit"] > TOLERANCE * limits.per_unit:
        wrong.append(f"{where}: {row['per_unit']} per {row['unit']}, was {limits.per_unit}")
    return wrong
