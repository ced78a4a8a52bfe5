# SPDX-License-Identifier: Apache-2.0
"""Compress a network to ternary weights and write a program file.

Without arguments: the demo. A small ResNet learns scikit-learn's handwritten digits, is trained on
to 90 % empty quads of ternary weights, saved, reloaded in a process without torch, compared and
measured; the file and a chart appear in the working directory.

Your own classifier: --model is FILE.py:FUNCTION, a function that returns the torch.nn.Module, a
name from a library (torchvision:resnet18, timm:resnet18), or a float network FILE.onnx. --data is
an archive FILE.npz with x [N, C, H, W] and y [N] (and x_test, y_test, if you have them), a folder
of images (CLASS/*.png, or train/CLASS/*.png and test/CLASS/*.png), or FILE.py:FUNCTION, which
returns those arrays. Give --weights to start from your trained network; without them it is trained
first.

A run that was cut off has left OUTPUT.checkpoint; --resume goes on with the same bits. Under
torchrun (torchrun --nproc-per-node 2 -m ternary_ops compress ...) all processes train together.

example: ternary-ops compress
example: ternary-ops compress --model net.py:build --data train.npz -o net.safetensors
example: ternary-ops compress --model net.py:build --data train.npz --target-ms 0.5
example: ternary-ops compress --model torchvision:resnet18 --weights resnet18.pt --data photos
         --size 224 --flip --epochs 10
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ternary_ops.cli.run import numbers
from ternary_ops.errors import BadConfig, MissingExtra, need

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ternary_ops.budget import Budget
    from ternary_ops.data.classification import Split
    from ternary_ops.progress import Progress
    from ternary_ops.study.compressing import Job


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The user's own files, how images are read, the recipe, and the training."""
    own = parser.add_argument_group("your own network")
    own.add_argument(
        "--model",
        metavar="MODEL",
        help="FILE.py:FUNCTION, FILE.onnx, torchvision:NAME or timm:NAME",
    )
    own.add_argument("--data", metavar="DATA", help="FILE.npz, a folder or FILE.py:FUNCTION")
    own.add_argument(
        "--weights", metavar="FILE", help="its state dict (.pt or .safetensors); else it is trained"
    )
    own.add_argument(
        "--trained", action="store_true", help="begin with the weights that the library publishes"
    )
    images = parser.add_argument_group("images")
    images.add_argument("--size", metavar="H[xW]", help="scale the images of a folder")
    images.add_argument("--gray", action="store_true", help="read the images of a folder as gray")
    images.add_argument(
        "--mean",
        help="of the channels, in 0..1: 0.48,0.45,0.4 (default: 0; for torchvision and timm "
        "0.485,0.456,0.406)",
    )
    images.add_argument("--std", help="of the channels (default: 1; else 0.229,0.224,0.225)")
    images.add_argument("--flip", action="store_true", help="mirror images by chance in training")
    images.add_argument(
        "--shift", type=int, default=1, help="move images by up to so many pixels (default 1)"
    )
    recipe = parser.add_argument_group("recipe")
    recipe.add_argument(
        "--recipe",
        default="fastest",
        metavar="NAME",
        help="fastest (default): ternary, 90 %% empty quads, where they save time on this machine; "
        "smallest: the classifier as well, where they cost least accuracy; safe: 8-bit weights, "
        "75 %% empty quads",
    )
    recipe.add_argument("--zeros", type=float, help="share of zeros, instead of the recipe's")
    recipe.add_argument("--pattern", help='"1x4", "element", ..., instead of the recipe\'s')
    recipe.add_argument(
        "--target-ms",
        type=float,
        metavar="MS",
        help="search for widths, zeros and bits that take so long: one input, one thread, here",
    )
    recipe.add_argument(
        "--target-bytes", type=int, metavar="N", help="the same for a file of so many bytes"
    )
    training = parser.add_argument_group("training")
    training.add_argument("--epochs", type=int, default=40, help="ternary ones (default 40)")
    training.add_argument("--batch", type=int, default=64, help="images at once (default 64)")
    training.add_argument(
        "--rate", type=float, default=3e-3, help="highest learning rate (default 0.003)"
    )
    training.add_argument("--seed", type=int, default=0, help="of both trainings (default 0)")
    training.add_argument("--resume", action="store_true", help="go on with a run that was cut off")
    parser.add_argument("-o", "--output", metavar="FILE", help="program file to write")


def run(arguments: argparse.Namespace) -> int:
    """Print one table, save the file and a chart; 0."""
    if importlib.util.find_spec("torch") is None:
        do = "pip install 'ternary-ops[train]'"
        raise MissingExtra(need("PyTorch for compress", "none installed", do))
    from ternary_ops.progress import progress_bars
    from ternary_ops.study import report
    from ternary_ops.study.compressing import compress
    from ternary_ops.train.distributed import ranks

    start = time.perf_counter()
    output = _output(arguments)
    with ranks() as group, progress_bars(quiet=arguments.json or not group.first) as progress:
        outcome = compress(_job(arguments, output, progress), output, progress, group)
    if outcome is None:
        return 0
    chart = output.with_suffix(".png")
    drawn = importlib.util.find_spec("matplotlib") is not None
    if drawn:
        report.chart(outcome, chart)
    seconds = time.perf_counter() - start
    if arguments.json:
        print(json.dumps({**report.to_dict(outcome), "seconds": seconds}, indent=2))
        return 0
    report.table(outcome).show()
    print(f"\nwrote {output}" + (f" and {chart}" if drawn else "") + f" in {seconds:.0f} s")
    return 0


