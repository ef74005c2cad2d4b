"""Pictures show what they say: the right images in the right places, and the same every time."""

import json
import math
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import norm
from torch import Tensor, nn

from vaex.data.dataset import Dataset, Images, Source
from vaex.evaluation.split import fixed_noise
from vaex.figures import plot, scale
from vaex.figures.curves import curves, read
from vaex.figures.denoising import denoising
from vaex.figures.grids import samples
from vaex.figures.interpolation import find_pairs, interpolation, linear, spherical, variance_preserving
from vaex.figures.kinds import KINDS, Subject
from vaex.figures.latents import latents, panel, principal
from vaex.figures.manifold import manifold, quantiles
from vaex.figures.projector import projector
from vaex.figures.sheet import encode_png, enlarged, text, tile, writable
from vaex.figures.traversal import animation, plan, traversals
from vaex.likelihoods.bernoulli import CrossEntropy
from vaex.likelihoods.gaussian import Gaussian
from vaex.likelihoods.scale import Fixed, LikelihoodScale, PerDimension, PerImage, PerPixel
from vaex.model import Autoencoder

SIDE = 12  # pixels; shown as 60


class Map(nn.Module):
    """One linear map of everything it is given."""

    def __init__(self, features: int, *shape: int) -> None:
        super().__init__()
        self.shape = shape
        self.linear = nn.Linear(features, math.prod(shape))

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        x = x.flatten(1) if condition is None else torch.cat([x.flatten(1), condition], dim=1)
        out: Tensor = self.linear(x)
        return out.view(-1, *self.shape)


class Constant(nn.Module):
    """The same for every image."""

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


def subject(model: Autoencoder, images: Images | None = None, noisy: bool = False, **options: object) -> Subject:
    test = pictures(channels=model.likelihood.image_shape[0]) if images is None else images
    source = Source(train=test, test=test, classes=3, class_names=("cat", "Äffchen", "犬"))
    dataset = Dataset(source=source, validation=0, binarize="none", dequantize="uniform" if noisy else "none")
    return Subject(model=model, dataset=dataset, corruption=options.pop("corruption", nn.Identity()), **options)


def places(sheet: Tensor, image: Tensor) -> list[tuple[int, int]]:
    """Where (y, x) an image [C, H, W] stands in a sheet, a level of rounding aside."""
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
    sheet = interpolation(model, images, to_float, pairs=1, steps=5)
    first, second = (0, 3) if classes else (0, 1)  # of the same class where the model is told it
    x, labels = to_float(images.pixels), images.labels
    tops = []
    for n, side in ((first, min), (second, max)):
        (of_pixels,) = places(sheet, x[n])
        found = places(sheet, model.reconstruct(x[n : n + 1], labels[n : n + 1])[0])
        assert len(found) == 3 and {left for _, left in found} == {of_pixels[1]}
        assert min(found)[0] > of_pixels[0]
        tops.append(sorted(top for top, _ in found))
        assert of_pixels[1] == side(left for _, left in [of_pixels, *found])
    assert tops[0] == tops[1]
    assert len(places(sheet, (x[first] + x[second]) / 2)) == 1  # halfway through pixels


def test_without_a_prior_there_is_the_linear_path_only() -> None:
    model, images = build(stochastic=False), pictures()
    sheet = interpolation(model, images, to_float, pairs=1)
    assert len(places(sheet, model.reconstruct(to_float(images.pixels[:1]))[0])) == 1


def test_paths_end_where_they_should_and_only_one_keeps_the_variance() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 20_000, generator=generator)
    t = torch.linspace(0, 1, 11)
    for path in (linear, spherical, variance_preserving):
        torch.testing.assert_close(path(t, a, b)[[0, -1]], torch.stack([a, b]))
    kept = variance_preserving(t, a, b).square().mean(1)
    torch.testing.assert_close(kept, torch.ones(11), rtol=0, atol=0.03)
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


