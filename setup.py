# SPDX-License-Identifier: Apache-2.0
"""Builds the native module ternary_ops._core from csrc/ and puts kernels/ inside the package.

All metadata is in pyproject.toml. Needs setuptools, pybind11 and ninja, no torch and no network.
"""

from __future__ import annotations

import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "csrc"))

import native_build  # noqa: E402  (csrc/ is on the path only now)


class BuildNative(build_ext):
    """Hands the one extension to ninja."""

    def build_extension(self, ext: Extension) -> None:
        """Build into the place setuptools asks for."""
        native_build.build_module(Path(self.get_ext_fullpath(ext.name)).resolve())


class BuildPython(build_py):
    """Adds kernels/*.py as ternary_ops/kernels/*.py.

    `package_dir` could map the folder, but not for an editable install, where
    ternary_ops/kernels.py finds it.
    """

    def run(self) -> None:
        """Copy the package, then the kernels."""
        super().run()
        if not self.editable_mode:
            for source, target in self._kernels():
                self.mkpath(str(target.parent))
                self.copy_file(str(source), str(target))

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        """What run() writes."""
        return [
            *super().get_outputs(include_bytecode),
            *(str(target) for _, target in self._kernels()),
        ]

    def _kernels(self) -> list[tuple[Path, Path]]:
        folder = Path(self.build_lib) / "ternary_ops" / "kernels"
        return [
            (source, folder / source.name) for source in sorted((ROOT / "kernels").glob("*.py"))
        ]


setup(
    packages=find_packages(include=["ternary_ops", "ternary_ops.*"]),
    ext_modules=[Extension("ternary_ops._core", sources=["csrc/bind/module.cpp"])],
    cmdclass={"build_ext": BuildNative, "build_py": BuildPython},
)
