"""The start of training: the best model of the training images that ignores z.

The decoder's output is h = decoder(z) + offset, and the encoder sees x - center. The center is the mean image, so that
images on a white background are encoded as well as images on a black one. The offset and the likelihood's own
parameters maximize the likelihood of a sample of training images and of one image of uniform noise, without which a
pixel that is black in the whole sample could get an infinite density. A weak prior on the offset decides where the
likelihood does not. The procedure is the same for every likelihood, and uses nothing but `log_prob`: the size of a step
depends on the signs of a number's derivatives alone (Rprop, Riedmiller & Braun 1993), since the curvature of log p
differs between pixels by orders of magnitude.
"""

import copy

import torch
from torch import Tensor
from torch.nn import functional as F

from vaex.data.dataset import Dataset
from vaex.data.noise import ImageNoise, noise_of
from vaex.errors import UserError
from vaex.evaluation.split import evaluating, evenly_spaced, fixed_noise, images_at_once
from vaex.likelihoods.base import Likelihood
from vaex.model import Autoencoder

IMAGES = (16, 256)  # fewest and most training images in the sample
OFFSETS = 2**19  # in all images of the sample together, if it then has as many images as it may
PRIOR_SAMPLES = 256
STEPS = 30
STEP_SIZE, LARGEST_STEP = 0.5, 1.0  # of offsets and of parameters
PRIOR_STD = 3.0  # of the normal prior of an offset, in the sample as a whole
MOST_OFFSETS = 2**13  # numbers in h; if there are more, one offset for all pixels of a channel: the sample is too small


def fit_start(model: Autoencoder, dataset: Dataset) -> None:
    """Set the model's center, and its offset and its likelihood's parameters to those of the best model without z.

    They do not depend on the state of torch's random generator, which stays as it is.

    Args:
        model: on the CPU, with initial weights.
        dataset: of the run; only training images are used.

    Raises:
        UserError: the likelihood has no finite log-probability or derivative to fit.
    """
    x = start_images(dataset, model.offset.numel())
    likelihood = copy.deepcopy(model.likelihood).train()  # buffers, such as a running mean, stay as they are
    try:
        offset, distortion = fit_offset(likelihood, x)
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        name = type(model.likelihood).__name__
        raise UserError(
            f"start=data: fitting {name} failed ({' '.join(str(error).split())}); use start=zero"
        ) from error
    parameters = dict(likelihood.named_parameters())
    if not all(value.isfinite().all() for value in (offset, distortion, *parameters.values())):
        raise UserError(
            f"start=data: {type(likelihood).__name__} has an infinite log-probability or derivative for some training "
            "images; use start=zero"
        )
    with torch.no_grad():
        # The mean of a new decoder's output is small, but a user's may not be.
        model.offset.copy_(offset - _mean_output(model))
        model.center.copy_(_image_mean(x[:-1], per_pixel=_one_per_pixel(model.offset)))
        for name, parameter in model.likelihood.named_parameters():
            parameter.copy_(parameters[name])


def _one_per_pixel(h: Tensor) -> bool:
    return h.numel() <= MOST_OFFSETS


def _image_mean(x: Tensor, *, per_pixel: bool) -> Tensor:
    return x.mean(0) if per_pixel else x.mean((0, 2, 3)).view(-1, 1, 1)


def _mean_output(model: Autoencoder) -> Tensor:
    """The mean of decoder(z) over samples of z from the prior and over classes, [out_channels, H, W]."""
    rows = torch.arange(min(PRIOR_SAMPLES, images_at_once(model.likelihood.image_shape)))  # fewer if images are large
    z, labels = ImageNoise(rows).normal(1, model.latent_dim)[0], rows % max(1, model.classes)
    with evaluating(model):
        condition = [F.one_hot(labels, model.classes).float()] if model.classes else []
        output: Tensor = model.decoder(torch.cat([z, *condition], dim=1))
        return output.mean(0)


def start_images(dataset: Dataset, outputs: int) -> Tensor:
    """x of the sample of training images and of one image of uniform noise, float32 [N, C, H, W] on the CPU.

    Args:
        outputs: number of values in h for one image.
    """
    train, (fewest, most) = dataset.train, IMAGES
    count = max(fewest, min(most, OFFSETS // outputs))
    rows = evenly_spaced(train, count)[:count]
    with fixed_noise(torch.device("cpu")), noise_of(torch.cat([rows, rows.new_tensor([len(train)])])):
        pixels = train.pixels[rows].cpu()
        noise = torch.randint(256, (1, *dataset.image_shape), dtype=torch.uint8)
        return dataset.to_float(torch.cat([pixels, noise]))


def training_images(dataset: Dataset, count: int) -> Tensor:
    """x of `count` training images that are evenly spaced in the split, float32 [count, C, H, W] on the CPU.

    Raises:
        UserError: there are fewer training images.
    """
    if count > len(dataset.train):
        raise UserError(
            f"prior: needs {count} training images to start from, and there are only {len(dataset.train)}; set fewer "
            "components"
        )
    rows = evenly_spaced(dataset.train, count)[:count]
    with fixed_noise(torch.device("cpu")), noise_of(rows):
        return dataset.to_float(dataset.train.pixels[rows].cpu())


def fit_offset(likelihood: Likelihood, x: Tensor) -> tuple[Tensor, Tensor]:
    """Fit the likelihood's parameters in place, and an offset for its decoder output.

    Args:
        likelihood: in training mode, on the CPU.
        x: images [N, C, H, W].

    Returns:
        The offset [out_channels, H, W], and the mean of -log p(x) in nats per image, [].
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums are then the same for every number of threads, and a busy machine does not stall
    try:
        return _fit(likelihood, x)
    finally:
        torch.set_num_threads(threads)


@torch.enable_grad()
def _fit(likelihood: Likelihood, x: Tensor) -> tuple[Tensor, Tensor]:
    channels, (height, width) = likelihood.out_channels(x.shape[1]), x.shape[2:]
    offset = torch.zeros(channels, height, width)
    if not _one_per_pixel(offset):
        offset = torch.zeros(channels, 1, 1)
    offset.requires_grad_()
    parameters = [offset, *(parameter for parameter in likelihood.parameters() if parameter.requires_grad)]
    optimizer = torch.optim.Rprop(parameters, lr=STEP_SIZE, step_sizes=(1e-6, LARGEST_STEP))
    for _ in range(STEPS):
        optimizer.zero_grad()
        prior = offset.square().sum() / (2 * PRIOR_STD**2 * len(x))
        torch.autograd.backward(_mean_distortion(likelihood, offset, x) + prior)
        optimizer.step()
        with torch.no_grad():
            offset.copy_(likelihood.clamp_offset(offset))
    with torch.no_grad():
        return offset.detach().expand(channels, height, width), _mean_distortion(likelihood, offset, x)


def _mean_distortion(likelihood: Likelihood, offset: Tensor, x: Tensor) -> Tensor:
    # One distribution for all images, so that what does not depend on x is computed once.
    h = offset.expand(-1, *x.shape[2:]).unsqueeze(0)
    log_prob: Tensor = likelihood(h, x).log_prob(x)
    return -log_prob.mean()
