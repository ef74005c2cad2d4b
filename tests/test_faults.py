"""Faulty input ends in one line with the key, the value and the remedy; nothing is lost, or looks complete."""

import ast
import json
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import pytest
import torch
from conftest import composed
from hydra.errors import HydraException

import vaex as package
from vaex import cli
from vaex.build import build
from vaex.config.create import create
from vaex.errors import UserError
from vaex.runs.folder import RunFolder

Here = Callable[..., Path]
Said = Callable[..., str]
Patch = pytest.MonkeyPatch


def assert_incomplete(run: Path) -> None:
    """The folder contains no run, or one whose status is failed."""
    assert not (run / "model.safetensors").exists() and not (run / "results.json").exists()
    if (run / "status.json").exists():
        assert json.loads((run / "status.json").read_text())["status"] == "failed"


# Errors of building: the overrides, and parts of the message.
UNFIT = [
    ("architecture.hidden=[-3]", ["architecture.hidden=[-3]", ">= 1"]),
    ("architecture.hidden=[a]", ["architecture.encoder.hidden=['a']", "list", "int"]),
    ("architecture.hidden=[1.5]", ["architecture.encoder.hidden=[1.5]", "int"]),
    ("architecture.hidden=512", ["architecture.encoder.hidden=512", "list"]),
    ("architecture.hidden=null", ["architecture.encoder.hidden=None", "list"]),
    ("architecture.hidden=[1000000000000000]", ["architecture.encoder", "out of memory", "lower"]),
    ("architecture.hidden=[99999999999999999999]", ["architecture.hidden[0]=99999999999999999999", "less than 2^63"]),
    ("architecture.activation=rely", ["architecture.activation=rely", "relu"]),
    ("architecture.encoder=mlp", ["architecture.encoder._target_", "missing"]),
    ("architecture.encoder._target_=vaex.nosuch.Encoder", ["architecture.encoder", "vaex.nosuch.Encoder"]),
    ("~architecture.encoder", ["architecture.encoder", "missing"]),
    ("+architecture.encoder._partial_=true", ["architecture.encoder._partial_", "by"]),
    ("architecture=vit architecture.patch_size=5", ["architecture.patch_size=5", "28 × 28", "1, 2, 4, 7"]),
    ("architecture=conv architecture.widths=[4,4,4,4,4,4]", ["architecture.widths", "28 × 28", "at most 4"]),
    ("architecture=conv architecture.widths=[]", ["architecture.widths=[]", ">= 1"]),
    ("architecture=resnet architecture.groups=3", ["architecture.groups=3", "divide"]),
    ("likelihood=bernoulli", ["likelihood Bernoulli", "gray", "dataset.binarize=", "likelihood=cross_entropy"]),
    ("+likelihood.foo=3", ["likelihood", "foo"]),
    ("+likelihood.image_shape=[1,2,3]", ["likelihood.image_shape", "leave it out"]),
    ("likelihood._target_=torch.nn.Identity", ["likelihood._target_", "Identity", "Likelihood"]),
    ("likelihood.scale.init=0.001", ["likelihood.scale.init=0.001", "likelihood.scale.floor"]),
    ("objective._target_=vaex.data.dataset.Dataset", ["objective", "vaex.data.dataset.Dataset", "source"]),
    ("objective=iwae likelihood/scale=optimal", ["objective=iwae", "likelihood/scale=shared"]),
    ("objective=iwae objective.samples=0", ["objective.samples=0", ">= 1"]),
    ("optimizer.lr=fast", ["optimizer.lr=fast", "float"]),
    ("optimizer.lr=-1", ["optimizer", "-1"]),
    ("optimizer._target_=torch.optim.SGD", ["optimizer", "torch.optim.SGD", "betas"]),
    ("optimizer.betas=[0.9]", ["optimizer.betas=[0.9]", "list [a, b]"]),
    ("optimizer.betas=[2,3]", ["optimizer", "Invalid beta", "VAEX_DEBUG=1"]),
    ("schedule.warmup=1000 steps=10", ["schedule.warmup=1000", "10 steps"]),
    ("corruption=masking corruption.fraction=2", ["corruption.fraction=2", "from 0 to 1"]),
    ("batch_size=1001", ["batch_size=1001", "1000 training images"]),
    ("dataset.source=mnist", ["dataset.source=mnist", "_target_"]),
    ("dataset.source.root=/no/such", ["/no/such", "no such file", "dataset.source.root"]),
    ("dataset.validation=1200", ["dataset.validation=1200", "1199"]),
    ("dataset.binarize=hard", ["dataset.binarize=hard", "none, threshold, static, dynamic"]),
    ("dataset.resident=maybe", ["dataset.resident=maybe", "auto, true or false"]),
    ("dataset=image_folder dataset.source.size=large", ["dataset.source.size=large", "of type int"]),
    ("dataset=image_folder dataset.source.root=null", ["dataset.source.root", "folder"]),
]


