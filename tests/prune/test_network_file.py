# SPDX-License-Identifier: Apache-2.0
"""A network as data: saved narrow, loaded without its code, and of use like the original."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from channel_networks import image, network
from filter_networks import FAMILIES, family, picture, some
from torch import Tensor, nn

import ternary_ops as tops
from ternary_ops.errors import FormatError, TernaryOpsError, UnsupportedModel
from ternary_ops.graph.graph_data import decode
from ternary_ops.graph.module_data import describe, make
from ternary_ops.io import container
from ternary_ops.prune import groups, load_network, remove_, save_network

X = picture("resnet")


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_loaded_is_the_same_network(name: str, tmp_path: Path) -> None:
    model, x = family(name), picture(name)
    remove_(model, x, some(model, x))
    save_network(model, x, tmp_path / "net.safetensors")
    made = load_network(tmp_path / "net.safetensors")
    assert torch.equal(made(x), model(x))
    assert {n: tuple(p.shape) for n, p in made.named_parameters()} == {
        n: tuple(p.shape) for n, p in model.named_parameters()
    }
    for net in (made, model):
        torch.manual_seed(0)
        net.train()
        net(x).square().mean().backward()
    for (n, p), q in zip(made.named_parameters(), model.parameters(), strict=True):
        assert p.grad is not None, n
        torch.testing.assert_close(p.grad, dict(model.named_parameters())[n].grad)
        assert q.requires_grad == p.requires_grad
    assert [g.width for g in groups(made.eval(), x)] == [g.width for g in groups(model.eval(), x)]


def test_it_trains_in_a_process_without_the_code_of_the_network(tmp_path: Path) -> None:
    """No models, no class of the user's, no pickle."""
    model = family("resnet").float()
    remove_(model, X.float(), some(model, X.float()))
    save_network(model, X.float(), tmp_path / "net.safetensors")
    torch.save((X.float(), model(X.float()).detach()), tmp_path / "want.pt")
    code = f"""
import sys
sys.modules["ternary_ops.models"] = None
import torch, ternary_ops as tops
x, wanted = torch.load({str(tmp_path / "want.pt")!r})
net = tops.prune.load_network({str(tmp_path / "net.safetensors")!r})
assert torch.equal(net(x), wanted)
net.train()(x).square().mean().backward()
torch.optim.SGD(net.parameters(), 0.01).step()
assert not torch.equal(net.eval()(x), wanted)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr


def test_quantized_layers_keep_masks_ranges_and_phases(tmp_path: Path) -> None:
    model, x = family("mobilenet").float(), X.float()
    tops.quantize_(model, tops.TernaryConfig(zeros=0.5, pattern="element"))
    pruner = tops.prune.Pruner(model, total_steps=4)
    for _ in range(4):
        pruner.step()
    tops.calibrate(model, [x])
    save_network(model, x, tmp_path / "net.safetensors")
    made = load_network(tmp_path / "net.safetensors")
    assert torch.equal(made(x), model(x))
    layers = {n: m for n, m in model.named_modules() if isinstance(m, tops.nn.TernaryLayer)}
    for name, layer in layers.items():
        same: Any = made.get_submodule(name)
        assert same.phase == layer.phase == "frozen" and same.config == layer.config
        assert torch.equal(same.codes, layer.codes) and torch.equal(same.mask, layer.mask)
    one, other = (tops.compile(net, x)(x.numpy()) for net in (model, made))
    assert (one == other).all()
    again = tmp_path / "again.safetensors"
    save_network(made, x, again)
    assert again.read_bytes() == (tmp_path / "net.safetensors").read_bytes()


def test_bfloat16_frozen_and_shared_parameters_stay_so(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 3))
    model[2].weight = model[0].weight
    model[3].bias.requires_grad_(False)
    model.bfloat16()
    x = torch.randn(2, 4).bfloat16()
    save_network(model, x, tmp_path / "net.safetensors")
    made = load_network(tmp_path / "net.safetensors")
    assert torch.equal(made(x), model(x)) and made(x).dtype == torch.bfloat16
    parts = {n: p for n, p in made.named_parameters(remove_duplicate=False)}
    assert parts["0.weight"] is parts["2.weight"]
    assert [n for n, p in parts.items() if not p.requires_grad] == ["3.bias"]


class Functional(nn.Module):
    def __init__(self, act: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 1)
        self.scale, self.act = nn.Parameter(torch.rand(6, 1, 1)), act

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.act(self, self.a(x)))


def test_dropout_written_as_a_function_works_in_training(tmp_path: Path) -> None:
    model = Functional(lambda net, x: F.dropout(F.relu(x), 0.5, net.training)).eval()
    x = X.float()
    save_network(model, x, tmp_path / "net.safetensors")
    made = load_network(tmp_path / "net.safetensors")
    assert torch.equal(made(x), model(x))
    made.train()
    assert not torch.equal(made(x), made(x))


def test_parts_for_training_alone_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = Functional(lambda net, x: F.relu(x)).eval()
    with caplog.at_level(logging.WARNING):
        save_network(model, X.float(), tmp_path / "net.safetensors")
    assert "scale" in caplog.text


class Computed(nn.Module):
    """A convolution whose weight is computed of a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight / self.weight.norm())


