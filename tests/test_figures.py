"""Figures show the right images in the right places, and are the same every time."""

import json
import math
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import norm
from torch import Tensor, nn

from vaex.data.dataset import Dataset, Images, Source
from vaex.evaluation.split import fixed_noise
from vaex.figures import latents, plot, scale
from vaex.figures.curves import read
from vaex.figures.figure import Subject
from vaex.figures.interpolation import find_pairs, linear, spherical, variance_preserving
from vaex.figures.kinds import FIGURES
from vaex.figures.manifold import quantiles
from vaex.figures.sheet import encode_png, enlarged, text, tile, writable
from vaex.figures.traversal import animation, plan
from vaex.likelihoods.bernoulli import CrossEntropy
from vaex.likelihoods.gaussian import Gaussian
from vaex.likelihoods.scale import Fixed, LikelihoodScale, PerDimension, PerImage, PerPixel
from vaex.model import Autoencoder

SIDE = 12  # pixels of an image; a sheet enlarges it to 60


class Map(nn.Module):
    """One linear map of the input and the condition."""

    def __init__(self, features: int, *shape: int) -> None:
        super().__init__()
        self.shape = shape
        self.linear = nn.Linear(features, math.prod(shape))

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        x = x.flatten(1) if condition is None else torch.cat([x.flatten(1), condition], dim=1)
        out: Tensor = self.linear(x)
        return out.view(-1, *self.shape)


class Constant(nn.Module):
    """The same output for every image."""

    def __init__(self, *values: float) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.tensor(values))

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.values.expand(len(x), -1)


def build(
    latent_dim: int = 4,
    *,
    channels: int = 1,
    classes: int = 0,
    stochastic: bool = True,
    rule: Callable[..., LikelihoodScale] = PerPixel,
    encoder: nn.Module | None = None,
) -> Autoencoder:
    torch.manual_seed(3)
    shape = (channels, SIDE, SIDE)
    values = {"value": 0.1} if rule is Fixed else {"floor": 0.01, "init": 0.1}
    likelihood = Gaussian(image_shape=shape, scale=rule(image_shape=shape, **values), bounded_mean=True)
    return Autoencoder(
        encoder=encoder or Map(math.prod(shape) + classes, (2 if stochastic else 1) * latent_dim),
        decoder=Map(latent_dim + classes, likelihood.out_channels(channels), SIDE, SIDE),
        likelihood=likelihood,
        latent_dim=latent_dim,
        classes=classes,
        stochastic=stochastic,
    )


def pictures(count: int = 40, channels: int = 1) -> Images:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, channels, SIDE, SIDE), dtype=torch.uint8, generator=generator)
    return Images(pixels, torch.arange(count) % 3)


def to_float(pixels: Tensor) -> Tensor:
    return pixels.float() / 255


NAMES = ("cat", "Äffchen", "犬")


def subject(
    model: Autoencoder,
    images: Images | None = None,
    *,
    dequantize: Literal["none", "uniform"] = "none",
    class_names: tuple[str, ...] = NAMES,
    **options: Any,
) -> Subject:
    test = pictures(channels=model.likelihood.image_shape[0]) if images is None else images
    source = Source(train=test, test=test, classes=len(class_names), class_names=class_names)
    dataset = Dataset(source=source, validation=0, binarize="none", dequantize=dequantize)
    return Subject(**{"model": model, "dataset": dataset, "corruption": nn.Identity(), **options})


def drawn(name: str, model: Autoencoder, images: Images | None = None, **options: Any) -> Tensor:
    """The sheet that a kind of figure draws."""
    sheet = FIGURES[name].draw(subject(model, images, **options))[f"{name}.png"]
    assert isinstance(sheet, Tensor)
    return sheet


