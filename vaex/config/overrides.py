"""Overrides of the command line: read and write them, and find the one that Hydra could not apply."""

import difflib
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from vaex.config.errors import suggestion
from vaex.config.schema import DATA
from vaex.errors import UserError

LIST = "`vaex train --help` lists them"


def parse_overrides(overrides: Sequence[str], loader: ConfigLoader | None = None) -> list[Override]:
    """Raises UserError for an override that does not follow Hydra's grammar."""
    try:
        return OverridesParser.create(config_loader=loader).parse_overrides(list(overrides))
    except OverrideParseException as error:
        key, separator, text = error.override.partition("=")
        if not separator or not key:
            raise UserError(f"{error.override}: must be KEY=VALUE or GROUP=OPTION; {LIST}") from error
        raise UserError(f"{error.override}: cannot be parsed; {_remedy(key, text)}") from error


def _remedy(key: str, text: str) -> str:
    """How the value is written so that Hydra reads it as this text."""
    override = with_text(key, text)
    try:
        parsed = OverridesParser.create().parse_override(override)
    except HydraException:
        return "a key consists of letters, digits, _, . and /"
    if "${" in text:
        return "correct its ${…}"
    if not text.isprintable() or parsed.value() != text:
        return "leave out its unusual characters"
    shell = f'"{override}"'  # where this would not reach vaex unchanged, in a form that is harder to read
    if re.search('["$`!]', override) or shlex.split(shell) != [override]:
        shell = shlex.quote(override)
    return f"if the value is text, quote it twice: {shell}"


def without_plus(overrides: Sequence[str]) -> list[str]:
    """Hydra's documentation adds an experiment by `+experiment=…`, and vaex has the group among its defaults."""
    return [override.removeprefix("+") if override.startswith("+experiment=") else override for override in overrides]


def with_text(key: str, text: str) -> str:
    """The override that gives a key this text, whatever characters it has."""
    return f"{key}={QuotedString(text, Quote.single).with_quotes()}"


def folder_of(override: str) -> Path:
    """The folder in `KEY=FOLDER`, as it stands there or in Hydra's quotes; `~` is the home folder.

    Raises:
        UserError: there is none.
    """
    text = override.partition("=")[2]
    if re.fullmatch(r"""'.*'|".*\"""", text):
        text = str(parse_overrides([override])[0].value())
    if not text or "${" in text:
        raise UserError(f"{override}: must name a folder, without ${{…}}")
    return Path(os.path.expanduser(text))


def expand_data(arguments: Sequence[str]) -> list[str]:
    """The arguments with the override that `--data PATH` stands for, which takes any path without quotes.

    Raises:
        UserError: there is no path.
    """
    others, remaining = [], iter(arguments)
    overrides = []  # come last, since Hydra takes no flag between overrides
    for argument in remaining:
        name, _, path = argument.partition("=")
        if name != "--data":
            others.append(argument)
        elif path := path or next(remaining, ""):
            overrides.append(with_text(DATA, path))
        else:
            raise UserError("--data: needs the path of the images, such as --data /data/flowers")
    return others + overrides


def find_mistake(loader: ConfigLoader, config_name: str, overrides: Sequence[str], mode: RunMode) -> str | None:
    """One line about the first override that names a missing option or key; None if every override fits the tree."""
    parsed = parse_overrides(overrides)
    groups = [override for override in parsed if loader.get_group_options(override.key_or_group)]
    for override in parsed:
        if not override.key_or_group:
            return f"{override.input_line}: must be KEY=VALUE or GROUP=OPTION; {LIST}"
        if override.is_sweep_override() and mode == RunMode.RUN:
            line = str(override.input_line)
            text = "" if override in groups else f"; {_remedy(*line.split('=', 1))}"
            return f"{line}: has several values; put -m after train to run each, or write [a,b] for a list{text}"
    for override in groups:
        if message := _option_mistake(loader, override):
            return message
    # The keys of the tree depend on the options chosen, and so do the groups inside a group.
    single = [override for override in groups if not override.is_sweep_override()]
    outer = [str(o.input_line) for o in single if "/" not in o.key_or_group and not o.is_add()]
    tree = _composed(loader, config_name, outer)
    if tree is None:
        return None
    for override in groups:
        key = override.key_or_group
        if override.is_add() and key in tree.hydra.runtime.choices:
            return f"{override.input_line}: the group has an option already; leave out the +"
        if key not in tree.hydra.runtime.choices and not override.is_add():
            group, _, inner = key.rpartition("/")
            remedy = ", or choose likelihood=gaussian|laplace" if group == "likelihood" else ""
            return f"{override.input_line}: this {group or 'config'} has no {inner}; leave it out{remedy}"
    tree = _composed(loader, config_name, [str(override.input_line) for override in single]) or tree
    keys = set(_dotted_keys(OmegaConf.to_container(tree)))
    for override in parsed:
        if override not in groups and (message := _key_mistake(override, keys)):
            return message
    return None


def _composed(loader: ConfigLoader, config_name: str, overrides: list[str]) -> DictConfig | None:
    try:
        return loader.load_configuration(config_name, overrides, RunMode.RUN)
    except HydraException:
        return None


def _option_mistake(loader: ConfigLoader, override: Override) -> str | None:
    if override.is_sweep_override() or override.is_delete():
        return None
    value = override.value()
    for option in value if isinstance(value, list) else [value]:
        if option is None or option == "":
            return f"{override.input_line}: a group needs an option; {LIST}"
        group, _, name = f"{override.key_or_group}/{option}".rpartition("/")  # an option may be in a subfolder
        options = loader.get_group_options(group)
        if name not in options:
            close = difflib.get_close_matches(name, options, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            return f"{override.key_or_group}={option}: no such option{hint} ({', '.join(options)})"
    return None


def _key_mistake(override: Override, keys: set[str]) -> str | None:
    key = override.key_or_group
    if override.is_force_add():
        return None
    if override.is_add():
        return f"{override.input_line}: the key exists already; leave out the +" if key in keys else None
    if key in keys:
        return None
    if override.is_delete():
        return f"{override.input_line}: no such key to remove; leave it out"
    return f"{override.input_line}: no such key{'' if '.' in key else ' or group'}{suggestion(key, keys)}"


def _dotted_keys(node: object, prefix: str = "") -> Iterator[str]:
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, inner in items:
        yield f"{prefix}{key}"
        yield from _dotted_keys(inner, f"{prefix}{key}.")
