"""Checkpoints: damage is detected and skipped, and a kill in the middle of saving loses nothing."""

import errno
import hashlib
import os
import pickle
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch

from vaex.errors import UserError
from vaex.runs.folder import RunFolder
from vaex.runs.provenance import versions
from vaex.runs.writing import TEMPORARY, WriteFailed, WritePolicy, replace_file
from vaex.training.background import Background
from vaex.training.checkpoint import FORMAT, Checkpoints

Here = Callable[..., Path]


def state(step: int) -> dict[str, Any]:
    return {"model": {"weight": torch.full((50,), float(step))}, "optimizer": {"exp_avg": [torch.zeros(50)] * 2}}


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    """With steps 10, 20 and 30, of which 10 is the best."""
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    for step in (10, 20, 30):
        checkpoints.save(step, state(step), 10)
    return checkpoints


def again(checkpoints: Checkpoints) -> Checkpoints:
    """As another process opens them."""
    return Checkpoints(checkpoints.folder)


@pytest.fixture
def run(trained: Here, tiny: list[str]) -> Path:
    """A run that the tests here share, and do not change."""
    return trained(*tiny, "steps=40", "trainer.log_every=10")


def test_a_checkpoint_says_what_ran(run: Path) -> None:
    saved = Checkpoints(run / "checkpoints").load(40)
    assert saved["format"] == FORMAT and saved["step"] == 40
    assert saved["config"]["beta"] == 1.0 and saved["config"]["architecture"]["hidden"] == [16]
    assert saved["config"]["resume"] is None
    assert saved["versions"] == versions() and torch.__version__.startswith(saved["versions"]["torch"])


def test_the_digest_is_that_of_the_file(checkpoints: Checkpoints) -> None:
    """In the words of `sha256sum -c`."""
    path = checkpoints.path(30)
    digest, name = path.with_suffix(".sha256").read_text().split()
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest() and name == "step-30.pt"
    if sha256sum := shutil.which("sha256sum"):
        subprocess.run([sha256sum, "--check", "--strict", "step-30.sha256"], cwd=path.parent, check=True)


def test_the_digest_alone_as_vaex_wrote_it_first_will_do(checkpoints: Checkpoints) -> None:
    path = checkpoints.path(30).with_suffix(".sha256")
    path.write_text(path.read_text().split()[0] + "\n")
    assert checkpoints.load(30)["step"] == 30


def test_checkpoints_of_the_first_version_are_read_and_hold_the_same_keys(run: Path) -> None:
    """What vaex 0.1 wrote and reads."""
    saved = Checkpoints(run / "checkpoints").load(40)
    keys = ["format", "step", "model", "optimizer", "sums", "random", "progress", "config", "versions", "images"]
    assert list(saved) == keys  # the first version had no images
    assert list(saved["sums"]) == ["names", "totals", "peak", "bad"]
    assert list(saved["progress"]) == [
        *("step", "stage", "interval", "epoch_steps", "skipped", "spikes", "epoch_sums"),
        *("best_step", "best_loss", "monitored", "seconds", "step_seconds"),
    ]
    assert saved["sums"]["totals"].shape == (16,) and saved["sums"]["bad"].shape == (17,)


