# SPDX-License-Identifier: Apache-2.0
"""Small quantized networks in every phase, and the file of their states that commit cf631c5 wrote.

`PYTHONPATH=tests/support python -m state_networks FILE` wrote states_v0.safetensors at cf631c5; a
later version of the package writes other states. Keys are CASE/model/NAME, CASE/y (the output for
the first two images of batch(200), in eval mode), CASE/codes and CASE/scale (integer_weight of the
middle layer), and the tensors of a Pruner's and an optimizer's state; metadata has the plans.
"""

from __future__ import annotations

import json
import sys
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ternary_ops as tops

STEPS = 20


class Case(NamedTuple):
    """What is special about a network, and at which of 20 steps it was written."""

    stopped: int
    config: dict[str, Any]
    calibrated: bool = True
    pruner: dict[str, Any] = {}


CASES = {
    "float": Case(4, {}),
    "ternary": Case(10, {}),
    "frozen": Case(20, {}),
    "element": Case(10, {"pattern": "element"}, calibrated=False),
    "ttq": Case(10, {"ternarizer": "ttq"}),
    "ttq_frozen": Case(20, {"ternarizer": "ttq"}),
    "absmean": Case(20, {"ternarizer": "absmean"}),
    "regrown": Case(12, {}, pruner={"nested": False}),
    "eleven": Case(20, {"weights": "int8", "activations": "uint11", "zeros": 0.0}),
}


def network(case: Case, pool: bool = True) -> nn.Sequential:
    """Two convolutions, a BatchNorm, perhaps a pool, and a linear layer, quantized; seed 0."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 2), nn.ReLU(), nn.Conv2d(8, 4, 3, 2, bias=False), nn.BatchNorm2d(4),
        nn.ReLU(), nn.AvgPool2d(2, 1) if pool else nn.Identity(), nn.Flatten(),
        nn.Linear(16 if pool else 36, 3),
    )  # fmt: skip
    config = tops.TernaryConfig(**{"zeros": 0.5, "pattern": "1x4", **case.config})
    rules = {"7": tops.TernaryConfig(weights="int8")} if config.activations == "uint11" else {}
    tops.quantize_(model, tops.plan(model, config, rules=rules))
    return model


def batch(seed: int) -> tuple[Tensor, Tensor]:
    """Images [8, 3, 8, 8] and labels that a small network can learn."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(8, 3, 8, 8, generator=generator)
    return x, x[:, :, 2:6, 2:6].mean((2, 3)).argmax(1)


def parts(model: nn.Module, case: Case) -> tuple[torch.optim.SGD, tops.prune.Pruner | None]:
    """Optimizer and pruner of a network."""
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    if case.config.get("zeros") == 0.0:
        for layer in model.modules():
            if isinstance(layer, tops.nn.TernaryLayer):
                layer.phase = "frozen"
        return optimizer, None
    pruner = tops.prune.Pruner(
        model, "one_cycle", STEPS, optimizer=optimizer, ternary_at=0.3, freeze_at=0.7, **case.pruner
    )
    return optimizer, pruner


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    pruner: tops.prune.Pruner | None,
    steps: range,
    after: Any = None,
) -> None:
    """Some steps of training; `after` is called behind each."""
    model.train()
    for step in steps:
        x, y = batch(step)
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if pruner is not None:
            pruner.step()
        if after is not None:
            after(step)


def layers(model: nn.Module) -> dict[str, tops.nn.TernaryLayer]:
    """The quantized layers by name."""
    return {n: m for n, m in model.named_modules() if isinstance(m, tops.nn.TernaryLayer)}


def main() -> int:
    """Write the states of all cases."""
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    plans: dict[str, str] = {}
    for name, case in CASES.items():
        model = network(case)
        optimizer, pruner = parts(model, case)
        train(model, optimizer, pruner, range(2))
        if case.calibrated:
            tops.calibrate(model, [batch(100)[0]])
        train(model, optimizer, pruner, range(2, case.stopped))
        model.eval()
        x = batch(200)[0][:2]
        found: dict[str, Tensor] = {"y": model(x).detach()}
        found |= {f"model/{k}": v for k, v in model.state_dict().items()}
        found["codes"], found["scale"] = layers(model)["2"].integer_weight()
        if pruner is not None:
            state = pruner.state_dict()
            found |= {f"pruned/{i}": bits for i, bits in enumerate(state["pruned"])}
            found |= {f"latent/{n}": v for n, v in state["latent"].items()}
            plans[name] = json.dumps({"step": state["step"], "plan": state["plan"]})
            if name == "ternary":
                momenta = optimizer.state_dict()["state"]
                found |= {f"momentum/{i}": v["momentum_buffer"] for i, v in momenta.items()}
        tensors |= {f"{name}/{k}": v.clone().contiguous() for k, v in found.items()}
        if name in ("frozen", "absmean"):
            tops.save(model, sys.argv[1].replace("states", f"weights_{name}"))
            program = tops.compile(model, x)
            tensors[f"{name}/program"] = torch.from_numpy(program(x.numpy()))
    save_file(tensors, sys.argv[1], plans)
    return 0


if __name__ == "__main__":
    sys.exit(main())
