"""Compose configs with Hydra, and read its command line.

Hydra offers no public function that takes a list of arguments and runs a job or a sweep, so this module, with
vaex.sweeps and vaex.commands.train, calls the classes behind `hydra.main`. Nothing here reads or changes `sys.argv`.
"""

import os
import re
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from hydra import version
from hydra._internal.callbacks import Callbacks
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobStatus, configure_log
from hydra.core.utils import run_job as hydra_run_job
from hydra.errors import HydraException
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from vaex.config.errors import explain
from vaex.config.overrides import find_mistake, without_plus
from vaex.config.schema import config_dir
from vaex.errors import REMEDIES, UserError

CONFIG_NAME = "train"  # conf/train.yaml


def parse_arguments(arguments: Sequence[str]) -> Namespace:
    """Hydra's flags, and the overrides under `overrides`.

    Refuses what Hydra does not know, and every argument that would have Hydra itself run code that the argument names;
    vaex.config.targets guards what vaex runs.

    Raises:
        UserError: naming the argument.
    """

    def fail(message: str) -> NoReturn:
        raise UserError(f"{message}; `vaex train --hydra-help` lists the flags")

    parser = get_args_parser()
    parser.error = fail  # type: ignore[method-assign]
    flags, unknown = parser.parse_known_args(list(arguments))
    for argument in unknown:
        if argument.startswith("-"):
            raise UserError(f"{argument}: no such flag; `vaex train --help` lists groups and values")
        raise UserError(f"{argument}: stands apart from the other overrides; put flags such as -m before all of them")
    if flags.experimental_rerun:
        raise UserError("--experimental-rerun: reads a pickle, which can run anything; resume a run by resume=FOLDER")
    if flags.multirun and (flags.cfg or flags.info):
        raise UserError("-m: runs many configs, but --cfg and --info print one; leave out either")
    if sum(map(bool, (flags.run, flags.multirun, flags.cfg, flags.info, flags.shell_completion))) > 1:
        raise UserError("give only one of --run, --multirun, --cfg, --info and --shell-completion")
    if flags.resolve and not flags.cfg:
        raise UserError("--resolve: resolves the config that --cfg prints; add --cfg job, or leave it out")
    for override in flags.overrides:
        names_code = re.match(
            r"[+~]*hydra(=|\.(callbacks|job_logging|hydra_logging)\b|.*(?<!\w)_target_(?!\w))", override
        )
        if names_code and not re.search(r"\.level=\w+$", override):
            raise UserError(
                f"{override}: can name code for Hydra to run; if you trust it, write it as an option of a --config-dir "
                "folder, such as FOLDER/hydra/callbacks/mine.yaml, and choose that"
            )
    flags.overrides = without_plus(flags.overrides)
    flags.config_name = flags.config_name or CONFIG_NAME
    return flags


def create_hydra(folders: Iterable[str | Path] = (), config_path: str | None = None) -> Hydra:
    """Hydra over the YAML files of vaex, or of `config_path` in their place, and those of further folders.

    Raises:
        UserError: a folder does not exist.
    """
    version.setbase("1.3")
    if config_path and not config_path.startswith("pkg://"):
        config_path = str(Path(config_path).absolute())
    search_path = create_config_search_path(config_path or str(config_dir()))
    for folder in folders:
        if not Path(folder).is_dir():
            raise UserError(f"--config-dir={folder}: no such folder")
        before = SearchPathQuery(provider="schema")
        search_path.prepend("command-line", f"file://{Path(folder).absolute()}", anchor=before)
    return Hydra(task_name="vaex", config_loader=ConfigLoaderImpl(config_search_path=search_path))


def hydra_of(flags: Namespace) -> Hydra:
    """Hydra with the folders that the command line names."""
    return create_hydra([flags.config_dir] if flags.config_dir else [], flags.config_path)


