"""The datasets of the runs that a command works on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vaex.errors import UserError

if TYPE_CHECKING:
    from vaex.config.schema import Config
    from vaex.data.dataset import Dataset


class LatestDataset:
    """Keeps the dataset of the latest run, because the next run of a sweep mostly has the same.

    Args:
        data: the option --data, where the images are now; None for the path in each run's config.
    """

    def __init__(self, data: Path | None = None) -> None:
        self._data = data
        self._group: dict[str, Any] | None = None
        self._dataset: Dataset | None = None

    def of(self, run: Path) -> tuple[Config, dict[str, Any], Dataset]:
        """The run's config, the facts recorded with it, and its dataset.

        Raises:
            UserError: there is no run, its data can't be loaded, or the test images are not those of the run.
        """
        from vaex.build import load_config, load_dataset
        from vaex.config.schema import with_data
        from vaex.data.dataset import changed_splits
        from vaex.evaluation.comparison import recorded_identity
        from vaex.runs.folder import RESULTS, RunFolder

        config, recorded = load_config(run)
        if self._data:
            config = with_data(config, self._data)
        if self._dataset is None or config.dataset != self._group:
            self._dataset, self._group = load_dataset(config.dataset, run), config.dataset
        shape = list(self._dataset.image_shape)
        if shape != list(recorded["image_shape"]):
            raise UserError(f"{run}: trained on images of {recorded['image_shape']}, and its dataset now has {shape}")
        before = recorded_identity(RunFolder(run).read_results())
        if changes := changed_splits(before, self._dataset.identity("test")):
            raise UserError(
                f"{run}: its dataset{_place(config)} is not the one of its results: {changes}. Restore the images, or "
                f"say where they are with --data PATH; to use these all the same, remove {run / RESULTS}"
            )
        return config, recorded, self._dataset


def _place(config: Config) -> str:
    root = config.dataset.get("source", {}).get("root")
    return f" in {root}" if root else ""
