# SPDX-License-Identifier: Apache-2.0
"""Hooks of mkdocs.yml: a reference page for every public package, and files beside docs/.

Pages link to files of the repository as GitHub shows them (`../CONTRIBUTING.md`); the site has
copies of those under repository/.
"""

from __future__ import annotations

import re
from pathlib import Path
from posixpath import relpath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
LINK = re.compile(r"(\]\()([^)\s#]+)(#[^)\s]*)?(\))")
# Public packages, as `tops.NAME`, in the order of a network's way through them.
PACKAGES = (
    *("ternary_ops", "ternary_ops.quantize", "ternary_ops.prune", "ternary_ops.budget"),
    *("ternary_ops.nn", "ternary_ops.runtime", "ternary_ops.interchange", "ternary_ops.sr"),
    *("ternary_ops.models", "ternary_ops.ops", "ternary_ops.reference", "ternary_ops.io"),
    *("ternary_ops.gpu", "ternary_ops.errors"),
)


def outside(target: str, page: str) -> Path | None:
    """The file beside docs/ that a link of a page leads to; None for any other link."""
    if "://" in target:
        return None
    file = (DOCS / page).parent.joinpath(target).resolve()
    inside = file.is_relative_to(DOCS) or not file.is_relative_to(ROOT)
    return None if inside or not file.is_file() else file.relative_to(ROOT)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the reference pages to the navigation."""
    config.nav.append({"Reference": [{name: f"api/{name}.md"} for name in PACKAGES]})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add reference pages, and what pages link to beside docs/, pages of those included."""
    for name in PACKAGES:
        text = f"# {name}\n\n::: {name}\n"
        files.append(File.generated(config, f"api/{name}.md", content=text))
    waiting = [(DOCS / page.src_uri, page.src_uri) for page in files.documentation_pages()]
    seen: set[Path] = set()
    while waiting:
        path, uri = waiting.pop()
        if not path.is_file():
            continue  # a reference page
        for _, target, _, _ in LINK.findall(path.read_text(encoding="utf-8")):
            found = outside(target, uri)
            if found is None or found in seen:
                continue
            seen.add(found)
            name = f"repository/{found.as_posix()}"
            files.append(File.generated(config, name, abs_src_path=str(ROOT / found)))
            if found.suffix == ".md":
                waiting.append((ROOT / found, relpath(found.as_posix(), "docs")))
    return files


def on_page_markdown(markdown: str, page: object, config: MkDocsConfig, files: Files) -> str:
    """Lead links to files beside docs/ to their copies."""
    uri: str = page.file.src_uri  # type: ignore[attr-defined]
    here = uri.removeprefix("repository/")
    source = uri if here == uri else relpath(here, "docs")

    def moved(match: re.Match[str]) -> str:
        found = outside(match[2], source)
        if found is None:
            return match[0] if here == uri else _back(match, source, uri)
        to = relpath(f"repository/{found.as_posix()}", str(Path(uri).parent))
        return f"{match[1]}{to}{match[3] or ''}{match[4]}"

    return LINK.sub(moved, markdown)


def _back(match: re.Match[str], source: str, uri: str) -> str:
    """A link from a copy to a page of docs/."""
    if "://" in match[2]:
        return match[0]
    file = (DOCS / source).parent.joinpath(match[2]).resolve()
    to = relpath(file.relative_to(DOCS).as_posix(), str(Path(uri).parent))
    return f"{match[1]}{to}{match[3] or ''}{match[4]}"
