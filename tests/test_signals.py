"""Signals: which one, how often, to which process and in which phase. docs/reliability.md has the table."""

import json
import os
import pty
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from conftest import fork
from test_resume import COMMON, PLACES, same_run, send, signal_at
from test_sweeps import LONG, at_work, is_free, process_of, started, statuses, until

import vaex.commands.draw
import vaex.evaluation.measure
import vaex.report.sections
import vaex.runs.writing
import vaex.train
from vaex import cli
from vaex.runs.writing import TEMPORARY
from vaex.training import signals
from vaex.training.signals import request_stop, stop_on_signals
from vaex.training.writer import RunWriter

Here = Callable[..., Path]
Patch = pytest.MonkeyPatch

INT, TERM, HUP, USR1, USR2 = ALL = (
    *(signal.SIGINT, signal.SIGTERM, signal.SIGHUP),
    *(signal.SIGUSR1, signal.SIGUSR2),
)

# The phases in which a process gets its signals: the owner and the name of a function, and which of its calls.
OF_TRAIN: dict[str, tuple[Any, str, int]] = {
    "load": (vaex.train, "build_in_all", 1),
    "step": (*PLACES["step"], 40),
    "validate": (*PLACES["evaluate"], 1),
    "draw": (*PLACES["draw"], 1),
    "save": (*PLACES["save"], 1),  # in the background thread
    "test": (*PLACES["test"], 1),
    "results": (RunWriter, "write_results", 1),
}
COMMANDS = {"eval": ["eval", "--samples=0", "--fid=none"], "draw command": ["draw"], "report": ["report"]}
OF_COMMANDS: dict[str, tuple[Any, str, int]] = {
    "eval": (vaex.evaluation.measure, "measure", 1),
    "draw command": (vaex.commands.draw, "_draw", 1),
    "report": (vaex.report.sections, "build_document", 1),
    # When the new file is complete under its temporary name:
    **{f"{command}, writing": (vaex.runs.writing.os, "replace", 1) for command in COMMANDS},
}


class Case(NamedTuple):
    """Signals that a process gets in one phase: all in one moment, or (`later`) each in a moment of its own."""

    phase: str
    numbers: tuple[signal.Signals, ...]
    later: bool = False

    @property
    def ends_at_once(self) -> bool:
        return self.later and sum(number in (INT, TERM, HUP) for number in self.numbers) > 1


def named(case: Case) -> str:
    names = [number.name.removeprefix("SIG") for number in case.numbers]
    return f"{case.phase}-{(' later ' if case.later else ' and ').join(names)}"


def outcome(case: Case, command: list[str], tmp_path: Path, monkeypatch: Patch) -> tuple[int, str]:
    """Call `vaex` in a process of its own and send it the signals. Returns its exit code and its output."""
    owner, name, which = (OF_TRAIN | OF_COMMANDS)[case.phase]
    function, calls = getattr(owner, name), 0
    received, log = tmp_path / "received", tmp_path / "log"

    def wait_for_signals(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == which:
            while True:  # where nothing is to be saved, the process ends in here
                count = len(signals._flag._received) if signals._flag else 0
                received.write_text(f"{count}\n")
                if count == len(case.numbers):
                    break
                time.sleep(0.01)
        return function(*arguments, **options)

    def call() -> None:
        for descriptor in (1, 2):
            os.dup2(sys.stdout.fileno(), descriptor)
        for number in ALL:
            if signal.getsignal(number) == signal.SIG_IGN:  # SIGHUP, if the tests run under nohup
                signal.signal(number, signal.SIG_DFL)
        cli.main()

    with monkeypatch.context() as patched:
        patched.chdir(tmp_path)
        patched.setattr(owner, name, wait_for_signals)
        patched.setattr(signals, "SAME_MOMENT", 0.0 if case.later else 3600.0)
        patched.setattr(sys, "argv", ["vaex", *command])
        child = fork(call, log)
    for count, number in enumerate(case.numbers):
        while (received.read_text() if received.exists() else "") != f"{count}\n":
            assert os.waitpid(child, os.WNOHANG) == (0, 0), log.read_text()
            time.sleep(0.005)
        os.kill(child, number)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), log.read_text()


def with_slow(fast: list[Case], slow: list[Case]) -> list[Any]:
    return [
        *(pytest.param(case, id=named(case)) for case in fast),
        *(pytest.param(case, id=named(case), marks=pytest.mark.slow) for case in slow if case not in fast),
    ]


TWICE = [
    *((numbers, False) for numbers in ((TERM, TERM), (HUP, TERM), (INT, INT))),
    *((numbers, True) for numbers in ((INT, INT), (INT, TERM), (USR1, USR2), (USR1, TERM), (TERM, USR1))),
]
TRAINING = with_slow(
    [
        *(Case("load", (HUP,)), Case("validate", (HUP,)), Case("test", (USR2,)), Case("save", (TERM, TERM))),
        *(Case("step", (INT, INT), later=True), Case("step", (USR1, TERM), later=True)),
    ],
    [
        *(Case(phase, (number,)) for phase in OF_TRAIN for number in ALL),
        *(Case(phase, *twice) for phase in ("step", "validate", "draw", "save", "test") for twice in TWICE),
    ],
)


