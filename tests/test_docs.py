"""Every vaex command in README.md and docs/ works (cut short), the example runs as printed, and all links resolve."""

import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import SMALL_NETWORKS, SPRITES

from vaex import cli
from vaex.config.schema import config_dir

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = {page: page.read_text() for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]}
TEXT = "\n".join(PAGES.values())
LINES = (
    [line for block in re.findall(r"```console\n(.*?)```", TEXT, flags=re.DOTALL) for line in block.splitlines()]
    + re.findall(r"^    (\S.*)$", TEXT, flags=re.MULTILINE)
    + re.findall(r"`([^`\n]+)`", TEXT)
)
COMMANDS = sorted({re.sub(r"\s+#.*| …$", "", line).strip() for line in LINES})
COMMANDS = [command for command in COMMANDS if re.match(r"vaex (train$|(train|eval|draw|report|describe) )", command)]
INCOMPLETE = re.compile(r"vaex (train -m|eval --(metric|samples|fid|latent))$")  # mentions of an option
COMMANDS = [command for command in COMMANDS if not INCOMPLETE.match(command)]
COVERED_ELSEWHERE = {
    "hydra/sweeper=search": "test_engines.py",
    "sweep=FOLDER": "test_sweeps.py",
    "--data PATH": "test_identity.py",
    "experiment=sigma_rules": "test_recipes.py",
    "likelihood=cauchy": "test_the_example_of_an_own_likelihood_runs_as_printed",
}
MEASUREMENT = """
from vaex.evaluation.measure import Measurement
from vaex.evaluation.metric import Metric

NAME = Measurement(lambda evaluation: {"test/answer": 42.0}, (Metric("test/answer", "answer"),))
"""


