"""`vaex train --help`: every group, every option with its line, every value with its unit. Read from the YAML files."""

import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from vaex.config.schema import config_dir


def train_help(arguments: list[str]) -> str:
    """Also the options in a folder that the arguments name by --config-dir."""
    folders = [config_dir(), *config_dirs(arguments)[0]]
    parts = [
        "vaex train [GROUP=OPTION …] [KEY=VALUE …]     one run",
        "vaex train -m KEY=VALUE,VALUE …               a run for each combination",
        "",
        "Groups and their options (GROUP=OPTION); any value inside one is GROUP.KEY=VALUE:",
    ]
    parts += group_lines(folders)
    parts += ["", "Values (KEY=VALUE), with their defaults:", "", *_values(config_dir() / "train.yaml")]
    parts += [
        "",
        "vaex train --cfg job [OVERRIDES]       print the composed config and stop",
        "vaex train --config-dir FOLDER …       add your own options: FOLDER/likelihood/mine.yaml is likelihood=mine",
        "vaex train hydra.run.dir=FOLDER        choose the run's folder",
        "vaex train --hydra-help                Hydra's own flags, shell completion among them",
    ]
    return "\n".join(parts)


def group_lines(
    folders: Sequence[Path], chosen: Mapping[str, str] | None = None, width: int | None = None
) -> list[str]:
    """Every group and a line for each of its options, with a star at those `chosen` (group -> option), cut to `width`.

    An option that is in several folders is the first one's, as for Hydra. Where some are chosen, what a run is made of
    is meant, and the groups that run sweeps are left out.
    """
    lines = []
    groups = sorted({path.parent.relative_to(folder) for folder in folders for path in folder.rglob("*.yaml")})
    for group in groups:
        if group == Path(".") or (chosen and group.parts[0] == "hydra"):
            continue
        lines += ["", f"  {group}"]
        options = {path.stem: path for folder in reversed(folders) for path in (folder / group).glob("*.yaml")}
        longest = max(map(len, options))
        for name, path in sorted(options.items()):
            mark = "*" if chosen and chosen.get(str(group)) == name else " "
            start, comment = f"  {mark} {name:<{longest}}  ", _first_comment(path)
            lines.append(
                start + (textwrap.shorten(comment, width - len(start), placeholder=" …") if width else comment)
            )
    return lines


def config_dirs(arguments: list[str]) -> tuple[list[Path], list[str]]:
    """The folders that the arguments name by --config-dir, and the arguments without them."""
    found, rest, given = [], [], iter(arguments)
    for argument in given:
        name, _, value = argument.partition("=")
        if name in ("--config-dir", "-cd"):
            found.append(Path(value or next(given, ".")))
        else:
            rest.append(argument)
    return found, rest


def _first_comment(path: Path) -> str:
    lines = (line.strip() for line in path.read_text().splitlines())
    return next(
        (line.removeprefix("#").strip() for line in lines if line.startswith("# ") and "@package" not in line), ""
    )


def _values(path: Path) -> list[str]:
    """The plain keys of train.yaml as they stand there, up to Hydra's own."""
    text = path.read_text()
    start, end = text.index("\nbeta:"), text.index("\nhydra:")
    rows, section = [], ""
    for line in text[start:end].splitlines():
        match = re.match(r"( *)(\w+):\s*([^#]*?)\s*(?:#\s*(.*))?$", line)
        if not match:
            continue
        indent, key, value, comment = match.groups()
        if not value:
            section = f"{key}."
            continue
        section = section if indent else ""
        rows.append((f"{section}{key}={value}", comment or ""))
    width = max(len(key) for key, _ in rows)
    return [f"  {key:<{width}}  {comment}" for key, comment in rows]
