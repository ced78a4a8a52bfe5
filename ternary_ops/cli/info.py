# SPDX-License-Identifier: Apache-2.0
"""Show versions, the instruction set chosen and why, threads, devices and extras.

example: ternary-ops info
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
from importlib import metadata
from typing import Any

from ternary_ops._version import __version__
from ternary_ops.errors import OLDEST, release
from ternary_ops.table import Table

# What each extra must be able to import.
EXTRAS = {
    "train": ("torch", "sklearn", "matplotlib", "rich"),
    "image": ("PIL",),
    "sr": ("torch", "PIL"),
    "climate": ("xarray", "dask", "netCDF4", "zarr", "pint"),
    "gpu": ("torch", "triton"),
    "onnx": ("onnx",),
    "bench": ("openvino", "onnxruntime", "onnx"),
}
# What each does is said where it is read; this list only shows which are set.
VARIABLES = (
    "TERNARY_OPS_ISA",
    "TERNARY_OPS_NUM_THREADS",
    "TERNARY_OPS_DEBUG",
    "TERNARY_OPS_SANITIZE",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """No argument of its own."""


def run(arguments: argparse.Namespace) -> int:
    """Print what was found; 0."""
    found = collect()
    if arguments.json:
        print(json.dumps(found, indent=2))
        return 0
    for title, key, columns in (
        ("Versions", "versions", ("package", "version")),
        ("Machine", "machine", ("what", "found")),
        ("Instruction sets", "isa", ("name", "state")),
        ("Extras", "extras", ("extra", "state")),
        ("Environment", "environment", ("variable", "value")),
    ):
        rows = [(name, str(value)) for name, value in found[key].items()]
        Table(columns, rows, title=title).show()
        print()
    return 0


def collect() -> dict[str, Any]:
    """Everything the command shows, as JSON-ready dicts of strings."""
    from ternary_ops import runtime
    from ternary_ops.program.cpu import processor

    found = runtime.info()
    states = {name: why or "available" for name, why in found["isa_report"].items()}
    states[found["isa"]] = "chosen: " + (
        "forced by TERNARY_OPS_ISA"
        if os.environ.get("TERNARY_OPS_ISA")
        else "the fastest this machine has"
    )
    return {
        "versions": {"ternary-ops": __version__, **_versions()},
        "machine": {
            "processor": processor(),
            "architecture": found["machine"],
            "cores": str(os.cpu_count()),
            "threads used": str(found["num_threads"]),
            "GPU": _gpu(),
        },
        "isa": states,
        "extras": {name: _extra(modules) for name, modules in EXTRAS.items()},
        "environment": {name: os.environ.get(name, "not set") for name in VARIABLES},
    }


def _versions() -> dict[str, str]:
    packages = ("numpy", "safetensors", "torch", "torchvision", "timm", "triton")
    return {"python": platform.python_version()} | {name: _version(name) for name in packages}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _gpu() -> str:
    if importlib.util.find_spec("torch") is None:
        return "unknown: needs torch"
    import torch

    if not torch.cuda.is_available():
        return "none"
    return ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))


def _extra(modules: tuple[str, ...]) -> str:
    absent = [name for name in modules if importlib.util.find_spec(name) is None]
    if absent:
        return f"missing: {', '.join(absent)}"
    aged = [name for name in OLDEST if name in modules and _old(name)]
    return "; ".join(f"{name} {OLDEST[name]} or newer is needed" for name in aged) or "installed"


def _old(package: str) -> bool:
    return release(_version(package)) < release(OLDEST[package])
