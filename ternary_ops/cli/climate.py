# SPDX-License-Identifier: Apache-2.0
"""Train, score and draw downscaling of climate fields.

fit NAME=FILE...: trains a model; one of the data sets is the --target, the others are predictors on
any grids, matched by date. score MADE TRUTH: errors, tails, spectrum, conservation. plot FILE: a
map of one step. Files are NetCDF or Zarr, FILE:GROUP a group. Needs pip install
'ternary-ops[climate]'; fit also 'ternary-ops[train]', plot 'ternary-ops[maps]'.

example: ternary-ops climate fit eobs=eobs.nc ncep=ncep.nc --target eobs -o iberia.safetensors
"""

from __future__ import annotations

import argparse
import json

from ternary_ops.errors import needs_package


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the three."""
    actions = parser.add_subparsers(dest="action", metavar="fit|score|plot", required=True)
    fit = actions.add_parser("fit", help="train a model")
    fit.add_argument("data", metavar="NAME=FILE", nargs="+")
    fit.add_argument("--target", required=True, metavar="NAME", help="the data set to learn")
    fit.add_argument("-o", "--output", required=True, metavar="FILE", help="the model")
    fit.add_argument("--kind", choices=["local", "domain"], help="default: by the data")
    fit.add_argument("--members", type=int, default=1, metavar="N", help="networks in one file")
    fit.add_argument("--epochs", type=int, metavar="N")
    fit.add_argument("--seed", type=int, default=0)
    fit.add_argument("--no-season", action="store_true", help="not the day of the year")
    fit.add_argument("--no-previous", action="store_true", help="not the step before")
    fit.add_argument("--gap", default="repeat", help="first step after a gap: repeat or nan")
    fit.add_argument("--quiet", action="store_true", help="no progress")
    score = actions.add_parser("score", help="compare two fields")
    score.add_argument("made", metavar="MADE")
    score.add_argument("truth", metavar="TRUTH")
    score.add_argument("--coarse", metavar="FILE", help="what was downscaled: conservation")
    score.add_argument("--model", metavar="FILE", help="whose training dates are refused")
    plot = actions.add_parser("plot", help="draw a map")
    plot.add_argument("file", metavar="FILE")
    plot.add_argument("-o", "--output", required=True, metavar="IMAGE", help="PNG, SVG or PDF")
    plot.add_argument("--step", type=int, default=0, metavar="N", help="of time, from 0")
    plot.add_argument("--relief", metavar="FILE", help="heights, whose zero contour is the coast")
    for one in (fit, score, plot):
        one.add_argument("--variable", metavar="NAME")
        one.add_argument(
            "--json", action="store_true", default=argparse.SUPPRESS, help="print JSON, for scripts"
        )
    fit.add_argument("--units", metavar="VARIABLE=UNITS", action="append", default=[])


def run(arguments: argparse.Namespace) -> int:
    """Do one of the three."""
    {"fit": _fit, "score": _score, "plot": _plot}[arguments.action](arguments)
    return 0


def _fit(arguments: argparse.Namespace) -> None:
    from ternary_ops import climate
    from ternary_ops.climate import opening
    from ternary_ops.progress import progress_bars

    with needs_package("torch", "climate fit", "pip install 'ternary-ops[train]'"):
        from ternary_ops.climate.fitting import Recipe
    features = climate.Features(
        target=arguments.target,
        variable=arguments.variable,
        season=not arguments.no_season,
        previous=not arguments.no_previous,
        gap=arguments.gap,
    )
    more = {} if arguments.epochs is None else {"epochs": arguments.epochs}
    recipe = Recipe(
        features, arguments.kind, members=arguments.members, seed=arguments.seed, **more
    )
    data = opening.named(arguments.data, arguments.target)
    units = opening.parse_units(arguments.units)
    steps = climate.training_steps(data, recipe, units)
    with (
        progress_bars(arguments.quiet or arguments.json) as progress,
        progress.stage("fit", steps) as advance,
    ):
        model = climate.fit(data, recipe, units, advance)
    model.save(arguments.output)
    if arguments.json:
        print(json.dumps({"output": arguments.output, "kind": model.kind}))
    else:
        print(f"{arguments.output}: {model}")


def _score(arguments: argparse.Namespace) -> None:
    from ternary_ops import climate
    from ternary_ops.climate import opening
    from ternary_ops.table import Table

    def field(path: str) -> object:
        return opening.variable_of(opening.open_data(path), arguments.variable)

    coarse = None if arguments.coarse is None else field(arguments.coarse)
    model = None if arguments.model is None else climate.Downscaler.load(arguments.model)
    figures = climate.score(field(arguments.made), field(arguments.truth), model, coarse)
    if arguments.json:
        print(json.dumps(figures))
    else:
        Table(["score", "value"], [[name, f"{v:.6g}"] for name, v in figures.items()]).show()


def _plot(arguments: argparse.Namespace) -> None:
    from ternary_ops.climate import opening, plots

    field = opening.variable_of(opening.open_data(arguments.file), arguments.variable)
    relief = None
    if arguments.relief is not None:
        relief = opening.variable_of(opening.open_data(arguments.relief), None)
    plots.plot_map(field, arguments.output, arguments.step, relief)
    print(json.dumps({"output": arguments.output}) if arguments.json else arguments.output)
