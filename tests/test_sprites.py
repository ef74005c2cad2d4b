"""Sprites: one image for each combination of factors, drawn as they say, the same on all machines, and cached."""

import hashlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import composed
from torch import Tensor

from vaex.build import load_dataset
from vaex.data.dataset import Dataset, Images, Source
from vaex.data.sprites import ONE, PALETTE, SAMPLES, sprites

SMALL = dict(size=32, antialias=True, scales=2, rotations=8, positions=4, colors=0, test=100)
SCALES = [0.5, 0.6, 0.7, 0.8, 0.9, 1.0]


@pytest.fixture(scope="module", autouse=True)
def empty_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing comes from a file that other code wrote."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VAEX_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def drawn(**options: int | bool) -> Source:
    return sprites(**{**SMALL, **options})


def whole(source: Source) -> Images:
    parts = [source.train, source.test]
    assert source.train.factors is not None and source.test.factors is not None
    return Images(
        torch.cat([part.pixels for part in parts]),
        torch.cat([part.labels for part in parts]),
        torch.cat([source.train.factors, source.test.factors]),
    )


def by_factors(source: Source) -> Tensor:
    """uint8 [F1, F2, ..., C, H, W]: every image at the place of its factors."""
    images = whole(source)
    values = [factor.values for factor in source.factors]
    grid = torch.zeros(*values, *images.pixels.shape[1:], dtype=torch.uint8)
    grid[images.factors.unbind(1)] = images.pixels
    return grid


@pytest.fixture(scope="module")
def stamps() -> Tensor:
    """float64 [shape, scale, rotation, 33, 33] in [0, 1]: the full grid's sprites, cut out."""
    images = by_factors(drawn(size=64, scales=6, rotations=40, positions=1))
    return images[:, :, :, 0, 0, 0, 15:48, 15:48].to(torch.float64) / 255


@pytest.mark.parametrize("colors", [0, 2])
def test_the_grid_is_whole_and_no_combination_is_there_twice(colors: int) -> None:
    source = drawn(colors=colors)
    images = whole(source)
    factors = images.factors
    assert factors is not None and factors.dtype == images.labels.dtype == torch.int64
    assert len(factors) == math.prod(factor.values for factor in source.factors) == 3 * 2 * 8 * 4 * 4 * max(1, colors)
    assert len(factors.unique(dim=0)) == len(factors)
    for column, factor in zip(factors.unbind(1), source.factors, strict=True):
        assert column.unique().tolist() == list(range(factor.values))
    names = [factor.name for factor in source.factors]
    assert names == ["color"][: bool(colors)] + ["shape", "scale", "rotation", "x", "y"]
    assert [factor.name for factor in source.factors if not factor.ordered] == names[:-4]
    assert torch.equal(images.labels, factors[:, names.index("shape")])
    assert source.classes == 3 and source.class_names == ("square", "ellipse", "heart")


def test_the_split_is_random_and_does_not_depend_on_its_size() -> None:
    few, many = drawn(positions=16, test=100), drawn(positions=16, test=1200)
    assert len(few.test) == 100 and len(many.test) == 1200
    assert torch.equal(few.test.pixels, many.test.pixels[-100:])
    assert many.test.factors is not None
    for column, factor in zip(many.test.factors.unbind(1), many.factors, strict=True):
        share = column.bincount(minlength=factor.values) / 1200
        deviation = math.sqrt((1 - 1 / factor.values) / factor.values / 1200)
        assert (share - 1 / factor.values).abs().max() < 4 * deviation, factor


