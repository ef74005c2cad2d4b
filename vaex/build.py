"""Config -> objects: the only place where dataset, architecture, likelihood and objective meet."""

import inspect
import re
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union

import torch
from torch import Tensor

from vaex.config import Config, Group, restored
from vaex.data.dataset import Dataset
from vaex.errors import UserError
from vaex.folder import CONFIG, WEIGHTS, RunFolder
from vaex.likelihoods.base import Likelihood
from vaex.likelihoods.scale import Scale
from vaex.model import Autoencoder
from vaex.objectives import IWAE, Objective
from vaex.targets import find


@dataclass(frozen=True)
class Experiment:
    """Everything a run is made of, the model and the objective on their device."""

    dataset: Dataset
    model: Autoencoder
    objective: Objective
    corruption: Callable[[Tensor], Tensor]
    optimizer: torch.optim.Optimizer
    learning_rate: float
    schedule: Callable[[int], float]
    steps: int
    device: torch.device


def build(config: Config) -> Experiment:
    """Raises UserError for what doesn't fit together."""
    device = resolve_device(config.device)
    dataset = load_dataset(config.dataset)
    images = len(dataset.train)
    if config.batch_size > images:
        raise UserError(f"batch_size={config.batch_size}: there are {images} training images; give at most that")
    steps = config.steps or -(-config.epochs * images // config.batch_size)
    schedule = make("schedule", config.schedule, steps=steps)

    torch.manual_seed(config.seed)
    objective = of_kind(Objective, "objective", make("objective", config.objective)).to(device)
    model = build_model(config, dataset.image_shape, dataset.classes, objective.stochastic).to(device)
    check_support(model.likelihood, dataset)
    check_draws(objective, model.likelihood)
    groups = _parameter_groups(model, config.optimizer)
    optimizer = of_kind(torch.optim.Optimizer, "optimizer", make("optimizer", config.optimizer, params=groups))
    learning_rate = float(optimizer.param_groups[0]["lr"])
    lr = torch.tensor(learning_rate, device=device)
    for group in optimizer.param_groups:
        group["lr"] = lr
        if device.type == "cuda" and "capturable" in group:
            group["capturable"] = True  # in a CUDA graph
    return Experiment(
        dataset=dataset,
        model=model,
        objective=objective,
        corruption=make("corruption", config.corruption),
        optimizer=optimizer,
        learning_rate=learning_rate,
        schedule=schedule,
        steps=steps,
        device=device,
    )


def build_model(config: Config, image_shape: tuple[int, int, int], classes: int, stochastic: bool) -> Autoencoder:
    """The model on the CPU, with freshly drawn weights."""
    likelihood_group = dict(config.likelihood)
    parts = {}
    if "scale" in likelihood_group:
        parts["scale"] = make("likelihood.scale", likelihood_group.pop("scale"), image_shape=image_shape)
    made = make("likelihood", likelihood_group, image_shape=image_shape, **parts)
    likelihood = of_kind(Likelihood, "likelihood", made)
    if config.conditional and classes < 2:
        raise UserError(
            f"conditional=true: these images have {classes} classes; leave it out, or take a dataset with labels"
        )
    joined = classes if config.conditional else 0
    for part in ("encoder", "decoder"):
        if part not in config.architecture:
            raise UserError(f"architecture.{part}: is missing; an architecture names an encoder and a decoder")
    encoder = make(
        "architecture.encoder",
        config.architecture["encoder"],
        image_shape=image_shape,
        out_features=(2 if stochastic else 1) * config.latent_dim,
        condition_features=joined,
    )
    decoder = make(
        "architecture.decoder",
        config.architecture["decoder"],
        in_features=config.latent_dim + joined,
        image_shape=image_shape,
        out_channels=likelihood.out_channels(image_shape[0]),
    )
    return Autoencoder(
        encoder=encoder,
        decoder=decoder,
        likelihood=likelihood,
        latent_dim=config.latent_dim,
        classes=joined,
        stochastic=stochastic,
        bf16=config.precision == "bf16",
    )


def check_draws(objective: Objective, likelihood: Likelihood) -> None:
    """Raises UserError when draws of z are to be weighed by densities that depend on how well each draw does."""
    scale = getattr(likelihood, "scale", None)
    if isinstance(objective, IWAE) and isinstance(scale, Scale) and scale.sees_x:
        raise UserError(
            "objective=iwae: weighs draws of z by p(x|z), which an optimal scale computes from x itself; take "
            "likelihood/scale=shared, or objective=vae"
        )


def check_support(likelihood: Likelihood, dataset: Dataset) -> None:
    """Raises UserError when the likelihood gives no finite log-probability to such images, or none of them."""
    name = f"likelihood {type(likelihood).__name__}"
    if likelihood.support == "binary" and not dataset.binary:
        raise UserError(
            f"{name}: needs binary images and these are grey; "
            "binarise them with dataset.binarize=threshold|static|dynamic, or take likelihood=cross_entropy"
        )
    if likelihood.support == "open_unit_interval" and dataset.dequantize == "none":
        raise UserError(f"{name}: is infinite at pixels of exactly 0 or 1; set dataset.dequantize=uniform")
    if likelihood.support == "uint8" and dataset.dequantize != "none":
        raise UserError(
            f"dataset.dequantize={dataset.dequantize}: {name} is a mass on the 256 levels themselves; set it to none"
        )


def load_dataset(group: Group) -> Dataset:
    return of_kind(Dataset, "dataset", make("dataset", group))


def load_config(run_folder: Path) -> tuple[Config, dict[str, Any]]:
    """A run's config, and what was recorded with it. Raises UserError when the folder has no run, or a damaged one."""
    content, recorded = RunFolder.reopen(run_folder).read_config()
    try:
        config = restored(content)
    except UserError as error:
        raise UserError(f"{run_folder / CONFIG}: {error}") from error
    match recorded:
        case {"image_shape": [int(), int(), int()], "classes": int(), "choices": {**_choices}}:
            return config, recorded
    raise UserError(
        f"{run_folder / CONFIG}: recorded has no image_shape, classes or choices; no run of vaex wrote it so"
    )


def load_model(run_folder: str | Path, device: str = "cpu") -> Autoencoder:
    """See vaex.load."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(run_folder)
    if not (path / WEIGHTS).is_file():
        raise UserError(f"{path}: no {WEIGHTS} there; give the folder of a run that completed")
    config, recorded = load_config(path)
    stochastic = make("objective", config.objective).stochastic
    channels, height, width = recorded["image_shape"]
    model = build_model(config, (channels, height, width), recorded["classes"], stochastic)
    try:
        model.load_state_dict(load_file(path / WEIGHTS))
    except (SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path / WEIGHTS}: damaged, or not of the model in config.yaml ({reason})") from error
    return model.to(resolve_device(device)).eval()


def resolve_device(name: str) -> torch.device:
    """auto | cpu | cuda | cuda:N -> device. Raises UserError where there is no such device."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"device={name}: must be auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        found = torch.cuda.device_count()
        raise UserError(
            f"device={name}: PyTorch sees {found} CUDA device{'s' * (found != 1)} here; use device=auto or cpu"
        )
    return device


def make(key: str, group: Group, **given: Any) -> Any:
    """Call what the group's `_target_` names (see vaex.targets) with its other values and `given`.

    A value that has a `_target_` itself, at any depth, is made first.

    Raises:
        UserError: the target may not be named, or can't be called so, or it raised a ValueError or an OSError, which is
            the config's fault. Anything else is its own and keeps its traceback, with the key as a note.
    """
    if "_target_" not in group:
        raise UserError(f"{key}._target_: is missing; it names the class or function to build")
    name = group["_target_"]
    target = find(f"{key}._target_", name)
    arguments = {}
    for argument, value in group.items():
        if argument in ("_args_", "_convert_", "_partial_", "_recursive_"):
            raise UserError(f"{key}.{argument}: vaex has no use for it; give {name} its arguments by their names")
        if argument in given:
            raise UserError(f"{key}.{argument}: is given by vaex itself; leave it out")
        if argument != "_target_":
            arguments[argument] = _made(f"{key}.{argument}", value)
    try:
        inspect.signature(target).bind(**arguments, **given)
    except TypeError as error:
        raise UserError(f"{key}: {name} can't be called so: {error}") from error
    except ValueError:  # some classes written in C have no signature
        pass
    _check_types(key, target, arguments)
    try:
        return target(**arguments, **given)
    except (ValueError, OSError) as error:
        message = " ".join(str(error).split()) or type(error).__name__
        where = "" if name.startswith("vaex.") else f" ({name} raised it; VAEX_DEBUG=1 shows where)"
        prefix = "" if message.startswith(key.split(".")[0]) else f"{key}: "
        raise UserError(prefix + message + where) from error
    except Exception as error:
        if isinstance(error, MemoryError) or re.search("can't allocate memory|overflowed", str(error)):
            raise UserError(f"{key}: out of memory for its weights; lower its sizes, or latent_dim") from error
        error.add_note(f"vaex: {key}._target_={name} led there")
        raise


Kind = TypeVar("Kind")


def of_kind(kind: type[Kind], key: str, made: object) -> Kind:
    """What was made for a key. Raises UserError when it is of another kind than vaex needs there."""
    if not isinstance(made, kind):
        raise UserError(f"{key}._target_: makes a {type(made).__name__}, and must make a {kind.__name__}")
    return made


def _made(key: str, value: Any) -> Any:
    if isinstance(value, dict):
        return make(key, value) if "_target_" in value else {k: _made(f"{key}.{k}", v) for k, v in value.items()}
    if isinstance(value, list):
        return [_made(f"{key}[{n}]", item) for n, item in enumerate(value)]
    return value


def _check_types(key: str, target: Any, arguments: dict[str, Any]) -> None:
    try:
        hints = typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except (NameError, TypeError):
        return
    for name in sorted(set(arguments) & set(hints)):
        if not _matches(arguments[name], hints[name]):
            raise UserError(f"{key}.{name}={arguments[name]}: must be {_in_words(hints[name])}")


def _in_words(hint: Any) -> str:
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) in (Sequence, list, tuple):
        return f"a list {'[a, b]' if _is_pair(hint) else '[a, …]'}, each {_in_words(arguments[0])}"
    names = [option.__name__ for option in arguments or (hint,) if option in (int, float, bool, str)]
    return (
        f"of type {' or '.join(names)}" if names else "a group with a _target_" if inspect.isclass(hint) else str(hint)
    )


