"""The command: help, version, completion, and errors of one line that name the key, the value and the remedy."""

import errno
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Ran, composed

from vaex import __version__, cli
from vaex.build import build
from vaex.commands.train import main as train
from vaex.config.overrides import parse_overrides
from vaex.config.schema import config_dir
from vaex.errors import UserError

Vaex = Callable[..., Ran]
Captured = pytest.CaptureFixture[str]
Patch = pytest.MonkeyPatch


def command(monkeypatch: Patch, *arguments: str) -> None:
    """`vaex ARGUMENTS` in this process."""
    monkeypatch.setattr(sys, "argv", ["vaex", *arguments])
    monkeypatch.setattr(cli, "end_on_signals", lambda: None)  # the handlers would stay in the process of the tests
    cli.main()


def test_help_and_version(monkeypatch: Patch, capsys: Captured) -> None:
    command(monkeypatch, "--version")
    assert capsys.readouterr().out == f"vaex {__version__}\n"
    for arguments in ((), ("--help",), ("-h",)):
        command(monkeypatch, *arguments)
        assert "vaex train likelihood=laplace beta=4" in capsys.readouterr().out


def test_train_help_lists_every_group_and_option_and_a_users_own(tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "mine" / "likelihood").mkdir(parents=True)
    (tmp_path / "mine" / "likelihood" / "cauchy.yaml").write_text("# Heavy tails\n_target_: x.y\n")
    train(["--help", "--config-dir", str(tmp_path / "mine")])
    out = capsys.readouterr().out
    for path in config_dir().glob("*/**/*.yaml"):
        assert f"  {path.parent.relative_to(config_dir())}\n" in out
        assert f"    {path.stem} " in out
    assert re.search(r"^ +cauchy +Heavy tails$", out, flags=re.MULTILINE)
    assert "trainer.log_every=50" in out


def test_cfg_and_info_print_the_composed_config(capsys: Captured, monkeypatch: Patch) -> None:
    root = logging.getLogger()  # to which --info adds a handler
    monkeypatch.setattr(root, "handlers", list(root.handlers))
    monkeypatch.setattr(root, "level", root.level)
    train(["--cfg", "job", "beta=2"])
    out = capsys.readouterr().out
    assert "beta: 2" in out and "vaex.likelihoods.gaussian.Gaussian" in out
    train(["--cfg", "hydra", "--package", "hydra.launcher"])
    assert "hydra_plugins.vaex_sweeps.LocalLauncher" in capsys.readouterr().out
    train(["--info", "defaults", "likelihood=laplace"])
    assert "likelihood/laplace" in capsys.readouterr().out


def test_an_experiment_may_be_added_as_hydra_documents_it(capsys: Captured) -> None:
    configs = []
    for override in ("experiment=pytorch_example", "+experiment=pytorch_example"):
        train(["--cfg", "job", override])
        configs.append(capsys.readouterr().out)
    assert configs[0] == configs[1] and "CrossEntropy" in configs[0]


