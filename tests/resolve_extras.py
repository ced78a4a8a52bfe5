# SPDX-License-Identifier: Apache-2.0
"""Asks pip for every pair of extras: does it resolve here, and does it replace what is installed?

    python tests/resolve_extras.py                  # all pairs, with the registry; minutes
    python tests/resolve_extras.py --only gpu       # the pairs of one extra

Installs nothing. An extra that lacks nothing here changes nothing that pip would do, so that pip is
asked once for each set of those that lack something. `.ci/torch` runs it beside the releases that
it installed; tests/test_extras.py compares the requirements alone.
"""

from __future__ import annotations

import argparse
import email.message
import functools
import itertools
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
NAME = "ternary-ops"
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "-qq")


def wheel(folder: str) -> Path:
    """The package as a wheel, built once."""
    command = [*PIP, "wheel", "--no-deps", "--no-build-isolation", "-w", folder, str(ROOT)]
    subprocess.run(command, check=True)
    return next(Path(folder).glob("*.whl"))


@functools.cache
def about(package: Path) -> email.message.Message:
    """The metadata of a wheel."""
    with zipfile.ZipFile(package) as files:
        name = next(name for name in files.namelist() if name.endswith(".dist-info/METADATA"))
        return email.message_from_bytes(files.read(name))


def lacks_something(package: Path, extra: str) -> bool:
    """Is anything that an extra leads to absent here, or in a release that is not wanted?"""
    queue, seen = [Requirement(f"{NAME}[{extra}]")], set()
    while queue:
        wanted = queue.pop()
        if wanted.name == NAME:
            requires = about(package).get_all("Requires-Dist", [])
        else:
            try:
                found = metadata.distribution(wanted.name)
            except metadata.PackageNotFoundError:
                return True
            if not wanted.specifier.contains(found.version, prereleases=True):
                return True
            requires = found.requires or []
        for one in ("", *wanted.extras):
            if (wanted.name, one) not in seen:
                seen.add((wanted.name, one))
                rows = map(Requirement, requires)
                queue += [r for r in rows if not r.marker or r.marker.evaluate({"extra": one})]
    return False


@functools.cache
def changes(package: Path, extras: tuple[str, ...]) -> tuple[dict[str, str], str]:
    """Name to version of what pip would install, the package aside; or its complaint."""
    if not extras:
        return {}, ""
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
        extras = about(package).get_all("Provides-Extra", [])
        lacking = [extra for extra in extras if lacks_something(package, extra)]
        for pair in itertools.combinations(extras, 2):
            if options.only not in (None, *pair):
                continue
            would, complaint = changes(package, tuple(one for one in pair if one in lacking))
            taken = replaced(would)
            count, failed = count + 1, failed + bool(complaint or taken)
            verdict = complaint or "; ".join(taken) or f"adds {len(would)}, replaces nothing"
            print(f"{'+'.join(pair):18s} {verdict}", flush=True)
    print(f"pairs of extras: {count - failed} passed, {failed} failed")
    return 1 if failed or not count else 0


if __name__ == "__main__":
    sys.exit(main())
