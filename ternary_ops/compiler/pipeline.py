# SPDX-License-Identifier: Apache-2.0
"""tops.compile: a PyTorch network becomes a program."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias, overload

import torch
from torch import Tensor, fx, nn

from ternary_ops.compiler.domains import Uncalibrated, choose_domains
from ternary_ops.compiler.fuse import fuse
from ternary_ops.compiler.image_sizes import read_at_sizes
from ternary_ops.compiler.lower import Lowered, lower
from ternary_ops.compiler.partition import IslandProgram, compile_with_islands
from ternary_ops.compiler.prepare import check_read, float_activations, prepare
from ternary_ops.compiler.read import read
from ternary_ops.compiler.read_layers import Range
from ternary_ops.compiler.step import Step
from ternary_ops.compiler.trace_check import Differs, check_same, differs, run_checked
from ternary_ops.errors import FormatError, UnsupportedModel, UnsupportedShape, need
from ternary_ops.graph.fold_batchnorm import find_pairs, fold_in_trace_
from ternary_ops.graph.observed import ranges_of
from ternary_ops.graph.signature import Signature, signature_of, tensor_of
from ternary_ops.graph.trace import OutsideTree, trace
from ternary_ops.graph.wrappers import copy_of, unwrap
from ternary_ops.graph.writes import writes_into_parts
from ternary_ops.nn import PackedLayer
from ternary_ops.nn.block_sparse import float_twins
from ternary_ops.nn.held_weights import held_weights
from ternary_ops.program.graph import Graph
from ternary_ops.program.permute import permute as permute_channels
from ternary_ops.program.shapes import infer_from
from ternary_ops.runtime import Program

_log = logging.getLogger(__name__)
Example: TypeAlias = "Tensor | Sequence[Any] | Mapping[str, Any]"
Watch: TypeAlias = Callable[[fx.GraphModule, Tensor, Sequence[Step], Lowered], None]


@overload
def compile(  # noqa: A001
    model: nn.Module,
    example_input: Example,
    *,
    permute: bool = False,
    tune: bool = False,
    output: str | None = None,
    allow_unfinished: bool = False,
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
    allow_unfinished: bool = False,
) -> Program | IslandProgram: ...
def compile(  # noqa: A001
    model: nn.Module,
    example_input: Example,
    *,
    islands: bool = False,
    permute: bool = False,
    tune: bool = False,
    output: str | None = None,
    allow_unfinished: bool = False,
) -> Program | IslandProgram:
    """Turn a float, quantized or packed network into a Program.

    Works on a copy in eval mode, in which BatchNorm is folded. Layers with uint8 activations run in
    integer arithmetic, from their codes in any phase. torch.nn's layers, block-sparse and
    weight-only ones run in float32: convolutions skip zero weights, linear layers decode the stored
    codes. DataParallel and other wrappers are unwrapped.

    example_input: one float tensor [N, C, H, W], [N, L, C] (tokens) or [N, K], which fixes the
    channels; N, H, W and L stay free. Or a tuple of positional or a dict of keyword arguments that
    holds one such tensor; the other arguments become constants.

    output: the result of a network that returns several tensors, by its key, field or index
    ("logits", "0", "aux.1").

    islands: eager fallback. What has no program form runs in PyTorch between programs; returns an
    IslandProgram, which names such parts with their share of the multiply-adds (a warning too), and
    cannot be saved. In the worst case the whole network is one island.

    permute: reorder inner channels so that nonzero weights fall into fewer quads: outputs keep
    their bits, networks pruned by element get faster, compiling slower.
    tune: time every integer layer on example_input, dense and sparse (`Program.tune`).
    allow_unfinished: take the current codes even if a Pruner has not reached its freeze.

    The unchanged network runs on example_input once, and the trace must reproduce its output.
    Weights computed by torch.nn.utils.prune, weight_norm, spectral_norm or a parametrization are
    taken as in eval mode; hooks that only observe are dropped. Warnings name planned layers that do
    not run, and those with fewer zeros than planned.

    Raises UnsupportedModel listing every part that has no program form, every layer whose range
    calibrate has not set, the names of several inputs or outputs, hooks that change values, layers
    held outside the module tree, weights of quantized layers that the model's code reads, or layers
    that are still being pruned; BadWeights for weights that are not finite.
    """
    model = unwrap(model)
    signature = signature_of(model, example_input, output)
    x = _example(tensor_of(model, example_input))
    task = Task(signature, ranges_of(model), permute, tune)
    try:
        return _whole(model, x, task, allow_unfinished)
    except UnsupportedModel as error:
        if not islands or isinstance(error, Uncalibrated):
            raise
    network = _own(model)
    prepare(model, network, x, signature, True, allow_unfinished)  # raises what no island mends
    return compile_with_islands(network, x, signature, partial(_part, task=task))


def compile_watched(model: nn.Module, example: Tensor, watch: Watch) -> Program:
    """As compile, an unfinished network as well; `watch` is told of every trace that is lowered."""
    model = unwrap(model)
    task = Task(signature_of(model), ranges_of(model), False, False, watch)
    return _whole(model, _example(example), task, allow_unfinished=True)


def _own(model: nn.Module) -> nn.Module:
    """A copy that compile may change."""
    return float_twins(copy_of(model).cpu().float().eval())


@dataclass(frozen=True)
class Task:
    """The network's call signature, observed ranges by value name, and the options of compile."""

    signature: Signature
    ranges: Mapping[str, Range]
    permute: bool
    tune: bool
    watch: Watch | None = None