def test_a_hundred_flipped_bits_and_a_hundred_cuts_are_detected_and_skipped(run: Path, tmp_path: Path) -> None:
    checkpoints = Checkpoints(shutil.copytree(run / "checkpoints", tmp_path / "checkpoints"))
    assert checkpoints.steps() == [32, 40]
    path = checkpoints.path(40)
    whole = path.read_bytes()
    chance = random.Random(6)
    damaged = []
    for _ in range(100):
        flipped = bytearray(whole)
        flipped[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
        damaged += [bytes(flipped), whole[: chance.randrange(len(whole))]]
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(UserError, match="step-40.pt: damaged"):
            checkpoints.load(40)
        newest = checkpoints.load_newest()
        assert newest and newest["step"] == 32
    path.write_bytes(whole)
    newest = checkpoints.load_newest()
    assert newest and newest["step"] == 40


def empty(path: Path) -> None:
    path.write_bytes(b"")


def folder_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()


def no_digest(path: Path) -> None:
    path.with_suffix(".sha256").unlink()


def flipped_digest(path: Path) -> None:
    content = bytearray(path.with_suffix(".sha256").read_bytes())
    content[5] ^= 128  # so that it isn't UTF-8
    path.with_suffix(".sha256").write_bytes(content)


def dangling_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def of_another_step(path: Path) -> None:
    shutil.copy(path.with_name("step-20.pt"), path)
    shutil.copy(path.with_name("step-20.sha256"), path.with_suffix(".sha256"))


def rewritten(path: Path, content: Any) -> None:
    """Other content with a digest that fits."""
    torch.save(content, path)
    path.with_suffix(".sha256").write_text(hashlib.sha256(path.read_bytes()).hexdigest())


def of_another_format(path: Path) -> None:
    rewritten(path, {"format": FORMAT + 1, "step": 30})


def no_checkpoint(path: Path) -> None:
    rewritten(path, torch.zeros(3))


DAMAGES = {
    empty: "damaged",
    folder_instead: "Is a directory",
    no_digest: "step-30.sha256: can't be read",
    flipped_digest: "damaged",
    dangling_link: "No such file",
    of_another_step: "holds step 20",
    of_another_format: f"has format {FORMAT + 1}, and this version of vaex reads format {FORMAT}",
    no_checkpoint: "is no checkpoint of vaex",
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_checkpoint_is_named_kept_and_skipped(
    damage: Callable[[Path], None], checkpoints: Checkpoints, caplog: pytest.LogCaptureFixture
) -> None:
    damage(checkpoints.path(30))
    newest = again(checkpoints).load_newest()
    assert newest and newest["step"] == 20
    (record,) = caplog.records
    message = record.getMessage()
    assert "step-30" in message and DAMAGES[damage] in message and "\n" not in message
    assert message.endswith("step-20.pt, which is undamaged")
    assert os.path.lexists(checkpoints.path(30))


def test_a_file_that_may_not_be_read_is_skipped(checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand, since root may read everything."""
    original = Path.read_bytes

    def read_bytes(path: Path) -> bytes:
        if path.name == "step-30.pt":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return original(path)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    newest = again(checkpoints).load_newest()
    assert newest and newest["step"] == 20


def test_when_none_is_whole_each_is_named_with_the_remedy(checkpoints: Checkpoints) -> None:
    for step in (10, 20, 30):
        empty(checkpoints.path(step))
    with pytest.raises(
        UserError, match="step-30.pt: damaged.*step-20.pt: damaged.*step-10.pt: damaged.*start the run again"
    ):
        checkpoints.load_newest()


def test_without_a_checkpoint_there_is_no_state(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "checkpoints").load_newest() is None


def test_a_folder_that_can_not_be_listed_is_no_empty_one(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file")
    with pytest.raises(UserError, match="checkpoints: can't be read"):
        Checkpoints(tmp_path / "checkpoints").load_newest()


class Touch:
    """What a pickle may do on being loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("torchs", [True, False], ids=["of torch.save", "a pickle"])
def test_nothing_in_a_checkpoint_is_executed(checkpoints: Checkpoints, tmp_path: Path, torchs: bool) -> None:
    touched = tmp_path / "executed"
    path = checkpoints.path(30)
    if torchs:
        rewritten(path, {"format": FORMAT, "step": 30, "model": Touch(touched)})
    else:
        path.write_bytes(pickle.dumps(Touch(touched)))
        path.with_suffix(".sha256").write_text(hashlib.sha256(path.read_bytes()).hexdigest())
    newest = again(checkpoints).load_newest()
    assert newest and newest["step"] == 20
    assert not touched.exists()
    if torchs:
        torch.load(path, weights_only=False)
        assert touched.exists()  # so the test can fail


def test_the_newest_two_and_the_best_are_kept(checkpoints: Checkpoints) -> None:
    for step in (40, 50):
        again(checkpoints).save(step, state(step), 10)
    assert checkpoints.steps() == [10, 40, 50]
    assert sorted(path.name for path in checkpoints.folder.iterdir()) == [
        f"step-{step}.{suffix}" for step in (10, 40, 50) for suffix in ("pt", "sha256")
    ]


def test_damaged_ones_neither_count_nor_go(checkpoints: Checkpoints) -> None:
    """A run went back from steps 30 and 20 to 10, and saves after that."""
    for step in (20, 30):
        empty(checkpoints.path(step))
    later = again(checkpoints)
    later.save(12, state(12), None)
    assert later.steps() == [10, 12, 20, 30]
    later.save(14, state(14), None)
    assert later.steps() == [12, 14, 20, 30]
    later.save(20, state(20), None)  # which makes that one whole
    assert later.steps() == [14, 20, 30]
    newest = again(checkpoints).load_newest()
    assert newest and newest["step"] == 20


def test_at_every_moment_of_saving_a_step_again_it_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After each single write, also of the only checkpoint, a reader finds one of the two."""
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(10, state(1), None)
    seen = []

    def replace(path: Path, content: bytes) -> None:
        replace_file(path, content)
        seen.append(again(checkpoints).load(10)["model"]["weight"][0].item())

    monkeypatch.setattr("vaex.training.checkpoint.replace_file", replace)
    checkpoints.save(10, state(2), None)
    assert seen == [1, 2, 2]
    assert len(checkpoints.path(10).with_suffix(".sha256").read_text().splitlines()) == 1


def test_a_failed_save_leaves_the_old_one_and_no_rest(
    checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        for step in (30, 40):
            with pytest.raises(WriteFailed, match=rf"step-{step}.pt: can't be written \(No space left on device\)"):
                checkpoints.save(step, state(99), 10)
    assert again(checkpoints).load(30)["model"]["weight"][0] == 30
    assert checkpoints.steps() == [10, 20, 30]
    assert not list(checkpoints.folder.glob(f"*{TEMPORARY}"))
    checkpoints.save(40, state(40), 10)
    assert checkpoints.steps() == [10, 30, 40]


def test_going_on_without_a_checkpoint_warns_once_and_tries_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    checkpoints = Checkpoints(tmp_path / "checkpoints", WritePolicy(tmp_path, stop=False))

    def fails(number: int) -> Callable[[int], None]:
        def fsync(descriptor: int) -> None:
            raise OSError(number, os.strerror(number))

        return fsync

    for number in (errno.EDQUOT, errno.EDQUOT, errno.EDQUOT, errno.EIO):
        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", fails(number))
            checkpoints.save(10, state(10), None)
            if number == errno.EIO:
                with pytest.raises(WriteFailed, match="fix the cause"):
                    checkpoints.save(10, state(10), None, required=True)
    checkpoints.save(20, state(20), None)
    first, second, third = (record.getMessage() for record in caplog.records)
    assert (
        "quota" in first
        and "free some of your quota" in first
        and first.endswith("The run continues, and the next save tries again")
    )
    assert "Input/output error" in second
    assert "written again" in third
    assert checkpoints.steps() == [20]


def test_a_folder_without_room_is_refused_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = torch.nn.Linear(999, 1000)  # 4 MB of weights, and as much for each of Adam's means
    optimizer = torch.optim.Adam(model.parameters())
    needed = 4 * 3 * 4_000_000 + 4_000_000
    free = needed - 1

    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 0, free))  # type: ignore[attr-defined]
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    with pytest.raises(UserError, match=r"52.0 MB free, and the run needs 52.0 MB, for 4 checkpoints of 12.0 MB"):
        checkpoints.check_space(model, optimizer)
    Checkpoints(tmp_path / "checkpoints", WritePolicy(tmp_path, stop=False)).check_space(model, optimizer)
    assert "52.0 MB free" in caplog.text
    checkpoints.save(1, {"model": model.state_dict()}, None)  # which counts as one of them when the run goes on
    checkpoints.check_space(model, optimizer)


def test_the_estimate_of_the_room_is_what_checkpoints_take(run: Path) -> None:
    size = Checkpoints(run / "checkpoints").path(40).stat().st_size
    weights = (run / "model.safetensors").stat().st_size
    assert 2.8 * weights < size < 3.5 * weights  # three times the weights, as the estimate assumes


def test_files_of_killed_processes_are_removed_and_no_others(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    ours = [tmp_path / f"status.json{TEMPORARY}", tmp_path / "checkpoints" / f"step-3.pt{TEMPORARY}"]
    theirs = [tmp_path / "notes.tmp", tmp_path / "checkpoints" / "step-3.pt.tmp"]
    for path in (*ours, *theirs):
        path.write_text("half")
    with RunFolder(tmp_path).lock():
        assert not any(path.exists() for path in ours) and all(path.exists() for path in theirs)
        with pytest.raises(UserError, match="another process is at work on this run"), RunFolder(tmp_path).lock():
            pass
    with RunFolder(tmp_path).lock():
        pass


def test_an_error_in_the_background_is_never_lost(caplog: pytest.LogCaptureFixture) -> None:
    go = Event()

    def fail(error: Exception) -> None:
        go.wait()
        raise error

    full, bug = WriteFailed("checkpoint x: can't be written"), ValueError("a bug")
    with pytest.raises(WriteFailed, match="checkpoint x"), Background() as background:
        background.submit(fail, full)
        background.submit(fail, WriteFailed("picture y: can't be written"))  # the same disk: one line
        go.set()
    assert not caplog.records
    go.clear()
    with pytest.raises(UserError, match="diverged"), Background() as background:
        background.submit(fail, full)
        background.submit(fail, bug)
        go.set()
        raise UserError("diverged")
    assert [record.getMessage() for record in caplog.records] == ["checkpoint x: can't be written", "a bug"]
    assert "Traceback" in caplog.text


def test_what_is_submitted_after_an_error_is_still_done() -> None:
    """A picture that can't be written takes no checkpoint with it."""
    done: list[int] = []
    go = Event()
    with pytest.raises(OSError), Background() as background:
        background.submit(go.wait)
        background.submit(Path("/nowhere/file").write_text, "")
        go.set()
        while not background._pending[-1].done():
            pass
        background.submit(done.append, 1)
    assert done == [1]


KILLS = '''
import os, random, signal, sys, time
from pathlib import Path
import torch
from vaex.runs.folder import RunFolder
from vaex.training.checkpoint import Checkpoints

run, kills = Path(sys.argv[1]), int(sys.argv[2])
torch.set_num_threads(1)


def saving(checkpoints, step, report):
    """Each step twice, as a run that goes on does, until killed."""
    while True:
        step += 1
        for value in (step, step):
            state = {"model": {"weight": torch.full((250_000,), float(value))}}
            checkpoints.save(step, state, step // 7 * 7)
            os.write(report, b"%d\\n" % step)


chance, newest, overwriting = random.Random(0), 0, 0
for _ in range(kills):
    read, report = os.pipe()
    child = os.fork()
    if not child:
        with RunFolder(run).lock():
            saving(Checkpoints(run / "checkpoints"), newest, report)
    os.close(report)
    first = os.read(read, 8)  # waits until the child has saved something
    time.sleep(chance.uniform(0, 0.04))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    output = first + b"".join(iter(lambda: os.read(read, 65536), b""))
    os.close(read)
    saved = max([newest, *map(int, output.split())])
    checkpoints = Checkpoints(run / "checkpoints")
    for step in checkpoints.steps():
        state = checkpoints.load(step)  # raises for one that is damaged
        assert state["model"]["weight"].eq(step).all()
    newest = checkpoints.load_newest()["step"]
    assert saved <= newest <= saved + 1, (saved, newest)
with RunFolder(run).lock():
    left = [path.name for path in (run / "checkpoints").iterdir() if path.suffix not in (".pt", ".sha256")]
    assert not left, left
print(newest)
'''


@pytest.mark.parametrize("kills", [6, pytest.param(200, marks=pytest.mark.slow)])
def test_kills_while_saving_leave_every_checkpoint_readable(kills: int, tmp_path: Path) -> None:
    """What was reported as saved is there, and all that is there can be read."""
    done = subprocess.run(
        [sys.executable, "-c", KILLS, str(tmp_path), str(kills)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= kills
