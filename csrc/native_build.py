# SPDX-License-Identifier: Apache-2.0
"""Compiles csrc/ with ninja: the Python module (setup.py), the test programs (tests/cpp/build.py).

Every source is compiled with the same flags: the instruction sets are chosen by target pragmas
inside the translation units. Only csrc/bind sees Python's and pybind11's headers, so that a new
build environment recompiles that folder alone; it is one translation unit. Objects stay under
build/native-<flavor>.

Environment: CXX (or CC), CXXFLAGS, LDFLAGS; TERNARY_OPS_DEBUG=1 for -O0 -g;
TERNARY_OPS_SANITIZE=address,undefined (or thread); TERNARY_OPS_EMULATE=1 to run the AVX-512 kernels
on any machine with AVX2, slowly, through SIMDe's headers (Debian: libsimde-dev).
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "csrc"


def version() -> str:
    """The package's version, from ternary_ops/_version.py without importing the package."""
    scope: dict[str, str] = {}
    exec((ROOT / "ternary_ops" / "_version.py").read_text(encoding="utf-8"), scope)
    return scope["__version__"]


def compiler() -> list[str]:
    """The C++ compiler: $CXX, or the C++ sibling of $CC, or the first of g++, clang++, c++."""
    if os.environ.get("CXX"):
        return shlex.split(os.environ["CXX"])
    if os.environ.get("CC"):
        path, *arguments = shlex.split(os.environ["CC"])
        folder, name = os.path.split(path)
        sibling = name.replace("clang", "clang++").replace("gcc", "g++")
        return [os.path.join(folder, sibling if sibling != name else "c++"), *arguments]
    for name in ("g++", "clang++", "c++"):
        if shutil.which(name):
            return [name]
    raise SystemExit(
        "ternary-ops needs a C++17 compiler (GCC >= 11 or Clang >= 14); install g++ or set CXX"
    )


@dataclass(frozen=True)
class Flavor:
    """One way to compile: release, debug or sanitized; emulate: for tests, AVX-512 in plain C++.

    target: for tests, the machine of a cross compiler, as in aarch64-linux-gnu-g++.
    """

    debug: bool = False
    sanitize: str = ""
    emulate: bool = False
    target: str = ""

    @classmethod
    def from_environment(cls) -> Flavor:
        """What TERNARY_OPS_DEBUG, TERNARY_OPS_SANITIZE and TERNARY_OPS_EMULATE ask for."""
        debug, emulate = (
            os.environ.get(f"TERNARY_OPS_{name}", "") not in ("", "0")
            for name in ("DEBUG", "EMULATE")
        )
        return cls(debug, os.environ.get("TERNARY_OPS_SANITIZE", ""), emulate)

    @property
    def name(self) -> str:
        """A folder name: what differs between flavors."""
        parts = ["debug"] * self.debug + ["emulate"] * self.emulate
        parts += sorted(filter(None, [*self.sanitize.split(","), self.target]))
        return "-".join(parts) or "release"

    def compile_flags(self) -> list[str]:
        """Flags of every translation unit.

        No -march=native, no -ffast-math, no FMA contraction: results must not depend on the machine
        that compiled (docs/architecture.md, Integer semantics).
        """
        flags = [
            "-std=c++17",
            "-fPIC",
            "-pthread",
            "-fvisibility=hidden",
            "-ffp-contract=off",
            "-fno-math-errno",
        ]
        flags += ["-Wall", "-Wextra", f"-I{SOURCES}", f'-DTOPS_VERSION="{version()}"']
        flags += ["-O0", "-g"] if self.debug else ["-O3", "-DNDEBUG"]
        if self.emulate:
            flags += ["-DTOPS_EMULATED", "-mavx2", "-mfma", "-mf16c"]
        if self.sanitize:
            flags += [
                f"-fsanitize={self.sanitize}",
                "-fno-sanitize-recover=all",
                "-fno-omit-frame-pointer",
                "-g",
                "-O1",
            ]
        return flags + shlex.split(os.environ.get("CXXFLAGS", ""))

    def binding_flags(self) -> list[str]:
        """Flags of csrc/bind beside those of all: it runs once a call, and optimizing pybind11's
        templates would take a tenth of the build.
        """
        return [] if self.debug else ["-O1"]

    def link_flags(self) -> list[str]:
        """Flags of every link."""
        flags = ["-pthread"]
        if self.sanitize:
            flags.append(f"-fsanitize={self.sanitize}")
        return flags + shlex.split(os.environ.get("LDFLAGS", ""))


