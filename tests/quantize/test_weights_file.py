# SPDX-License-Identifier: Apache-2.0
"""tops.save and tops.load: what comes back, what it costs, and what does not fit."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import ternary_ops as tops
from ternary_ops.errors import FormatError, UnsupportedModel
from ternary_ops.io import container
from ternary_ops.models import digits_resnet


class Mixed(nn.Module):
    """Every kind of tensor a file has to keep, beside layers of every kind."""

    def __init__(self, bias=False):
        super().__init__()
        self.stem = nn.Conv2d(
            3, 10, 3, padding=1, bias=bias
        )  # stays float, gains a bias by folding
        self.stem_norm = nn.BatchNorm2d(10)
        self.conv = nn.Conv2d(10, 18, 3, stride=2, padding=1, bias=bias)
        self.norm = nn.BatchNorm2d(18)
        self.depthwise = nn.Conv2d(18, 18, 3, padding="same", groups=18, padding_mode="reflect")
        self.kept_norm = nn.BatchNorm2d(18)  # its layer is not before it
        self.shared = nn.Linear(18, 18)
        self.again = self.shared
        self.head = nn.Linear(18, 5)
        self.tied = nn.Parameter(torch.randn(3))
        self.tied_too = self.tied
        self.register_buffer("count", torch.tensor(7))
        self.register_buffer("flags", torch.tensor([True, False]))
        self.register_buffer("wide", torch.randn(4, dtype=torch.float64))
        self.register_buffer("brain", torch.randn(2, 3).bfloat16())
        self.register_buffer("narrow", torch.randn(5).half())
        self.register_buffer("temporary", torch.randn(2), persistent=False)

    def forward(self, x):
        x = torch.relu(self.stem_norm(self.stem(x)))
        x = torch.relu(self.norm(self.conv(x)))
        x = self.kept_norm(torch.relu(self.depthwise(x))).mean((2, 3))
        return self.head(self.again(torch.relu(self.shared(x)))) + self.tied.sum()


CONFIG = tops.TernaryConfig(activations="float32")


def quantized(model=None, activations="float32"):
    model = (Mixed() if model is None else model).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # statistics worth keeping
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.weight, 1, 0.2)
            nn.init.normal_(module.bias)
    config = tops.TernaryConfig(activations=activations)
    skip = ["stem"] if isinstance(model, Mixed) else []
    tops.quantize_(model, tops.plan(model, config, skip=skip))
    return model


def saved(tmp_path, model):
    path = tmp_path / "net.safetensors"
    tops.save(model, path)
    return path


def state(model):
    return {name: t.clone() for name, t in model.state_dict().items()}


def assert_same_state(a, b):
    assert list(a) == list(b)
    for name in a:
        assert a[name].dtype == b[name].dtype, name
        assert torch.equal(a[name].nan_to_num(-1.0), b[name].nan_to_num(-1.0)), name


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_quantized_network_comes_back_packed(tmp_path, device):
    model = quantized()
    before = state(model)
    path = saved(tmp_path, model)
    assert_same_state(before, state(model))  # saving packs a copy
    assert isinstance(model.conv, tops.nn.TernaryConv2d)

    with torch.device(device):
        fresh = Mixed().eval()
    loaded = tops.load(path, fresh)
    assert loaded is fresh
    packed = tops.pack_(copy.deepcopy(model))
    assert_same_state(state(packed), state(loaded))
    assert loaded.again is loaded.shared
    assert loaded.tied_too is loaded.tied
    assert isinstance(loaded.norm, nn.Identity)
    x = torch.randn(2, 3, 9, 8)
    assert torch.equal(loaded(x), packed(x))
    assert (loaded(x) - model(x)).abs().max() < 1e-4 * model(x).abs().max()


def test_a_packed_uint8_network_comes_back_and_saves_to_the_same_bytes(tmp_path):
    torch.manual_seed(3)
    model = quantized(digits_resnet(8), "uint8")
    tops.calibrate(model, [torch.rand(16, 1, 8, 8)])
    tops.pack_(model)
    path = saved(tmp_path, model)
    loaded = tops.load(path, digits_resnet(8).eval())
    assert_same_state(state(model), state(loaded))
    x = torch.rand(5, 1, 8, 8)
    assert torch.equal(loaded(x), model(x))
    first = path.read_bytes()
    tops.save(loaded, path)
    assert path.read_bytes() == first
    floats = sum(p.numel() for p in digits_resnet(8).parameters())
    assert len(first) < floats


def test_the_mode_of_the_fresh_model_stays(tmp_path):
    path = saved(tmp_path, quantized())
    for training in (True, False):
        loaded = tops.load(path, Mixed().train(training))
        assert {m.training for m in loaded.modules() if not isinstance(m, nn.Identity)} == {
            training
        }


def test_biases_that_folding_made_come_back(tmp_path):
    model = quantized()
    loaded = tops.load(saved(tmp_path, model), Mixed().eval())
    assert loaded.stem.bias is not None
    assert loaded.conv.bias is not None
    assert isinstance(loaded.stem_norm, nn.Identity)


class Wider(Mixed):
    def __init__(self):
        super().__init__()
        self.more = nn.Linear(3, 3)


class Narrower(Mixed):
    def __init__(self):
        super().__init__()
        del self.count


class OtherShape(Mixed):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(10, 17, 3)


class OtherBuffer(Mixed):
    def __init__(self):
        super().__init__()
        self.wide = torch.zeros(5, dtype=torch.float64)


class NotShared(Mixed):
    def __init__(self):
        super().__init__()
        self.again = nn.Linear(18, 18)


class NoNorm(Mixed):
    def __init__(self):
        super().__init__()
        self.norm = nn.ReLU()


class NoLayer(Mixed):
    def __init__(self):
        super().__init__()
        self.head = nn.Bilinear(18, 5, 5)


@pytest.mark.parametrize(
    ("model", "error", "said"),
    [
        (Wider, FormatError, "no 'more.weight', 'more.bias'"),
        (Narrower, FormatError, "also 'count'"),
        (OtherShape, FormatError, r"ternary codes \[17, 3, 3, 10\] for 'conv'"),
        (OtherBuffer, FormatError, r"'wide' of shape \[5\], got \[4\]"),
        (NotShared, FormatError, "no 'again.weight'"),
        (NoNorm, UnsupportedModel, "'norm' as a BatchNorm .* got ReLU"),
        (NoLayer, UnsupportedModel, "'head' as a torch.nn.Linear or Conv2d, got Bilinear"),
        (quantized, UnsupportedModel, "got TernaryConv2d"),
        (nn.Sequential, UnsupportedModel, "got no such layer"),
    ],
)
def test_what_does_not_fit_is_named_and_the_model_stays_as_it_was(tmp_path, model, error, said):
    path = saved(tmp_path, quantized())
    fresh = model()
    before, modules = state(fresh), list(fresh.modules())
    with pytest.raises(error, match=said):
        tops.load(path, fresh)
    assert [id(m) for m in fresh.modules()] == [id(m) for m in modules]
    assert_same_state(before, state(fresh))


def test_a_float_network_and_a_program_are_not_weights(tmp_path):
    with pytest.raises(UnsupportedModel, match="quantize_"):
        tops.save(Mixed(), tmp_path / "f")
    assert list(tmp_path.iterdir()) == []
    container.write(tmp_path / "f", "program", {}, [])
    with pytest.raises(FormatError, match="got kind 'program'"):
        tops.load(tmp_path / "f", Mixed())


def test_state_that_is_no_plain_tensor_is_named(tmp_path):
    model = quantized()
    model.register_buffer("z", torch.ones(2, dtype=torch.complex64))
    with pytest.raises(UnsupportedModel, match="'z'"):
        tops.save(model, tmp_path / "f")
    model.register_buffer("z", torch.ones(2, 2).to_sparse())
    with pytest.raises(UnsupportedModel, match="'z'"):
        tops.save(model, tmp_path / "f")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("index", "said"),
    [
        ({"other": 1}, "layers and folded"),
        ({"layers": {}}, "layers and folded"),
        ({"folded": [3]}, "list of names"),
        ({"bfloat16": "count"}, "list of names"),
        ({"bfloat16": ["wide"]}, "bfloat16 in 'wide'"),
        ({"layers": [["head", "ternary", None]]}, r"\[name, weights, input, output\]"),
        ({"layers": [["head", "float", None, None]]}, r"\[name, weights, input, output\]"),
        ({"layers": [["head", "int8", [0.0, 3], None]]}, "input scale > 0"),
        ({"layers": [["head", "int8", [1e300, 3], None]]}, "input scale > 0"),
        ({"layers": [["head", "int8", [1, 3], None]]}, "input scale > 0"),
        ({"layers": [["head", "int8", [0.5, 256], None]]}, "zero point"),
        ({"layers": [["head", "int8", [0.5, True], None]]}, "zero point"),
        ({"layers": [["head", "ternary", None, None]]}, "ternary codes .* for 'head'"),
        (
            {"layers": [["shared", "ternary", None, None], ["kept_norm", "int8", None, None]]},
            "got BatchNorm2d",
        ),
        ({"layers": [["head", "int8", None, [1.0, -1.0]]]}, "output lo <= hi"),
        ({"layers": [["head", "int8", None, [1.0]]]}, "output lo <= hi"),
        ({"layers": []}, "no 'tied'"),
        ({"ranges": [1.0]}, "ranges by the names of values"),
        ({"ranges": {"a": [1.0, -1.0]}}, "an output lo <= hi of 'a'"),
    ],
)
def test_an_index_by_malice(tmp_path, index, said):
    document = container.read(saved(tmp_path, quantized()))
    path = tmp_path / "forged"
    keep = [e for e in document.weights.values() if "layers" not in index or index["layers"]]
    container.write(path, "weights", {**document.index, **index}, keep)
    with pytest.raises((FormatError, UnsupportedModel), match=said):
        tops.load(path, Mixed())


class Versioned(nn.Module):
    """Asks for the version of its state, as torchvision's MNASNet does."""

    _version = 2

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Linear(8, 4)

    def forward(self, x):
        return self.fc(torch.relu(self.norm(self.conv(x))).mean((2, 3)))

    def _load_from_state_dict(self, state, prefix, metadata, *rest):
        if metadata.get("version") != 2:
            raise ValueError(f"version should be 2 instead of {metadata.get('version')}")
        super()._load_from_state_dict(state, prefix, metadata, *rest)


