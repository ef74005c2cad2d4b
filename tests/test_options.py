"""Every option of every group composes, builds and trains. A new YAML file is tested without a change here."""

import itertools
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import SMALL_NETWORKS, composed, for_tests, results
from hydra import compose, initialize_config_dir

from vaex import cli
from vaex.build import build
from vaex.config.help import _first_comment
from vaex.config.schema import config_dir
from vaex.config.targets import find
from vaex.data.stream import IndexStream
from vaex.errors import UserError
from vaex.training.step import TrainingStep


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (config_dir() / group).glob("*.yaml"))


def losses(overrides: list[str], steps: int) -> list[float]:
    """The loss of each training step, on the same three batches again and again."""
    experiment = build(composed(*overrides))
    experiment.model.train()
    step = TrainingStep(experiment, experiment.dataset.train)
    stream = IndexStream(len(experiment.dataset.train), 16, 0, experiment.device)
    values = []
    for n in range(steps):
        step(stream.batch(n % 3))
        interval = step.sums.take()
        assert interval.skipped == 0  # the loss and all gradients are finite
        values.append(interval.sums["loss"])
    return values


def assert_trains(overrides: list[str], steps: int) -> None:
    values = losses(overrides, steps)
    assert sum(values[-3:]) < sum(values[:3]), values


def images_for(likelihood: str) -> list[str]:
    """Overrides for images of the likelihood's support."""
    text = (config_dir() / "likelihood" / f"{likelihood}.yaml").read_text()
    target = find("likelihood._target_", re.findall(r"^_target_: (\S+)", text, flags=re.MULTILINE)[0])
    needs = {"binary": ["dataset.binarize=threshold"], "open_unit_interval": ["dataset.dequantize=uniform"]}
    return needs.get(getattr(target, "support", ""), [])  # a location-scale likelihood has no support of its own


@pytest.mark.parametrize("likelihood", options("likelihood"))
def test_likelihood_trains(likelihood: str, small: list[str]) -> None:
    network = ["architecture.hidden=[64]", "optimizer.lr=0.005"]
    settings = [f"likelihood={likelihood}", *for_tests("likelihood", likelihood), *images_for(likelihood)]
    assert_trains([*small, *settings, *network], steps=8)


def pairs() -> list[dict[str, str]]:
    """Choices in which each objective meets each architecture, and which contain every option of the other groups."""
    groups = {name: options(name) for name in ("objective", "architecture", "corruption", "optimizer", "schedule")}
    groups["dataset"] = ["mnist", "sprites", "sprites_rgb", "image_folder"]  # those that need no download
    products = list(itertools.product(groups["objective"], groups["architecture"]))
    choices = []
    for n in range(max(len(products), *map(len, groups.values()))):
        objective, architecture = products[n % len(products)]
        chosen = {name: names[n % len(names)] for name, names in groups.items()}
        # Each objective shifts the datasets by one, so that no architecture gets the same one twice.
        dataset = groups["dataset"][(n + groups["objective"].index(objective)) % len(groups["dataset"])]
        choices.append(chosen | {"objective": objective, "architecture": architecture, "dataset": dataset})
    return choices


@pytest.mark.parametrize("choices", pairs(), ids=lambda choices: "-".join(choices.values()))
def test_options_train_together(choices: dict[str, str], data: dict[str, list[str]]) -> None:
    overrides = [*data[choices["dataset"]], "conditional=true", "optimizer.lr=0.005"]
    for group, option in choices.items():
        if group != "dataset":
            overrides += [f"{group}={option}", *for_tests(group, option)]
    if choices["architecture"] == "ladder" and choices["objective"] in ("ae", "rae", "beta_tc", "dip", "mmd"):
        with pytest.raises(UserError, match="use (another architecture|objective=vae)"):
            build(composed(*overrides))
    else:
        assert_trains(overrides, steps=10)


def test_the_recipe_tune_trains(small: list[str]) -> None:
    """The one recipe with nothing to compare; test_recipes.py runs the others."""
    assert_trains([*small, "experiment=tune"], steps=8)


@pytest.mark.parametrize("scale", options("likelihood/scale"))
def test_scale_rule_trains(scale: str, tiny: list[str]) -> None:
    """Families and architectures alternate, since any of them combines with any rule."""
    n = options("likelihood/scale").index(scale)
    network = ["architecture=conv", *SMALL_NETWORKS["conv"]] if n // 2 % 2 else []
    likelihood = ["gaussian", "laplace"][n % 2]
    losses([*tiny, f"likelihood={likelihood}", f"likelihood/scale={scale}", *network], steps=2)


@pytest.mark.parametrize("binarize", ["none", "threshold", "static", "dynamic"])
@pytest.mark.parametrize("precision, conditional", [("float32", False), ("bf16", True)])
def test_ways_to_use_the_data(binarize: str, precision: str, conditional: bool, tiny: list[str]) -> None:
    losses([*tiny, f"dataset.binarize={binarize}", f"precision={precision}", f"conditional={conditional}"], steps=2)


def test_defaults_are_what_the_documents_say() -> None:
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        choices = compose("train", return_hydra_config=True).hydra.runtime.choices
    defaults = {
        "dataset": "mnist",
        "architecture": "mlp",
        "likelihood": "gaussian",
        "likelihood/scale": "shared",
        "objective": "vae",
    }
    assert {group: choices[group] for group in defaults} == defaults


def test_every_yaml_file_says_what_it_and_its_values_are() -> None:
    for path in sorted(config_dir().rglob("*.yaml")):
        name = path.relative_to(config_dir())
        assert len(_first_comment(path)) >= 4, f"{name}: its first line must be a comment that says what it is"
        if name.parts[0] in ("experiment", "hydra", "train.yaml"):
            continue
        for line in path.read_text().splitlines():
            plain = re.match(r"\s*(?!_target_|defaults)\w+: (?!\$\{)\S", line)
            assert not plain or "  # " in line, f"{name}: {line.strip()}: needs a comment with its meaning and unit"


def test_every_recipe_names_its_source() -> None:
    for path in (config_dir() / "experiment").glob("*.yaml"):
        assert path.stem == "tune" or "# Source: " in path.read_text(), f"{path.name}: needs a line '# Source: …'"


def test_the_examples_for_users_run_as_printed(
    here: Callable[..., Path], tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """docs/adding.md: an architecture, an objective, a prior and a metric in a package of one's own."""
    text = (Path(__file__).parent.parent / "docs" / "adding.md").read_text()
    for path, content in re.findall(
        r"```yaml\n# (myconf/(?:architecture|objective|prior)/\S+)\n(.*?)```", text, flags=re.DOTALL
    ):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_text(content)
    modules = re.findall(r"```python\n# mypackage.py\n(.*?)```", text, flags=re.DOTALL)
    assert len(modules) == 4
    (tmp_path / "mypackage.py").write_text("".join(modules))
    monkeypatch.syspath_prepend(str(tmp_path))
    images = [override for override in tiny if not override.startswith("architecture")]
    run = here(
        "--config-dir",
        "myconf",
        "architecture=linear",
        "objective=limit",
        "prior=laplace",
        "steps=2",
        "figures.kinds=[]",
        *images,
    )
    cli.run("eval", [str(run), "--metric", "mypackage.BRIGHTNESS", "--fid", "none", "--samples", "0"])
    assert 0 <= results(run)["test/brightness"] <= 1
