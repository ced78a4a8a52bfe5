# SPDX-License-Identifier: Apache-2.0
"""The main job: a float network goes in, a checked and measured ternary program comes out."""

from __future__ import annotations

import copy
import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ternary_ops import reporting
from ternary_ops._atomic import replace_file
from ternary_ops.benchmark.timing import int8_baseline, per_image, torch_threads
from ternary_ops.benchmark.torch_free_process import run_without_torch
from ternary_ops.budget import Budget, Found, search
from ternary_ops.compiler import compile  # noqa: A004
from ternary_ops.data.classification import Split
from ternary_ops.data.image_folder import Source
from ternary_ops.errors import BadConfig, FormatError, TernaryOpsError, UnsupportedModel, need
from ternary_ops.graph.signature import pick
from ternary_ops.graph.state import load_state
from ternary_ops.program.interpret import simulate
from ternary_ops.progress import Progress
from ternary_ops.prune import Pruner
from ternary_ops.prune.targets import can_prune
from ternary_ops.quantize.calibration import calibrate
from ternary_ops.quantize.convert import quantize_
from ternary_ops.quantize.plan_rows import Plan
from ternary_ops.quantize.recipes import Recipe, get_recipe
from ternary_ops.runtime import Program
from ternary_ops.study.fit import accuracy, fit, predictions
from ternary_ops.train.augment import Augmentation
from ternary_ops.train.checkpoint import Checkpoint
from ternary_ops.train.config import TrainConfig, optimizer_for
from ternary_ops.train.distillation import Distillation
from ternary_ops.train.distributed import ALONE, Ranks

_log = logging.getLogger(__name__)
CALIBRATION = 256
# Images on which the saved program is held to the NumPy reference, which is slow.
CHECKED = 500
_CHECKPOINT_SECONDS = 60.0
_PLAN_FILE, _SEARCH_FILE = "plan.json", "search.json"  # beside the checkpoints
_SEARCHED = 64  # images that a search compares outputs on
# A result below so many times chance, or that loses more points, is nothing to rely on.
_CHANCES, _MOST_LOST = 1.5, 3.0
_TRY = "try more --epochs, fewer --zeros, --recipe safe, or more data"
# Smoothing keeps the logits of a network that fits 1,300 images exactly from growing without bound.
LABEL_SMOOTHING, TEMPERATURE, SHARE = 0.05, 4.0, 0.37
# Images at once: one, the latency that a user feels, and enough to hide the cost of each call.
BATCHES = (1, 64)


@dataclass(frozen=True)
class Job:
    """A network to compress, its data and its training.

    weights: the state dict of a trained network; without one the network is trained first.
    threads: of torch while training; None leaves the choice to torch. reach, flip: pixels by which
    images are moved while training, and whether they are mirrored by chance. checkpoints: a folder
    for them, deleted when the job is done. resume: go on from those of a job that was cut off.
    budget: widths, zeros and bits are searched for it, beside the recipe's config.
    """

    name: str
    build: Callable[[], nn.Module]
    split: Split
    weights: Mapping[str, Tensor] | None = None
    recipe: Recipe = field(default_factory=lambda: get_recipe("fastest"))
    dense: TrainConfig = TrainConfig(epochs=15, rate=3e-3)
    ternary: TrainConfig = TrainConfig(epochs=40, rate=3e-3)
    threads: int | None = None
    reach: int = 1
    flip: bool = False
    checkpoints: Path | None = None
    resume: bool = False
    budget: Budget | None = None


@dataclass(frozen=True)
class Speed:
    """Milliseconds per image by name of the engine."""

    threads: int
    batch: int
    ms: dict[str, float]


