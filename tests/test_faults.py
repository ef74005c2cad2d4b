"""Input that is wrong: one line with the key, the value and the remedy, and nothing lost or left looking complete."""

import ast
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from conftest import composed

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
    """No run at all, or one that says that it failed."""
    assert not (run / "model.safetensors").exists() and not (run / "results.json").exists()
    if (run / "status.json").exists():
        assert json.loads((run / "status.json").read_text())["status"] == "failed"


# Found before anything is built.
MISTAKES = [
    ("latent_dim=99999999999999999999", ["latent_dim=99999999999999999999", "2147483647"]),
    ("latent_dim=2.5", ["latent_dim=2.5", "whole number"]),
    ("seed=-1", ["seed=-1", "from 0"]),
    ("batch_size=1e3", ["batch_size=1000.0", "whole number"]),
    ("beta=", ["beta=", "number"]),
    ("beta=null", ["beta=null", "float"]),
    ("objective.beta=-3", ["objective.beta=-3", "give beta=-3"]),
    ("conditional=maybe", ["conditional=maybe", "true or false"]),
    ("figures.kinds=samples", ["figures.kinds", "list", "figures.kinds=[a,b]"]),
    ("figures.kinds=[größer]", ["figures.kinds=[größer]", "quote"]),
    ("trainer.threads=100000", ["trainer.threads=100000", "from 1 to"]),
    ("trainer.nosuch=1", ["trainer.nosuch=1", "no such key"]),
    ("experiment=nosuch", ["experiment=nosuch", "pytorch_example"]),
    ("+beta=3", ["+beta=3", "leave out the +"]),
    ("~nosuch", ["nosuch", "no such key"]),
    ("beta", ["beta", "KEY=VALUE"]),
    ("=3", ["=3"]),
    ("--nosuch", ["--nosuch", "vaex train --help"]),
    ("--config-dir=nosuch", ["--config-dir=", "no such folder"]),
    ("resume=~nosuchuser/run", ["~nosuchuser/run", "config.yaml"]),
]


@pytest.mark.parametrize("argument, parts", MISTAKES, ids=[argument for argument, _ in MISTAKES])
def test_a_mistake_is_told_in_one_line(argument: str, parts: list[str], here: Here, said: Said) -> None:
    error = said(here, argument)
    assert all(part in error for part in parts), error
    assert_incomplete(Path.cwd() / "run")


def test_flags_stand_before_the_overrides(here: Here, said: Said) -> None:
    assert "seed=1,2: is apart from the other overrides" in said(here, "beta=1", "-m", "seed=1,2", folder=None)


# Found when a part is built.
UNFIT = [
    ("architecture.hidden=[-3]", ["architecture.hidden=[-3]", ">= 1"]),
    ("architecture.hidden=[a]", ["architecture.encoder.hidden=['a']", "list", "int"]),
    ("architecture.hidden=[1.5]", ["architecture.encoder.hidden=[1.5]", "int"]),
    ("architecture.hidden=null", ["architecture.encoder.hidden=None", "list"]),
    ("architecture.hidden=[1000000000000000]", ["architecture.encoder", "out of memory", "lower"]),
    ("architecture.hidden=[99999999999999999999]", ["architecture.encoder.hidden=[99999999999999999999]", "int"]),
    ("architecture.encoder=mlp", ["architecture.encoder._target_", "missing"]),
    ("~architecture.encoder", ["architecture.encoder", "missing"]),
    ("+architecture.encoder._partial_=true", ["architecture.encoder._partial_", "by their names"]),
    ("+likelihood.image_shape=[1,2,3]", ["likelihood.image_shape", "leave it out"]),
    ("likelihood._target_=torch.nn.Identity", ["likelihood._target_", "Identity", "Likelihood"]),
    ("objective._target_=vaex.data.dataset.Dataset", ["objective", "vaex.data.dataset.Dataset", "source"]),
    ("optimizer._target_=torch.optim.SGD", ["optimizer", "torch.optim.SGD", "betas"]),
    ("optimizer.betas=[0.9]", ["optimizer.betas=[0.9]", "list [a, b]"]),
    ("optimizer.betas=[2,3]", ["optimizer", "Invalid beta", "VAEX_DEBUG=1"]),
    ("dataset.source=mnist", ["dataset.source=mnist", "_target_"]),
    ("dataset.validation=1200", ["dataset.validation=1200", "1199"]),
]


@pytest.mark.parametrize("argument, parts", UNFIT, ids=[argument for argument, _ in UNFIT])
def test_a_part_that_cannot_be_built_is_told_in_one_line(argument: str, parts: list[str], tiny: list[str]) -> None:
    given = [override for override in tiny if not override.startswith(argument.partition("=")[0])]
    with pytest.raises(UserError) as error:
        build(composed(*given, argument))
    assert all(part in str(error.value) for part in parts) and "\n" not in str(error.value), error.value


