"""Every vaex command that the README gives works, cut short; and what it says is there is there."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import SPRITES, Ran

from vaex import cli
from vaex.config.schema import config_dir

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```console\n(.*?)```", README, flags=re.DOTALL)
COMMANDS = sorted(
    {line.split("#")[0].strip() for block in BLOCKS for line in block.splitlines() if line.startswith("vaex ")}
    | {match for match in re.findall(r"\| `(vaex train[^`]*)` \|", README)}
)


def test_there_are_commands() -> None:
    assert len(COMMANDS) >= 8


@pytest.mark.parametrize("command", COMMANDS)
def test_command(command: str, here: Callable[..., Path], vaex: Callable[..., Ran], small: list[str]) -> None:
    verb, *arguments = shlex.split(command)[1:]
    if verb == "eval":
        here("steps=1", *small, folder="outputs/run")
        cli.evaluate([*arguments, "--samples", "1", "--fid", "none"])
        return
    if verb == "draw":
        here("steps=1", *small, folder="outputs/run")
        cli.draw(arguments)
        assert (Path.cwd() / "outputs/run/figures/interpolation.png").is_file()
        return
    if verb == "report":
        here("steps=1", *small, folder=f"{arguments[0]}/run")
        cli.report(arguments)
        assert (Path.cwd() / arguments[0] / "report" / "report.html").is_file()
        return
    if verb == "describe":
        cli.describe([*arguments, *small])
        return
    if arguments[:1] in (["--help"], ["--cfg"]):
        assert vaex("train", *arguments).code == 0
        return
    if "dataset=sprites_rgb" in arguments:
        small = [*SPRITES, "dataset.validation=20", "batch_size=32"]
    sweep = "-m" in arguments
    data = [override for override in small if not (override.startswith("dataset.val") and "experiment" in command)]
    data += ["dataset.validation=0"] if "experiment" in command else []
    here(*arguments, *data, "steps=1", folder=None if sweep else "run")
    found = list(Path.cwd().glob("outputs/sweeps/*/*/results.json" if sweep else "run/results.json"))
    assert len(found) == (4 if sweep else 1)


def test_own_likelihood_is_a_command_that_the_tests_run() -> None:
    assert "vaex train --config-dir myconf likelihood=cauchy" in README
    assert '"--config-dir", "myconf", "likelihood=cauchy"' in (ROOT / "tests" / "test_cli.py").read_text()


def test_the_install_commands_are_the_ones_that_ci_runs() -> None:
    ci = (ROOT / ".ci" / "run").read_text()
    assert "pip install -c constraints.txt -e '.[dev]'" in README and "-c constraints.txt -e '.[dev]'" in ci
    assert 'pytest -m "not slow"' in README and 'pytest -m "not slow"' in ci


@pytest.mark.parametrize("path", sorted(config_dir().glob("*/**/*.yaml")), ids=lambda path: path.stem)
def test_the_tables_name_every_option(path: Path) -> None:
    table = {row.split("|")[1].strip(): row for row in README.splitlines() if row.startswith("| `")}
    group = str(path.parent.relative_to(config_dir()))
    row = next(row for name, row in table.items() if f"`{group}`" in name)
    assert f"`{path.stem}`" in row, f"{group}={path.stem} is not in the README's table"
    if group in ("likelihood", "likelihood/scale"):
        page = (ROOT / "docs" / "likelihoods.md").read_text()
        assert f"`{path.stem}`" in page, f"{group}={path.stem} is not in docs/likelihoods.md"


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda page: page.name
)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target