@pytest.mark.parametrize("size", [32, 30])
def test_a_step_of_position_moves_the_same_picture_by_one_pixel(size: int) -> None:
    images = by_factors(drawn(size=size, positions=size // 2))[:, :, :, :, :, 0]  # [shape, scale, rotation, x, y, H, W]
    left, right = images[:, :, :, :-1], images[:, :, :, 1:]
    assert torch.equal(left[..., :-1], right[..., 1:]) and not left[..., -1].any() and not right[..., 0].any()
    up, down = images[:, :, :, :, :-1], images[:, :, :, :, 1:]
    assert torch.equal(up[..., :-1, :], down[..., 1:, :]) and not up[..., -1, :].any() and not down[..., 0, :].any()


@pytest.mark.parametrize("positions, expected", [(1, [15]), (2, [0, 31]), (8, [1, 5, 9, 13, 17, 21, 25, 29])])
def test_fewer_positions_are_even_and_in_the_middle(positions: int, expected: list[int]) -> None:
    every = by_factors(drawn(size=64, scales=1, rotations=1, positions=32, test=1))
    some = by_factors(drawn(size=64, scales=1, rotations=1, positions=positions, test=1))
    assert torch.equal(some, every[:, :, :, expected][:, :, :, :, expected])


def test_areas_are_those_of_the_shapes_and_equal(stamps: Tensor) -> None:
    exact, edges = torch.empty(3, 6), torch.empty(3, 6)
    for n, scale in enumerate(SCALES):
        side, a, b, r = 21 * scale, 15.6 * scale, 9 * scale, 7.2 * scale
        exact[:, n] = torch.tensor([side**2, math.pi * a * b, math.pi * r**2 + 16 / 3 * r**2])
        ellipse = math.pi * (3 * (a + b) - math.sqrt((3 * a + b) * (a + 3 * b)))  # Ramanujan 1914
        edges[:, n] = torch.tensor([4 * side, ellipse, 2 * math.pi * r + 16 / 3 * r])
    assert (exact / exact[0] - 1).abs().max() < 0.005
    areas = stamps.sum((-2, -1))
    assert ((areas - exact[..., None]).abs() < edges[..., None] / (2 * SAMPLES)).all()  # half a sample at every edge
    assert (areas.mean(2) / exact - 1).abs().max() < 0.003


def test_the_centroid_is_at_the_position(stamps: Tensor) -> None:
    at = torch.arange(-16.0, 17.0, dtype=torch.float64)
    areas = stamps.sum((-2, -1))
    assert ((stamps * at).sum((-2, -1)) / areas).abs().max() < 0.04
    assert ((stamps * at[:, None]).sum((-2, -1)) / areas).abs().max() < 0.04


def test_rotations_are_counterclockwise_and_symmetries_exact(stamps: Tensor) -> None:
    quarter = stamps.roll(-10, 2)  # ten rotations of 9 degrees further
    assert torch.equal(quarter, torch.rot90(stamps, dims=(-2, -1)))
    square, ellipse, heart = stamps
    assert torch.equal(quarter[0], square) and torch.equal(ellipse.roll(-20, 1), ellipse)
    for shape in stamps:
        assert torch.equal(shape[:, 0], shape[:, 0].flip(-1))  # upright
    rows = heart[:, 0].sum(-1)
    assert (rows[:, :16].max(1).values > rows[:, 17:].max(1).values).all()  # its lobes are above, its tip below
    heights = heart[:, 0, :, 16].sum(-1)  # from the notch, 3/5 of a lobe's radius above its center, to the tip
    assert (heights - torch.tensor(SCALES) * 7.2 * (3 + 41 / 3) / 5).abs().max() < 0.15

    at = torch.arange(-16.0, 17.0, dtype=torch.float64)
    xx, yy, xy = ((ellipse * moment).sum((-2, -1)) for moment in (at**2, at[:, None] ** 2, -at * at[:, None]))  # y up
    angles = torch.rad2deg(torch.atan2(2 * xy, xx - yy) / 2)
    assert ((angles - 9 * torch.arange(40) + 90) % 180 - 90).abs().max() < 0.5


def test_every_binary_stamp_is_the_smooth_one_rounded_and_differs_but_for_symmetry(stamps: Tensor) -> None:
    images = by_factors(drawn(size=64, antialias=False, scales=6, rotations=40, positions=1)).reshape(720, 64, 64)
    assert torch.equal(images[:, 15:48, 15:48] == 255, stamps.reshape(720, 33, 33) >= 0.5)
    assert len({image.numpy().tobytes() for image in images}) == 6 * (10 + 20 + 40)


@pytest.mark.parametrize("antialias", [False, True])
def test_only_images_without_antialiasing_are_binary(antialias: bool) -> None:
    dataset = Dataset(source=drawn(antialias=antialias), validation=0, binarize="none", dequantize="none")
    assert dataset.binary is not antialias


def test_a_color_multiplies_the_gray_picture() -> None:
    gray, colored = (by_factors(drawn(rotations=3, positions=2, colors=colors, test=10)) for colors in (0, 6))
    for color, picture in zip(PALETTE, colored, strict=True):
        expected = gray.to(torch.float64) / 255 * torch.tensor(color)[:, None, None]
        assert (picture - expected).abs().max() < 1


def test_colors_differ_in_hue_and_chroma_but_not_in_lightness() -> None:
    """OKLab, Ottosson 2020."""
    srgb = torch.tensor(PALETTE, dtype=torch.float64) / 255
    linear = torch.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    to_lms = [[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566]]
    lms = linear @ torch.tensor([*to_lms, [0.0883024619, 0.2817188376, 0.6299787005]], dtype=torch.float64).T
    to_lab = [[0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099]]
    to_lab += [[0.0259040371, 0.7827717662, -0.8086757660]]
    lab = lms ** (1 / 3) @ torch.tensor(to_lab, dtype=torch.float64).T
    assert (lab[:, 0] - 0.72).abs().max() < 0.003
    assert torch.pdist(lab).min() > 0.13
    assert torch.pdist(lab[:3]).min() > 0.23


def digest(source: Source) -> str:
    sha256 = hashlib.sha256()
    for part in (source.train, source.test):
        assert part.factors is not None
        for tensor in (part.pixels, part.labels, part.factors):
            for rows in tensor.split(10_000):
                sha256.update(rows.numpy().tobytes())
    return sha256.hexdigest()


@pytest.mark.parametrize(
    "options, expected",
    [
        ({}, "87640ab508e64e3214e30a7acb7091151bd52f238d763091d461d3212d7d45bd"),
        (
            {"size": 64, "antialias": False, "scales": 6, "rotations": 40, "positions": 1},
            "4725d9bb94ee55b3888b7829e587b90af167fc0251cc7c414997d7bb9990390f",
        ),
        (
            {"size": 30, "scales": 1, "rotations": 7, "positions": 15, "colors": 3},
            "69bd5b53744692e71232f26d5b338a4ab4049547fbdd54473fdf9b785df55606",
        ),
    ],
)
def test_images_and_split_are_the_same_on_every_machine(options: dict[str, int], expected: str) -> None:
    assert digest(drawn(**options)) == expected


@pytest.mark.slow
def test_the_full_grid_is_the_same_on_every_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VAEX_CACHE", str(tmp_path))
    dataset = load_dataset(composed("dataset=sprites").dataset)
    for file in tmp_path.iterdir():
        file.unlink()  # still mapped; pytest would keep its 3 GB
    assert [len(part) for part in (dataset.train, dataset.validation, dataset.test)] == [717_280, 10_000, 10_000]
    assert dataset.binary
    assert digest(dataset.source) == "f9e716fd09a62007679efb9bf1ef8357f2bb4d4f84b38c3f5e878a3c9e5b7aaf"


@pytest.mark.parametrize("rotations", [7, 8, 40, 100, 360])
def test_no_cosine_is_rounded_at_a_tie(rotations: int) -> None:
    angles = 2 * np.pi * np.arange(rotations) / rotations
    for values in (np.cos(angles), np.sin(angles)):
        assert abs(ONE * values % 1 - 0.5).min() > 1e-6  # where the last digit of a machine's cosine could show


def test_the_second_time_the_file_is_mapped_and_never_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VAEX_CACHE", str(tmp_path / "new"))
    first = drawn().train.pixels.clone()
    (file,) = (tmp_path / "new").iterdir()
    content, written = file.read_bytes(), file.stat().st_mtime_ns
    again = drawn(test=50)
    assert file.stat().st_mtime_ns == written
    assert torch.equal(again.train.pixels[: len(first)], first)
    again.train.pixels.fill_(7)
    assert file.read_bytes() == content
    drawn(antialias=False)
    assert len(list((tmp_path / "new").iterdir())) == 2


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: bytes(len(b)), lambda b: b"", lambda b: b[1:] + b"0"])
def test_a_damaged_file_is_drawn_anew(
    damage: Callable[[bytes], bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VAEX_CACHE", str(tmp_path))
    first = digest(drawn())
    (file,) = tmp_path.iterdir()
    content = file.read_bytes()
    file.write_bytes(damage(content))
    assert digest(drawn()) == first
    assert file.read_bytes() == content and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("obstacle", ["folder", "disk"])
def test_where_nothing_can_be_written_it_costs_only_the_time(
    obstacle: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = digest(drawn())
    (tmp_path / "file").touch()
    monkeypatch.setenv("VAEX_CACHE", str(tmp_path / ("file/folder" if obstacle == "folder" else "full")))
    if obstacle == "disk":

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("os.replace", full)
    assert digest(drawn()) == expected
    assert not list(tmp_path.glob("full/*"))


@pytest.mark.parametrize(
    "wrong, words",
    [
        ({"size": 31}, "dataset.source.size=31: must be even"),
        ({"size": 14}, "dataset.source.size=14: must be from 16 to 128"),
        ({"size": 256}, "dataset.source.size=256: must be from 16 to 128"),
        ({"scales": 0}, "dataset.source.scales=0: must be at least 1"),
        ({"rotations": 0}, "dataset.source.rotations=0: must be at least 1"),
        ({"positions": 17}, "dataset.source.positions=17: must be from 1 to 16"),
        ({"colors": 7}, "dataset.source.colors=7: must be from 0 to 6"),
        ({"test": 768}, "dataset.source.test=768: must be from 1 to 767"),
        ({"test": 0}, "dataset.source.test=0: must be from 1 to 767"),
        ({"rotations": 200_000}, "dataset.source: 19,200,000 images of size=32 are more than 16 GiB; reduce"),
    ],
)
def test_an_option_out_of_range_is_named(wrong: dict[str, int], words: str) -> None:
    with pytest.raises(ValueError, match=f"^{words}"):
        drawn(**wrong)


def test_the_rgb_option_is_what_it_says() -> None:
    few = [
        "dataset.source.rotations=4",
        "dataset.source.positions=2",
        "dataset.source.test=10",
        "dataset.validation=10",
    ]
    dataset = load_dataset(composed("dataset=sprites_rgb", *few).dataset)
    assert dataset.image_shape == (3, 32, 32) and len(dataset.source.factors) == 6
    assert sum(len(part) for part in (dataset.train, dataset.validation, dataset.test)) == 276_480 / 10 / 16