def test_a_model_that_asks_for_the_version_of_its_state_loads(tmp_path):
    model, x = quantized(Versioned()), torch.randn(2, 3, 5, 5)
    tops.save(model, tmp_path / "weights.safetensors")
    loaded = tops.load(tmp_path / "weights.safetensors", Versioned().eval())
    assert torch.equal(loaded(x), tops.pack_(model)(x))


class Auxiliary(nn.Module):
    """A head that runs in training alone."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.aux, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, 4), nn.Linear(8, 4)

    def forward(self, x):
        x = torch.relu(self.conv(x)).mean((2, 3))
        return (self.fc(x), self.aux(x)) if self.training else self.fc(x)


@pytest.mark.parametrize("training", [False, True])
def test_a_head_that_runs_in_training_alone_is_packed(training, tmp_path, caplog):
    torch.manual_seed(0)
    model, other, x = Auxiliary(), Auxiliary(), torch.randn(4, 3, 6, 6)
    for network in (model, other):
        tops.quantize_(network, tops.TernaryConfig("int8"))
    tops.calibrate(model, [x])
    other.load_state_dict(model.state_dict())  # which does not say that the head was never called
    other.train(training)
    rows = tops.quantize.sensitivity(other, [x]).rows
    assert {row.name for row in rows} == {"conv", "fc"}
    tops.save(other, tmp_path / "weights.safetensors")
    assert "not run in eval mode, packed with a float input: aux" in caplog.text
    loaded = tops.load(tmp_path / "weights.safetensors", Auxiliary().eval())
    assert torch.equal(loaded(x), tops.pack_(model.eval())(x))