def places(sheet: Tensor, image: Tensor) -> list[tuple[int, int]]:
    """Positions (y, x) of an image [C, H, W] in a sheet. A pixel may differ by one level of rounding."""
    patch, sheet = enlarged(image).int(), sheet.int()
    height, width = patch.shape[-2:]
    rows, columns = sheet.shape[1] - height + 1, sheet.shape[2] - width + 1
    fits = torch.ones(rows, columns, dtype=torch.bool)
    for y in range(2, height, 9):
        for x in range(2, width, 9):
            shifted = sheet[:, y : y + rows, x : x + columns]
            fits &= ((shifted - patch[:, y, x, None, None]).abs() <= 1).all(0)
    return [
        (y, x) for y, x in fits.nonzero().tolist() if (sheet[:, y : y + height, x : x + width] - patch).abs().max() <= 1
    ]


def mean_of(model: Autoencoder, z: Tensor, labels: Tensor | None = None) -> Tensor:
    with torch.no_grad():
        return model.decode(z, labels).mean


# Interpolation


@pytest.mark.parametrize("classes", [0, 3])
def test_every_path_goes_from_one_reconstruction_to_the_other(classes: int) -> None:
    model, images = build(classes=classes), pictures()
    with torch.no_grad():
        model.decoder.linear.weight.mul_(4)  # so that neighbors on a path differ visibly
    sheet = drawn("interpolation", model, images, count=1)
    first, second = (0, 3) if classes else (0, 1)  # of the same class if the model is conditional
    x, labels = to_float(images.pixels), images.labels
    tops = []
    for n, side in ((first, min), (second, max)):
        ((top, left),) = places(sheet, x[n])
        ends = places(sheet, model.reconstruct(x[n : n + 1], labels[n : n + 1])[0])
        assert len(ends) == 3 and {x for _, x in ends} == {left}
        assert min(ends)[0] > top
        tops.append(sorted(y for y, _ in ends))
        assert left == side(x for _, x in [(top, left), *ends])
    assert tops[0] == tops[1]
    assert len(places(sheet, (x[first] + x[second]) / 2)) == 1  # halfway between the pixels


def test_without_a_prior_the_only_path_is_linear() -> None:
    model, images = build(stochastic=False), pictures()
    sheet = drawn("interpolation", model, images, count=1)
    assert len(places(sheet, model.reconstruct(to_float(images.pixels[:1]))[0])) == 1


def test_paths_end_where_they_should_and_only_one_keeps_the_variance() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 20_000, generator=generator)
    t = torch.linspace(0, 1, 11)
    for path in (linear, spherical, variance_preserving):
        torch.testing.assert_close(path(t, a, b)[[0, -1]], torch.stack([a, b]))
    variance = variance_preserving(t, a, b).square().mean(1)
    torch.testing.assert_close(variance, torch.ones(11), rtol=0, atol=0.03)
    assert linear(t, a, b).square().mean(1)[5] < 0.55


def test_the_spherical_path_has_constant_speed_on_the_sphere() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = nn.functional.normalize(torch.randn(2, 6, 5, generator=generator, dtype=torch.float64), dim=-1)
    points = spherical(torch.linspace(0, 1, 9, dtype=torch.float64), a, b)
    torch.testing.assert_close(points.norm(dim=-1), torch.ones(9, 6, dtype=torch.float64))
    angles = torch.acos((points[1:] * points[:-1]).sum(-1))
    torch.testing.assert_close(angles, (torch.acos((a * b).sum(-1)) / 8).expand(8, 6))


def test_the_spherical_path_of_parallel_opposite_near_and_zero_codes() -> None:
    t = torch.linspace(0, 1, 5)
    a = torch.tensor([1.0, 2.0, -1.0])
    for b in (2 * a, -a, torch.zeros(3)):
        torch.testing.assert_close(spherical(t, a, b), linear(t, a, b))
    one, other = torch.tensor([0.5]), torch.tensor([-2.0])
    torch.testing.assert_close(spherical(t, one, other), linear(t, one, other))
    near = torch.tensor([1.0, 2.0, -1.0 + 1e-3], dtype=torch.float64)
    unit = [z / np.linalg.norm(z) for z in (a.double().numpy(), near.numpy())]
    angle = np.arcsin(np.linalg.norm(np.cross(*unit)))
    expected = (np.sin(0.75 * angle) * a.numpy() + np.sin(0.25 * angle) * near.numpy()) / np.sin(angle)
    np.testing.assert_allclose(spherical(t.double(), a.double(), near)[1].numpy(), expected, rtol=1e-12)


