# SPDX-License-Identifier: Apache-2.0
"""Predicted time of kernels from their machine code: it ranks, it does not measure.

The model. Each of the four parts of an SM runs one warp instruction at a time on the pipe that its
opcode belongs to; a launch takes the cycles of its busiest pipe, or of the issue slot, wave after
wave of resident blocks, divided by the clock and by ACHIEVED. Against that stand the bytes over
DRAM and over L2; the slowest wins, and every launch adds LAUNCH_US and two DRAM latencies.

What it is fitted on. ACHIEVED and the H100's L2 rate were chosen on six published times: one
Triton bf16 matrix product at three sizes on an H100, one two-bit matrix-vector kernel at three
sizes on an A100. Its errors on those same six are -18 to +5 %; none was predicted before it was
known. Outside them, ratios read off one published chart were missed by up to 30 %. It does not see
bank conflicts, misses of L1, scattered addresses or waiting at barriers. Differences well below
30 % mean nothing, and no figure of it is a time that was measured.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from ternary_ops.errors import BadConfig, UnsupportedDevice, need
from ternary_ops.gpu.capture import Launch
from ternary_ops.gpu.devices import Device
from ternary_ops.gpu.disassembly import Instruction

# Share of its busiest pipe that a kernel reaches; fitted, see above.
ACHIEVED = 0.66
# What a launch costs before its first block runs; assumed.
LAUNCH_US = 2.0

_PARTS = 4  # an SM's schedulers, each with a quarter of the lanes
_WARP = 32
_REGISTER_GRANULE = 256
_RESERVED_SHARED = 1024  # the driver's own, in every block

_FLOAT = {"FFMA", "FADD", "FMUL", "FFMA2"}
_HALF = {"HFMA2", "HADD2", "HMUL2"}
_PRODUCT = {"IMAD", "IDP", "IMUL"}
_INTEGER = {
    *("LOP3", "IADD3", "IADD", "SHF", "PRMT", "LEA", "ISETP", "SEL", "IMNMX", "VIMNMX", "LOP"),
    *("SGXT", "BMSK", "PLOP3", "FMNMX", "FSETP", "FSEL", "MOV", "VABSDIFF", "VIADD", "P2R", "R2P"),
    *("VIADDMNMX", "I2FP", "F2FP", "HMNMX2", "VHMNMX", "I2IP", "FCHK"),
}
_SLOW = {"MUFU", "I2F", "F2I", "F2F", "I2I", "FRND", "POPC", "FLO", "BREV"}
_GLOBAL_LOADS = {"LDG", "LDGSTS", "LD"}
_MEMORY = _GLOBAL_LOADS | {
    *("LDS", "LDSM", "STS", "STSM", "STG", "LDL", "STL", "ATOMS", "RED", "ATOMG", "ATOM", "ST"),
    *("LDTM", "STTM"),
}
_DTYPE = {"H": "fp16", "I": "int8", "Q": "fp8"}
# Multiply-adds of one warp-level instruction, by the shape in its name.
_WARP_MACS = {"16816": 2048, "1688": 1024, "16832": 4096, "16864": 8192, "8816": 1024, "884": 256}
_WIDTHS = {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}


@dataclass(frozen=True)
class Prediction:
    """Microseconds and where they come from; occupancy and waves are the longest launch's.

    bound      "dram", "l2", or the pipe of the longest launch: "tensor", "issue", "integer" ...
    occupancy  blocks on one SM at a time
    waves      rounds of resident blocks, the last one counted by its share
    """

    us: float
    bound: str
    occupancy: int
    waves: float
    sm_us: float
    dram_us: float
    l2_us: float
    overhead_us: float


@dataclass(frozen=True)
class Roofline:
    """The least time a job can take, and whether "tensor" or "dram" sets it."""

    us: float
    bound: str


def roofline(device: Device, macs: float, dram_bytes: float, dtype: str) -> Roofline:
    """Least time of `macs` multiply-adds of `dtype` (fp16, bf16, fp8, int8) and `dram_bytes`.

    The tensor pipe at its full rate and DRAM at the share that good kernels reach.
    """
    rate = device.sms * device.ghz * 1e9 * device.tensor_fma * _multiple(device, dtype)
    tensor_us = macs / rate * 1e6
    dram_us = dram_bytes / (device.dram_bytes_per_s * device.dram_share) * 1e6
    return Roofline(max(tensor_us, dram_us), "tensor" if tensor_us >= dram_us else "dram")


def occupancy(device: Device, registers: int, shared_bytes: int, num_warps: int) -> int:
    """Blocks that one SM holds at a time; BadConfig when not even one fits."""
    per_warp = math.ceil(registers * _WARP / _REGISTER_GRANULE) * _REGISTER_GRANULE
    blocks = min(
        device.registers // (per_warp * num_warps),
        device.shared_kb * 1024 // (shared_bytes + _RESERVED_SHARED),
        device.warps // num_warps,
        device.blocks,
    )
    if blocks < 1:
        got = f"{registers} registers, {shared_bytes} bytes of shared memory, {num_warps} warps"
        raise BadConfig(need(f"a block that fits on one SM of {device.name}", got, "Use less."))
    return blocks


def predict(
    launches: Sequence[tuple[Launch, Sequence[float]]],
    device: Device,
    dram_bytes: float,
    l2_bytes: float,
    macs: float = 0.0,
) -> Prediction:
    """Predicted time of launches one after another, each with the turns of its loops.

    `dram_bytes` and `l2_bytes` are of all launches together, and so are `macs`, the multiply-adds,
    which only block-level matrix instructions (UTC*MMA) need: their names do not tell their shape.
    BadConfig for code of another target, UnsupportedDevice for a kernel that is a trap.
    """
    parts = [_LaunchCost(launch, trips, device) for launch, trips in launches]
    if not parts:
        raise BadConfig(need("launches to predict", "none", "Record at least one."))
    longest = max(parts, key=lambda part: part.us)
    sm_us = sum(part.us for part in parts)
    block_level_us = _block_level_us(launches, device, macs)
    share = device.dram_share * longest.latency_hidden
    times = {
        longest.pipe: sm_us,
        "dram": dram_bytes / (device.dram_bytes_per_s * share) * 1e6,
        "l2": l2_bytes / device.l2_bytes_per_s * 1e6,
    }
    if block_level_us > sm_us:
        times["tensor"] = sm_us = block_level_us
    bound = max(times, key=lambda name: times[name])
    overhead_us = len(parts) * (LAUNCH_US + 2e-3 * device.latency_ns)
    return Prediction(
        us=times[bound] + overhead_us,
        bound=bound,
        occupancy=longest.occupancy,
        waves=longest.waves,
        sm_us=sm_us,
        dram_us=times["dram"],
        l2_us=times["l2"],
        overhead_us=overhead_us,
    )


class _LaunchCost:
    """Time of one launch on the SMs."""

    def __init__(self, launch: Launch, trips: Sequence[float], device: Device) -> None:
        binary = launch.binary
        if binary.target != device.target:
            do = f"Record it for {device.target.name}."
            raise BadConfig(need(f"code for {device.name}", binary.target.name, do))
        if binary.trapped:
            do = "The compiler gave up without an error: change its tile or its warps."
            raise UnsupportedDevice(need(f"machine code of {binary.name}", "a trap", do))
        self.occupancy = occupancy(device, binary.registers, binary.shared_bytes, launch.num_warps)
        blocks = math.prod(launch.grid)
        resident = device.sms * self.occupancy
        self.waves = blocks / resident
        counted = list(zip(binary.instructions, binary.times(trips), strict=True))
        pipes = _pipe_cycles(counted, device)
        # One warp alone is no faster than the waits in its own code.
        alone = sum(count * one.stall for one, count in counted)

        def cycles(on_one_sm: int) -> float:
            return max(alone, max(pipes.values()) * on_one_sm * launch.num_warps / _PARTS)

        full, rest = divmod(blocks, resident)
        total = full * cycles(self.occupancy)
        total += cycles(math.ceil(rest / device.sms)) if rest else 0
        self.us = total / (device.ghz * 1e3) / ACHIEVED
        busiest = max(pipes, key=lambda name: pipes[name])
        at_once = min(blocks / device.sms, self.occupancy) * launch.num_warps / _PARTS
        self.pipe = busiest if pipes[busiest] * at_once >= alone else "stall"
        self.latency_hidden = _latency_hidden(
            counted, sum(trips), min(blocks, resident) * launch.num_warps, device
        )


def _latency_hidden(
    counted: Sequence[tuple[Instruction, float]], turns: float, warps: int, device: Device
) -> float:
    """Fraction of the DRAM bandwidth that the loads in flight can use, at most 1.

    A warp is taken to have one turn's loads under way, at least 1 and at most 8, of 16 bytes.
    """
    if any(one.stem == "UTMALDG" for one, _ in counted):
        return 1.0  # bulk copies keep whole tiles under way
    loads = sum(count for one, count in counted if one.stem in _GLOBAL_LOADS)
    under_way = warps * _WARP * 16 * max(1.0, min(loads / max(turns, 1.0), 8.0))
    return min(1.0, under_way / (device.dram_bytes_per_s * device.latency_ns * 1e-9))


def _pipe_cycles(counted: Sequence[tuple[Instruction, float]], device: Device) -> dict[str, float]:
    """Cycles that one warp keeps each pipe of its quarter of an SM busy."""
    pipes = {"issue": 0.0}
    for one, count in counted:
        if one.stem == "NOP":
            continue
        name, cycles = _pipe(one, device)
        pipes["issue"] += count
        pipes[name] = pipes.get(name, 0.0) + count * cycles
    return pipes


def _pipe(one: Instruction, device: Device) -> tuple[str, float]:
    """The pipe of an instruction and the cycles one warp keeps it busy."""
    tensor = _tensor_cycles(one, device)
    if tensor is not None:
        return "tensor", tensor
    # Half and float instructions leave by the same port.
    lanes = (
        ("float", _FLOAT, device.fp32_lanes),
        ("float", _HALF, device.half2_lanes),
        ("product", _PRODUCT, 64),
        ("integer", _INTEGER, device.int32_lanes),
        ("slow", _SLOW, 16),
        ("memory", {"SHFL"}, 32),
    )
    for name, stems, per_sm in lanes:
        if one.stem in stems:
            return name, _WARP * _PARTS / per_sm
    if one.stem in _MEMORY:
        return "memory", _memory_cycles(one)
    return "other", 1.0


def _memory_cycles(one: Instruction) -> float:
    """128 bytes a cycle, through one port that the four parts share."""
    words = one.opcode.split(".")
    if one.stem in ("LDSM", "STSM"):
        return _PARTS * (float(words[-1]) if words[-1] in ("2", "4") else 1.0)
    return _PARTS * _WARP * next(filter(None, map(_WIDTHS.get, words)), 4) / 128


def _tensor_cycles(one: Instruction, device: Device) -> float | None:
    """Cycles of a matrix instruction; 0 for block-level ones, None for anything else."""
    if one.stem in ("HMMA", "IMMA", "QMMA"):
        shape = re.search(r"\.(\d{3,})", one.opcode)
        if shape is None or shape[1] not in _WARP_MACS:
            do = f"Known are {', '.join(_WARP_MACS)}."
            raise UnsupportedDevice(need("a matrix instruction of known shape", one.opcode, do))
        macs = _WARP_MACS[shape[1]]
        per_cycle = device.tensor_fma / _PARTS * device.mma_sync_share
    elif one.stem in ("HGMMA", "IGMMA", "QGMMA"):
        m, n, k = map(int, re.findall(r"\.(\d+)x(\d+)x(\d+)", one.opcode)[0])
        # Four warps run it together, one in each part.
        macs = m * n * k // _PARTS
        per_cycle = device.tensor_fma / _PARTS
    elif one.stem.startswith("UTC") and one.stem.endswith("MMA"):
        return 0.0
    else:
        return None
    per_cycle *= _multiple(device, _DTYPE[one.stem[0]])
    return macs / (per_cycle / 2 if "TF32" in one.opcode else per_cycle)


def _multiple(device: Device, dtype: str) -> int:
    rates = {
        "fp16": 1,
        "bf16": 1,
        "fp8": device.fp8_multiple,
        "int8": device.int8_multiple,
    }
    if not rates.get(dtype):
        known = ", ".join(name for name, rate in rates.items() if rate)
        raise BadConfig(need(f"a tensor dtype of {device.name}", repr(dtype), f"Use {known}."))
    return rates[dtype]


def _block_level_us(
    launches: Sequence[tuple[Launch, Sequence[float]]], device: Device, macs: float
) -> float:
    """Time of block-level matrix instructions; 0 without one."""
    found = (launch.binary.tensor_core or "" for launch, _ in launches)
    names = sorted({name for name in found if name.startswith("UTC")})
    if not names:
        return 0.0
    if not macs:
        do = "Pass macs=, the multiply-adds of all launches."
        raise BadConfig(need(f"the size of {', '.join(names)}", "none", do))
    slowest = min(_multiple(device, _DTYPE[name[3]]) for name in names)
    rate = device.sms * device.ghz * 1e3 * device.tensor_fma * slowest
    return macs / rate / ACHIEVED
