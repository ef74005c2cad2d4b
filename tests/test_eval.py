"""`vaex eval`: runs of different kinds in one call, what is ranked and what isn't, and what it writes."""

import csv
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import results
from safetensors.torch import load_file, save_file

from vaex import cli
from vaex.build import load_config, load_dataset, load_model
from vaex.config.create import create
from vaex.evaluation import measure as measured
from vaex.evaluation.frozen_scale import freeze_scales
from vaex.evaluation.ranking import Row, group_of, grouped
from vaex.evaluation.table import as_csv, as_json, text
from vaex.runs.find import find_runs

Here = Callable[..., Path]
Captured = pytest.CaptureFixture[str]

FEW = ("--samples", "5", "--device", "cpu", "--fid", "none")


@pytest.fixture
def runs(here: Here, tiny: list[str], capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """One tiny run, in the folder `name`."""

    def run(name: str, *arguments: str) -> Path:
        path = here(*tiny, "steps=12", "device=cpu", *arguments, folder=name)
        monkeypatch.setenv("HYDRA_FULL_ERROR", "0")  # `train` asks Hydra for tracebacks, in what is here one process
        capsys.readouterr()
        return path

    return run


def failed(capsys: Captured, *arguments: object) -> str:
    """The one line on standard error."""
    with pytest.raises(SystemExit) as stop:
        cli.evaluate(list(map(str, arguments)))
    assert stop.value.code == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def test_runs_of_different_kinds_in_one_call_are_not_ranked_together(
    runs: Callable[..., Path], tmp_path: Path, capsys: Captured
) -> None:
    folders = [
        runs("sweep/narrow", "likelihood/scale=fixed", "likelihood.scale.value=0.01"),
        runs("sweep/wide"),
        runs("coin", "likelihood=bernoulli", "dataset.binarize=static"),
        runs("grey", "likelihood=cross_entropy"),
        runs("code", "objective=ae"),
    ]
    before = {path: results(path) for path in folders}
    cli.evaluate(["sweep", "coin", "grey", "code", *FEW, "--csv", "all.csv", "--json", "all.json"])
    out = capsys.readouterr().out
    groups = out.strip().split("\n\n")
    assert [group.split(",")[0] for group in groups] == [
        "8-bit images",
        "Binary images (binarize=static)",
        "Pseudo-likelihoods",
        "Autoencoders",
    ]
    assert max(map(len, out.splitlines())) <= 120
    for group, names, reason in zip(
        groups,
        (("sweep/wide", "sweep/narrow"), ("coin",), ("grey",), ("code",)),
        ("the probability of the same 8-bit images", "one-bit images", "the probability of no image", "no bound"),
        strict=True,
    ):
        table = [line.split() for line in group.splitlines()[1:]]
        ranks = {line[1]: line[0] for line in table if len(line) > 2 and line[1] in {path for path in names}}
        assert set(ranks) == set(names)
        assert " ".join(group.split()).count(reason) == 1
        assert list(ranks.values()) == (["1", "2"] if len(names) == 2 else ["1"] if "coin" in names else ["–"])
    assert "elbo" not in groups[3]

    for path in folders:  # what the run wrote is still there, and still the same
        now = results(path)
        for name, value in before[path].items():
            assert now[name] == pytest.approx(value, rel=1e-6), name
        assert {"test/psnr", "test/ssim"} <= set(now)
    wide, coin, grey, code = (results(path) for path in folders[1:])
    assert wide["test/bits_per_dim"] == pytest.approx(wide["test/nll"] / (784 * math.log(2)) + 8)
    assert coin["test/bits_per_dim"] == pytest.approx(coin["test/nll"] / (784 * math.log(2)))
    for found, pixels in ((wide, "(k+u)/256"), (coin, "binary")):
        assert found["test/scored_pixels"] == pixels
        assert found["test/bits_per_dim_from"] == "importance" and found["test/nll_samples"] == 5
        assert 0 < found["test/nll_stderr"] < 30
    assert wide["test/nll"] < -wide["test/elbo_dequantized"] and coin["test/nll"] < -coin["test/elbo"]
    assert wide["test/elbo_dequantized"] == pytest.approx(wide["test/elbo"], rel=0.2)
    for found in (grey, code):
        assert not {"test/nll", "test/bits_per_dim"} & set(found)
    assert "test/elbo" in grey and "test/elbo" not in code

    with (tmp_path / "all.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["run"] for row in rows] == ["sweep/wide", "sweep/narrow", "coin", "grey", "code"]
    assert [row["rank"] for row in rows] == ["1", "2", "1", "", ""]
    assert float(rows[0]["test/nll"]) == wide["test/nll"] and rows[4]["test/elbo"] == ""
    objects = json.loads((tmp_path / "all.json").read_text())
    assert (
        objects[2]["likelihood"] == "bernoulli" and objects[2]["test/rate_per_latent"] == coin["test/rate_per_latent"]
    )


def test_a_density_is_scored_alike_whether_or_not_it_was_trained_on_dequantized_pixels(
    runs: Callable[..., Path], capsys: Captured
) -> None:
    """The two runs go into one group, and for the second test/elbo is already of what is scored."""
    levels, noisy = runs("levels"), runs("noisy", "dataset.dequantize=uniform")
    cli.evaluate([str(levels), str(noisy), "--samples", "0", "--device", "cpu", "--fid", "none"])
    out = capsys.readouterr().out
    assert out.count("8-bit images,") == 1 and "From the ELBO" in out
    found = results(noisy)
    assert found["test/elbo_dequantized"] == pytest.approx(found["test/elbo"], rel=1e-6)
    assert found["test/bits_per_dim_from"] == "elbo" and "test/nll" not in found
    assert found["test/bits_per_dim"] == pytest.approx(-found["test/elbo"] / (784 * math.log(2)) + 8, rel=1e-6)


def test_a_conditional_model_is_ranked_with_no_other(runs: Callable[..., Path], capsys: Captured) -> None:
    paths = [runs("plain"), runs("given", "conditional=true")]
    cli.evaluate([*map(str, paths), *FEW])
    out = capsys.readouterr().out
    assert out.count("8-bit images,") == 2 and out.count("given the label") == 1


def test_a_collapsed_posterior_is_told(runs: Callable[..., Path], capsys: Captured) -> None:
    path = runs("run")
    weights = load_file(path / "model.safetensors")
    for name in ("encoder.output.weight", "encoder.output.bias"):
        weights[name].zero_()  # q(z|x) = N(0, I) for every x
    save_file(weights, path / "model.safetensors")
    cli.evaluate([str(path), *FEW])
    out = " ".join(capsys.readouterr().out.split())
    assert "run: the posterior has collapsed (0 active units, rate 0 nats)" in out
    assert measured.collapsed({"test/active_units": 0, "test/rate": 5.0}) is not None
    assert "0.05" in str(measured.collapsed({"test/active_units": 2, "test/rate": 0.05}))
    assert measured.collapsed({"test/active_units": 1, "test/rate": 0.5}) is None
    assert measured.collapsed({"test/mse": 0.1}) is None


def test_a_scale_computed_from_the_error_is_set_from_the_training_split(runs: Callable[..., Path]) -> None:
    path = runs("run", "likelihood/scale=optimal")
    config, _ = load_config(path)
    model, dataset = load_model(path), load_dataset(config.dataset)
    x = dataset.train.pixels / 255
    expected = (model.reconstruct(x) - x).square().mean().sqrt().item()  # at the posterior's mean, near its draws'
    model.likelihood.scale.frozen.zero_()
    freeze_scales(model, dataset.train, dataset.to_float)
    assert model.likelihood.scale.frozen.exp().item() == pytest.approx(expected, rel=0.05)


def test_errors_are_one_line(runs: Callable[..., Path], tmp_path: Path, capsys: Captured) -> None:
    path = runs("run")
    assert "/no/such/run: no such folder" in failed(capsys, "/no/such/run")
    (tmp_path / "empty").mkdir()
    assert "empty: no completed run there" in failed(capsys, "empty")
    assert "RUN" in failed(capsys)
    assert "--samples=-1" in failed(capsys, path, "--samples=-1")
    assert "many" in failed(capsys, path, "--samples=many")
    assert "--batch-size=0" in failed(capsys, path, "--batch-size=0")
    assert "--device=gpu" in failed(capsys, path, "--device=gpu")
    assert "--what" in failed(capsys, path, "--what")
    assert "--csv=no/such/file.csv" in failed(capsys, path, "--csv=no/such/file.csv")
    (path / "model.safetensors").write_bytes(b"damaged")
    assert "model.safetensors: damaged" in failed(capsys, path)


def test_a_sweep_is_all_runs_in_it_in_order_and_each_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("10", "2", "unfinished"):
        (tmp_path / "sweep" / name / ".hydra").mkdir(parents=True)
        (tmp_path / "sweep" / name / "config.yaml").touch()
        (tmp_path / "sweep" / name / ".hydra" / "config.yaml").touch()
        if name != "unfinished":
            (tmp_path / "sweep" / name / "model.safetensors").touch()
    found, skipped = find_runs([Path("sweep"), Path("sweep/2")])
    assert [path.name for path in found] == ["2", "10"]
    assert [path.name for path in skipped] == ["unfinished"]
    shutil.rmtree(tmp_path / "sweep" / "2")
    shutil.rmtree(tmp_path / "sweep" / "10")
    with pytest.raises(Exception, match="no completed run"):
        find_runs([Path("sweep")])


def row(name: str, nll: float | None, crc: int = 1, **changes: Any) -> Row:
    description: dict[str, Any] = {
        "kind": "mass",
        "stochastic": True,
        "scored_pixels": "binary",
        "conditional": False,
        "dataset": f"digits {crc}",
        "binarize": "static",
        "crc": crc,
    }
    numbers = {"test/elbo": -100.0, "test/bits_per_dim": math.inf if nll is None else nll}
    if nll is not None:
        numbers["test/nll"] = nll
    group = group_of(**description | changes)
    return Row(name, "bernoulli", "mass", None, 1.0, 784, group, numbers)


def test_only_the_same_images_are_ranked_together_and_lowest_is_first() -> None:
    rows = [
        row("b", 90.0),
        row("a", 80.0),
        row("bound only", None),
        row("other split", 1.0, crc=2),
        row("other binarisation", 1.0, binarize="threshold"),
        row("labels given", 1.0, conditional=True),
    ]
    ranked = [[member.run for member in members] for _, members in grouped(rows)]
    assert ["a", "b", "bound only"] in ranked and len(ranked) == 4
    assert [rows[n].rank for n in range(3)] == [2, 1, 3]


def test_numbers_that_are_not_finite_stand_last_and_are_valid_json() -> None:
    rows = [row("infinite", math.inf), row("not a number", math.nan), row("good", 90.0)]
    (_, members), *_ = grouped(rows)
    assert members[0].run == "good"
    found = json.loads(as_json(rows), parse_constant=lambda name: pytest.fail(name))
    assert [record["test/nll"] for record in found] == [90.0, None, None]
    assert "nan" not in as_csv(rows)


def test_long_paths_lose_their_beginning_and_the_table_stays_in_120_columns() -> None:
    rows = [row("outputs/" + "very/" * 40 + f"job{n}", 90.0 + n) for n in range(12)]
    lines = text(rows).splitlines()
    assert max(map(len, lines)) <= 120
    assert any("…" in line and "job11" in line for line in lines)


def test_a_density_of_binary_images_is_not_ranked() -> None:
    group = row("x", 1.0, kind="density", scored_pixels=None).group
    assert group.score is None and "without bound" in group.reason


def test_evaluation_repeats_itself_and_leaves_the_random_state_alone(runs: Callable[..., Path]) -> None:
    path = runs("run")
    config, _ = load_config(path)
    model, dataset = load_model(path), load_dataset(config.dataset)
    state = torch.get_rng_state()
    objective = create("objective", config.objective)
    first, again = (measured.measure(model, objective, dataset, samples=3, generated=None) for _ in range(2))
    assert first == again
    assert torch.equal(state, torch.get_rng_state())


def test_help_comes_without_torch() -> None:
    probe = (
        "import sys; sys.argv = ['vaex', 'eval', '--help']\nfrom vaex.cli import main\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code\n"
        "assert not {'torch', 'hydra', 'omegaconf', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "vaex eval" in done.stdout and "--samples" in done.stdout
