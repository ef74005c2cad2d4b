"""Every command in docs/ works, cut short, with folders in place of their names; and every script in one is there."""

import math
import re
import shlex
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
from conftest import SMALL_NETWORKS

from vaex import cli

ROOT = Path(__file__).parent.parent
PAGES = "\n".join(page.read_text() for page in sorted((ROOT / "docs").glob("*.md")))
LINES = (
    [line for block in re.findall(r"```console\n(.*?)```", PAGES, flags=re.DOTALL) for line in block.splitlines()]
    + re.findall(r"^    (\S.*)$", PAGES, flags=re.MULTILINE)
    + re.findall(r"`([^`\n]+)`", PAGES)
)
COMMANDS = sorted({re.sub(r"\s+#.*| …$", "", line).strip() for line in LINES})
VAEX = [command for command in COMMANDS if re.match(r"vaex (train|eval|draw|report|describe) ", command)]
SCRIPTS = [command for command in COMMANDS if command.startswith("python scripts/")]
ELSEWHERE = {  # run by another test
    "vaex train -m hydra/sweeper=search experiment=tune": "test_engines.py",
    "vaex train -m sweep=FOLDER beta=0.5,1,2,4,8": "test_sweeps.py",
    "vaex train -m sweep=FOLDER": "test_sweeps.py",
    "vaex train -m experiment=sigma_rules": "test_recipes.py",
    "vaex train --help": "test_cli.py",
}


def test_there_are_commands() -> None:
    assert len(VAEX) > 12 and len(SCRIPTS) > 6 and set(ELSEWHERE) <= set(VAEX)


@pytest.mark.parametrize("command", [command for command in VAEX if command not in ELSEWHERE])
def test_a_command_of_vaex(
    command: str, here: Callable[..., Path], tiny: list[str], pictures: Path, tmp_path: Path
) -> None:
    verb, *arguments = shlex.split(command)[1:]
    if "dataset=image_folder" in arguments:
        arguments = [argument.replace("PICTURES", str(pictures)) for argument in arguments]
        tiny = ["batch_size=8", *SMALL_NETWORKS["conv"]]
    if verb == "train":
        sweep = "-m" in arguments
        if resumed := "resume=RUN_FOLDER" in arguments:
            run = here(*tiny, "steps=1")
            arguments = [argument.replace("RUN_FOLDER", str(run)) for argument in arguments]
        rest = [] if resumed else tiny
        here(*arguments, *rest, "steps=2", "figures.kinds=[]", folder=None if sweep else "run")
        runs = len(list(tmp_path.glob("outputs/sweeps/*/*/results.json" if sweep else "run/results.json")))
        assert runs == (math.prod(argument.count(",") + 1 for argument in arguments) if sweep else 1)
        return
    extra = ["latent_dim=2", "likelihood=cross_entropy"] if "manifold" in arguments else []
    names = re.compile(r"(RUN|FOLDER|SWEEP|RUN_A|RUN_B|RUN_FOLDER|outputs/sweeps/\S+)$")
    if not (folders := [argument for argument in arguments if names.match(argument)]):
        arguments, folders = [*arguments, "RUN"], ["RUN"]
    if "--out" in arguments:
        folders.remove("FOLDER")
    for folder in dict.fromkeys(folders):
        here(*tiny, *extra, "steps=1", "figures.kinds=[]", folder=folder)
    if verb == "eval":
        cli.evaluate([*arguments, "--samples", "1", "--fid", "none"])
    else:
        getattr(cli, verb)(arguments)


@pytest.mark.parametrize("command", SCRIPTS)
def test_a_script_takes_its_arguments(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It parses them; what it then does is tested, or promised, where the script is."""
    _, script, *arguments = shlex.split(command)
    assert (ROOT / script).is_file()
    if not arguments:
        return
    import argparse

    class Parsed(Exception):
        pass

    for method in ("parse_args", "parse_intermixed_args"):
        original = getattr(argparse.ArgumentParser, method)

        def parse(parser: argparse.ArgumentParser, original: Callable[..., object] = original) -> None:
            original(parser, arguments)
            raise Parsed

        monkeypatch.setattr(argparse.ArgumentParser, method, parse)
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    with pytest.raises(Parsed):
        import_module(Path(script).stem).main()
