# SPDX-License-Identifier: Apache-2.0
"""Networks, programs and training runs whose files commit cf631c5 wrote, and what they gave then.

`PYTHONPATH=tests python -m old_files FILE` wrote tests/data/files_v0.zip at cf631c5; later versions
of the package write other files. Members: programs/NAME.safetensors, weights/NAME.safetensors,
pruner.pt (states of a network, its optimizer and its Pruner, which scores by movement), fit.pt and
sr.pt (checkpoints of runs cut off in the middle), and expected.npz: x/NAME and y/NAME of programs
and weights files, and what the runs ended with.
"""

from __future__ import annotations

import io
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import programs
import torch
from numpy.typing import NDArray
from programs import example, random_program
from torch import Tensor, nn

import ternary_ops as tops
from ternary_ops import runtime, sr
from ternary_ops.study.fit import fit
from ternary_ops.train.augment import Augmentation
from ternary_ops.train.checkpoint import Checkpoint
from ternary_ops.train.config import TrainConfig, optimizer_for
from ternary_ops.train.distillation import Distillation

Array = NDArray[np.float32]
PROGRAMS = {name: programs.PROGRAMS[name] for name in ("image", "mixed", "flat", "wide")}
# Random programs that, with these, have every operator, gates among them, and integer codes to
# the end.
SEEDS = (41, 66, 101)
CONFIGS: dict[str, dict[str, Any]] = {
    "quads": {"zeros": 0.75},
    "elements": {"zeros": 0.5, "pattern": "element", "ternarizer": "twn"},
    "int8": {"weights": "int8"},
    "uint11": {"weights": "int8", "activations": "uint11"},
    "weight_only": {"activations": "float32", "zeros": 0.5},
    "float": {"weights": "float"},
    "blocks": {"weights": "float", "zeros": 0.5, "pattern": "4x1"},
}
WEIGHTS_FILES = [name for name in CONFIGS if name not in ("uint11", "float")]  # of packed layers
COURSE = TrainConfig(epochs=3, rate=0.01, batch=8, seed=3)
SR_COURSE = sr.SRTrainConfig(steps=6, rate=2e-3, batch=2, patch=10, average=0.5)
CUT_OFF = 5  # steps of either run before it is cut off
PRUNED_STEPS, PRUNED_STOP = 12, 7


class CutOff(Exception):
    """What ends a run in the middle."""


class After:
    """An on_step that cuts a run off after so many steps."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def __call__(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise CutOff


def network(seed: int = 0) -> nn.Sequential:
    """A float network for [N, 3, 9, 9]: its BatchNorm does something, half of its second
    convolution is empty, in blocks of four outputs by four inputs.
    """
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU(),
        nn.Conv2d(12, 12, 3, padding=1, groups=12), nn.ReLU6(), nn.Flatten(),
        nn.Linear(12 * 16, 5),
    )  # fmt: skip
    norm = model[4]
    with torch.no_grad():
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
        full = torch.rand(3, 2, 3, 3) < 0.5
        model[3].weight *= full.repeat_interleave(4, 0).repeat_interleave(4, 1)
    return model


def images(seed: int, n: int = 4) -> Tensor:
    """A batch for `network`."""
    return torch.randn(n, 3, 9, 9, generator=torch.Generator().manual_seed(seed))


def quantized(config: dict[str, Any]) -> nn.Sequential:
    """The network, quantized, calibrated and frozen."""
    model = network().eval()
    own = tops.TernaryConfig(**{"pattern": "1x4", **config})
    # Eleven bits are for convolutions without groups.
    rest = tops.TernaryConfig(weights="int8")
    rules = {"6": rest, "9": rest} if own.activations == "uint11" else {}
    tops.quantize_(model, tops.plan(model, own, rules=rules))
    layers = [m for m in model.modules() if isinstance(m, tops.nn.TernaryLayer)]
    for layer in layers:
        layer.phase = "frozen"
    if any(layer.config.integer_input for layer in layers):
        tops.calibrate(model, [images(1, 16)])
    return model.eval()


def exact(name: str) -> str:
    """The instruction set whose bits a file's output has: floats are summed in another order on
    others. "" stands for any.
    """
    floats = ("mixed", "wide", "weight_only", "float", "blocks")
    return "scalar" if name in floats else ""


def run(program: runtime.Program, x: Array, name: str) -> Array:
    """A program's output."""
    with runtime.force_isa(exact(name) or runtime.isa()):
        return program(x)


def answer(model: nn.Module, x: Tensor, name: str) -> Array:
    """A network's output in eval mode."""
    with torch.no_grad(), runtime.force_isa(exact(name) or runtime.isa()):
        y: Array = model.eval()(x).numpy()
    return y


