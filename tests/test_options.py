"""Every option of every group composes, builds and trains: a new one is tested before its row is written."""

from pathlib import Path

import pytest
import torch
from conftest import composed
from hydra import compose, initialize_config_dir

from vaex.build import build
from vaex.config import config_dir
from vaex.data.stream import IndexStream
from vaex.training.step import TrainingStep

OPTIONS = sorted(
    (str(path.parent.relative_to(config_dir())), path.stem)
    for path in config_dir().glob("*/**/*.yaml")
    if path.parent.name != "experiment"
)
EXPERIMENTS = sorted(path.stem for path in (config_dir() / "experiment").glob("*.yaml"))


def losses(overrides: list[str], steps: int) -> list[float]:
    """Of each step, with the model in training mode."""
    experiment = build(composed(*overrides))
    step = TrainingStep(
        model=experiment.model.train(),
        objective=experiment.objective,
        images=experiment.dataset.train,
        to_float=experiment.dataset.to_float,
        corruption=experiment.corruption,
        optimizer=experiment.optimizer,
        clip_norm=None,
    )
    stream = IndexStream(len(experiment.dataset.train), 32, 0, experiment.device)
    values = []
    for n in range(steps):
        step(stream.batch(n))
        sums = step.take_sums()
        assert sums["skipped"] == 0
        values.append(sums["loss"])
    return values


@pytest.mark.parametrize("group, option", OPTIONS, ids=lambda value: str(value))
def test_option_trains(group: str, option: str, small: list[str]) -> None:
    data = small if (group, option) != ("dataset", "mnist") else ["batch_size=32"]
    extra = {
        "bernoulli": ["dataset.binarize=threshold"],
        "beta": ["dataset.dequantize=uniform"],
        "vit": ["architecture.hidden=32", "architecture.depth=1"],
    }.get(option, [])
    values = losses([*data, f"{group}={option}", *extra], steps=10)
    assert torch.tensor(values).isfinite().all()
    assert sum(values[-3:]) < sum(values[:3])


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_recipe_trains(name: str, small: list[str]) -> None:
    values = losses([*small[:1], "dataset.validation=0", "batch_size=32", f"experiment={name}"], steps=20)
    assert torch.tensor(values).isfinite().all()
    assert sum(values[-3:]) < sum(values[:3])


@pytest.mark.parametrize("likelihood", ["gaussian", "laplace"])
@pytest.mark.parametrize("scale", [path.stem for path in (config_dir() / "likelihood/scale").glob("*.yaml")])
@pytest.mark.parametrize("architecture", ["mlp", "conv"])
def test_any_family_takes_any_scale_with_any_architecture(
    likelihood: str, scale: str, architecture: str, small: list[str]
) -> None:
    choice = [f"likelihood={likelihood}", f"likelihood/scale={scale}", f"architecture={architecture}"]
    assert torch.tensor(losses([*small, *choice], steps=2)).isfinite().all()


@pytest.mark.parametrize("binarize", ["none", "threshold", "static", "dynamic"])
@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("conditional", ["false", "true"])
def test_ways_to_use_the_data(binarize: str, precision: str, conditional: str, tiny: list[str]) -> None:
    choice = [f"dataset.binarize={binarize}", f"precision={precision}", f"conditional={conditional}"]
    assert torch.tensor(losses([*tiny, *choice], steps=2)).isfinite().all()


@pytest.mark.parametrize("path", sorted(config_dir().rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_option_says_what_it_is(path: Path) -> None:
    from vaex.help import _first_comment

    assert len(_first_comment(path)) >= 4


def test_defaults_are_what_the_documents_say() -> None:
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        choices = compose("train", return_hydra_config=True).hydra.runtime.choices
    chosen = {
        group: choices[group] for group in ("dataset", "architecture", "likelihood", "likelihood/scale", "objective")
    }
    assert chosen == {
        "dataset": "mnist",
        "architecture": "mlp",
        "likelihood": "gaussian",
        "likelihood/scale": "shared",
        "objective": "vae",
    }
