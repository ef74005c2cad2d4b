"""MNIST, its splits, the conversion to floats, damaged files, and the order of training images."""

import gzip
import hashlib
from pathlib import Path

import pytest
import torch
from conftest import write_idx

from vaex.data.dataset import Dataset, Images, Source, sample_binary
from vaex.data.idx import FILES, parse_idx
from vaex.data.mnist import mnist
from vaex.data.stream import IndexStream

CPU = torch.device("cpu")


def dataset(source: Source, binarize="none", dequantize="none", validation=5000) -> Dataset:
    return Dataset(source=source, validation=validation, binarize=binarize, dequantize=dequantize)


def test_split_is_of_the_known_sizes_and_loses_nothing(source: Source) -> None:
    data = dataset(source)
    assert [len(part) for part in (data.train, data.validation, data.test)] == [55_000, 5_000, 10_000]
    assert data.image_shape == (1, 28, 28) and data.classes == 10
    assert torch.equal(torch.cat([data.train.pixels, data.validation.pixels]), source.train.pixels)
    assert source.train.labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert source.train.pixels[0, 0, 5, 12] == 3  # the first gray pixel of the first five


def test_floats_are_k_over_255_exactly(source: Source) -> None:
    gray = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(dataset(source).to_float(gray), torch.arange(256) / 255)


def test_dequantized_floats_fill_their_level(source: Source) -> None:
    gray = torch.arange(256, dtype=torch.uint8).repeat(2000, 1)
    x = dataset(source, dequantize="uniform").to_float(gray) * 256 - gray
    assert 0 <= x.min() and x.max() <= 1
    assert x.mean().item() == pytest.approx(0.5, abs=0.005)
    assert x.var().item() == pytest.approx(1 / 12, abs=0.001)


def test_static_binarization_is_the_same_on_all_machines_and_for_all_splits(source: Source) -> None:
    part = Source(source.train[:3000], source.test, 10)
    data = dataset(part, binarize="static", validation=1000)
    digest = hashlib.sha256(data.test.pixels.numpy().tobytes()).hexdigest()
    assert digest == "5d9842e3c5821b2bd3326aa251657966b7be8edfe26023fe4c0e14e50dd0d702"
    assert set(data.test.pixels.unique().tolist()) == {0, 255}
    again = dataset(Source(source.train[:3000], source.test[:10], 10), binarize="static", validation=0)
    assert torch.equal(again.train.pixels[:2000], data.train.pixels)


def test_a_pixel_is_sampled_with_its_gray_as_probability() -> None:
    levels = torch.tensor([0, 1, 64, 128, 254, 255], dtype=torch.uint8)
    share = sample_binary(levels.repeat(100_000, 1), seed=3).float().mean(0) / 255
    p = levels / 255
    assert ((share - p).abs() <= 5 * (p * (1 - p) / 100_000).sqrt()).all()


def test_dynamic_binarization_samples_each_time_and_threshold_never(source: Source) -> None:
    source = Source(source.train[:100], source.test[:100], 10)
    gray = source.test.pixels
    dynamic = dataset(source, binarize="dynamic", validation=0)
    a, b = dynamic.to_float(gray), dynamic.to_float(gray)
    assert set(a.unique().tolist()) == {0.0, 1.0} and not torch.equal(a, b)
    assert torch.equal(dataset(source, binarize="threshold", validation=0).test.pixels == 255, gray / 255 >= 0.5)


def test_invalid_options_are_refused_by_name(source: Source) -> None:
    for option in ({"binarize": "hard"}, {"dequantize": "gauss"}, {"validation": 60_000}):
        with pytest.raises(ValueError, match=f"dataset.{next(iter(option))}="):
            dataset(source, **option)
    with pytest.raises(ValueError, match="dataset.dequantize=uniform"):
        dataset(source, binarize="static", dequantize="uniform")


def test_a_source_of_other_types_or_shapes_is_refused_with_what_it_gave() -> None:
    good = Images(torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64))
    for bad in (Images(good.pixels.float(), good.labels), Images(good.pixels[:, 0], good.labels), good[:2]):
        bad = Images(bad.pixels, good.labels)
        with pytest.raises(
            ValueError, match=r"dataset.source: must give pixels uint8 \[N, C, H, W\].*not pixels torch"
        ):
            dataset(Source(good, bad, 1), validation=0)


