# SPDX-License-Identifier: Apache-2.0
"""BatchNorm re-calibration and bias correction."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import ternary_ops as tops
from ternary_ops.errors import UnsupportedModel
from ternary_ops.models import digits_resnet
from ternary_ops.quantize import correct_bias_, recalibrate_batchnorm_


def images(count: int = 64) -> Tensor:
    return 2 + 3 * torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def test_statistics_become_those_of_the_samples() -> None:
    torch.manual_seed(0)
    model, x = digits_resnet(8), images()
    momenta = [m.momentum for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    recalibrate_batchnorm_(model, x.split(16))
    first = model.conv1(x)
    torch.testing.assert_close(model.bn1.running_mean, first.mean((0, 2, 3)))
    variances = torch.stack([model.conv1(part).var((0, 2, 3)) for part in x.split(16)])
    torch.testing.assert_close(model.bn1.running_var, variances.mean(0))
    assert not any(m.training for m in model.modules())
    assert momenta == [m.momentum for m in model.modules() if isinstance(m, nn.BatchNorm2d)]


def test_a_failure_leaves_the_statistics() -> None:
    model = digits_resnet(8)
    before = copy.deepcopy(model.state_dict())
    for batches in ([], [images(4), "no tensor"]):
        with pytest.raises(UnsupportedModel):
            recalibrate_batchnorm_(model, batches)
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_rule_lsq_and_rule_unit_agree_once_batchnorm_is_recalibrated() -> None:
    """What a BatchNorm follows does not depend on the scale rule; PTQ, section 3.4."""
    tops.quantize.register_ternarizer("unit-scale", tops.quantize.ptq(scale="unit"))
    torch.manual_seed(1)
    dense, x = digits_resnet(8), images(256)
    outputs = []
    for name in ("ptq", "unit-scale"):
        model = copy.deepcopy(dense)
        config = tops.TernaryConfig(ternarizer=name, pattern="element", activations="float32")
        tops.quantize_(model, tops.plan(model, config, rules={"fc": tops.TernaryConfig("float")}))
        tops.prune.Pruner(model, "one_shot", 1, zeros=0.7).step()
        recalibrate_batchnorm_(model, [x])
        outputs.append(model(x).detach())
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-3, atol=1e-3)
    assert torch.equal(outputs[0].argmax(1), outputs[1].argmax(1))


def plain() -> nn.Sequential:
    torch.manual_seed(2)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.Flatten(),
        nn.Linear(8 * 36, 10),
    )


def test_mean_outputs_become_those_of_the_dense_network() -> None:
    dense, x = plain().eval(), images()
    model = copy.deepcopy(dense)
    tops.quantize_(model, tops.TernaryConfig(zeros=0.5, pattern="element", activations="float32"))
    tops.prune.Pruner(model, "one_shot", 1).step()

    def gap(layers: int) -> float:
        with torch.no_grad():
            means = [net[:layers](x).mean((0, 2, 3)) for net in (dense, model)]
        return float((means[0] - means[1]).abs().max())

    before = gap(3)
    corrections = correct_bias_(model, dense, [x])
    assert gap(1) < 1e-5 and gap(3) < 1e-5 < before
    # The third convolution's mean is BatchNorm's business: its bias would change nothing.
    assert list(corrections) == ["0", "2", "7"] and model[4].bias is None
    assert corrections["2"] == pytest.approx(float(model[2].bias.detach().abs().max()))
    with torch.no_grad():
        torch.testing.assert_close(model(x).mean(0), dense(x).mean(0), rtol=1e-4, atol=1e-4)


def test_bias_correction_needs_the_same_layers() -> None:
    with pytest.raises(UnsupportedModel, match="quantized layers"):
        correct_bias_(plain(), plain(), [images()])
    model = plain()
    tops.quantize_(model)
    with pytest.raises(UnsupportedModel, match="none for"):
        correct_bias_(model, digits_resnet(8), [images()])
