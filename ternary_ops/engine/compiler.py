# SPDX-License-Identifier: Apache-2.0
"""tops.compile: a PyTorch network becomes a program."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn

from ternary_ops.engine.ir import Graph
from ternary_ops.engine.lower import lower
from ternary_ops.engine.match import Shapes
from ternary_ops.engine.permute import permute as permute_channels
from ternary_ops.engine.shapes import infer
from ternary_ops.engine.steps import read_steps
from ternary_ops.errors import FormatError, UnsupportedModel, UnsupportedShape, need
from ternary_ops.quantize.fold import fold_batchnorm_
from ternary_ops.quantize.trace import trace
from ternary_ops.runtime import Program

_log = logging.getLogger(__name__)


def compile(  # noqa: A001
    model: nn.Module, example_input: Tensor, *, permute: bool = False, tune: bool = False
) -> Program:
    """Turn a float, quantized or packed network into a Program.

    Works on a copy in eval mode and folds BatchNorm there. Layers with uint8 activations run in
    integers, from their own codes whatever the phase; torch.nn's layers and weight-only ones run in
    float32. example_input, float [N, C, H, W] or [N, K], fixes the channels; N, H and W stay free.

    permute: reorder inner channels so that zeros fall into fewer quads (`engine.permute`): the
    outputs keep their bits, networks pruned element by element get faster, compiling slower.
    tune: time every integer layer on example_input, dense and sparse (`Program.tune`).

    Raises UnsupportedModel listing every part that has no program form, or every layer whose range
    calibrate has not set; BadWeights for weights that are not finite.
    """
    x = _example(example_input)
    network = copy.deepcopy(model).cpu().float().eval()
    with torch.no_grad():
        fold_batchnorm_(network)
        traced = trace(network)
        expected = Shapes(traced).run(x.clone())
        _check_trace(network, x, expected)
        graph = _lower(traced, x)
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


def _lower(traced: fx.GraphModule, x: Tensor) -> Graph:
    try:
        return lower(read_steps(traced), x.shape)
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


def _check_trace(network: nn.Module, x: Tensor, traced: object) -> None:
    """A trace misses what Python does to tensors behind its back; the example shows it."""
    eager = network(x.clone())
    if not isinstance(traced, Tensor) or not isinstance(eager, Tensor):
        return  # read_steps says that one output tensor is supported
    same = eager.shape == traced.shape
    if not (same and torch.allclose(eager, traced, rtol=1e-3, atol=1e-5, equal_nan=True)):
        raise UnsupportedModel(
            need(
                "the traced model must compute what the model does",
                "another result for example_input",
                "Avoid x += y on a tensor that has a second name, and randomness in eval mode.",
            )
        )
