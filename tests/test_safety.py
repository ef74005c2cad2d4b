"""Foreign configs, weights and caches run no code, and TensorBoard serves this machine only.

Checkpoints are in test_checkpoint.py, CIFAR-10's pickles in test_torchvision_sources.py.
"""

import ast
import io
import json
import os
import pickle
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

import vaex as package
from vaex import cli
from vaex.config.compose import parse_arguments
from vaex.config.create import create
from vaex.config.targets import find, trust
from vaex.data.image_folder import image_folder
from vaex.errors import UserError

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "vaex").rglob("*.py"))
Here = Callable[..., Path]
Patch = pytest.MonkeyPatch
Captured = pytest.CaptureFixture[str]

REFUSED = [
    "os.system",
    "subprocess.run",
    "builtins.eval",
    "builtins.exec",
    "shutil.copyfile",
    "pathlib.Path",
    "functools.partial",
    "pickle.loads",
    "importlib.import_module",
    "runpy.run_path",
    "torch.load",
    "torch.hub.load",
    "torch.nn.modules.module.os.system",
    "torch.nn.functional.relu",
    "torch.utils.cpp_extension.load_inline",
    "numpy.load",
    "pip._internal.main",
    "hydra.utils.get_method",
    "hydra.utils.instantiate",
    "vaex.build.make",
    "vaex.runs.folder.replace_file",
    "vaex.runs.folder.RunFolder",
    "vaex.training.writer.RunWriter",
    "vaex.data.cifar10.PlainUnpickler",
    "vaex.architectures.mlp.Encoder.__init__.__globals__",
    "vaex.__main__.main",
    "antigravity.webbrowser",
    "${oc.env:HOME}",
    "lambda: 0",
    "os",
    "",
    ".os.system",
    3,
    None,
    ["os.system"],
    {"_target_": "os.system"},
]


def test_targets_that_are_no_part_of_a_run_are_refused() -> None:
    before = set(sys.modules)
    for name in REFUSED:
        with pytest.raises(UserError) as refusal:
            find("architecture.encoder._target_", name)
        message = str(refusal.value)
        assert message.startswith(f"architecture.encoder._target_={name}: ") and "\n" not in message
    assert "antigravity" not in set(sys.modules) - before


def test_classes_of_models_and_optimizers_are_allowed() -> None:
    for name in ("torch.optim.RMSprop", "torch.nn.Linear", "torch.nn.GELU", "vaex.likelihoods.gaussian.Gaussian"):
        assert find("optimizer._target_", name).__name__ == name.rpartition(".")[2]


HOSTILE = {"_target_": "shutil.copyfile", "src": "a", "dst": "b"}