COMMAND_ERRORS = [
    # Arguments
    ("--nosuch", ["--nosuch", "vaex train --help"]),
    ("--cfg", ["--cfg", "expected one argument", "--hydra-help"]),
    ("--resolve", ["--resolve", "--cfg job"]),
    ("-m --cfg job beta=1,2", ["-m", "leave out either"]),
    ("--run --info", ["--run", "only one"]),
    ("beta=1 -m seed=1,2", ["seed=1,2", "before all of them"]),
    ("--config-dir=/no/such", ["--config-dir=/no/such", "no such folder"]),
    ("resume=/no/such/run", ["resume=/no/such/run", "config.yaml"]),
    ("resume=~nosuchuser/run", ["~nosuchuser/run", "config.yaml"]),
    ("-m resume=/no/such/run", ["resume=/no/such/run", "leave out -m"]),
    ("hydra.mode=MULTIRUN", ["hydra.mode=MULTIRUN", "-m"]),
    ("hydra.run.dir=/proc/run", ["hydra.run.dir=/proc/run", "another folder"]),
    ("hydra.run.dir=/", ["hydra.run.dir=/", "a new folder"]),
    ("hydra.run.dir=..", ["hydra.run.dir=..", "a new folder"]),
    ("hydra.run.dir=~", [f"hydra.run.dir={Path.home()}", "a new folder"]),
    ("-m hydra.sweep.dir=/", ["sweep=/", "a new folder"]),
    # Overrides that Hydra cannot parse
    ("beta", ["beta", "KEY=VALUE"]),
    ("=3", ["=3", "KEY=VALUE"]),
    ("dataset.source.root=~/digits", ["dataset.source.root=~/digits", "quote"]),
    ("figures.kinds=[größer]", ["figures.kinds=[größer]", "quote"]),
    ("steps=1 größe=3", ["größe=3", "letters"]),
    ("beta=${x", ["beta=${x", "${…}"]),
    ("hydra.run.dir=", ["hydra.run.dir=", "must name a folder"]),
    ("-m hydra.sweep.dir=${now:%Y}", ["hydra.sweep.dir=${now:%Y}", "without ${…}"]),
    ("hydra.job.name=[a]", ["hydra.job.name", "must be text", "hydra.job.name='…'"]),
    # Overrides that do not fit the config tree
    ("likelihood=laplce", ["likelihood=laplce", "did you mean laplace", "bernoulli, beta, categorical"]),
    ("experiment=nosuch", ["experiment=nosuch", "pytorch_example"]),
    ("likelihood=null", ["likelihood=null", "needs an option"]),
    ("+likelihood=laplace", ["+likelihood=laplace", "leave out the +"]),
    ("likelihood=bernoulli likelihood/scale=fixed", ["likelihood/scale=fixed", "has no scale"]),
    ("bta=4", ["bta=4", "did you mean beta"]),
    ("trainer.nosuch=1", ["trainer.nosuch=1", "no such key"]),
    ("likelihood.scale.flor=1", ["likelihood.scale.flor=1", "did you mean likelihood.scale.floor"]),
    ("+beta=3", ["+beta=3", "leave out the +"]),
    ("~nosuch", ["~nosuch", "no such key"]),
    ("beta=1,2", ["beta=1,2", "-m"]),
    ("hydra.job.chdir=perhaps", ["hydra.job.chdir=perhaps", "true or false"]),
]
VALUE_ERRORS = [  # values that the schema refuses
    ("++foo=3", ["foo", "no such key"]),
    ("~beta", ["beta", "removed", "leave that override out"]),
    ("~likelihood", ["likelihood", "removed"]),
    ("beta=-1", ["beta=-1", ">= 0"]),
    ("beta=nan", ["beta=nan", "finite"]),
    ("beta=", ["beta=", "number"]),
    ("beta=null", ["beta=null", "float"]),
    ("objective=ae beta=4", ["beta=4", "leave beta out", "objective=vae"]),
    ("objective=iwae beta=4", ["beta=4", "leave beta out", "objective=vae"]),
    ("objective.beta=-3", ["objective.beta=-3", "give beta=-3"]),
    ("optimizer.lr=nan", ["optimizer.lr=nan", "finite"]),
    ("steps=0", ["steps=0", ">= 1"]),
    ("seed=-1", ["seed=-1", "from 0"]),
    ("device=gpu", ["device=gpu", "cuda"]),
    ("latent_dim=2147483648", ["latent_dim=2147483648", "2147483647"]),
    ("latent_dim=99999999999999999999", ["latent_dim=99999999999999999999", "less than 2^63"]),
    ("beta=1e39", ["beta=1e+39", "finite", "3.4e+38"]),
    ("optimizer.betas=[0.9,1e400]", ["optimizer.betas[1]=inf", "finite"]),
    *(
        (f"{key}={'9' * 400}", [f"{key}=(an integer of 1329 bits)", "less than 2^63"])
        for key in ("beta", "steps", "optimizer.lr", "optimizer.eps", "trainer.clip_norm", "objective.free_bits")
    ),
    ("latent_dim=2.5", ["latent_dim=2.5", "whole number"]),
    ("batch_size=1e3", ["batch_size=1000.0", "whole number"]),
    ("conditional=maybe", ["conditional=maybe", "true or false"]),
    ("figures.kinds=samples", ["figures.kinds", "list", "figures.kinds=[a,b]"]),
    ("trainer.threads=100000", ["trainer.threads=100000", "from 1 to"]),
]


