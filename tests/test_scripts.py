"""The scripts behind the documents."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import matplotlib
import pytest
import torch
from conftest import results
from PIL import Image

from vaex import cli
from vaex.config.schema import config_dir

matplotlib.use("Agg")
SCRIPTS = Path(__file__).parent.parent / "scripts"


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))


def test_the_lowest_likelihood_is_at_the_closed_form_in_the_plot(tmp_path: Path, monkeypatch) -> None:
    import matplotlib.pyplot as plt
    import scale_study

    ratios = scale_study.plot_nll(plt.subplots()[1])
    assert len(ratios) == 6
    assert all(ratio == pytest.approx(1, abs=0.01) for ratio in ratios.values())
    monkeypatch.setattr(sys, "argv", ["scale_study.py", "--out", str(tmp_path / "study.png")])
    scale_study.main()
    with Image.open(tmp_path / "study.png") as picture:
        assert picture.width > 1000


def test_the_table_has_every_likelihood_and_every_scale_rule() -> None:
    import likelihood_table

    chosen = list(likelihood_table.settings().values())
    for likelihood in (config_dir() / "likelihood").glob("*.yaml"):
        assert any(f"likelihood={likelihood.stem}" in overrides for overrides in chosen)
    for rule in (config_dir() / "likelihood" / "scale").glob("*.yaml"):
        for family in ("gaussian", "laplace", "logistic", "student_t"):
            assert any({f"likelihood={family}", f"likelihood/scale={rule.stem}"} <= set(o) for o in chosen)


def test_the_study_of_likelihoods_runs_and_shows_intervals(
    here: Callable[..., Path], tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import which_likelihood as study

    def run(command: list[str], **_: object) -> None:
        _, _, _, verb, *arguments = command
        if verb == "train":
            own = [argument for argument in arguments if "hidden" not in argument and argument != "-m"]
            here("-m", *own, *tiny, "steps=2", folder=None)
        else:
            cli.evaluate([*arguments, "--fid", "none"])  # for which it would train a classifier

    chosen = {
        "learned": ["likelihood=gaussian", "likelihood/scale=shared,per_image", study.UNIFORM, "beta=1"],
        "fixed": ["likelihood=gaussian", "likelihood/scale=fixed", "likelihood.scale.value=0.1", "beta=1"],
        "cross_entropy": ["likelihood=cross_entropy", "beta=1,4"],
    }
    monkeypatch.setattr(study, "SWEEPS", chosen)
    monkeypatch.setattr(study.subprocess, "run", run)
    for of_fid in ("AGAINST", "DISTANCES"):
        monkeypatch.setattr(study, of_fid, {"test/rate": "", "test/mse": ""})
    (tmp_path / "figures").mkdir()
    # Two evaluations at once would change the tests' process in turns.
    monkeypatch.setattr(
        sys, "argv", ["", "--seeds", "0,1", "--workers", "1", "--folder", str(tmp_path / "f"), "--docs", str(tmp_path)]
    )
    study.main()
    rows = [line.split(" | ") for line in (tmp_path / "which_likelihood_table.md").read_text().splitlines()]
    names = [(row[0].lstrip("| "), row[1]) for row in rows[5:]]
    assert names == [
        ("gaussian, shared", "1"),
        ("gaussian, per_image", "1"),
        ("gaussian, fixed 0.1", "1"),
        ("cross_entropy", "1"),
        ("cross_entropy", "4"),
    ]
    bits = [results(tmp_path / "f/learned" / f"scale=shared,seed={n}")["test/bits_per_dim"] for n in (0, 1)]
    half = abs(bits[0] - bits[1]) / 2 * 12.706
    assert rows[5][2] == f"{sum(bits) / 2:.3f} ± {half:.3f}" and rows[-1][2] == "–"
    for name in ("bits", "beta", "rate", "pictures"):
        with Image.open(tmp_path / "figures" / f"which_likelihood_{name}.png") as picture:
            assert picture.width > 500


def test_a_table_ranks_only_what_may_be_ranked() -> None:
    import likelihood_table

    records = [
        {"run": "worse", "test/scored_pixels": "(k+u)/256", "test/bits_per_dim": 2.0, "test/mse": 0.1},
        {"run": "better", "test/scored_pixels": "k/255", "test/bits_per_dim": 1.0, "test/mse": 0.2},
        {"run": "coin", "test/scored_pixels": "binary", "test/bits_per_dim": 0.1, "test/mse": 0.3},
        {"run": "pseudo", "test/mse": 0.4},
    ]
    text = likelihood_table.tables(records)
    assert text.index("better") < text.index("worse") < text.index("### Binary") < text.index("coin")
    assert "| pseudo | 0.40000 |" in text


@pytest.mark.parametrize("name", ["mlp", "conv28", "conv64", "vit64"])
def test_the_networks_of_the_benchmark_are_of_one_size(name: str) -> None:
    import bench
    from conftest import composed

    from vaex.build import build_model

    case = bench.CASES[name]
    colour = "64" in name
    shape = (3, 64, 64) if colour else (1, 28, 28)
    own = build_model(composed(*case.overrides), shape, classes=1, stochastic=True)
    tutorial = case.network()

    def size(model: torch.nn.Module) -> int:
        return sum(p.numel() for p in model.parameters())

    assert size(own) == size(tutorial)
    out, mean, log_var = tutorial(torch.rand(2, *shape))
    assert out.shape == (2, *shape) and mean.shape == log_var.shape == (2, 20)


def test_a_benchmark_reports_medians_of_ratios_within_rounds() -> None:
    import bench

    rates = {
        "tutorial loop": [10.0, 20.0, 100.0],
        "products alone, float32": [100.0, 200.0, 1000.0],
        "products alone, bf16": [200.0, 400.0, 2000.0],
        "float32": [30.0, 80.0, 200.0],
        "bf16, compiled": [50.0, 100.0, 500.0],
    }
    rows = {row["mode"]: row for row in bench.table(bench.CASES["mlp"], rates, dict.fromkeys(rates, 1.0))}
    assert rows["float32"]["against_tutorial"] == 3
    assert rows["float32"]["against_products"] == 0.3
    assert rows["bf16, compiled"]["against_products"] == 0.25
    assert "| float32 | 80 | 1.6e+03 | 3.00 | 0.30 | 1 |" in bench.markdown(bench.CASES["mlp"], list(rows.values()))


def test_the_products_of_a_step_are_all_found() -> None:
    """An MLP of two layers each way: four products forward, and backward two each but for the input's."""
    import bench

    step, stream = bench.training_step(bench.CASES["mlp"], torch.device("cpu"))
    with bench.Recorder() as recorder:
        step(stream.batch(0))
    assert len(recorder.calls) == 4 + 7


@pytest.mark.slow
def test_fifty_kills_lose_nothing() -> None:
    command = [sys.executable, str(SCRIPTS / "kill_test.py"), "--kills", "50"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert ": 0 runs differ" in done.stdout


def test_the_profiles_run(tiny: list[str]) -> None:
    import profile_step

    lines = profile_step.profile_epoch([*tiny, "device=cpu", "figures.images=8"]).splitlines()
    assert [line.split("|")[1].strip() for line in lines[:4]] == ["training", "validation", "pictures", "checkpoint"]
