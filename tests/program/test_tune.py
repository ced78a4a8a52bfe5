# SPDX-License-Identifier: Apache-2.0
"""Program.tune: what is chosen, that no bit changes, and what the cache file may say."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from programs import PROGRAMS, Builder, example
from small_networks import TorchvisionNet, ready

import ternary_ops as tops
from ternary_ops import runtime
from ternary_ops.errors import BadConfig, FormatError
from ternary_ops.program import program as program_module
from ternary_ops.program.graph import Graph
from ternary_ops.program.native import build
from ternary_ops.runtime import Program


def sample_of(graph: Graph) -> tuple[int, ...]:
    return example(graph, 2, 35, 33).shape


@pytest.mark.parametrize("isa", runtime.available_isas())
@pytest.mark.parametrize("name", PROGRAMS)
def test_either_choice_gives_the_same_bits(name: str, isa: str) -> None:
    graph = PROGRAMS[name]()
    x = example(graph, 2, 35, 33)
    layers = [
        i
        for i, node in enumerate(graph.nodes)
        if "w" in node.attrs and graph.values[node.inputs[0]].y is not None
    ]
    with runtime.force_isa(isa):
        want = build(graph).run(x)
        for sparse in (False, True):
            got = build(graph, dict.fromkeys(layers, sparse)).run(x)
            np.testing.assert_array_equal(got, want)
        program = Program(graph, sample_of(graph))
        report = program.tune(x, repeats=1)
        np.testing.assert_array_equal(program(x), want)
    assert sorted(report.choices) == layers and not report.cached
    assert all(row.dense_ms > 0 and row.sparse_ms > 0 for row in report.rows)


def extremes() -> tuple[Graph, np.ndarray[Any, Any]]:
    """One layer with hardly a quad, one with all of them, both large enough to time."""
    b = Builder(0, c=64)
    x = b("quantize", 0, y=b.params())
    for zeros in (0.98, 0.0):
        w = b.weight("ternary", 64, 64, 3, 3, zeros=zeros)
        x = b("conv2d", x, w=w, padding=(1, 1), clamp=(0.0, None), y=b.params(0))
    b("dequantize", x)
    graph = b.graph()
    return graph, example(graph, 1, 28, 28)


def test_the_loop_that_took_less_time_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, x = extremes()
    program = Program(graph, x.shape)
    report = program.tune(x)
    for row in report.rows:
        assert row.sparse == (row.sparse_ms < row.dense_ms)
    assert report.rows[0].density == pytest.approx(0.02, abs=0.01)
    assert "sparse ms" in str(report) and "measured now" in str(report)
    seen: list[Any] = []
    monkeypatch.setattr(
        program_module, "build", lambda g, sparse=None: seen.append(sparse) or build(g)
    )
    program.tune(x, repeats=1)
    assert set(seen[0]) == {2, 3}  # the engine that runs is built from the choices


def test_a_choice_binds_its_instruction_set_and_object_only() -> None:
    graph, x = extremes()
    program = Program(graph, x.shape)
    with runtime.force_isa("scalar"):
        program.tune(x, repeats=1)
        assert program._engine is not program._untuned
    if runtime.isa() != "scalar":
        assert program._engine is program._untuned
    assert copy.deepcopy(program)._tuned == {}


def test_the_cache_answers_for_this_program_and_shape_alone(tmp_path: Path) -> None:
    graph, x = extremes()
    path = tmp_path / "tuned.json"
    first = Program(graph, x.shape).tune(x, repeats=2, cache=path)
    again = Program(graph, x.shape).tune(x, repeats=2, cache=path)
    assert again.cached and again.rows == first.rows and "cache file" in str(again)
    larger = np.concatenate([x, x])
    assert not Program(graph, x.shape).tune(larger, repeats=1, cache=path).cached
    with runtime.force_isa("scalar"), runtime.num_threads(1):
        assert not Program(graph, x.shape).tune(x, repeats=1, cache=path).cached
    other, y = PROGRAMS["image"](), example(PROGRAMS["image"](), 1, 33, 33)
    assert not Program(other, y.shape).tune(y, repeats=1, cache=path).cached
    assert len(json.loads(path.read_text())["programs"]) == 4


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", '{"programs": []}', '{"version": 9, "programs": {}}', '{"programs": {}}'],
)
def test_a_damaged_cache_is_named(tmp_path: Path, content: str) -> None:
    graph, x = extremes()
    path = tmp_path / "tuned.json"
    path.write_text(content)
    with pytest.raises(FormatError, match="Delete it"):
        Program(graph, x.shape).tune(x, repeats=1, cache=path)
    assert path.read_text() == content


@pytest.mark.parametrize("rows", [7, [], [{"node": 2}], [{}], "rows", None])
def test_damaged_rows_are_named(tmp_path: Path, rows: Any) -> None:
    graph, x = extremes()
    path = tmp_path / "tuned.json"
    Program(graph, x.shape).tune(x, repeats=1, cache=path)
    document = json.loads(path.read_text())
    document["programs"] = dict.fromkeys(document["programs"], rows)
    path.write_text(json.dumps(document))
    with pytest.raises(FormatError, match="tuning results"):
        Program(graph, x.shape).tune(x, repeats=1, cache=path)


def test_bad_repeats() -> None:
    graph, x = extremes()
    for repeats in (0, -1, 2.5, True):
        with pytest.raises(BadConfig, match="repeats"):
            Program(graph, x.shape).tune(x, repeats=repeats)  # type: ignore[arg-type]


def test_compile_tunes_on_request() -> None:
    x = torch.randn(2, 3, 33, 33)
    model = ready(TorchvisionNet(), x)
    plain, tuned = tops.compile(model, x), tops.compile(model, x, tune=True)
    assert tuned._tuned and not plain._tuned
    np.testing.assert_array_equal(tuned(x.numpy()), plain(x.numpy()))
