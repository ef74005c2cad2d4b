"""Config -> objects: the only place where dataset, architecture, likelihood and objective meet."""

from pathlib import Path
from typing import Any

import torch

from vaex.config.create import create, of_kind
from vaex.config.schema import Config, Group, restored
from vaex.data.dataset import Dataset
from vaex.errors import UserError
from vaex.experiment import Experiment
from vaex.likelihoods.base import Likelihood
from vaex.model import Autoencoder
from vaex.objectives import Objective
from vaex.runs.folder import CONFIG, WEIGHTS, RunFolder


def build(config: Config) -> Experiment:
    """Raises UserError for what doesn't fit together."""
    device = resolve_device(config.device)
    dataset = load_dataset(config.dataset)
    images = len(dataset.train)
    if config.batch_size > images:
        raise UserError(f"batch_size={config.batch_size}: there are {images} training images; give at most that")
    steps = config.steps or -(-config.epochs * images // config.batch_size)
    schedule = create("schedule", config.schedule, steps=steps)

    torch.manual_seed(config.seed)
    objective = of_kind(Objective, "objective", create("objective", config.objective)).to(device)
    model = build_model(config, dataset.image_shape, dataset.classes, objective.stochastic).to(device)
    check_support(model.likelihood, dataset)
    check_draws(objective, model.likelihood)
    groups = _parameter_groups(model, config.optimizer)
    optimizer = of_kind(torch.optim.Optimizer, "optimizer", create("optimizer", config.optimizer, params=groups))
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
        corruption=create("corruption", config.corruption),
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
        parts["scale"] = create("likelihood.scale", likelihood_group.pop("scale"), image_shape=image_shape)
    made = create("likelihood", likelihood_group, image_shape=image_shape, **parts)
    likelihood = of_kind(Likelihood, "likelihood", made)
    if config.conditional and classes < 2:
        raise UserError(
            f"conditional=true: these images have {classes} classes; leave it out, or take a dataset with labels"
        )
    joined = classes if config.conditional else 0
    for part in ("encoder", "decoder"):
        if part not in config.architecture:
            raise UserError(f"architecture.{part}: is missing; an architecture names an encoder and a decoder")
    encoder = create(
        "architecture.encoder",
        config.architecture["encoder"],
        image_shape=image_shape,
        out_features=(2 if stochastic else 1) * config.latent_dim,
        condition_features=joined,
    )
    decoder = create(
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
    if objective.weighs_samples and likelihood.depends_on_x:
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
    return of_kind(Dataset, "dataset", create("dataset", group))


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
    stochastic = create("objective", config.objective).stochastic
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


def _parameter_groups(model: Autoencoder, optimizer: Group) -> list[dict[str, Any]]:
    """Weights decay, where the optimizer has decay; biases and learned scales never do."""
    parameters = list(model.parameters())
    if not optimizer.get("weight_decay"):
        return [{"params": parameters}]
    weights = [p for name, p in model.named_parameters() if p.ndim > 1 and not name.startswith("likelihood.")]
    chosen = {id(p) for p in weights}
    return [{"params": weights}, {"params": [p for p in parameters if id(p) not in chosen], "weight_decay": 0.0}]
