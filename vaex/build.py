"""Config -> objects: the only place where dataset, architecture, likelihood and objective meet."""

import contextlib
import inspect
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Union

import torch
from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import OmegaConf
from torch import Tensor

from vaex.config import Config, Group
from vaex.data.dataset import Dataset
from vaex.errors import UserError
from vaex.folder import WEIGHTS, RunFolder
from vaex.likelihoods.base import Likelihood
from vaex.likelihoods.scale import Scale
from vaex.model import Autoencoder
from vaex.objectives import IWAE, Objective


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
    objective: Objective = make("objective", config.objective).to(device)
    model = build_model(config, dataset.image_shape, dataset.classes, objective.stochastic).to(device)
    check_support(model.likelihood, dataset)
    check_draws(objective, model.likelihood)
    optimizer = make("optimizer", config.optimizer, params=_parameter_groups(model, config.optimizer))
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
    likelihood = make("likelihood", likelihood_group, image_shape=image_shape, **parts)
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
    dataset: Dataset = make("dataset", group)
    return dataset


def load_config(run_folder: Path) -> tuple[Config, dict[str, Any]]:
    """A run's config, and what was recorded with it. Raises UserError when there is no run in the folder."""
    content, recorded = RunFolder.reopen(run_folder).read_config()
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), content))
    return typing.cast(Config, config), recorded


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
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        found = torch.cuda.device_count()
        raise UserError(
            f"device={name}: PyTorch sees {found} CUDA device{'s' * (found != 1)} here; use device=auto or cpu"
        )
    return device


def make(key: str, group: Group, **given: Any) -> Any:
    """Call the group's `_target_` with its other values and `given`.

    A ValueError, an OSError or arguments of the wrong type are the config's fault and end in one line; anything else is
    the target's own, and keeps its traceback.
    """
    if "_target_" not in group:
        raise UserError(f"{key}._target_: is missing; it names the class or function to build")
    for name, inner in group.items():
        if isinstance(inner, dict) and "_target_" in inner:
            target = None
            with contextlib.suppress(ImportError, ValueError):  # instantiate says it better
                target = get_object(inner["_target_"])
            if target is not None:
                _check_types(f"{key}.{name}", target, inner, set(inner))
    try:
        factory = instantiate(OmegaConf.create({**group, "_partial_": True}), _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, ValueError | OSError):  # from a nested _target_
            raise UserError(str(cause)) from error
        raise UserError(f"{key}: {str(error).splitlines()[0]}") from error
    try:
        signature = inspect.signature(factory.func)
        bound = signature.bind(*factory.args, **factory.keywords, **given)
    except TypeError as error:
        raise UserError(f"{key}: {group['_target_']} can't be called so: {error}") from error
    _check_types(key, factory.func, bound.arguments, set(group))
    try:
        return factory(**given)
    except (ValueError, OSError) as error:
        message = str(error)
        raise UserError(message if message.startswith(key.split(".")[0]) else f"{key}: {message}") from error


def _check_types(key: str, target: Any, arguments: dict[str, Any], names: set[str]) -> None:
    try:
        hints = typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except (NameError, TypeError):
        return
    for name in names & set(arguments) & set(hints):
        if not _matches(arguments[name], hints[name]):
            raise UserError(f"{key}.{name}={arguments[name]}: must be {_in_words(hints[name])}")


def _in_words(hint: Any) -> str:
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) in (Sequence, list, tuple):
        return f"a list, [{arguments[0].__name__}, …]"
    names = [option.__name__ for option in arguments or (hint,) if option in (int, float, bool, str)]
    return f"of type {' or '.join(names)}" if names else str(hint)


def _matches(value: object, hint: Any) -> bool:
    """Whether a value out of YAML is of a type; types that YAML doesn't know always match."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, UnionType):
        return any(_matches(value, option) for option in arguments)
    if origin in (Sequence, list, tuple):
        return isinstance(value, list | tuple) and all(_matches(item, arguments[0]) for item in value)
    if hint is type(None):
        return value is None
    if hint is float:
        return isinstance(value, float | int) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
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
