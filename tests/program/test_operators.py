# SPDX-License-Identifier: Apache-2.0
"""Operators as objects: what they say of themselves is what stands elsewhere."""

from __future__ import annotations

import numpy as np
import pytest
from checkout import ROOT
from programs import PROGRAMS, example

from ternary_ops import selftest
from ternary_ops.errors import FormatError
from ternary_ops.interchange.export_node import WRITERS
from ternary_ops.interchange.exporter import FORMS
from ternary_ops.program import ops
from ternary_ops.program.graph import Node
from ternary_ops.program.interpret import simulate
from ternary_ops.program.operator import find
from ternary_ops.program.shapes import sizes_of

# Operators that ONNX has no counterpart for in all their forms.
_NOT_IN_ONNX = {"pixel_unshuffle"}


def test_the_table_of_the_docs_is_made_from_the_operators() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert ops.table() in text


def test_every_operator_is_written_to_onnx_or_named_here() -> None:
    assert FORMS
    assert set(WRITERS) == set(ops.OPS) - _NOT_IN_ONNX


def test_verify_runs_every_operator_of_codes() -> None:
    used = {node.op for node in selftest._every_operator(np.random.default_rng(0)).nodes}
    assert used == {name for name, op in ops.OPS.items() if not op.floats_only}


def test_an_unknown_operator_is_a_format_error() -> None:
    for make in (lambda: Node("conv3d"), lambda: find("conv3d")):
        with pytest.raises(FormatError, match="an op out of .*conv2d.*, got 'conv3d'"):
            make()


def test_defaults_are_left_out_and_come_back() -> None:
    for make in PROGRAMS.values():
        for node in make().nodes:
            said = node.operator.without_defaults(node.attrs)
            assert Node(node.op, node.inputs, said) == node
            assert all(said[name] != node.operator.attrs[name].default for name in said)


@pytest.mark.parametrize("name", PROGRAMS)
def test_what_operators_claim_of_their_results_holds(name: str) -> None:
    graph = PROGRAMS[name](1)
    arrays = simulate(graph, example(graph, 2, 15, 18, 1))
    for node, value, made in zip(graph.nodes[1:], graph.values[1:], arrays[1:], strict=True):
        kind, x, before = node.operator, graph.values[node.inputs[0]], arrays[node.inputs[0]]
        if kind.keeps_params:
            assert value.y == x.y and "y" not in kind.attrs
        if kind.floats_only or node.attrs.get("fn") in kind.float_functions:
            assert x.y is None and value.y == node.attrs.get("y")
        if kind.per_channel and not value.fine and x.channels is not None:
            read = [j for i, j in enumerate(node.inputs) if i not in kind.sized_by]
            assert value.multiple == max(graph.values[j].multiple for j in read)
        if kind.per_pixel:
            sizes = (sizes_of(arrays[j].shape) for j in node.inputs)
            assert sizes_of(made.shape) == tuple(map(max, zip(*sizes, strict=True)))
        if kind.rearranges and not any(node.attrs.get("crop", ())):
            assert np.array_equal(np.sort(made, axis=None), np.sort(before, axis=None))
        counts = kind.is_layer or node.op in ("matmul", "attention")
        assert counts == (kind.macs(graph.bound(node), made.shape) > 0)
