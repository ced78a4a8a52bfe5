# SPDX-License-Identifier: Apache-2.0
"""tops.report: every figure against a count of its own."""

from __future__ import annotations

import copy
import csv
import gzip
import json
import lzma
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import ternary_ops as tops
from ternary_ops.errors import BadConfig, UnsupportedModel, UnsupportedShape
from ternary_ops.io.sizes import entropy_bound, general_compressors
from ternary_ops.io.storage_formats import cheapest, storage_bits
from ternary_ops.layout.codes import pack_codes
from ternary_ops.reporting import efficiency
from ternary_ops.table import Table


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """int8 stem (3 inputs), ternary body, int8 head; with BatchNorm and biases."""
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU()),
        *(nn.Conv2d(12, 10, 3, stride=2), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(10, 5)),
    ).eval()
    tops.quantize_(net, tops.plan(net, tops.TernaryConfig(zeros=0.5)))
    tops.prune.Pruner(net, total_steps=1).step()
    tops.calibrate(net, [torch.randn(4, 3, 9, 9)])
    return net


def test_counts(model: nn.Module, tmp_path: Path) -> None:
    x = torch.randn(2, 3, 9, 9)
    program = tops.compile(model, x)
    found = tops.report(model, x, against=model)
    stem, body, head = found.layers
    assert [row.kind for row in found.layers] == ["int8", "ternary", "int8"]
    assert body.shape == (10, 3, 3, 12) and body.weights == 10 * 9 * 12 and body.quads == 10 * 9 * 3
    assert body.empty_quads == 135
    assert found.zeros("quads") == 50
    codes = program.graph.weights[1].array
    assert body.zeros == int((codes == 0).sum()) > 4 * 135
    assert body.macs == 2 * 10 * 4 * 4 * 9 * 12
    assert stem.macs == 2 * 12 * 9 * 9 * 9 * 3
    assert body.fp32 == 4 * (body.weights + 10)
    assert body.packed == body.weights // 4 + 4 * 2 * 10
    least = min(entropy_bound(codes, pattern) for pattern in ("element", "1x4"))
    assert body.bound == pytest.approx(least / 8 + 4 * 2 * 10)
    assert head.packed == 50 + 4 * 2 * 5
    path = tmp_path / "program.safetensors"
    program.save(path)
    assert found.file == path.stat().st_size
    assert found.total("weights") == stem.weights + body.weights + head.weights
    assert found.total("weights", "ternary") == body.weights
    assert found.ms > 0 and all(row.ms >= 0 for row in found.layers)
    assert found.against is not None and found.against.agreement == 100


def test_against_notices_a_difference(model: nn.Module) -> None:
    x = torch.randn(64, 3, 9, 9)
    torch.manual_seed(5)
    other = nn.Sequential(nn.Conv2d(3, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    found = tops.report(model, x, against=other).against
    assert found is not None
    with torch.no_grad():
        y, z = tops.compile(model, x)(x.numpy()), other(x).numpy()
    assert found.agreement == pytest.approx(100 * (y.argmax(1) == z.argmax(1)).mean())
    assert found.largest_difference == pytest.approx(np.abs(y - z).max())
    noise = np.square(y - z).sum() / np.square(z).sum()
    assert found.sqnr == pytest.approx(-10 * np.log10(noise), rel=1e-4)


def test_layers_to_fall_back_on_are_named() -> None:
    torch.manual_seed(0)
    dense = nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)),
    ).eval()
    net, x = copy.deepcopy(dense), torch.randn(8, 3, 9, 9)
    tops.quantize_(net, tops.TernaryConfig("int8"))
    tops.calibrate(net, [x])
    good = tops.report(net, x, against=dense)
    assert good.against is not None and good.against.sqnr > 20 and good.advice == ""
    net[2].input_range = torch.tensor([0.0, 2000.0])  # one code: nothing is left
    bad = tops.report(net, x, against=dense)
    assert bad.against is not None and bad.against.sqnr < 20
    assert "fall back on float activations in 2:" in str(bad)
    assert bad.to_dict()["advice"] == bad.advice
    tops.quantize.fallback_(net, [x], min_sqnr=20, parts="activations")
    mended = tops.report(net, x, against=dense)
    assert mended.against is not None and mended.against.sqnr > 20


