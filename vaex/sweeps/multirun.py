"""`vaex train -m`: what was asked for, the jobs by whichever launcher, and what became of them."""

import os
import re
import shlex
import signal
import sys
from collections import Counter
from datetime import datetime
from importlib import import_module
from pathlib import Path

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.plugins import Plugins
from omegaconf import OmegaConf

from vaex.commands.train import job
from vaex.config.schema import ELSEWHERE, ELSEWHERE_IN_TRAINER, config_dir
from vaex.errors import Interrupted, UserError
from vaex.sweeps.folder import SweepFolder
from vaex.sweeps.grid import announce, swept_keys
from vaex.sweeps.table import text
from vaex.sweeps.watch import Watch

MAY_DIFFER = (*ELSEWHERE, *(f"trainer.{key}" for key in ELSEWHERE_IN_TRAINER))


def sweep(arguments: list[str]) -> None:
    """Run or go on with a sweep.

    Args:
        arguments: of `vaex train`, with -m.

    Raises:
        UserError: the command can't be; or not all jobs are complete at the end.
        Interrupted: a signal asked to stop.
        hydra.errors.HydraException: of composing.
    """
    flags, overrides = _split(arguments)
    given = [override for override in overrides if override.startswith(("sweep=", "hydra.sweep.dir="))]
    overrides = [override for override in overrides if override not in given]
    if len(given) > 1:
        raise UserError(f"{' '.join(given)}: name the sweep's folder once")
    if resume := [override for override in overrides if override.startswith("resume=") and override != "resume=null"]:
        raise UserError(f"{resume[0]}: goes on with one run; leave out -m, or go on with a sweep: sweep=FOLDER")
    folder = SweepFolder(_path(given[0]) if given else Path(f"outputs/sweeps/{datetime.now():%Y-%m-%d_%H-%M-%S_%f}"))
    before = folder.read()
    if given and given[0].startswith("sweep=") and not before:
        raise UserError(f"{given[0]}: no sweep there, with sweep.json; give the folder that `vaex train -m` printed")
    if before and not overrides:
        flags, overrides = _split(before["arguments"])
    swept, constant = swept_keys(overrides)
    if before:
        _check_same(folder, before["constant"], constant)
    with folder.alone():
        folder.write([*flags, *overrides], constant, before.get("jobs", []))
        if any(override.startswith("hydra/sweeper=") for override in overrides):
            announce(folder, " × ".join(swept) or "a search")
        try:
            with Watch(folder):
                _run_hydra(flags, overrides, folder, list(constant))
        except Interrupted as stop:
            _report(folder)
            raise Interrupted(stop.exit_code - 128, f"{stop}; {_go_on(folder)} goes on") from None
        except KeyboardInterrupt:  # a launcher that isn't vaex's own
            _report(folder)
            raise Interrupted(signal.SIGINT, f"the sweep was stopped; {_go_on(folder)} goes on") from None
        except UserError:
            if not folder.names():
                folder.discard()
            raise
        except Exception as error:
            if not folder.names():
                folder.discard()
                raise
            _report(folder)  # a launcher gave up, as some do when a worker is killed
            first = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(f"{first}; {_go_on(folder)} runs what isn't complete") from error
        _report(folder)
        _check_complete(folder)


def _split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Flags such as --config-dir, without -m, and overrides."""
    overrides: list[str] = get_args_parser().parse_known_args(arguments)[0].overrides
    flags = [argument for argument in arguments if argument not in overrides and argument not in ("-m", "--multirun")]
    return flags, overrides


def _path(override: str) -> Path:
    return Path(os.path.expanduser(override.partition("=")[2].strip("'\"")))


def _check_same(folder: SweepFolder, before: dict[str, str], now: dict[str, str]) -> None:
    """Raises UserError when what all jobs share isn't what it was."""
    for key in {**before, **now}:
        if before.get(key) == now.get(key) or key in MAY_DIFFER or key.startswith(("hydra", "sweep.")):
            continue
        was = f"{key}={before[key]}" if key in before else f"no {key}"
        raise UserError(f"sweep={folder.path}: began with {was}; give the same, or start another sweep without sweep=")


def _run_hydra(flags: list[str], overrides: list[str], folder: SweepFolder, constant: list[str]) -> None:
    plugins = str(Path(__file__).parent / "plugins")
    if plugins not in sys.path:
        sys.path.append(plugins)
    for plugin in import_module("hydra_plugins.vaex_sweeps").PLUGINS:
        Plugins.instance().register(plugin)
    if any(re.fullmatch("hydra/launcher=.*_local", override) for override in overrides):
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # runs of several threads wait for each other's
    path = str(folder.path).replace("'", "\\'")
    keys = ",".join(f"'{key}'" for key in constant)
    sys.argv = [
        "vaex",
        *flags,
        "--multirun",
        *overrides,
        f"hydra.sweep.dir='{path}'",
        f"hydra.job.config.override_dirname.exclude_keys=[{keys}]",
    ]
    hydra.main(version_base="1.3", config_path=str(config_dir()), config_name="train")(job)()


def _report(folder: SweepFolder) -> None:
    path = shlex.quote(str(folder.path))
    print(f"\n{text(folder.jobs())}\n")
    found = folder.path / "optimization_results.yaml"  # of a search
    if found.is_file() and "best_params" in (search := OmegaConf.load(found)):
        values = " ".join(f"{key}={value}" for key, value in search.best_params.items())
        print(f"{'best':>11}  {values}: a validation ELBO of {search.best_value:.2f} nats")
    print(f"{'report':>11}  vaex report {path}")
    print(f"{'all numbers':>11}  vaex eval {path}")
    print(f"{'TensorBoard':>11}  tensorboard --logdir {path} --host 127.0.0.1")


def _go_on(folder: SweepFolder) -> str:
    return f"vaex train -m sweep={shlex.quote(str(folder.path))}"


def _check_complete(folder: SweepFolder) -> None:
    counts = Counter(job.status for job in folder.jobs())
    wrong = {status: count for status, count in counts.items() if status != "completed"}
    if wrong:
        told = ", ".join(f"{count} {status}" for status, count in wrong.items())
        raise UserError(f"of {counts.total()} jobs {told}; {_go_on(folder)} runs what isn't complete")
