# SPDX-License-Identifier: Apache-2.0
"""Windows of an image as a batch of their own, overlapping ones, and what attention does in them;
PyTorch's own module of attention.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from attention_networks import tokens
from small_networks import error, images, ready
from torch import Tensor, nn

import ternary_ops as tops
from ternary_ops.errors import UnsupportedModel

Function = Callable[..., Tensor]


class Net(nn.Module):
    """A function of an image of 12 channels, with modules and parameters of its own."""

    def __init__(self, function: Function, **own: nn.Module | Tensor) -> None:
        super().__init__()
        self.conv, self.function = nn.Conv2d(3, 12, 3, padding=1), function
        for name, part in own.items():
            setattr(self, name, nn.Parameter(part) if isinstance(part, Tensor) else part)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, self.conv(x))


def windows(x: Tensor, size: int = 4) -> Tensor:
    """[N, C, H, W] as [N * windows, C, size, size]."""
    n, c, h, w = x.shape
    x = x.view(n, c, h // size, size, w // size, size).permute(0, 2, 4, 1, 3, 5)
    return x.reshape(-1, c, size, size)


def image(x: Tensor, n: int) -> Tensor:
    """Four windows back as an image."""
    _, c, h, w = x.shape
    return x.view(n, 2, 2, c, h, w).permute(0, 3, 1, 4, 2, 5).reshape(n, c, 2 * h, 2 * w)


def filtered(net: Any, x: Tensor) -> Tensor:
    """Convolutions and pools in windows (EfficientViT, Hiera)."""
    y = windows(x)
    y = F.relu(net.depthwise(net.point(y)))
    y = y + net.dense(y) * F.adaptive_avg_pool2d(y, 1)
    y = F.avg_pool2d(y, 3, 1, 1) + F.interpolate(F.max_pool2d(y, 2), scale_factor=2)
    return image(y, x.shape[0])


def relative(net: Any, x: Tensor) -> Tensor:
    """Logits by distance, by padding and reshaping (BoTNet)."""
    n, _, h, w = x.shape
    q = x.reshape(n * 3, 4, h, w).permute(0, 2, 3, 1)
    y = (q @ net.relative.t()).reshape(-1, w, 2 * w - 1)
    y = F.pad(F.pad(y, [0, 1]).flatten(1), [0, w - 1]).reshape(-1, w + 1, 2 * w - 1)
    return y[:, :w, w - 1 :].reshape(n, 3 * h, w, w)


def halo(net: Any, x: Tensor) -> Tensor:
    """Attention to a window and its surroundings (HaloNet)."""
    n, c, h, w = x.shape
    q = x.reshape(n, c, 2, h // 2, 2, w // 2).permute(0, 2, 4, 3, 5, 1).reshape(n, 4, -1, c)
    around = F.pad(x, [1] * 4).unfold(2, h // 2 + 2, h // 2).unfold(3, w // 2 + 2, w // 2)
    k = around.reshape(n, c, 4, -1).permute(0, 2, 3, 1)
    return ((q @ k.transpose(-1, -2)).softmax(-1) @ k).flatten(1, 2)


def shared_query(net: Any, x: Tensor) -> Tensor:
    """Every window of an image has the same queries (GCViT)."""
    keys = windows(x).flatten(2).transpose(1, 2)
    q = F.adaptive_avg_pool2d(x, 4).flatten(2).transpose(1, 2)
    q = q.repeat_interleave(keys.shape[0] // q.shape[0], dim=0)
    made = (q @ keys.transpose(-2, -1)).softmax(-1) @ keys
    return image(made.transpose(1, 2).reshape(-1, 12, 4, 4), x.shape[0])


def whole_query(net: Any, x: Tensor) -> Tensor:
    """The only window is the image; bounds that bound nothing."""
    y, q = tokens(x), x.mean((2, 3)).unsqueeze(1).clamp(-float("inf"), float("inf"))
    q = q.repeat_interleave(y.shape[0] // q.shape[0], dim=0).clamp(min=-1.0, max=float("inf"))
    return (q @ y.transpose(-2, -1)).softmax(-1) @ y


def columns(net: Any, x: Tensor) -> Tensor:
    """Windows as columns, weighted, and their sum (Volo)."""
    y = F.unfold(x, (3, 2), dilation=(1, 2), padding=1, stride=2)
    y = net.point(y.unsqueeze(3)).squeeze(3)
    made = F.fold(y, x.shape[2:], 3, padding=1, stride=2)
    return made + net.fold(y[..., :16])


def volume(net: Any, x: Tensor) -> Tensor:
    """Along rows and columns, with every channel by itself (LambdaNet)."""
    n, c, h, w = x.shape
    y = net.last(x.permute(0, 2, 3, 1).reshape(n, 1, h, w, c)).relu()
    return net.middle(y.transpose(3, 4).transpose(2, 3)).flatten(3)


def reordered(net: Any, x: Tensor) -> Tensor:
    """Numbers of each window in another order, and some of its channels."""
    y = windows(x).flatten(2)[:, :, torch.arange(16).view(4, 4).T.flatten()]
    return image(y.view(-1, 12, 4, 4)[:, 2:8], x.shape[0])


def root_mean_square(net: Any, x: Tensor) -> Tensor:
    """Norms of tokens, none of which are prefixes."""
    y = net.norm(tokens(x)) + F.rms_norm(tokens(x), (12,), net.weight, 1e-3)
    prefix, rest = y[:, :0], y[:, 0:]
    y = torch.cat([prefix, F.rms_norm(rest, (12,))], 1)
    return y + F.layer_norm(y, (12,), None, None, 1e-3)


def heads(net: Any, x: Tensor) -> Tensor:
    """Attention of each token to all, and of some to others, whose weights are returned."""
    y = tokens(x)
    first, _ = net.first(y, y, y, need_weights=False)
    given = (p.transpose(0, 1) for p in (y[:, :5], first, y))
    last, weights = net.last(*given, attn_mask=net.mask)
    return last.transpose(0, 1) * weights.mean(-1, keepdim=True)


def transformer(net: Any, x: Tensor) -> Tensor:
    """PyTorch's own, whose parts a trace sees."""
    y: Tensor = net.encoder(tokens(x))
    made: Tensor = net.decoder(y[:, :4], y)
    return made


