"""`vaex train --help`: every group, option and value with a line about it, read from the YAML files."""

import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from vaex.config.schema import config_dir

USAGE = """\
vaex train [GROUP=OPTION …] [KEY=VALUE …]     train one model
vaex train -m KEY=VALUE,VALUE …               a sweep: train one model for each combination of values
vaex train resume=RUN_FOLDER                  resume a run
vaex train -m sweep=FOLDER                    resume a sweep

Groups and their options (GROUP=OPTION); GROUP.KEY=VALUE changes a value inside one.
The three numbers of a dataset are its training, validation and test images.
{groups}

Values (KEY=VALUE), with their defaults:

{values}

vaex train --cfg job [OVERRIDES]       print the composed config and stop
vaex train --data PATH …               the same as dataset.source.root=PATH, and needs no quotes
vaex train resume=RUN --data PATH      resume a run whose images were moved
vaex train --config-dir FOLDER …       add your own options: FOLDER/likelihood/mine.yaml is likelihood=mine
vaex train hydra.run.dir=FOLDER        choose the folder of the run
vaex train --hydra-help                Hydra's own flags, among them shell completion"""


def train_help(arguments: Sequence[str]) -> str:
    """The help text, with the options in folders that the arguments name by --config-dir."""
    folders = [config_dir(), *config_dirs(arguments)[0]]
    values = _values(config_dir() / "train.yaml")
    return USAGE.format(groups="\n".join(group_lines(folders)), values="\n".join(values))


def group_lines(
    folders: Sequence[Path], chosen: Mapping[str, str] | None = None, width: int | None = None
) -> list[str]:
    """Every group, and a line about each of its options.

    Args:
        folders: of YAML files. If several hold the same option, the first one counts, as it does for Hydra.
        chosen: group -> option; these options are marked with a star, and the groups that run sweeps are left out.
        width: columns to which a line is shortened.
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
            if width:
                comment = textwrap.shorten(comment, width - len(start), placeholder=" …")
            lines.append(start + comment)
    return lines


def config_dirs(arguments: Sequence[str]) -> tuple[list[Path], list[str]]:
    """The folders that the arguments name by --config-dir, and the other arguments."""
    folders, others, remaining = [], [], iter(arguments)
    for argument in remaining:
        name, _, value = argument.partition("=")
        if name in ("--config-dir", "-cd"):
            folders.append(Path(value or next(remaining, ".")))
        else:
            others.append(argument)
    return folders, others


def _first_comment(path: Path) -> str:
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    comments = (line.removeprefix("#").strip() for line in lines if line.startswith("# ") and "@package" not in line)
    return next(comments, "")


def _values(path: Path) -> list[str]:
    """The plain keys of train.yaml in their order, with their comments, up to Hydra's own."""
    text = path.read_text(encoding="utf-8")
    rows, section = [], ""
    for line in text[text.index("\nbeta:") : text.index("\nhydra:")].splitlines():
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
