"""`vaex train -m`: compose the sweep, have its jobs run by a launcher, and report what became of them."""

import os
import shlex
import signal
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from hydra._internal.callbacks import Callbacks
from hydra.core.plugins import Plugins
from hydra.core.utils import configure_log
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig

from vaex.config.compose import compose, hydra_of
from vaex.config.identity import is_incidental
from vaex.config.overrides import parse_overrides, with_text
from vaex.config.schema import DATA
from vaex.errors import Interrupted, UserError, first_line, one_line
from vaex.runs.reading import parse_yaml
from vaex.sweeps.command import Command, read_command
from vaex.sweeps.folder import JobState, SweepFolder, announce
from vaex.sweeps.job import sweep_job
from vaex.sweeps.plan import constant_values, key_of, planning_config, swept_keys
from vaex.sweeps.stopping import stop_runs_on_signals
from vaex.sweeps.watch import Watch
from vaex.text_table import text_table

RUNS_HERE = ("basic", "joblib_local")  # launchers of other packages that run jobs in this process or in its children


def sweep(arguments: Sequence[str]) -> None:
    """Run or resume a sweep.

    Args:
        arguments: of `vaex train`, with -m.

    Raises:
        UserError: the command is wrong; or not all jobs are complete at the end.
        Interrupted: a signal asked the sweep to stop.
    """
    command, folder = read_command(arguments)
    earlier = folder.read()
    if earlier and all(key_of(value) == DATA for value in command.values):
        command = command.with_stored_values(folder, earlier["arguments"])
    parsed = parse_overrides(command.overrides)
    constant = constant_values(parsed)
    if earlier:
        _check_same(folder, earlier["constant"], constant)

    hydra = hydra_of(command.flags)
    overrides = [*command.overrides, with_text("hydra.sweep.dir", str(folder.path))]
    config = compose(hydra, overrides, RunMode.MULTIRUN, command.flags.config_name)
    choices = config.hydra.runtime.choices
    _check_installed(config)
    if choices["hydra/launcher"].endswith("_local"):
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # runs side by side would wait for each other's threads
    _register_plugins()
    context = HydraContext(config_loader=hydra.config_loader, callbacks=Callbacks(config))

    with folder.lock():
        folder.write(command.arguments, constant, folder.read().get("jobs", []))  # another command may have added some
        launcher = choices["hydra/launcher"]
        stopping = stop_runs_on_signals(launcher) if launcher in RUNS_HERE else nullcontext()
        with _report(folder, command), Watch(folder), stopping:
            configure_log(config.hydra.hydra_logging, config.hydra.verbose)
            context.callbacks.on_multirun_start(config=config, config_name=command.flags.config_name)
            sweeper = Plugins.instance().instantiate_sweeper(
                hydra_context=context, task_function=sweep_job, config=planning_config(config, constant)
            )
            if choices["hydra/sweeper"] != "grid":  # which announces its jobs itself
                announce(folder.path, " × ".join(swept_keys(parsed)) or "a search")
            sweeper.sweep(arguments=list(config.hydra.overrides.task))
            context.callbacks.on_multirun_end(config=config, config_name=command.flags.config_name)
        _check_complete(folder, command)


def _check_same(folder: SweepFolder, earlier: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Raises UserError if a value that all jobs share has changed."""
    for key in {**earlier, **now}:
        if earlier.get(key) != now.get(key) and not is_incidental(key) and not key.startswith("hydra"):
            first = f"{key}={earlier[key]}" if key in earlier else f"no {key}"
            raise UserError(
                f"sweep={folder.path}: began with {first}; give the same, or start another sweep without sweep="
            )


def _check_installed(config: DictConfig) -> None:
    """Raises UserError if the launcher or the sweeper is a plugin that is not installed."""
    for part in ("launcher", "sweeper"):
        package = config.hydra[part]["_target_"].split(".")[1]  # such as hydra_plugins.hydra_joblib_launcher.…
        if package.startswith("hydra_") and not find_spec(f"hydra_plugins.{package}"):
            extra = package.removeprefix("hydra_").removesuffix(f"_{part}")
            raise UserError(f"hydra/{part}: needs {extra}; pip install 'vaex-autoencoders[{extra}]'")


def _register_plugins() -> None:
    """Add the sweepers and launchers of vaex to Hydra, which would look for them only where packages are installed."""
    plugins = str(Path(__file__).parent / "plugins")
    if plugins not in sys.path:
        sys.path.append(plugins)
    for plugin in import_module("hydra_plugins.vaex_sweeps").PLUGINS:
        Plugins.instance().register(plugin)


@contextmanager
def _report(folder: SweepFolder, command: Command) -> Iterator[None]:
    """Print what became of the jobs, however the sweep ends; remove the folder of a sweep that has no job."""
    resume = command.resume_text(folder)
    try:
        yield
    except Interrupted as interrupted:
        _print_report(folder)
        raise Interrupted(interrupted.signal_number, f"{interrupted}; resume it with {resume}") from None
    except KeyboardInterrupt:  # from a launcher of another package
        _print_report(folder)
        raise Interrupted(signal.SIGINT, f"the sweep was stopped; resume it with {resume}") from None
    except Exception as error:
        if not folder.names():
            folder.discard()
            raise
        if isinstance(error, UserError):
            raise
        _print_report(folder)  # the launcher gave up, as some do when a process is killed
        first = first_line(error)
        raise UserError(f"{first}; {resume} runs the jobs that are not complete") from error
    _print_report(folder)


def jobs_table(jobs: Sequence[JobState]) -> str:
    """A table with a line for each job, and below it the errors."""
    if not jobs:
        return "no jobs"
    titles = list(dict.fromkeys(title for job in jobs for title in job.numbers()))
    rows = [[job.name, job.status, *(job.numbers().get(title) for title in titles)] for job in jobs]
    lines = text_table(["job", "status", *titles], rows, left={0, 1}, indent="", gap=2, missing="")
    errors = [
        (one_line(job.name), one_line(job.error.splitlines()[0]))
        for job in jobs
        if job.error and job.status != "completed"
    ]
    return "\n".join([*lines, *(f"! {name}: {error}" for name, error in errors)])


def _print_report(folder: SweepFolder) -> None:
    path = shlex.quote(str(folder.path))
    print(f"\n{jobs_table(folder.jobs())}\n")
    search = folder.path / "optimization_results.yaml"  # written by Optuna
    with suppress(OSError, ValueError):
        match parse_yaml(search.read_text(encoding="utf-8")):
            case {"best_params": {**best}, "best_value": float(elbo)}:
                values = " ".join(f"{key}={value}" for key, value in best.items())
                print(f"{'best':>15}  {one_line(values)}: a validation ELBO of {elbo:.2f} nats")
    print(f"{'report':>15}  vaex report {path}")
    print(f"{'full evaluation':>15}  vaex eval {path}")
    print(f"{'TensorBoard':>15}  tensorboard --logdir {path} --host 127.0.0.1")


def _check_complete(folder: SweepFolder, command: Command) -> None:
    counts = Counter(job.status for job in folder.jobs())
    incomplete = ", ".join(f"{count} {status}" for status, count in counts.items() if status != "completed")
    if incomplete:
        remedy = f"{command.resume_text(folder)} runs the jobs that are not complete"
        raise UserError(f"of {counts.total()} jobs {incomplete}; {remedy}")
