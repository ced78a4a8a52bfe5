# SPDX-License-Identifier: Apache-2.0
"""Old names of modules, attributes, methods and arguments: they forward, with a DeprecationWarning.

`install` adds a finder, so that `import ternary_ops.engine.ir` and pickles that name such modules
still find them; packages ask `attribute` for a name that they no longer have; `renamed` is a method
or attribute of a class under its old name, `renamed_arguments` decorates a function.
"""

from __future__ import annotations

import functools
import importlib
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

MODULES = {
    "engine": "compiler",
    "checkpoint": "train.checkpoint",
    "engine.attention": "program.gate_programs",
    "engine.build": "program.native",
    "engine.ceiling": "program.peak",
    "engine.compiler": "compiler.pipeline",
    "engine.describe": "program.summary",
    "engine.files": "program.program_file",
    "engine.functional": "graph.functional_layers",
    "engine.grouping": "program.column_grouping",
    "engine.index": "program.serialize",
    "engine.ir": "program.graph",
    "engine.islands": "compiler.partition",
    "engine.layers": "compiler.read_layers",
    "engine.lower": "compiler.lower",
    "engine.match": "compiler.ops",
    "engine.match_values": "compiler.ops",
    "engine.node_facts": "compiler.call",
    "engine.permute": "program.permute",
    "engine.prepare": "compiler.prepare",
    "engine.rounding": "program.compact",
    "engine.rules": "program.attributes",
    "engine.shapes": "program.shapes",
    "engine.simulate": "program.interpret",
    "engine.steps": "compiler.step",
    "engine.tune": "program.autotune",
    "engine.weight": "program.weight",
    "gpu.card": "gpu.report",
    "gpu.machine_code": "gpu.binary",
    "gpu.record": "gpu.capture",
    "gpu.score": "gpu.perf_model",
    "gpu.targets": "gpu.devices",
    "interchange.facts": "interchange.import_constants",
    "interchange.layers": "interchange.export_layers",
    "interchange.library": "interchange.onnx_package",
    "interchange.loading": "interchange.importer",
    "interchange.operators": "interchange.import_ops",
    "interchange.ranges": "interchange.import_ranges",
    "interchange.saving": "interchange.exporter",
    "interchange.sheet": "interchange.graph_builder",
    "io.atomic": "_atomic",
    "nn.blocks": "nn.block_sparse",
    "ops.codes": "layout.codes",
    "ops.functions": "reference.activations",
    "ops.reference": "reference",
    "ops.reference_gates": "reference.gates",
    "ops.reference_moves": "reference.data_movement",
    "prune.progress": "nn.pruning_progress",
    "prune.scores": "prune.criteria",
    "prune.units": "nn.patterns",
    "quantize.allocate": "budget.allocate",
    "quantize.batches": "graph.batches",
    "quantize.calibrate": "quantize.calibration",
    "quantize.changes": "graph.changes",
    "quantize.channels": "graph.channels",
    "quantize.config": "nn.config",
    "quantize.distill": "train.distillation",
    "quantize.files": "quantize.weights_file",
    "quantize.fold": "graph.fold_batchnorm",
    "quantize.inplace": "graph.inplace",
    "quantize.observed": "graph.observed",
    "quantize.plan": "quantize.plans",
    "quantize.planned": "nn.planned",
    "quantize.reorder": "budget.reorder_channels",
    "quantize.replace": "graph.replace",
    "quantize.sensitivity": "quantize.layer_sensitivity",
    "quantize.sizes": "graph.sizes",
    "quantize.ternarize": "nn.ternarize",
    "quantize.trace": "graph.trace",
    "quantize.usage": "graph.usage",
    "rates": "train.rates",
    "signature": "graph.signature",
    "sr.attention": "sr.models.attention",
    "sr.batch": "sr.inference.jobs",
    "sr.colors": "sr.inference.colors",
    "sr.convert": "sr.inference.to_program",
    "sr.efdn": "sr.models.efdn",
    "sr.families": "sr.models.registry",
    "sr.fidelity": "sr.inference.fidelity",
    "sr.files": "sr.models.checkpoint",
    "sr.fmen": "sr.models.fmen",
    "sr.folding": "sr.models.fold",
    "sr.images": "sr.inference.upscaling",
    "sr.imdn": "sr.models.imdn",
    "sr.losses": "sr.training.losses",
    "sr.metrics": "sr.training.metrics",
    "sr.network": "sr.models.base",
    "sr.picture": "sr.inference.picture",
    "sr.pictures": "sr.inference.image_io",
    "sr.programs": "sr.inference.pretrained",
    "sr.reparam": "sr.models.reparam",
    "sr.rfdn": "sr.models.rfdn",
    "sr.tiff": "sr.inference.tiff",
    "sr.tiles": "sr.inference.tiling",
    "study.agreement": "benchmark.agreement",
    "study.benchmark": "benchmark.runner",
    "study.data": "data.classification",
    "study.images": "data.image_folder",
    "study.isolated": "benchmark.torch_free_process",
    "study.networks": "benchmark.pruned_networks",
    "study.own": "study.user_code",
    "study.ranks": "train.distributed",
    "study.rivals": "benchmark.baselines",
    "study.summary": "study.report",
    "study.timing": "benchmark.timing",
    "study.views": "train.augment",
    "study.zoo": "models.zoo",
    "wrappers": "graph.wrappers",
}
# What a package used to export: the module that has it now, and ":name" if it is another.
NAMES = {
    "sr": {"SRCourse": "sr.training.trainer:SRTrainConfig"},
    "study.fit": {
        "Course": "train.config:TrainConfig",
        "WARMUP": "train.config",
        "optimizer_for": "train.config",
    },
    "train.augment": {
        "KeptLogits": "train.augment:CachedLogits",
        "Taught": "train.augment:Teacher",
        "Views": "train.augment:Augmentation",
    },
    "quantize": {
        "Budget": "budget",
        "Distillation": "train.distillation",
        "ReorderRow": "budget",
        "reorder_channels_": "budget",
    },
    "sr.training": {
        "Patches": "sr.training.patches",
        "SRCourse": "sr.training.trainer:SRTrainConfig",
        "train": "sr.training.trainer",
    },
}


