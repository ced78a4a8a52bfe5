# SPDX-License-Identifier: Apache-2.0
"""Accuracy against bytes and milliseconds: CIFAR-10 networks, dense, pruned and ternary.

    python bench/accuracy.py list
    python bench/accuracy.py train resnet20 resnet56 --threads 1
    python bench/accuracy.py evaluate bench/results/networks/*.safetensors
    python bench/accuracy.py time --threads 1 [--isa avx2]
    python bench/accuracy.py plot

train: runs are named and seeded; each keeps a checkpoint and its trained weights under --folder, so
that one that was cut off goes on with the same bits when the command is repeated. It ends as a
program file in bench/results/networks (a dense network in 8 bits) and as a row of accuracy.csv.
What others start from or go on from is in bench/results/parents, weights in float16, so that any
other run can be repeated alone.
evaluate: accuracy of program files from the files alone. time: milliseconds an image of every file,
interleaved with torch's own int8 of the dense networks, whose own files `train resnet20 resnet56
resnet18h` makes in a minute. plot: accuracy.svg from accuracy.csv.
"""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _accuracy_runs import RUNS, Run
from _cifar import folder, keep_shortcuts_, load_cifar10, load_resnet
from _experiment import keep_row
from _measure import NETWORKS, PARENTS, command_line
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import ternary_ops as tops
from ternary_ops import models, reporting
from ternary_ops._atomic import replace_file
from ternary_ops.data.classification import Split
from ternary_ops.quantize import recalibrate_batchnorm_
from ternary_ops.study.fit import accuracy, fit, predictions
from ternary_ops.train.augment import Augmentation, CachedLogits
from ternary_ops.train.checkpoint import Checkpoint
from ternary_ops.train.config import optimizer_for
from ternary_ops.train.distillation import Distillation

# Views repeat after so many epochs: a teacher's logits are computed once and serve every run.
VIEWS = 12
TABLE = "accuracy.csv"
# Dense networks that some run starts from or learns from.
_PARENT_NAMES = {name for run in RUNS.values() for name in (run.start, run.teacher)} & set(RUNS)


def build(run: Run) -> nn.Module:
    """The network of a run, untrained, its weights in the layout that trains fastest."""
    torch.manual_seed(run.course.seed)
    if run.network == "resnet18":
        return models.cifar_resnet18(run.width)
    return models.cifar_resnet(int(run.network.removeprefix("resnet")), width=run.width)


def parent_file(name: str) -> Path:
    """Where the weights of a dense network that others start from are kept."""
    return PARENTS / f"{name}.safetensors"


def trained(name: str) -> nn.Module:
    """The network of a finished dense run, from its weights in float16."""
    model = build(RUNS[name])
    model.load_state_dict(load_file(parent_file(name)))
    return model.eval().to(memory_format=torch.channels_last)


