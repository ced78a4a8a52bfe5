# SPDX-License-Identifier: Apache-2.0
"""Figures of one compiled kernel, read from its machine code.

NVIDIA's code is taken apart by the tools inside the triton package (cuobjdump, ptxas), AMD's is
text already. Counts are static; `thread_instructions` makes them dynamic with given loop counts.
"""

from __future__ import annotations

import math
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from ternary_ops.errors import BadConfig, FormatError, need
from ternary_ops.gpu._triton import triton_module
from ternary_ops.gpu.devices import Target
from ternary_ops.gpu.disassembly import Instruction, Loop, find_loops, parse_amdgcn, parse_sass

# Warp-level, warpgroup-level (sm_90) and block-level (sm_100) matrix instructions.
_NVIDIA_TENSOR = (
    *("HMMA", "IMMA", "QMMA"),
    *("HGMMA", "IGMMA", "QGMMA"),
    *("UTCHMMA", "UTCIMMA", "UTCQMMA"),
)
_AMD_TENSOR = {"v_mfma": "MFMA", "v_wmma": "WMMA"}

_NVIDIA_WIDTHS = {"256": 32, "128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}
_AMD_LOAD = re.compile(r"^(?:global|buffer|flat)_load_(?:lds_)?(\w+)")
_AMD_WIDTHS = (
    (("dwordx4", "b128"), 16),
    (("dwordx3", "b96"), 12),
    (("dwordx2", "b64"), 8),
    (("dword", "b32"), 4),
    (("ushort", "sshort", "short", "u16", "i16", "b16"), 2),
    (("ubyte", "sbyte", "u8", "i8"), 1),
)

# A kernel that ptxas or LLVM gave up on is a trap behind a few moves; a check inside a real kernel
# may hold a trap too.
_TRAP_LENGTH = 40


class Binary:
    """One compiled kernel.

    `asm` and `metadata` are those of a triton CompiledKernel: asm holds "ptx" and "cubin", or
    "amdgcn". The tools run when a figure is first asked for.
    """

    def __init__(self, asm: Mapping[str, str | bytes], metadata: Any, target: Target) -> None:
        self.asm = asm
        self.metadata = metadata
        self.target = target
        self.name = str(metadata.name)
        self.num_warps = int(metadata.num_warps)
        self.shared_bytes = int(metadata.shared)

    def __repr__(self) -> str:
        return f"Binary({self.name}, {self.target.name}, {len(self.instructions)} instructions)"

    @property
    def _on_amd(self) -> bool:
        return self.target.backend == "hip"

    @cached_property
    def registers(self) -> int:
        """Registers of one thread; on AMD its vector registers."""
        return self._amd_figure("vgpr_count") if self._on_amd else self._nvidia_usage["REG"]

    @cached_property
    def stack_bytes(self) -> int:
        """Bytes of slow private memory of one thread; 0 when everything fits into registers."""
        if self._on_amd:
            return self._amd_figure("private_segment_fixed_size")
        return self._nvidia_usage["STACK"]

    @cached_property
    def spill_bytes(self) -> int:
        """Bytes of registers that one thread stores because they do not fit."""
        if self._on_amd:
            return 4 * self._amd_figure("vgpr_spill_count")
        return self._ptxas_spills() if self.stack_bytes else 0

    @cached_property
    def instructions(self) -> list[Instruction]:
        """All instructions in program order."""
        if self._on_amd:
            return parse_amdgcn(self._text("amdgcn"), self.name)
        return parse_sass(self._cuobjdump("-sass"), self.name)

    @cached_property
    def loops(self) -> list[Loop]:
        """Loops, innermost first; polling of barriers and locks is left out."""
        return find_loops(self.instructions)

    def histogram(self, loop: Loop | None = None) -> dict[str, int]:
        """Instructions by opcode stem, most frequent first; of one loop's body if given."""
        span = slice(loop.first, loop.last + 1) if loop else slice(None)
        return dict(Counter(one.stem for one in self.instructions[span]).most_common())

    @cached_property
    def tensor_core(self) -> str | None:
        """The matrix instruction: HMMA, IGMMA, UTCQMMA, MFMA, WMMA ...; None without one."""
        found = Counter(filter(None, map(self._tensor_name, self.instructions)))
        return found.most_common(1)[0][0] if found else None

    @cached_property
    def widest_global_load(self) -> int:
        """Bytes one thread loads from global memory at once, 16 being best; 0 without a load.

        A bulk copy (UTMALDG) counts as 16.
        """
        return max(map(self._load_width, self.instructions), default=0)

    @cached_property
    def trapped(self) -> bool:
        """True if the compiler gave up and left a trap in place of the kernel."""
        traps = any(one.opcode in ("BPT.TRAP", "s_trap") for one in self.instructions)
        return traps and len(self.instructions) < _TRAP_LENGTH

    def times(self, trips: Sequence[float]) -> list[float]:
        """Executions of each instruction per warp.

        `trips` has the turns of each loop, in program order, so an outer loop before the loops
        inside it; an inner loop's are per turn of the outer one. Code outside loops, predicated or
        in a branch that may not be taken, counts once.
        """
        loops = sorted(self.loops, key=lambda loop: loop.first)
        if len(trips) != len(loops):
            do = f"Give one count for each of the {len(loops)} loops of {self.name}."
            raise BadConfig(need("the turns of each loop", list(trips), do))
        found = [1.0] * len(self.instructions)
        for loop, turns in zip(loops, trips, strict=True):
            for index in range(loop.first, loop.last + 1):
                found[index] *= turns
        return found

    def thread_instructions(self, trips: Sequence[float] = ()) -> float:
        """Instructions that one block issues, times the lanes of a warp; `trips` as in `times`.

        Every warp is taken to run everything, which counts too much where warps have different
        parts, and AMD's scalar instructions count like vector ones.
        """
        return math.fsum(self.times(trips)) * self.target.warp_size * self.num_warps

    def _tensor_name(self, one: Instruction) -> str | None:
        if self._on_amd:
            return _AMD_TENSOR.get(one.opcode[:6])
        return one.stem if one.stem in _NVIDIA_TENSOR else None

    def _load_width(self, one: Instruction) -> int:
        if self._on_amd:
            match = _AMD_LOAD.match(one.opcode)
            words = match[1].split("_") if match else []
            return next((size for names, size in _AMD_WIDTHS if set(names) & set(words)), 0)
        if one.stem == "UTMALDG":
            return 16
        if one.stem not in ("LDG", "LDGSTS"):
            return 0
        return next(filter(None, map(_NVIDIA_WIDTHS.get, one.opcode.split("."))), 4)

    def _text(self, kind: str) -> str:
        text = self.asm[kind]
        return text if isinstance(text, str) else text.decode()

    def _amd_figure(self, name: str) -> int:
        match = re.search(rf"^\s*-?\s*\.{name}:\s+(\d+)", self._text("amdgcn"), re.MULTILINE)
        if match is None:
            raise FormatError(need(f".{name} in {self.name}", "none", "Is it amdgcn text?"))
        return int(match[1])

    @cached_property
    def _nvidia_usage(self) -> dict[str, int]:
        text = self._cuobjdump("--dump-resource-usage")
        match = re.search(rf"Function {re.escape(self.name)}:\s*\n(.*)", text)
        if match is None:
            raise FormatError(need(f"resources of {self.name}", text[:200], "Is it a cubin?"))
        return {name: int(count) for name, count in re.findall(r"([A-Z]+):(\d+)", match[1])}

    def _cuobjdump(self, option: str) -> str:
        image = self.asm["cubin"]
        tool = triton_module("triton.knobs").nvidia.cuobjdump.path
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "kernel.cubin")
            path.write_bytes(image if isinstance(image, bytes) else image.encode())
            return _run(tool, option, str(path)).stdout

    def _ptxas_spills(self) -> int:
        """Assemble the PTX once more, with Triton's options, for what only ptxas tells."""
        text = self._text("ptx")
        arch = re.search(r"^\.target (\w+)", text, re.MULTILINE)
        if arch is None:
            raise FormatError(need(f".target in {self.name}", "none", "Is it PTX?"))
        get_ptxas = triton_module("triton.backends.nvidia.compiler").get_ptxas
        options = ["-v", "--regAllocOptLevel=2", f"--gpu-name={arch[1]}"]
        options += (self.metadata.ptx_options or "").split()
        options += [] if self.metadata.enable_fp_fusion else ["--fmad=false"]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "kernel.ptx")
            path.write_text(text)
            tool = get_ptxas(self.target.arch).path
            log = _run(tool, *options, str(path), "-o", str(path.with_suffix(".cubin"))).stderr
        return sum(map(int, re.findall(r"(\d+) bytes spill stores", log)))


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, check=True, capture_output=True, text=True)