def install() -> None:
    """Let imports of old module names find the new ones; does nothing the second time."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def attribute(package: str, name: str) -> Any:
    """A former attribute of a package, with a warning; AttributeError for what never was one."""
    old = f"{package}.{name}".removeprefix("ternary_ops.")
    if old in MODULES:
        return importlib.import_module(f"ternary_ops.{old}")  # by the finder, which warns
    home = NAMES.get(package.removeprefix("ternary_ops."), {}).get(name)
    if home is None:
        raise AttributeError(f"module {package!r} has no attribute {name!r}")
    _warn(f"{package}.{name}", f"ternary_ops.{home}")
    path, _, new = home.partition(":")
    return getattr(importlib.import_module(f"ternary_ops.{path}"), new or name)


class renamed:  # noqa: N801  # used like property
    """A method or attribute of a class under its old name: `settle = renamed("fold_scales")`."""

    def __init__(self, new: str) -> None:
        self.new = new

    def __set_name__(self, owner: type, name: str) -> None:
        """Remember the old name."""
        self.old = name

    def __get__(self, instance: Any, owner: type) -> Any:
        """Warn, then return the attribute of the new name."""
        _warn(f"{owner.__name__}.{self.old}", f"{owner.__name__}.{self.new}")
        return getattr(owner if instance is None else instance, self.new)


def renamed_arguments(**names: str) -> Callable[[F], F]:
    """Let keywords of former names, old=new, be passed on under the new ones."""

    def decorate(function: F) -> F:
        @functools.wraps(function)
        def call(*args: Any, **options: Any) -> Any:
            for old in names.keys() & options.keys():
                _warn(f"{function.__qualname__}({old}=)", f"{names[old]}=")
                options[names[old]] = options.pop(old)
            return function(*args, **options)

        return call  # type: ignore[return-value]

    return decorate


class _Finder(MetaPathFinder, Loader):
    """Loads a module of MODULES as the one it became."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not fullname.startswith("ternary_ops."):
            return None
        short = fullname.removeprefix("ternary_ops.")
        return ModuleSpec(fullname, self) if short in MODULES else None

    def exec_module(self, module: ModuleType) -> None:
        """Put the module of the new name in the place of the empty one of the old name."""
        name = module.__name__
        new = f"ternary_ops.{MODULES[name.removeprefix('ternary_ops.')]}"
        _warn(name, new)
        sys.modules[name] = importlib.import_module(new)


def _warn(old: str, new: str) -> None:
    warnings.warn(f"{old} is now in {new}", DeprecationWarning, stacklevel=3)
