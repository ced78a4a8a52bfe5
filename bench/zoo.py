# SPDX-License-Identifier: Apache-2.0
"""Every family of torchvision and timm through the compiler: which networks run, and how right.

    python bench/zoo.py                                # the models of bench/zoo_models.txt
    python bench/zoo.py --only 'timm:vit_*' --again    # some of them, measured anew
    python bench/zoo.py --quick --out zoo_quick.csv    # no quantization, no islands, no times

A row a model, each in a process of its own with limits of time and memory. Weights are random, none
are zero, and BatchNorm has seen two batches. `state` is of the float32 program without islands: ok,
refused, wrong (more than 1e-3 of the largest output from torch), crash (any error but a refusal),
timeout or memory; `error` is the largest difference over the largest output, for four images.
Columns int8_: all layers at 8 bits, ranges of the default calibration: int8_reference_error of each
node beside its NumPy reference, int8_fake_error beside the fake-quantized network in torch,
whose skip connections stay float, int8_sqnr and int8_fake_sqnr of both beside float, in dB.
Columns islands_, of refused models: islands_share is the share of multiply-adds that PyTorch does.
ms, torch_ms and int8_ms: one image, one thread, processor time. Models that --out holds are
left out, but for rows of a --quick run: an interrupted run goes on. Each run ends with a summary
and writes docs/models.md where --out is zoo.csv. --families adds a small variant of every family
that --models does not have.
--check-times compares what `ternary-ops check` predicts for ten networks with the same networks
made by plan, quantize_, one step of a Pruner, calibrate and compile (bench/results/check.csv).
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import time
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from _measure import RESULTS, command_line, commit, machine, read_rows, write_csv
from _zoo_report import COLUMNS, PAGE, README, page, summary, with_headline

LIST = Path(__file__).resolve().parent / "zoo_models.txt"
_PACKAGES = ("torchvision", "timm")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = command_line(__doc__)
    parser.add_argument("--models", type=Path, default=LIST, help="a list of models")
    parser.add_argument("--only", help="globs of source:model, comma-separated")
    parser.add_argument("--again", action="store_true", help="measure models that --out has, too")
    parser.add_argument("--quick", action="store_true", help="compile in float32 alone")
    parser.add_argument("--seconds", type=int, default=300, help="limit of a model (default 300)")
    parser.add_argument("--gigabytes", type=int, default=10, help="limit of a model (default 10)")
    parser.add_argument("--out", default="zoo.csv", help="file name under bench/results")
    parser.add_argument("--messages", type=Path, help="a file for whole messages of refusals")
    parser.add_argument("--families", action="store_true", help="see above; measures nothing")
    parser.add_argument("--check-times", metavar="NAMES", nargs="?", const="", help="see above")
    parser.add_argument("--report", action="store_true", help="print the summary, measure nothing")
    return parser.parse_args()


def check_packages() -> None:
    """End with the command to type where a library is missing."""
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        sys.exit(
            f"zoo needs torchvision and timm, got no {' and no '.join(missing)}. "
            f"pip install {' '.join(missing)}, in the releases that fit your torch."
        )


def run_one(model: Any, options: argparse.Namespace) -> dict[str, Any]:
    """The row of a model, measured in a process of its own; what stopped it is its state."""
    with tempfile.TemporaryDirectory() as folder:
        result, log = Path(folder, "row.json"), Path(folder, "log")
        start = time.perf_counter()
        # Forked: what takes seconds to import is there, and nothing of it has run yet.
        child = multiprocessing.get_context("fork").Process(
            target=_work, args=(model, options, result, log)
        )
        child.start()
        child.join(options.seconds)
        code = child.exitcode
        if code is None:
            child.kill()
            child.join()
        row = json.loads(result.read_text()) if result.exists() else {"part": "starting"}
        row["total_seconds"] = round(time.perf_counter() - start, 1)
        if code != 0:
            _note_end(row, code, log.read_text(errors="replace"))
    return {**model._asdict(), **row}


def _work(model: Any, options: argparse.Namespace, result: Path, log: Path) -> None:
    """In the new process: measure, and keep the row after each part."""
    from _zoo_model import measure

    most = options.gigabytes << 30
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    with log.open("w") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)

    def save(row: dict[str, Any]) -> None:
        temporary = result.with_suffix(".tmp")
        temporary.write_text(json.dumps(row), encoding="utf-8")
        os.replace(temporary, result)

    measure(model, options.quick, save)


def _note_end(row: dict[str, Any], code: int | None, log: str) -> None:
    """The state of the part that a process did not finish."""
    prefix = {"8 bits": "int8_", "islands": "islands_"}.get(row.get("part", ""), "")
    last = (log.strip().splitlines() or [""])[-1]
    if code is None:
        state, reason = "timeout", f"while {row.get('part')}"
    elif "MemoryError" in last or "not enough memory" in last:
        state, reason = "memory", last
    else:
        died = signal.Signals(-code).name if code < 0 else last
        state, reason = "crash", f"while {row.get('part')}: {died}"
    row.update({f"{prefix}state": state, f"{prefix}reason": reason})


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """The CSV, every column in every row; long messages are cut, `--messages` has them whole."""
    from ternary_ops.table import write_csv as write

    def cell(name: str, value: Any) -> Any:
        if name.endswith("reason"):
            return " ".join(str(value).split())[:240]
        return f"{value:.3g}" if name.endswith("error") and isinstance(value, float) else value

    path.parent.mkdir(exist_ok=True)
    write(path, [{n: cell(n, row.get(n, "")) for n in COLUMNS} for row in rows])


def is_complete(row: dict[str, Any], quick: bool) -> bool:
    """False for a row of a quick run, which lacks the parts behind the first."""
    part = {"ok": "int8_", "refused": "islands_"}.get(row["state"])
    return quick or part is None or bool(row[f"{part}state"])


def run_all(options: argparse.Namespace) -> int:
    """Measure what is asked for, one process after the other."""
    from _zoo_list import read_list

    path = RESULTS / options.out
    globs = options.only.split(",") if options.only else ["*"]
    rows = {(row["source"], row["name"], int(row["size"])): row for row in read_rows(path)}
    models = [
        m
        for m in read_list(options.models)
        if any(fnmatchcase(f"{m.source}:{m.name}", glob) for glob in globs)
        and (options.again or m[:3] not in rows or not is_complete(rows[m[:3]], options.quick))
    ]
    about = {"commit": commit(), **machine()}
    for name in ("_zoo_model", *_PACKAGES):
        importlib.import_module(name)
    for number, model in enumerate(models, 1):
        row = {**run_one(model, options), **about}
        rows[model[:3]] = row
        states = [str(row.get(f"{p}state", "-")) for p in ("", "int8_", "islands_")]
        print(
            f"{number}/{len(models)} {model}: {' '.join(states)}, {row['total_seconds']} s",
            flush=True,
        )
        write_rows(path, list(rows.values()))
        if options.messages:
            with options.messages.open("a", encoding="utf-8") as file:
                kept = {k: v for k, v in row.items() if k.endswith("reason")}
                file.write(json.dumps({"model": str(model), **kept}) + "\n")
    return conclude(options)


def check_times(names: str) -> int:
    """Measure some networks of check.csv, or all; 1 where a time is off by more than a tenth."""
    from _zoo_check import NETWORKS, rows

    chosen = names.split(",") if names else NETWORKS
    made = [row for row in read_rows(RESULTS / "check.csv") if row["network"] not in chosen]
    for row in rows(chosen):
        print(row, flush=True)
        made.append({**row, "commit": commit(), **machine()})
        write_csv("check.csv", made)
    return int(not all(str(row["match"]) == "True" for row in made))


def conclude(options: argparse.Namespace) -> int:
    """Print the summary and, of zoo.csv, write the page; 1 where a model is wrong or crashes."""
    rows = read_rows(RESULTS / options.out)
    print(summary(rows))
    if options.out == "zoo.csv" and not options.quick:
        PAGE.write_text(page(rows), encoding="utf-8")
        text = with_headline(README.read_text(encoding="utf-8"), rows)
        README.write_text(text, encoding="utf-8")
        print("written:", PAGE, README)
    bad = {"wrong", "crash", "timeout", "memory"}
    return int(any(row[f"{p}state"] in bad for row in rows for p in ("", "int8_", "islands_")))


def main() -> int:
    """The list of families, the summary, or a run."""
    options = arguments()
    if options.report:
        return conclude(options)
    check_packages()
    if options.check_times is not None:
        return check_times(options.check_times)
    if options.families:
        from _zoo_list import families, read_list, write_list

        known = read_list(options.models)
        write_list(LIST, known + families(known))
        return 0
    return run_all(options)


if __name__ == "__main__":
    sys.exit(main())