class Stream(nn.Module):
    """Blocks that add little to what convolutions read, and a head that sees only what they add."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1, bias=False)
        self.blocks = nn.ModuleList(nn.Conv2d(8, 8, 1, bias=False) for _ in range(3))
        for block in self.blocks:
            block.weight.data *= 0.02

    def forward(self, x: Tensor) -> Tensor:
        first = self.stem(x)
        x = first
        for block in self.blocks:
            x = x + block(x)
        return self.head(x - first)


def test_rounding_between_layers_is_named() -> None:
    torch.manual_seed(0)
    dense = Stream().eval()
    net, x = copy.deepcopy(dense), torch.randn(4, 3, 9, 9)
    tops.quantize_(net, tops.TernaryConfig("int8"))
    tops.calibrate(net, [x])
    report = tops.report(net, x, against=dense)
    assert "rounding between layers costs" in report.advice
    assert re.search(r"first in (add|sub)\(\) in forward", report.advice), report.advice


def test_forms_of_output(model: nn.Module, tmp_path: Path) -> None:
    found = tops.report(model, torch.randn(1, 3, 9, 9))
    text = str(found)
    words = ("empty quads", "fp32", "packed", "bound", "file", "gzip", "xz", "multiply-adds")
    for word in (*words, "50.00 %"):
        assert word in text
    found.to_csv(tmp_path / "r.csv")
    rows = list(csv.DictReader((tmp_path / "r.csv").open()))
    assert [int(row["macs"]) for row in rows] == [row.macs for row in found.layers]
    found.plot(tmp_path / "r.png")
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads(json.dumps(found.to_dict()))["file_bytes"] == found.file
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r.csv", "r.png"]


def test_general_compressors_get_the_packed_form_and_undo_to_it(model: nn.Module) -> None:
    rng = np.random.default_rng(0)
    codes = rng.choice([-1, 0, 1], (64, 50)).astype(np.int8)  # the last quad is padded
    eight = rng.integers(-127, 128, (7, 30)).astype(np.int8)
    scale = rng.random(64).astype(np.float32)
    sizes = general_compressors([("ternary", codes), ("int8", eight)], [scale])
    stream = pack_codes(codes).tobytes() + eight.tobytes() + scale.tobytes()
    assert sizes == {
        "gzip": len(gzip.compress(stream, 9, mtime=0)),
        "xz": len(lzma.compress(stream, preset=9)),
    }
    found = tops.report(model, torch.randn(1, 3, 9, 9))
    assert 0 < found.compressors["gzip"] < 2 * found.total("packed")


def test_bad_input(model: nn.Module) -> None:
    x = torch.randn(1, 3, 9, 9)
    with pytest.raises(UnsupportedModel, match="network or a Program"):
        tops.report("net.safetensors", x)  # type: ignore[arg-type]
    with pytest.raises(UnsupportedShape):
        tops.report(tops.compile(model, x), torch.randn(1, 4, 9, 9))
    with pytest.raises(UnsupportedShape, match="one task"):
        tops.report(model, x, against=nn.Flatten())


def test_failed_plot_leaves_no_file(model: nn.Module, tmp_path: Path) -> None:
    found = tops.report(model, torch.randn(1, 3, 9, 9))
    with pytest.raises(ValueError):
        found.plot(tmp_path / "chart.nonsense")
    assert list(tmp_path.iterdir()) == []


def test_table_aligns_columns() -> None:
    table = Table(("name", "n"), [("a", "1"), ("long name", "1,000")], title="T", notes=("x",))
    assert str(table).splitlines() == [
        *("T", "", "name           n", "---------  -----"),
        *("a              1", "long name  1,000", "  x"),
    ]


def test_what_layers_count_stands_side_by_side(model: nn.Module, tmp_path: Path) -> None:
    x = torch.randn(2, 3, 9, 9)
    program = tops.compile(model, x)
    found = tops.report(model, x)
    banks = program.graph.weights
    *rows, whole = found.account_table().rows
    for row, layer, bank in zip(rows, found.layers, banks, strict=True):
        nonzero = int((bank.array != 0).sum())
        stored = storage_bits(bank.kind, bank.array)
        assert layer.nonzero == nonzero and dict(layer.stored) == stored
        figures = (bank.array.size, nonzero, layer.macs, layer.macs * nonzero / bank.array.size)
        assert list(row[:5]) == [layer.name, *(f"{n:,.0f}" for n in figures)]
        assert row[5:7] == (f"{min(stored.values()):,}", cheapest(stored))
        assert row[7] == f"{layer.ms:.3f}"
    assert whole[2] == f"{sum(int((b.array != 0).sum()) for b in banks):,}"
    assert whole[5] == f"{sum(min(layer.stored.values()) for layer in found.layers):,}"
    sizes = {row[0]: row[1] for row in found.storage_table().rows}
    vectors = sum(b.scale.nbytes + b.bias.nbytes for b in banks)
    for name in found.layers[0].stored:
        bits = sum(storage_bits(b.kind, b.array)[name] for b in banks)
        assert sizes[name] == f"{bits / 8 + vectors:,.0f}"
    assert sizes["this file, entropy-coded"] == f"{found.file:,}"
    for table in (found.account_table(), found.storage_table()):
        assert str(table) in str(found)
    found.to_csv(tmp_path / "layers.csv")
    with (tmp_path / "layers.csv").open(newline="") as file:
        assert [int(row["bitmap_bits"]) for row in csv.DictReader(file)] == [
            layer.stored["bitmap"] for layer in found.layers
        ]
    assert json.loads(json.dumps(found.to_dict()))["layers"][1]["stored"] == found.layers[1].stored


def test_accuracy_per_weight(model: nn.Module) -> None:
    found = tops.report(model, torch.randn(1, 3, 9, 9))
    nonzero = sum(layer.nonzero for layer in found.layers)
    made = found.efficiency(900, 1000)
    assert made.accuracy_density == pytest.approx(90 / (nonzero / 1e6))
    assert made.correct_per_weight == pytest.approx(900 / nonzero)
    assert made.our_halvings_per_million == pytest.approx(np.log2(10) / (nonzero / 1e6))
    assert found.efficiency(5, 5).our_halvings_per_million == np.inf
    for counts in ((3, 2), (-1, 2), (0, 0)):
        with pytest.raises(BadConfig, match="0 <= correct <= of"):
            found.efficiency(*counts)
    assert efficiency(1, 4, 2) == (25 / 2e-6, 0.5, -np.log2(0.75) / 2e-6)
