"""From a config to objects: the only module where dataset, architecture, likelihood and objective meet."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vaex.architectures.base import Decoder
from vaex.config.create import asks_for, create, instance_of
from vaex.config.schema import Config, Group, restore_config
from vaex.config.targets import find
from vaex.data.dataset import Dataset
from vaex.errors import UserError, first_line
from vaex.evaluation.split import evaluating
from vaex.experiment import Experiment
from vaex.latents.ladder import Ladder
from vaex.latents.posterior import Diagonal, PosteriorFamily
from vaex.latents.prior import LatentDistribution, Prior, Standard
from vaex.likelihoods.base import Likelihood
from vaex.likelihoods.gaussian import StandardGaussian
from vaex.likelihoods.location_scale import default_floor
from vaex.model import Autoencoder
from vaex.objectives import Objective
from vaex.runs.folder import CONFIG, WEIGHTS, RunFolder
from vaex.start import fit_start, training_images


def build(config: Config) -> Experiment:
    """Create everything that a run needs. Raises UserError if parts of the config do not fit together."""
    device = resolve_device(config.device)
    dataset = load_dataset(config.dataset, config.resume)
    images = len(dataset.train)
    if config.batch_size > images:
        raise UserError(f"batch_size={config.batch_size}: there are only {images} training images; use a smaller one")
    steps = config.steps or -(-config.epochs * images // config.batch_size)
    schedule = create("schedule", config.schedule, steps=steps)

    torch.manual_seed(config.seed)
    objective = create("objective", config.objective)
    objective = instance_of(Objective, "objective", objective, defines=("stochastic", "forward")).to(device)
    model = build_model(config, dataset.image_shape, dataset.classes, objective.stochastic)
    _check_latents(model, objective)
    _check_validation(objective, dataset, config)
    _check_prior(model)
    _check_support(model.likelihood, dataset)
    if objective.weighs_samples and model.likelihood.depends_on_x:
        raise UserError(
            "objective=iwae: weights samples of z by p(x|z), which an optimal scale computes from x itself; use "
            "likelihood/scale=shared, or objective=vae"
        )
    if config.start == "data":
        fit_start(model, dataset)
    if model.prior.images:
        model.prior.start(training_images(dataset, model.prior.images))
    model = model.to(device)
    groups = _parameter_groups(model, config.optimizer)
    optimizer = instance_of(torch.optim.Optimizer, "optimizer", create("optimizer", config.optimizer, params=groups))
    learning_rates = tuple(float(group["lr"]) for group in optimizer.param_groups)
    for group in optimizer.param_groups:
        group["lr"] = torch.tensor(float(group["lr"]), device=device)
        if device.type == "cuda" and "capturable" in group:
            group["capturable"] = True  # needed in a CUDA graph
    return Experiment(
        dataset=dataset,
        model=model,
        objective=objective,
        corruption=create("corruption", config.corruption),
        optimizer=optimizer,
        learning_rates=learning_rates,
        schedule=schedule,
        steps=steps,
        device=device,
    )


def build_model(config: Config, image_shape: tuple[int, int, int], classes: int, stochastic: bool) -> Autoencoder:
    """The model on the CPU, with random initial weights. Raises UserError if it does not fit the images."""
    if config.conditional and classes < 2:
        raise UserError(
            f"conditional=true: these images have {classes} classes; leave it out, or use a dataset with labels"
        )
    for part in ("encoder", "decoder"):
        if part not in config.architecture:
            raise UserError(f"architecture.{part}: is missing; an architecture consists of an encoder and a decoder")
    encoder_group = config.architecture["encoder"]
    if config.conditional and not asks_for("architecture.encoder", encoder_group, "condition_features"):
        raise UserError(
            f"conditional=true: {encoder_group['_target_']} takes no condition_features, so it cannot use labels; "
            "leave conditional out, or use another architecture"
        )
    condition_features = classes if config.conditional else 0
    likelihood = create("likelihood", config.likelihood, image_shape=image_shape)
    likelihood = instance_of(Likelihood, "likelihood", likelihood, defines=("support", "kind", "forward"))
    if likelihood.scale is not None:  # a likelihood that sets no floor of its own has a Gaussian's
        likelihood.scale.resolve_floor(lambda: default_floor(StandardGaussian(), discretize=False))
    parts = _ladder if _decoder_defines_latents(config.architecture["decoder"]) else _flat_networks
    encoder, decoder, posterior, prior = parts(
        config, image_shape, likelihood.out_channels(image_shape[0]), condition_features, stochastic
    )
    model = Autoencoder(
        encoder=instance_of(torch.nn.Module, "architecture.encoder", encoder),
        decoder=instance_of(torch.nn.Module, "architecture.decoder", decoder),
        likelihood=likelihood,
        latent_dim=posterior.latent_dim,
        classes=condition_features,
        stochastic=stochastic,
        bf16=config.precision == "bf16",
        posterior=posterior,
        prior=prior,
    )
    _check_outputs(model, image_shape)
    return model


Parts = tuple[Any, Any, PosteriorFamily, Prior]  # encoder, decoder, q(z|x) and p(z)


def _flat_networks(
    config: Config, image_shape: tuple[int, int, int], out_channels: int, classes: int, stochastic: bool
) -> Parts:
    """The parts of a model whose z is one vector, or has one shape."""
    latent_dim, spatial = config.latent_dim, dict[str, Any]()
    if config.latent_shape:
        spatial = {"latent_shape": tuple(config.latent_shape)}
        _check_spatial(config)
    with torch.random.fork_rng([]):  # the networks have the same initial weights with every prior
        posterior = create("posterior", config.posterior, latent_dim=latent_dim)
        posterior = instance_of(PosteriorFamily, "posterior", posterior, defines=("features", "forward"))
        prior = create("prior", config.prior, latent_dim=latent_dim, image_shape=image_shape)
        prior = instance_of(Prior, "prior", prior, defines=("forward",))
    encoder = create(
        "architecture.encoder",
        config.architecture["encoder"],
        image_shape=image_shape,
        out_features=posterior.features if stochastic else latent_dim,
        condition_features=classes,
        **spatial,
    )
    decoder = create(
        "architecture.decoder",
        config.architecture["decoder"],
        in_features=latent_dim + classes,
        image_shape=image_shape,
        out_channels=out_channels,
        **spatial,
    )
    return encoder, decoder, posterior, prior


def _ladder(
    config: Config, image_shape: tuple[int, int, int], out_channels: int, classes: int, stochastic: bool
) -> Parts:
    """The parts of a model whose decoder infers z. Raises UserError if the config asks for other distributions of z."""
    for name, own, default in (("prior", config.prior, Standard), ("posterior", config.posterior, Diagonal)):
        if find(f"{name}._target_", own["_target_"]) is not default:
            raise UserError(
                f"{name}: {own['_target_'].rpartition('.')[2]}: this architecture has a {name} of its own; leave "
                f"{name} out, or use another architecture"
            )
    if not stochastic:
        raise UserError(
            "architecture: its decoder infers a distribution of z, which an objective such as ae or rae does not have; "
            "use objective=vae, or another architecture"
        )
    if config.latent_shape:
        _check_spatial(config)
    available = {"image_shape": image_shape, "condition_features": classes}
    decoder = create("architecture.decoder", config.architecture["decoder"], out_channels=out_channels, **available)
    encoder = create("architecture.encoder", config.architecture["encoder"], **available)
    return encoder, decoder, Ladder(decoder), Standard(latent_dim=decoder.latent_dim)


def _check_spatial(config: Config) -> None:
    """Raises UserError if the networks have no spatial z."""
    for part in ("encoder", "decoder"):
        if not asks_for(f"architecture.{part}", config.architecture[part], "latent_shape"):
            raise UserError(
                f"latent_shape: {config.architecture[part]['_target_']} does not take it; leave it out, or use "
                "architecture=conv or resnet"
            )


def _decoder_defines_latents(group: Group) -> bool:
    target = find("architecture.decoder._target_", group["_target_"])
    return isinstance(target, type) and issubclass(target, Decoder) and target.defines_latents


def _check_outputs(model: Autoencoder, image_shape: tuple[int, int, int]) -> None:
    """Run the networks on one black image. Raises UserError if an output does not have the shape that vaex needs."""
    codes, classes = model.posterior.features if model.stochastic else model.latent_dim, model.classes
    condition = [F.one_hot(torch.zeros(1, dtype=torch.int64), classes).float()] if classes else []
    channels = model.likelihood.out_channels(image_shape[0])
    with evaluating(model):
        for part, network, arguments, shape in (
            ("encoder", model.encoder, (torch.zeros(1, *image_shape), *condition), (1, codes)),
            ("decoder", model.decoder, (torch.zeros(1, model.latent_dim + classes),), (1, channels, *image_shape[1:])),
        ):
            name = f"architecture.{part}: {type(network).__name__}"
            try:
                output = network(*arguments)
            except NotImplementedError as error:
                raise UserError(f"{name} must define forward") from error
            if not isinstance(output, Tensor) or output.shape != shape:
                actual = list(output.shape) if isinstance(output, Tensor) else f"a {type(output).__name__}"
                raise UserError(f"{name} returns {actual} for one image, but must return a tensor {list(shape)}")


def _check_prior(model: Autoencoder) -> None:
    """Draw from the prior. Raises UserError unless the samples and their log-probabilities have the right shapes."""
    name = type(model.prior).__name__
    with evaluating(model), torch.random.fork_rng([]):
        prior = model.latent_prior()
        if not isinstance(prior, LatentDistribution):
            raise UserError(f"prior: {name} returns a {type(prior).__name__}, but must return a LatentDistribution")
        instance_of(LatentDistribution, "prior", prior, defines=("log_prob", "sample"))
        z = prior.sample(2)
        for what, values, shape in (("sample(2)", z, (2, model.latent_dim)), ("log_prob(z)", prior.log_prob(z), (2,))):
            if values.shape != shape:
                raise UserError(
                    f"prior: {what} of {name} returns {list(values.shape)}, but must return a tensor {list(shape)}"
                )


def _check_latents(model: Autoencoder, objective: Objective) -> None:
    """Raises UserError if the prior, the posterior, the objective and the condition do not fit together."""
    prior, posterior = type(model.prior).__name__, type(model.posterior).__name__
    name = f"objective {type(objective).__name__}"
    if not model.stochastic and not (model.prior.is_standard and model.posterior.is_diagonal):
        group = f"posterior: {posterior}" if model.prior.is_standard else f"prior: {prior}"
        raise UserError(f"{group}: {name} has no distribution of z; leave it out, or use objective=vae")
    key, remedy = "posterior", "posterior=diagonal"
    if model.posterior.runs_decoder:
        key, remedy = "architecture", "another architecture"
    if model.posterior.runs_decoder and objective.separates_decoder:
        raise UserError(
            "objective.partial=true: trains the decoder on a bound of its own, but the decoder of this architecture "
            f"also infers z; set it to false, or use {remedy}"
        )
    if objective.needs_groups and len(model.posterior.groups) == 1:
        raise UserError(
            "objective.coarse_first=true: this model has one group of latents; use architecture=ladder with several "
            "groups, or leave it out"
        )
    if not model.posterior.is_diagonal:
        for who, needs in ((f"prior: {prior}", model.prior.needs_diagonal), (name, objective.needs_diagonal)):
            if needs:
                raise UserError(f"{key}: {posterior}: {who} needs a Gaussian with independent latents; use {remedy}")
    if objective.needs_standard and not model.prior.is_standard:
        raise UserError(f"prior: {prior}: {name} is defined for p(z) = N(0, I); use prior=standard")
    if model.classes and not model.prior.conditional:
        raise UserError(f"prior: {prior}: cannot use labels; use another prior, or conditional=false")


def _check_validation(objective: Objective, dataset: Dataset, config: Config) -> None:
    """Raises UserError if the trainer is to compare validation losses that do not exist or cannot be compared."""
    weights, patience = config.trainer.weights, config.trainer.patience
    if objective.loss_changes:
        name = f"losses of {type(objective).__name__} cannot be compared, since beta changes"
        if weights == "best":
            raise UserError(f"trainer.weights=best: {name}; use trainer.weights=last")
        if patience is not None:
            raise UserError(f"trainer.patience={patience}: {name}; use trainer.patience=null")
    if patience is not None and not len(dataset.validation):
        raise UserError(
            f"trainer.patience={patience}: there are no validation images; set dataset.validation to a number of "
            "images, or use trainer.patience=null"
        )


def _check_support(likelihood: Likelihood, dataset: Dataset) -> None:
    """Raises UserError if some of the images have no finite log-probability under the likelihood."""
    name = f"likelihood {type(likelihood).__name__}"
    if likelihood.support == "binary" and not dataset.binary:
        raise UserError(
            f"{name}: needs binary images, and these are gray; "
            "set dataset.binarize=threshold|static|dynamic, or use likelihood=cross_entropy"
        )
    if likelihood.support == "open_unit_interval" and dataset.dequantize == "none":
        raise UserError(f"{name}: is infinite at pixels of exactly 0 or 1; set dataset.dequantize=uniform")
    if likelihood.support == "uint8" and dataset.dequantize != "none":
        raise UserError(
            f"dataset.dequantize={dataset.dequantize}: {name} is a mass on the 256 levels themselves; set it to none"
        )


def load_dataset(group: Group, run: Path | str | None = None) -> Dataset:
    """The dataset that config.dataset describes.

    Args:
        run: the folder of the run that has this dataset; None for a new run.

    Raises:
        UserError: the data can't be loaded.
    """
    try:
        return instance_of(Dataset, "dataset", create("dataset", group))
    except UserError as error:
        if run is None:
            raise
        raise UserError(f"{run}: {error}; if the images were moved, --data PATH says where they are") from error


def load_config(run_folder: Path) -> tuple[Config, dict[str, Any]]:
    """The config of a run and what was recorded with it. Raises UserError if the folder has no run or a damaged one."""
    content, recorded = RunFolder.reopen(run_folder).read_config()
    try:
        config = restore_config(content)
    except UserError as error:
        raise UserError(f"{run_folder / CONFIG}: {error}") from error
    match recorded:
        case {"image_shape": [int(), int(), int()], "classes": int(), "choices": {**_choices}}:
            return config, recorded
    raise UserError(f"{run_folder / CONFIG}: lacks recorded.image_shape, classes or choices; vaex did not write it")


def load_model(run_folder: str | Path, device: str = "cpu") -> Autoencoder:
    """See vaex.load."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    path = Path(run_folder)
    if not (path / WEIGHTS).is_file():
        raise UserError(f"{path}: no {WEIGHTS} there; give the folder of a completed run")
    config, recorded = load_config(path)
    stochastic = create("objective", config.objective).stochastic
    channels, height, width = recorded["image_shape"]
    model = build_model(config, (channels, height, width), recorded["classes"], stochastic)
    try:
        content = (path / WEIGHTS).read_bytes()
        model.load_state_dict(load(content))
    except (SafetensorError, RuntimeError, OSError) as error:
        reason = first_line(error)
        raise UserError(f"{path / WEIGHTS}: damaged, or not of the model in config.yaml ({reason})") from error
    RunFolder(path).check_weights(content)
    return model.to(resolve_device(device)).eval()