@dataclass(frozen=True)
class Outcome:
    """Everything the command prints.

    agreement: percent of test images for which the program and the network as PyTorch trained it
    choose one class; sums of skip connections are rounded to 8 bits in the program only.
    warnings: what is wrong with the result, and what to try.
    """

    name: str
    file: Path
    parameters: int
    fp32_bytes: int
    accuracy_dense: float
    accuracy_int8: float | None
    accuracy: float
    agreement: float
    test_images: int
    report: reporting.Report
    speeds: tuple[Speed, ...]
    int8_note: str
    plan: str
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def drop(self) -> float:
        """Points of accuracy lost."""
        return self.accuracy_dense - self.accuracy


def compress(job: Job, output: Path, progress: Progress, ranks: Ranks = ALONE) -> Outcome | None:
    """Train, compress, save to `output`, reload without torch, compare and measure.

    The file appears in one step, and only if a process without torch, this one and the NumPy
    reference get the same bits from it; otherwise raises TernaryOpsError. Of several processes the
    first does all but the training; the others get None. Raises UnsupportedModel for a network that
    does not classify the data or cannot be compiled, before it is trained; BadConfig or FormatError
    for checkpoints that are in the way or of another job.
    """
    split = job.split
    for config in (job.dense, job.ternary):
        ranks.check(config.batch)
    _check_checkpoints(job)
    with torch_threads(job.threads or torch.get_num_threads()):
        dense, plan = _dense(job, progress, ranks)
        model, plan = _ternary(job, dense, plan, progress, ranks)
    if not ranks.first:
        return None
    example = split.x_test[:1]
    with progress.stage("compile, save, reload", 1) as advance:
        program = compile(model, example).rounded()
        logits = _save_checked(program, output, split.x_test)
        advance()
    if job.checkpoints is not None:
        shutil.rmtree(job.checkpoints, ignore_errors=True)
    speeds, baseline, note = _speeds(dense, program, split, progress)
    predicted = torch.from_numpy(logits).argmax(1)
    before = accuracy(predictions(dense, split.x_test), split.y_test)
    after = accuracy(predicted, split.y_test)
    warnings = warnings_of(before, after, split.classes)
    for text in warnings:
        _log.warning(text)
    return Outcome(
        name=job.name,
        file=output,
        parameters=sum(p.numel() for p in dense.parameters()),
        fp32_bytes=sum(4 * p.numel() for p in dense.parameters()),
        accuracy_dense=before,
        accuracy_int8=(
            None
            if baseline is None
            else accuracy(predictions(baseline, split.x_test), split.y_test)
        ),
        accuracy=after,
        agreement=accuracy(predicted, predictions(model, split.x_test)),
        test_images=len(split.y_test),
        report=reporting.of_program(program, example.numpy(), output.stat().st_size),
        speeds=speeds,
        int8_note=note,
        plan=str(plan),
        notes=split.notes,
        warnings=warnings,
    )


def warnings_of(before: float, after: float, classes: int) -> tuple[str, ...]:
    """What is wrong with a result, and what to try; before, after: percent right of the float
    network and of the compressed one.
    """
    chance = 100 / classes
    if before < _CHANCES * chance:
        what = f"the float network is right in {before:.2f} % of the test images, chance is"
        return (f"{what} {chance:.2f} %: pass its trained --weights, or check --data",)
    found = []
    if after < _CHANCES * chance:
        what = f"{after:.2f} % of the test images are right, less than {_CHANCES} times chance"
        found.append(f"{what} ({chance:.2f} %): {_TRY}")
    elif before - after > _MOST_LOST:
        what = f"{before - after:.2f} points of accuracy are lost, more than {_MOST_LOST:g}"
        found.append(f"{what}: {_TRY}")
    return tuple(found)


def _check_checkpoints(job: Job) -> None:
    if job.checkpoints is None or job.resume or not job.checkpoints.exists():
        return
    do = "Pass --resume to go on, or delete it to begin anew."
    raise BadConfig(need("no checkpoints of a job that was cut off", f"{job.checkpoints}", do))


