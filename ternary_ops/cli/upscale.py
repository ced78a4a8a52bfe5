# SPDX-License-Identifier: Apache-2.0
"""Make images larger with a super-resolution network.

INPUT: image files, folders or patterns; the last name is the output, a file or a folder. --weights
is a checkpoint of EFDN, FMEN, RFDN, RLFN or IMDN (.pth, .npz, .safetensors), or a program of one;
what it is, and its scale, is read from it. Without it, and without --model, one of the package's
own networks of --scale is taken. Bit depth, transparency, color profile and EXIF stay. Images that
are there already are kept; a file that cannot be read is named at the end, and the rest is made.
Needs pip install 'ternary-ops[upscale]', checkpoints 'ternary-ops[sr]'.

example: ternary-ops upscale photo.jpg large.png --scale 2
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ternary_ops.errors import BadConfig, need

if TYPE_CHECKING:
    from ternary_ops.sr.inference.jobs import Outcome

_STEPS = 100  # of the progress bar, an image
_FAILED = 1
_SCALE = 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments: inputs, output folder and options."""
    parser.add_argument("inputs", metavar="INPUT", nargs="+", help="files, folders or patterns")
    parser.add_argument("output", metavar="OUT", help="a file, or a folder that mirrors folders")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--weights", metavar="FILE", help="a checkpoint or program")
    source.add_argument("--model", metavar="NAME", help="one of the package's own, by name")
    parser.add_argument("--scale", type=int, metavar="S", help="default: 4, or that of the weights")
    parser.add_argument("--tile", type=int, metavar="N", help="pixels; default: what memory allows")
    parser.add_argument(
        "--alpha", default="model", metavar="MODE", help="model (default), bicubic or drop"
    )
    parser.add_argument("--format", metavar="SUFFIX", help="png, jpg, webp, tif; default: as given")
    parser.add_argument("--recursive", action="store_true", help="folders within folders too")
    parser.add_argument("--overwrite", action="store_true", help="make anew what is there already")
    parser.add_argument(
        "--compare", action="store_true", help="also NAME.compare.png: bicubic, made"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="default: one a core")
    parser.add_argument("--quiet", action="store_true", help="no progress, no list")


def run(arguments: argparse.Namespace) -> int:
    """Make every image; 0, or 1 where some failed."""
    from ternary_ops import sr
    from ternary_ops.progress import progress_bars
    from ternary_ops.sr.inference import jobs

    suffix = None if arguments.format is None else "." + arguments.format.lower().lstrip(".")
    works = jobs.plan(arguments.inputs, Path(arguments.output), arguments.recursive, suffix)
    named = arguments.weights or arguments.model
    model = sr.Upscaler(sr.open_model(named or arguments.scale or _SCALE))
    if arguments.scale not in (None, model.scale):
        got = f"{arguments.scale}; {named} makes {model.scale}"
        raise BadConfig(need("--scale like that of the weights", got, "Pass other weights."))
    options = jobs.Options(
        *(arguments.tile, arguments.alpha, arguments.overwrite, arguments.compare)
    )
    outcomes = []
    quiet = arguments.quiet or arguments.json
    with (
        _threads(arguments.threads),
        progress_bars(quiet) as progress,
        progress.stage("upscale", _STEPS * len(works)) as advance,
    ):
        for outcome in jobs.run(works, model, options, _counter(advance)):
            outcomes.append(outcome)
    _show(outcomes, arguments)
    return _FAILED if any(o.state == "failed" for o in outcomes) else 0


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """In programs, and in PyTorch, where tiles of networks with ESA run; None: as it is."""
    if count is None:
        yield
        return
    from ternary_ops import runtime

    torch = sys.modules.get("torch")  # a program runs without it
    before = torch.get_num_threads() if torch else 0
    with runtime.num_threads(count):
        if torch:
            torch.set_num_threads(count)
        try:
            yield
        finally:
            if torch:
                torch.set_num_threads(before)


def _counter(advance: Callable[[], None]) -> Callable[[float], None]:
    """From how many images are done to steps of the bar."""
    shown = 0

    def on_progress(done: float) -> None:
        nonlocal shown
        wanted = math.floor(_STEPS * done + 1e-6)
        for _ in range(wanted - shown):
            advance()
        shown = max(shown, wanted)

    return on_progress


def _show(outcomes: list[Outcome], arguments: argparse.Namespace) -> None:
    if arguments.json:
        rows = [
            {"source": str(o.work.source), "target": str(o.work.target), "state": o.state}
            | ({"reason": o.reason} if o.reason else {})
            for o in outcomes
        ]
        print(json.dumps(rows, indent=2))
        return
    count = Counter(o.state for o in outcomes)
    for outcome in outcomes:
        if outcome.state == "failed":
            print(f"failed: {outcome.work.source}: {outcome.reason}")
        elif outcome.state == "kept" and not arguments.quiet:
            print(f"kept: {outcome.work.target} was there (--overwrite makes it anew)")
    if not arguments.quiet:
        print(", ".join(f"{count[s]} {s}" for s in ("made", "kept", "failed") if count[s]))
