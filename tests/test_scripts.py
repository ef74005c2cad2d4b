"""The scripts behind the documents: each is run, shortened, and its documented arguments are parsed."""

import argparse
import math
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import matplotlib
import pytest
import torch
from conftest import SMALL_NETWORKS, SPRITES, composed, results
from PIL import Image

from vaex import cli
from vaex.config.schema import config_dir
from vaex.data.mnist import mnist

matplotlib.use("Agg")
ROOT = Path(__file__).parent.parent
SCRIPTS = ROOT / "scripts"
Run = Callable[..., None]


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def run_script(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Call `main` of a script. It runs vaex in this process, with more arguments for `vaex train` and `vaex eval`."""

    def run(module: ModuleType, *arguments: str, train: Sequence[str] = (), evaluate: Sequence[str] = ()) -> None:
        def run_vaex(command: list[str], **_: Any) -> SimpleNamespace:
            _, _, _, verb, *own = command
            if verb == "train":
                own = [argument for argument in own if "hidden=" not in argument]
            cli.run(verb, [*own, *(train if verb == "train" else evaluate)])
            return SimpleNamespace(returncode=0)

        for name in (module.__name__, "likelihood_table"):
            monkeypatch.setattr(f"{name}.subprocess", SimpleNamespace(run=run_vaex, DEVNULL=None), raising=False)
        monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", *arguments])
        module.main()

    return run


def test_documented_arguments_are_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those in README.md, docs/ and the docstrings of the scripts."""

    class Parsed(Exception):
        pass

    for method in ("parse_args", "parse_intermixed_args"):
        original = getattr(argparse.ArgumentParser, method)

        def parse(parser: argparse.ArgumentParser, original: Callable[..., object] = original) -> None:
            original(parser, arguments)
            raise Parsed

        monkeypatch.setattr(argparse.ArgumentParser, method, parse)
    texts = [path.read_text() for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *SCRIPTS.glob("*.py")]]
    commands = {command for text in texts for command in re.findall(r"python (scripts/[^`#)\n]+)", text)}
    assert {shlex.split(command)[0] for command in commands} >= {
        f"scripts/{path.name}" for path in SCRIPTS.glob("*.py")
    }
    for command in sorted(commands):
        script, *arguments = shlex.split(command)
        assert (ROOT / script).is_file(), command
        monkeypatch.setattr(sys, "argv", [script, *arguments])
        with pytest.raises(Parsed):
            import_module(Path(script).stem).main()