def halved(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same with floats of 16 bits."""
    return {k: v.half() if v.is_floating_point() else v for k, v in state.items()}


def start(run: Run, runs: Path, split: Split) -> nn.Module:
    """The network as training begins, quantized if it is to be compressed."""
    if run.start == "":
        model = build(run)
    elif run.start == "original":
        model = load_resnet(folder() / "cifar10_resnets" / f"{run.network}.npz")
        keep_shortcuts_(model, split.x_train[::100])
    else:
        model = trained(run.start)
    if run.reorder:
        tops.reorder_channels_(model, split.x_test[:2])
    if run.config is not None:
        auto: dict[str, Any] = {}
        if run.budget:
            budget = tops.Budget(bytes=run.budget)
            auto = {"auto": True, "budget": budget, "batches": [split.x_train[:64]]}
        tops.quantize_(model, tops.plan(model, run.config, rules=run.rules, **auto))
    if run.goes_on:
        model.load_state_dict(state_of(run.goes_on, runs))
        thaw_(model)
    return model.to(memory_format=torch.channels_last)


def keep_state(name: str, state: dict[str, Tensor]) -> None:
    """Keep the trained weights of a compressed run that others go on from, in float16."""
    PARENTS.mkdir(exist_ok=True, parents=True)
    arrays = {key: value.numpy() for key, value in halved(state).items()}
    replace_file(PARENTS / f"{name}.npz", lambda target: np.savez_compressed(target, **arrays))


def state_of(name: str, runs: Path) -> dict[str, Tensor]:
    """The trained weights of a compressed run: its own, else those kept in float16."""
    if (runs / f"{name}.pt").exists():
        own: dict[str, Tensor] = torch.load(runs / f"{name}.pt", weights_only=True)
        return own
    with np.load(PARENTS / f"{name}.npz") as kept:
        return {key: torch.from_numpy(kept[key]) for key in kept.files}


def thaw_(model: nn.Module) -> None:
    """Codes may change again; ranges of activations are unset until they are frozen."""
    for layer in model.modules():
        if isinstance(layer, tops.nn.TernaryLayer):
            layer.phase = "ternary"
            layer.input_range = layer.output_range = None


def train(run: Run, runs: Path, split: Split) -> nn.Module:
    """Train, or go on training, or read what was trained."""
    if run.name in _PARENT_NAMES and parent_file(run.name).exists():
        return trained(run.name)
    model = start(run, runs, split)
    done = runs / f"{run.name}.pt"
    if done.exists():
        model.load_state_dict(torch.load(done, weights_only=True))
        return model.eval()
    views = Augmentation(split.x_train, reach=4, flip=True, count=VIEWS)
    optimizer = optimizer_for(model, run.course)
    steps = run.course.steps(len(split.y_train))
    taught = pruner = None
    if run.teacher:
        taught = CachedLogits(trained(run.teacher), views, runs / f"{run.teacher}-logits")
    if run.config is not None:
        pruner = tops.prune.Pruner(model, total_steps=steps, optimizer=optimizer, **run.pruner)
    fit(
        *(model, views, split.y_train, run.course, optimizer),
        Distillation(label_smoothing=0.0 if run.teacher else 0.05),
        teacher=taught,
        pruner=pruner,
        calibration=split.x_train[::50],
        checkpoint=Checkpoint(runs / f"{run.name}.checkpoint", {"run": run.name, "steps": steps}),
        on_step=watcher(run.name, steps, model, split),
    )
    if run.name in _PARENT_NAMES:
        PARENTS.mkdir(exist_ok=True, parents=True)
        state = halved({k: v.contiguous() for k, v in model.state_dict().items()})
        replace_file(parent_file(run.name), lambda target: save_file(state, target))
        return trained(run.name)
    replace_file(done, lambda target: torch.save(model.state_dict(), target))
    if any(run.name == other.goes_on for other in RUNS.values()):
        keep_state(run.name, model.state_dict())
    return model


def watcher(name: str, steps: int, model: nn.Module, split: Split) -> Callable[[], None]:
    """A line after each twentieth of the run: the score on a fifth of the test images."""
    state = {"step": 0, "start": time.monotonic()}

    def on_step() -> None:
        state["step"] += 1
        if state["step"] % max(1, steps // 20) == 0:
            training = model.training
            score = accuracy(predictions(model, split.x_test[::5]), split.y_test[::5])
            model.train(training)
            seconds = time.monotonic() - state["start"]
            print(f"{name} {state['step']}/{steps} {seconds:.0f} s {score:.2f} %", flush=True)

    return on_step


def finish(run: Run, model: nn.Module, split: Split) -> dict[str, Any]:
    """The row of a trained run: its network is compiled, saved, and judged from the file."""
    row: dict[str, Any] = {"run": run.name, "network": run.network, "width": run.width}
    row |= {"parent": run.parent, "teacher": run.teacher, "epochs": run.course.epochs}
    parameters = sum(p.numel() for p in build(run).parameters())
    config = run.config or tops.TernaryConfig("int8")
    names = ("weights", "ternarizer", "pattern", "zeros")
    row |= {name: getattr(config, name) for name in names}
    kinds = {config.weights, *(rule.weights for rule in run.rules.values())}
    row["weights"] = "+".join(sorted(kinds, reverse=True))
    if run.config is None:
        row["top1_float"] = round(accuracy(predictions(model, split.x_test), split.y_test), 2)
        model = copy.deepcopy(model)
        tops.quantize_(model, tops.plan(model, config))
        tops.calibrate(model, [split.x_train[::50]])
    else:
        # What training saw, but with float sums: the last 10 % had quantized activations.
        views = Augmentation(split.x_train, reach=4, flip=True, count=VIEWS)
        batches = [views.take(0, part) for part in torch.arange(0, 50_000, 25).split(250)]
        recalibrate_batchnorm_(model, batches)
        row["top1_float"] = round(accuracy(predictions(model, split.x_test), split.y_test), 2)
    program = tops.compile(model, split.x_test[:1]).rounded()
    NETWORKS.mkdir(exist_ok=True, parents=True)
    file = NETWORKS / f"{run.name}.safetensors"
    program.save(file)
    row["top1"] = evaluate(file, split)
    report = reporting.of_program(program, split.x_test[:1].numpy(), file.stat().st_size)
    row |= {"parameters": parameters, "fp32_bytes": 4 * parameters, "bytes": report.file}
    row["bound_bytes"] = round(report.total("bound"))
    row["smaller"] = round(4 * parameters / report.file, 1)
    row["empty_quads"] = round(report.zeros("quads"), 2)
    row["zero_weights"] = round(report.zeros("weights"), 2)
    return row


def evaluate(file: Path, split: Split) -> float:
    """Percent of the test images that the program of a file classifies right."""
    logits = tops.runtime.load(file)(split.x_test[:].contiguous().numpy())
    return round(accuracy(torch.from_numpy(logits).argmax(1), split.y_test), 2)


def main() -> int:
    """Run the command."""
    parser = command_line(__doc__, rounds=40, threads=1)
    parser.add_argument("command", choices=("list", "train", "evaluate", "time", "plot"))
    parser.add_argument("names", nargs="*", help="runs, as `list` prints them, or program files")
    parser.add_argument("--isa", default="", help="of `time`: force an instruction set on ours")
    parser.add_argument("--folder", type=Path, default=Path("bench/runs"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.command == "list":
        for run in RUNS.values():
            print(f"{run.name:30} {run.course.epochs:3} epochs of {run.network}")
    elif options.command == "train":
        split = load_cifar10()
        options.folder.mkdir(exist_ok=True, parents=True)
        for name in options.names:
            row = finish(RUNS[name], train(RUNS[name], options.folder, split), split)
            keep_row(TABLE, row, RUNS)
            print(row, flush=True)
    elif options.command == "evaluate":
        split = load_cifar10()
        for file in map(Path, options.names):
            print(f"{file.stem:30} {file.stat().st_size:9,} bytes {evaluate(file, split):.2f} %")
    elif options.command == "time":
        from _accuracy_report import measure

        measure(options.threads, options.rounds, options.isa)
    else:
        from _accuracy_report import draw

        draw()
    return 0


if __name__ == "__main__":
    sys.exit(main())