def _output(arguments: argparse.Namespace) -> Path:
    if arguments.epochs < 1:
        raise BadConfig(need("--epochs of at least 1", arguments.epochs, "Leave it out for 40."))
    if arguments.batch < 2:
        raise BadConfig(need("--batch of at least 2", arguments.batch, "Leave it out for 64."))
    if not 0 < arguments.rate < 10:
        raise BadConfig(need("0 < --rate < 10", arguments.rate, "Leave it out for 0.003."))
    if arguments.shift < 0:
        raise BadConfig(need("--shift of at least 0", arguments.shift, "Leave it out for 1."))
    stem = "digits" if arguments.model is None else arguments.model.rpartition(":")[2]
    stem = Path(stem).name.removesuffix(".onnx")
    output = Path(arguments.output or f"{stem}-ternary.safetensors")
    if not output.parent.is_dir():
        raise BadConfig(need("-o in a folder", f"{output.parent}, which is none", "Make it."))
    if output.suffix != ".safetensors":
        raise BadConfig(need("-o that ends in .safetensors", output.name, "Rename it."))
    return output


def _job(arguments: argparse.Namespace, output: Path, progress: Progress) -> Job:
    from ternary_ops.quantize.recipes import get_recipe
    from ternary_ops.study.compressing import Job
    from ternary_ops.study.digits import digits_job

    given = [name for name in _OWN if getattr(arguments, name)]
    if arguments.model is None:
        if given:
            do = "Add --model, or leave it out."
            raise BadConfig(need(f"--model beside --{given[0]}", "no --model", do))
        job = digits_job()
    else:
        if arguments.data is None:
            raise BadConfig(need("--data beside --model", "no --data", "Add --data FILE.npz."))
        split = _split(arguments, progress)
        build, weights = _network(arguments, split)
        job = Job(arguments.model, build, split, weights, flip=arguments.flip)
    course = {"seed": arguments.seed, "batch": arguments.batch, "rate": arguments.rate}
    return dataclasses.replace(
        job,
        recipe=get_recipe(arguments.recipe).with_zeros(arguments.zeros, arguments.pattern),
        dense=dataclasses.replace(job.dense, **course),
        ternary=dataclasses.replace(job.ternary, epochs=arguments.epochs, **course),
        reach=arguments.shift,
        checkpoints=output.with_suffix(".checkpoint"),
        resume=arguments.resume,
        budget=_budget(arguments),
    )


def _budget(arguments: argparse.Namespace) -> Budget | None:
    from ternary_ops.budget import Budget

    if arguments.target_ms is None and arguments.target_bytes is None:
        return None
    if arguments.zeros is not None or arguments.recipe == "smallest":
        got = "--zeros" if arguments.zeros is not None else "--recipe smallest"
        do = "Leave one out: a search chooses the zeros, and keeps the classifier at 8 bits."
        raise BadConfig(need("--target-ms or --target-bytes without it", got, do))
    return Budget(arguments.target_ms, arguments.target_bytes)


_OWN = ("data", "weights", "trained", "size", "gray", "mean", "std", "flip")


def _split(arguments: argparse.Namespace, progress: Progress) -> Split:
    from ternary_ops.data import classification
    from ternary_ops.data.image_folder import count_images
    from ternary_ops.models.zoo import MEAN, STD, is_zoo
    from ternary_ops.study import user_code

    usual = (MEAN, STD) if is_zoo(arguments.model) and not arguments.gray else ((0.0,), (1.0,))
    mean, std = (
        before if text is None else tuple(float(v) for v in numbers(f"--{name}", text))
        for name, text, before in zip(
            ("mean", "std"), (arguments.mean, arguments.std), usual, strict=True
        )
    )
    reading = classification.Reading(mean, std, _size(arguments.size), arguments.gray)
    path = Path(arguments.data)
    if path.is_dir():
        with progress.stage("read images", count_images(path)) as advance:
            return classification.load_folder(path, reading, advance)
    if arguments.size or arguments.gray:
        do = "Leave them out, or pass a folder."
        raise BadConfig(need("a folder of images beside --size and --gray", str(path), do))
    if ".py:" in arguments.data:
        return classification.from_arrays(user_code.load_arrays(arguments.data), reading)
    return classification.load_npz(path, reading)


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(p.isdigit() and 0 < int(p) <= 1 << 14 for p in parts):
        raise BadConfig(need("--size like 224 or 160x240 (H x W)", repr(text), "Correct it."))
    return int(parts[0]), int(parts[-1])


def _network(
    arguments: argparse.Namespace, split: Split
) -> tuple[Callable[[], nn.Module], Mapping[str, Tensor] | None]:
    from ternary_ops.models import zoo
    from ternary_ops.models.weights import load_weights
    from ternary_ops.study import user_code

    weights = load_weights(arguments.weights) if arguments.weights else None
    if zoo.is_zoo(arguments.model):
        given = weights, arguments.trained and weights is None
        build = zoo.zoo_builder(arguments.model, split.classes, split.x_train.shape[1], *given)
        if arguments.trained and weights is None:
            weights = build().state_dict()
    else:
        if arguments.trained:
            do = "Pass --weights FILE."
            got = arguments.model
            raise BadConfig(need("--trained beside a model of torchvision: or timm:", got, do))
        if arguments.model.endswith(".onnx"):
            return user_code.load_onnx_builder(arguments.model, weights)
        build = user_code.load_builder(arguments.model)
    if arguments.weights and weights is not None:
        user_code.check_fit(build, weights, arguments.weights)
    return build, weights
