# SPDX-License-Identifier: Apache-2.0
"""CIFAR-10 and Tiny ImageNet as the data packs have them, and the ResNets trained on the former."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ternary_ops import models
from ternary_ops.benchmark.pruned_networks import data_folder
from ternary_ops.data.classification import Split
from ternary_ops.data.image_folder import Images
from ternary_ops.errors import BadConfig, need

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def folder() -> Path:
    """Where the data packs are; BadConfig without them."""
    found = data_folder()
    if found is None:
        do = "Set TERNARY_OPS_DATA to the folder of the data packs."
        raise BadConfig(need("this study needs data packs", "none found", do))
    return found


def load_cifar10() -> Split:
    """50,000 images to train, 10,000 to test, normalized, float32 [N, 3, 32, 32]."""
    train, test = (
        read_pack(folder() / "cifar10" / f"{part}.npz", 32) for part in ("train", "test")
    )
    return Split(_normalized(train[0])[:], train[1], _normalized(test[0])[:], test[1])


def load_tiny_imagenet(side: int) -> Split:
    """100 classes of Tiny ImageNet: 50,000 images to train, 5,000 to test, bytes until they are
    used; side: 64, or 32 for means of 2x2 pixels.
    """
    pack = folder() / "tinyimagenet100"
    train, test = (read_pack(pack / f"{part}.npz", side) for part in ("train", "val"))
    return Split(_normalized(train[0]), train[1], _normalized(test[0]), test[1])


def load_resnet(path: Path) -> nn.Module:
    """A CIFAR ResNet with the weights of a state dict (layer1.0.conv1.weight, ..., linear.weight).

    Shortcuts that the file has no parameters for (option A) become 1x1 convolutions that do the
    same: each old channel goes to one new channel.
    """
    with np.load(path) as file:
        found = {name: torch.from_numpy(file[name]) for name in file.files}
    depth = (
        2 * sum(name.startswith("layer") and name.endswith("conv1.weight") for name in found) + 2
    )
    model = models.cifar_resnet(depth)
    for name in ("weight", "bias"):
        found[f"fc.{name}"] = found.pop(f"linear.{name}")
    missing = model.load_state_dict(found, strict=False)
    if missing.unexpected_keys or any("downsample" not in key for key in missing.missing_keys):
        raise SystemExit(f"{path} is not the state dict of a CIFAR ResNet")
    for module in model.modules():
        shortcut = getattr(module, "downsample", None)
        if shortcut is not None:
            nn.init.zeros_(shortcut[0].weight)
            o, i = shortcut[0].weight.shape[:2]
            for channel in range(i):
                shortcut[0].weight.data[(o - i) // 2 + channel, channel] = 1
    return model


@torch.no_grad()
def keep_shortcuts_(model: nn.Module, x: Tensor) -> None:
    """Set the BatchNorm of every shortcut so that it changes nothing in training mode either."""

    def measure(norm: nn.Module, given: tuple[Tensor, ...]) -> None:
        norm.weight.copy_(given[0].std((0, 2, 3), correction=0).clamp_min(1e-3))
        norm.bias.copy_(given[0].mean((0, 2, 3)))
        norm.running_var.copy_(norm.weight.square())
        norm.running_mean.copy_(norm.bias)

    shortcuts = [m.downsample for m in model.modules() if getattr(m, "downsample", None)]
    handles = [shortcut[1].register_forward_pre_hook(measure) for shortcut in shortcuts]
    model.eval()(x)
    for handle in handles:
        handle.remove()


def _normalized(pixels: Tensor) -> Images:
    return Images(pixels, torch.tensor(_MEAN), torch.tensor(_STD))


def read_pack(path: Path, side: int) -> tuple[Tensor, Tensor]:
    """Images uint8 [N, 3, side, side] and labels int64 [N] of a pack of JPEG files; larger images
    become means of blocks.
    """
    from PIL import Image

    with np.load(path) as pack:
        parts = {key: pack[key] for key in pack.files}
    heads, scans = parts["head_off"], parts["scan_off"]
    images = np.empty((len(parts["head_id"]), 3, side, side), np.uint8)
    for i, head in enumerate(parts["head_id"]):
        start = parts["head"][heads[head] : heads[head + 1]].tobytes()
        data = start + parts["scan"][scans[i] : scans[i + 1]].tobytes()
        image = Image.open(io.BytesIO(data)).convert("RGB")
        if image.size != (side, side):
            image = image.resize((side, side), Image.Resampling.BOX)
        images[i] = np.asarray(image).transpose(2, 0, 1)
    return torch.from_numpy(images), torch.from_numpy(parts["label"].astype(np.int64))
