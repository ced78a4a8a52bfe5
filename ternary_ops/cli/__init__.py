# SPDX-License-Identifier: Apache-2.0
"""The command line, `ternary-ops` = `python -m ternary_ops`.

Every command takes --json, shows an example in --help, and ends with 0 (done), 1 (failed) or 2
(wrong use or bad input, one line on stderr). Only `check`, `compress`, `climate fit`, and
`upscale` with a checkpoint, need torch.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from ternary_ops._version import __version__
from ternary_ops.cli import bench as bench
from ternary_ops.cli import (
    check,
    climate,
    compress,
    downscale,
    export,
    info,
    report,
    run,
    upscale,
    verify,
)
from ternary_ops.errors import TernaryOpsError

OK, FAILED, BAD_INPUT = 0, 1, 2
_COMMANDS = (
    *(info, verify, check, compress, run, report, export),
    *(upscale, downscale, climate, bench),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code (argparse itself exits with 2)."""
    try:
        return _run(argv)
    except KeyboardInterrupt:
        return _complain("interrupted", FAILED)


def process() -> NoReturn:
    """The process `ternary-ops`: `main` on the command line, then the end of the interpreter.

    An interrupt that passed through an `exec` of a string (dataclasses and namedtuples made while
    torch is imported) makes CPython die of SIGINT at its end, although the interrupt was caught;
    hence the direct exit, after everything has been unwound.
    """
    try:
        code = _run(None)
    except KeyboardInterrupt:
        _complain("interrupted", FAILED)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(FAILED)
    raise SystemExit(code)


def _run(argv: Sequence[str] | None) -> int:
    arguments = _parser().parse_args(argv)
    try:
        code: int = arguments.run(arguments)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # The reader went away (`| head`), which is no error; stdout must not be flushed again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except (TernaryOpsError, OSError, MemoryError) as error:
        if os.environ.get("TERNARY_OPS_DEBUG", "") not in ("", "0"):
            raise
        text = " ".join(str(error).split())
        return _complain(f"{type(error).__name__}: {text}", BAD_INPUT)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ternary-ops", description="Compress neural networks to ternary weights and run them."
    )
    parser.add_argument("--version", action="version", version=f"ternary-ops {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in _COMMANDS:
        name = module.__name__.rpartition(".")[2]
        summary, _, rest = (module.__doc__ or "").partition("\n")
        command = commands.add_parser(
            name,
            help=summary.rstrip("."),
            description=f"{summary}\n{rest}".strip(),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_argument("--json", action="store_true", help="print JSON, for scripts")
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser


def _complain(text: str, code: int) -> int:
    print(f"ternary-ops: {text}", file=sys.stderr)
    return code