def test_pairs_are_of_two_classes_or_of_one() -> None:
    labels = torch.tensor([1, 1, 2, 1, 2, 5])
    assert find_pairs(labels, 9, same=False).tolist() == [[0, 2], [1, 4], [3, 5]]
    assert find_pairs(labels, 9, same=True).tolist() == [[0, 1], [2, 4]]
    assert find_pairs(labels, 1, same=True).tolist() == [[0, 1]]
    assert find_pairs(torch.zeros(5), 2, same=False).tolist() == [[0, 1], [2, 3]]
    assert find_pairs(torch.tensor([0, 1]), 2, same=True).shape == (0, 2)


# Traversals

RATES = Constant(0.0, 2.0, -1.0, 0.1, 0.0, 0.0, 0.0, 0.0)  # means, then log variances: rates 0, 2, 0.5, 0.005 nats


def test_latents_are_ordered_by_rate_and_a_remark_counts_the_others() -> None:
    model, images = build(encoder=RATES), pictures()
    traversal = plan(subject(model, images), count=1, most=20)
    assert traversal.latents == [1, 2] and traversal.names == ["z1   2.00 nats", "z2   0.50 nats"]
    assert traversal.remark == "not drawn: 2 of less than 0.1 nats each"
    capped = plan(subject(model, images), count=1, most=1)
    assert capped.latents == [1]
    assert capped.remark == "not drawn: 1 more of at most 0.50 nats each, and 2 of less than 0.1 nats each"


def test_a_traversal_changes_one_latent_and_starts_from_the_priors_mean_and_from_images() -> None:
    model, images = build(encoder=RATES, classes=3), pictures()
    traversal = plan(subject(model, images[2:]), count=2, most=20)
    means = traversal.decode(subject(model), torch.tensor([-3.0, 0.0, 3.0]))
    assert means.shape == (3, 2, 3, 1, SIDE, SIDE)
    labels = torch.tensor([2, 2, 0])  # the first image's own for the prior's mean
    for base, code in enumerate(([0.0, 0.0, 0.0, 0.0], [0.0, 2.0, -1.0, 0.1], [0.0, 2.0, -1.0, 0.1])):
        for row, latent in enumerate((1, 2)):
            for column, value in enumerate((-3.0, 0.0, 3.0)):
                z = torch.tensor([code])
                z[0, latent] = value
                expected = mean_of(model, z, labels[base : base + 1])[0]
                torch.testing.assert_close(means[base, row, column], expected)


def test_the_middle_column_is_the_base_and_stands_above_its_block() -> None:
    model, images = build(encoder=RATES), pictures()
    sheet = drawn("traversals", model, images, count=1)
    means = places(sheet, mean_of(model, torch.zeros(1, 4))[0])
    assert len(means) == 3  # above the block, and in the middle of both rows
    (_, left), *rows = sorted(means)
    middles = {x for _, x in rows}
    assert len(middles) == 1 and middles.pop() == left + 3 * 62
    assert len(places(sheet, to_float(images.pixels[0]))) == 1
    ends = [places(sheet, mean_of(model, torch.tensor([[0.0, value, 0.0, 0.0]]))[0]) for value in (-3.0, 3.0)]
    assert [len(end) for end in ends] == [1, 1] and ends[1][0][1] - ends[0][0][1] == 6 * 62