def test_latents_come_by_rate_and_what_is_left_out_is_said() -> None:
    model, images = build(encoder=RATES), pictures()
    traversal = plan(model, images, to_float, count=1, most=20)
    assert traversal.latents == [1, 2] and traversal.names == ["z1   2.00 nats", "z2   0.50 nats"]
    assert traversal.rest == "not drawn: 2 of less than 0.1 nats each"
    capped = plan(model, images, to_float, count=1, most=1)
    assert capped.latents == [1]
    assert capped.rest == "not drawn: 1 more of at most 0.50 nats each, and 2 of less than 0.1 nats each"


def test_a_traversal_changes_one_latent_and_starts_from_the_priors_mean_and_from_images() -> None:
    model, images = build(encoder=RATES, classes=3), pictures()
    traversal = plan(model, images[2:], to_float, count=2, most=20)
    decoded = traversal.decode(model, torch.tensor([-3.0, 0.0, 3.0]))
    assert decoded.shape == (3, 2, 3, 1, SIDE, SIDE)
    labels = torch.tensor([2, 2, 0])  # the first image's own for the prior's mean
    for base, code in enumerate(([0.0, 0.0, 0.0, 0.0], [0.0, 2.0, -1.0, 0.1], [0.0, 2.0, -1.0, 0.1])):
        for row, latent in enumerate((1, 2)):
            for column, value in enumerate((-3.0, 0.0, 3.0)):
                z = torch.tensor([code])
                z[0, latent] = value
                expected = mean_of(model, z, labels[base : base + 1])[0]
                torch.testing.assert_close(decoded[base, row, column], expected)


def test_the_middle_column_is_the_base_and_stands_above_its_block() -> None:
    model, images = build(encoder=RATES), pictures()
    sheet = traversals(model, images, to_float, count=1)
    found = places(sheet, mean_of(model, torch.zeros(1, 4))[0])
    assert len(found) == 3  # above the block, and in the middle of both rows
    (above, left), *rows = sorted(found)
    middles = {x for _, x in rows}
    assert len(middles) == 1 and middles.pop() == left + 3 * 62
    assert len(places(sheet, to_float(images.pixels[0]))) == 1
    ends = [places(sheet, mean_of(model, torch.tensor([[0.0, value, 0.0, 0.0]]))[0]) for value in (-3.0, 3.0)]
    assert [len(end) for end in ends] == [1, 1] and ends[1][0][1] - ends[0][0][1] == 6 * 62


def test_codes_without_a_prior_go_by_their_own_spread() -> None:
    model, images = build(stochastic=False), pictures()
    with torch.no_grad():
        codes = model.encode(to_float(images.pixels)).mean
    traversal = plan(model, images, to_float, count=1, most=20)
    spread = codes.std(0, correction=0)
    assert traversal.latents == spread.argsort(descending=True).tolist()
    torch.testing.assert_close(traversal.center, codes.mean(0))
    z = codes.mean(0, keepdim=True)
    z[0, traversal.latents[0]] += 3 * spread[traversal.latents[0]]
    torch.testing.assert_close(traversal.decode(model, torch.tensor([3.0]))[0, 0, 0], mean_of(model, z)[0])


def test_the_animation_goes_to_and_fro_for_ever() -> None:
    model = build(encoder=RATES)
    with Image.open(BytesIO(animation(model, pictures(), to_float, count=2, stops=4))) as picture:
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
    sheet = manifold(model, side=3)
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
    sheet = manifold(model, side=1, class_names=["a", "b", "c"])
    lefts = [places(sheet, mean_of(model, torch.zeros(1, 2), torch.tensor([n]))[0])[0][1] for n in range(3)]
    assert lefts == sorted(set(lefts))


# Latents


