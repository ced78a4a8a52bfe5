# SPDX-License-Identifier: Apache-2.0
"""Run a saved program on .npy arrays or images, without torch.

An .npy holds one input [C, H, W] or a batch [N, C, H, W] (or [N, K]); uint8 is divided by 255. An
image (needs Pillow) is turned gray or RGB to match the program and divided by 255, then --mean and
--std are applied. Prints the top class of each input; -o saves the raw output of all inputs.

example: ternary-ops run digits-ternary.safetensors digits.npy -o logits.npy
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ternary_ops._atomic import replace_file
from ternary_ops.errors import BadConfig, FormatError, MissingExtra, UnsupportedShape, need
from ternary_ops.table import Table

_SHOWN = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The program and its inputs."""
    parser.add_argument("file", metavar="FILE", help="a program that `compress` or .save wrote")
    parser.add_argument("inputs", metavar="INPUT", nargs="+", help=".npy files or images")
    parser.add_argument("-o", "--output", metavar="OUT.npy", help="save the output [N, ...] here")
    parser.add_argument(
        "--mean", default="0", help="of an image's channels, in 0..1: 0.48,0.45,0.4"
    )
    parser.add_argument("--std", default="1", help="of an image's channels: 0.22,0.22,0.22")


def run(arguments: argparse.Namespace) -> int:
    """Run all inputs in the order given; 0."""
    from ternary_ops import runtime

    program = runtime.load(arguments.file)
    mean, std = numbers("--mean", arguments.mean), numbers("--std", arguments.std)
    if not std.all():
        raise BadConfig(need("--std other than zero", arguments.std, "Leave it out for 1."))
    channels, rank = program.channels, program.rank
    outputs, names = [], []
    for path in map(Path, arguments.inputs):
        if path.suffix == ".npy":
            x = read_npy(path, rank)
        else:
            x = _read_image(path, channels, rank, mean, std)
        outputs.append(program(x))
        names += [f"{path.name}[{i}]" for i in range(len(x))] if len(x) != 1 else [path.name]
    result = _join(outputs)
    if arguments.output:
        replace_file(_npy(arguments.output), lambda target: np.save(target, result))
    _show(names, result, arguments)
    return 0


def _show(names: list[str], result: NDArray[Any], arguments: argparse.Namespace) -> None:
    if result.ndim != 2:
        rows: list[dict[str, Any]] = [
            {"input": name, "shape": list(result.shape[1:])} for name in names
        ]
    else:
        best = result.argmax(1) if result.size else np.zeros(0, int)
        rows = [
            {"input": name, "class": int(k), "score": float(y[k])}
            for name, k, y in zip(names, best, result, strict=True)
        ]
    if arguments.json:
        print(json.dumps({"output": arguments.output, "results": rows}, indent=2))
        return
    cells = [[f"{v:.4f}" if isinstance(v, float) else str(v) for v in r.values()] for r in rows]
    left_out = len(cells) - _SHOWN
    notes = [f"... and {left_out} more (--json prints all)"] if left_out > 0 else []
    if arguments.output:
        notes.append(f"saved {arguments.output}, {result.dtype} {list(result.shape)}")
    columns = list(rows[0]) if rows else ["input", "class", "score"]
    Table(columns, cells[:_SHOWN], notes=notes).show()


def read_npy(path: Path, rank: int) -> NDArray[np.float32]:
    """float32 [N, ...] of `rank` axes; a single input gets its batch axis."""
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        do = "Save it with numpy.save."
        raise FormatError(need(f"an .npy file of numbers in {path}", str(error), do)) from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu":
        raise FormatError(need(f"numbers in {path}", getattr(array, "dtype", "none"), "Convert."))
    if array.ndim == rank - 1:
        array = array[None]
    if array.ndim != rank:
        what = f"{rank - 1} or {rank} axes in {path}"
        raise UnsupportedShape(need(what, list(array.shape), "Reshape it."))
    divisor = 255 if array.dtype == np.uint8 else 1
    return np.ascontiguousarray(array.astype(np.float32) / np.float32(divisor))


def _read_image(
    path: Path, channels: int, rank: int, mean: NDArray[np.float32], std: NDArray[np.float32]
) -> NDArray[np.float32]:
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        do = "pip install 'ternary-ops[image]'"
        raise MissingExtra(need("Pillow for reading images", "none installed", do)) from error
    mode = {1: "L", 3: "RGB", 4: "RGBA"}.get(channels)
    if mode is None or rank != 4:
        do = "Pass an .npy array."
        raise UnsupportedShape(need("an image of 1, 3 or 4 channels", f"{channels}", do))
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert(mode), np.float32) / np.float32(255)
    except UnidentifiedImageError as error:
        raise FormatError(need(f"an image in {path}", "something else", "Pass .npy or PNG.")) from (
            error
        )
    scaled = (pixels.reshape(*pixels.shape[:2], channels) - mean) / std
    return np.ascontiguousarray(scaled.transpose(2, 0, 1)[None], np.float32)


def numbers(option: str, text: str) -> NDArray[np.float32]:
    """The numbers of "0.5,0.5,0.5"; BadConfig, naming the option, for anything else."""
    try:
        values = np.array([float(part) for part in text.split(",")], np.float32)
    except ValueError as error:
        do = "Separate the channels by commas: 0.5,0.5,0.5"
        raise BadConfig(need(f"numbers for {option}", repr(text), do)) from error
    return values


def _join(outputs: list[NDArray[Any]]) -> NDArray[Any]:
    shapes = {y.shape[1:] for y in outputs}
    if len(shapes) > 1:
        what = "inputs of one run that give outputs of one shape"
        raise UnsupportedShape(need(what, sorted(shapes), "Run the sizes one after the other."))
    return np.concatenate(outputs)


def _npy(path: str) -> Path:
    if not path.endswith(".npy"):
        raise BadConfig(need("an .npy file for -o", path, "Add .npy."))
    return Path(path)