def _is_pair(hint: Any) -> bool:
    arguments = typing.get_args(hint)
    return typing.get_origin(hint) is tuple and len(arguments) == 2 and arguments[1] is not ...


def _matches(value: object, hint: Any) -> bool:
    """Whether a value out of YAML is of a type; types that YAML doesn't know always match."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, UnionType):
        return any(_matches(value, option) for option in arguments)
    if origin in (Sequence, list, tuple):
        if not isinstance(value, list | tuple) or (_is_pair(hint) and len(value) != 2):
            return False
        return all(_matches(item, arguments[0]) for item in value)
    if hint is type(None):
        return value is None
    if hint is float:
        return isinstance(value, float | int) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63
    if hint in (bool, str):
        return isinstance(value, hint)
    if inspect.isclass(hint) and origin is None and isinstance(value, str | int | float | bool | list | dict | None):
        return isinstance(value, hint)
    return True


def _parameter_groups(model: Autoencoder, optimizer: Group) -> list[dict[str, Any]]:
    """Weights decay, where the optimizer has decay; biases and learned scales never do."""
    parameters = list(model.parameters())
    if not optimizer.get("weight_decay"):
        return [{"params": parameters}]
    weights = [p for name, p in model.named_parameters() if p.ndim > 1 and not name.startswith("likelihood.")]
    chosen = {id(p) for p in weights}
    return [{"params": weights}, {"params": [p for p in parameters if id(p) not in chosen], "weight_decay": 0.0}]