def test_principal_components_are_those_of_the_svd() -> None:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(200, 6, generator=generator) * torch.tensor([1.0, 5.0, 0.2, 3.0, 1.5, 0.0]) + 7
    mean, directions, share = principal(z)
    centred = z.double().numpy() - z.double().numpy().mean(0)
    _, singular, vectors = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(share.numpy(), singular**2 / (singular**2).sum(), atol=1e-12)
    np.testing.assert_allclose(np.abs((directions.numpy() * vectors).sum(1)), np.ones(6), rtol=1e-9)
    assert (directions.gather(1, directions.abs().argmax(1, keepdim=True)) > 0).all()
    torch.testing.assert_close(mean, z.double().mean(0))


@pytest.mark.parametrize("latent_dim", [1, 2, 5])
def test_latents_of_any_number_beside_each_other(latent_dim: int) -> None:
    images = pictures()
    panels = [
        panel(build(latent_dim, stochastic=stochastic), images, to_float, class_names=names, title="a run")
        for stochastic, names in ((True, ["a", "b", "c"]), (False, []))
    ]
    torch.testing.assert_close(panels[0].labels, images.labels)
    one, both = latents(panels[:1]), latents(panels)
    assert one.dtype == torch.uint8 and one.shape[0] == 3 and both.shape[2] > 1.5 * one.shape[2]
    assert one.float().std() > 5


# Scale


@pytest.mark.parametrize("channels", [1, 3])
def test_a_map_is_of_the_predicted_scale_on_one_range_for_all(channels: int) -> None:
    model, images = build(channels=channels), pictures(channels=channels)
    sheet = scale.scales(model, images, to_float, count=3)
    x = to_float(images.pixels[:3])
    with torch.no_grad():
        distribution = model.decode(model.encode(x).mean)
        log_scale = distribution.log_scale.exp().mean(1, keepdim=True).log()
    low, high = log_scale.min(), log_scale.max()
    maps = scale.colour((log_scale - low) / (high - low))
    for n in range(3):
        ((top, left),) = places(sheet, x[n].expand(3, SIDE, SIDE))
        assert places(sheet, distribution.mean[n].expand(3, SIDE, SIDE)) == [(top + 62, left)]
        assert places(sheet, maps[n]) == [(top + 124, left)]


def test_colours_are_viridis() -> None:
    from matplotlib import colormaps

    values = torch.linspace(0, 1, 9)  # and between these in straight lines
    expected = torch.from_numpy(colormaps["viridis"](values.numpy())[:, :3]).float()
    torch.testing.assert_close(scale.colour(values.view(1, 1, 1, -1))[0, :, 0].T, expected, rtol=0, atol=0.003)
    between = scale.colour(torch.linspace(0, 1, 101).view(1, 1, 1, -1)).mean(1).flatten()
    assert (between.diff() > 0).all()


def test_one_scale_for_an_image_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = build(rule=PerImage), pictures()
    with torch.no_grad():
        model.decoder.linear.weight.mul_(20)
    with torch.no_grad():
        distribution = model.decode(model.encode(to_float(images.pixels[:2])).mean)
    written: list[str] = []
    draw = scale.grid
    monkeypatch.setattr(
        scale, "grid", lambda *a, columns=(), **k: written.extend(columns) or draw(*a, columns=columns, **k)
    )
    scale.scales(model, images, to_float, count=2)
    numbers = distribution.scale.flatten().tolist()
    assert written == [f"{number:.3f}" for number in numbers] and len(set(written)) == 2


# Grids


def test_a_corruption_stands_between_the_clean_image_and_the_restored() -> None:
    model, images = build(), pictures()
    sheet = denoising(model, images, to_float, lambda x: 1 - x, count=3, columns=2)
    x = to_float(images.pixels[:3])
    restored = model.reconstruct(1 - x)
    for n in range(3):
        ((top, left),) = places(sheet, x[n])
        assert places(sheet, 1 - x[n]) == [(top + 62, left)]
        assert places(sheet, restored[n]) == [(top + 124, left)]