def test_a_part_that_cannot_be_built_is_one_line(small: list[str]) -> None:
    without_gpu = [] if torch.cuda.is_available() else [("device=cuda", ["device=cuda", "device=auto or cpu"])]
    for arguments, parts in UNFIT + without_gpu:
        overrides = arguments.split()
        keys = {override.lstrip("+~").partition("=")[0] for override in overrides}
        hidden = [] if "architecture" in arguments else ["architecture.hidden=[16]"]
        given = [override for override in [*small, *hidden] if override.partition("=")[0] not in keys]
        with pytest.raises(UserError) as error:
            build(composed(*given, *overrides))
        message = str(error.value)
        assert all(part in message for part in parts) and "\n" not in message, f"{arguments}: {message}"


def test_figures_that_do_not_exist(here: Here, tiny: list[str], said: Said) -> None:
    assert "figures.kinds=nosuch" in said(here, *tiny, "figures.kinds=[nosuch]")
    assert_incomplete(Path.cwd() / "run")
    here(*tiny, "figures.kinds=[]", "steps=1")  # the refused run has left the folder free


def test_the_traceback_is_there_on_request(here: Here, tiny: list[str], monkeypatch: Patch) -> None:
    """With VAEX_DEBUG=1 the error is raised, with its cause, so that Python prints a traceback and exits with 1."""
    monkeypatch.setenv("VAEX_DEBUG", "1")
    for argument in ("architecture.hidden=[-3]", "dataset.source.root=/no/such", "bta=-1"):
        with pytest.raises(UserError) as error:
            here(*tiny, argument)
        assert isinstance(error.value.__cause__, ValueError | OSError | HydraException)


class TestData:
    @pytest.fixture
    def folder(self, tiny: list[str], tmp_path: Path) -> Path:
        """The small MNIST, to be damaged."""
        return Path(shutil.copytree(tiny[0].partition("=")[2], tmp_path / "digits"))

    def test_a_truncated_file_ends_the_run_and_the_whole_one_starts_it(
        self, folder: Path, here: Here, tiny: list[str], said: Said
    ) -> None:
        """In the same folder, which a refused run leaves free."""
        path = folder / "train-images-idx3-ubyte.gz"
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        command = [*tiny, f"dataset.source.root={folder}", "steps=1", "figures.kinds=[]"]
        error = said(here, *command)
        assert "train-images-idx3-ubyte.gz: damaged" in error and "replace it" in error
        assert_incomplete(Path.cwd() / "run")
        path.write_bytes(whole)
        assert json.loads((here(*command) / "status.json").read_text())["status"] == "completed"

    def test_missing_offline(self, here: Here, said: Said, tmp_path: Path) -> None:
        options = ["dataset=cifar10", f"dataset.source.root={tmp_path}", "dataset.source.download=false"]
        error = said(here, *options)
        assert "cifar-10-python.tar.gz not found" in error and "dataset.source.download=true" in error
        assert_incomplete(tmp_path / "run")

    def test_a_gray_model_meets_color(
        self, here: Here, tiny: list[str], said: Said, pictures: Path, tmp_path: Path
    ) -> None:
        """The images changed after the run was trained."""
        own = Path(shutil.copytree(pictures, tmp_path / "own"))
        data = ["dataset=image_folder", f"dataset.source.root={own}", "dataset.source.size=16", "batch_size=32"]
        network = ["architecture.hidden=[16]", "steps=1", "figures.kinds=[]"]
        run = here(*data, *network, "dataset.source.channels=1")
        before = (run / "results.json").read_bytes()
        path = run / "config.yaml"
        path.write_text(path.read_text().replace("channels: 1\n", "channels: 3\n"))
        for command in (lambda: cli.run("eval", [str(run)]), lambda: cli.run("draw", [str(run), "samples"])):
            assert "trained on images of [1, 16, 16], and its dataset now has [3, 16, 16]" in said(command)
        assert "step-1.pt: belongs to another run: dataset.source.channels was 1 and is 3" in said(
            here, f"resume={run}", "steps=2"
        )
        assert (run / "results.json").read_bytes() == before