@pytest.mark.parametrize(
    ("model", "match"),
    [
        (Functional(lambda net, x: torch.fft.fft(x).real), "fft_fft"),
        (Functional(lambda net, x: x.cumsum(1)), "cumsum"),
        (nn.Sequential(nn.Flatten(2), nn.Conv1d(3, 4, 3), nn.Hardshrink(), nn.GLU(1)), "3, a GLU"),
        (Computed(), "weight"),
        (Functional(lambda net, x: x * len(x)), "batch"),
    ],
    ids=["function", "method", "layer", "computed", "sizes"],
)
def test_unknown_parts_are_named(model: nn.Module, match: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match=match):
        save_network(model.eval(), X.float(), tmp_path / "net.safetensors")
    assert not list(tmp_path.iterdir())


def content(tmp_path: Path) -> tuple[dict[str, Any], list[container.WeightEntry]]:
    model = network(0, "residual", "shuffled", "attention")
    save_network(model, image(), tmp_path / "net.safetensors")
    document = container.read(tmp_path / "net.safetensors")
    return document.index, list(document.weights.values())


def spoiled(index: dict[str, Any], change: Callable[[Any], None]) -> dict[str, Any]:
    copy = json.loads(json.dumps(index))
    change(copy)
    return copy


def _replace(op: str, at: int, value: Any) -> Callable[[Any], None]:
    def change(index: Any) -> None:
        row = next(row for row in index["nodes"] if row[1] == op)
        row[at] = value

    return change