@dataclass
class NinjaFile:
    """The build graph of one flavor."""

    flavor: Flavor
    lines: list[str] = field(default_factory=list)
    folder: Path = field(init=False)
    cxx: str = field(init=False)  # the compiler's command

    def __post_init__(self) -> None:
        """Write the rules."""
        self.folder = ROOT / "build" / f"native-{self.flavor.name}"
        target = self.flavor.target
        self.cxx = shlex.join([f"{target}-g++"] if target else compiler())
        self.lines += [
            "rule compile",
            f"  command = {_escape(self.cxx)} -MMD -MF $out.d $flags -c $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
            "  description = compile $in",
            "rule link",
            f"  command = {_escape(self.cxx)} $in -o $out $flags",
            "  description = link $out",
        ]

    def compile(self, source: Path, extra: Sequence[str] = (), tag: str = "") -> Path:
        """Add one object file; `tag` keeps objects of different `extra` apart."""
        out = self.folder / tag / source.relative_to(ROOT).with_suffix(".o")
        if self.flavor.emulate and "avx512" in source.stem:
            extra = [*extra, f"-I{ROOT / 'tests' / 'cpp' / 'emulated'}", "-O1"]
        self._edge("compile", out, [source], [*self.flavor.compile_flags(), *extra])
        return out

    def link(self, out: Path, objects: Sequence[Path], extra: Sequence[str] = ()) -> Path:
        """Add one linked file."""
        self._edge("link", out, objects, [*self.flavor.link_flags(), *extra])
        return out

    def _edge(self, rule: str, out: Path, inputs: Sequence[Path], flags: Sequence[str]) -> None:
        paths = " ".join(_path(p) for p in inputs)
        self.lines += [
            f"build {_path(out)}: {rule} {paths}",
            f"  flags = {_escape(shlex.join(flags))}",
        ]

    def run(self, targets: Sequence[Path]) -> None:
        """Build `targets`, in parallel; what is up to date stays."""
        import ninja

        self.folder.mkdir(parents=True, exist_ok=True)
        with _exclusive(self.folder / "lock"):
            file = self.folder / "build.ninja"
            file.write_text("\n".join(self.lines) + "\n", encoding="utf-8")
            ninja_path, jobs = os.path.join(ninja.BIN_DIR, "ninja"), _processors()
            count = sum(": compile " in line for line in self.lines)
            print(f"compiling what changed of {count} files: {self.cxx}, {jobs} jobs", flush=True)
            command = [ninja_path, "-j", str(jobs), "-f", str(file), *map(str, targets)]
            if subprocess.call(command, cwd=self.folder) != 0:
                raise SystemExit("compiling csrc/ failed; the compiler's messages are above")


def build_module(out: Path) -> None:
    """Build ternary_ops._core for the running Python and put it at `out`."""
    import pybind11

    ninja_file = NinjaFile(Flavor.from_environment())
    tag = sysconfig.get_config_var("EXT_SUFFIX").strip(".")
    includes = {
        sysconfig.get_path("include"),
        sysconfig.get_path("platinclude"),
        pybind11.get_include(),
    }
    flags = [f"-I{path}" for path in sorted(includes)] + ninja_file.flavor.binding_flags()
    objects = [ninja_file.compile(source) for source in _library_sources()]
    objects.append(ninja_file.compile(_binding_unit(ninja_file.folder), flags, tag))
    shared = (
        ["-shared"] if sys.platform != "darwin" else ["-bundle", "-undefined", "dynamic_lookup"]
    )
    module = ninja_file.link(ninja_file.folder / f"_core.{tag}", objects, shared)
    ninja_file.run([module])
    # Replaced, not overwritten: a process that has the old module mapped must not see it change.
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f"{out.name}.{os.getpid()}.tmp")
    shutil.copy2(module, temporary)
    os.replace(temporary, out)


def build_tests(flavor: Flavor) -> list[Path]:
    """Build every tests/cpp/*.cpp, each with its own main, against csrc/ without csrc/bind."""
    ninja_file = NinjaFile(flavor)
    library = [ninja_file.compile(source) for source in _library_sources()]
    programs = []
    for source in sorted((ROOT / "tests" / "cpp").glob("*.cpp")):
        objects = [ninja_file.compile(source), *library]
        programs.append(ninja_file.link(ninja_file.folder / "bin" / source.stem, objects))
    ninja_file.run(programs)
    return programs


def _library_sources() -> list[Path]:
    return [path for path in sorted(SOURCES.rglob("*.cpp")) if path.parent != SOURCES / "bind"]


def _binding_unit(folder: Path) -> Path:
    # One unit: pybind11's headers and templates take many times as long as what they bind.
    sources = sorted((SOURCES / "bind").glob("*.cpp"))
    unit, text = folder / "bind.cpp", "".join(f'#include "bind/{s.name}"\n' for s in sources)
    folder.mkdir(parents=True, exist_ok=True)
    if not unit.exists() or unit.read_text(encoding="utf-8") != text:
        unit.write_text(text, encoding="utf-8")
    return unit


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _escape(text: str) -> str:
    return text.replace("$", "$$")


def _path(path: Path) -> str:
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


@contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    # Two builds at once (an editable install beside a test run) would write the same objects.
    import fcntl

    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