def _whole(model: nn.Module, x: Tensor, task: Task, allow_unfinished: bool) -> Program:
    """The program of a symbolic trace, or else, with sizes at hand, of a trace on x."""
    network = _own(model)
    untouched = prepare(model, network, x, task.signature, False, allow_unfinished)

    def on_example(sample: Tensor) -> Graph:
        with float_activations(network):
            expected = task.signature.result(network, sample.clone())
        return _read(network, sample, expected, task, sample)

    with torch.no_grad():
        try:
            graph = _read(network, x, untouched, task)
        except UnsupportedModel as error:
            if isinstance(error, (Uncalibrated, OutsideTree)):
                raise
            _log.info("traced again, with the example's sizes: %s", error)
            run = partial(task.signature.result, network, x.clone())
            try:
                with float_activations(network):
                    check_same(run(), untouched)
                graph = read_at_sizes(x, on_example)
            except Differs as different:
                raise differs(writes_into_parts(network, run)) from different
    return _program(graph, x, task)


def _program(graph: Graph, x: Tensor, task: Task) -> Program:
    program = Program(_permuted(graph, x.shape) if task.permute else graph, tuple(x.shape))
    if task.tune:
        program.tune(x.numpy())
    return program


def _read(
    network: nn.Module, x: Tensor, untouched: Any, task: Task, example: Tensor | None = None
) -> Graph:
    """The program of one trace, on an example or symbolic; the network stays as it is."""
    traced = trace(network, signature=task.signature, example=example)
    check_read(network, traced)
    traced.graph.eliminate_dead_code()  # calibrate's chains end where no dead code reads on
    pairs = find_pairs(traced, traced.graph)
    if pairs and any(isinstance(m, PackedLayer) for m in network.modules()):
        # Packed layers round their input always, and a last bit may turn that: compare before.
        with float_activations(network):
            run_checked(traced, x, untouched)
        untouched = None
    fold_in_trace_(traced, pairs)
    with float_activations(traced), held_weights(traced):
        expected = run_checked(traced, x, untouched)
    graph = _lower(traced, x, task)
    shape = infer_from(graph, x.shape)[-1]
    if shape != tuple(expected.shape):
        raise UnsupportedModel(
            need(
                f"a program's output of the model's shape {list(expected.shape)}",
                list(shape),
                "Report this model; it was misread.",
            )
        )
    return graph


def _part(part: nn.Module, x: Tensor, task: Task) -> Program:
    """The program of a part of a network."""
    network, own = copy_of(part), replace(task, signature=signature_of(part))
    # torch.fx would print the code of what fails.
    type(network).__call__ = nn.Module.__call__  # type: ignore[method-assign]
    untouched = prepare(part, network, x, own.signature, False, True)
    with torch.no_grad():
        return _program(_read(network, x, untouched, own), x, own)


def _permuted(graph: Graph, shape: Sequence[int]) -> Graph:
    made, report = permute_channels(graph, shape)
    _log.info("permute: occupied quads times pixels %d -> %d", report.before, report.after)
    return made


def _lower(traced: fx.GraphModule, x: Tensor, task: Task) -> Graph:
    """The passes over the one graph, `compiler.step`."""
    try:
        steps = fuse(read(traced, task.ranges))
        choose_domains(steps)
        lowered = lower(steps, x.shape)
        if task.watch is not None:
            task.watch(traced, x, steps, lowered)
        return lowered.graph
    except FormatError as error:  # what a program cannot hold, a model cannot ask for
        raise UnsupportedModel(str(error)) from error


def _example(x: object) -> Tensor:
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.ndim not in (2, 3, 4):
        got = f"{x.dtype} {list(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise UnsupportedShape(
            need(
                "as example_input one float tensor [N, C, H, W], [N, L, C] or [N, K]",
                got,
                "Pass a batch that the model takes.",
            )
        )
    return x.detach().cpu().float()
