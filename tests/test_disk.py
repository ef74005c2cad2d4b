"""Disks that become full, read-only or unavailable during a run, and what a killed run leaves in its logs."""

import errno
import json
import logging
import os
import resource
import shutil
import signal
import subprocess
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import metrics, results
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator as Ingester

from vaex import cli
from vaex.errors import UserError
from vaex.runs.folder import RunFolder
from vaex.runs.writing import TEMPORARY, WriteFailed, WritePolicy
from vaex.training.checkpoint import Checkpoints
from vaex.training.metrics_log import MetricsLog

Here = Callable[..., Path]
# 1,000 images in batches of 32: epochs end at steps 32, 63 and 94.
RUN = ["epochs=3", "trainer.log_every=5", "figures.every=1", "figures.kinds=[samples]", "figures.images=4"]
MEGABYTES = 6


@contextmanager
def mounted(path: Path, options: str) -> Iterator[Path]:
    """A small file system of its own, in memory. Skips where that isn't allowed."""
    path.mkdir(exist_ok=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "vaex-test", str(path)], capture_output=True)
    if done.returncode:
        pytest.skip(f"can't mount a file system here: {done.stderr.decode().strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with mounted(tmp_path / "disk", f"size={MEGABYTES}m") as path:
        yield path


def fill(disk: Path) -> None:
    """To the last byte."""
    with open(disk / "ballast", "ab", buffering=0) as file, suppress(OSError):
        for size in (2**16, 2**9, 1):
            with suppress(OSError):
                while file.write(bytes(size)):
                    pass
    logging.getLogger("vaex").info(f"{disk} is full now {'!' * 10_000}")  # which vaex.log can't take either


def before(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, actions: dict[int, Callable[[], object]]) -> None:
    """Do this right before the n-th call of a method."""
    original, calls = getattr(owner, name), 0

    def wrapped(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        actions.get(calls, lambda: None)()
        return original(*arguments, **options)

    monkeypatch.setattr(owner, name, wrapped)


def fails(here: Here, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that a run ends with."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        here(*arguments, folder=None)
    assert stop.value.code == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def same(one: Path, other: Path) -> None:
    """What two runs came to, bit for bit."""
    assert (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()
    assert (one / "metrics.jsonl").read_text() == (other / "metrics.jsonl").read_text()
    assert points(one) == points(other)
    pictures = sorted(path.relative_to(one) for path in one.glob("figures/**/*.png"))
    assert pictures == sorted(path.relative_to(other) for path in other.glob("figures/**/*.png"))
    for path in pictures:
        assert (one / path).read_bytes() == (other / path).read_bytes()


def points(run: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows: the steps and values of scalars, the steps of pictures."""
    read = EventAccumulator(str(run), size_guidance={"scalars": 0, "images": 0}).Reload()
    scalars = {tag: [(event.step, event.value) for event in read.Scalars(tag)] for tag in read.Tags()["scalars"]}
    return scalars | {tag: [(event.step, 0.0) for event in read.Images(tag)] for tag in read.Tags()["images"]}


@pytest.fixture
def whole(trained: Here, tiny: list[str]) -> Path:
    """The run that nothing happened to."""
    return trained(*tiny, *RUN)


@pytest.mark.parametrize(
    "where", ["checkpoint", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("picture", "metrics"))]
)
def test_on_a_full_disk_a_run_ends_with_one_line_and_can_be_resumed(
    where: str, whole: Path, disk: Path, here: Here, tiny: list[str], monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    run = disk / "run"
    method = {
        "checkpoint": (Checkpoints, "save"),
        "picture": (MetricsLog, "picture"),
        "metrics": (MetricsLog, "numbers"),
    }[where]
    with monkeypatch.context() as patched:
        before(patched, *method, {{"checkpoint": 2, "picture": 2, "metrics": 12}[where]: lambda: fill(disk)})
        line = fails(here, capsys, *tiny, *RUN, f"hydra.run.dir={run}")
    kind, _, rest = line.removeprefix("vaex: ").partition(" ")
    assert kind in ("checkpoint", "picture", "metrics", "events")  # whichever comes first
    assert "can't be written (No space left on device)" in rest
    assert "free some space, then continue with vaex train resume=" in line
    assert not list(run.rglob(f"*{TEMPORARY}"))
    newest = Checkpoints(run / "checkpoints").load_newest()
    assert newest and newest["step"] == 32
    (disk / "ballast").unlink()
    here(f"resume={run}")
    same(whole, run)


def test_on_a_full_disk_a_run_may_continue_and_catches_up(
    whole: Path, disk: Path, here: Here, tiny: list[str], monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """From the second epoch's end to the third's nothing can be written."""
    run = disk / "run"
    ballast = disk / "ballast"
    with monkeypatch.context() as patched:
        before(patched, Checkpoints, "save", {2: lambda: fill(disk), 3: ballast.unlink})
        here(*tiny, *RUN, "trainer.on_save_error=continue", f"hydra.run.dir={run}", folder=None)
    assert Checkpoints(run / "checkpoints").steps() == [32, 94]
    said = capsys.readouterr().out
    for what in ("checkpoint", "metrics", "events"):
        assert said.count(f"{what} {run}") <= 2  # that it can't be written, and that it can again
    assert "checkpoint" in said and "The run continues, and the next save tries again" in said
    assert (run / "figures" / "steps" / "samples-63.png").exists()
    assert (whole / "metrics.jsonl").read_text() == (run / "metrics.jsonl").read_text()  # kept until there was room
    assert points(whole) == points(run)
    assert results(whole)["test/elbo"] == results(run)["test/elbo"]


def test_a_run_that_continued_to_its_end_on_a_full_disk_says_so(
    disk: Path, here: Here, tiny: list[str], monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    run = disk / "run"
    before(monkeypatch, Checkpoints, "save", {2: lambda: fill(disk)})
    line = fails(here, capsys, *tiny, *RUN, "trainer.on_save_error=continue", f"hydra.run.dir={run}")
    assert "model.safetensors: can't be written (No space left on device)" in line
    (disk / "ballast").unlink()  # so that vaex.log can be closed


def test_a_limit_on_the_size_of_files_is_not_a_full_disk(
    here: Here, tiny: list[str], monkeypatch: pytest.MonkeyPatch, capsys, tmp_path: Path
) -> None:
    """Needs no rights, so that every machine sees a write that really fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before(monkeypatch, Checkpoints, "save", {2: lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))})
    try:
        line = fails(here, capsys, *tiny, *RUN, f"hydra.run.dir={tmp_path / 'run'}")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "step-63.pt: can't be written (File too large); raise the limit on the size of files" in line
    assert Checkpoints(tmp_path / "run" / "checkpoints").steps() == [32]
    assert json.loads((tmp_path / "run" / "status.json").read_text())["status"] == "failed"


def test_a_disk_that_is_too_small_is_refused_before_the_first_step(
    here: Here, tiny: list[str], tmp_path: Path, capsys
) -> None:
    with mounted(tmp_path / "disk", "size=1m") as disk:
        line = fails(here, capsys, *tiny, *RUN, f"hydra.run.dir={disk / 'run'}")
    assert "free, and the run needs 1.43 MB, for 4 checkpoints of 329 kB and its weights" in line


@pytest.mark.parametrize("kilobytes", [4, 8, 12, 16, 20])  # full at once, or after the folder, the log or the status
def test_a_run_that_cannot_start_for_lack_of_space_leaves_its_folder_free(
    kilobytes: int, here: Here, tiny: list[str], tmp_path: Path, capsys
) -> None:
    with mounted(tmp_path / "disk", f"size={kilobytes}k") as disk:
        (disk / "ballast").write_bytes(bytes(4096))
        line = fails(here, capsys, *tiny, *RUN, f"hydra.run.dir={disk / 'run'}")
        assert "No space left on device" in line and "job_logging" not in line and "resume=" not in line
        assert not [path for path in disk.rglob("*") if path.is_file() and path.name != "ballast"]


def test_a_folder_that_turns_read_only(
    whole: Path, here: Here, tiny: list[str], monkeypatch: pytest.MonkeyPatch, capsys, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    mounts = []

    def read_only() -> None:
        if os.getuid():
            (run / "checkpoints").chmod(0o555)
        else:  # whom no permission stops
            mounts.append(mounted(run / "checkpoints", "ro"))
            mounts[0].__enter__()

    with monkeypatch.context() as patched:
        before(patched, Checkpoints, "save", {2: read_only})
        try:
            line = fails(here, capsys, *tiny, *RUN, f"hydra.run.dir={run}")
        finally:
            for mount in mounts:
                mount.__exit__(None, None, None)
            (run / "checkpoints").chmod(0o755)
    assert (
        "step-63.pt: can't be written" in line and "; make it writable, then continue with vaex train resume=" in line
    )
    here(f"resume={run}")
    same(whole, run)


@contextmanager
def read_only(folder: Path, path: Path) -> Iterator[Path]:
    """The folder again at `path`, where nothing can be written, even by root."""
    with mounted(path, "size=1m"):
        subprocess.run(["mount", "--bind", str(folder), str(path)], check=True)
        try:
            subprocess.run(["mount", "-o", "remount,bind,ro", str(path)], check=True)
            yield path
        finally:
            subprocess.run(["umount", "--lazy", str(path)], check=True)


def test_commands_on_a_run_in_a_read_only_folder(here: Here, tiny: list[str], tmp_path: Path, capsys) -> None:
    run = here(*tiny, "steps=2", "figures.kinds=[]")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with read_only(run, tmp_path / "read-only") as path:
        assert "Read-only file system" in fails(here, capsys, f"resume={path}", "steps=4")
        capsys.readouterr()
        for verb, arguments in (("eval", ["--samples=0", "--fid=none"]), ("draw", ["samples"]), ("report", [])):
            with pytest.raises(SystemExit):
                cli.run(verb, [str(path), *arguments])
            ended = capsys.readouterr()
            (line,) = ended.err.splitlines()
            assert "can't be written" in line and "resume=" not in line
            if verb == "eval":
                assert "gaussian/shared" in ended.out and "are printed and not saved" in line
            else:
                assert "--out=" in line
        cli.run("draw", [str(path), "samples", f"--out={tmp_path / 'out'}"])
        cli.run("report", [str(path), f"--out={tmp_path / 'out'}"])
    assert {"samples.png", "report.html"} <= {file.name for file in (tmp_path / "out").iterdir()}
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


@pytest.mark.parametrize("number", [errno.EACCES, errno.ENOSPC])
def test_what_eval_and_draw_cannot_write(
    number: int, trained: Callable[..., Path], tiny: list[str], monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """Also as root, whom no permission stops; a write may fail although the folder looked writable."""
    run = trained(*tiny, "steps=4", "figures.kinds=[]")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}

    def refuse(path: Path, *_: object) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr("vaex.runs.folder.replace_file", refuse)
    monkeypatch.setattr("vaex.training.metrics_log._GrowingFile", refuse)
    monkeypatch.setattr("vaex.training.metrics_log.EventsFile.__init__", lambda _, folder: refuse(folder))
    for verb, arguments in (("eval", ["--samples=0", "--fid=none"]), ("draw", ["samples"])):
        with pytest.raises(SystemExit) as stop:
            cli.run(verb, [str(run), *arguments])
        ended = capsys.readouterr()
        assert stop.value.code == 1 and len(ended.err.splitlines()) == 1 and os.strerror(number) in ended.err
        assert ("gaussian/shared" in ended.out) == (verb == "eval")
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


@pytest.mark.parametrize("setting", ["stop", pytest.param("continue", marks=pytest.mark.slow)])
def test_a_folder_that_vanishes(
    setting: str, here: Here, tiny: list[str], monkeypatch: pytest.MonkeyPatch, capsys, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    before(monkeypatch, MetricsLog, "picture", {2: lambda: shutil.rmtree(run)})
    line = fails(here, capsys, *tiny, *RUN, f"trainer.on_save_error={setting}", f"hydra.run.dir={run}")
    assert line.endswith("run: no longer exists, so everything that the run saved is lost; start the run again")
    assert not run.exists()


def test_damaged_best_weights_are_named_and_the_last_can_be_used(
    here: Here, tiny: list[str], monkeypatch: pytest.MonkeyPatch, capsys, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    common = ["epochs=4", "schedule=constant", "optimizer.lr=0.1", "seed=3", "figures.kinds=[]"]  # best at step 94

    def damage() -> None:
        for path in run.glob("checkpoints/*.pt"):
            path.write_bytes(b"")

    with monkeypatch.context() as patched:
        before(patched, Checkpoints, "save", {4: damage})
        line = fails(here, capsys, *tiny, *common, "trainer.weights=best", f"hydra.run.dir={run}")
    assert "trainer.weights=best: " in line and ".pt: damaged" in line and "trainer.weights=last" in line
    here(f"resume={run}", "trainer.weights=last")
    assert results(run)["train/steps"] == 125


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"", "damaged (recorded"),
        (b"beta: [1\nbatch", "damaged (while parsing"),
        (b"- a list", "damaged ("),
        (b"\xff\xfe\x00", "damaged ("),
        (b"beta: 1.0\nrecorded: 3\n", "damaged (no mapping"),
        (b"beta: !!python/object/apply:os.system [touch executed]", "damaged (could not determine a constructor"),
    ],
)
def test_a_damaged_config_is_one_line(content: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(UserError) as raised:
        RunFolder.reopen(tmp_path).read_config()
    message = str(raised.value)
    assert f"config.yaml: {reason}" in message.replace("'", "") and "\n" not in message


def test_a_damaged_status_is_replaced(here: Here, tiny: list[str]) -> None:
    run = here(*tiny, "steps=2", "figures.kinds=[]")
    (run / "status.json").write_text('{"stat')
    here(f"resume={run}", "steps=4")
    assert json.loads((run / "status.json").read_text())["status"] == "completed"


def test_a_run_has_one_process_at_a_time(here: Here, tiny: list[str], capsys) -> None:
    run = here(*tiny, "steps=2", "figures.kinds=[]")
    with RunFolder(run).lock():
        assert "another process is at work on this run" in fails(here, capsys, f"resume={run}", "steps=4")


def killed(run: Callable[[], object]) -> None:
    """In a process of its own, which is to end by SIGKILL."""
    child = os.fork()
    if not child:
        try:
            run()
        except BaseException:
            traceback.print_exc()
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def tear(path: Path) -> None:
    """As if the process had been killed in the middle of a write."""
    with open(path, "ab") as file:
        file.write(path.read_bytes()[-60:-20])


# Killed right before the n-th: what may be the newest checkpoint then.
KILLS = {
    "between epochs": (MetricsLog, "numbers", 22, (32, 63)),  # the second is written meanwhile
    "before the second checkpoint, with its numbers and pictures there": (Checkpoints, "save", 2, (32,)),
    "before the first checkpoint": (Checkpoints, "save", 1, (0,)),
    "after the test numbers": (MetricsLog, "finish", 1, (94,)),
}


RARE_KILLS = ("before the second checkpoint, with its numbers and pictures there", "before the first checkpoint")


@pytest.mark.parametrize(
    "when", [pytest.param(when, marks=pytest.mark.slow if when in RARE_KILLS else ()) for when in KILLS]
)
def test_a_killed_run_that_is_resumed_logs_every_point_once(
    when: str, whole: Path, here: Here, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    owner, name, call, newest = KILLS[when]

    def train() -> None:
        before(monkeypatch, owner, name, {call: lambda: os.kill(os.getpid(), signal.SIGKILL)})
        here(*tiny, *RUN, f"hydra.run.dir={run}", folder=None)

    killed(train)
    state = Checkpoints(run / "checkpoints").load_newest()
    assert (state["step"] if state else 0) in newest
    (events,) = run.glob("events*")
    tear(events)
    tear(run / "metrics.jsonl")
    shown = points(run)
    assert max(step for step, _ in shown["train/loss"]) >= newest[0]  # and the torn one ends the reading
    here(f"resume={run}")
    same(whole, run)
    # TensorBoard's own reader forgets what a second session starts before.
    ingested = Ingester(str(run), size_guidance={"tensors": 0}, tensor_size_guidance={"scalars": 0}).Reload()
    assert [event.step for event in ingested.Tensors("train/loss")] == [step for step, _ in points(whole)["train/loss"]]


def test_a_tensorboard_that_is_open_meanwhile_forgets_what_was_logged_after_the_checkpoint(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, 0) as record:
        for step in range(1, 8):
            record.numbers(step, 0.0, {"train/loss": step})
    for reader in (EventAccumulator, Ingester):
        open_one = reader(str(tmp_path)).Reload()
        copy = tmp_path / reader.__module__
        shutil.copytree(tmp_path, copy, ignore=lambda folder, names: [n for n in names if "tensorboard" in n])
        open_one = reader(str(copy)).Reload()
        with MetricsLog(copy, 4) as record:
            record.numbers(5, 0.0, {"train/loss": 50})
        open_one.Reload()
        read = open_one.Scalars if reader is EventAccumulator else open_one.Tensors
        assert [event.step for event in read("train/loss")] == [1, 2, 3, 4, 5]


def test_event_files_are_read_in_the_order_of_writing_also_when_the_clock_goes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for part, now in enumerate((1_000_000, 999_000, 999_000)):
        monkeypatch.setattr("vaex.training.metrics_log.time.time", lambda now=now: float(now))
        with MetricsLog(tmp_path, part) as record:
            record.numbers(part + 1, 0.0, {"train/loss": part})
    assert [step for step, _ in points(tmp_path)["train/loss"]] == [1, 2, 3]


def test_damaged_lines_are_removed_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "metrics.jsonl"
    good = [b'{"step": 1, "epoch": 0.1, "train/loss": 3.0}', b'{"step": 2, "epoch": 0.2, "train/loss": NaN}']
    bad = [b'{"step": 1, "ep', b"\xff\xfe", b"[]", b"7", b'{"epoch": 1}', b'{"step": "x"}', b""]
    path.write_bytes(b"\n".join([good[0], *bad, good[1], b'{"step": 3, "epoch": 0.3}', b'{"step": 2, "tr']))
    with MetricsLog(tmp_path, 2):
        pass
    assert path.read_bytes().splitlines() == good
    (warning,) = caplog.records
    assert "metrics.jsonl: removed line 2, 3, 4, 5, 6, 7, 8, which can't be read" in warning.getMessage()


def test_numbers_of_a_step_that_is_logged_twice_stand_once(tmp_path: Path) -> None:
    """A checkpoint taken before a step's validation, and a kill after it."""
    with MetricsLog(tmp_path, 0) as record:
        record.numbers(4, 1.0, {"train/loss": 3.0})
        record.numbers(4, 1.0, {"validation/loss": 4.0})
        record.numbers(4, 1.0, {"test/loss": 5.0, "test/per_latent": [1.0, 2.0]})
    with MetricsLog(tmp_path, 4) as record:
        record.numbers(4, 1.0, {"validation/loss": 4.0})
        record.numbers(4, 1.0, {"test/loss": 6.0, "test/per_latent": [1.0, 2.0]})
        record.numbers(5, 1.2, {"validation/loss": 4.0})
    assert metrics(tmp_path, "validation/loss") == [4.0, 4.0] and metrics(tmp_path, "test/loss") == [6.0]
    assert points(tmp_path) == {
        "train/loss": [(4, 3.0)],
        "validation/loss": [(4, 4.0), (5, 4.0)],
        "test/loss": [(4, 6.0)],
    }
    assert [event.step for event in EventAccumulator(str(tmp_path)).Reload().Histograms("test/per_latent")] == [4]


def test_what_could_not_be_written_is_written_when_there_is_room(disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Lines and events, whole ones and in order."""
    picture = torch.zeros(1, 4, 4, dtype=torch.uint8)
    with MetricsLog(disk, 0, WritePolicy(disk, stop=False)) as record:
        record.numbers(1, 0.0, {"train/loss": 1.0})
        fill(disk)
        for step in range(2, 300):
            record.numbers(step, 0.0, {"train/loss": float(step)})
        record.picture(299, "samples", picture, disk / "figures" / "samples.png")
        lines = (disk / "metrics.jsonl").read_text()
        assert lines.endswith("}\n") and len(lines.splitlines()) < 299
        (disk / "ballast").unlink()
        record.numbers(300, 0.0, {"train/loss": 300.0})
    assert metrics(disk, "train/loss") == list(range(1, 301))
    read = EventAccumulator(str(disk), size_guidance={"scalars": 0}).Reload()
    assert [event.step for event in read.Scalars("train/loss")] == list(range(1, 301))
    assert len([record for record in caplog.records if "can't be written" in record.getMessage()]) == 3


def test_leaving_with_an_error_does_not_hide_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (KeyError("mine"), None):
        with pytest.raises(KeyError if error else WriteFailed):
            with MetricsLog(tmp_path, 0) as record:
                close = record._lines.close

                def full(close: Callable[[], None] = close) -> None:
                    close()
                    raise OSError(errno.ENOSPC, "No space left on device")

                monkeypatch.setattr(record._lines, "close", full)
                if error:
                    raise error
        assert record._events._file.closed
