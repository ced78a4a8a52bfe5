# SPDX-License-Identifier: Apache-2.0
"""Check every kernel of this machine against its NumPy reference, in under 30 seconds.

Integer results must be equal bit for bit on every instruction set and for 1 and 3 threads; float
results must lie within the stated bound. Exit code 1 when one does not.

example: ternary-ops verify --isa scalar
"""

from __future__ import annotations

import argparse
import json
import time

from ternary_ops.table import Table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments: instruction sets and the random seed."""
    parser.add_argument("--isa", help="only this instruction set (default: all there are)")
    parser.add_argument("--seed", type=int, default=0, help="of the random problems (default 0)")


def run(arguments: argparse.Namespace) -> int:
    """Print one row per kernel and instruction set; 0 when all agree, otherwise 1."""
    from ternary_ops import runtime, selftest

    names = [arguments.isa] if arguments.isa else runtime.available_isas()
    start = time.perf_counter()
    checks = [check for name in names for check in selftest.run(name, arguments.seed)]
    seconds = time.perf_counter() - start
    failed = sum(not check.passed for check in checks)
    if arguments.json:
        found = [check.__dict__ for check in checks]
        print(json.dumps({"passed": not failed, "seconds": seconds, "checks": found}, indent=2))
        return int(failed > 0)
    rows = [
        (check.kernel, check.isa, str(check.problems), check.worst or "equal", _word(check.passed))
        for check in checks
    ]
    Table(("kernel", "isa", "problems", "difference", "result"), rows).show()
    print(f"\n{len(checks) - failed} passed, {failed} failed in {seconds:.1f} s")
    return int(failed > 0)


def _word(passed: bool) -> str:
    return "ok" if passed else "FAILED"