def _layers() -> dict[str, nn.Module]:
    return {
        "point": nn.Conv2d(12, 8, 1),
        "depthwise": nn.Conv2d(8, 8, 3, padding=1, groups=8),
        "dense": nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular"),
    }


NETS: dict[str, Callable[[], Net]] = {
    "filtered": lambda: Net(filtered, **_layers()),
    "relative": lambda: Net(relative, relative=torch.randn(15, 4)),
    "halo": lambda: Net(halo),
    "shared query": lambda: Net(shared_query),
    "whole query": lambda: Net(whole_query),
    "columns": lambda: Net(
        columns, point=nn.Conv2d(72, 36, 1), fold=nn.Fold((8, 8), (3, 3), stride=(2, 2), padding=1)
    ),
    "volume": lambda: Net(
        volume,
        last=nn.Conv3d(1, 4, (3, 3, 1), (2, 1, 1), (1, 1, 0)),
        middle=nn.Conv3d(4, 2, (1, 1, 3), bias=False),
    ),
    "reordered": lambda: Net(reordered),
    "rms": lambda: Net(root_mean_square, norm=nn.RMSNorm(12), weight=torch.randn(12)),
    "transformer": lambda: Net(
        transformer,
        encoder=nn.TransformerEncoder(
            nn.TransformerEncoderLayer(12, 3, 20, batch_first=True, activation="gelu"),
            2,
            enable_nested_tensor=False,
        ),
        decoder=nn.TransformerDecoderLayer(12, 2, 20, batch_first=True, norm_first=True),
    ),
    "heads": lambda: Net(
        heads,
        first=nn.MultiheadAttention(12, 3, bias=False, batch_first=True),
        last=nn.MultiheadAttention(12, 2, kdim=12, vdim=12),
        mask=torch.randn(5, 64),
    ),
}


@pytest.mark.parametrize("name", NETS)
def test_floats_equal_pytorch(name: str) -> None:
    torch.manual_seed(0)
    model, x = NETS[name]().eval(), images(2, 3, 8, 8)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    program = tops.compile(model, x)
    assert error(program, model, images(3, 3, 8, 8, seed=1)) < 1e-5


def test_layers_in_windows_stay_integers() -> None:
    torch.manual_seed(0)
    x = images(2, 3, 8, 8)
    model = ready(NETS["filtered"](), x, weights="int8")
    program = tops.compile(model, x)
    layers = [node for node in program.graph.nodes if node.op == "conv2d"]
    kinds = [program.graph.weights[node.attrs["w"]].kind for node in layers]
    assert len(layers) == 4 and set(kinds) == {"int8"}
    assert error(program, model, images(3, 3, 8, 8, seed=1)) < 0.03


@pytest.mark.parametrize(
    ("options", "given", "reason"),
    [
        ({"add_bias_kv": True}, lambda n: {}, "added keys"),
        ({}, lambda n: {"key_padding_mask": torch.zeros(n, 64)}, "key_padding_mask"),
        ({}, lambda n: {"attn_mask": torch.ones(64, 64).tril() == 0}, "compute in float32"),
        ({}, lambda n: {"attn_mask": torch.zeros(3 * n, 64, 64)}, "one mask of floats"),
    ],
)
def test_heads_with_more_keys_are_refused(
    options: dict[str, Any], given: Callable[[int], dict[str, Any]], reason: str
) -> None:
    def function(net: Any, x: Tensor) -> Tensor:
        y = tokens(x)
        made: Tensor = net.heads(y, y, y, **given(y.shape[0]))[0]
        return made

    model = Net(function, heads=nn.MultiheadAttention(12, 3, batch_first=True, **options)).eval()
    with pytest.raises(UnsupportedModel, match=f"MultiheadAttention: .*{reason}"):
        tops.compile(model, images(2, 3, 8, 8))
