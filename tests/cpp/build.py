# SPDX-License-Identifier: Apache-2.0
"""Builds and runs the native test programs, tests/cpp/*.cpp: torch-free, Python only starts them.

python tests/cpp/build.py                                # release build
python tests/cpp/build.py --sanitize address,undefined   # or: thread
python tests/cpp/build.py --emulate                      # AVX-512 on any machine with AVX2
python tests/cpp/build.py --target aarch64-linux-gnu --under \\
    "qemu-aarch64 -L /usr/aarch64-linux-gnu"             # 64-bit ARM
python tests/cpp/build.py --under "qemu-x86_64 -cpu Nehalem"   # without AVX
python tests/cpp/build.py --only test_codec -- --seed 7  # arguments after -- go to the program
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "csrc"))

import native_build  # noqa: E402  (csrc/ is on the path only now)


def main() -> int:
    """Build all, run all (or --only), return 1 when one fails."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sanitize", default="", help="address,undefined or thread")
    parser.add_argument("--debug", action="store_true", help="-O0 -g")
    parser.add_argument("--emulate", action="store_true", help="needs SIMDe (libsimde-dev)")
    parser.add_argument("--target", default="", help="of a cross compiler: aarch64-linux-gnu")
    parser.add_argument("--under", default="", help="a command that runs the programs: qemu-...")
    parser.add_argument("--build-only", action="store_true")
    parser.add_argument("--only", help="the stem of one program")
    parser.add_argument("arguments", nargs="*", help="passed to the programs")
    options = parser.parse_args()
    programs = native_build.build_tests(
        native_build.Flavor(options.debug, options.sanitize, options.emulate, options.target)
    )
    chosen = [program for program in programs if options.only in (None, program.stem)]
    if not chosen:
        print(
            f"no native test named {options.only}; have {[p.stem for p in programs]}",
            file=sys.stderr,
        )
        return 2
    if options.build_only:
        print(*chosen, sep="\n")
        return 0
    # A test forks on purpose and starts threads in the child, which ThreadSanitizer would end.
    sanitizers = {"UBSAN_OPTIONS": "print_stacktrace=1", "TSAN_OPTIONS": "die_after_fork=0"}
    environment = {**sanitizers, **os.environ}
    under = shlex.split(options.under)
    failed = [
        p.stem
        for p in chosen
        if subprocess.call([*under, str(p), *options.arguments], env=environment) != 0
    ]
    print(f"native tests: {len(chosen) - len(failed)} passed, {len(failed)} failed", *failed)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
