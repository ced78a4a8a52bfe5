# SPDX-License-Identifier: Apache-2.0
"""What an installation holds, and what importing it costs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from checkout import ROOT


def python(code: str, cwd: Path | None = None, path: Path | None = None) -> str:
    environment = {**os.environ, "PYTHONPATH": str(path)} if path else dict(os.environ)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of the checkout, built without torch: an import of it would fail."""
    folder = tmp_path_factory.mktemp("wheel")
    (folder / "torch.py").write_text("raise ImportError('the build imported torch')\n")
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q"]
        + ["-w", str(folder), str(ROOT)],
        check=True,
        env={**os.environ, "PYTHONPATH": str(folder)},
    )
    (found,) = folder.glob("*.whl")
    return found


def test_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {t for t in tops if not t.endswith(".dist-info")} == {"ternary_ops"}
    assert "ternary_ops/py.typed" in names
    assert sum(name.startswith("ternary_ops/_core.") for name in names) == 1
    for source in (ROOT / "ternary_ops").rglob("*.py"):
        assert str(source.relative_to(ROOT)) in names
    for kernel in (ROOT / "kernels").glob("*.py"):
        assert f"ternary_ops/kernels/{kernel.name}" in names


def test_wheel_runs_where_torch_is_absent(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = """
import sys
sys.modules["torch"] = None
import ternary_ops, ternary_ops.runtime as runtime
assert runtime.isa() in runtime.available_isas()
try:
    ternary_ops.TernaryConfig
except ternary_ops.errors.MissingExtra as error:
    assert "pip install" in str(error)
else:
    raise SystemExit("no MissingExtra")
print(ternary_ops.__file__)
"""
    assert python(code, cwd=tmp_path, path=tmp_path).startswith(str(tmp_path))


def test_sdist_holds_what_a_build_needs(tmp_path: Path) -> None:
    code = f"""
import os
os.chdir({str(ROOT)!r})
from setuptools import build_meta
print(build_meta.build_sdist({str(tmp_path)!r}))
"""
    name = python(code).splitlines()[-1]
    members = tarfile.open(tmp_path / name).getnames()
    inside = {member.partition("/")[2] for member in members}
    sources = [*(ROOT / "csrc").rglob("*.cpp"), *(ROOT / "csrc").rglob("*.h")]
    assert sources
    for source in [*sources, *(ROOT / "csrc").rglob("*.inl"), ROOT / "csrc" / "native_build.py"]:
        assert str(source.relative_to(ROOT)) in inside
    assert {"LICENSE", "README.md", "setup.py", "pyproject.toml"} <= inside


def test_import_loads_neither_torch_nor_numpy_and_is_quick() -> None:
    code = """
import json, sys, time
start = time.process_time()
import ternary_ops
bare = time.process_time() - start
heavy = [name for name in ("torch", "numpy") if name in sys.modules]
import ternary_ops.runtime
print(json.dumps({"bare": bare, "heavy": heavy, "torch": "torch" in sys.modules,
                  "runtime": time.process_time() - start}))
"""
    found = json.loads(python(code))
    print(f"import ternary_ops: {found['bare']:.3f} s, with runtime: {found['runtime']:.3f} s")
    assert found["heavy"] == [] and not found["torch"]
    assert found["bare"] < 0.3


def test_every_public_name_resolves() -> None:
    import ternary_ops

    for name in ternary_ops.__all__:
        assert getattr(ternary_ops, name) is not None
    assert callable(ternary_ops.report) and callable(ternary_ops.compile)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = ternary_ops.nonsense


def test_folder_kernels_hides_no_other_package(tmp_path: Path) -> None:
    """`kernels` is a package on PyPI; from a checkout, with it installed, it must still win."""
    other = tmp_path / "kernels"
    other.mkdir()
    (other / "__init__.py").write_text("who = 'the one from PyPI'\n")
    code = "import kernels; print(kernels.who)"
    assert python(code, cwd=ROOT, path=tmp_path) == "the one from PyPI"
    assert not (ROOT / "kernels" / "__init__.py").exists()


def test_kernels_are_found_from_any_directory(tmp_path: Path) -> None:
    code = "import ternary_ops.kernels as k; print(*k.__path__)"
    found = Path(python(code, cwd=tmp_path))
    assert found.name == "kernels"
    import ternary_ops

    package = Path(ternary_ops.__file__).parent
    assert found in (package / "kernels", package.parent / "kernels")


def test_version_is_written_once() -> None:
    from importlib.metadata import version

    import ternary_ops
    from ternary_ops._native import core

    assert ternary_ops.__version__ == version("ternary-ops") == core().version
