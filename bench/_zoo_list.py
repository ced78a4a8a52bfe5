# SPDX-License-Identifier: Apache-2.0
"""The list of models: read, written, and filled with a small variant of every family."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

_LARGEST = 200_000_000  # parameters: a family whose smallest variant has more is left out
_SIDES = (64, 96, 128, 224, 256)  # tried in this order where a network fixes no image size
_HEAD = "# source, model, input size, mark (a: with attention)\n"


class Model(NamedTuple):
    """One line of a list. size: side of the image. mark: "a" for attention, "-" without."""

    source: str
    name: str
    size: int
    mark: str

    def __str__(self) -> str:
        """As the line says it."""
        return "\t".join(map(str, self))


def read_list(path: Path) -> list[Model]:
    """Models of a list file: four words a line, anything behind them and lines with # are left."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        words = line.split()
        if words and not words[0].startswith("#"):
            rows.append(Model(words[0], words[1], int(words[2]), words[3]))
    return rows


def write_list(path: Path, models: list[Model]) -> None:
    """A file that `read_list` reads."""
    path.write_text(_HEAD + "".join(f"{model}\n" for model in models), encoding="utf-8")


def build(source: str, name: str) -> nn.Module:
    """The network with the random weights of the present seed, in eval mode."""
    if source == "torchvision":
        from torchvision import models

        options = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
        model: nn.Module = models.get_model(name, weights=None, **options)
    else:
        import timm

        model = timm.create_model(name)
    return model.eval()


def families(known: list[Model]) -> list[Model]:
    """The variant with the fewest parameters of every family that no known model is of.

    A family is the letters that a name begins with ("mobilenet_v3", "regnet_x"), of timm within
    one of its files.
    """
    covered = {_family(model.source, model.name) for model in known}
    variants: dict[tuple[str, ...], list[tuple[str, str]]] = {}
    for source, name in _names():
        family = _family(source, name)
        if family not in covered:
            variants.setdefault(family, []).append((source, name))
    chosen = []
    for names in variants.values():
        smallest = _smallest(names)
        if smallest is not None:
            chosen.append(smallest)
            print(smallest, flush=True)
    return chosen


def _names() -> Iterator[tuple[str, str]]:
    """Image classifiers of both libraries; timm's networks for its own tests are none."""
    import timm
    from torchvision import models

    yield from (("torchvision", name) for name in models.list_models(module=models))
    yield from (("timm", name) for name in timm.list_models() if not name.startswith("test_"))


def _family(source: str, name: str) -> tuple[str, ...]:
    letters = re.match(r"(?:tf_|legacy_)?[a-z]+", name)
    start = letters[0] if letters else name
    if source == "torchvision":
        kind = re.match(r"_(?:v\d|[xy])(?=_|$)", name[len(start) :])
        return source, start + (kind[0] if kind else "")
    from timm.models import _registry

    return source, str(_registry._model_to_module[name]), start


def _smallest(names: list[tuple[str, str]]) -> Model | None:
    """The network of fewest parameters, made without memory; None if all are too large."""
    sized = []
    for source, name in names:
        model = _without_memory(source, name)
        if model is None:
            continue
        count = sum(p.numel() for p in model.parameters())
        if count <= _LARGEST:
            sized.append((count, source, name))
    for _, source, name in sorted(sized):
        made = _without_memory(source, name)
        size = None if made is None else _side(made)
        if made is not None and size is not None:
            attends = any(_attends(type(m).__name__) for m in made.modules())
            return Model(source, name, size, "a" if attends else "-")
    return None


def _without_memory(source: str, name: str) -> nn.Module | None:
    """The network on the meta device; None where the library cannot make it."""
    try:
        with torch.device("meta"):
            return build(source, name)
    except NotImplementedError:  # it computes with its weights while it is made
        return build(source, name).to("meta")
    except Exception as error:  # the library's own code, which raises many kinds
        print(f"# {name}: {type(error).__name__}: {str(error).partition(chr(10))[0]}")
        return None


def _side(model: nn.Module) -> int | None:
    """The smallest image that the network takes; None where it takes none and is no classifier."""
    config = getattr(model, "default_cfg", {})
    fixed = config["input_size"][1] if config.get("fixed_input_size") else None
    own = config.get("input_size", (3, 224, 224))[1]
    for side in [fixed] if fixed else [*_SIDES, own]:
        try:
            with torch.no_grad():
                y = model(torch.zeros(2, 3, side, side, device="meta"))
        except Exception:  # too small for the network, which says so in many ways
            continue
        if isinstance(y, torch.Tensor) and y.shape[0] == 2:
            return int(side)
    return None


def _attends(kind: str) -> bool:
    return re.search(r"Attention|Attn|MHSA|Mhsa|Window", kind) is not None
