"""The hierarchical VAE: against models whose numbers are known, and in shapes, resolutions and combinations."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SMALL_NETWORKS, composed, results
from test_importance import evaluation_of
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from vaex.architectures.ladder import LARGEST_LOG_SCALE, Decoder, bounded
from vaex.build import build, build_model
from vaex.data.dataset import Dataset, Images, Source
from vaex.errors import UserError
from vaex.evaluation.importance import importance_nll
from vaex.figures.figure import Subject
from vaex.figures.interpolation import interpolation
from vaex.figures.levels import levels
from vaex.model import Autoencoder
from vaex.objectives import VAE, Batch

LADDER = ["architecture=ladder", *SMALL_NETWORKS["ladder"], "latent_dim=3"]
SIZES = [(28, 28), (32, 32), (48, 64), (27, 35), (5, 4), (33, 18)]


def ladder(*overrides: str, shape: tuple[int, int, int] = (1, 28, 28), classes: int = 0) -> Autoencoder:
    """A model none of whose weights are zero."""
    torch.manual_seed(0)
    model = build_model(composed(*LADDER, *overrides), shape, classes, stochastic=True)
    with torch.no_grad():
        for parameter in [*model.encoder.parameters(), *model.decoder.parameters()]:
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def images_of(model: Autoencoder, count: int = 3) -> Tensor:
    return torch.rand(count, *model.likelihood.image_shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("channels, classes", [(1, 0), (3, 3)])
@pytest.mark.parametrize("size", SIZES)
def test_every_weight_and_every_pixel_has_a_gradient_at_any_size(
    size: tuple[int, int], channels: int, classes: int
) -> None:
    conditional = ["conditional=true"] if classes else []
    model = ladder("likelihood/scale=per_pixel", *conditional, shape=(channels, *size), classes=classes)
    x = images_of(model).requires_grad_()
    labels = torch.arange(3) if classes else None
    latents = model.infer(x, labels, torch.randn(2, 3, model.latent_dim))
    distribution = model.decode_latents(latents, labels)
    assert distribution.mean.shape == (2, 3, channels, *size)
    assert latents.rate.shape == (3, 2) and latents.z.shape == (2, 3, model.latent_dim)
    (distribution.log_prob(x.detach()).sum() - latents.rate.sum()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), name
    assert x.grad is not None
    even = x.grad[..., : size[0] // 2 * 2, : size[1] // 2 * 2]  # a level of half an odd size leaves the last row out
    assert (even != 0).all()


@pytest.mark.parametrize("groups", ["[0,2]", "[2,0]", "[1,1]"])
def test_every_level_of_the_decoder_has_blocks(groups: str) -> None:
    model = ladder(f"architecture.groups={groups}", "architecture.decoder_depth=3")
    blocks = {name.rpartition(".branch")[0] for name, _ in model.decoder.named_parameters() if ".branch." in name}
    assert len(blocks) == 3 * (2 if groups == "[1,1]" else 3)
    x = images_of(model)
    latents = model.infer(x, None, torch.randn(1, 3, model.latent_dim))
    (model.decode_latents(latents).log_prob(x).sum() - latents.rate.sum()).backward()
    for name, parameter in model.decoder.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name


def test_weights_and_configs_of_older_ladders_still_fit() -> None:
    """They had no decoder_depth, no blocks in levels without groups, and one block after each group, named `block`."""
    config = composed(*LADDER, "architecture.groups=[0,2]")
    del config.architecture["decoder"]["depth"], config.architecture["decoder_depth"]
    model = build_model(config, (1, 28, 28), 0, stochastic=True)
    names = list(model.state_dict())
    assert not any(name.startswith("decoder.path.4") for name in names)  # two groups, a convolution and an upsampling
    old = {name.replace(".blocks.0.", ".block."): value for name, value in model.state_dict().items()}
    assert old.keys() != model.state_dict().keys()
    model.load_state_dict(old)


def test_samples_come_with_the_image_that_the_decoder_makes_of_them() -> None:
    model = ladder("conditional=true", classes=3)
    x, labels = images_of(model), torch.arange(3)
    latents = model.infer(x, labels, torch.randn(4, 3, model.latent_dim))
    together = model.decode_latents(latents, labels).log_prob(x)
    torch.testing.assert_close(together, model.decode(latents.z, labels).log_prob(x))
    assert together.std(0).min() > 0


def test_samples_of_several_images_do_not_mix() -> None:
    model = ladder()
    x, noise = images_of(model), torch.randn(2, 3, model.latent_dim)
    whole = model.infer(x, None, noise)
    for n in range(3):
        alone = model.infer(x[n : n + 1], None, noise[:, n : n + 1])
        torch.testing.assert_close(alone.z[:, 0], whole.z[:, n], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(alone.rate[0], whole.rate[n], rtol=1e-4, atol=1e-5)


def test_log_scales_are_the_log_determinant_of_the_map_from_noise() -> None:
    model = ladder(shape=(1, 8, 8))
    posterior = model.encode(images_of(model, 1))
    noise = torch.randn(1, 1, model.latent_dim)
    jacobian = torch.autograd.functional.jacobian(lambda e: _sample(model, posterior, e), noise.flatten())
    expected = torch.linalg.slogdet(jacobian.double()).logabsdet.float()
    torch.testing.assert_close(posterior.log_scales(noise).sum(), expected, rtol=1e-4, atol=1e-4)
    # The second group depends on the first, and not the first on the second.
    first = model.decoder.groups[0].latents  # type: ignore[union-attr, index]
    assert jacobian[first:, :first].any() and not jacobian[:first, first:].any()


def _sample(model: Autoencoder, posterior: Any, noise: Tensor) -> Tensor:
    return posterior.at(noise[None, None]).flatten()


def test_the_rate_is_the_mean_of_the_log_ratio() -> None:
    model = ladder()
    x = images_of(model)
    torch.manual_seed(1)
    with torch.no_grad():
        latents = model.infer(x, None, torch.randn(2000, 3, model.latent_dim))
        log_ratio = latents.log_ratio()
    estimate, error = -log_ratio.mean(0), log_ratio.std(0) / math.sqrt(2000)
    assert ((latents.rate.sum(1) - estimate).abs() < 4 * error).all()
    assert (error < 0.05 * estimate).all()


def test_the_posterior_is_the_prior_at_first() -> None:
    torch.manual_seed(0)
    model = build_model(composed(*LADDER), (1, 28, 28), 0, stochastic=True)
    noise = torch.randn(2, 3, model.latent_dim)
    latents = model.infer(images_of(model), None, noise)
    assert (latents.rate == 0).all() and torch.equal(latents.z, noise)


def linear(model: Autoencoder) -> Decoder:
    """The decoder, made linear: h keeps the first channels, and nothing but projections changes it."""
    decoder = model.decoder
    assert isinstance(decoder, Decoder)
    with torch.no_grad():
        for group in decoder.groups:
            for parameter in group.blocks.parameters():
                parameter.zero_()
            if group.prior is not None:
                for parameter in group.prior.parameters():
                    parameter.zero_()
    return decoder


class Flat(nn.Module):
    """An encoder with the posterior of the one group of a ladder, for a flat model."""

    def __init__(self, model: Autoencoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        decoder = self.model.decoder
        assert isinstance(decoder, Decoder)
        group = decoder.groups[0]
        height, width, _ = group.shape
        activation = self.model.encoder(x).view(len(x), height, width, -1).permute(0, 3, 1, 2)
        mean, log_std = group.infer(decoder.start.expand_as(activation), activation)
        flat = [values.permute(0, 2, 3, 1).flatten(1) for values in (mean, 2 * log_std)]
        return torch.cat(flat, dim=1)


def test_a_single_group_is_the_flat_model() -> None:
    """With the same posterior and decoder: rate, distortion and loss of every image are equal."""
    model = ladder("architecture.widths=[4]", "architecture.groups=[1]", shape=(1, 8, 8))
    flat = Autoencoder(
        encoder=Flat(model), decoder=model.decoder, likelihood=model.likelihood, latent_dim=model.latent_dim
    )
    x = images_of(model, 6)
    objective = VAE(beta=2.0, samples=3, warmup=0, free_bits=0.0)
    ours, reference = (
        objective(each, Batch(x, x, torch.zeros(6, dtype=torch.int64)), None)
        for each in (model, flat)
        if torch.manual_seed(2)
    )
    assert ours.rate is not None and reference.rate is not None and reference.rate.shape == (6, model.latent_dim)
    torch.testing.assert_close(ours.rate.sum(1), reference.rate.sum(1))
    torch.testing.assert_close(ours.distortion, reference.distortion)
    torch.testing.assert_close(ours.loss, reference.loss)


def test_the_importance_weighted_nll_of_two_linear_levels_is_the_evidence() -> None:
    """x = W z + b + sigma · noise with z of both levels: log p(x) is that of a Gaussian."""
    overrides = ["architecture.widths=[2,2]", "latent_dim=1", "likelihood/scale=fixed", "likelihood.scale.value=0.7"]
    model = ladder(*overrides, shape=(1, 4, 4))
    decoder = linear(model)
    decoder.output = nn.Sequential(nn.ConvTranspose2d(2, 1, 4, stride=2, padding=1))
    with torch.no_grad():
        bias = model.decode(torch.zeros(1, model.latent_dim)).mean.flatten().double()
        weights = model.decode(torch.eye(model.latent_dim)).mean.flatten(1).double() - bias
    pixels = torch.randint(0, 256, (20, 1, 4, 4), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)
    evidence = MultivariateNormal(bias, weights.T @ weights + 0.49 * torch.eye(16, dtype=torch.float64))
    expected = -evidence.log_prob(pixels.flatten(1).double() / 255).mean().item()
    images = Images(pixels, torch.zeros(20, dtype=torch.int64))
    nll, *_ = importance_nll(evaluation_of(model, images), lambda pixels: pixels.float() / 255, samples=20_000)
    assert nll == pytest.approx(expected, abs=0.01)


def test_scales_are_bounded_and_unchanged_where_they_are_small() -> None:
    values = torch.tensor([-1e6, -0.1, 0.0, 0.1, 1e6])
    assert bounded(values).tolist() == pytest.approx([-LARGEST_LOG_SCALE, -0.1, 0.0, 0.1, LARGEST_LOG_SCALE], abs=1e-4)


def test_distributions_stay_in_float32_with_bf16() -> None:
    """Each layer that parametrizes a distribution returns float32, and the others bfloat16."""
    model = ladder("precision=bf16").train()
    types: dict[str, torch.dtype] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            module.register_forward_hook(lambda _, __, output, name=name: types.__setitem__(name, output.dtype))
    model.infer(images_of(model), None, torch.randn(1, 3, model.latent_dim))
    exact = {name for name, dtype in types.items() if dtype == torch.float32 and name.startswith("decoder.path")}
    heads = {name for name in types if name.endswith((".posterior.layers.7", ".prior.layers.7"))}
    assert exact == heads and len(heads) == 3
    assert types["decoder.output.3"] == torch.float32 and torch.bfloat16 in types.values()


def test_a_run_of_a_ladder_records_its_groups_and_draws_them(here: Callable[..., Path], tiny: list[str]) -> None:
    run = here(
        *[value for value in tiny if "architecture" not in value],
        *LADDER,
        "steps=12",
        "figures.kinds=[levels]",
        "figures.images=4",
    )
    numbers = results(run)
    assert len(numbers["test/rate_per_group"]) == 2 and "test/rate_per_latent" not in numbers
    assert sum(numbers["test/rate_per_group"]) == pytest.approx(numbers["test/rate"])
    assert numbers["about/posterior"] == "hierarchical" and numbers["about/rate"] == "samples of z"
    assert {path.name for path in (run / "figures").glob("*.png")} == {"levels.png", "levels_sampled.png"}


def test_the_last_row_of_the_levels_is_the_reconstruction_and_the_first_knows_the_first_group(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = ladder()
    sheets: list[Tensor] = []
    monkeypatch.setattr("vaex.figures.levels.grid", lambda images, rows: sheets.append(images) or images)
    monkeypatch.setattr("vaex.figures.levels.framed", lambda sheet: sheet)
    images = Images((images_of(model) * 255).to(torch.uint8), torch.zeros(3, dtype=torch.int64))
    dataset = Dataset(source=Source(images, images, 0), validation=0, binarize="none", dequantize="none")
    with torch.no_grad():
        levels(Subject(model=model, dataset=dataset, corruption=nn.Identity(), count=3))
        x = dataset.to_float(images.pixels)
        code = model.encode(x).mean
        first = torch.cat([code[:, : model.posterior.groups[0]], torch.zeros(3, model.posterior.groups[1])], dim=1)
        expected = [x, model.decode(first).mean, model.reconstruct(x)]
    torch.testing.assert_close(sheets[0], torch.stack(expected))
    torch.testing.assert_close(sheets[1][-1], expected[-1])


def test_an_interpolation_of_a_ladder_ends_with_a_row_between_first_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    model = ladder()
    sheets: list[tuple[Tensor, list[str]]] = []
    monkeypatch.setattr(
        "vaex.figures.interpolation.grid", lambda images, rows, columns: sheets.append((images, rows)) or images
    )
    monkeypatch.setattr("vaex.figures.interpolation.framed", lambda sheet: sheet)
    monkeypatch.setattr("vaex.figures.interpolation.above", lambda *sheets: sheets)
    images = Images((images_of(model, 2) * 255).to(torch.uint8), torch.zeros(2, dtype=torch.int64))
    dataset = Dataset(source=Source(images, images, 0), validation=0, binarize="none", dequantize="none")
    with torch.no_grad():
        interpolation(Subject(model=model, dataset=dataset, corruption=nn.Identity(), count=1))
        code = model.encode(dataset.to_float(images.pixels)).mean
        code[:, model.posterior.groups[0] :] = 0
        middle = model.decode(code.mean(0, keepdim=True)).mean[0]
    ((rows, names),) = sheets
    assert names == ["pixels", "linear", "spherical", "variance-preserving", "first group"]
    torch.testing.assert_close(rows[-1][5], middle)  # of eleven


def test_free_bits_are_those_of_the_latents_of_a_group() -> None:
    model = ladder()
    x = images_of(model)
    batch = Batch(x, x, torch.zeros(3, dtype=torch.int64))
    terms = VAE(beta=1.0, samples=1, warmup=0, free_bits=0.5)(model, batch, None)
    assert terms.rate is not None
    sizes = [group.latents for group in model.decoder.groups]  # type: ignore[union-attr]
    rates = [max(rate, 0.5 * size) for rate, size in zip(terms.rate.mean(0).tolist(), sizes, strict=True)]
    assert terms.loss.item() == pytest.approx(terms.distortion.mean().item() + sum(rates), rel=1e-5)


def test_beta_grows_for_one_group_after_another_from_the_finest_to_the_coarsest() -> None:
    objective = VAE(beta=4.0, samples=1, warmup=30, free_bits=0.0, delay=10, coarse_first=True)
    betas = [objective.beta_at(torch.tensor(float(step)), 3).tolist() for step in (0, 10, 15, 20, 30, 35, 40, 99)]
    assert betas == [[0, 0, 0], [0, 0, 0], [0, 0, 2], [0, 0, 4], [0, 4, 4], [2, 4, 4], [4, 4, 4], [4, 4, 4]]
    assert objective.beta_at(None, 3) == 4
    rates, distortion = torch.tensor([1.0, 10.0, 100.0]), torch.tensor(5.0)
    halfway = objective.beta_at(torch.tensor(15.0), 3)
    assert objective.loss(distortion, rates, halfway) == 5 + 2 * 100

    model = ladder()
    model.train()
    batch = Batch(x := images_of(model), x, torch.zeros(3, dtype=torch.int64))
    torch.manual_seed(0)
    terms = objective(model, batch, torch.tensor(20.0))  # two groups, after a third of the warm-up
    assert terms.rate is not None and terms.beta is not None
    expected = terms.distortion.mean() + 4 * (2 * 10 / 30) * terms.rate.mean(0)[1]
    torch.testing.assert_close(terms.loss, expected)
    torch.testing.assert_close(terms.beta, torch.tensor(4 * 10 / 30))


def test_activations_that_are_computed_again_change_no_gradient() -> None:
    gradients = []
    for recompute in ("false", "true"):
        model = ladder(f"architecture.recompute={recompute}")
        x = images_of(model)
        torch.manual_seed(1)
        terms = VAE(beta=1.0, samples=1, warmup=0, free_bits=0.0)(model, Batch(x, x, torch.zeros(3).long()), None)
        gradients.append(torch.autograd.grad(terms.loss, list(model.parameters()), allow_unused=True))
    torch.testing.assert_close(*gradients, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["prior=flow"], "prior: Flow: this architecture has a prior of its own; leave prior out"),
        (["posterior=full"], "posterior: Full: this architecture has a posterior of its own"),
        (["objective=ae"], "architecture: its decoder infers a distribution of z, .*; use objective=vae"),
        (["objective=beta_tc"], "needs a Gaussian with independent latents; use another architecture"),
        (
            ["objective=iwae", "objective.groups=2", "objective.partial=true"],
            "objective.partial=true: trains the decoder on a bound of its own",
        ),
        (["architecture.groups=[1]"], r"architecture.groups=\[1\]: must be a number of groups >= 0 for each of the 2"),
        (["architecture.groups=[0,0]"], "and not 0 for all"),
        (["architecture.depth=0"], "architecture.depth=0: must be >= 1"),
        (["architecture.decoder_depth=0"], "architecture.decoder_depth=0: must be >= 1"),
        (
            ["architecture.groups=[0,1]", "objective.coarse_first=true", "objective.warmup=5"],
            "has one group of latents",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_does_not_fit_a_ladder_is_refused(overrides: list[str], message: str, tiny: list[str]) -> None:
    with pytest.raises(UserError, match=message):
        build(composed(*tiny, *LADDER, *overrides))
