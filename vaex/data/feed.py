"""The images that a training step reads: all of them on the device, or a batch at a time copied there."""

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import torch

from vaex.data.dataset import Images, Resident
from vaex.data.stream import IndexStream

SHARE = 0.5  # of a GPU's free memory that `resident=auto` fills with images


class Feed(Protocol):
    """`images` on the device, and the rows of them that make up the batch of a step."""

    images: Images

    def index(self, step: int) -> torch.Tensor:
        """Rows of `images` for a step counted from 0: int64 [B] on the device."""

    def close(self) -> None:
        """Free the feed's resources; `index` is not called again."""


def images_on_device(images: Images, device: torch.device, resident: Resident) -> Images:
    """Copy the images to the device if `resident` is True, or if it is `auto` and they fit; else return them unchanged.

    On a CPU nothing is copied: images mapped from a file are read from the map.
    """
    if resident == "auto":
        resident = device.type != "cuda" or images.pixels.numel() <= SHARE * torch.cuda.mem_get_info(device)[0]
    return images.to(device) if resident else images


def make_feed(
    images: Images, batch_size: int, seed: int, device: torch.device, resident: Resident = "auto"
) -> "ResidentFeed | StreamedFeed":
    """A feed of shuffled batches. The batches are the same whether the images are resident or streamed."""
    on_device = images_on_device(images, device, resident)
    if resident is False or on_device.pixels.device.type != device.type:
        return StreamedFeed(images, batch_size, seed, device)
    return ResidentFeed(on_device, batch_size, seed)


class ResidentFeed:
    """All images are on the device."""

    def __init__(self, images: Images, batch_size: int, seed: int) -> None:
        self.images = images
        self.stream = IndexStream(len(images), batch_size, seed, images.pixels.device)

    def index(self, step: int) -> torch.Tensor:
        return self.stream.batch(step)

    def close(self) -> None:
        pass


class StreamedFeed:
    """One batch of images is on the device; a thread gathers the next one in pinned memory meanwhile.

    There are two host buffers, so that the thread fills one while the other is still being copied to the device.
    """

    def __init__(self, images: Images, batch_size: int, seed: int, device: torch.device) -> None:
        self.source = images
        self.stream = IndexStream(len(images), batch_size, seed, torch.device("cpu"))
        pinned = device.type == "cuda"
        batch = images[:batch_size]
        self.images = Images(
            torch.empty_like(batch.pixels, device=device), torch.empty_like(batch.labels, device=device)
        )
        self._buffers = [
            Images(*(torch.empty_like(part, pin_memory=pinned) for part in (batch.pixels, batch.labels)))
            for _ in range(2)
        ]
        self._copied = [torch.cuda.Event() if pinned else None for _ in range(2)]  # type: ignore[no-untyped-call]
        self._all_rows = torch.arange(batch_size, device=device)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="vaex-feed")
        self._next: tuple[int, Future[None]] | None = None

    def index(self, step: int) -> torch.Tensor:
        """Copy the batch of the step into `images` and return all of its rows."""
        if self._next is None or self._next[0] != step:
            self._prefetch(step)
        assert self._next is not None
        self._next[1].result()
        buffer, copied = self._buffers[step % 2], self._copied[step % 2]
        self.images.pixels.copy_(buffer.pixels, non_blocking=True)
        self.images.labels.copy_(buffer.labels, non_blocking=True)
        if copied is not None:
            copied.record()
        self._prefetch(step + 1)
        return self._all_rows

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _prefetch(self, step: int) -> None:
        self._next = (step, self._pool.submit(self._fill, self.stream.batch(step), step % 2))

    def _fill(self, rows: torch.Tensor, slot: int) -> None:
        copied = self._copied[slot]
        if copied is not None:
            copied.synchronize()
        buffer = self._buffers[slot]
        torch.index_select(self.source.pixels, 0, rows, out=buffer.pixels)
        torch.index_select(self.source.labels, 0, rows, out=buffer.labels)
