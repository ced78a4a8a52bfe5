# SPDX-License-Identifier: Apache-2.0
"""tops.compile: a PyTorch network becomes a program."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, overload

import torch
from torch import Tensor, fx, nn

from ternary_ops.engine.functional import name_layers_
from ternary_ops.engine.ir import Graph
from ternary_ops.engine.islands import IslandProgram, compile_with_islands
from ternary_ops.engine.layers import Range
from ternary_ops.engine.lower import lower
from ternary_ops.engine.node_facts import run_checked
from ternary_ops.engine.permute import permute as permute_channels
from ternary_ops.engine.shapes import infer
from ternary_ops.engine.steps import read_steps
from ternary_ops.errors import FormatError, UnsupportedModel, UnsupportedShape, need
from ternary_ops.nn.blocks import float_twins
from ternary_ops.quantize.fold import fold_batchnorm_
from ternary_ops.quantize.observed import ranges_of
from ternary_ops.quantize.trace import trace
from ternary_ops.runtime import Program
from ternary_ops.signature import Signature, signature_of, tensor_of
from ternary_ops.wrappers import copy_of, unwrap

_log = logging.getLogger(__name__)
Example: TypeAlias = "Tensor | Sequence[Any] | Mapping[str, Any]"


@overload
def compile(  # noqa: A001
    model: nn.Module,
    example_input: Example,
    *,
    permute: bool = False,
    tune: bool = False,
    output: str | None = None,
) -> Program: ...
@overload
def compile(  # noqa: A001
    model: nn.Module,
    example_input: Example,
    *,
    islands: bool,
    permute: bool = False,
    tune: bool = False,
    output: str | None = None,
) -> Program | IslandProgram: ...
def compile(  # noqa: A001
    model: nn.Module,
    example_input: Example,
    *,
    islands: bool = False,
    permute: bool = False,
    tune: bool = False,
    output: str | None = None,
) -> Program | IslandProgram:
    """Turn a float, quantized or packed network into a Program.

    Works on a copy in eval mode and folds BatchNorm there. Layers with uint8 activations run in
    integers, from their own codes whatever the phase; torch.nn's layers, block-sparse and
    weight-only ones run in float32, convolutions without what is zero in their weights and linear
    layers from the codes as they are stored. DataParallel and other wrappers are looked into.

    example_input: one float tensor [N, C, H, W] or [N, K], which fixes the channels; N, H and W
    stay free. Or a tuple of positional or a dict of keyword arguments that holds one such tensor;
    what is beside it stays constant.

    output: of a network that returns several tensors the one that counts, by its key, field or
    index ("logits", "0", "aux.1").

    islands: where a module has no program form, run it in PyTorch between programs and return an
    IslandProgram, which names such modules and cannot be saved.

    permute: reorder inner channels so that zeros fall into fewer quads (`engine.permute`): the
    outputs keep their bits, networks pruned element by element get faster, compiling slower.
    tune: time every integer layer on example_input, dense and sparse (`Program.tune`).

    Raises UnsupportedModel listing every part that has no program form, every layer whose range
    calibrate has not set, or the names of several inputs or outputs; BadWeights for weights that
    are not finite.
    """
    model = unwrap(model)
    signature = signature_of(model, example_input, output)
    x = _example(tensor_of(model, example_input))
    network = float_twins(copy_of(model).cpu().float().eval())
    return _compiled(network, x, signature, ranges_of(model), (islands, permute, tune))


def _compiled(
    network: nn.Module,
    x: Tensor,
    signature: Signature,
    ranges: Mapping[str, Range],
    options: tuple[bool, bool, bool],
) -> Program | IslandProgram:
    islands, permute, tune = options

    def part(module: nn.Module, sample: Tensor) -> Program:
        return _whole(copy_of(module), sample, signature_of(module), ranges, permute, tune)

    if islands:
        with torch.no_grad():
            made = compile_with_islands(network, x, signature, part)
        if made.islands:
            return made
    return _whole(network, x, signature, ranges, permute, tune)


def _whole(
    network: nn.Module,
    x: Tensor,
    signature: Signature,
    ranges: Mapping[str, Range],
    permute: bool,
    tune: bool,
) -> Program:
    with torch.no_grad():
        fold_batchnorm_(network, signature)
        traced = trace(network, signature=signature)
        name_layers_(traced)
        expected = run_checked(network, traced, x, signature)
        graph = _lower(traced, x, ranges)
    shape = infer(graph, x.shape[0], *x.shape[2:])[-1]
    if shape != tuple(expected.shape):
        raise UnsupportedModel(
            need(
                f"the program's output needs the model's shape {list(expected.shape)}",
                list(shape),
                "Report this model; it was misread.",
            )
        )
    program = Program(_permuted(graph, x.shape) if permute else graph, tuple(x.shape))
    if tune:
        program.tune(x.numpy())
    return program


def _permuted(graph: Graph, shape: Sequence[int]) -> Graph:
    made, report = permute_channels(graph, shape)
    _log.info("permute: occupied quads times pixels %d -> %d", report.before, report.after)
    return made


def _lower(traced: fx.GraphModule, x: Tensor, ranges: Mapping[str, Range]) -> Graph:
    try:
        return lower(read_steps(traced, ranges), x.shape)
    except FormatError as error:  # what a program cannot hold, a model cannot ask for
        raise UnsupportedModel(str(error)) from error


def _example(x: object) -> Tensor:
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.ndim not in (2, 4):
        got = f"{x.dtype} {list(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise UnsupportedShape(
            need(
                "example_input is one float tensor [N, C, H, W] or [N, K]",
                got,
                "Pass a batch that the model takes.",
            )
        )
    return x.detach().cpu().float()
