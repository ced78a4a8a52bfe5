# SPDX-License-Identifier: Apache-2.0
"""Optional dependencies: any two extras install together, and nothing that is there is taken back.

`tests/resolve_extras.py` asks pip itself, with the registry; here requirements are compared.
"""

from __future__ import annotations

import functools
import itertools
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib import metadata

import pytest
from checkout import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from ternary_ops import errors
from ternary_ops.cli.info import EXTRAS as IMPORTS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
PAIRS = sorted(itertools.combinations(EXTRAS, 2))

# What the wheels of PyPI ask for on Linux; the CPU builds of PyTorch ask for no Triton.
TRITON = {
    "2.10.0": "==3.6.0",
    "2.11.0": "==3.6.0",
    "2.12.0": "==3.7.0",
    "2.12.1": "==3.7.1",
    "2.13.0": "==3.7.1",
    "2.14.0": "~=3.8.0",
    "2.14.1": "~=3.8.0",
    "2.15.0": "~=3.9.0",
}


def declared(extra: str) -> Iterator[Requirement]:
    """Requirements of an extra that hold here, those of extras it names included."""
    for text in [*PROJECT["dependencies"], *EXTRAS[extra]]:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate():
            continue
        if requirement.name == PROJECT["name"]:
            for other in requirement.extras:
                yield from declared(other)
        else:
            yield requirement


def taken_back(extras: tuple[str, ...], there: Mapping[str, str]) -> list[str]:
    """Requirements that would make pip replace a release that is `there`."""
    return [
        f"{requirement} beside {there[name]}"
        for extra in extras
        for requirement in declared(extra)
        if (name := canonicalize_name(requirement.name)) in there
        and not requirement.specifier.contains(there[name], prereleases=True)
    ]


def test_no_extra_has_an_upper_bound() -> None:
    for extra in EXTRAS:
        for requirement in declared(extra):
            assert {one.operator for one in requirement.specifier} <= {">="}, requirement


@pytest.mark.parametrize("torch", TRITON)
def test_pairs_of_extras_leave_torch_and_its_triton_alone(torch: str) -> None:
    triton = TRITON[torch].lstrip("~=")
    for pair in PAIRS:
        assert not taken_back(pair, {"torch": torch, "triton": triton}), pair
    assert taken_back(("gpu",), {"torch": "2.9.1", "triton": "3.5.1"})


@functools.cache
def installed(name: str) -> tuple[str, list[Requirement]] | None:
    """Version and requirements of an installed package."""
    try:
        found = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return None
    wanted = map(Requirement, found.requires or [])
    return found.version, [r for r in wanted if not r.marker or r.marker.evaluate({"extra": ""})]


def test_pairs_of_extras_agree_with_all_that_is_installed() -> None:
    """Every installed package that an extra leads to, by whatever way, is in a release it takes."""
    for pair in PAIRS:
        queue = [one for extra in pair for one in declared(extra)]
        seen: set[str] = set()
        while queue:
            requirement = queue.pop()
            name = canonicalize_name(requirement.name)
            found = installed(name)
            if found is None:
                continue  # pip would add it
            assert requirement.specifier.contains(found[0], prereleases=True), requirement
            if name not in seen:
                seen.add(name)
                queue += found[1]
        assert "numpy" in seen


def test_the_oldest_torch_is_the_one_that_extras_ask_for() -> None:
    bounds = [r for extra in EXTRAS for r in declared(extra) if r.name in errors.OLDEST]
    assert len(bounds) >= 3  # train, sr, gpu
    for requirement in bounds:
        assert str(requirement.specifier) == f">={errors.OLDEST[requirement.name]}"


def test_info_looks_for_what_extras_install() -> None:
    names = {"sklearn": "scikit-learn", "pil": "pillow"}
    for extra, modules in IMPORTS.items():
        wanted = {canonicalize_name(r.name) for r in declared(extra)}
        assert {names.get(module.lower(), module.lower()) for module in modules} <= wanted, extra


def test_the_page_names_the_releases_that_were_tested_and_no_other() -> None:
    """A row for each log of `.ci/torch`, with its versions, and one for that of `.ci/run`."""
    page = (ROOT / "docs" / "getting-started.md").read_text(encoding="utf-8")
    rows = (
        page.partition("### Releases of PyTorch")[2].partition("##")[0].split("|---|---|---|\n")[1]
    )
    named = [
        [cell.strip() for cell in row.strip("|").split("|")] for row in rows.split("\n") if row
    ]
    expected = []
    for log in sorted((ROOT / "bench" / "results").glob("torch-*.txt")):
        text = log.read_text(encoding="utf-8")
        assert text.rstrip().endswith("steps that failed: none"), log
        found = dict(re.findall(r"(?<= )(torch|torchvision|timm|triton) (\S+)", text))
        release = found.pop("torch")
        assert log.name == f"torch-{release.partition('+')[0]}.txt"
        beside = ", ".join(f"{name} {version}" for name, version in sorted(found.items()))
        expected.append([release, beside, f"`bench/results/{log.name}`"])
    pins = (ROOT / ".ci" / "constraints.txt").read_text(encoding="utf-8")
    fixed = dict(re.findall(r"^(\w+)==(\S+)", pins, re.MULTILINE))
    assert [
        f"{fixed['torch']}, CPU",
        f"triton {fixed['triton']}",
        "`.ci/run`, at every change",
    ] in named
    assert sorted(named) == sorted([*expected, named[0]])


@pytest.mark.parametrize("use", ["tops.compile", "tops.TernaryConfig", "ops.linear", "nn.Any"])
def test_a_torch_that_is_too_old_is_named_and_the_runtime_works(use: str) -> None:
    code = f"""
import sys, types
sys.modules["torch"] = types.ModuleType("torch")
sys.modules["torch"].__version__ = "2.9.1+cu128"
import ternary_ops as tops
from ternary_ops import runtime
assert runtime.isa() in runtime.available_isas()
try:
    {use if use.startswith("tops") else "tops." + use}
except tops.errors.MissingExtra as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "expected torch 2.10 or newer" in done.stdout and "got torch 2.9.1+cu128" in done.stdout
    assert "pip install" in done.stdout


@pytest.mark.parametrize(
    "version, numbers", [("2.13.0+cpu", (2, 13)), ("2.10.0a0+git1", (2, 10)), ("3", (3,))]
)
def test_release_of_a_version(version: str, numbers: tuple[int, ...]) -> None:
    assert errors.release(version) == numbers
