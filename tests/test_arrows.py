# SPDX-License-Identifier: Apache-2.0
"""Imports between rooms of the package run one way, and files of a room do not import in circles.

Every import counts: at the top, inside functions, under TYPE_CHECKING, by importlib, and the lazy
tables of an `__init__` (`_HOME`). The order is the table "Rooms" of docs/architecture.md, lowest
first. `_moved` alone names what lies above it: it forwards old names and uses none.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import ternary_ops

PACKAGE = Path(ternary_ops.__file__).parent
PAGE = Path(__file__).resolve().parent.parent / "docs" / "architecture.md"
ROOT = "ternary_ops"


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name; a package by its own."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = [ROOT, *path.relative_to(PACKAGE).with_suffix("").parts]
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    for path in sorted((PAGE.parent.parent / "kernels").glob("*.py")):  # elsewhere in a checkout
        found.setdefault(f"{ROOT}.kernels.{path.stem}", path)
    return found


MODULES = modules()


def resolve(name: str) -> str | None:
    """The module that a dotted name is, or is an attribute of."""
    if name == f"{ROOT}._core":
        return None  # the native module
    while name and name not in MODULES:
        name = name.rpartition(".")[0]
    return name if name.startswith(f"{ROOT}.") else ROOT if name == ROOT else None


def targets(tree: ast.AST, module: str, path: Path) -> Iterator[str]:
    """Dotted names that a file imports, in whatever way."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "import_module":
            yield from dynamic(node.args[0], package)


def dynamic(argument: ast.expr, package: str) -> Iterator[str]:
    """What importlib.import_module is asked for, as far as the text says it."""
    if isinstance(argument, ast.Constant):
        yield str(argument.value)
    elif isinstance(argument, ast.JoinedStr):
        start = argument.values[0]
        if isinstance(start, ast.Constant):
            yield str(start.value).rstrip(".")


def lazy(tree: ast.Module, module: str) -> Iterator[str]:
    """Modules of the tables by which an `__init__` loads its names at first use."""
    for node in tree.body:
        if not isinstance(node, (ast.Assign, ast.AnnAssign)):
            continue
        names = node.targets if isinstance(node, ast.Assign) else [node.target]
        if {getattr(name, "id", "") for name in names} & {"_HOME", "_OPS", "_MODULES"}:
            for value in ast.walk(node):
                if isinstance(value, ast.Constant) and isinstance(value.value, str):
                    yield f"{module}.{value.value}"


def room(module: str) -> str:
    """The folder of a module inside the package, or the module where it stands beside them."""
    return module.split(".")[1] if "." in module else ROOT


def imports() -> dict[str, set[str]]:
    """Every module and those that it imports."""
    found = {}
    for module, path in MODULES.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = (
            [] if room(module) == "_moved" else [*targets(tree, module, path), *lazy(tree, module)]
        )
        made = {resolve(name) for name in names} - {None, module}
        found[module] = {name for name in made if name is not None}
    return found


IMPORTS = imports()


def order() -> list[str]:
    """Rooms as docs/architecture.md lists them, lowest first."""
    text = PAGE.read_text(encoding="utf-8").split("## Rooms", 1)[1].split("\n## ", 1)[0]
    return [
        name
        for row in re.findall(r"^\| (.+?) \|", text, re.M)
        for name in re.findall(r"`(\w+)`", row)
    ]


def test_the_table_names_every_room_once() -> None:
    rows = order()
    assert len(rows) == len(set(rows)) >= 14
    assert set(rows) == {room(module) for module in MODULES}


def test_arrows_run_down() -> None:
    level = {name: i for i, name in enumerate(order())}
    wrong = [
        f"{module} -> {target}"
        for module, found in IMPORTS.items()
        for target in found
        if level[room(target)] > level[room(module)]
    ]
    assert not wrong, "imports from below: " + ", ".join(sorted(wrong))


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Strongly connected components of more than one node (Tarjan's algorithm)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for target in graph[node]:
            if target not in index:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], index[target])
        if low[node] == index[node]:
            circle = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(circle) > 1:
                found.append(sorted(circle))

    for node in graph:
        if node not in index:
            visit(node)
    return found


def test_no_files_import_in_a_circle() -> None:
    assert circles(IMPORTS) == []


def test_rooms_below_torch_never_import_it() -> None:
    below = {"layout", "io", "reference", "program", "runtime", "monitor", "_native", "_atomic"}
    below |= {"table"}
    for module, path in MODULES.items():
        if room(module) in below:
            names = targets(ast.parse(path.read_text(encoding="utf-8")), module, path)
            assert not [name for name in names if name.split(".")[0] == "torch"], module


@pytest.mark.parametrize("circle", [True, False])
def test_the_finder_of_circles_finds_them(circle: bool) -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a"} if circle else set(), "d": {"a"}}
    assert circles(graph) == ([["a", "b", "c"]] if circle else [])