def test_codes_without_a_prior_go_by_their_own_spread() -> None:
    model, images = build(stochastic=False), pictures()
    with torch.no_grad():
        codes = model.encode(to_float(images.pixels)).mean
    traversal = plan(subject(model, images), count=1, most=20)
    spread = codes.std(0, correction=0)
    assert traversal.latents == spread.argsort(descending=True).tolist()
    torch.testing.assert_close(traversal.center, codes.mean(0))
    z = codes.mean(0, keepdim=True)
    z[0, traversal.latents[0]] += 3 * spread[traversal.latents[0]]
    torch.testing.assert_close(traversal.decode(subject(model), torch.tensor([3.0]))[0, 0, 0], mean_of(model, z)[0])


def test_the_animation_goes_to_and_fro_for_ever() -> None:
    model = build(encoder=RATES)
    with Image.open(BytesIO(animation(subject(model), count=2, stops=4))) as picture:
        assert picture.n_frames == 6 and picture.info["loop"] == 0 and picture.info["duration"] == 80
        frames = []
        for n in range(6):
            picture.seek(n)
            frames.append(np.array(picture.convert("L")))
    assert (frames[1] == frames[5]).all() and (frames[2] == frames[4]).all()
    assert (frames[0] != frames[3]).any() and (frames[0] != frames[1]).any()
    assert frames[0].max() == 255


# Manifold


def test_the_manifold_is_at_even_quantiles_with_z1_upwards() -> None:
    np.testing.assert_allclose(quantiles(5).numpy(), norm.ppf([0.1, 0.3, 0.5, 0.7, 0.9]), rtol=1e-6, atol=1e-7)
    model = build(2)
    sheet = drawn("manifold", model, count=3)
    low, high = norm.ppf([1 / 6, 5 / 6])
    corners = {}
    for z0 in (low, high):
        for z1 in (low, high):
            z = torch.tensor([[z0, z1]], dtype=torch.float32)
            (corners[z0, z1],) = places(sheet, mean_of(model, z)[0])
    assert corners[low, high][0] < corners[low, low][0]  # y counts downwards
    assert corners[low, low][1] < corners[high, low][1]
    assert corners[low, high][1] == corners[low, low][1] and corners[low, low][0] == corners[high, low][0]


def test_a_conditional_manifold_has_a_grid_for_each_class() -> None:
    model = build(2, classes=3)
    sheet = drawn("manifold", model, count=1)
    lefts = [places(sheet, mean_of(model, torch.zeros(1, 2), torch.tensor([n]))[0])[0][1] for n in range(3)]
    assert lefts == sorted(set(lefts))


# Latents


def test_principal_components_are_those_of_the_svd() -> None:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(200, 6, generator=generator) * torch.tensor([1.0, 5.0, 0.2, 3.0, 1.5, 0.0]) + 7
    mean, directions, share = latents.principal(z)
    centered = z.double().numpy() - z.double().numpy().mean(0)
    _, singular, vectors = np.linalg.svd(centered, full_matrices=False)
    np.testing.assert_allclose(share.numpy(), singular**2 / (singular**2).sum(), atol=1e-12)
    np.testing.assert_allclose(np.abs((directions.numpy() * vectors).sum(1)), np.ones(6), rtol=1e-9)
    assert (directions.gather(1, directions.abs().argmax(1, keepdim=True)) > 0).all()
    torch.testing.assert_close(mean, z.double().mean(0))


@pytest.mark.parametrize("latent_dim", [1, 2, 5])
def test_panels_of_latents_stand_beside_each_other(latent_dim: int) -> None:
    images = pictures()
    labeled = subject(build(latent_dim), images, title="a run")
    unlabeled = subject(build(latent_dim, stochastic=False), images, title="another", class_names=())
    both = latents.plot([labeled, unlabeled])
    assert both.dtype == torch.uint8 and both.shape == (3, 620, 1370)
    left, right = both[..., :620], both[..., 620:1240]
    assert left.float().std() > 5 and right.float().std() > 5


# Scale