def test_a_mistake_in_the_command_line_is_one_line(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.chdir(tmp_path)
    for arguments, parts in COMMAND_ERRORS:
        with pytest.raises(UserError) as error:
            train(arguments.split())
        message = str(error.value)
        assert all(part in message for part in parts) and "\n" not in message, f"{arguments}: {message}"
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_a_suggested_quoting_reaches_hydra_as_the_text() -> None:
    texts = ["a=b", "a(b", "[", "a[b]", "{a", "a{b", "it's", 'a"b', 'it\'s "q"', "a,b", "a;b", "a&b|c", "größe", "a!b"]
    texts += ["`a`", "$a(b", "C:\\a(b", "a(\\", "a'\\", "a\\'b", "~/a", "a, b", "$(a)", "a\\$(", "a#b", "(a)\\\\"]
    suggestions = []
    for text in texts:
        with pytest.raises(UserError) as error:
            train(["steps=1", f"dataset.source.root={text}", "seed=2"])
        message, _, suggestion = str(error.value).rpartition("quote it twice: ")
        assert message.startswith(f"dataset.source.root={text}: ")
        suggestions.append(suggestion)
    command = ["bash", "-c", f"printf '%s\\0' {' '.join(suggestions)}"]
    overrides = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\0")[:-1]
    assert [override.value() for override in parse_overrides(overrides)] == texts


def test_text_is_asked_for_where_hydra_reads_another_type(small: list[str]) -> None:
    for value in ("1e3", "[ab]", "{a: b}", "true"):
        with pytest.raises(UserError, match=r"dataset\.source\.root=.*: must be text, .* \"dataset.source.root='…'\""):
            build(composed(f"dataset.source.root={value}"))


def test_a_value_that_is_out_of_range_or_of_another_type_is_one_line() -> None:
    for overrides, parts in VALUE_ERRORS:
        with pytest.raises(UserError) as error:
            composed(*overrides.split())
        message = str(error.value)
        assert all(part in message for part in parts) and "\n" not in message, f"{overrides}: {message}"


def test_a_log_that_cannot_be_set_up_is_one_line(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"Unable to configure handler 'console' .* hydra/job_logging=default or none"):
        train(["hydra/job_logging=disabled", "hydra.run.dir=run"])
    assert not list(tmp_path.iterdir())


def test_a_verb_that_is_missing_or_unknown(monkeypatch: Patch, capsys: Captured) -> None:
    for arguments, part in ((["beta=4"], "vaex train beta=4"), (["-m", "beta=1"], "verb"), (["trian"], "vaex train")):
        with pytest.raises(SystemExit) as stop:
            command(monkeypatch, *arguments)
        assert stop.value.code == 1
        line = capsys.readouterr().err
        assert part in line and line.count("\n") == 1


def test_an_error_is_one_line_and_a_traceback_only_on_request(vaex: Vaex) -> None:
    assert "beta=-1" in vaex("train", "beta=-1").one_line()
    ran = vaex("train", "beta=-1", HYDRA_FULL_ERROR="1")
    assert ran.code == 1 and "Traceback" in ran.error and "beta=-1" in ran.error


@pytest.mark.parametrize("encoding", [{"LC_ALL": "C", "PYTHONUTF8": "0"}, {"PYTHONIOENCODING": "ascii"}])
def test_a_locale_without_utf8_changes_nothing_else(
    encoding: dict[str, str], vaex: Vaex, tiny: list[str], tmp_path: Path
) -> None:
    ran = vaex(
        "train", *tiny, "steps=1", "figures.kinds=[]", "hydra.run.dir=größe", PYTHONCOERCECLOCALE="0", **encoding
    )
    assert (ran.code, ran.error.count("Traceback")) == (0, 0), ran.error
    assert (tmp_path / "größe" / "results.json").exists()


def test_an_error_from_outside_vaex_is_one_line(said: Callable[..., str], monkeypatch: Patch) -> None:
    for error, line in (
        (OSError(errno.ENOSPC, "No space left on device", "/data/x"), "/data/x: No space left on device; free some"),
        (OSError(errno.EIO, "Input/output error"), "Input/output error; fix the cause (VAEX_DEBUG=1"),
        (UnicodeEncodeError("utf-8", "name\udcff", 4, 5, "surrogates not allowed"), r"name\udcff: is not UTF-8 text"),
        (UserError("seed\n=\x1b[2J3: no"), r"seed =\x1b[2J3: no"),  # which would clear the terminal
    ):

        def fail(arguments: list[str], error: Exception = error) -> None:
            raise error

        monkeypatch.setattr("vaex.commands.report.main", fail)
        assert said(cli.run, "report", []).startswith(line)


def test_a_closed_pipe_is_no_error(tmp_path: Path) -> None:
    """As in `vaex train --help | head -1`."""
    run = [sys.executable, "-m", "vaex", "train", "--help"]
    process = subprocess.Popen(run, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path)
    assert process.stdout and process.stderr
    process.stdout.close()
    error = process.stderr.read().decode()
    process.stderr.close()
    assert (process.wait(300), error) == (141, "")


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