@pytest.mark.parametrize("case", TRAINING)
def test_a_run_that_gets_signals(
    case: Case, trained: Here, here: Here, tiny: list[str], monkeypatch: Patch, tmp_path: Path
) -> None:
    """It saves a checkpoint and says how to continue, and the resumed run is the one that was never stopped."""
    whole, parts, arguments = trained(*tiny, *COMMON), tmp_path / "parts", [*tiny, *COMMON]
    code, out = outcome(case, ["train", *arguments, f"hydra.run.dir={parts}"], tmp_path, monkeypatch)
    assert "Traceback" not in out
    status = json.loads((parts / "status.json").read_text())["status"]
    first = case.numbers[0]
    if case.phase == "results":
        assert code == 0 and status == "completed"
    elif case.phase == "load":
        assert code == 128 + first and status == "interrupted"
        assert out.endswith(f"vaex: interrupted by {first.name}; run the same command again\n")
        here(*arguments, folder="parts")
    else:
        if case.ends_at_once:
            assert code == -case.numbers[-1] and status == "running"
        else:
            assert code == 128 + first and status == "interrupted"
            assert re.search(r"^vaex: interrupted: .*vaex train resume=parts$", out, flags=re.MULTILINE)
            assert not list(parts.rglob(f"*{TEMPORARY}"))
        here(f"resume={parts}")
    same_run(whole, parts)


OTHERS = with_slow(
    [Case("eval, writing", (TERM,)), Case("report", (HUP,))],
    [Case(phase, (number,)) for phase in OF_COMMANDS for number in ALL],
)


@pytest.mark.parametrize("case", OTHERS)
def test_another_command_that_gets_a_signal(
    case: Case, trained: Here, tiny: list[str], monkeypatch: Patch, tmp_path: Path
) -> None:
    """It ends at once and leaves every file as it was, and the same command then does all of its work."""
    run = tmp_path / "run"
    shutil.copytree(trained(*tiny, *COMMON), run)
    before = {path: path.read_bytes() for path in run.rglob("*.*") if path.is_file()}
    command = [*COMMANDS[case.phase.partition(",")[0]], str(run)]
    code, out = outcome(case, command, tmp_path, monkeypatch)
    assert code == 128 + case.numbers[0]
    assert out.endswith(f"vaex: interrupted by {case.numbers[0].name}; run the same command again\n")
    assert "Traceback" not in out
    assert {path: path.read_bytes() for path in before} == before
    monkeypatch.chdir(tmp_path)
    cli.run(command[0], command[1:])
    assert not list(run.rglob(f"*{TEMPORARY}"))


# The processes of a sweep.

JOBLIB = ("hydra/launcher=joblib_local", "hydra.launcher.n_jobs=2")
SWEEPS = [
    pytest.param("local", "group", (TERM,), id="local-group-TERM"),
    *(
        pytest.param(launcher, target, numbers, id=name, marks=pytest.mark.slow)
        for launcher, target, numbers, name in (
            *(("local", "group", (number,), f"local-group-{number.name[3:]}") for number in (INT, HUP, USR1, USR2)),
            ("local", "group", (TERM, TERM), "local-group-TERM and TERM"),
            ("local", "timeout", (TERM,), "local-timeout-TERM"),
            *(("local", "command", (number,), f"local-command-{number.name[3:]}") for number in ALL),
            ("local", "run", (TERM,), "local-run-TERM"),
            *(("joblib", "group", (number,), f"joblib-group-{number.name[3:]}") for number in (INT, TERM, HUP, USR1)),
            ("joblib", "group", (TERM, TERM), "joblib-group-TERM and TERM"),
            *(("joblib", "command", (number,), f"joblib-command-{number.name[3:]}") for number in ALL),
            ("joblib", "run", (TERM,), "joblib-run-TERM"),
            ("basic", "command", (INT,), "basic-command-INT"),
            ("basic", "command", (TERM,), "basic-command-TERM"),
        )
    ),
]