@pytest.fixture(scope="module")
def trained(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("faults") / "run"
    cli.run("train", [*tiny, "steps=2", "figures.kinds=[]", f"hydra.run.dir={path}"])
    return path


class TestRunFolders:
    @pytest.fixture
    def run(self, trained: Path, tmp_path: Path) -> Path:
        """A copy of a run, to be damaged."""
        return Path(shutil.copytree(trained, tmp_path / "run"))

    def test_odd_names_are_names(self, here: Here, tiny: list[str], said: Said) -> None:
        path = "with space/a=b,c/ünï λ/1e3/quo'te({["
        here(*tiny, "steps=1", "figures.kinds=[]", f"hydra.run.dir={path}", folder=None)
        run = Path.cwd() / path
        assert run.is_dir()
        quoted = path.replace("'", "\\'")  # as in Hydra's documentation
        assert "taken by another run" in said(here, *tiny, f"hydra.run.dir='{quoted}'", folder=None)
        here(f"resume={path}", "steps=2")
        assert json.loads((run / "results.json").read_text())["train/steps"] == 2
        cli.run("eval", [path, "--samples", "0", "--fid", "none"])

    def test_a_file_is_no_folder(self, here: Here, tiny: list[str], said: Said, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("mine")
        for path in ("file", "file/run"):
            error = said(here, *tiny, f"hydra.run.dir={path}", folder=None)
            assert f"hydra.run.dir={path}: can't be written" in error and "another folder" in error
        assert (tmp_path / "file").read_text() == "mine"

    def test_of_many_runs_at_once_one_gets_the_folder(self, tmp_path: Path) -> None:
        def claimed(_: int) -> bool:
            try:
                RunFolder.claim(tmp_path / "run")
            except UserError:
                return False
            return True

        with ThreadPoolExecutor(8) as pool:
            assert sum(pool.map(claimed, range(8))) == 1

    def test_a_claim_that_fails_frees_the_folder(self, tmp_path: Path) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
        try:
            with pytest.raises(UserError, match="can't be written .File too large"):
                RunFolder.claim(tmp_path / "run")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        RunFolder.claim(tmp_path / "run")._unlock()

    @pytest.mark.parametrize("status", ["running", "completed", "interrupted", "failed"])
    def test_a_folder_with_a_run_in_it_stays_taken(self, status: str, tmp_path: Path) -> None:
        RunFolder(tmp_path).set_status(status)
        (tmp_path / "checkpoints").mkdir()
        with pytest.raises(UserError, match="taken by another run"):
            RunFolder.claim(tmp_path)

    def test_a_folder_is_free_again_when_its_process_was_killed_before_it_began(self, tmp_path: Path) -> None:
        killed = RunFolder.claim(tmp_path / "run")
        with pytest.raises(UserError, match="taken by another run"):  # it lives
            RunFolder.claim(tmp_path / "run")
        killed._unlock()
        RunFolder.claim(tmp_path / "run")._unlock()
        (tmp_path / "run" / "config.yaml").write_text("beta: 1\n")  # it had begun
        with pytest.raises(UserError, match="taken by another run"):
            RunFolder.claim(tmp_path / "run")

    @pytest.mark.slow
    def test_fifty_processes_claim_one_folder_and_one_gets_it(self, tmp_path: Path) -> None:
        code = (
            "import sys; from pathlib import Path\n"
            "from vaex.runs.folder import RunFolder; from vaex.errors import UserError\n"
            "print('ready', flush=True); sys.stdin.readline()\n"
            "try:\n    RunFolder.claim(Path(sys.argv[1])); print('mine', flush=True)\n"
            "except UserError as error:\n    print(error, flush=True)\n"
            "sys.stdin.readline()"
        )
        command = [sys.executable, "-c", code, str(tmp_path / "run")]
        pipe = subprocess.PIPE
        processes = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) for _ in range(50)]

        def answers() -> list[str]:
            return [process.stdout.readline() for process in processes if process.stdout]

        def go_on() -> None:
            for process in processes:
                assert process.stdin
                process.stdin.write("\n")
                process.stdin.flush()

        assert answers() == ["ready\n"] * 50
        go_on()
        claims = answers()
        go_on()
        for process in processes:
            process.communicate(timeout=300)
        assert claims.count("mine\n") == 1 and sum("taken by another run" in claim for claim in claims) == 49

    @pytest.mark.parametrize("content", ["{", "[]", "{}", '{"status": "completed"}'])
    def test_a_folder_is_taken_unless_it_says_that_its_run_failed(self, content: str, tmp_path: Path) -> None:
        (tmp_path / "status.json").write_text(content)
        with pytest.raises(UserError, match="taken by another run"):
            RunFolder.claim(tmp_path)

    def test_a_checkpoint_of_another_architecture(self, run: Path, here: Here, small: list[str], said: Said) -> None:
        options = ["architecture.hidden=[8]", "architecture.activation=relu", "steps=2", "figures.kinds=[]"]
        other = here(*small, *options, folder="other")
        shutil.rmtree(run / "checkpoints")
        shutil.copytree(other / "checkpoints", run / "checkpoints")
        before = (run / "model.safetensors").read_bytes()
        error = said(here, f"resume={run}", "steps=4")
        assert "step-2.pt: belongs to another run: architecture.hidden was [8] and is [16]" in error
        assert json.loads((run / "status.json").read_text())["status"] == "completed"  # as it was before
        assert (run / "model.safetensors").read_bytes() == before

    def test_weights_of_another_model(self, run: Path, here: Here, small: list[str], said: Said) -> None:
        other = here(*small, "architecture.hidden=[8]", "steps=1", "figures.kinds=[]", folder="other")
        shutil.copy(other / "model.safetensors", run / "model.safetensors")
        for command in (lambda: cli.run("eval", [str(run)]), lambda: cli.run("draw", [str(run), "samples"])):
            assert "model.safetensors: damaged, or not of the model in config.yaml" in said(command)

    def test_a_config_edited_by_hand(self, run: Path, said: Said) -> None:
        path = run / "config.yaml"
        text = path.read_text()
        for old, new, part in (
            ("latent_dim: 20", "latent_dim: twenty", "latent_dim=twenty: must be of type int"),
            ("seed: 0", "sede: 0", "sede: no such key"),
            ("architecture:", "old_architecture:", "architecture"),
            ("dataset:", "dataset: 3\nold:", "config.yaml"),
            ("recorded:", "recorder:", "config.yaml: damaged"),
            ("image_shape:", "image_shapes:", "config.yaml: lacks recorded.image_shape"),
            ("beta: 1.0", "beta: [", "config.yaml: damaged"),
            (
                "_target_: vaex.objectives.VAE",
                "_target_: vaex.objectives.VAF",
                "there is no vaex.objectives.VAF on Python's path",
            ),
        ):
            assert old in text
            path.write_text(text.replace(old, new, 1))
            assert part in said(cli.run, "eval", [str(run)])
            with pytest.raises(UserError):
                package.load(run)

    def test_a_range_holds_for_what_was_edited_by_hand_too(self, run: Path, here: Here, said: Said) -> None:
        path = run / "config.yaml"
        path.write_text(path.read_text().replace("batch_size: 32", "batch_size: 0"))
        assert "batch_size=0: must be >= 1" in said(here, f"resume={run}", "steps=4")

    def test_damaged_results_are_named_before_anything_is_measured(self, run: Path, said: Said) -> None:
        for content in ("{", "[]", ""):
            (run / "results.json").write_text(content)
            for command in (lambda: cli.run("eval", [str(run)]), lambda: cli.run("draw", [str(run), "samples"])):
                assert "results.json: damaged" in said(command)
            assert (run / "results.json").read_text() == content

    def test_a_device_that_is_none(self, run: Path) -> None:
        with pytest.raises(UserError, match="device=gpu: must be auto, cpu, cuda or cuda:N"):
            package.load(run, device="gpu")