class TestFiles:
    """With eight training and four test images."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        for name, count in zip(FILES, (8, 8, 4, 4), strict=True):
            shape = (count, 28, 28) if "images" in name else (count,)
            write_idx(tmp_path / name, torch.randint(0, 10, shape, generator=torch.Generator().manual_seed(0)))
        return tmp_path

    def test_missing(self, folder: Path) -> None:
        (folder / "t10k-labels-idx1-ubyte.gz").unlink()
        with pytest.raises(FileNotFoundError, match="t10k-labels.*dataset.source.root"):
            mnist(root=str(folder))

    def test_truncated_and_corrupt(self, folder: Path) -> None:
        path = folder / "t10k-images-idx3-ubyte.gz"
        whole = path.read_bytes()
        flipped = bytearray(whole)
        flipped[len(whole) // 2] ^= 1
        for content in (whole[: len(whole) // 2], bytes(flipped), b"not gzip"):
            path.write_bytes(content)
            with pytest.raises(ValueError, match="t10k-images.*damaged"):
                mnist(root=str(folder))

    def test_files_are_decompressed_once(self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("VAEX_CACHE", str(tmp_path / "cache"))
        first = mnist(root=str(folder)).test.pixels
        files = sorted((tmp_path / "cache").iterdir(), key=lambda path: path.stat().st_size)
        assert [path.stat().st_size for path in files] == [8 + 4, 8 + 8, 16 + 4 * 784, 16 + 8 * 784]

        def fail(packed: bytes) -> bytes:
            raise AssertionError("decompressed again")

        with monkeypatch.context() as patch:
            patch.setattr("gzip.decompress", fail)
            assert torch.equal(mnist(root=str(folder)).test.pixels, first)
        damaged = bytearray(files[2].read_bytes())
        damaged[100] ^= 1
        files[2].write_bytes(damaged)
        assert torch.equal(mnist(root=str(folder)).test.pixels, first)
        monkeypatch.setenv("VAEX_CACHE", "/proc/can/not/be")
        assert torch.equal(mnist(root=str(folder)).test.pixels, first)

    def test_wrong_magic_and_short_content(self, tmp_path: Path) -> None:
        path = tmp_path / "images.gz"
        write_idx(path, torch.arange(48).view(3, 4, 4))
        content = gzip.decompress(path.read_bytes())
        assert parse_idx(content, path, dimensions=3).tolist() == torch.arange(48).view(3, 4, 4).tolist()
        with pytest.raises(ValueError, match="starts with 00000803, not 00000801: not an idx file"):
            parse_idx(content, path, dimensions=1)
        with pytest.raises(ValueError, match="holds 47 bytes, but its header announces 48"):
            parse_idx(content[:-1], path, dimensions=3)
        with pytest.raises(ValueError, match="ends inside its header"):
            parse_idx(content[:10], path, dimensions=3)

    def test_images_without_their_labels(self, folder: Path) -> None:
        write_idx(folder / "train-labels-idx1-ubyte.gz", torch.zeros(7))
        with pytest.raises(ValueError, match="train-images.*8 images, but 7 labels in .*train-labels"):
            mnist(root=str(folder))


class TestStream:
    def test_every_image_once_an_epoch_though_batches_straddle_epochs(self) -> None:
        stream = IndexStream(size=10, batch_size=4, seed=0, device=CPU)
        drawn = torch.cat([stream.batch(step) for step in range(10)])
        assert len(drawn) == 40
        for epoch in drawn.split(10):
            assert epoch.sort().values.tolist() == list(range(10))
        assert not torch.equal(drawn[:10], drawn[10:20])

    def test_it_depends_on_the_step_alone(self) -> None:
        forward = IndexStream(size=10, batch_size=4, seed=0, device=CPU)
        batches = [forward.batch(step).tolist() for step in range(8)]
        for step in (7, 2, 5):
            assert IndexStream(size=10, batch_size=4, seed=0, device=CPU).batch(step).tolist() == batches[step]
        assert IndexStream(size=10, batch_size=4, seed=1, device=CPU).batch(0).tolist() != batches[0]

    def test_a_batch_as_large_as_the_data(self) -> None:
        stream = IndexStream(size=3, batch_size=3, seed=0, device=CPU)
        assert all(sorted(stream.batch(step).tolist()) == [0, 1, 2] for step in range(4))