def resolve_device(name: str) -> torch.device:
    """auto | cpu | cuda | cuda:N -> device. Raises UserError if there is no such device."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"device={name}: must be auto, cpu, cuda or cuda:N") from error
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise UserError(f"device={name}: PyTorch sees {count} CUDA device{'s' * (count != 1)}; use device=auto or cpu")
    return device


def _parameter_groups(model: Autoencoder, optimizer: Group) -> list[dict[str, Any]]:
    """Parameter groups with the learning rate of each learned scale, and without weight decay on biases and scales."""
    scale = model.likelihood.scale
    own = list(scale.parameters()) if scale is not None and scale.lr is not None else []
    ids = {id(parameter) for parameter in own}
    others = {name: parameter for name, parameter in model.named_parameters() if id(parameter) not in ids}
    groups: list[dict[str, Any]] = [{"params": list(others.values())}]
    if optimizer.get("weight_decay"):
        # Neither scales nor the pseudo-inputs, means and variances of a prior are pulled to 0.
        exempt = {f"prior.{name}" for name, _ in model.prior.named_parameters(recurse=False)}
        weights = [
            p for name, p in others.items() if p.ndim > 1 and not name.startswith("likelihood.") and name not in exempt
        ]
        weight_ids = {id(parameter) for parameter in weights}
        rest = [parameter for parameter in others.values() if id(parameter) not in weight_ids]
        groups = [{"params": weights}, {"params": rest, "weight_decay": 0.0}]
    if own and scale is not None:
        groups.append({"params": own, "lr": scale.lr} | ({"weight_decay": 0.0} if len(groups) > 1 else {}))
    return groups
