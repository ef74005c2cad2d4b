"""Hydra's errors in one line each, with the key, the value and the remedy."""

import difflib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vaex.config.schema import all_keys, closest, config_dir, explain
from vaex.errors import UserError


def asks_for_sweep(arguments: list[str]) -> bool:
    """Whether runs are to be trained, and many; else Hydra prints something, or there is one run."""
    flags, _ = get_args_parser().parse_known_args(arguments)
    prints = flags.cfg or flags.info or flags.shell_completion or flags.hydra_help
    return not prints and (flags.multirun or any(override.startswith("sweep=") for override in flags.overrides))


def resume_overrides(arguments: list[str]) -> list[str]:
    """Arguments with what `resume=FOLDER` means to Hydra: the run's folder is that one, and nothing in it is replaced.

    Raises:
        UserError: there is no run in the folder, or resume is part of a sweep.
    """
    given = [argument for argument in arguments if argument.startswith("resume=") and argument != "resume=null"]
    if not given:
        return arguments
    if {"-m", "--multirun"} & set(arguments):
        raise UserError(f"{given[0]}: goes on with one run; leave out -m")
    folder = Path(os.path.expanduser(given[-1].removeprefix("resume=").strip("'\""))).absolute()
    if not (folder / "config.yaml").is_file():
        raise UserError(f"resume={folder}: no config.yaml there; give the folder of a run, as `vaex train` printed it")
    quoted = "'" + str(folder).replace("'", "\\'") + "'"
    rest = [argument for argument in arguments if argument not in given]
    return [*rest, f"resume={quoted}", f"hydra.run.dir={quoted}", "hydra.output_subdir=null"]


def check_arguments(arguments: list[str]) -> None:
    """Refuse what Hydra doesn't know, and what would have Hydra itself run code that an argument names.

    vaex.config.targets guards what vaex runs.

    Raises:
        UserError: naming the argument.
    """
    flags, unknown = get_args_parser().parse_known_args(arguments)
    for argument in unknown:
        if argument.startswith("-"):
            raise UserError(f"{argument}: no such flag; `vaex train --help` lists what there is")
        raise UserError(f"{argument}: is apart from the other overrides; put flags such as -m before them all")
    if flags.multirun and (flags.cfg or flags.info):
        raise UserError("-m: runs many configs, and --cfg or --info prints one; leave out either")
    if flags.experimental_rerun:
        raise UserError(
            "--experimental-rerun: reads a pickle, which can run anything; go on with a run by resume=FOLDER"
        )
    for override in flags.overrides:
        inside = re.match(r"[+~]*hydra(=|\.(callbacks|job_logging|hydra_logging)\b|.*_target_)", override)
        if inside and not re.search(r"\.level=\w+$", override):
            raise UserError(
                f"{override}: can name code for Hydra to run; if you trust it, write it as an option of a --config-dir "
                "folder, such as FOLDER/hydra/callbacks/mine.yaml, and choose that"
            )


def one_line(error: BaseException, arguments: list[str], started: bool) -> str | None:
    """None for an error that is not about the config, and deserves its traceback.

    `started`: whether Hydra had made the run's folder.
    """
    if isinstance(error, OmegaConfBaseException):
        return explain(error)
    text = str(error)
    if "Config group override must be" in text:
        bad = next((a for a in arguments if re.search("=null$|^=", a)), "a group")
        return f"{bad}: a group needs an option; `vaex train --help` lists them"
    if isinstance(error, OSError) and error.filename and not started:
        return f"hydra.run.dir: {error.filename} can't be made ({error.strerror}); give another folder"
    cause = error.__cause__
    if isinstance(cause, OSError) and "Unable to configure handler" in text:  # Hydra's log, in the run's folder
        return f"{cause.filename}: can't be written ({cause.strerror}); make the folder writable, or give another"
    if match := re.search(r"Unknown plugin class : 'hydra_plugins\.hydra_(\w+)_(launcher|sweeper)\.", text):
        return f"hydra/{match[2]}: needs {match[1]}; pip install 'vaex-autoencoders[{match[1]}]'"
    if not type(error).__module__.startswith("hydra."):
        return None
    if not text and cause is not None:
        text = str(cause)

    if match := re.search(r"Could not find '([^']+)'", text):
        return _unknown_option(match[1], text)
    if match := re.search(r"Could not override '([^']+)'\. No match in the defaults list", text):
        group = match[1]
        if group == "likelihood/scale":
            given = _given(group, arguments)
            return f"{given}: this likelihood has no scale; leave it out, or take likelihood=gaussian|laplace"
        return f"{_given(group, arguments)}: no such key or group{closest(group, _keys(arguments))}"
    if match := re.search(r"Could not override '([^']+)'", text):
        return f"{_given(match[1], arguments)}: no such key{closest(match[1], _keys(arguments))}"
    if match := re.search(r"Could not append to config\. An item is already at '([^']+)'", text):
        return f"{_given(match[1], arguments)}: is there already; leave out the +"
    if match := re.search(r"Could not delete(?: from config)?[.:]? ?'?([^'\s]+)", text):
        return f"~{match[1]}: no such key to remove; leave it out"
    if match := re.search(r"Ambiguous value for argument '([^']+)'", text):
        return f"{match[1]}: several values; put -m after train to run each, or write [a,b] for a list"
    if match := re.search(r"Additional config directory '([^']+)' not found", text):
        return f"--config-dir={match[1]}: no such folder"
    if match := re.search(r"Error parsing override '(\w+)'", text):
        return f"{match[1]}: must be KEY=VALUE or GROUP=OPTION; `vaex train --help` lists them"
    if "LexerNoViableAltException" in text or "mismatched input" in text or "no viable alternative" in text:
        bad = next((a for a in arguments if a in text), arguments[0])
        key, _, value = bad.partition("=")
        return f"{bad}: can't be parsed; if the value is text, quote it, twice: \"{key}='{value}'\""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return "; ".join(lines[:3]) if lines else type(error).__name__


def _unknown_option(path: str, text: str) -> str:
    group, _, option = path.rpartition("/")
    options = re.findall(r"^\t(\S+)$", text, flags=re.MULTILINE)
    close = difflib.get_close_matches(option, options, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    return f"{group}={option}: no such option{hint} ({', '.join(options)})"


def _given(key: str, arguments: list[str]) -> str:
    """The argument as it was typed."""
    return next((a for a in arguments if re.match(rf"[+~]*{re.escape(key)}(=|$)", a)), key)


def _keys(arguments: list[str]) -> list[str]:
    """All dotted keys of the config, under the options that the command line chooses where those are good."""
    folder = str(config_dir())
    choices = [a for a in arguments if (config_dir() / a.partition("=")[0]).is_dir()]
    for overrides in (choices, []):
        try:
            with initialize_config_dir(folder, version_base="1.3"):
                composed = compose("train", overrides)
        except HydraException:
            continue
        return [".".join(map(str, path)) for path in _paths(OmegaConf.to_container(composed))]
    return all_keys()


def _paths(node: object, prefix: tuple[object, ...] = ()) -> Iterator[tuple[object, ...]]:
    if isinstance(node, dict):
        for key, inner in node.items():
            yield (*prefix, key)
            yield from _paths(inner, (*prefix, key))