@pytest.mark.parametrize("channels", [1, 3])
def test_a_map_is_of_the_predicted_scale_on_one_range_for_all(channels: int) -> None:
    model, images = build(channels=channels), pictures(channels=channels)
    sheet = drawn("scale", model, images, count=3)
    x = to_float(images.pixels[:3])
    with torch.no_grad():
        distribution = model.decode(model.encode(x).mean)
        log_scale = distribution.log_scale.exp().mean(1, keepdim=True).log()
    low, high = log_scale.min(), log_scale.max()
    maps = scale.color((log_scale - low) / (high - low))
    for n in range(3):
        ((top, left),) = places(sheet, x[n].expand(3, SIDE, SIDE))
        assert places(sheet, distribution.mean[n].expand(3, SIDE, SIDE)) == [(top + 62, left)]
        assert places(sheet, maps[n]) == [(top + 124, left)]


def test_colors_are_viridis() -> None:
    from matplotlib import colormaps

    values = torch.linspace(0, 1, 9)  # and between these in straight lines
    expected = torch.from_numpy(colormaps["viridis"](values.numpy())[:, :3]).float()
    torch.testing.assert_close(scale.color(values.view(1, 1, 1, -1))[0, :, 0].T, expected, rtol=0, atol=0.003)
    between = scale.color(torch.linspace(0, 1, 101).view(1, 1, 1, -1)).mean(1).flatten()
    assert (between.diff() > 0).all()


def test_the_scale_of_a_whole_image_is_written_as_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = build(rule=PerImage), pictures()
    with torch.no_grad():
        model.decoder.linear.weight.mul_(20)
        numbers = model.decode(model.encode(to_float(images.pixels[:2])).mean).scale.flatten().tolist()
    labels: list[str] = []
    grid = scale.grid

    def recording(*arguments: Any, columns: list[str], **options: Any) -> Tensor:
        labels.extend(columns)
        return grid(*arguments, columns=columns, **options)

    monkeypatch.setattr(scale, "grid", recording)
    drawn("scale", model, images, count=2)
    assert labels == [f"{number:.3f}" for number in numbers] and len(set(labels)) == 2


# Grids


def test_a_corrupted_image_stands_between_the_clean_and_the_restored_one() -> None:
    model, images = build(), pictures()
    sheet = drawn("denoising", model, images, corruption=lambda x: 1 - x, count=14)
    x = to_float(images.pixels[:14])
    restored = model.reconstruct(1 - x)
    for n in (0, 11, 12, 13):  # of two rows
        ((top, left),) = places(sheet, x[n])
        assert places(sheet, 1 - x[n]) == [(top + 62, left)]
        assert places(sheet, restored[n]) == [(top + 124, left)]


def test_a_raw_parameter_stands_below_the_mean() -> None:
    likelihood, images = CrossEntropy(image_shape=(1, SIDE, SIDE)), pictures()
    model = Autoencoder(encoder=build().encoder, decoder=Map(4, 1, SIDE, SIDE), likelihood=likelihood, latent_dim=4)
    sheet = drawn("reconstructions", model, images, count=17, parameter=True)
    tops = [places(sheet, to_float(images.pixels[n]))[0][0] for n in (0, 15, 16)]
    assert tops == [2, 2, 2 + 3 * 62 + 8]
    assert len(places(sheet, model.reconstruct(to_float(images.pixels[:1]))[0])) == 2  # here the parameter is the mean


def test_samples_of_classes_share_z_down_a_column_and_have_names() -> None:
    model = build(classes=3)
    sheet = drawn("samples", model, count=2)
    with fixed_noise(torch.device("cpu")):
        z = torch.randn(2, 4)
    positions = [
        [places(sheet, mean_of(model, z[n : n + 1], torch.tensor([label]))[0])[0] for n in range(2)]
        for label in range(3)
    ]
    assert len({left for row in positions for _, left in row}) == 2
    assert len({top for row in positions for top, _ in row}) == 3
    top, left = positions[0][0]
    assert (sheet[:, top : top + 60, : left - 4] < 200).any()  # a name is at its left


