"""Runs as arguments of a verb: which folders are meant, what they are called, and their data. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vaex.errors import UserError

if TYPE_CHECKING:
    from vaex.config.schema import Config
    from vaex.data.dataset import Dataset


def find_runs(paths: Iterable[Path]) -> tuple[list[Path], list[Path]]:
    """Folders of runs, each once; and those inside a sweep that have a config but no weights.

    Raises:
        UserError: a path that is no run and holds none.
    """
    from vaex.runs.folder import CONFIG, WEIGHTS  # with which OmegaConf is imported

    found: dict[Path, Path] = {}
    skipped: dict[Path, Path] = {}
    for path in paths:
        if not path.is_dir():
            raise UserError(
                f"{path}: no such folder; give the folder of a run or of a sweep, as `vaex train` printed it"
            )
        inside = [path] if (path / CONFIG).is_file() else sorted(file.parent for file in path.rglob(CONFIG))
        inside = [folder for folder in inside if folder.name != ".hydra"]  # what Hydra composed, not a run
        whole = [folder for folder in inside if (folder / WEIGHTS).is_file()]
        if not whole:
            raise UserError(
                f"{path}: no completed run there, with {CONFIG} and {WEIGHTS}; give the folder of one, or of a sweep"
            )
        found |= {folder.resolve(): folder for folder in whole}
        skipped |= {folder.resolve(): folder for folder in inside if folder not in whole}
    return sorted(found.values(), key=_natural), sorted(skipped.values(), key=_natural)


def _natural(path: Path) -> list[tuple[int, str]]:
    """Jobs 2 and 10 of a sweep in that order."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in path.parts]


def short_names(runs: list[Path]) -> list[str]:
    """Each run's path from where they all are; a single one's from here."""
    paths = [os.path.relpath(run) for run in runs]
    if len(paths) == 1:
        return paths
    shared = os.path.commonpath(paths)
    return [os.path.relpath(path, shared) for path in paths]


class LatestDataset:
    """Runs of a sweep mostly share their data: it is read again only when the next run has other data."""

    def __init__(self) -> None:
        self._group: dict[str, Any] | None = None
        self._dataset: Dataset | None = None

    def of(self, run: Path) -> tuple[Config, dict[str, Any], Dataset]:
        """The run's config, what was recorded with it, and its dataset.

        Raises:
            UserError: there is no run, its data can't be had, or they are no longer of the size they were.
        """
        from vaex.build import load_config, load_dataset

        config, recorded = load_config(run)
        if self._dataset is None or config.dataset != self._group:
            self._dataset, self._group = load_dataset(config.dataset), config.dataset
        shape = list(self._dataset.image_shape)
        if shape != list(recorded["image_shape"]):
            raise UserError(f"{run}: trained on images of {recorded['image_shape']}, and its dataset now has {shape}")
        return config, recorded, self._dataset