def pruning(seed: int = 0) -> tuple[nn.Sequential, torch.optim.Optimizer, tops.prune.Pruner]:
    """A network with a Pruner that keeps scores, and its optimizer."""
    model = network(seed)
    tops.quantize_(model, tops.plan(model, tops.TernaryConfig(zeros=0.5, pattern="1x4")))
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    pruner = tops.prune.Pruner(
        model, "agp", PRUNED_STEPS, optimizer=optimizer, ternary_at=0.6, freeze_at=0.9, every=2,
        criterion="movement",
    )  # fmt: skip
    return model, optimizer, pruner


def prune(
    model: nn.Module, optimizer: torch.optim.Optimizer, pruner: tops.prune.Pruner, steps: range
) -> None:
    """Some steps of training."""
    model.train()
    for step in steps:
        x = images(step, 8)
        loss = nn.functional.cross_entropy(model(x), x.mean((1, 2, 3)).gt(0).long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        pruner.step()


def train(file: Path, tick: Any, seed: int = 0) -> nn.Module:
    """Train a network with a checkpoint at `file`, from where that stands; else from `seed`."""
    model = network(seed)
    tops.quantize_(model, tops.plan(model, tops.TernaryConfig(zeros=0.5, pattern="1x4")))
    x = images(7, 40)
    y = x.mean((1, 2, 3)).gt(0).long()
    optimizer = optimizer_for(model, COURSE)
    pruner = tops.prune.Pruner(model, "one_cycle", COURSE.steps(40), optimizer=optimizer)
    checkpoint = Checkpoint(file, {"run": "fit"}, seconds=0.0)
    fit(model, Augmentation(x), y, COURSE, optimizer, Distillation(), pruner=pruner,
        calibration=x[:8], checkpoint=checkpoint, on_step=tick)  # fmt: skip
    return model


def train_sr(file: Path, tick: Any, seed: int = 2) -> nn.Module:
    """The same of a super-resolution network."""
    torch.manual_seed(seed)
    model = sr.FMEN(2, 4, 5, 4, 1, [0, 0])
    rng = np.random.default_rng(1)
    photos = [rng.integers(0, 256, (24, 26, 3), np.uint8) for _ in range(2)]
    checkpoint = Checkpoint(file, {"run": "sr"}, seconds=0.0)
    sr.train(model, sr.Patches(photos, 2, 10), SR_COURSE, checkpoint=checkpoint, on_step=tick)
    return model


RUNS = {"fit": (train, images(2)), "sr": (train_sr, images(3) * 50 + 120)}


def _programs(folder: Path, expected: dict[str, Array]) -> None:
    graphs = {name: make(3) for name, make in PROGRAMS.items()}
    graphs |= {f"random{seed}": random_program(seed) for seed in SEEDS}
    made = {}
    for name, graph in graphs.items():
        x = example(graph, 2, 17, 19)
        made[name] = runtime.Program(graph, x.shape), x
    batch = images(2)
    for name, config in CONFIGS.items():
        made[name] = tops.compile(quantized(config), batch), batch.numpy()
    for name, (program, sample) in made.items():
        program.save(folder / f"programs/{name}.safetensors")
        expected[f"x/{name}"], expected[f"y/{name}"] = sample, run(program, sample, name)


def _weights(folder: Path, expected: dict[str, Array]) -> None:
    for name in WEIGHTS_FILES:
        config = CONFIGS[name]
        file = folder / f"weights/{name}.safetensors"
        tops.save(quantized(config), file)
        expected[f"weights/{name}"] = answer(tops.load(file, network()), images(2), name)


def _runs(folder: Path, expected: dict[str, Array]) -> None:
    model, optimizer, pruner = pruning()
    prune(model, optimizer, pruner, range(PRUNED_STOP))
    parts: dict[str, Any] = {"model": model, "optimizer": optimizer, "pruner": pruner}
    states = {name: part.state_dict() for name, part in parts.items()}
    torch.save(states, folder / "pruner.pt")
    prune(model, optimizer, pruner, range(PRUNED_STOP, PRUNED_STEPS))
    expected["pruner"] = answer(model, images(2), "pruner")
    for name, (run_once, x) in RUNS.items():
        file = folder / f"{name}.pt"
        try:
            run_once(file, After(CUT_OFF))
        except CutOff:
            stopped = file.read_bytes()
        expected[name] = answer(run_once(file, lambda: None), x, name)
        file.write_bytes(stopped)


def main() -> int:
    """Write the archive."""
    expected: dict[str, Array] = {}
    with tempfile.TemporaryDirectory() as name, zipfile.ZipFile(sys.argv[1], "w") as archive:
        folder = Path(name)
        for part in ("programs", "weights"):
            (folder / part).mkdir()
        _programs(folder, expected)
        _weights(folder, expected)
        _runs(folder, expected)
        for file in sorted(folder.rglob("*.*")):
            archive.write(file, file.relative_to(folder), zipfile.ZIP_DEFLATED)
        made = io.BytesIO()
        np.savez(made, **expected)
        archive.writestr("expected.npz", made.getvalue(), zipfile.ZIP_DEFLATED)
    return 0


if __name__ == "__main__":
    sys.exit(main())
