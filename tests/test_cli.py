"""The command: help, version, completion, and errors of one line that name the key, the value and the remedy."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import Ran

from vaex import __version__
from vaex.config.schema import config_dir

Vaex = Callable[..., Ran]
Here = Callable[..., Path]
Captured = pytest.CaptureFixture[str]


def failed(here: Here, capsys: Captured, arguments: list[str]) -> Ran:
    chosen = any(argument.startswith("hydra.run.dir=") for argument in arguments)
    with pytest.raises(SystemExit) as stop:
        here(*arguments, folder=None if chosen else "run")
    captured = capsys.readouterr()
    return Ran(int(stop.value.code or 0), captured.out, captured.err)


def test_help_and_version(vaex: Vaex) -> None:
    assert vaex("--version").out == f"vaex {__version__}\n"
    for arguments in ((), ("--help",), ("-h",)):
        assert "vaex train likelihood=laplace beta=4" in vaex(*arguments).out


def test_train_help_lists_every_group_and_option_and_a_users_own(vaex: Vaex, tmp_path: Path) -> None:
    (tmp_path / "mine" / "likelihood").mkdir(parents=True)
    (tmp_path / "mine" / "likelihood" / "cauchy.yaml").write_text("# Heavy tails\n_target_: x.y\n")
    out = vaex("train", "--help", "--config-dir", str(tmp_path / "mine")).out
    for path in config_dir().glob("*/**/*.yaml"):
        assert f"  {path.parent.relative_to(config_dir())}\n" in out
        assert f"    {path.stem} " in out
    assert re.search(r"^ +cauchy +Heavy tails$", out, flags=re.MULTILINE)
    assert "trainer.log_every=50" in out


def test_cfg_job_prints_the_composed_config(vaex: Vaex) -> None:
    out = vaex("train", "--cfg", "job", "beta=2").out
    assert "beta: 2" in out and "vaex.likelihoods.gaussian.Gaussian" in out


@pytest.mark.parametrize(
    "arguments, parts",
    [
        ("likelihood=laplce", ["likelihood=laplce", "did you mean laplace", "bernoulli, beta, categorical"]),
        ("bta=4", ["bta=4", "did you mean beta"]),
        ("-m --cfg job beta=1,2", ["-m", "leave out either"]),
        ("likelihood.scale.flor=1", ["likelihood.scale.flor=1", "did you mean likelihood.scale.floor"]),
        ("++foo=3", ["foo", "no such key"]),
        ("~beta", ["beta", "removed", "leave that override out"]),
        ("~likelihood", ["likelihood", "removed"]),
        ("likelihood=null", ["likelihood=null", "needs an option"]),
        ("beta=-1", ["beta=-1", ">= 0"]),
        ("beta=nan", ["beta=nan", "finite"]),
        ("beta=inf", ["beta=inf", "finite"]),
        ("beta=high", ["beta=high", "number"]),
        ("beta=1,2", ["beta=1,2", "-m"]),
        ("objective=ae beta=4", ["beta=4", "leave beta out", "objective=vae"]),
        ("objective=iwae beta=4", ["beta=4", "leave beta out", "objective=vae"]),
        ("likelihood=bernoulli likelihood/scale=fixed", ["likelihood/scale=fixed", "has no scale"]),
        ("optimizer.lr=nan", ["optimizer.lr=nan", "finite"]),
        ("steps=0", ["steps=0", ">= 1"]),
        ("device=gpu", ["device=gpu", "cuda"]),
        ("dataset.source.root=~/digits", ["dataset.source.root=~/digits", "quote"]),
        ("resume=/no/such/run", ["resume=/no/such/run", "config.yaml"]),
        ("-m resume=/no/such/run", ["resume=/no/such/run", "leave out -m"]),
        ("--config-dir=/no/such", ["--config-dir=/no/such", "no such folder"]),
        ("hydra.run.dir=/proc/run", ["hydra.run.dir", "/proc/run", "another folder"]),
    ],
)
def test_config_errors(here: Here, capsys: Captured, arguments: str, parts: list[str]) -> None:
    ran = failed(here, capsys, arguments.split())
    assert all(part in ran.one_line() for part in parts), ran.error


@pytest.mark.parametrize(
    "arguments, parts",
    [
        (["likelihood=bernoulli"], ["likelihood Bernoulli", "grey", "dataset.binarize=", "likelihood=cross_entropy"]),
        (["batch_size=1001"], ["batch_size=1001", "1000 training images"]),
        (["architecture.hidden=512"], ["architecture.encoder.hidden=512", "list"]),
        (["optimizer.lr=fast"], ["optimizer.lr=fast", "float"]),
        (["optimizer.lr=-1"], ["optimizer", "-1"]),
        (["dataset.binarize=hard"], ["dataset.binarize=hard", "none, threshold, static, dynamic"]),
        (["architecture.activation=rely"], ["architecture.activation=rely", "relu"]),
        (["+likelihood.foo=3"], ["likelihood", "foo"]),
        (["schedule.warmup=1000", "steps=10"], ["schedule.warmup=1000", "10 steps"]),
        (["objective=iwae", "likelihood/scale=optimal"], ["objective=iwae", "likelihood/scale=shared"]),
        (["objective=iwae", "objective.samples=0"], ["objective.samples=0", ">= 1"]),
        (["corruption=masking", "corruption.fraction=2"], ["corruption.fraction=2", "from 0 to 1"]),
        (["dataset=image_folder", "dataset.source.size=large"], ["dataset.source.size=large", "of type int"]),
        (["dataset=image_folder", "dataset.source.root=null"], ["dataset.source.root", "folder"]),
        (["dataset.resident=maybe"], ["dataset.resident=maybe", "auto, true or false"]),
        (["likelihood.scale.init=0.001"], ["likelihood.scale.init=0.001", "likelihood.scale.floor"]),
        (["dataset.source.root=/no/such"], ["/no/such", "no such file", "dataset.source.root"]),
        (["architecture.encoder._target_=vaex.nosuch.Encoder"], ["architecture.encoder", "vaex.nosuch.Encoder"]),
        pytest.param(
            ["device=cuda"],
            ["device=cuda", "device=auto or cpu"],
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here"),
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_errors_of_what_does_not_fit_together(
    here: Here, capsys: Captured, tiny: list[str], arguments: list[str], parts: list[str]
) -> None:
    ran = failed(here, capsys, [*tiny, *arguments])
    assert all(part in ran.one_line() for part in parts), ran.error


def test_a_verb_that_is_missing_or_unknown(vaex: Vaex) -> None:
    assert "vaex train beta=4" in vaex("beta=4").one_line()
    assert "after the verb" in vaex("-m", "beta=1,2").one_line()
    assert "vaex train" in vaex("trian").one_line()


def test_the_traceback_is_there_for_who_asks(vaex: Vaex) -> None:
    for name in ("VAEX_DEBUG", "HYDRA_FULL_ERROR"):
        ran = vaex("train", "beta=-1", **{name: "1"})
        assert ran.code != 0 and "Traceback" in ran.error and "beta=-1" in ran.error


OWN_LIKELIHOOD = """
import torch
from vaex.likelihoods.location_scale import LocationScale, Standard


