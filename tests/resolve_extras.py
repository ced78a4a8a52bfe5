# SPDX-License-Identifier: Apache-2.0
"""Asks pip for every pair of extras: does it resolve here, and does it replace what is installed?

    python tests/resolve_extras.py                  # all pairs, with the registry; minutes
    python tests/resolve_extras.py --only gpu       # the pairs of one extra

Installs nothing. `.ci/torch` runs it beside the releases that it installed; tests/test_extras.py
compares the requirements alone.
"""

from __future__ import annotations

import argparse
import email
import itertools
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NAME = "ternary-ops"
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "-qq")


def wheel(folder: str) -> Path:
    """The package as a wheel, built once."""
    command = [*PIP, "wheel", "--no-deps", "--no-build-isolation", "-w", folder, str(ROOT)]
    subprocess.run(command, check=True)
    return next(Path(folder).glob("*.whl"))


def extras_of(package: Path) -> list[str]:
    """Names of the extras that a wheel declares."""
    with zipfile.ZipFile(package) as files:
        about = next(name for name in files.namelist() if name.endswith(".dist-info/METADATA"))
        return email.message_from_bytes(files.read(about)).get_all("Provides-Extra", [])


def changes(package: Path, extras: tuple[str, ...]) -> tuple[dict[str, str], str]:
    """Name to version of what pip would install, the package aside; or its complaint."""
    with tempfile.NamedTemporaryFile(suffix=".json") as report:
        wanted = f"{NAME}[{','.join(extras)}] @ {package.as_uri()}"
        command = [*PIP, "install", "--dry-run", "--report", report.name, wanted]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            return {}, (done.stderr.strip().splitlines() or ["pip failed"])[-1]
        found = [one["metadata"] for one in json.load(report)["install"]]
    return {one["name"].lower(): one["version"] for one in found if one["name"] != NAME}, ""


def replaced(would: Mapping[str, str]) -> list[str]:
    """Those that are installed already, in another release."""
    there = {one.metadata["Name"].lower(): one.version for one in metadata.distributions()}
    return [f"{n} {there[n]} -> {would[n]}" for n in sorted(would.keys() & there.keys())]


def main() -> int:
    """A line for each pair; 1 where one does not resolve, or replaces something."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", help="the pairs of this extra")
    options = parser.parse_args()
    failed = count = 0
    with tempfile.TemporaryDirectory() as folder:
        package = wheel(folder)
        for pair in itertools.combinations(extras_of(package), 2):
            if options.only not in (None, *pair):
                continue
            would, complaint = changes(package, pair)
            taken = replaced(would)
            count, failed = count + 1, failed + bool(complaint or taken)
            verdict = complaint or "; ".join(taken) or f"adds {len(would)}, replaces nothing"
            print(f"{'+'.join(pair):18s} {verdict}", flush=True)
    print(f"pairs of extras: {count - failed} passed, {failed} failed")
    return 1 if failed or not count else 0


if __name__ == "__main__":
    sys.exit(main())