def compose(
    hydra: Hydra, overrides: Sequence[str], mode: RunMode = RunMode.RUN, config_name: str = CONFIG_NAME
) -> DictConfig:
    """Compose a config, with Hydra's own node under `hydra`, and let `${hydra:…}` refer to it.

    Raises:
        UserError: naming the override that is wrong.
    """
    with one_line_errors(hydra.config_loader, overrides, mode, config_name):
        composed = hydra.compose_config(config_name, list(overrides), mode)
    if mode == RunMode.RUN and composed.hydra.mode == RunMode.MULTIRUN:
        raise UserError("hydra.mode=MULTIRUN: give -m on the command line for a sweep")
    for key, name in (("output_subdir", composed.hydra.output_subdir), ("job.name", composed.hydra.job.name)):
        if name and (Path(name).is_absolute() or ".." in Path(name).parts):
            raise UserError(f"hydra.{key}={name}: leads out of the folder of the run; give a name inside it")
    composed.hydra.mode = mode
    HydraConfig.instance().set_config(composed)
    return composed


def run_job(hydra: Hydra, composed: DictConfig, task: Callable[[DictConfig], Any]) -> None:
    """Call `task` in the folder `hydra.run.dir`, with Hydra's logging, its copy of the config, and its callbacks.

    Raises:
        UserError: the log cannot be set up. Other errors are those of `task`.
    """
    callbacks = Callbacks(composed)
    name = composed.hydra.job.config_name
    try:
        configure_log(composed.hydra.hydra_logging, composed.hydra.verbose)
        callbacks.on_run_start(config=composed, config_name=name)
        result = hydra_run_job(
            hydra_context=HydraContext(config_loader=hydra.config_loader, callbacks=callbacks),
            task_function=task,
            config=composed,
            job_dir_key="hydra.run.dir",
            job_subdir_key=None,
        )
    except (ValueError, OSError, OmegaConfBaseException) as error:
        reason = str(error).partition("\n")[0] + (f" ({error.__cause__})" if error.__cause__ else "")
        cause, remedy = error.__cause__ or error, "choose hydra/job_logging=default or none"
        if isinstance(cause, OSError):
            remedy = REMEDIES.get(cause.errno, "fix the cause")
        raise UserError(f"hydra.run.dir={composed.hydra.run.dir}: {reason}; {remedy}") from error
    callbacks.on_run_end(config=composed, config_name=name, job_return=result)
    if result.status == JobStatus.FAILED:  # result.return_value would print lines of its own before it raises
        raise result._return_value


def print_information(flags: Namespace) -> None:
    """Print the composed config (--cfg), information about Hydra (--info, --hydra-help), or shell completion.

    Raises:
        UserError: as `compose`.
    """
    if "COMP_LINE" in os.environ:  # Hydra completes commands that have no verb
        os.environ["COMP_LINE"] = os.environ["COMP_LINE"].replace(" train ", " ", 1)
    hydra, name = hydra_of(flags), flags.config_name
    with one_line_errors(hydra.config_loader, flags.overrides, config_name=name):
        if flags.hydra_help:
            hydra.hydra_help(name, get_args_parser(), flags)
        elif flags.cfg:
            hydra.show_cfg(name, flags.overrides, flags.cfg, flags.package, flags.resolve)
        elif flags.shell_completion:
            hydra.shell_completion(name, flags.overrides)
        else:
            hydra.show_info(flags.info, name, flags.overrides)


@contextmanager
def one_line_errors(
    loader: ConfigLoader, overrides: Sequence[str], mode: RunMode = RunMode.RUN, config_name: str = CONFIG_NAME
) -> Iterator[None]:
    """Turn an error of composing into a UserError that names the wrong override, or else quotes Hydra's message."""
    try:
        yield
    except (HydraException, OmegaConfBaseException, YAMLError, ValueError) as error:
        message = find_mistake(loader, config_name, overrides, mode)
        raise UserError(message or _summary(error)) from error


def _summary(error: BaseException) -> str:
    for cause in (error, error.__cause__):
        if isinstance(cause, OmegaConfBaseException):
            return explain(cause)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return "; ".join(lines[:3]) or type(error).__name__