def test_the_lowest_likelihood_is_at_the_closed_form_in_the_plot(
    run_script: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    import scale_study

    run_script(scale_study, "--out", "study.png")
    ratios = re.findall(r": ([\d.]+)[,}]", capsys.readouterr().out)
    assert len(ratios) == 6 and all(float(ratio) == pytest.approx(1, abs=0.01) for ratio in ratios)
    with Image.open("study.png") as picture:
        assert picture.width > 1000


def test_the_table_has_every_likelihood_and_every_scale_rule() -> None:
    import likelihood_table

    chosen = list(likelihood_table.settings().values())
    for likelihood in (config_dir() / "likelihood").glob("*.yaml"):
        assert any(f"likelihood={likelihood.stem}" in overrides for overrides in chosen)
    for rule in (config_dir() / "likelihood" / "scale").glob("*.yaml"):
        for family in ("gaussian", "laplace", "logistic", "student_t"):
            assert any({f"likelihood={family}", f"likelihood/scale={rule.stem}"} <= set(o) for o in chosen)


def test_the_table_of_starts_restores_the_version_before() -> None:
    import start_table

    settings = start_table.settings()
    families = {"beta", "continuous_bernoulli", "discretized_logistic_mixture", "categorical", "gaussian-fixed"}
    for name in families | {"laplace-shared", "logistic-per_dimension", "student_t-optimal", "laplace-per_pixel-bins"}:
        config = composed(*settings[name], *start_table.before(name))
        likelihood = config.likelihood
        scale = likelihood.get("scale", {})
        assert config.start == "zero" and scale.get("lr") is None
        assert scale.get("floor", 1 / 255) == 1 / 255
        assert likelihood.get("cap", 1000) == 1000 and likelihood.get("bound", 100) == 100
    assert composed(*settings["laplace-shared"]).likelihood["scale"]["lr"] == 0.03


def test_the_table_of_starts_fails_if_settings_change_places_by_more_than_their_seeds(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import start_table

    first, second, *others = start_table.HELD_OUT
    bits = {
        f"sprites {name} {start} {seed} 2000": 5.0 for name in others for start in ("data", "zero") for seed in (0, 1)
    }
    bits |= {
        f"mnist gaussian-{rule} now 300": bits_per_dim for rule, bits_per_dim in (("shared", 7.1), ("optimal", 7.0))
    }
    monkeypatch.setattr(start_table, "measure_all", lambda runs, results, workers: bits)
    monkeypatch.setattr(sys, "argv", ["start_table.py", "--out", str(tmp_path / "table.md")])

    def written(**values: tuple[float, float]) -> tuple[str, object]:
        for key, seeds in values.items():
            name, start = {"a": first, "b": second}[key[0]], key[2:]
            bits.update({f"sprites {name} {start} {seed} 2000": value for seed, value in enumerate(seeds)})
        with pytest.raises(SystemExit) as stop:
            start_table.main()
        return (tmp_path / "table.md").read_text(), stop.value.code

    text, code = written(a_data=(1, 1.1), b_data=(1.2, 1.3), a_zero=(2, 2.3), b_zero=(2.1, 2.15))
    assert code == 0 and "start: none." in text
    assert f"| {first} | 1 | 1.050 | 0.100 | 2 | 2.150 | 0.300 |" in text
    assert "| gaussian | – | +0.100 |" in text and "cross_entropy" not in text
    text, code = written(a_zero=(2.2, 2.3))
    assert code == 1 and f"start: {first} and {second}." in text


def test_a_section_of_the_gpu_check_that_fails_or_hangs_keeps_what_it_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gpu_check

    endings = {"speed": "", "kernels": "sys.exit(3)", "waits": "time.sleep(60)"}
    for section, ending in endings.items():
        script = f"import sys, time; print('{section}', flush=True); {ending}"
        (tmp_path / f"{section}.py").write_text(script)
    monkeypatch.setattr(gpu_check, "commands", lambda section, out: iter([[str(tmp_path / f"{section}.py")]]))
    monkeypatch.setattr(gpu_check, "LIMITS", {"speed": 60, "kernels": 60, "waits": 1})
    outcomes = [gpu_check.run_section(section, tmp_path) for section in endings]
    assert outcomes == ["completed", "failed, exit 3", "stopped at its time limit"]
    assert (tmp_path / "gpu_check.log").read_text().split() == list(endings)
    table = gpu_check.Table(tmp_path / "speed.md", "case", "µs")
    table.add("mlp", 60)
    assert (tmp_path / "speed.md").read_text() == "| case | µs |\n|---|---|\n| mlp | 60 |\n"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_gpu_check_needs_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    import gpu_check

    monkeypatch.setattr(sys, "argv", ["gpu_check.py"])
    with pytest.raises(SystemExit, match="PyTorch finds no GPU"):
        gpu_check.main()


def test_the_table_of_likelihoods_is_written(run_script: Run, tiny: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import likelihood_table as script

    names = ("gaussian-shared", "cross_entropy")
    settings = {name: overrides for name, overrides in script.settings().items() if name in names}
    monkeypatch.setattr(script, "settings", lambda: settings)
    options = ["--samples", "1", "--workers", "1", "--folder", "runs", "--out", "table.md"]
    run_script(script, "--steps", "2", *options, train=[*tiny, "figures.kinds=[]"], evaluate=["--fid", "none"])
    text = Path("table.md").read_text()
    assert "2 steps with a batch size" in text and "did not complete" not in text
    assert all(f"| {name} |" in text for name in names)
    bits = results(Path("runs/gaussian-shared"))["test/bits_per_dim"]
    assert f"| gaussian-shared | {bits:.3f} |" in text


@pytest.mark.slow
def test_the_study_of_likelihoods_runs_and_shows_intervals(
    run_script: Run, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import which_likelihood as study

    sweeps = {
        "learned": ["likelihood=gaussian", "likelihood/scale=shared", study.UNIFORM, "beta=1"],
        "fixed": ["likelihood=gaussian", "likelihood/scale=fixed", "likelihood.scale.value=0.1", "beta=1"],
        "cross_entropy": ["likelihood=cross_entropy", "beta=1,4"],
    }
    monkeypatch.setattr(study, "SWEEPS", sweeps)
    for columns in ("AGAINST_BETA", "DISTANCES"):  # instead of the FID, which would train a classifier
        monkeypatch.setattr(study, columns, {"test/rate": "", "test/mse": ""})
    Path("figures").mkdir()
    options = ["--seeds", "0,1", "--workers", "1", "--folder", "runs", "--docs", str(tmp_path)]
    short = [*tiny, "steps=2", "figures.kinds=[]", "hydra/launcher=basic"]
    run_script(study, *options, train=short, evaluate=["--fid", "none", "--samples", "1"])
    text = Path("which_likelihood_table.md").read_text()
    rows = [line.split(" | ") for line in text.partition("|---")[2].splitlines()[1:]]
    assert [(row[0].lstrip("| "), row[1]) for row in rows] == [
        ("gaussian, shared", "1"),
        ("gaussian, fixed 0.1", "1"),
        ("cross_entropy", "1"),
        ("cross_entropy", "4"),
    ]
    bits = [results(Path("runs/learned") / f"seed={n}")["test/bits_per_dim"] for n in (0, 1)]
    half = abs(bits[0] - bits[1]) / 2 * 12.706
    assert rows[0][2] == f"{sum(bits) / 2:.3f} ± {half:.3f}" and rows[-1][2] == "–"
    for name in ("bits", "beta", "rate", "pictures"):
        with Image.open(f"figures/which_likelihood_{name}.png") as picture:
            assert picture.width > 500


def test_the_part_of_the_encoder_in_a_score_is_measured(
    here: Callable[..., Path], tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import encoder_gap

    monkeypatch.setattr("vaex.evaluation.importance.FIT_STEPS", 30)
    monkeypatch.setattr(encoder_gap, "ESTIMATES", [("encoder", 10), ("fitted", 10)])
    short = [*tiny, "steps=20", "figures.kinds=[]"]
    encoder, fitted, halving = encoder_gap.measure(here(*short, "dataset.dequantize=uniform"), 8) or [0.0] * 3
    assert 2 < fitted < encoder < 10 and abs(halving) < 1
    assert encoder_gap.measure(here(*short, "likelihood=cross_entropy", folder="other"), 8) is None
    assert encoder_gap.name_of(Path("run").resolve()).startswith("gaussian/shared (")


def test_the_study_of_sprites_is_written(run_script: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sprites_beta as study

    monkeypatch.setattr(study, "BETAS", [1.0, 4.0])
    monkeypatch.setattr(study, "SETTING", ["dataset=sprites", "likelihood=bernoulli", "latent_dim=2"])
    options = ["--steps", "2", "--workers", "1", "--folder", "runs", "--docs", str(tmp_path)]
    run_script(study, *options, train=[*SPRITES, "dataset.validation=20", "batch_size=32", "figures.kinds=[]"])
    rows = Path("sprites_beta.md").read_text().splitlines()
    assert rows[4].startswith("| 1 |") and rows[5].startswith("| 4 |") and rows[4].count("|") == 12
    with Image.open("sprites_beta.png") as picture:
        assert picture.width > 500


def test_the_table_of_total_correlations_is_written(
    run_script: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tc_table as study

    monkeypatch.setattr(study, "SETTING", ["dataset=sprites", "likelihood=bernoulli", "latent_dim=2"])
    options = ["--steps", "2", "--seeds", "0", "1", "--workers", "1", "--folder", "runs", "--docs", str(tmp_path)]
    run_script(study, *options, train=[*SPRITES, "dataset.validation=20", "batch_size=32", "figures.kinds=[]"])
    rows = Path("tc_table.md").read_text().splitlines()
    assert [row.split("|")[1].strip() for row in rows[4:]] == list(study.OBJECTIVES)
    assert all(row.count("|") == 9 and row.count("±") == 7 for row in rows[4:])


def test_the_table_of_color_pictures_is_written(
    run_script: Run, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import color_study as study

    monkeypatch.setattr(study, "ARCHITECTURES", {"ladder": [*study.ARCHITECTURES["ladder"], *SMALL_NETWORKS["ladder"]]})
    options = ["--likelihoods", "laplace, shared", "cross_entropy", "--architectures", "ladder", "--steps", "5"]
    options += ["--workers", "1", "--folder", "runs", "--docs", str(tmp_path), "--samples", "2"]
    train = ["batch_size=16", "figures.kinds=[]"]
    run_script(study, str(pictures), *options, train=train, evaluate=["--fid", "none"])
    rows = Path("color_table.md").read_text().splitlines()
    assert (
        rows[2] == "## ladder" and rows[6].startswith("| laplace, shared |") and rows[7].startswith("| cross_entropy |")
    )
    assert rows[6].split("|")[2].strip() != "–" and rows[7].split("|")[2].strip() == "–"


def test_the_classifier_is_trained_and_its_hashes_printed(
    run_script: Run, small: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import train_classifier as script

    source = mnist(root=small[0].partition("=")[2])
    monkeypatch.setattr(script, "mnist", lambda: source)
    monkeypatch.setattr(script, "MNIST_WEIGHTS", Path("weights.safetensors").absolute())
    run_script(script, "--epochs", "1")
    assert re.search(r'^MNIST_WEIGHTS_SHA256 = "[0-9a-f]{64}"$', capsys.readouterr().out, flags=re.MULTILINE)
    assert Path("weights.safetensors").is_file()


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
def test_the_networks_of_the_benchmark_have_the_same_size(name: str) -> None:
    import bench
    from conftest import composed

    from vaex.build import build_model

    case = bench.CASES[name]
    color = "64" in name
    shape = (3, 64, 64) if color else (1, 28, 28)
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


@pytest.mark.parametrize("name", ["conv64", "vit64"])
def test_a_case_with_images_of_its_own_is_trained(name: str) -> None:
    import bench

    few = ["+dataset.source.count=260", "batch_size=2"]
    step, stream = bench.training_step(bench.CASES[name], torch.device("cpu"), *few)
    step(stream.batch(0))
    assert math.isfinite(step.sums.take().sums["loss"])
    assert "VAEX_TRUST" not in os.environ


@pytest.mark.slow
@pytest.mark.parametrize(
    "command, output",
    [
        ("bench.py --cases mlp --rounds 1 --seconds 0.05", "× tutorial loop"),
        ("bench.py --cases conv64 --rounds 1 --seconds 0.05", "× tutorial loop"),
        ("bench.py --cases vit64 --rounds 1 --seconds 0.05", "× tutorial loop"),
        ("bench.py --cases ladder28 --rounds 1 --seconds 0.05", "× tutorial loop"),
        ("bench_sweep.py --batch 32 --steps 5 --rounds 1", "batch 32: "),
        ("bench_report.py --repeats 1", " runs: "),
        ("profile_step.py --cases mlp conv64 vit64 --modes '' --steps 2", "| vit64 | float32 |"),
        ("profile_step.py --epoch batch_size=1000 architecture.hidden=[8]", "| validation |"),
    ],
)
def test_a_benchmark_runs(command: str, output: str) -> None:
    script, *arguments = shlex.split(command)
    done = subprocess.run([sys.executable, str(SCRIPTS / script), *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert output in done.stdout


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
