"""The evidence lower bound and its parts over a whole split. Nats per image, means over the split."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from vaex.data.dataset import Images
from vaex.model import Autoencoder
from vaex.objectives import Objective

ACTIVE_UNIT_VARIANCE = 0.01  # Burda et al. 2016, section 5.2

ToFloat = Callable[[Tensor], Tensor]  # uint8 batch -> float32 batch
Numbers = dict[str, float | list[float]]


@contextmanager
def fixed_noise(device: torch.device, seed: int = 1) -> Iterator[None]:
    """Same draws every time, and the training's random state left as it was."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


@contextmanager
def evaluating(model: Autoencoder) -> Iterator[None]:
    """Evaluation mode without gradients; then back to the mode it was in."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def evaluate(
    model: Autoencoder,
    objective: Objective,
    images: Images,
    to_float: ToFloat,
    *,
    poll: Callable[[], None] = lambda: None,
    batch_size: int = 1000,
) -> Numbers:
    """Every image of the split once, one draw of z each, the noise the same in every call.

    `poll` is called before each batch, and may raise to stop.

    Returns:
        distortion, rate, elbo (beta = 1), loss (the objective's, fully warmed up); mse, of the decoder's mean at the
        posterior's mean against x; posterior_std; likelihood_scale, where there is one; active_units (latents whose
        posterior mean has a variance above 0.01 over the split); rate_per_latent; effective_<error>, the weight that
        the rate would have beside that mean error (see Likelihood.mean_error_weight), at the objective's beta. Without
        a posterior distribution only those that have a meaning.
    """
    device = images.pixels.device
    totals: dict[str, Tensor] = {}

    def add(name: str, value: Tensor) -> None:
        totals[name] = totals.get(name, torch.zeros((), dtype=torch.float64, device=device)) + value.double()

    with evaluating(model), fixed_noise(device):
        for start in range(0, len(images), batch_size):
            poll()
            x = to_float(images.pixels[start : start + batch_size])
            labels = images.labels[start : start + batch_size]
            posterior = model.encode(x, labels)
            at_mean = model.decode(posterior.mean, labels, x)
            distribution = model.decode(posterior.rsample(1)[0], labels, x) if model.stochastic else at_mean
            add("distortion", -distribution.log_prob(x).sum())
            add("mse", (at_mean.mean - x).square().mean(dim=(1, 2, 3)).sum())
            add("code", posterior.mean.double().sum(0))
            add("code_squared", posterior.mean.double().square().sum(0))
            if model.stochastic:
                add("rate_per_latent", posterior.rate().double().sum(0))
                add("posterior_std", posterior.std.mean(1).sum())
            scale = getattr(distribution, "scale", None)
            if scale is not None:
                add("likelihood_scale", scale.mean() * len(x))
            weight = model.likelihood.mean_error_weight(distribution)
            if weight is not None:
                add("weight", weight * len(x))

    means = {name: total / len(images) for name, total in totals.items()}
    rate_per_latent = means.pop("rate_per_latent", None)
    variance = means.pop("code_squared") - means.pop("code").square()
    weight = means.pop("weight", None)
    means["loss"] = objective.loss(means["distortion"], rate_per_latent)
    numbers: Numbers = {name: value.item() for name, value in means.items()}
    if rate_per_latent is not None:
        rate = rate_per_latent.sum()
        numbers |= {
            "rate": rate.item(),
            "elbo": -(means["distortion"] + rate).item(),
            "active_units": int((variance > ACTIVE_UNIT_VARIANCE).sum().item()),
            "rate_per_latent": rate_per_latent.tolist(),
        }
    beta = getattr(objective, "beta", None)
    if beta is not None and weight is not None:
        numbers[f"effective_{model.likelihood.mean_error}"] = (beta / weight).item()
    return numbers