@pytest.mark.parametrize("launcher, target, numbers", SWEEPS)
def test_a_sweep_that_gets_signals(
    launcher: str, target: str, numbers: tuple[signal.Signals, ...], tiny: list[str], tmp_path: Path
) -> None:
    """Its runs save a checkpoint and no other starts; the command says how to continue.

    Args:
        target: the whole process group; the same by `timeout`; only the command; or only the process of one run.
    """
    if launcher == "joblib":
        pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    sweep, runs = tmp_path / "sweep", ["beta=1", "beta=2"]
    options = {"local": ["sweep.workers=2"], "joblib": JOBLIB, "basic": ["hydra/launcher=basic"]}[launcher]
    arguments = ["beta=1,2,4", *LONG, *tiny, "hydra.sweep.dir=sweep", *options]
    if launcher == "basic":  # one run after the other
        runs = runs[:1]
    # Once it gets the signal, `timeout` passes it on as it does when the time is over.
    wrapper = ["timeout", "1000"] if target == "timeout" else []
    with started(*arguments, cwd=tmp_path, wrapper=wrapper) as process:
        until(lambda: all(at_work(sweep / run) for run in runs))
        if target == "run":
            os.kill(process_of(sweep / "beta=1"), *numbers)
            until(lambda: statuses(sweep)["beta=1"] == "interrupted")
            assert statuses(sweep)["beta=2"] == "running" and process.poll() is None
            process.send_signal(TERM)
        for number in numbers if target != "run" else ():
            (os.killpg if target == "group" else os.kill)(process.pid, number)
        out, error = process.communicate(timeout=120)
    assert process.returncode == 128 + numbers[0]
    assert {run: statuses(sweep)[run] for run in runs} == dict.fromkeys(runs, "interrupted")
    if target != "run":
        assert set(statuses(sweep)) == set(runs)
        assert re.search(r"^beta=4 +not run$", out, flags=re.MULTILINE)
    assert "Traceback" not in error
    assert re.search(r"^vaex: interrupted: .*; resume it with vaex train -m .*sweep=sweep$", error, flags=re.MULTILINE)
    for run in runs:
        reason = json.loads((sweep / run / "status.json").read_text())["reason"]
        saved = re.search(r"stopped at step (\d+)", reason)
        assert saved and (sweep / run / "checkpoints" / f"step-{saved[1]}.pt").is_file()


@pytest.mark.slow
def test_the_runs_of_joblib_save_themselves_when_the_command_is_killed(tiny: list[str], tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    runs = [tmp_path / "sweep" / name for name in ("beta=1", "beta=2")]
    with started("beta=1,2", *LONG, *tiny, "hydra.sweep.dir=sweep", *JOBLIB, cwd=tmp_path) as process:
        until(lambda: all(map(at_work, runs)))
        process.kill()
        until(lambda: all(map(is_free, runs)))
    assert statuses(tmp_path / "sweep") == {"beta=1": "interrupted", "beta=2": "interrupted"}


# The handlers.


def test_a_closed_terminal_is_a_signal_to_stop(tiny: list[str], tmp_path: Path) -> None:
    """SIGHUP comes when nothing can be printed any more."""
    child, terminal = pty.fork()
    if not child:
        os.chdir(tmp_path)
        sys.stdout, sys.stderr = (os.fdopen(os.dup(n), "w", buffering=1) for n in (1, 2))
        code: object = 1
        try:
            sys.argv = ["vaex", "train", *tiny, *LONG, "trainer.compile=false", "hydra.run.dir=run"]
            cli.main()
        except SystemExit as stop:
            code = stop.code
        finally:
            os._exit(code if isinstance(code, int) else 1)
    until(lambda: os.read(terminal, 4096) and at_work(tmp_path / "run"))
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 128 + HUP
    assert json.loads((tmp_path / "run" / "status.json").read_text())["status"] == "interrupted"


def test_handlers_that_were_there_are_called_after_the_run_saved_itself(
    here: Here, tiny: list[str], monkeypatch: Patch, tmp_path: Path
) -> None:
    """As a cluster's engine has them, to queue the job again. They also keep a second signal from ending the run."""
    calls = []

    def engine(number: int, frame: object) -> None:
        calls.append((number, json.loads((tmp_path / "run" / "status.json").read_text())["status"]))

    monkeypatch.setattr(signals, "SAME_MOMENT", 0.0)
    before = {number: signal.signal(number, engine) for number in (TERM, USR2)}
    try:
        for call, number in ((3, TERM), (3, TERM), (3, USR2)):
            signal_at(monkeypatch, "step", call, number)
        with pytest.raises(SystemExit):
            here(*tiny, "steps=40")
        assert sorted(calls) == [(USR2, "interrupted"), (TERM, "interrupted")]
        assert signal.getsignal(USR2) is engine
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(HUP, signal.SIG_IGN)
    try:
        with stop_on_signals() as flag:
            send(HUP)
            assert not flag.number
        assert signal.getsignal(HUP) is signal.SIG_IGN
    finally:
        signal.signal(HUP, before)


def test_requests_of_a_sweep_are_one_and_never_end_the_process(monkeypatch: Patch) -> None:
    monkeypatch.setattr(signals, "SAME_MOMENT", 0.0)
    request_stop(os.getpid())  # without a handler it does nothing
    with stop_on_signals() as flag:
        for number in (TERM, signals.REQUEST, signals.REQUEST):
            send(number)
        assert flag.number == TERM
    assert signal.getsignal(INT) is signal.default_int_handler and signal.getsignal(TERM) is signal.SIG_DFL


def test_a_run_outside_the_main_thread_takes_no_signals() -> None:
    numbers = []

    def inside() -> None:
        with stop_on_signals() as flag:
            numbers.append(flag.number)

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert numbers == [0] and signal.getsignal(TERM) is signal.SIG_DFL
