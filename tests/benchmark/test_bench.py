# SPDX-License-Identifier: Apache-2.0
"""What the whole-network benches rely on: networks of a given share of zeros, proof of equality,
ceilings, and tables that go on where they were. Nothing here looks at how long something takes.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scripts import script
from torch import nn

import ternary_ops as tops
from ternary_ops import quantize, runtime
from ternary_ops.benchmark import baselines, pruned_networks, runner
from ternary_ops.benchmark.agreement import agreement
from ternary_ops.errors import BadConfig
from ternary_ops.program import peak
from ternary_ops.program.interpret import simulate


@pytest.fixture
def no_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TERNARY_OPS_DATA", str(tmp_path))


def empty_quads(program: runtime.Program) -> list[float]:
    return [1 - w.density for w in program.graph.weights if w.kind == "ternary"]


@pytest.mark.parametrize(("pattern", "scope"), [("1x4", "layer"), ("1x4", "global")])
def test_zeros_are_counted_over_all_convolutions_but_the_first(
    no_data: None, pattern: str, scope: str
) -> None:
    net = pruned_networks.by_name("digits_resnet", 0.8, pattern, batch=3, scope=scope, samples=6)
    kinds = [w.kind for w in net.program.graph.weights]
    assert kinds[0] == "int8" and kinds[-1] == "int8" and kinds.count("ternary") == len(kinds) - 2
    quads = [w.array.size / 4 for w in net.program.graph.weights if w.kind == "ternary"]
    shares = empty_quads(net.program)
    assert np.average(shares, weights=quads) == pytest.approx(0.8, abs=0.01)
    assert (max(shares) - min(shares) < 0.02) == (scope == "layer")


def test_elements_and_dense_8_bits(no_data: None) -> None:
    element = pruned_networks.by_name("digits_resnet", 0.7, "element", samples=4).program.graph
    zeros = [(w.array == 0).mean() for w in element.weights if w.kind == "ternary"]
    assert zeros == pytest.approx([0.7] * len(zeros), abs=0.01)
    dense = pruned_networks.by_name("digits_resnet", 0.7, "int8", samples=4).program.graph
    assert {w.kind for w in dense.weights} == {"int8"}


def test_8_bit_quads_and_reordered_channels(no_data: None) -> None:
    quads = pruned_networks.by_name("digits_resnet", 0.7, "int8+1x4", samples=4).program.graph
    assert {w.kind for w in quads.weights} == {"int8"}
    inner = [w.density for w in quads.weights[1:-1]]
    assert inner == pytest.approx([0.3] * len(inner), abs=0.02)
    assert quads.weights[0].density == 1 and max(abs(w.array).max() for w in quads.weights) == 127
    plain, moved = (
        pruned_networks.by_name("digits_resnet", 0.9, pattern, samples=4)
        for pattern in ("element", "element+permute")
    )
    x = pruned_networks.images(3, 1, 8, start=7).numpy()
    np.testing.assert_array_equal(plain.program(x), moved.program(x))
    for wrong in ("element+permut", "1x4+", "int8+permute", "int8+"):
        with pytest.raises(BadConfig, match="pattern"):
            pruned_networks.by_name("digits_resnet", 0.9, wrong, samples=4)
    pairs = zip(plain.program.graph.weights, moved.program.graph.weights, strict=True)
    assert any(not np.array_equal(a.array, b.array) for a, b in pairs)


def test_the_three_forms_are_one_network(no_data: None) -> None:
    net = pruned_networks.by_name("digits_resnet", 0.6, batch=5, samples=16)
    assert not [m for m in net.dense.modules() if isinstance(m, tops.nn.TernaryLayer)]
    x = pruned_networks.images(5, 1, 8, start=100)
    with torch.no_grad():
        trained, dense = net.trained(x).numpy(), net.dense(x).numpy()
    ours = net.program(x.numpy())
    assert agreement(ours, dense).match and agreement(trained, dense).match
    assert not np.array_equal(ours, dense)
    other = pruned_networks.by_name("digits_resnet", 0.9, samples=16).dense
    with torch.no_grad():
        assert not agreement(other(x).numpy(), dense).match


def test_batchnorm_keeps_activations_in_range(no_data: None) -> None:
    model = pruned_networks.network("digits_resnet")
    sample = 5 + 3 * torch.randn(40, 1, 8, 8)
    quantize.recalibrate_batchnorm_(model, torch.split(sample, 16))
    seen: list[torch.Tensor] = []
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    norms[0].register_forward_hook(lambda m, x, y: seen.append(y))
    with torch.no_grad():
        model(sample)
    assert not any(m.training for m in model.modules())
    assert seen[0].mean().abs() < 0.05 and seen[0].std() == pytest.approx(1, abs=0.1)


def test_images_are_the_same_each_time_and_differ_by_start(no_data: None) -> None:
    first, again = (pruned_networks.images(4, 3, 16, start=2) for _ in range(2))
    assert torch.equal(first, again) and not torch.equal(first, pruned_networks.images(4, 3, 16))


def test_a_data_folder_that_is_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERNARY_OPS_DATA", "nowhere at all")
    with pytest.raises(BadConfig, match="nowhere at all"):
        pruned_networks.images(1, 3, 8)


@pytest.mark.parametrize("size", [20, 40])
def test_real_images_are_read_where_they_are(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, size: int
) -> None:
    pil = pytest.importorskip("PIL.Image")
    colors = np.random.default_rng(0).integers(0, 256, (3, 3))
    files = []
    for color in colors:
        path = tmp_path / "x.jpg"
        pil.fromarray(np.full((32, 32, 3), color, np.uint8)).save(path, quality=95)
        files.append(np.frombuffer(path.read_bytes(), np.uint8))
    (tmp_path / "imagenet1000").mkdir()
    ends = np.cumsum([0, *(len(f) for f in files)])
    np.savez(tmp_path / "imagenet1000/images.npz", data=np.concatenate(files), off=ends)
    monkeypatch.setenv("TERNARY_OPS_DATA", str(tmp_path))
    got = pruned_networks.images(3, 3, size).numpy()
    assert got.shape == (3, 3, size, size)
    back = (got.mean((2, 3)) * [0.229, 0.224, 0.225] + [0.485, 0.456, 0.406]) * 255
    assert np.abs(back - colors[[0, 1, 2]]).max() < 4  # k * 37 mod 3 is k
    with pytest.raises(BadConfig, match="at most 3"):
        pruned_networks.images(4, 3, size)


def test_agreement_tells_rounding_from_another_network() -> None:
    rng = np.random.default_rng(0)
    wanted = rng.normal(size=(20, 50)).astype(np.float32)
    close = wanted + 0.05 * rng.normal(size=wanted.shape).astype(np.float32)
    assert agreement(close, wanted).match and agreement(close, wanted).top1 > 0.8
    assert agreement(wanted, wanted).max_error == 0
    assert not agreement(rng.normal(size=wanted.shape).astype(np.float32), wanted).match
    # Right on average, but blind to the image.
    offset = np.float32(100 * rng.normal(size=50))
    blind = np.repeat((wanted + offset).mean(0, keepdims=True), 20, 0)
    found = agreement(blind, wanted + offset)
    assert found.error < 0.3 and not found.match


def test_ceilings_are_positive_and_float_layers_are_held_to_float() -> None:
    for isa in runtime.available_isas():
        with runtime.force_isa(isa):
            int8, single = peak.products()
            assert int8 > 0 and single > 0
    found = peak.Ceilings(4.0, 3.0, 2.0, 1.0)
    assert found.of("float") == 3.0 and found.of("ternary") == found.of("int8") == 4.0


def test_engines_run_a_batch_at_a_time() -> None:
    sizes: list[int] = []

    def run(x: Any) -> Any:
        sizes.append(len(x))
        return x.sum((1, 2, 3), keepdims=False)[:, None]

    images = np.random.default_rng(0).random((7, 2, 3, 3), np.float32)
    got = baselines.Engine("x", run, "").in_batches(images, 3)
    assert sizes == [3, 3, 3]
    np.testing.assert_array_equal(got[:, 0], images.sum((1, 2, 3)))


def test_torch_rivals_compute_the_same_network(no_data: None) -> None:
    net = pruned_networks.by_name("digits_resnet", 0.5, batch=2, samples=16)
    found = baselines.engines(
        ["torch"], net.dense, net.x, pruned_networks.images(16, 1, 8), threads=1
    )
    seen = pruned_networks.images(6, 1, 8, start=50)
    with torch.no_grad():
        wanted = net.dense(seen).numpy()
    assert [e.name for e in found] == ["torch fp32", "torch int8"]
    close = [agreement(e.in_batches(seen.numpy(), 2), wanted) for e in found]
    assert close[0].error < 1e-5 < close[1].error and close[1].match
    with pytest.raises(BadConfig, match="baseline"):
        baselines.engines(["tvm"], net.dense, net.x, seen, threads=1)


def test_a_wrong_program_gets_no_time(no_data: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(graph: Any, x: Any) -> list[Any]:
        return [-value for value in simulate(graph, x)]

    monkeypatch.setattr(runner, "simulate", wrong)
    settings = runner.Settings(batch=1, zeros=0.5, threads=1, seconds=0.01)
    result = runner.of_network("digits_resnet", None, settings, ["torch"], "1x4")
    assert not result.match and result.engines[0]["match"] == "NO"
    assert all(np.isnan(row["times ours"]) for row in result.engines)


def test_a_table_goes_on_where_it_was(
    no_data: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    table = script("networks", monkeypatch)
    for name, value in (("RESULTS", tmp_path), ("commit", lambda: "abc")):
        monkeypatch.setattr(table, name, value)
    monkeypatch.setenv("BENCH_COMMAND", "python bench/networks.py")
    argv = ["networks.py", "--models", "digits_resnet", "--zeros", "0.5,0.75", "--rounds", "2"]
    argv += ["--against", "torch", "--out", "t.csv", "--patterns", "1x4,int8"]
    monkeypatch.setattr(sys, "argv", argv)
    asked = list(table.cases(table.arguments()))
    assert [(c.pattern, c.zeros) for c in asked] == [("1x4", 0.5), ("1x4", 0.75), ("int8", 0.0)]
    for case in asked[:2]:
        monkeypatch.setattr(sys, "argv", [*argv, "--case", ",".join(case.key())])
        assert table.main() == 0
    rows = table.read_rows(tmp_path / "t.csv")
    assert [row["engine"] for row in rows] == ["ternary-ops", "torch fp32", "torch int8"] * 2
    assert all(row["match"] == "True" and float(row["times_ours"]) > 0 for row in rows)
    assert table.done(rows) == {case.key() for case in asked[:2]}


def test_break_even_is_where_the_lines_cross(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    growth = script("growth", monkeypatch)
    assert growth.crossings([0.1, 0.3, 0.5], [3.0, 2.0, 0.0]) == pytest.approx([0.4])
    assert growth.crossings([1.0, 2.0], [3.0, 1.5]) == []
    table = tmp_path / "g.csv"
    head = "axis,model,density,size,match,ms,rival,rival_ms,times_ours,isa,machine\n"
    lines = [
        f"{axis},m,{density},{size},True,{ms},other,2,{2 / ms},x,y\n"
        for axis, density, size, ms in (
            *(("density", 0.1, 8, 1.0), ("density", 0.9, 8, 4.0)),
            *(("size", 0.1, 8, 1.0), ("size", 0.1, 16, 1.5)),
        )
    ]
    table.write_text(head + "".join(lines))
    growth.plot(table, tmp_path / "g.svg")
    drawn = (tmp_path / "g.svg").read_text()
    assert "break-even 0." in drawn and "no break-even" in drawn


def test_layer_benches_build_what_they_time(monkeypatch: pytest.MonkeyPatch) -> None:
    layers, blocks = (script(name, monkeypatch) for name in ("layers", "block_sparse"))
    rng = np.random.default_rng(0)
    layer = layers.Layer("small", 8, 8, 6, 3)
    x = rng.normal(size=(1, 8, 6, 6)).astype(np.float32)
    scale = np.full(8, 0.01, np.float32)
    ours = layers.Ours(layer, layers.ternary_weights(layer, 0.5, rng), scale, x)
    assert ours.values()[1].shape == (1, 8, 6, 6)
    weight = torch.randn(8, 8, 3, 3)
    assert blocks.Ours(torch.from_numpy(x), weight, (2, 2)).match
