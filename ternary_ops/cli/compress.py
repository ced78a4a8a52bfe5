# SPDX-License-Identifier: Apache-2.0
"""Compress a network to ternary weights and write a program file.

Without arguments: the demo. A small ResNet learns scikit-learn's handwritten digits, is trained on
to 90 % empty quads of ternary weights, saved, reloaded in a process without torch, compared and
measured; the file and a chart appear in the working directory.

--model FILE.py:FUNCTION --data FILE.npz compresses your own classifier: the function returns the
torch.nn.Module, the archive holds x [N, C, H, W] and y [N] (and x_test, y_test, if you have them).

example: ternary-ops compress
example: ternary-ops compress --model net.py:build --data train.npz -o net.safetensors
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ternary_ops.errors import BadConfig, MissingExtra, need

if TYPE_CHECKING:
    from ternary_ops.study.compressing import Job


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The user's own files, and the recipe."""
    parser.add_argument("--model", metavar="FILE.py:FUNCTION", help="your network")
    parser.add_argument("--data", metavar="FILE.npz", help="your images x and labels y")
    parser.add_argument(
        "--weights", metavar="FILE", help="its state dict (.pt or .safetensors); else it is trained"
    )
    parser.add_argument(
        "--recipe",
        default="fastest",
        metavar="NAME",
        help="fastest (default): ternary, 90 %% empty quads; smallest: the classifier as well; "
        "safe: 8-bit weights, 75 %% empty quads",
    )
    parser.add_argument("--zeros", type=float, help="share of zeros, instead of the recipe's")
    parser.add_argument("--pattern", help='"1x4", "element", ..., instead of the recipe\'s')
    parser.add_argument("--epochs", type=int, default=40, help="of ternary training (default 40)")
    parser.add_argument("--seed", type=int, default=0, help="of both trainings (default 0)")
    parser.add_argument("-o", "--output", metavar="FILE", help="program file to write")


def run(arguments: argparse.Namespace) -> int:
    """Print one table, save the file and a chart; 0."""
    if importlib.util.find_spec("torch") is None:
        do = "pip install 'ternary-ops[train]'"
        raise MissingExtra(need("compress needs PyTorch", "none installed", do))
    from ternary_ops.progress import progress_bars
    from ternary_ops.study import summary
    from ternary_ops.study.compressing import compress

    start = time.perf_counter()
    output = _output(arguments)
    job = _job(arguments)
    with progress_bars(quiet=arguments.json) as progress:
        outcome = compress(job, output, progress)
    chart = output.with_suffix(".png")
    drawn = importlib.util.find_spec("matplotlib") is not None
    if drawn:
        summary.chart(outcome, chart)
    seconds = time.perf_counter() - start
    if arguments.json:
        print(json.dumps({**summary.to_dict(outcome), "seconds": seconds}, indent=2))
        return 0
    summary.table(outcome).show()
    print(f"\nwrote {output}" + (f" and {chart}" if drawn else "") + f" in {seconds:.0f} s")
    return 0


def _output(arguments: argparse.Namespace) -> Path:
    if arguments.epochs < 1:
        raise BadConfig(need("--epochs is at least 1", arguments.epochs, "Leave it out for 40."))
    stem = "digits" if arguments.model is None else arguments.model.rpartition(":")[2]
    output = Path(arguments.output or f"{stem}-ternary.safetensors")
    if not output.parent.is_dir():
        raise BadConfig(need("-o lies in a folder", f"{output.parent}, which is none", "Make it."))
    if output.suffix != ".safetensors":
        raise BadConfig(need("-o ends in .safetensors", output.name, "Rename it."))
    return output


def _job(arguments: argparse.Namespace) -> Job:
    from ternary_ops.quantize.recipes import get_recipe
    from ternary_ops.study import own
    from ternary_ops.study.compressing import Job
    from ternary_ops.study.data import load_npz
    from ternary_ops.study.digits import digits_job

    if arguments.model is None:
        if arguments.data or arguments.weights:
            do = "Add --model FILE.py:FUNCTION."
            raise BadConfig(need("--data and --weights go with --model", "no --model", do))
        job = digits_job()
    else:
        if arguments.data is None:
            raise BadConfig(need("--model goes with --data", "no --data", "Add --data FILE.npz."))
        build, weights = own.load_builder(arguments.model), None
        if arguments.weights:
            weights = own.load_weights(arguments.weights)
            own.check_fit(build, weights, arguments.weights)
        job = Job(arguments.model, build, load_npz(arguments.data), weights)
    return dataclasses.replace(
        job,
        recipe=get_recipe(arguments.recipe).with_zeros(arguments.zeros, arguments.pattern),
        dense=dataclasses.replace(job.dense, seed=arguments.seed),
        ternary=dataclasses.replace(job.ternary, epochs=arguments.epochs, seed=arguments.seed),
    )
