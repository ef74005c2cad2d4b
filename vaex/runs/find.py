"""Finding the runs that the arguments of a command name, and short names for them. Imports no torch."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from vaex.errors import UserError


def run_folders(paths: Iterable[Path]) -> list[Path]:
    """Every run folder in the paths, each once, with jobs 2 and 10 in that order.

    Raises:
        UserError: a path does not exist or contains no run.
    """
    return _search(paths, lambda folder: True, "no run there, with {config} or {status}")


def find_runs(paths: Iterable[Path]) -> tuple[list[Path], list[Path]]:
    """The run folders in the paths that have weights, and those that have none.

    Raises:
        UserError: a path does not exist or contains no run with weights.
    """
    from vaex.runs.folder import CONFIG, WEIGHTS  # imports OmegaConf

    def completed(folder: Path) -> bool:
        return (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file()

    paths = list(paths)
    runs = _search(paths, completed, "no completed run there, with {config} and {weights}")
    return runs, [folder for folder in run_folders(paths) if folder not in runs]


def short_names(runs: list[Path]) -> list[str]:
    """The path of each run from the folder that contains them all; a single run's from the working directory."""
    paths = [os.path.relpath(run) for run in runs]
    if len(paths) == 1:
        return paths
    shared = os.path.commonpath(paths)
    return [os.path.relpath(path, shared) for path in paths]


def _search(paths: Iterable[Path], wanted: Callable[[Path], bool], problem: str) -> list[Path]:
    from vaex.runs.folder import CONFIG, STATUS, WEIGHTS

    folders: dict[Path, Path] = {}  # resolved -> as found from the argument
    for path in paths:
        if not path.is_dir():
            raise UserError(f"{path}: no such folder; give the folder of a run or a sweep, as `vaex train` printed it")
        runs = [folder for folder in _walk(path, {CONFIG, STATUS}) if wanted(folder)]
        if not runs:
            reason = problem.format(config=CONFIG, status=STATUS, weights=WEIGHTS)
            raise UserError(f"{path}: {reason}; give the folder of a run or a sweep")
        for folder in runs:
            folders.setdefault(folder.resolve(), folder)
    return sorted(folders.values(), key=_natural_order)


def _walk(path: Path, names: set[str]) -> Iterator[Path]:
    """Folders with one of the files; those inside such a folder belong to its run."""
    for folder, inside, files in os.walk(path):
        if names & set(files):
            yield Path(folder)
            inside.clear()
        else:
            inside[:] = [name for name in inside if name != ".hydra"]  # has Hydra's own config.yaml


def _natural_order(path: Path) -> list[tuple[float, str]]:
    """Sort by the value of numbers in the path, not by their digits."""
    parts = re.split(r"(\d+(?:\.\d+)?)", str(path))
    return [(float(part), "") if n % 2 else (-1.0, part) for n, part in enumerate(parts)]
