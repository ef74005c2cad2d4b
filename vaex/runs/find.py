"""Find the runs that the arguments of a command name, and give them short names. Imports no torch."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from vaex.errors import UserError, printable


def run_folders(paths: Iterable[Path], *, completed: bool = False) -> list[Path]:
    """The run folders in the paths, each once, with job 2 before job 10.

    Args:
        completed: return only runs that have weights.

    Raises:
        UserError: a path does not exist or contains no such run.
    """
    from vaex.runs.folder import CONFIG, STATUS, WEIGHTS  # imports OmegaConf

    folders: dict[Path, Path] = {}  # resolved path -> path that starts with the argument
    for path in paths:
        if not path.is_dir():
            raise UserError(f"{path}: no such folder; give the folder of a run or a sweep, as `vaex train` printed it")
        runs = list(_walk(path, {CONFIG, STATUS}))
        missing = f"contains no run, with {CONFIG} or {STATUS}"
        if completed:
            runs = [run for run in runs if (run / CONFIG).is_file() and (run / WEIGHTS).is_file()]
            missing = f"contains no completed run, with {CONFIG} and {WEIGHTS}"
        if not runs:
            raise UserError(f"{path}: {missing}; give the folder of a run or a sweep")
        folders = {run.resolve(): run for run in runs} | folders
    return sorted(folders.values(), key=_natural_order)


def find_runs(paths: list[Path]) -> tuple[list[Path], list[Path]]:
    """The run folders in the paths that have weights, and those that have none.

    Raises:
        UserError: a path does not exist or contains no run with weights.
    """
    completed = run_folders(paths, completed=True)
    return completed, [folder for folder in run_folders(paths) if folder not in completed]


def short_names(runs: list[Path]) -> list[str]:
    """The path of each run from the folder that contains them all; a single run's from the working directory.

    Control characters are escaped.
    """
    paths = [os.path.relpath(run) for run in runs]
    shared = os.path.commonpath(paths) if len(paths) > 1 else "."
    return [printable(os.path.relpath(path, shared)) for path in paths]


def _walk(path: Path, names: set[str]) -> Iterator[Path]:
    """Folders that contain one of the files. Folders inside such a folder belong to the same run."""
    for folder, subfolders, files in os.walk(path):
        if names & set(files):
            yield Path(folder)
            subfolders.clear()
        else:
            subfolders[:] = [name for name in subfolders if name != ".hydra"]  # contains Hydra's own config.yaml


def _natural_order(path: Path) -> list[tuple[float, str]]:
    """A key that sorts numbers in the path by their values, not by their digits."""
    parts = re.split(r"(\d+(?:\.\d+)?)", str(path))
    return [(float(part), "") if n % 2 else (-1.0, part) for n, part in enumerate(parts)]
