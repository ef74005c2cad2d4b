"""Every recipe runs, cut short, and is compared; and the figures that they promise: slow, minutes on two cores."""

import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from conftest import SMALL_NETWORKS, SPRITES, results

from vaex import cli
from vaex.config.schema import config_dir

SCRIPTS = Path(__file__).parent.parent / "scripts"
RECIPES = sorted(path.stem for path in (config_dir() / "experiment").glob("*.yaml"))


@pytest.fixture(autouse=True)
def all_threads():
    torch.set_num_threads(torch.get_num_interop_threads())
    yield
    torch.set_num_threads(1)


@pytest.fixture
def reproduce(monkeypatch: pytest.MonkeyPatch, here: Callable[..., Path], tmp_path: Path) -> ModuleType:
    """The script, its commands run in this process and its table written to an empty folder."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import reproduce

    def vaex(verb: str, *arguments: str) -> None:
        if verb == "train":
            here(*arguments, folder=None)
        else:
            cli.evaluate(list(arguments))

    monkeypatch.setattr(reproduce, "vaex", vaex)
    monkeypatch.setattr(reproduce, "RESULTS", tmp_path / "results.md")
    return reproduce


@pytest.mark.parametrize("name", [name for name in RECIPES if name != "tune"])
def test_a_recipe_is_run_and_compared(
    name: str, reproduce: ModuleType, small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (config_dir() / "experiment" / f"{name}.yaml").read_text()
    kind = next((kind for kind in ("conv", "resnet", "vit") if f"/architecture: {kind}" in text), "mlp")
    overrides = [*small, *SMALL_NETWORKS[kind]]
    if name == "celeba_vit":
        overrides = [*SPRITES, "dataset.validation=20", "batch_size=32", *SMALL_NETWORKS[kind]]
    if not name.startswith("aevb"):  # whose three epochs are compared
        overrides.append("steps=2")
    recipe = reproduce.RECIPES[name]
    monkeypatch.setattr(sys, "argv", ["reproduce.py", name, "--small", *overrides, "figures.kinds=[]"])
    with pytest.raises(SystemExit) as stop:
        reproduce.main()
    rows = [line for line in (tmp_path / "results.md").read_text().splitlines() if f"reproduce.py {name} " in line]
    assert len(rows) == len(recipe.figures if recipe.small_figures is None else recipe.small_figures) > 0
    assert stop.value.code == any("**no**" in row for row in rows)
    for row in rows:
        assert math.isfinite(float(row.split("|")[4]))


# How a step can be run: none may cost accuracy. Single runs part after some hundred steps, as those of two seeds do.
MODES = {
    "float32": [],
    "compiled": ["trainer.compile=true"],
    "bf16": ["precision=bf16"],
    "bf16 compiled": ["precision=bf16", "trainer.compile=true"],
}
RUNS = [("float32", 0), ("float32", 1), ("compiled", 0), ("bf16", 0), ("bf16 compiled", 0)]


@pytest.mark.slow
@pytest.mark.parametrize("mode, seed", RUNS)
@pytest.mark.parametrize("name", ["aevb_bernoulli", "aevb_unit_gaussian", "aevb_gaussian"])
def test_aevb(here: Callable[..., Path], reproduce: ModuleType, name: str, mode: str, seed: int) -> None:
    run = here(f"experiment={name}", f"seed={seed}", *MODES[mode])
    for figure in reproduce.RECIPES[name].figures:
        assert math.isfinite(figure.read(run)) and figure.low <= figure.read(run) <= figure.high, figure.title


@pytest.mark.slow
@pytest.mark.parametrize("mode, tolerance", [("compiled", 0.001), ("bf16", 0.03)])
def test_a_run_reaches_the_same_however_its_step_is_run(here: Callable[..., Path], mode: str, tolerance: float) -> None:
    plain, other = (results(here("steps=600", *MODES[name], folder=name)) for name in ("float32", mode))
    assert other["test/elbo"] == pytest.approx(plain["test/elbo"], rel=tolerance)
    assert other["test/rate"] == pytest.approx(plain["test/rate"], rel=tolerance)


@pytest.mark.slow
def test_pytorch_example(here: Callable[..., Path], reproduce: ModuleType) -> None:
    (figure,) = reproduce.RECIPES["pytorch_example"].figures
    assert figure.low <= figure.read(here("experiment=pytorch_example")) <= figure.high


@pytest.mark.slow
def test_the_default_run_reaches_what_a_careful_practitioner_expects(here: Callable[..., Path]) -> None:
    numbers = results(here())
    assert numbers["test/elbo"] > 840
    assert numbers["test/mse"] < 0.0060
    assert numbers["train/seconds"] < 180
