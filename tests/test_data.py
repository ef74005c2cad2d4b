"""The embedded digits, their split, what makes floats of them, and files that are not what they say."""

import gzip
import hashlib
from pathlib import Path

import pytest
import torch
from conftest import write_idx

from vaex.data.dataset import Dataset, Source, sample_binary
from vaex.data.mnist import EMBEDDED, mnist, read_idx
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
    assert source.train.pixels[0, 0, 5, 12] == 3  # the first grey pixel of the first five


def test_floats_are_k_over_255_exactly(source: Source) -> None:
    grey = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(dataset(source).to_float(grey), torch.arange(256) / 255)


def test_dequantised_floats_fill_their_level(source: Source) -> None:
    grey = torch.arange(256, dtype=torch.uint8).repeat(2000, 1)
    x = dataset(source, dequantize="uniform").to_float(grey) * 256 - grey
    assert 0 <= x.min() and x.max() <= 1
    assert x.mean().item() == pytest.approx(0.5, abs=0.005)
    assert x.var().item() == pytest.approx(1 / 12, abs=0.001)


def test_static_binarisation_is_one_draw_for_all_machines(source: Source) -> None:
    data = dataset(source, binarize="static")
    digest = hashlib.sha256(data.test.pixels.numpy().tobytes()).hexdigest()
    assert digest == "5d9842e3c5821b2bd3326aa251657966b7be8edfe26023fe4c0e14e50dd0d702"
    assert set(data.test.pixels.unique().tolist()) == {0, 255}
    again = dataset(source, binarize="static", validation=0)
    assert torch.equal(again.train.pixels[:55_000], data.train.pixels)


def test_a_pixel_is_drawn_with_its_grey_as_probability() -> None:
    levels = torch.tensor([0, 1, 64, 128, 254, 255], dtype=torch.uint8)
    drawn = sample_binary(levels.repeat(200_000, 1), seed=3).float().mean(0) / 255
    p = levels / 255
    assert ((drawn - p).abs() <= 5 * (p * (1 - p) / 200_000).sqrt()).all()


def test_dynamic_binarisation_draws_anew_and_threshold_does_not(source: Source) -> None:
    grey = source.test.pixels[:100]
    dynamic = dataset(source, binarize="dynamic")
    a, b = dynamic.to_float(grey), dynamic.to_float(grey)
    assert set(a.unique().tolist()) == {0.0, 1.0} and not torch.equal(a, b)
    assert torch.equal(dataset(source, binarize="threshold").test.pixels[:100] == 255, grey / 255 >= 0.5)


@pytest.mark.parametrize("option", [{"binarize": "hard"}, {"dequantize": "gauss"}, {"validation": 60_000}])
def test_options_that_make_no_sense_are_refused_by_name(source: Source, option: dict) -> None:
    with pytest.raises(ValueError, match=f"dataset.{next(iter(option))}="):
        dataset(source, **option)
    with pytest.raises(ValueError, match="dataset.dequantize=uniform"):
        dataset(source, binarize="static", dequantize="uniform")


class TestFiles:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        for path in EMBEDDED.glob("*.gz"):
            (tmp_path / path.name).write_bytes(path.read_bytes())
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
        assert [path.stat().st_size for path in files] == [10_008, 60_008, 7_840_016, 47_040_016]

        def fail(packed: bytes) -> bytes:
            raise AssertionError("decompressed again")

        with monkeypatch.context() as patch:
            patch.setattr("gzip.decompress", fail)
            assert torch.equal(mnist(root=str(folder)).test.pixels, first)
        damaged = bytearray(files[2].read_bytes())
        damaged[1000] ^= 1
        files[2].write_bytes(damaged)
        assert torch.equal(mnist(root=str(folder)).test.pixels, first)
        monkeypatch.setenv("VAEX_CACHE", "/proc/can/not/be")
        assert torch.equal(mnist(root=str(folder)).test.pixels, first)

    def test_wrong_magic_and_short_content(self, tmp_path: Path) -> None:
        path = tmp_path / "images.gz"
        write_idx(path, torch.zeros(3, 4, 4))
        with pytest.raises(ValueError, match="not an idx file"):
            read_idx(path, dimensions=1)
        path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-1]))
        with pytest.raises(ValueError, match="holds 47 bytes, but its header announces 48"):
            read_idx(path, dimensions=3)

    def test_images_without_their_labels(self, folder: Path) -> None:
        write_idx(folder / "train-labels-idx1-ubyte.gz", torch.zeros(7))
        with pytest.raises(ValueError, match="60000 train images but 7 labels"):
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
