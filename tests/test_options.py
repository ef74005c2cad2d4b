"""Every option of every group composes, builds and trains: a new one is tested before its row is written."""

import re
from pathlib import Path

import pytest
import torch
from conftest import SMALL_NETWORKS, composed
from hydra import compose, initialize_config_dir

from vaex.build import build
from vaex.config.schema import config_dir
from vaex.config.targets import find
from vaex.data.stream import IndexStream
from vaex.training.step import TrainingStep

OPTIONS = sorted(
    (str(path.parent.relative_to(config_dir())), path.stem)
    for path in config_dir().glob("*/**/*.yaml")
    if path.parent.name != "experiment" and path.parent.parent.name != "hydra"
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


def images_for(likelihood: str) -> list[str]:
    """What its class says that it needs of images."""
    target = compose_target(likelihood)
    needs = {"binary": ["dataset.binarize=threshold"], "open_unit_interval": ["dataset.dequantize=uniform"]}
    return needs.get(getattr(find("likelihood._target_", target), "support", ""), [])


def compose_target(likelihood: str) -> str:
    text = (config_dir() / "likelihood" / f"{likelihood}.yaml").read_text()
    return re.findall(r"^_target_: (\S+)", text, flags=re.MULTILINE)[0]


@pytest.mark.parametrize("group, option", OPTIONS, ids=lambda value: str(value))
def test_option_trains(group: str, option: str, data: dict[str, list[str]]) -> None:
    if group == "dataset" and option not in data:
        pytest.skip("needs the files of its publisher: test_torchvision_sources.py")
    chosen = data[option] if group == "dataset" else data["mnist"]
    extra = {
        "vit": ["architecture.hidden=32", "architecture.depth=1"],
        "resnet": ["architecture.widths=[8,16]", "architecture.groups=4"],
    }.get(option, [])
    if group == "likelihood":
        extra = images_for(option)
    values = losses([*chosen, f"{group}={option}", *extra], steps=10)
    assert torch.tensor(values).isfinite().all()
    assert sum(values[-3:]) < sum(values[:3])


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_recipe_trains(name: str, data: dict[str, list[str]]) -> None:
    """A recipe for data that have to be downloaded, on pictures of the same size."""
    downloads = {
        "celeba_vit": ["architecture.depth=1"],
        "sigma_vae": [],
        "discretized_logistic_cifar10": ["architecture.widths=[8,16]", "architecture.groups=4"],
    }
    chosen = [*data["image_folder"], *downloads[name]] if name in downloads else data["mnist"]
    values = losses([*chosen, "dataset.validation=0", "batch_size=32", f"experiment={name}"], steps=12)
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
    from vaex.config.help import _first_comment

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


@pytest.mark.parametrize("objective", [path.stem for path in (config_dir() / "objective").glob("*.yaml")])
@pytest.mark.parametrize("architecture", [path.stem for path in (config_dir() / "architecture").glob("*.yaml")])
@pytest.mark.parametrize("dataset", ["mnist", "sprites_rgb", "image_folder"])
def test_every_objective_trains_every_architecture_on_any_images(
    objective: str, architecture: str, dataset: str, data: dict[str, list[str]]
) -> None:
    choice = [f"objective={objective}", f"architecture={architecture}", *SMALL_NETWORKS[architecture]]
    corrupted = ["corruption=masking", "conditional=true"]
    values = losses([*data[dataset], *choice, *corrupted, "optimizer.lr=0.001"], steps=25)
    assert torch.tensor(values).isfinite().all()
    assert sum(values[-3:]) < sum(values[:3])


@pytest.mark.parametrize("group, option", OPTIONS)
def test_every_value_says_what_it_is(group: str, option: str) -> None:
    for line in (config_dir() / group / f"{option}.yaml").read_text().splitlines():
        plain = re.match(r"\s*(?!_target_|defaults)\w+: (?!\$\{)\S", line)
        assert not plain or "  # " in line, f"{group}/{option}.yaml: {line.strip()}: has no comment with its unit"


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_recipe_names_its_source(name: str) -> None:
    assert name == "tune" or "# Source: " in (config_dir() / "experiment" / f"{name}.yaml").read_text()