def test_samples_of_classes_share_z_down_a_column_and_have_names() -> None:
    model = build(classes=3)
    sheet = samples(model, torch.device("cpu"), 2, class_names=["a", "b", "c"])
    with fixed_noise(torch.device("cpu")):
        z = torch.randn(2, 4)
    found = [
        [places(sheet, mean_of(model, z[n : n + 1], torch.tensor([label]))[0])[0] for n in range(2)]
        for label in range(3)
    ]
    assert len({left for row in found for _, left in row}) == 2 and len({top for row in found for top, _ in row}) == 3
    (top, left), *_ = found[0]
    assert (sheet[:, top : top + 60, : left - 4] < 200).any()  # a name is at its left


def test_images_are_enlarged_by_whole_factors_to_be_legible() -> None:
    for side, shown in ((28, 56), (40, 80), (56, 56), (64, 64), (8, 56), (200, 200)):
        assert enlarged(torch.zeros(1, side, side // 2)).shape == (1, shown, shown // 2)
    sheet = tile(torch.tensor([0.0, 1.0, 0.5, 2.0]).view(4, 1, 1, 1), 2)
    assert sheet[0, 10, 10] == 0 and sheet[0, 70, 10] == 128 and sheet[0, 70, 70] == 255


def test_names_are_written_in_letters_that_there_are() -> None:
    assert [writable(name, "3") for name in ("cat", "Äffchen", "犬")] == ["cat", "Affchen", "3"]
    assert subject(build()).class_names == ["cat", "Affchen", "2"]
    assert text("a longer line").shape[2] > text("a line").shape[2]


# Curves


def lines(path: Path, steps: list[int], value: Callable[[int], float], name: str = "train/loss") -> None:
    with path.open("a") as file:
        file.writelines(json.dumps({"step": step, "epoch": 0.1, name: value(step)}) + "\n" for step in steps)


def test_curves_of_a_run_that_went_on_from_an_earlier_step(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines(path, [50, 100, 150, 200], lambda step: -1.0)
    lines(path, [100, 120], lambda step: step, "validation/elbo")  # it went on from step 100
    lines(path, [150, 200], lambda step: float(step))
    with path.open("a") as file:
        file.write('{"step": 250, "train/lo')
    assert read(path, "train") == {"loss": ([50, 100, 150, 200], [-1.0, -1.0, 150.0, 200.0])}
    assert read(path, "validation") == {"elbo": ([100, 120], [100, 120])}
    assert curves(path).shape == (3, 320, 840)


def test_an_epoch_has_no_curve_of_its_own_and_nan_no_point(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines(path, [50, 100], lambda step: math.nan)
    lines(path, [100], lambda step: 1.0, "train_epoch/loss")
    assert list(read(path, "train")["loss"][0]) == [50, 100]
    assert curves(path).shape == (3, 320, 420)


# All kinds


def reasons(model: Autoencoder, **options: object) -> dict[str, str]:
    drawn = subject(model, **options)
    return {name: reason for name, kind in KINDS.items() if (reason := kind.why_not(drawn))}


def test_a_kind_without_meaning_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    lines(metrics, [50], lambda step: 1.0)
    assert reasons(build(2), metrics=metrics, corruption=lambda x: x) == {}
    assert reasons(build(20, rule=Fixed), metrics=metrics) == {
        "denoising": "needs a corruption, and this run's encoder sees the images themselves",
        "manifold": "needs latent_dim=2, this run has 20",
        "scale": "needs a scale that varies, and this run's is 0.1 everywhere: take likelihood/scale=per_pixel",
    }
    found = reasons(build(2, stochastic=False), metrics=tmp_path / "none.jsonl", corruption=lambda x: x)
    no_prior = "needs a prior, and objective=ae has none"
    assert found == {
        "samples": no_prior,
        "manifold": no_prior,
        "curves": f"needs {tmp_path / 'none.jsonl'}, which is not there",
    }
    model = build(2)
    model.likelihood = CrossEntropy(image_shape=(1, SIDE, SIDE))
    model.decoder = Map(2, 1, SIDE, SIDE)
    alone = reasons(model, metrics=metrics, corruption=lambda x: x, images=pictures(1))
    assert alone["scale"] == "needs a likelihood with a scale, and CrossEntropy has none"
    assert alone["interpolation"] == "needs two test images, and there are 1 in all"
    monkeypatch.setattr(plot, "find_spec", lambda name: None)
    without = reasons(build(2), metrics=metrics, corruption=lambda x: x)
    assert set(without) == {"latents", "curves"}
    assert without["latents"] == "needs matplotlib; pip install 'vaex-autoencoders[plots]'"


@pytest.mark.parametrize(
    "options",
    [
        {"latent_dim": 1, "channels": 3},
        {"latent_dim": 2, "classes": 3, "rule": PerImage},
        {"latent_dim": 128, "rule": PerDimension},
        {"latent_dim": 2, "stochastic": False, "channels": 3},
    ],
)
def test_every_kind_is_the_same_every_time_and_changes_nothing(options: dict[str, int], tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    lines(metrics, [50, 100, 150], lambda step: 1 / step)
    model = build(**options).train()
    drawn = subject(model, metrics=metrics, corruption=lambda x: x + torch.randn_like(x), count=2, noisy=True)
    torch.manual_seed(5)
    expected_noise = torch.rand(3)
    torch.manual_seed(5)
    plots = ("latents", "curves")  # without noise, and slow
    kinds = {name: kind for name, kind in KINDS.items() if name not in plots and not kind.why_not(drawn)}
    first = {name: kind.draw(drawn) for name, kind in kinds.items()}
    assert torch.equal(torch.rand(3), expected_noise)  # no noise of the training's was used
    assert model.training
    assert len(first) >= 5
    for name, kind in kinds.items():
        again = kind.draw(drawn)
        for file, content in first[name].items():
            other = again[file]
            if isinstance(content, bytes):
                assert content == other
                continue
            assert isinstance(other, Tensor) and encode_png(content) == encode_png(other)
            assert content.dtype == torch.uint8 and content.shape[0] in (1, 3) and len(content.shape) == 3


def test_images_may_be_mapped_from_a_file(tmp_path: Path) -> None:
    held = pictures()
    np.save(tmp_path / "pixels.npy", held.pixels.numpy())
    mapped = Images(torch.from_numpy(np.load(tmp_path / "pixels.npy", mmap_mode="c")), held.labels)
    for name in ("reconstructions", "interpolation", "traversals", "projector"):
        one, other = (KINDS[name].draw(subject(build(), images)) for images in (held, mapped))
        for file, content in one.items():
            same = other[file]
            assert content == same if isinstance(content, bytes) else torch.equal(content, same)


def test_the_projector_finds_codes_classes_and_sprites() -> None:
    from google.protobuf import text_format
    from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig

    model, images = build(), pictures(10)
    files = projector(model, images, to_float, class_names=["a", "b", "c"])
    config = text_format.Parse(files["projector_config.pbtxt"].decode(), ProjectorConfig())
    (embedding,) = config.embeddings
    rows = [line.split("\t") for line in files[embedding.tensor_path].decode().splitlines()]
    with torch.no_grad():
        expected = model.encode(to_float(images.pixels)).mean
    torch.testing.assert_close(torch.tensor([[float(v) for v in row] for row in rows]), expected, rtol=1e-5, atol=1e-6)
    assert files[embedding.metadata_path].decode().split() == [*"abcabcabca"]
    with Image.open(BytesIO(files[embedding.sprite.image_path])) as picture:
        sprites = np.array(picture)
    assert list(embedding.sprite.single_image_dim) == [SIDE, SIDE] and sprites.shape == (4 * SIDE, 4 * SIDE)
    np.testing.assert_array_equal(sprites[SIDE : 2 * SIDE, 2 * SIDE : 3 * SIDE], images.pixels[6, 0])