def test_pictures_that_there_are_none_of(here: Here, tiny: list[str], said: Said) -> None:
    assert "figures.kinds=nosuch" in said(here, *tiny, "figures.kinds=[nosuch]")
    assert_incomplete(Path.cwd() / "run")
    here(*tiny, "figures.kinds=[samples]", "steps=1")  # the run that came to nothing has left the folder free


@pytest.mark.parametrize(
    "overrides, parts",
    [
        (["architecture=vit", "architecture.patch_size=5"], ["architecture.patch_size=5", "28 × 28", "1, 2, 4, 7"]),
        (["architecture=conv", "architecture.widths=[4,4,4,4,4,4]"], ["architecture.widths", "28 × 28", "at most 4"]),
        (["architecture=conv", "architecture.widths=[]"], ["architecture.widths=[]", ">= 1"]),
        (["architecture=resnet", "architecture.groups=3"], ["architecture.groups=3", "divide"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) and "=" in value[-1] else None,
)
def test_images_that_an_architecture_cannot_take(
    overrides: list[str], parts: list[str], here: Here, small: list[str], said: Said
) -> None:
    error = said(here, *small, *overrides)
    assert all(part in error for part in parts), error
    assert_incomplete(Path.cwd() / "run")


@pytest.mark.parametrize(
    "argument", ["architecture.hidden=[-3]", "beta=-1", "dataset.source.root=/no/such", "optimizer.betas=[2,3]"]
)
def test_the_traceback_is_there_for_who_asks(argument: str, here: Here, tiny: list[str], monkeypatch: Patch) -> None:
    """An error that isn't caught, from which Python makes a traceback and exit code 1; and its cause, if it has one."""
    monkeypatch.setenv("VAEX_DEBUG", "1")
    with pytest.raises(UserError) as error:
        here(*tiny, argument)
    if argument != "beta=-1":
        assert isinstance(error.value.__cause__, ValueError | OSError)


class TestData:
    @pytest.fixture
    def folder(self, tiny: list[str], tmp_path: Path) -> Path:
        """The small MNIST, to be damaged."""
        return Path(shutil.copytree(tiny[0].partition("=")[2], tmp_path / "digits"))

    def test_a_truncated_file_ends_the_run_and_the_whole_one_starts_it(
        self, folder: Path, here: Here, tiny: list[str], said: Said
    ) -> None:
        """In the same folder: a run that came to nothing has taken none."""
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

    def test_a_grey_model_meets_colour(
        self, here: Here, tiny: list[str], said: Said, pictures: Path, tmp_path: Path
    ) -> None:
        """The pictures that it was trained on have become others."""
        own = Path(shutil.copytree(pictures, tmp_path / "own"))
        data = ["dataset=image_folder", f"dataset.source.root={own}", "dataset.source.size=16", "batch_size=32"]
        network = ["architecture.hidden=[16]", "steps=1", "figures.kinds=[]"]
        run = here(*data, *network, "dataset.source.channels=1")
        before = (run / "results.json").read_bytes()
        path = run / "config.yaml"
        path.write_text(path.read_text().replace("channels: 1\n", "channels: 3\n"))
        for command in (lambda: cli.evaluate([str(run)]), lambda: cli.draw([str(run), "samples"])):
            assert "trained on images of [1, 16, 16], and its dataset now has [3, 16, 16]" in said(command)
        assert "not of the model in config.yaml" in said(here, f"resume={run}", "steps=2")
        assert (run / "results.json").read_bytes() == before


class TestRunFolders:
    @pytest.fixture
    def run(self, here: Here, tiny: list[str]) -> Path:
        return here(*tiny, "steps=2", "figures.kinds=[]")

    def test_odd_names_are_names(self, here: Here, tiny: list[str]) -> None:
        path = "with space/a=b/ünï λ/quo'te"
        quoted = "'" + path.replace("'", "\\'") + "'"
        here(*tiny, "steps=1", "figures.kinds=[]", f"hydra.run.dir={quoted}", folder=None)
        run = Path.cwd() / path
        assert run.is_dir()
        here(f"resume={path}", "steps=2")
        assert json.loads((run / "results.json").read_text())["train/steps"] == 2
        cli.evaluate([path, "--samples", "0", "--fid", "none"])

    def test_a_file_is_no_folder(self, here: Here, tiny: list[str], said: Said, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("mine")
        for path in ("file", "file/run"):
            error = said(here, *tiny, f"hydra.run.dir={path}", folder=None)
            assert f"hydra.run.dir: {path} can't be made" in error and "another folder" in error
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
            "import sys, time; from pathlib import Path; from vaex.runs.folder import RunFolder\n"
            "time.sleep(max(0, float(sys.argv[2]) - time.time()))\n"
            "RunFolder.claim(Path(sys.argv[1])); print('mine', flush=True); time.sleep(20)"
        )
        start = str(time.time() + 20)  # when all have imported what they need
        command = [sys.executable, "-c", code, str(tmp_path / "run"), start]
        processes = [
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(50)
        ]
        answers = [process.communicate(timeout=120) for process in processes]
        assert sum(out.strip() == "mine" for out, _ in answers) == 1
        assert sum("taken by another run" in error for _, error in answers) == 49

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
        assert "step-2.pt: not of the model in config.yaml" in error
        assert json.loads((run / "status.json").read_text())["status"] == "failed"
        assert (run / "model.safetensors").read_bytes() == before

    def test_weights_of_another_model(self, run: Path, here: Here, small: list[str], said: Said) -> None:
        other = here(*small, "architecture.hidden=[8]", "steps=1", "figures.kinds=[]", folder="other")
        shutil.copy(other / "model.safetensors", run / "model.safetensors")
        for command in (lambda: cli.evaluate([str(run)]), lambda: cli.draw([str(run), "samples"])):
            assert "model.safetensors: damaged, or not of the model in config.yaml" in said(command)

    def test_a_config_edited_by_hand(self, run: Path, said: Said) -> None:
        path = run / "config.yaml"
        text = path.read_text()
        for old, new, part in (
            ("latent_dim: 20", "latent_dim: twenty", "latent_dim=twenty: must be of type int"),
            ("seed: 0", "sede: 0", "sede: no such key"),
            ("dataset:", "dataset: 3\nold:", "config.yaml"),
            ("recorded:", "recorder:", "config.yaml: damaged"),
            ("image_shape:", "image_shapes:", "config.yaml: recorded has no image_shape"),
            ("beta: 1.0", "beta: [", "config.yaml: damaged"),
            ("_target_: vaex.objectives.VAE", "_target_: vaex.objectives.VAF", "vaex.objectives has no VAF"),
        ):
            assert old in text
            path.write_text(text.replace(old, new, 1))
            assert part in said(cli.evaluate, [str(run)])
            with pytest.raises(UserError):
                package.load(run)

    def test_a_range_holds_for_what_was_edited_by_hand_too(self, run: Path, here: Here, said: Said) -> None:
        path = run / "config.yaml"
        path.write_text(path.read_text().replace("batch_size: 32", "batch_size: 0"))
        assert "batch_size=0: must be >= 1" in said(here, f"resume={run}", "steps=4")

    def test_damaged_results_are_named_before_anything_is_measured(self, run: Path, said: Said) -> None:
        for content in ("{", "[]", ""):
            (run / "results.json").write_text(content)
            for command in (lambda: cli.evaluate([str(run)]), lambda: cli.draw([str(run), "samples"])):
                assert "results.json: damaged" in said(command)
            assert (run / "results.json").read_text() == content

    def test_a_device_that_is_none(self, run: Path) -> None:
        with pytest.raises(UserError, match="device=gpu: must be auto, cpu, cuda or cuda:N"):
            package.load(run, device="gpu")


class Own(torch.nn.Module):
    """A part of somebody's own, with the mistakes that such have."""

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
            assert error.value.__notes__ == [f"vaex: {key}._target_={__name__}.Own led there"]
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
            assert error.value.__notes__ == [f"vaex: corruption._target_={name}.Own led there"]

    def test_the_command_shows_it_all(self, here: Here, tiny: list[str], monkeypatch: Patch) -> None:
        with pytest.raises(KeyError) as error:
            here(*tiny, "likelihood=cross_entropy", f"corruption._target_={__name__}.Own", "+corruption.fault=key")
        assert f"vaex: corruption._target_={__name__}.Own led there" in error.value.__notes__
        status = json.loads((Path.cwd() / "run" / "status.json").read_text())
        assert status["status"] == "failed" and "KeyError" in status["traceback"]


def test_every_test_that_the_table_of_faults_names_is_there() -> None:
    root = Path(__file__).parent.parent
    text = (root / "docs" / "reliability.md").read_text()
    rows = [line for line in text.partition("## Faults")[2].splitlines() if line.startswith("| ")][1:]
    assert len(rows) >= 25
    for row in rows:
        named = re.fullmatch(r"\| .+ \| .+ \| `(tests/\w+\.py)::([\w:]+)` \|", row)
        assert named, row
        node: ast.AST = ast.parse((root / named[1]).read_text())
        for name in named[2].split("::"):
            inside = [inner for inner in ast.iter_child_nodes(node) if getattr(inner, "name", None) == name]
            assert inside, f"{named[1]} has no {named[2]}"
            node = inside[0]
