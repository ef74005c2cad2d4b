"""A class from outside that breaks its contract is refused in one line, before anything is trained."""

import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import composed

from vaex.build import build
from vaex.errors import UserError
from vaex.evaluation.measure import Evaluation, Measurement, measure
from vaex.evaluation.metric import Metric

MODULE = """
import torch
from torch import nn
from vaex.architectures import base
from vaex.likelihoods.base import Likelihood
from vaex.likelihoods.location_scale import LocationScale, Standard
from vaex.objectives import Objective

class NoForward(Likelihood):
    support, kind = "real", "density"

class NoKind(Likelihood):
    support = "real"
    def forward(self, h, x=None): ...

class NoKernel(LocationScale):
    standard = Standard()

class Kernel(Standard):
    def log_kernel(self, e): return -e.abs()

class NoNormalizer(LocationScale):
    standard = Kernel()

class NotStochastic(Objective):
    def forward(self, model, batch, step): ...

class NoInit(Objective):
    stochastic = True
    def __init__(self): pass
    def forward(self, model, batch, step): ...

class Encoder(base.Encoder):
    def __init__(self, *, image_shape, out_features):
        super().__init__()
        self.output = nn.LazyLinear(out_features + 1)
    def forward(self, x): return self.output(x.flatten(1))

class Empty(base.Encoder):
    def __init__(self, *, image_shape, out_features): super().__init__()

class Decoder(base.Decoder):
    def __init__(self, *, in_features, image_shape, out_channels): super().__init__()
    def forward(self, z): return None
"""

# Class -> the part of the config that names it, and what the error says.
VIOLATIONS = {
    "NoForward": ("likelihood", "NoForward must define forward, as Likelihood says"),
    "NoKind": ("likelihood", "NoKind must define kind"),
    "NoKernel": ("likelihood", "Standard must define log_kernel"),
    "NoNormalizer": ("likelihood", "Kernel must define log_normalizer"),
    "NotStochastic": ("objective", "NotStochastic must define stochastic"),
    "NoInit": ("objective", "must call super().__init__() first"),
    "Encoder": ("architecture.encoder", "returns [1, 41] for one image, but must return a tensor [1, 40]"),
    "Empty": ("architecture.encoder", "Empty must define forward"),
    "Decoder": ("architecture.decoder", "returns a NoneType for one image"),
}


@pytest.mark.parametrize("name", VIOLATIONS)
def test_a_broken_contract_is_one_line(
    name: str, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mypackage.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "mypackage", raising=False)
    part, message = VIOLATIONS[name]
    config = composed(*tiny)
    group: dict[str, Any] = getattr(config, part.partition(".")[0])
    if "." in part:
        group[part.partition(".")[2]] = {"_target_": f"mypackage.{name}"}
    else:
        settings = {"scale": group["scale"], "bounded_mean": True} if name in ("NoKernel", "NoNormalizer") else {}
        setattr(config, part, {"_target_": f"mypackage.{name}", **settings})
    with pytest.raises(UserError) as error:
        build(config)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_measurement_that_returns_no_dict_is_one_line(tiny: list[str]) -> None:
    def nothing(evaluation: Evaluation) -> None:
        return None

    experiment = build(composed(*tiny))
    evaluation = Evaluation(experiment.model, experiment.objective, experiment.dataset)
    with pytest.raises(UserError, match="nothing: returns a NoneType"):
        measure(evaluation, [Measurement(nothing, Metric("test/x", "x"))])  # type: ignore[arg-type]
