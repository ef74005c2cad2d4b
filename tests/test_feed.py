"""Streamed images are the ones that would have been on the device, batch for batch."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import results

from vaex.data.dataset import Dataset, Images, Source
from vaex.data.feed import ResidentFeed, StreamedFeed, images_on_device, make_feed

CPU = torch.device("cpu")


def numbered(count: int) -> Images:
    pixels = torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 2, 3).contiguous()
    return Images(pixels, torch.arange(count) * 7)


def test_a_streamed_feed_gives_the_same_batches() -> None:
    images = numbered(23)
    whole, streamed = make_feed(images, 5, 1, CPU), make_feed(images, 5, 1, CPU, resident=False)
    assert isinstance(whole, ResidentFeed) and isinstance(streamed, StreamedFeed)
    for step in [*range(12), 40, 41, 3]:  # in order, and as a resumed run begins
        a, b = whole.index(step), streamed.index(step)
        assert (whole.images.pixels[a] == streamed.images.pixels[b]).all()
        assert (whole.images.labels[a] == streamed.images.labels[b]).all()
    streamed.close()


def test_images_mapped_from_a_file_are_read_where_they_lie(tmp_path: Path) -> None:
    np.save(tmp_path / "pixels.npy", numbered(30).pixels.numpy())
    mapped = torch.from_numpy(np.load(tmp_path / "pixels.npy", mmap_mode="c"))
    images = Images(mapped, torch.zeros(30, dtype=torch.int64))
    assert images_on_device(images, CPU, "auto").pixels.data_ptr() == mapped.data_ptr()
    source = Source(images, images, 1)
    dataset = Dataset(source=source, validation=0.1, binarize="none", dequantize="none", resident=False)
    assert dataset.train.pixels.data_ptr() == mapped.data_ptr()
    assert len(dataset.train) == 27 and len(dataset.validation) == 3


def test_a_streamed_run_is_the_resident_one_bit_for_bit(here: Callable[..., Path], tiny: list[str]) -> None:
    numbers = [
        results(here(*tiny, "steps=30", f"dataset.resident={resident}", folder=f"run-{resident}"))
        for resident in ("true", "false")
    ]
    assert all(numbers[0][name] == numbers[1][name] for name in numbers[0] if name.startswith("test/"))


@pytest.mark.parametrize("validation", [-1, 30, 1.5, float("nan")])
def test_a_split_that_is_none_is_refused(validation: float) -> None:
    source = Source(numbered(30), numbered(3), 1)
    with pytest.raises(ValueError, match="dataset.validation="):
        Dataset(source=source, validation=validation, binarize="none", dequantize="none")


@pytest.mark.gpu
def test_streaming_to_a_gpu_gives_the_same_batches() -> None:
    device = torch.device("cuda")
    images = numbered(203)
    whole, streamed = make_feed(images, 32, 1, device), make_feed(images, 32, 1, device, resident=False)
    for step in range(200):
        a, b = whole.index(step), streamed.index(step)
        assert (whole.images.pixels[a] == streamed.images.pixels[b]).all()
    streamed.close()
