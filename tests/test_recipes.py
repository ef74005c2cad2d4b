"""Every recipe runs, shortened, and is compared; the numbers that they promise are tests marked slow."""

import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from conftest import SMALL_NETWORKS, SPRITES, results

from vaex import cli
from vaex.config.schema import config_dir
from vaex.evaluation.classifier import Classifier, train_classifier

SCRIPTS = Path(__file__).parent.parent / "scripts"
RECIPES = sorted(path.stem for path in (config_dir() / "experiment").glob("*.yaml"))


@pytest.fixture
def all_threads():
    torch.set_num_threads(torch.get_num_interop_threads())
    yield
    torch.set_num_threads(1)


@pytest.fixture
def reproduce(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The script, which runs vaex in this process and writes its table to an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import reproduce

    monkeypatch.setattr(reproduce, "vaex", lambda verb, *arguments: cli.run(verb, list(arguments)))
    monkeypatch.setattr(reproduce, "RESULTS", tmp_path / "results.md")
    return reproduce


def quick_classifier(*arguments: Any, epochs: int, **options: Any) -> Classifier:
    return train_classifier(*arguments, epochs=1, **options)


# Of the recipes that are a sweep, one is enough for the fast tests.
SLOW = ("beckham_ae", "beckham_vae", "sigma_rules")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in RECIPES if name != "tune"]
)
def test_a_recipe_is_run_and_compared(
    name: str, reproduce: ModuleType, small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (config_dir() / "experiment" / f"{name}.yaml").read_text()
    kind = next((kind for kind in ("conv", "resnet", "vit", "ladder") if f"/architecture: {kind}" in text), "mlp")
    data = [*SPRITES, "dataset.validation=20", "batch_size=32"] if name in ("celeba_vit", "beta_tc_sprites") else small
    overrides = [*data, *SMALL_NETWORKS[kind], "figures.kinds=[]"]
    if not name.startswith("aevb"):  # each of whose three epochs is compared
        overrides.append("steps=2")
    if name == "discretized_logistic_cifar10":
        overrides.append("likelihood.components=2")
    if name == "family_cvae":  # which needs a classifier, but not a good one
        monkeypatch.setattr("vaex.evaluation.classifier.train_classifier", quick_classifier)
        monkeypatch.setenv("VAEX_CACHE", str(tmp_path / "cache"))
    recipe = reproduce.RECIPES[name].shortened()
    if recipe.sweep:
        overrides.append("hydra/launcher=basic")  # in this process; test_sweeps.py tests the default
    monkeypatch.setattr(sys, "argv", ["reproduce.py", name, "--small", *overrides])
    with pytest.raises(SystemExit) as stop:
        reproduce.main()
    rows = [line for line in (tmp_path / "results.md").read_text().splitlines() if f"reproduce.py {name} " in line]
    assert len(rows) == len(recipe.checks) > 0
    assert stop.value.code == any("**no**" in row for row in rows)
    for row in rows:
        assert math.isfinite(float(row.split("|")[4]))


# No way of running a step may cost accuracy. Runs differ after some hundred steps, as those of two seeds do.
MODES = {
    "float32": [],
    "compiled": ["trainer.compile=true"],
    "bf16": ["precision=bf16"],
    "bf16 compiled": ["precision=bf16", "trainer.compile=true"],
}
RUNS = [("float32", 0), ("float32", 1), ("compiled", 0), ("bf16", 0), ("bf16 compiled", 0)]


@pytest.mark.slow
@pytest.mark.usefixtures("all_threads")
@pytest.mark.parametrize("mode, seed", RUNS)
@pytest.mark.parametrize("name", ["aevb_bernoulli", "aevb_unit_gaussian", "aevb_gaussian"])
def test_aevb(here: Callable[..., Path], reproduce: ModuleType, name: str, mode: str, seed: int) -> None:
    run = here(f"experiment={name}", f"seed={seed}", *MODES[mode])
    for check in reproduce.RECIPES[name].checks:
        assert math.isfinite(check.read(run)) and check.low <= check.read(run) <= check.high, check.title


@pytest.mark.slow
@pytest.mark.usefixtures("all_threads")
@pytest.mark.parametrize("mode, tolerance", [("compiled", 0.001), ("bf16", 0.03)])
def test_a_run_reaches_the_same_however_its_step_is_run(here: Callable[..., Path], mode: str, tolerance: float) -> None:
    plain, other = (results(here("steps=600", *MODES[name], folder=name)) for name in ("float32", mode))
    assert other["test/elbo"] == pytest.approx(plain["test/elbo"], rel=tolerance)
    assert other["test/rate"] == pytest.approx(plain["test/rate"], rel=tolerance)


@pytest.mark.slow
@pytest.mark.usefixtures("all_threads")
def test_pytorch_example(here: Callable[..., Path], reproduce: ModuleType) -> None:
    (check,) = reproduce.RECIPES["pytorch_example"].checks
    assert check.low <= check.read(here("experiment=pytorch_example")) <= check.high


@pytest.mark.slow
@pytest.mark.usefixtures("all_threads")
def test_the_default_run_reaches_what_a_careful_practitioner_expects(here: Callable[..., Path]) -> None:
    numbers = results(here())
    assert numbers["test/elbo"] > 840
    assert numbers["test/mse"] < 0.0060
    assert numbers["train/seconds"] < 180
