# SPDX-License-Identifier: Apache-2.0
"""docs/methods/index.md lists every method: a registered name that is missing there fails."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
from checkout import ROOT

PAGE = ROOT / "docs" / "methods" / "index.md"
# A process of its own: other tests register names.
SCRIPT = """
import importlib, json, pkgutil
import ternary_ops.prune as prune
from ternary_ops.nn import ternarize
from ternary_ops.prune.registry import Registry
found = {"ternarizers": sorted(ternarize._REGISTRY)}
for info in pkgutil.walk_packages(prune.__path__, "ternary_ops.prune."):
    module = importlib.import_module(info.name)
    for name, value in vars(module).items():
        if isinstance(value, Registry):
            found[name] = sorted(value)
print(json.dumps({"registries": found, "public": prune.__all__}))
"""
# Where each registry's names stand; in a table unless the text names them.
SECTIONS = {
    "CRITERIA": "Criteria",
    "PENALTIES": "Penalties",
    "GATES": "Gates",
    "GROWTHS": "Growth",
    "SCHEDULES": "Schedules",
    "ALLOCATIONS": "Allocation",
    "FILTER_SCORES": "Filters",
    "HEADS": "Filters",
    "ternarizers": "Ternary codes",
}
# Public names that are no method: what methods are made of, take or return.
PARTS = {
    *("FilterGroup", "FilterGroups", "Gate", "Growth", "Penalty", "Place", "Removal", "Schedule"),
    *("Score", "SummaryRow", "get_schedule", "load_network", "save_network"),
}


@pytest.fixture(scope="module")
def package() -> dict[str, dict[str, list[str]]]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, check=True, text=True
    )
    return json.loads(done.stdout)


def sections() -> dict[str, str]:
    parts = re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.M)
    return {part.partition("\n")[0].partition(":")[0]: part for part in parts[1:]}


def rows(section: str) -> list[list[str]]:
    lines = [line for line in section.splitlines() if line.startswith("| ") and "`" in line[:60]]
    return [[c.strip() for c in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def test_every_registered_method_has_a_row_and_every_row_a_method(
    package: dict[str, dict[str, list[str]]],
) -> None:
    found = sections()
    registries = package["registries"]
    assert set(registries) == set(SECTIONS), "say in SECTIONS where the names of a registry stand"
    for name, methods in registries.items():
        title = next(t for t in found if t.startswith(SECTIONS[name]))
        listed = {n for row in rows(found[title]) for n in re.findall(r"`([^`]+)`", row[0])}
        if name == "HEADS":
            listed = set(re.findall(r"`([^`]+)`", found[title]))
            assert set(methods) <= listed
            continue
        assert set(methods) == listed, f"{name}, docs/methods/index.md, {title}"


def test_every_public_name_is_on_the_page(package: dict[str, dict[str, list[str]]]) -> None:
    text = PAGE.read_text(encoding="utf-8").casefold()
    public = [n for n in package["public"] if not n.startswith("register_") and n not in PARTS]
    missing = [name for name in public if f"`{name.casefold()}`" not in text]
    assert not [name for name in missing if f"prune.{name.casefold()}" not in text]


def test_rows_are_whole_and_links_lead_somewhere() -> None:
    for title, section in sections().items():
        for row in rows(section):
            assert len(row) == 5, (title, row)
            assert all(row[i] for i in (0, 1, 3, 4)), (title, row)
    for target in re.findall(r"\]\(([^)]+)\)", PAGE.read_text(encoding="utf-8")):
        file, _, anchor = target.partition("#")
        text = (PAGE.parent / file).read_text(encoding="utf-8")
        titles = [
            re.sub(r"[^\w -]", "", t).strip().lower() for t in re.findall(r"^#+ (.*)$", text, re.M)
        ]
        assert not anchor or anchor in [t.replace(" ", "-") for t in titles], target