def _dense(job: Job, progress: Progress, ranks: Ranks) -> tuple[nn.Module, Plan]:
    """The trained float network, and the plan that it will be compressed by."""
    torch.manual_seed(job.dense.seed)
    model = job.build()
    _must_classify(model, job.split)
    if job.weights is not None:
        load_state(model, job.weights)
    plan = _checked_plan(job, model)
    if job.weights is not None:
        return model.eval(), plan
    loss = Distillation(label_smoothing=LABEL_SMOOTHING)
    _train(model, job, job.dense, loss, progress, ranks)
    return model, plan


def _checked_plan(job: Job, model: nn.Module) -> Plan:
    """The plan: hours of training must not end in the news that the network cannot be pruned or
    run.
    """
    trial = copy.deepcopy(model).eval()
    compile(trial, job.split.x_test[:1])
    plan = _planned(job, trial)
    quantize_(trial, plan)
    Pruner(trial, total_steps=1, **job.recipe.pruner)
    return plan


def _planned(job: Job, model: nn.Module) -> Plan:
    """The recipe's plan; a job that goes on has it in its folder, with the costs of that time."""
    kept = None if job.checkpoints is None else job.checkpoints / _PLAN_FILE
    if kept is None or not kept.exists():
        return job.recipe.plan(model, example=job.split.x_test[:1])
    try:
        found = json.loads(kept.read_text(encoding="utf-8"))
        recipe, plan = found["recipe"], Plan.from_dict(found["plan"])
    except (ValueError, KeyError, TypeError) as error:
        raise FormatError(need(f"a plan in {kept}", repr(error), "Delete it.")) from error
    if recipe != str(job.recipe):
        do = "Repeat the run that wrote it, or delete its folder to start anew."
        raise FormatError(need(f"a plan of the run with {job.recipe} in {kept}", recipe, do))
    return plan


def _keep_plan(job: Job, plan: Plan) -> None:
    """Write a plan with measured costs beside the checkpoints."""
    if job.checkpoints is None or all(row.cost is None for row in plan):
        return
    text = json.dumps({"recipe": str(job.recipe), "plan": plan.to_dict()}, indent=1)
    job.checkpoints.mkdir(parents=True, exist_ok=True)
    replace_file(job.checkpoints / _PLAN_FILE, lambda to: to.write_text(text, encoding="utf-8"))


def _train(
    model: nn.Module,
    job: Job,
    config: TrainConfig,
    loss: Distillation,
    progress: Progress,
    ranks: Ranks,
) -> None:
    split, optimizer = job.split, optimizer_for(model, config)
    steps, pruner, name = config.steps(len(split.y_train)), None, "train, dense float32"
    part = "dense"
    if loss.teacher is not None:
        name, part = "train, prune, ternarize", "ternary"
        if can_prune(model):  # within a generous budget a search leaves all dense
            pruner = Pruner(model, total_steps=steps, optimizer=optimizer, **job.recipe.pruner)
    images = Augmentation(split.x_train, job.reach, job.flip)
    with progress.stage(name, steps) as advance:
        fit(
            *(model, images, split.y_train, config, optimizer, loss),
            pruner=pruner,
            calibration=split.x_train[:CALIBRATION],
            checkpoint=_checkpoint(job, part, config, model),
            ranks=ranks,
            on_step=advance,
        )
    if loss.teacher is not None and pruner is None:
        calibrate(model, [split.x_train[:CALIBRATION]])


def _checkpoint(job: Job, part: str, config: TrainConfig, model: nn.Module) -> Checkpoint | None:
    """Checkpoint of a training, and the settings that must be the same when it is resumed."""
    if job.checkpoints is None:
        return None
    # Keys and texts are those of the first version, whose checkpoints go on.
    about = {
        "model": job.name,
        "tensors": sum(v.numel() for v in model.state_dict().values()),
        "images": list(job.split.x_train.shape),
        "course": f"Course{str(config).removeprefix(TrainConfig.__name__)}",
        "recipe": str(job.recipe) if part == "ternary" else "",
        **({} if job.budget is None or part == "dense" else {"budget": str(job.budget)}),
        "views": f"{job.reach}, {job.flip}",
    }
    return Checkpoint(job.checkpoints / f"{part}.pt", about, seconds=_CHECKPOINT_SECONDS)


