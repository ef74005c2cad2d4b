"""The datasets of the runs that a command works on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vaex.errors import UserError

if TYPE_CHECKING:
    from vaex.config.schema import Config
    from vaex.data.dataset import Dataset


class LatestDataset:
    """Keeps the dataset of the latest run, because the next run of a sweep mostly has the same."""

    def __init__(self) -> None:
        self._group: dict[str, Any] | None = None
        self._dataset: Dataset | None = None

    def of(self, run: Path) -> tuple[Config, dict[str, Any], Dataset]:
        """The run's config, the facts recorded with it, and its dataset.

        Raises:
            UserError: there is no run, its data can't be loaded, or the images no longer have their recorded shape.
        """
        from vaex.build import load_config, load_dataset

        config, recorded = load_config(run)
        if self._dataset is None or config.dataset != self._group:
            self._dataset, self._group = load_dataset(config.dataset), config.dataset
        shape = list(self._dataset.image_shape)
        if shape != list(recorded["image_shape"]):
            raise UserError(f"{run}: trained on images of {recorded['image_shape']}, and its dataset now has {shape}")
        return config, recorded, self._dataset