class Own(torch.nn.Module):
    """A component of a user, with typical bugs."""

    def __init__(self, *, fault: str, inner: object = None) -> None:
        super().__init__()
        if fault == "key":
            {}["missing"]
        if fault == "value":
            raise ValueError("fault=value: is no good;\ntake another")
        if fault == "empty":
            raise OSError


class TestOwnTargets:
    def test_an_error_keeps_its_traceback_and_says_which_key_led_there(self) -> None:
        inner = {"_target_": f"{__name__}.Own", "fault": "key"}
        for key, group in (
            ("corruption", inner),
            ("corruption.inner", {"_target_": f"{__name__}.Own", "fault": "", "inner": inner}),
        ):
            with pytest.raises(KeyError, match="missing") as error:
                create("corruption", group)
            assert error.value.__notes__ == [f"vaex: raised while creating {key}._target_={__name__}.Own"]
            assert error.traceback[-1].name == "__init__"

    @pytest.mark.parametrize(
        "fault, line",
        [("value", "fault=value: is no good; take another"), ("empty", "OSError")],
    )
    def test_a_value_that_it_refuses_is_one_line(self, fault: str, line: str) -> None:
        with pytest.raises(UserError) as error:
            create("corruption", {"_target_": f"{__name__}.Own", "fault": fault})
        assert str(error.value) == f"corruption: {line} ({__name__}.Own raised it; VAEX_DEBUG=1 shows where)"

    def test_a_module_that_cannot_be_imported(self, tmp_path: Path, monkeypatch: Patch) -> None:
        (tmp_path / "broken1.py").write_text("import nosuch1\n")
        (tmp_path / "broken2.py").write_text("1 +\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        for name, kind in (("broken1", ModuleNotFoundError), ("broken2", SyntaxError)):
            with pytest.raises(kind) as error:
                create("corruption", {"_target_": f"{name}.Own"})
            assert error.value.__notes__ == [f"vaex: raised while importing corruption._target_={name}.Own"]

    def test_the_command_shows_it_all(self, here: Here, tiny: list[str], monkeypatch: Patch) -> None:
        with pytest.raises(KeyError) as error:
            here(*tiny, "likelihood=cross_entropy", f"corruption._target_={__name__}.Own", "+corruption.fault=key")
        assert f"vaex: raised while creating corruption._target_={__name__}.Own" in error.value.__notes__
        status = json.loads((Path.cwd() / "run" / "status.json").read_text())
        assert status["status"] == "failed" and "KeyError" in status["traceback"]


def test_every_test_in_the_tables_of_faults_and_signals_exists() -> None:
    root = Path(__file__).parent.parent
    parsed = cache(lambda file: ast.parse((root / file).read_text()))
    text = (root / "docs" / "reliability.md").read_text()
    tables = text.partition("## Signals")[2].splitlines()
    rows = [line for line in tables if line.startswith("| ") and not line.endswith("| test |")]
    assert len(rows) >= 25
    for row in rows:
        named = re.fullmatch(r"\| .+ \| .+ \| `(tests/\w+\.py)::([\w:]+)` \|", row)
        assert named, row
        node: ast.AST = parsed(named[1])
        for name in named[2].split("::"):
            inside = [inner for inner in ast.iter_child_nodes(node) if getattr(inner, "name", None) == name]
            assert inside, f"{named[1]} has no {named[2]}"
            node = inside[0]
