"""Files of a run with damaged contents: each is named, and the other runs of the command are not affected."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import results

from vaex import cli, errors
from vaex.errors import UserError
from vaex.report.collect import collect
from vaex.runs.folder import RunFolder
from vaex.runs.reading import parse_yaml, read_metrics
from vaex.sweeps.folder import SweepFolder

Trained = Callable[..., Path]
Said = Callable[..., str]
Captured = pytest.CaptureFixture[str]

LAUGHS = "a0: &a0 [lol, lol]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10))
NESTED = b"[" * 100_000

# The name of a run -> the damaged file and what is written over it, or appended if it begins with a line break.
DAMAGE: dict[str, tuple[str, bytes]] = {
    "results-type": ("results.json", b'{"test/elbo": "abc"}'),
    "results-nested-type": ("results.json", b'{"test/rate_per_latent": [1, {}]}'),
    "results-cut": ("results.json", b'{"test/elbo": 1'),
    "results-list": ("results.json", b"[]"),
    "results-bytes": ("results.json", b"\xff\xfe"),
    "results-nested": ("results.json", NESTED),
    "config-laughs": ("config.yaml", LAUGHS.encode()),
    "config-cut": ("config.yaml", b"beta: ["),
    "config-bytes": ("config.yaml", b"beta: \xff\n"),
    "config-nested": ("config.yaml", b"beta: " + NESTED),
    "status-type": ("status.json", b'{"status": 3}'),
    "status-summary": ("status.json", b'{"status": "completed", "summary": {"ELBO": 1}}'),
    "status-cut": ("status.json", b'{"status'),
    "metrics-step": ("metrics.jsonl", b'\n{"step": "x"}\n'),
    "metrics-type": ("metrics.jsonl", b'\n{"step": 4, "train/loss": "x", "validation/elbo": "x"}\n'),
    "metrics-list": ("metrics.jsonl", b"\n[1]\n"),
    "metrics-bytes": ("metrics.jsonl", b"\n\xff\xfe\n"),
    "metrics-nested": ("metrics.jsonl", b"\n" + NESTED + b"\n"),
}
# What eval and draw need of a run; the report and the table of a sweep show what can be read.
NEEDED = sorted(name for name in DAMAGE if name.startswith(("results", "config")))


@pytest.fixture
def runs(trained: Trained, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an undamaged run and one for each kind of damage."""
    monkeypatch.setattr(errors, "MOST_PROBLEMS", len(DAMAGE))
    run = trained(*tiny, "steps=4", "figures.kinds=[]")
    for name in ("good", *DAMAGE):
        shutil.copytree(run, tmp_path / "runs" / name)
    for name, (file, content) in DAMAGE.items():
        with open(tmp_path / "runs" / name / file, "ab" if content.startswith(b"\n") else "wb") as damaged:
            damaged.write(content)
    return tmp_path / "runs"


def test_eval_names_damaged_runs_and_measures_the_others(
    runs: Path, said: Said, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = {"test/elbo": -1.0, "test/rate": 0.5, "test/distortion": 0.5}
    monkeypatch.setattr("vaex.evaluation.measure.measure", lambda *_: (dict(numbers), []))
    error = said(cli.run, "eval", [str(runs)])
    for name in NEEDED:
        assert f"{runs / name / DAMAGE[name][0]}: damaged" in error
    measured = [name for name in ("good", *DAMAGE) if name not in NEEDED]
    assert all(results(runs / name)["test/elbo"] == -1.0 for name in measured)
    for name in NEEDED:  # are left as they were
        assert (runs / name / DAMAGE[name][0]).read_bytes() == DAMAGE[name][1]


def test_draw_names_damaged_runs_and_draws_the_others(runs: Path, said: Said) -> None:
    error = said(cli.run, "draw", [str(runs), "curves"])
    for name in ("good", *DAMAGE):
        assert (f"{runs / name / DAMAGE[name][0]}: damaged" in error) if name in NEEDED else (name not in error)
        assert (runs / name / "figures" / "curves.png").exists() == (name not in NEEDED)


def test_report_names_damaged_files_and_shows_the_others(runs: Path, caplog: pytest.LogCaptureFixture) -> None:
    reasons = {run.name: run.reason for run in collect([runs])}
    for name, (file, _) in DAMAGE.items():
        assert (f"{file}: damaged" in reasons[name]) == (file != "metrics.jsonl"), reasons[name]
    cli.run("report", [str(runs)])
    text = (runs / "report" / "report.md").read_text()
    assert all(name in text for name in DAMAGE) and "config.yaml: damaged (it contains the YAML alias" in text
    assert f"{runs / 'metrics-type' / 'metrics.jsonl'}: left out line" in caplog.text


def test_the_table_of_a_sweep_counts_damaged_files_as_missing(runs: Path) -> None:
    jobs = {job.name: job for job in SweepFolder(runs).jobs()}
    assert jobs["good"].status == jobs["results-type"].status == "completed"
    assert all(jobs[name].status == "not run" for name in DAMAGE if name.startswith("status"))


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"arguments": "x", "constant": {}, "jobs": []}', "[" * 100_000])
def test_a_damaged_sweep_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text(content)
    with pytest.raises(UserError, match=r"sweep\.json: damaged .*; remove it"):
        SweepFolder(tmp_path).read()


def test_lines_of_metrics_that_cannot_be_read_are_left_out_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = ['{"step": 1, "a": 1}', "x", '{"step": 3, "a": 3}', '{"step": 2, "a": [2, null]}', '{"step": 5, "a"']
    path.write_text("\n".join(lines))
    assert read_metrics(path) == [{"step": 1, "a": 1}, {"step": 2, "a": [2, None]}]  # 3 was written again
    assert caplog.messages == [f"{path}: left out line 2, which can't be read"]  # 5 was cut off


def test_aliases_are_refused_in_any_yaml_of_a_run(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(LAUGHS)
    started = time.process_time()
    for read in (RunFolder(tmp_path).read_config, lambda: parse_yaml("a: &a 1\nb: *a\n")):
        with pytest.raises((UserError, ValueError), match=r"it contains the YAML alias \*a"):
            read()
    assert time.process_time() - started < 5
    assert json.loads(json.dumps(parse_yaml("a: &a 1\n"))) == {"a": 1}  # an anchor alone repeats nothing
