# SPDX-License-Identifier: Apache-2.0
"""Batch upscaling of image files: jobs, their execution, and a result for each file."""

from __future__ import annotations

import glob
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ternary_ops.errors import BadConfig, TernaryOpsError, need
from ternary_ops.sr.inference.image_io import SUFFIXES, read, write
from ternary_ops.sr.inference.picture import Picture
from ternary_ops.sr.inference.tiling import Upscaler
from ternary_ops.sr.inference.upscaling import bicubic, check_options, upscale

_FILE_NAME = re.compile(r"\.(?=\w*[A-Za-z])\w{2,5}$")  # a.gif, a.jp2; not v1.2
OnProgress = Callable[[float], None]


@dataclass(frozen=True)
class Work:
    """One file to read and where its larger image goes."""

    source: Path
    target: Path


@dataclass(frozen=True)
class Outcome:
    """state: "made", "kept" (the target was there before) or "failed", with the reason."""

    work: Work
    state: str
    reason: str = ""


@dataclass(frozen=True)
class Options:
    """Options of `sr.upscale`; overwrite: existing targets are made anew.

    compare: beside each target, NAME.compare.png: the image interpolated, and as it was made.
    """

    tile: int | None = None
    alpha: str = "model"
    overwrite: bool = False
    compare: bool = False

    def __post_init__(self) -> None:
        """Refuse what `sr.upscale` would refuse for every image."""
        check_options(self.tile, self.alpha)


def plan(inputs: Sequence[str], output: Path, recursive: bool, suffix: str | None) -> list[Work]:
    """Every image that the inputs name, files, folders or patterns, and its place in the output.

    One file may go to a file; else `output` is a folder that mirrors the folders given. suffix: of
    all targets; None: as in the source. Raises BadConfig where nothing is found, a name does not
    exist, `output` is a new name that looks like a file's but cannot be one, or two images would
    go to one place.
    """
    if suffix not in (None, *SUFFIXES):
        raise BadConfig(need(f"a format out of {', '.join(SUFFIXES)}", suffix, "Take one."))
    found: list[tuple[Path, Path]] = []  # the file, and its name below the output
    for text in inputs:
        paths = [Path(text)] if Path(text).exists() else [Path(p) for p in sorted(glob.glob(text))]
        if not paths:
            raise BadConfig(need("files, folders or patterns as inputs", text, "Correct it."))
        for path in paths:
            below = _images(path, recursive) if path.is_dir() else [path]
            found += [(p, p.relative_to(path) if path.is_dir() else Path(p.name)) for p in below]
    if not found:
        do = f"Images end in {', '.join(SUFFIXES)}; folders within take --recursive."
        raise BadConfig(need("images in the inputs", "none", do))
    if len(found) == 1 and output.suffix.lower() in SUFFIXES and not output.is_dir():
        return [Work(found[0][0], output)]
    if _FILE_NAME.search(output.name) and not output.is_dir():
        wanted = f"for one image a file in {', '.join(SUFFIXES)}, several to a folder"
        do = "Correct the name, or make a folder of that name first."
        raise BadConfig(need(wanted, f"{len(found)} to {output.name}", do))
    works = [Work(p, output / (n if suffix is None else n.with_suffix(suffix))) for p, n in found]
    seen: dict[Path, Path] = {}
    for work in works:
        other = seen.setdefault(work.target, work.source)
        if other is not work.source:
            got = f"{other} and {work.source} both as {work.target}"
            raise BadConfig(need("an output file of its own for every image", got, "Rename one."))
    return works


def _images(folder: Path, recursive: bool) -> list[Path]:
    paths = folder.rglob("*") if recursive else folder.glob("*")
    return sorted(p for p in paths if p.suffix.lower() in SUFFIXES and p.is_file())


def run(
    works: Iterable[Work], model: Upscaler, options: Options, on_progress: OnProgress
) -> Iterator[Outcome]:
    """Make every image, in order; while one is computed the next is read and the last is written.

    on_progress is called with the number of images done, parts included; it never falls. A file
    that cannot be read or written is an outcome, not an end.
    """
    works = list(works)
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
        ahead: dict[int, Future[Picture]] = {}

        def fetch(number: int) -> None:
            if number < len(works) and (options.overwrite or not works[number].target.exists()):
                ahead[number] = reader.submit(read, works[number].source)

        fetch(0)
        last: Future[Outcome] | None = None
        for number, work in enumerate(works):
            fetch(number + 1)
            made: Made | Outcome = Outcome(work, "kept")
            if number in ahead:
                share = _shifted(on_progress, number)
                made = _made(work, ahead.pop(number), model, options, share)
            going = writer.submit(_stored, work, made)
            if last is not None:
                yield last.result()
            last = going
            on_progress(number + 1)
        if last is not None:
            yield last.result()


def _shifted(on_progress: OnProgress, done: int) -> OnProgress:
    return lambda share: on_progress(done + share)


@dataclass(frozen=True)
class Made:
    """Images to be written: the upscaled one and, if asked, the comparison."""

    picture: Picture
    compared: Picture | None = None


def _made(
    work: Work, ahead: Future[Picture], model: Upscaler, options: Options, on_progress: OnProgress
) -> Made | Outcome:
    try:
        given = ahead.result()
        pixels = upscale(given.pixels, model, options.tile, options.alpha, on_progress)
        compared = _beside(given, pixels, model.scale) if options.compare else None
    except (TernaryOpsError, OSError, MemoryError) as error:
        return Outcome(work, "failed", _reason(error))
    dpi = given.dpi and (given.dpi[0] * model.scale, given.dpi[1] * model.scale)
    return Made(replace(given, pixels=pixels, dpi=dpi), compared)


def _beside(given: Picture, pixels: NDArray[Any], scale: int) -> Picture:
    """Interpolated on the left, made on the right."""
    left = bicubic(given.pixels, scale)
    if left.ndim == 3 and left.shape != pixels.shape:  # alpha was dropped
        left = left[..., : pixels.shape[2]]
    return Picture(np.concatenate([left, pixels], axis=1), given.icc)


def _stored(work: Work, made: Made | Outcome) -> Outcome:
    if isinstance(made, Outcome):
        return made
    try:
        work.target.parent.mkdir(parents=True, exist_ok=True)
        write(work.target, made.picture)
        if made.compared is not None:
            write(work.target.with_suffix(".compare.png"), made.compared)
    except OSError as error:  # which may name the temporary file
        why = f"{work.target} cannot be written: {error.strerror or error}"
        return Outcome(work, "failed", f"{type(error).__name__}: {why}")
    except (TernaryOpsError, MemoryError) as error:
        return Outcome(work, "failed", _reason(error))
    return Outcome(work, "made")


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