class StandardCauchy(Standard):
    log_normalizer = 1.1447298858494002  # log pi
    variance = float("inf")

    def log_kernel(self, e):
        return -torch.log1p(e.square())


class Cauchy(LocationScale):
    standard = StandardCauchy()
"""


def test_a_users_own_likelihood_needs_no_change_to_vaex(
    here: Here, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mypackage.py").write_text(OWN_LIKELIHOOD)
    (tmp_path / "myconf" / "likelihood").mkdir(parents=True)
    (tmp_path / "myconf" / "likelihood" / "cauchy.yaml").write_text(
        "# Heavy tails\ndefaults:\n  - scale: shared\n  - _self_\n_target_: mypackage.Cauchy\nbounded_mean: true\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    run = here("--config-dir", "myconf", "likelihood=cauchy", "steps=3", *tiny)
    assert (run / "results.json").exists()


@pytest.mark.skipif(shutil.which("bash") is None or shutil.which("vaex") is None, reason="needs bash and the command")
def test_shell_completion(tmp_path: Path) -> None:
    script = """
    eval "$(vaex train -sc install=bash)"
    COMP_LINE='vaex train likelihood=la'; COMP_POINT=${#COMP_LINE}
    COMP_WORDS=(vaex train likelihood=la); COMP_CWORD=2
    hydra_bash_completion
    echo "completed: ${COMPREPLY[@]}"
    """
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert "completed: likelihood=laplace" in done.stdout, done.stdout + done.stderr