def test_a_target_is_refused_at_any_depth(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a").touch()
    for group in (
        HOSTILE,
        {"_target_": "torch.nn.Identity", "x": HOSTILE},
        {"_target_": "torch.nn.Identity", "x": [1, [HOSTILE]]},
        {"_target_": "torch.nn.Identity", "x": {"y": {"z": HOSTILE}}},
        {"_target_": "torch.nn.Identity", "_args_": [HOSTILE]},
        {"_target_": "torch.nn.Identity", "_partial_": True, "x": HOSTILE},
        {"_target_": "torch.nn.Identity", "_recursive_": False, "x": HOSTILE},
        {"_target_": "torch.nn.Identity", "_convert_": "object", "x": HOSTILE},
    ):
        with pytest.raises(UserError, match=r"^corruption\."):
            create("corruption", group)
        assert not Path("b").exists(), group


class Text(torch.nn.Module):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text


def test_an_interpolation_in_a_resolved_config_is_a_plain_string() -> None:
    assert create("corruption", {"_target_": f"{__name__}.Text", "text": "${oc.env:HOME}"}).text == "${oc.env:HOME}"


class TestLocations:
    PART = "import pathlib, torch\npathlib.Path('imported').touch()\nclass Part(torch.nn.Module): pass\n"
    PART += "def function(): pass\nimport os\n"

    @pytest.fixture(autouse=True)
    def empty_working_directory(self, tmp_path: Path, monkeypatch: Patch) -> None:
        monkeypatch.setattr(sys, "path", ["", *sys.path])  # as `python -m vaex` has it; PYTHONPATH comes after
        (tmp_path / "here").mkdir()
        monkeypatch.chdir(tmp_path / "here")

    def test_a_module_found_only_in_the_current_folder_is_not_imported(self) -> None:
        Path("stray1.py").write_text(self.PART)
        with pytest.raises(UserError, match="stray1 was found only in the current folder.*PYTHONPATH="):
            find("likelihood._target_", "stray1.Part")
        assert not Path("imported").exists()

    def test_on_pythonpath_classes_of_models_are_allowed_and_functions_are_not(self) -> None:
        Path("own1.py").write_text(self.PART)
        sys.path.append(str(Path.cwd()))
        assert find("likelihood._target_", "own1.Part").__name__ == "Part"
        with pytest.raises(UserError, match="not run.*VAEX_TRUST=own1"):
            find("dataset.source._target_", "own1.function")

    def test_only_installed_packages_that_require_vaex_are_allowed(self, tmp_path: Path) -> None:
        site = tmp_path / "site-packages"
        for name, requires in (("foreign1", "torch"), ("plugin1", "vaex-autoencoders>=0.1")):
            info = site / f"{name}-1.0.dist-info"
            info.mkdir(parents=True)
            (site / f"{name}.py").write_text(self.PART)
            (info / "METADATA").write_text(f"Name: {name}\nVersion: 1.0\nRequires-Dist: {requires}\n")
            (info / "top_level.txt").write_text(f"{name}\n")
        sys.path.append(str(site))
        with pytest.raises(UserError, match="not run"):
            find("likelihood._target_", "foreign1.Part")
        assert not Path("imported").exists()
        assert find("likelihood._target_", "plugin1.Part").__name__ == "Part"
        with pytest.raises(UserError, match="not run"):
            find("likelihood._target_", "plugin1.function")

    def test_vaex_trust_allows_the_functions_of_a_package(self, monkeypatch: Patch) -> None:
        Path("own2.py").write_text(self.PART)
        monkeypatch.setenv("VAEX_TRUST", "something,own2")
        assert find("dataset.source._target_", "own2.function").__name__ == "function"
        for imported in ("own2.os.system", "own2.pathlib.Path", "own2.torch.load"):
            with pytest.raises(UserError):
                find("dataset.source._target_", imported)

    def test_a_trusted_config_folder_may_name_functions_but_not_pythons_own(self, tmp_path: Path) -> None:
        Path("own3.py").write_text(self.PART)
        (tmp_path / "given" / "dataset").mkdir(parents=True)
        yaml = "a: {_target_: own3.function}\nb: [{'_target_': 'own3.os.system'}]\n# _target_: own3.torch.load\n"
        (tmp_path / "given" / "dataset" / "own.yaml").write_text(yaml)
        with trust([tmp_path / "given"]):
            assert find("dataset.source._target_", "own3.function").__name__ == "function"
            for name, part in (("own3.os.system", "Python's own library"), ("own3.torch.load", "VAEX_TRUST=own3")):
                with pytest.raises(UserError, match=part):
                    find("dataset.source._target_", name)

    def test_the_error_names_the_misspelt_part(self) -> None:
        with pytest.raises(UserError, match="vaex.architectures.mlp has no Encodr"):
            find("architecture.encoder._target_", "vaex.architectures.mlp.Encodr")
        for name, missing in (("nosuch1.Part", "nosuch1"), ("vaex.nosuch.Part", "vaex.nosuch")):
            with pytest.raises(UserError, match=f"there is no {missing} on Python's path"):
                find("architecture.encoder._target_", name)


@pytest.fixture(scope="module")
def trained(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("safety") / "run"
    cli.run("train", [*tiny, "steps=1", "figures.kinds=[]", f"hydra.run.dir={folder}"])
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def edit(run: Path, old: str, new: str) -> None:
    path = run / "config.yaml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.fixture
def refusals(here: Here, said: Callable[..., str]) -> Callable[[Path], Iterator[str]]:
    """The error of each way of reading a run folder."""

    def errors(run: Path) -> Iterator[str]:
        yield said(cli.run, "eval", [str(run), "--samples", "0", "--fid", "none"])
        yield said(cli.run, "draw", [str(run), "samples"])
        yield said(here, f"resume={run}", "steps=2")
        with pytest.raises(UserError) as refused:
            package.load(run)
        yield str(refused.value)

    return errors


def test_a_foreign_run_calls_nothing(run: Path, refusals: Callable[[Path], Iterator[str]]) -> None:
    (run / "a").touch()
    hostile = f"_target_: shutil.copyfile\n    src: {run}/a\n    dst: {run}/b"
    edit(run, "_target_: vaex.architectures.mlp.Encoder", hostile)
    for error in refusals(run):
        assert "architecture.encoder._target_=shutil.copyfile: is part of Python's own library" in error
    assert not (run / "b").exists()


def test_yaml_tags_of_a_foreign_run_create_no_objects(run: Path, refusals: Callable[[Path], Iterator[str]]) -> None:
    edit(run, "beta: 1.0", f"beta: !!python/object/apply:os.mkdir ['{run}/made']")
    for error in refusals(run):
        assert "config.yaml: damaged" in error
    assert not (run / "made").exists()


def test_interpolations_of_a_foreign_run_are_not_resolved(
    run: Path, refusals: Callable[[Path], Iterator[str]], monkeypatch: Patch
) -> None:
    """`oc.env` could write a secret into a file that the user then sends back."""
    monkeypatch.setenv("SECRET", "hush")
    resolved: list[str] = []
    OmegaConf.register_new_resolver("probe", lambda: resolved.append("called") or "1", replace=True)
    for key, value in (("experiment: null", "experiment: ${oc.env:SECRET}"), ("trainer:", "trainer: ${probe:}\nold:")):
        before = (run / "config.yaml").read_text()
        edit(run, key, value)
        for error in refusals(run):
            assert "config.yaml: damaged" in error and "interpolation" in error
        (run / "config.yaml").write_text(before)
    assert not resolved
    assert not [path for path in run.rglob("*") if path.is_file() and b"hush" in path.read_bytes()]


OWN_DATA = """
import vaex.data.mnist

def digits(root: str):
    return vaex.data.mnist.mnist(root=root)
"""


def test_a_users_own_function_must_be_named_by_a_config_folder_or_trusted(
    here: Here, tiny: list[str], tmp_path: Path, monkeypatch: Patch, said: Callable[..., str]
) -> None:
    (tmp_path / "owndata1.py").write_text(OWN_DATA)
    (tmp_path / "conf" / "dataset").mkdir(parents=True)
    yaml = "_target_: vaex.data.dataset.Dataset\nsource: {_target_: owndata1.digits, root: null}\nvalidation: 200\n"
    (tmp_path / "conf" / "dataset" / "own.yaml").write_text(yaml + "binarize: none\ndequantize: none\n")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    assert "dataset.source._target_=owndata1.digits: not run" in said(
        here, *tiny, "dataset.source._target_=owndata1.digits"
    )
    run = here("--config-dir", "conf", "dataset=own", "steps=1", "figures.kinds=[]", *tiny, folder="own")
    cli.run("describe", ["--config-dir", "conf", "dataset=own", *tiny])
    package.load(run)  # needs no data
    evaluate = [str(run), "--samples", "0", "--fid", "none"]
    assert "VAEX_TRUST=owndata1" in said(cli.run, "eval", evaluate)
    monkeypatch.setenv("VAEX_TRUST", "owndata1")
    cli.run("eval", evaluate)


def test_a_users_own_likelihood_is_evaluated_like_any_other(
    here: Here, tiny: list[str], tmp_path: Path, monkeypatch: Patch
) -> None:
    code = "from vaex.likelihoods.bernoulli import CrossEntropy\nclass Mine(CrossEntropy): pass\n"
    (tmp_path / "ownlikelihood1.py").write_text(code)
    (tmp_path / "conf" / "likelihood").mkdir(parents=True)
    (tmp_path / "conf" / "likelihood" / "own.yaml").write_text("_target_: ownlikelihood1.Mine\n")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    run = here("--config-dir", "conf", "likelihood=own", "steps=1", "figures.kinds=[]", *tiny)
    assert type(package.load(run).likelihood).__name__ == "Mine"
    cli.run("eval", [str(run), "--samples", "0", "--fid", "none"])


def test_arguments_give_hydra_no_code_to_run() -> None:
    for argument in (
        "--experimental-rerun=run/.hydra/config.pickle",
        "--exp=run/.hydra/config.pickle",
        "+hydra.callbacks.x._target_=os.system",
        "+hydra.callbacks={x: {}}",
        "hydra.launcher._target_=os.system",
        "hydra.job_logging.handlers.console.class=os.system",
        "++hydra={callbacks: {}}",
    ):
        with pytest.raises(UserError, match="can (name code for Hydra to run|run anything)"):
            parse_arguments(["beta=4", argument])
    good = ["-m", "beta=4", "hydra.job_logging.root.level=DEBUG", "hydra/launcher=basic", "hydra.run.dir=x"]
    parse_arguments(good)


def foreign_sweep(*arguments: str) -> None:
    """A folder `foreign` in the working directory with a sweep.json that stores this command."""
    constant = {key.lstrip("+~"): value for key, _, value in (text.partition("=") for text in arguments) if value}
    Path("foreign").mkdir(exist_ok=True)
    content = {"arguments": arguments, "constant": constant, "jobs": []}
    Path("foreign/sweep.json").write_text(json.dumps(content))


@pytest.fixture
def hostile_configs(tmp_path: Path, monkeypatch: Patch) -> Path:
    """A --config-dir whose `corruption=bad` and `hydra/callbacks=bad` each create a folder `made-…`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hubconf.py").write_text(f"import os\nos.mkdir('{tmp_path}/made-by-hub')\ndef bad(): pass\n")
    hub = f"_target_: torch.hub.load\nrepo_or_dir: {tmp_path}\nmodel: bad\nsource: local\n"
    callback = f"# @package hydra.callbacks\nbad:\n  _target_: os.mkdir\n  _args_: ['{tmp_path}/made-by-callback']\n"
    for path, content in (("corruption/bad", hub), ("hydra/callbacks/bad", callback)):
        file = tmp_path / "configs" / f"{path}.yaml"
        file.parent.mkdir(parents=True)
        file.write_text(content)
    return tmp_path / "configs"


@pytest.mark.filterwarnings("ignore:Callback NoneType")  # os.mkdir returns None
def test_a_foreign_sweep_brings_no_flag_launcher_or_other_value_of_hydra(
    here: Here, said: Callable[..., str], hostile_configs: Path, tiny: list[str]
) -> None:
    quick = ["hydra/launcher=basic", "steps=1", "figures.kinds=[]", *tiny]
    for option, folder in (("corruption=bad", "made-by-hub"), ("hydra/callbacks=bad", "made-by-callback")):
        with suppress(SystemExit):
            here("--config-dir", str(hostile_configs), "-m", option, *quick, folder=None)
        Path(folder).rmdir()  # what each folder of configs does if the user names it
    for arguments in (
        ["--config-dir", str(hostile_configs), "corruption=bad"],
        [f"--config-path={hostile_configs}", "corruption=bad"],
        [f"hydra.searchpath=[file://{hostile_configs}]", "corruption=bad"],
        [f"--config-dir={hostile_configs}", "hydra/callbacks=bad"],
        ["hydra/launcher=slurm", "hydra.launcher.setup=['mkdir made-by-slurm']"],
        ["hydra/launcher=slurm_local", "hydra.launcher.submitit_folder=made-by-submitit"],
        ["hydra/sweeper=search", "hydra.sweeper.storage='sqlite:///made-by-optuna'", "hydra.sweeper.n_trials=1"],
        ["+hydra.job.env_set.PATH=made", "hydra.job.chdir=true"],
        ["hydra.output_subdir=made-by-hydra"],
    ):
        foreign_sweep(*arguments, "steps=1", "beta=1,2")
        error = said(here, "-m", "sweep=foreign", folder=None)
        assert error.startswith("sweep=foreign: began with ") and "is not taken from sweep.json" in error
    assert not list(Path.cwd().glob("made-*")) and [path.name for path in Path("foreign").iterdir()] == ["sweep.json"]
    foreign_sweep("hydra/launcher=slurm", "hydra.launcher.setup=['mkdir made-by-slurm']", *quick[1:])
    here("-m", "hydra/launcher=basic", "sweep=foreign", folder=None)  # the user's launcher, and only that
    stored = json.loads(Path("foreign/sweep.json").read_text())
    assert stored["arguments"] == quick and stored["jobs"] == ["run"] and not list(Path.cwd().glob("made-*"))


def test_a_foreign_sweep_has_only_options_of_vaex_and_plain_values(
    here: Here, said: Callable[..., str], hostile_configs: Path
) -> None:
    callback = str(hostile_configs / "hydra" / "callbacks" / "bad")
    outside = f"{'../' * 20}{callback.lstrip('/')}"
    for value in (
        f"experiment={outside}",  # Hydra reads options outside the config folder
        f"experiment={callback}",
        f"experiment=[{outside}]",
        f"likelihood/scale={outside}",
        f"+experiment@hydra.callbacks={outside}",
        "+dataset@hydra.callbacks.x=mnist",
        "dataset.source.root=${oc.env:HOME}",
        "latent_dim=${oc.decode:'2'}",
    ):
        foreign_sweep(value, "steps=1", "beta=1,2")
        assert said(here, "-m", "sweep=foreign", folder=None).startswith(f"sweep=foreign: {value} is not taken from ")
    foreign_sweep("resume=elsewhere", "beta=1,2")
    assert "resume=elsewhere: resumes one run" in said(here, "-m", "sweep=foreign", folder=None)
    assert not list(Path.cwd().glob("made-*")) and [path.name for path in Path("foreign").iterdir()] == ["sweep.json"]


def test_a_target_in_a_foreign_sweep_is_refused(here: Here, hostile_configs: Path, tiny: list[str]) -> None:
    hub = f"repo_or_dir:{hostile_configs.parent},model:bad,source:local"
    for value in ("corruption._target_=torch.hub.load", f"+optimizer.x={{_target_:torch.hub.load,{hub}}}"):
        foreign_sweep(value, "steps=1", "figures.kinds=[]", *tiny)
        with pytest.raises(SystemExit):
            here("-m", "hydra/launcher=basic", "sweep=foreign", folder=None)
        assert "=torch.hub.load: not run" in json.loads(Path("foreign/run/status.json").read_text())["error"]
        shutil.rmtree("foreign")
    assert not list(Path.cwd().glob("made-*"))


def test_a_foreign_sweep_names_only_jobs_in_its_folder(here: Here, said: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "foreign").mkdir()
    for jobs in (["../elsewhere"], ["/etc"], [".."], [3], "abc"):
        content = {"arguments": ["beta=1"], "constant": {}, "jobs": jobs}
        (tmp_path / "foreign" / "sweep.json").write_text(json.dumps(content))
        assert "sweep.json: damaged" in said(here, "-m", "sweep=foreign", folder=None)


@pytest.fixture
def bomb(tmp_path: Path) -> Iterator[bytes]:
    """A pickle that creates a folder when it is executed, which must not happen."""

    class Bomb:
        def __reduce__(self) -> tuple[object, ...]:
            return os.mkdir, (str(tmp_path / "exploded"),)

    content = pickle.dumps(Bomb())
    pickle.loads(content)
    (tmp_path / "exploded").rmdir()  # the pickle works
    yield content
    assert not (tmp_path / "exploded").exists()


def test_a_pickle_as_weights_is_not_executed(bomb: bytes, run: Path) -> None:
    (run / "model.safetensors").write_bytes(bomb)
    with pytest.raises(UserError, match=r"model\.safetensors: damaged"):
        package.load(run)


def test_a_pickle_in_an_npy_file_of_the_cache_is_not_executed(
    bomb: bytes, pictures: Path, tmp_path: Path, monkeypatch: Patch
) -> None:
    monkeypatch.setenv("VAEX_CACHE", str(tmp_path / "cache"))
    options = {"root": str(pictures), "size": 8, "channels": 3, "test": 0.2}
    expected = image_folder(**options).train.pixels.clone()  # a copy, because the mapped file changes
    (cached,) = (tmp_path / "cache").rglob("*.npy")
    objects = io.BytesIO()
    np.save(objects, np.array([None], dtype=object), allow_pickle=True)
    header = objects.getvalue()[:128]
    for content in (bomb, header + bomb):
        cached.write_bytes(content)
        assert torch.equal(image_folder(**options).train.pixels, expected)


UNSAFE_MODULES = ("marshal", "shelve", "dill", "joblib")


def forbidden(tree: ast.AST) -> Iterator[str]:
    """Calls and imports that can execute the content of a file or string, or write outside a folder."""
    tar = any(isinstance(node, ast.Import) and node.names[0].name == "tarfile" for node in ast.walk(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module in {"pickle", "yaml", *UNSAFE_MODULES}:
            names = {alias.name for alias in node.names} - {"YAMLError"}
            yield from (f"{node.module}.{name}" for name in sorted(names))
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in UNSAFE_MODULES)
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if name in ("eval", "exec", "compile", "__import__", "os.system", "os.popen", "torch.hub.load"):
            yield name
        if name in ("pickle.load", "pickle.loads", "pickle.Unpickler", "OmegaConf.unsafe_load"):
            yield name
        if name.startswith("yaml.") and name not in ("yaml.safe_load", "yaml.SafeLoader"):
            yield name
        if name == "torch.load" and options.get("weights_only") != "True":
            yield "torch.load without weights_only=True"
        if name.endswith((".load", ".read_array")) and options.get("allow_pickle", "False") != "False":
            yield "allow_pickle"
        if options.get("shell", "False") != "False":
            yield "shell=True"
        if tar and name.endswith((".extractall", ".extract")) and options.get("filter") != "'data'":  # zipfile is safe
            yield f"{name} without filter='data'"
        if name in ("shutil.unpack_archive", "extract_archive", "download_and_extract_archive"):
            yield name


def test_no_source_executes_the_content_of_a_file() -> None:
    for code, calls in {
        "import pickle; pickle.loads(x)": ["pickle.loads"],
        "from pickle import load": ["pickle.load"],
        "torch.load(x)": ["torch.load without weights_only=True"],
        "torch.load(x, weights_only=True)": [],
        "np.load(x, allow_pickle=True)": ["allow_pickle"],
        "np.load(x)": [],
        "yaml.load(x, Loader=L)": ["yaml.load"],
        "eval(x)": ["eval"],
        "model.eval()": [],
        "subprocess.run(x, shell=True)": ["shell=True"],
        "import tarfile; tar.extractall(x)": ["tar.extractall without filter='data'"],
        "import tarfile; tar.extractall(x, filter='data')": [],
    }.items():
        assert list(forbidden(ast.parse(code))) == calls, code  # the scan itself works
    for path in SOURCES:
        assert list(forbidden(ast.parse(path.read_text()))) == [], path


def test_tensorboard_commands_listen_to_this_machine_only() -> None:
    """In every document and source."""
    files = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "scripts").rglob("*.py"), *SOURCES]
    commands = [
        line for path in files for line in path.read_text().splitlines() if re.search(r"tensorboard +--?\w", line)
    ]
    assert len(commands) >= 2
    for command in commands:
        assert "--host 127.0.0.1" in command, command