CHANGES: dict[str, Callable[[Any], None]] = {
    "function": _replace("call_function", 2, "os.system"),
    "operator": _replace("call_function", 2, "operator.methodcaller"),
    "method": _replace("call_method", 2, "register_hook"),
    "attribute": _replace("call_function", 2, "getattr"),
    "input": _replace("placeholder", 2, "x=print(1)"),
    "name": _replace("placeholder", 0, "a b"),
    "keyword": _replace("call_function", 4, {"dict": {"a=1": 2}}),
    "path": _replace("call_module", 2, 'a"); print(1)'),
    "arguments": _replace("call_function", 3, 5),
    "node": _replace("call_function", 3, {"tuple": [{"node": "none"}]}),
    "module": _replace("call_module", 2, "missing"),
    "nodes": lambda index: index.update(nodes=[]),
    "rows": lambda index: index.update(nodes=[1]),
    "keys": lambda index: index.pop("frozen"),
    "more": lambda index: index.update(other=1),
    "lists": lambda index: index.update(frozen={}),
    "ranges": lambda index: index.update(ranges={"a": [1]}),
    "shared": lambda index: index.update(shared={"a": "b"}),
    "class": lambda index: index["layers"]["stem"].update({"class": "Module"}),
    "lstm": lambda index: index["layers"]["stem"].update({"class": "LSTM"}),
    "options": lambda index: index["layers"]["stem"]["arguments"].update(kernel_size="a"),
    "size": lambda index: index["layers"]["stem"]["arguments"].update(out_channels=9),
    "huge": lambda index: index["layers"]["stem"]["arguments"].update(out_channels=2**62),
    "tensors": lambda index: index["parameters"].remove("stem.weight"),
    "depth": lambda index: index["nodes"].insert(1, ["a", "call_function", "abs", [[]], []]),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_a_file_cannot_say_is_refused(name: str, tmp_path: Path) -> None:
    index, entries = content(tmp_path)
    path = tmp_path / "bad.safetensors"
    container.write(path, "network", spoiled(index, CHANGES[name]), entries)
    with pytest.raises(FormatError):
        load_network(path)


def test_other_files_and_flipped_bits_are_refused(tmp_path: Path) -> None:
    index, entries = content(tmp_path)
    for number in range(len(entries)):
        container.write(tmp_path / "less", "network", index, entries[:number])
        with pytest.raises(FormatError):
            load_network(tmp_path / "less")
    container.write(tmp_path / "other", "weights", {}, [])
    with pytest.raises(FormatError, match="kind 'weights'"):
        load_network(tmp_path / "other")
    data = bytearray((tmp_path / "net.safetensors").read_bytes())
    for at in range(0, len(data), len(data) // 40):
        data[at] ^= 16
        (tmp_path / "flipped").write_bytes(data)
        with pytest.raises(FormatError):
            load_network(tmp_path / "flipped")
        data[at] ^= 16
    with pytest.raises(FileNotFoundError):
        load_network(tmp_path / "none")


LAYERS: list[nn.Module] = [
    nn.Conv2d(4, 6, (3, 1), 2, (1, 0), 1, 2, False, "reflect"),
    nn.Conv2d(3, 5, 3, padding="same"),
    nn.ConvTranspose2d(3, 4, 3, 2, 1, 1),
    nn.BatchNorm2d(5, 1e-3, 0.2),
    nn.BatchNorm1d(5, affine=False),
    nn.InstanceNorm2d(4, affine=True),
    nn.GroupNorm(2, 4, affine=False),
    nn.LayerNorm((4,), 1e-6, bias=False),
    nn.PReLU(4),
    nn.LeakyReLU(0.3),
    nn.ReLU6(),
    nn.Hardtanh(-2.0, 3.0),
    nn.GELU("tanh"),
    nn.Dropout2d(0.3),
    nn.MaxPool2d(3, 2, 1, ceil_mode=True),
    nn.AvgPool2d(3, 2, 1, count_include_pad=False),
    nn.AdaptiveAvgPool2d((None, 2)),
    nn.Upsample(scale_factor=2.0, mode="bilinear", align_corners=False),
    nn.Unflatten(1, (2, 2)),
    nn.ZeroPad2d((1, 2, 0, 1)),
    nn.Softmax(-1),
    nn.Threshold(0.1, 2.0),
    tops.nn.TernaryConv2d(4, 6, 3, padding=1, groups=2, bias=False),
    tops.nn.TernaryLinear(4, 6, config=tops.TernaryConfig("int8", activations="float32")),
]


@pytest.mark.parametrize("layer", LAYERS, ids=lambda m: type(m).__name__)
def test_layers_come_back_with_all_their_arguments(layer: nn.Module) -> None:
    data = json.loads(json.dumps(describe("a", layer)))
    made = make("a", data)
    assert type(made) is type(layer) and repr(made) == repr(layer)
    shapes = [{n: t.shape for n, t in m.state_dict().items()} for m in (made, layer)]
    assert shapes[0] == shapes[1]


def test_data_that_is_no_graph() -> None:
    for rows in (None, 3, [[]], [["x", "placeholder", "x", {"tuple": []}, {"list": []}]]):
        with pytest.raises(TernaryOpsError):
            decode(rows)