def test_images_are_enlarged_by_whole_factors_to_be_legible() -> None:
    for side, shown in ((28, 56), (40, 80), (56, 56), (64, 64), (8, 56), (200, 200)):
        assert enlarged(torch.zeros(1, side, side // 2)).shape == (1, shown, shown // 2)
    sheet = tile(torch.tensor([0.0, 1.0, 0.5, 2.0]).view(4, 1, 1, 1), 2)
    assert sheet[0, 10, 10] == 0 and sheet[0, 70, 10] == 128 and sheet[0, 70, 70] == 255


def test_names_are_written_in_letters_of_the_font() -> None:
    assert [writable(name, "3") for name in ("cat", "Äffchen", "犬")] == ["cat", "Affchen", "3"]
    assert subject(build()).class_names == ["cat", "Affchen", "2"]
    assert text("a longer line").shape[2] > text("a line").shape[2]


# Curves


def lines(path: Path, steps: list[int], value: Callable[[int], float], name: str = "train/loss") -> None:
    with path.open("a") as file:
        file.writelines(json.dumps({"step": step, "epoch": 0.1, name: value(step)}) + "\n" for step in steps)


def test_curves_of_a_run_that_resumed_from_an_earlier_step(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines(path, [50, 100, 150, 200], lambda step: -1.0)
    lines(path, [100, 120], lambda step: step, "validation/elbo")  # the run resumed from step 100
    lines(path, [150, 200], lambda step: float(step))
    with path.open("a") as file:
        file.write('{"step": 250, "train/lo')
    assert read(path, "train") == {"loss": ([50, 100, 150, 200], [-1.0, -1.0, 150.0, 200.0])}
    assert read(path, "validation") == {"elbo": ([100, 120], [100, 120])}
    sheet = drawn("curves", build(), metrics=path)
    assert sheet.shape == (3, 320, 840)


def test_an_epoch_has_no_curve_of_its_own_and_nan_no_point(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines(path, [50, 100], lambda step: math.nan)
    lines(path, [100], lambda step: 1.0, "train_epoch/loss")
    assert list(read(path, "train")["loss"][0]) == [50, 100]
    assert drawn("curves", build(), metrics=path).shape == (3, 320, 420)


def test_a_row_with_fewer_plots_is_blank_at_its_end(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for name in ("loss", "distortion", "rate", "elbo"):
        lines(path, [50, 100], lambda step: float(step), f"train/{name}")
    sheet = drawn("curves", build(), metrics=path)
    assert sheet.shape == (3, 640, 1260) and (sheet[:, 325:, 425:] == 255).all()


# All kinds


def reasons(model: Autoencoder, **options: Any) -> dict[str, str]:
    shown = subject(model, **options)
    return {name: reason for name, kind in FIGURES.items() if (reason := kind.why_not(shown))}


def test_a_kind_that_does_not_apply_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    lines(metrics, [50], lambda step: 1.0)
    no_groups = "needs architecture=ladder with several groups of latents"
    no_pseudo_inputs = {"pseudo_inputs": "needs prior=vamp", "levels": no_groups, "group_rates": no_groups}
    assert reasons(build(2), metrics=metrics, corruption=lambda x: x) == no_pseudo_inputs
    assert reasons(build(20, rule=Fixed), metrics=metrics) == {
        "denoising": "needs a corruption; this run has corruption=none",
        "manifold": "needs latent_dim=2, this run has 20",
        "scale": "needs a scale that varies, and this run's is 0.1 everywhere: use likelihood/scale=per_pixel",
        **no_pseudo_inputs,
    }
    without_prior = reasons(build(2, stochastic=False), metrics=tmp_path / "none.jsonl", corruption=lambda x: x)
    no_prior = "needs a prior, and this objective has none"
    assert without_prior == {
        "samples": no_prior,
        "temperatures": no_prior,
        "manifold": no_prior,
        "curves": f"needs {tmp_path / 'none.jsonl'}, which does not exist",
        **no_pseudo_inputs,
    }
    model = build(2)
    model.likelihood = CrossEntropy(image_shape=(1, SIDE, SIDE))
    model.decoder = Map(2, 1, SIDE, SIDE)
    alone = reasons(model, metrics=metrics, corruption=lambda x: x, images=pictures(1))
    assert alone["scale"] == "needs a likelihood with a scale, and CrossEntropy has none"
    assert alone["interpolation"] == "needs two test images, and there are 1 in all"
    monkeypatch.setattr(plot, "find_spec", lambda name: None)
    without = reasons(build(2), metrics=metrics, corruption=lambda x: x)
    assert set(without) == {"latents", "curves", *no_pseudo_inputs}
    assert without["latents"] == "needs matplotlib; pip install 'vaex-autoencoders[plots]'"


@pytest.mark.parametrize(
    "options",
    [
        {"latent_dim": 2, "classes": 3, "rule": PerImage},
        {"latent_dim": 3, "rule": PerDimension, "channels": 3},
        {"latent_dim": 2, "stochastic": False},
    ],
)
def test_every_kind_is_the_same_every_time_and_changes_nothing(options: dict[str, Any]) -> None:
    model = build(**options).train()
    noisy = {"corruption": lambda x: x + torch.randn_like(x), "dequantize": "uniform"}
    shown = subject(model, pictures(8, options.get("channels", 1)), count=2, **noisy)
    torch.manual_seed(5)
    expected_noise = torch.rand(3)
    torch.manual_seed(5)
    plots = ("latents", "curves")  # matplotlib draws these without noise, and slowly
    kinds = {name: kind for name, kind in FIGURES.items() if name not in plots and not kind.why_not(shown)}
    first = {name: kind.draw(shown) for name, kind in kinds.items()}
    assert torch.equal(torch.rand(3), expected_noise)  # the noise of the training is untouched
    assert model.training
    assert len(first) >= 5
    for name, kind in kinds.items():
        again = kind.draw(shown)
        for file, content in first[name].items():
            assert same(content, again[file]), file
            if isinstance(content, Tensor):
                assert content.dtype == torch.uint8 and content.shape[0] in (1, 3) and len(content.shape) == 3


def same(a: Tensor | bytes, b: Tensor | bytes) -> bool:
    return (a if isinstance(a, bytes) else encode_png(a)) == (b if isinstance(b, bytes) else encode_png(b))


def test_images_may_be_mapped_from_a_file(tmp_path: Path) -> None:
    images = pictures(8)
    np.save(tmp_path / "pixels.npy", images.pixels.numpy())
    mapped = Images(torch.from_numpy(np.load(tmp_path / "pixels.npy", mmap_mode="c")), images.labels)
    for name in ("reconstructions", "interpolation", "projector"):
        one, other = (FIGURES[name].draw(subject(build(), test)) for test in (images, mapped))
        assert all(same(content, other[file]) for file, content in one.items()), name


def test_the_projector_finds_codes_classes_and_sprites() -> None:
    from google.protobuf import text_format
    from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig

    model, images = build(), pictures(10)
    files: dict[str, Any] = FIGURES["projector"].draw(subject(model, images))
    config = text_format.Parse(files["projector_config.pbtxt"].decode(), ProjectorConfig())
    (embedding,) = config.embeddings
    rows = [line.split("\t") for line in files[embedding.tensor_path].decode().splitlines()]
    with torch.no_grad():
        expected = model.encode(to_float(images.pixels)).mean
    torch.testing.assert_close(torch.tensor([[float(v) for v in row] for row in rows]), expected, rtol=1e-5, atol=1e-6)
    assert files[embedding.metadata_path].decode().split() == [NAMES[n % 3] for n in range(10)]
    with Image.open(BytesIO(files[embedding.sprite.image_path])) as picture:
        sprites = np.array(picture)
    assert list(embedding.sprite.single_image_dim) == [SIDE, SIDE] and sprites.shape == (4 * SIDE, 4 * SIDE)
    np.testing.assert_array_equal(sprites[SIDE : 2 * SIDE, 2 * SIDE : 3 * SIDE], images.pixels[6, 0])