def _ternary(
    job: Job, dense: nn.Module, plan: Plan, progress: Progress, ranks: Ranks
) -> tuple[nn.Module, Plan]:
    """A quantized copy of `dense`, narrower where a budget asks for it, trained through the
    pruner's phases with it as teacher; and its plan.
    """
    model, config = copy.deepcopy(dense), job.ternary
    torch.manual_seed(config.seed)
    if job.budget is not None:
        found = _searched(job, job.budget, model, progress)
        _log.info(found)
        found.apply_(model)
        plan = found.plan
    else:
        quantize_(model, plan)
        if ranks.first:
            _keep_plan(job, plan)
    loss = Distillation(dense, TEMPERATURE, SHARE, LABEL_SMOOTHING)
    _train(model, job, config, loss, progress, ranks)
    return model, plan


def _searched(job: Job, budget: Budget, model: nn.Module, progress: Progress) -> Found:
    """The network within the budget; a job that goes on measures nothing twice."""
    images = job.split.x_train
    chosen = torch.linspace(0, len(images) - 1, min(_SEARCHED, len(images))).long()
    return search(
        *(model, job.split.x_test[:1], [images[chosen]]),
        target_ms=budget.ms,
        target_bytes=budget.bytes,
        config=job.recipe.config,
        threads=budget.threads,
        state=None if job.checkpoints is None else job.checkpoints / _SEARCH_FILE,
        progress=progress,
    )


def _save_checked(program: Program, output: Path, images: Source) -> NDArray[Any]:
    """Save, and keep the file only if a process without torch, this one and NumPy give one result.

    They are compared on the first CHECKED images. Returns the program's outputs for all.
    """
    x = images[:CHECKED].numpy()
    results = [program(x), simulate(program.graph, x)[-1]]

    def write(target: Path) -> None:
        program.save(target)
        results.append(run_without_torch(target, x))
        for other, who in zip(results[1:], ("its NumPy reference", "its saved form"), strict=True):
            if not np.array_equal(results[0], other):
                raise TernaryOpsError(f"the program gives other outputs than {who}")

    replace_file(output, write)
    starts = range(0, len(images), CHECKED)
    return np.concatenate([program(images[at : at + CHECKED].numpy()) for at in starts])


def _must_classify(model: nn.Module, split: Split) -> None:
    do = "Return logits [N, classes] for the images or rows of the data."
    try:
        with torch.no_grad():
            made = model.eval()(split.x_test[:2])
    except (RuntimeError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UnsupportedModel(need("a network that takes the data", reason, do)) from error
    y = pick(made)
    if y.ndim != 2 or y.shape[1] < split.classes:
        what = f"logits [N, {split.classes}] or more from the network"
        raise UnsupportedModel(need(what, list(y.shape), do))


def _speeds(
    dense: nn.Module, program: Program, split: Split, progress: Progress
) -> tuple[tuple[Speed, ...], nn.Module | None, str]:
    baseline, note = int8_baseline(dense, split.x_train[:CALIBRATION])
    baselines = {"torch fp32": dense} | ({"torch int8": baseline} if baseline is not None else {})
    cases = [(t, n) for t in sorted({1, os.cpu_count() or 1}) for n in BATCHES]
    speeds = []
    with progress.stage("measure", len(cases)) as advance:
        for threads, batch in cases:
            ms = per_image(baselines, program, split.x_test[:batch], threads)
            speeds.append(Speed(threads, batch, ms))
            advance()
    return tuple(speeds), baseline, note
