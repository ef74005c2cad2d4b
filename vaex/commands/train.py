"""`vaex train`: one run, a resumed run, a sweep, or what Hydra's flags print."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

from vaex.config.help import train_help
from vaex.errors import UserError
from vaex.training.torchrun import process_arguments, rank


def main(arguments: list[str]) -> None:
    """Compose the config with Hydra, and train.

    Raises:
        UserError: an argument is wrong, or the run cannot be trained.
        Interrupted: a signal asked the run or the sweep to stop.
    """
    if {"--help", "-h"} & set(arguments):
        print(train_help(arguments))
        return
    from vaex.config.compose import parse_arguments, print_information
    from vaex.config.overrides import expand_data

    arguments = expand_data(process_arguments(arguments))
    flags = parse_arguments(arguments)
    if flags.cfg or flags.info or flags.shell_completion or flags.hydra_help:
        print_information(flags)
    elif flags.multirun or any(override.startswith("sweep=") for override in flags.overrides):
        from vaex.sweeps.multirun import sweep

        sweep(arguments)
    else:
        _run(flags)


def _run(flags: Namespace) -> None:
    from omegaconf import read_write

    from vaex.config.compose import compose, hydra_of, run_job
    from vaex.config.overrides import folder_of, with_text
    from vaex.config.schema import check, resume_config
    from vaex.runs.folder import CONFIG, RunFolder
    from vaex.sweeps.job import relative, train_in

    resumes = [override for override in flags.overrides if override.startswith("resume=")]
    overrides = [
        with_text("hydra.run.dir", str(folder_of(override)))
        if override.startswith("hydra.run.dir=") and "${" not in override
        else override
        for override in flags.overrides
        if override not in resumes
    ]
    hydra = hydra_of(flags)
    composed = compose(hydra, overrides, config_name=flags.config_name)
    recorded: dict[str, Any] | None = None
    folder: RunFolder | None = None  # in every process but rank 0
    if resumes and resumes[-1] != "resume=null":
        path = folder_of(resumes[-1]).absolute()
        if not (path / CONFIG).is_file():
            raise UserError(f"resume={path}: has no {CONFIG}; give the folder of a run, as `vaex train` printed it")
        with read_write(composed.hydra):  # nothing of Hydra's in the folder is replaced
            composed.resume, composed.hydra.run.dir, composed.hydra.output_subdir = str(path), str(path), None
        path = path if composed.hydra.job.chdir else relative(path)
        saved, recorded = RunFolder.reopen(path).read_config()
        config, folder = resume_config(check(composed), saved, overrides), RunFolder(path)
    else:
        config = check(composed)
        path = Path(composed.hydra.run.dir).absolute()
        path = path if composed.hydra.job.chdir else relative(path)
        folder = RunFolder.claim(path) if rank() == 0 else None
    try:
        run_job(hydra, composed, lambda _: train_in(folder, config, composed.hydra, recorded))
    except UserError:
        if not recorded and folder:
            folder.discard()
        raise
