# SPDX-License-Identifier: Apache-2.0
"""Instructions and loops out of a disassembly: NVIDIA's SASS or AMD's assembler text."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ternary_ops.errors import FormatError, need


@dataclass(frozen=True)
class Instruction:
    """One machine instruction.

    address        bytes from the start of the kernel; on AMD, whose text has none, the ordinal
    predicate      NVIDIA's "P0" or "!P0", "" when always executed
    stall          cycles the same warp waits before its next instruction (NVIDIA's control code)
    target         address it may jump to, None when it does not jump
    falls_through  whether the next instruction may follow
    """

    address: int
    opcode: str
    operands: str = ""
    predicate: str = ""
    stall: int = 1
    target: int | None = None
    falls_through: bool = True

    @property
    def stem(self) -> str:
        """The opcode without NVIDIA's modifiers or AMD's encoding suffix."""
        return re.sub(r"_e(32|64)$", "", self.opcode.split(".")[0])


@dataclass(frozen=True)
class Loop:
    """Instructions first..last, both included, run over and over."""

    first: int
    last: int

    def __len__(self) -> int:
        return self.last + 1 - self.first


_SASS = re.compile(
    r"/\*(?P<address>[0-9a-f]{4,})\*/\s+(?:@(?P<predicate>!?U?P\w+)\s+)?"
    r"(?P<opcode>[A-Z][\w.]*)\s*(?P<operands>[^;]*?)\s*;"
    r"\s*/\* 0x[0-9a-f]{16} \*/\s*/\* 0x(?P<control>[0-9a-f]{16}) \*/"
)
_JUMP_TO = re.compile(r"^(?P<condition>.*?)`?\(?0x(?P<target>[0-9a-f]+)\)?$")


def parse_sass(text: str, kernel: str) -> list[Instruction]:
    """The kernel's instructions out of `cuobjdump -sass`, less the padding behind its end."""
    sections = re.split(r"Function : (\S+)", text)
    bodies = dict(zip(sections[1::2], sections[2::2], strict=True))
    if kernel not in bodies:
        raise FormatError(
            need(f"machine code of {kernel}", sorted(bodies), "Is it another kernel's binary?")
        )
    found = [_from_sass(match) for match in _SASS.finditer(bodies[kernel])]
    # ptxas ends every kernel with a jump to itself and NOPs up to a cache line.
    while found and (found[-1].stem == "NOP" or found[-1].target == found[-1].address):
        found.pop()
    return found


def _from_sass(match: re.Match[str]) -> Instruction:
    opcode, operands = match["opcode"], match["operands"]
    stem = opcode.split(".")[0]
    jump = _JUMP_TO.match(operands) if stem in ("BRA", "JMP", "CALL") else None
    # A jump is conditional by its predicate or, as BRA.U and BRA.DIV are, by an operand.
    conditional = bool(match["predicate"]) or bool(jump and jump["condition"].strip())
    return Instruction(
        address=int(match["address"], 16),
        opcode=opcode,
        operands=operands,
        predicate=match["predicate"] or "",
        stall=int(match["control"], 16) >> 41 & 0xF,
        target=int(jump["target"], 16) if jump else None,
        falls_through=conditional or stem not in ("BRA", "JMP", "EXIT", "RET"),
    )


def parse_amdgcn(text: str, kernel: str) -> list[Instruction]:
    """The kernel's instructions out of the assembler text, numbered from 0."""
    body = re.search(rf"^{re.escape(kernel)}:.*?^\.Lfunc_end", text, re.MULTILINE | re.DOTALL)
    if body is None:
        raise FormatError(need(f"a label {kernel}:", "none", "Is it another kernel's text?"))
    lines: list[tuple[str, str]] = []
    labels: dict[str, int] = {}
    for raw in body[0].splitlines()[1:]:
        line = raw.split(";")[0].strip()
        if line.endswith(":"):
            labels[line[:-1]] = len(lines)
        elif line and not line.startswith("."):
            opcode, _, operands = line.partition(" ")
            lines.append((opcode, operands.strip()))
    return [
        Instruction(
            address=ordinal,
            opcode=opcode,
            operands=operands,
            target=labels.get(operands) if opcode.startswith(("s_branch", "s_cbranch")) else None,
            falls_through=opcode not in ("s_branch", "s_endpgm", "s_setpc_b64"),
        )
        for ordinal, (opcode, operands) in enumerate(lines)
    ]


# Short loops that poll a barrier or a lock: how often they turn is chance, not the kernel's shape.
_POLLS = ("TRYWAIT", "FIND_AND_SET", "NANOSLEEP")
_POLL_LENGTH = 12


def find_loops(listing: Sequence[Instruction]) -> list[Loop]:
    """Loops, shortest first, so that an inner loop comes before the one around it.

    A backward jump closes a loop if its target cannot be bypassed on the way to it. That leaves
    out the jumps back from rarely used code, which compilers place behind the kernel's end.
    """
    position = {one.address: index for index, one in enumerate(listing)}
    last_of: dict[int, int] = {}
    for index, one in enumerate(listing):
        first = index if one.target is None else position.get(one.target, index)
        if first >= index or one.stem == "CALL" or _only_polls(listing[first : index + 1]):
            continue
        if index not in _reachable(listing, position, avoid=first):
            last_of[first] = max(last_of.get(first, 0), index)
    return sorted(
        (Loop(*span) for span in last_of.items()), key=lambda loop: (len(loop), loop.first)
    )


def _only_polls(body: Sequence[Instruction]) -> bool:
    return len(body) <= _POLL_LENGTH and any(poll in one.opcode for one in body for poll in _POLLS)


def _reachable(listing: Sequence[Instruction], position: dict[int, int], avoid: int) -> set[int]:
    """Indices the kernel can come to from its start without passing `avoid`."""
    seen = {avoid}
    waiting = [0]
    while waiting:
        index = waiting.pop()
        if index not in seen:
            seen.add(index)
            waiting.extend(_next(listing, position, index))
    return seen - {avoid}


def _next(listing: Sequence[Instruction], position: dict[int, int], index: int) -> Iterator[int]:
    one = listing[index]
    if one.falls_through and index + 1 < len(listing):
        yield index + 1
    if one.target is not None and one.target in position:
        yield position[one.target]