@pytest.fixture(scope="module")
def trained(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with two latents, so that every figure applies to it."""
    folder = tmp_path_factory.mktemp("docs") / "run"
    options = ["latent_dim=2", "steps=1", "figures.kinds=[]"]
    cli.run("train", [*tiny, *options, f"hydra.run.dir={folder}"])
    return folder


@pytest.fixture
def mypackage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The file of a user's module, in the working directory and on PYTHONPATH."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("mypackage", None)
    yield tmp_path / "mypackage.py"
    sys.modules.pop("mypackage", None)


def test_the_documents_contain_commands() -> None:
    assert len(COMMANDS) > 20
    for part in COVERED_ELSEWHERE:
        assert part in TEXT


@pytest.mark.parametrize(
    "command", [command for command in COMMANDS if not any(part in command for part in COVERED_ELSEWHERE)]
)
def test_a_command_works(command: str, trained: Path, small: list[str], pictures: Path, mypackage: Path) -> None:
    verb, *arguments = shlex.split(command.replace("PICTURES", str(pictures)))[1:]
    if verb == "train":
        if "resume=RUN_FOLDER" in arguments:
            shutil.copytree(trained, "RUN_FOLDER")
            cli.run("train", [*arguments, "steps=2"])
        elif arguments[:1] not in (["--help"], ["--cfg"]):
            train(arguments, small)
        else:
            cli.run("train", arguments)
    elif verb == "describe":
        cli.run("describe", [*arguments, *small, *small_network(arguments)])
    else:
        copies = [name for name in arguments if re.fullmatch(r"[A-Z_]+|outputs(/\S+)?", name)]
        if "--out" in arguments:
            copies.remove(arguments[arguments.index("--out") + 1])
        if not copies:
            arguments, copies = ["RUN", *arguments], ["RUN"]
        for name in dict.fromkeys(copies):
            shutil.copytree(trained, name if name.startswith("RUN") else f"{name}/run")
        if verb == "eval":
            mypackage.write_text(MEASUREMENT)
            arguments += ["--samples", "1", "--fid", "none"]
        if verb == "draw" and "--count" not in arguments:
            arguments += ["--count", "2"]
        cli.run(verb, arguments)


def small_network(arguments: list[str]) -> list[str]:
    """Overrides that make the network of a command small."""
    architecture = next((a.partition("=")[2] for a in arguments if a.startswith("architecture=")), "mlp")
    return SMALL_NETWORKS[architecture]


def train(arguments: list[str], small: list[str]) -> None:
    """Train with two steps and a small network; of a sweep, only the first two jobs."""
    network = small_network(arguments)
    data = small
    if "dataset=sprites_rgb" in arguments:
        data = [*SPRITES, "dataset.validation=20", "batch_size=32"]
    elif "dataset=image_folder" in arguments:
        data = ["batch_size=8"]
    sweep = "-m" in arguments
    if sweep:
        lists = [n for n, argument in enumerate(arguments) if "," in argument]
        for position, n in enumerate(lists):
            arguments[n] = ",".join(arguments[n].split(",")[: 1 if position else 2])
        arguments = [*arguments, "hydra/launcher=basic"]  # in this process; test_sweeps.py tests the default
    else:
        arguments = [*arguments, "hydra.run.dir=run"]
    cli.run("train", [*arguments, *data, *network, "steps=2", "figures.kinds=[]"])
    runs = list(Path.cwd().glob("outputs/sweeps/*/*/results.json" if sweep else "run/results.json"))
    assert len(runs) == (2 if sweep else 1)


def test_the_example_of_an_own_likelihood_runs_as_printed(tiny: list[str], mypackage: Path) -> None:
    (module,) = re.findall(r"```python\n# mypackage\.py\n(.*?)```", README, flags=re.DOTALL)
    (yaml,) = re.findall(r"```yaml\n# myconf/likelihood/cauchy\.yaml\n(.*?)```", README, flags=re.DOTALL)
    (command,) = re.findall(r"^PYTHONPATH=\. vaex (train .*)$", README, flags=re.MULTILINE)
    mypackage.write_text(module)
    Path("myconf/likelihood").mkdir(parents=True)
    Path("myconf/likelihood/cauchy.yaml").write_text(yaml)
    verb, *arguments = shlex.split(command)
    cli.run(verb, [*arguments, *tiny, "steps=3", "figures.kinds=[]", "hydra.run.dir=run"])
    cli.run("eval", ["run", "--samples", "1", "--fid", "none"])
    assert "test/coverage_90" in Path("run/results.json").read_text()  # from its cdf


def test_the_install_commands_are_the_ones_that_ci_runs() -> None:
    ci = (ROOT / ".ci" / "run").read_text()
    assert "pip install -c constraints.txt -e '.[dev]'" in README and "-c constraints.txt -e '.[dev]'" in ci
    assert 'pytest -m "not slow"' in README and 'pytest -m "not slow"' in ci


@pytest.mark.parametrize("path", sorted(config_dir().glob("*/**/*.yaml")), ids=lambda path: path.stem)
def test_the_tables_name_the_option(path: Path) -> None:
    rows = {row.split("|")[1]: row for row in README.splitlines() if row.startswith("| `")}
    likelihoods = PAGES[ROOT / "docs" / "likelihoods.md"]
    group = str(path.parent.relative_to(config_dir()))
    row = next(row for groups, row in rows.items() if f"`{group}`" in groups)
    assert f"`{path.stem}`" in row, f"{group}={path.stem} is not in the README's table"
    if group in ("likelihood", "likelihood/scale"):
        assert f"`{path.stem}`" in likelihoods, f"{group}={path.stem} is not in docs/likelihoods.md"


def test_links_resolve() -> None:
    for page, text in PAGES.items():
        for target, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]+))?\)", text):
            path = page.parent / target if target else page
            assert path.exists(), f"{page.name}: {target}"
            if anchor:
                headings = re.findall(r"^#+ (.*)$", path.read_text(), flags=re.MULTILINE)
                anchors = [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]
                assert anchor in anchors, f"{page.name}: {target}#{anchor}"
