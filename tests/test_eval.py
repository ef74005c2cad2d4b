"""`vaex eval`: which runs are ranked together, what it writes, and metrics of the user."""

import csv
import json
import math
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal
from unittest.mock import Mock

import pytest
import torch
from conftest import results, write_idx
from safetensors.torch import load_file, save_file

from vaex import cli
from vaex.build import load_config, load_dataset, load_model
from vaex.config.create import create
from vaex.data.corruption import GaussianNoise, Masking
from vaex.data.dataset import Source
from vaex.errors import UserError
from vaex.evaluation import importance
from vaex.evaluation.bits import PROBABILITY
from vaex.evaluation.bound import as_results, evaluate, freeze_scales
from vaex.evaluation.comparison import Description, collapsed, comparison_group, ranking_group
from vaex.evaluation.measure import Evaluation, Measurement, measure
from vaex.evaluation.metric import DECLARATIONS, Metric, declaration, declared
from vaex.evaluation.metrics import MEASUREMENTS, METRICS
from vaex.evaluation.table import Row, as_csv, as_json, ranked, text
from vaex.runs.find import find_runs

NEIGHBORHOODS = ("test/precision", "test/recall", "test/density", "test/coverage")
SLOW_FID = pytest.param("coin", "noise", marks=pytest.mark.slow)

Captured = pytest.CaptureFixture[str]

FEW = ("--samples", "5", "--device", "cpu", "--fid", "none")
RUNS = {
    "sweep/wide": [],
    "sweep/noisy": ["dataset.dequantize=uniform"],
    "optimal": ["likelihood/scale=optimal", "conditional=true"],
    "coin": ["likelihood=bernoulli", "dataset.binarize=static"],
    "gray": ["likelihood=cross_entropy"],
    "code": ["objective=ae"],
}
SETTINGS = ["steps=12", "device=cpu", "figures.kinds=[]", "trainer.threads=1"]


@dataclass
class Evaluated:
    """Runs, their results before and after one `vaex eval`, and what it printed."""

    folder: Path
    before: dict[str, dict[str, Any]]
    after: dict[str, dict[str, Any]]
    out: str


@pytest.fixture(scope="module")
def evaluated(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Evaluated:
    folder = tmp_path_factory.mktemp("evaluated")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, overrides in RUNS.items():
            cli.run("train", [*tiny, *SETTINGS, *overrides, f"hydra.run.dir={folder / name}"])
        before = {name: results(folder / name) for name in RUNS}
        printed: list[str] = []
        patch.setattr("builtins.print", lambda *lines, **options: printed.extend(map(str, lines)))
        places = dict.fromkeys(name.partition("/")[0] for name in RUNS)
        cli.run("eval", [*places, *FEW, "--csv", "all.csv", "--json", "all.json"])
    return Evaluated(folder, before, {name: results(folder / name) for name in RUNS}, "\n".join(printed))


@pytest.fixture
def a_run(evaluated: Evaluated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of one run."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(evaluated.folder / "sweep/wide", tmp_path / "run"))


def failed(capsys: Captured, *arguments: object) -> str:
    """The one line on standard error."""
    with pytest.raises(SystemExit) as stop:
        cli.run("eval", list(map(str, arguments)))
    assert stop.value.code == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def test_only_numbers_of_the_same_images_are_ranked_together(evaluated: Evaluated) -> None:
    groups = evaluated.out.strip().split("\n\n")
    expected = [
        ("8-bit images: mnist, 300 test images of 1 × 28 × 28, given the label", ("optimal",), "same 8-bit images"),
        ("8-bit images", ("sweep/wide", "sweep/noisy"), "the probability of the same 8-bit images"),
        ("Binary images", ("coin",), "one-bit images"),
        ("cross_entropy, a pseudo-likelihood", ("gray",), "the probability of no image"),
        ("Autoencoders", ("code",), "no bound"),
    ]
    assert len(groups) == len(expected)
    assert max(map(len, evaluated.out.splitlines())) <= 120
    for group, (title, names, reason) in zip(groups, expected, strict=True):
        assert group.startswith(title)
        table = [line.split() for line in group.splitlines()[1:]]
        ranks = {line[1]: line[0] for line in table if len(line) > 2 and line[1] in names}
        assert set(ranks) == set(names)
        assert list(ranks.values()) == (["–"] if title[0] in "cA" else ["1", "2"][: len(names)])
        assert " ".join(group.split()).count(reason) == 1
    assert "elbo" not in groups[4] and "given the label" not in groups[1]


def test_what_training_wrote_stays_and_comes_out_again(evaluated: Evaluated) -> None:
    for name, before in evaluated.before.items():
        after = evaluated.after[name]
        for key, value in before.items():
            # A density of k/255 has no score until it is evaluated on (k+u)/256.
            if not (key.startswith("test/image_") or "bits" in key or key.startswith("test/nll_bound")):
                same = pytest.approx(value, rel=1e-6) if isinstance(value, float) else value
                assert after[key] == same, (name, key)
        assert {"test/psnr", "test/ssim"} <= set(after)
        assert Description.read(after) == Description.read(before) is not None


def test_scores_of_the_image(evaluated: Evaluated) -> None:
    wide, noisy, coin, gray, code = (
        evaluated.after[name] for name in ("sweep/wide", "sweep/noisy", "coin", "gray", "code")
    )
    bits = 784 * math.log(2)
    for run, offset, pixels in ((wide, 8, "(k+u)/256"), (noisy, 8, "(k+u)/256"), (coin, 0, "binary")):
        assert run["test/scored_pixels"] == pixels
        assert run["test/bits_per_dim_from"] == "importance" and run["test/nll_samples"] == 5
        assert run["test/bits_per_dim"] == pytest.approx(run["test/nll"] / bits + offset)
        assert run["test/nll_bound"] == pytest.approx(run["test/bits_per_dim"] * bits)
        assert 0 < run["test/nll_stderr"] < 30
        assert run["test/bits_per_dim_stderr"] == pytest.approx(run["test/nll_stderr"] / bits)
        assert run["test/image_elbo"] == pytest.approx(-run["test/image_distortion"] - run["test/image_rate"])
        assert run["test/nll_bound"] < -run["test/image_elbo"]
    assert wide["test/elbo_dequantized"] == pytest.approx(wide["test/elbo"], rel=0.2)
    assert noisy["test/elbo_dequantized"] == pytest.approx(noisy["test/elbo"], rel=1e-6)
    assert wide["test/image_elbo"] == pytest.approx(wide["test/elbo_dequantized"] - 784 * math.log(256))
    assert coin["test/image_elbo"] == coin["test/elbo"]
    for run in (gray, code):
        assert not {"test/nll", "test/bits_per_dim", "test/nll_bound"} & set(run)
    assert gray["test/image_elbo"] == gray["test/elbo"] and "test/elbo" not in code and "test/image_elbo" not in code


def test_training_scores_the_image_where_its_elbo_is_a_bound(evaluated: Evaluated) -> None:
    wide, noisy, coin = (evaluated.before[name] for name in ("sweep/wide", "sweep/noisy", "coin"))
    assert "test/bits_per_dim" not in wide and wide["test/image_elbo"] == wide["test/elbo"]
    assert noisy["test/bits_per_dim"] == pytest.approx(-noisy["test/elbo"] / (784 * math.log(2)) + 8)
    assert coin["test/bits_per_dim"] == pytest.approx(-coin["test/elbo"] / (784 * math.log(2)))
    for run in (noisy, coin):
        assert run["test/bits_per_dim_from"] == "elbo"
        assert run["test/nll_bound_stderr"] == run["test/image_elbo_stderr"] == run["test/elbo_stderr"] > 0
        assert run["test/elbo_draw_stderr"] < run["test/elbo_stderr"]
        assert run["test/nll_bound"] == pytest.approx(-run["test/image_elbo"])
        assert ranking_group(run).ranked_by


def test_csv_and_json_hold_the_results_in_the_order_of_the_table(evaluated: Evaluated) -> None:
    with (evaluated.folder / "all.csv").open() as file:
        rows = list(csv.DictReader(file))
    best = sorted(("sweep/wide", "sweep/noisy"), key=lambda name: evaluated.after[name]["test/bits_per_dim"])
    names = ["optimal", *best, "coin", "gray", "code"]
    assert [row["run"] for row in rows] == names
    assert [row["rank"] for row in rows] == ["1", "1", "2", "1", "", ""]
    assert float(rows[1]["test/nll"]) == evaluated.after[best[0]]["test/nll"] and rows[5]["test/elbo"] == ""
    coin = json.loads((evaluated.folder / "all.json").read_text())[3]
    assert coin["likelihood"] == "bernoulli" and coin["beta"] == 1.0 and coin["scale"] is None
    assert coin["test/rate_per_latent"] == evaluated.after["coin"]["test/rate_per_latent"]


def test_a_later_evaluation_from_the_elbo_has_the_standard_error_of_the_elbo(a_run: Path, capsys: Captured) -> None:
    cli.run("eval", [str(a_run), "--samples", "0", "--device", "cpu", "--fid", "none"])
    after = results(a_run)
    assert "computed from the ELBO" in capsys.readouterr().out
    assert after["test/bits_per_dim_from"] == "elbo" and after["test/nll_samples"] == 5
    assert after["test/nll_bound"] == pytest.approx(-after["test/image_elbo"])
    assert after["test/nll_bound_stderr"] == after["test/elbo_dequantized_stderr"] == after["test/image_elbo_stderr"]
    assert after["test/bits_per_dim_stderr"] == pytest.approx(after["test/nll_bound_stderr"] / (784 * math.log(2)))


def test_scores_from_a_fitted_posterior_say_so_and_are_lower(a_run: Path, capsys: Captured) -> None:
    common = [str(a_run), "--samples", "20", "--device", "cpu", "--fid", "none"]
    cli.run("eval", common)
    encoder = results(a_run)
    capsys.readouterr()
    cli.run("eval", [*common, "--posterior", "fitted"])
    fitted, out = results(a_run), " ".join(capsys.readouterr().out.split())
    assert "importance-weighted with 20 samples of z from a fitted posterior" in out
    assert (encoder["test/nll_posterior"], fitted["test/nll_posterior"]) == ("encoder", "fitted")
    assert fitted["test/nll"] < encoder["test/nll"]
    assert 0 <= fitted["test/nll_halving"] < encoder["test/nll_halving"]
    assert ranking_group(encoder) != ranking_group(fitted)
    older = {key: value for key, value in encoder.items() if not key.startswith("test/nll_posterior")}
    assert ranking_group(older) == ranking_group(encoder)


def test_the_posterior_of_binary_images_is_fitted_unless_a_number_of_samples_is_given() -> None:
    posteriors = []

    def spy(evaluation: object, to_float: object, samples: int, *, fitted: bool) -> importance.Estimate:
        posteriors.append((samples, fitted))
        return importance.Estimate(0.0, 0.0, 0.0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vaex.evaluation.bits.importance_nll", spy)
        for binary in (True, False):
            model, dataset = Mock(), Mock(binary=binary)
            model.likelihood.kind = "mass"
            for options in ({}, {"samples": 5000}, {"posterior": "fitted"}, {"posterior": "encoder"}):
                PROBABILITY.function(Evaluation(model, Mock(), dataset, **options))  # type: ignore[arg-type]
    on_binary, on_others = posteriors[:4], posteriors[4:]
    assert on_binary == [(256, True), (5000, False), (256, True), (100, False)]
    assert on_others == [(100, False), (5000, False), (256, True), (100, False)]


@pytest.fixture(scope="module", params=[3, 1])
def few(request: pytest.FixtureRequest, source: Source, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """A run with this number of labeled test images."""
    folder = tmp_path_factory.mktemp("few")
    for name, part, count in (("train", source.train, 60), ("t10k", source.test, request.param)):
        write_idx(folder / f"{name}-images-idx3-ubyte.gz", part.pixels[:count, 0])
        write_idx(folder / f"{name}-labels-idx1-ubyte.gz", part.labels[:count])
    data = [f"dataset.source.root={folder}", "dataset.validation=20", "batch_size=16", "architecture.hidden=[16]"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        cli.run("train", [*data, *SETTINGS, "objective=ae" if request.param == 1 else "beta=1", "hydra.run.dir=run"])
    return folder / "run", request.param


def test_a_few_test_images_have_all_numbers_but_the_fid(few: tuple[Path, int], capsys: Captured) -> None:
    path, count = few
    capsys.readouterr()
    cli.run("eval", [str(path), "--samples", "5", "--device", "cpu"])
    out = " ".join(capsys.readouterr().out.split())
    assert f"no FID: the distance and its floor need at least 258 test images, got {count}" in out
    after = results(path)
    assert {"test/mse", "test/psnr", "test/ssim"} <= set(after) and "test/fid" not in after
    model, test = load_model(path), load_dataset(load_config(path)[0].dataset).test
    x = test.pixels / 255
    error = (model.reconstruct(x, test.labels) - x).square().mean(dim=(1, 2, 3))
    assert after["test/psnr"] == pytest.approx((-10 * error.log10()).mean().item(), rel=1e-4)
    if count > 1:
        assert {"test/elbo", "test/nll", "test/nll_stderr", "test/active_units", "test/coverage_90"} <= set(after)
    assert "258 test images" in failed(capsys, path, "--fid", "means", "--samples", "0", "--device", "cpu")


def test_one_image_has_no_active_units_and_no_collapse(source: Source, a_run: Path) -> None:
    """The variance of a single code is zero, whatever the model."""
    config = load_config(a_run)[0]
    dataset = load_dataset(config.dataset)
    evaluation = Evaluation(load_model(a_run), create("objective", config.objective), dataset)
    one = evaluate(evaluation, dataset.test[:1])
    assert "active_units" not in one and collapsed(as_results(one)) is None
    assert evaluate(evaluation, dataset.test[:2]).keys() - one.keys() == {"active_units", "elbo_stderr"}


def test_what_was_not_asked_for_costs_no_other_number() -> None:
    def fail(evaluation: Any) -> dict[str, Any]:
        raise ValueError("too few images")

    metric = Metric("test/x", "X")
    others = [Measurement(lambda evaluation, key=key: {key: 1.0}, ()) for key in ("test/a", "test/b")]
    for requested in (False, True):
        failing = Measurement(fail, (metric,), requested=lambda evaluation, requested=requested: requested)
        evaluation: Any = SimpleNamespace(results={})
        if requested:
            with pytest.raises(UserError, match="too few images"):
                measure(evaluation, [others[0], failing, others[1]])
        else:
            measured = measure(evaluation, [others[0], failing, others[1]])
            assert measured == ({"test/a": 1.0, "test/b": 1.0}, ["no X: too few images"])


def test_a_collapsed_posterior_is_reported(a_run: Path, capsys: Captured) -> None:
    weights = load_file(a_run / "model.safetensors")
    for name in ("encoder.output.weight", "encoder.output.bias"):
        weights[name].zero_()  # q(z|x) = N(0, I) for every x
    save_file(weights, a_run / "model.safetensors")
    (a_run / "results.json").unlink()  # it describes the weights from before
    cli.run("eval", [str(a_run), "--samples", "0", "--device", "cpu", "--fid", "none"])
    out = " ".join(capsys.readouterr().out.split())
    assert "run: the posterior has collapsed (0 active units, rate 0 nats)" in out
    assert collapsed({"test/active_units": 0, "test/rate": 5.0}) is not None
    assert "0.05" in str(collapsed({"test/active_units": 2, "test/rate": 0.05}))
    assert collapsed({"test/active_units": 1, "test/rate": 0.5}) is None
    assert collapsed({"test/mse": 0.1}) is None


def test_a_scale_computed_from_the_error_is_set_from_the_training_split(evaluated: Evaluated) -> None:
    path = evaluated.folder / "optimal"
    model, dataset = load_model(path), load_dataset(load_config(path)[0].dataset)
    x = dataset.train.pixels / 255
    # At the posterior's mean, which is near its samples.
    expected = (model.reconstruct(x, dataset.train.labels) - x).square().mean().sqrt().item()
    model.likelihood.scale.frozen.zero_()
    freeze_scales(model, dataset.train, dataset.to_float)
    assert model.likelihood.scale.frozen.exp().item() == pytest.approx(expected, rel=0.05)


def test_evaluation_repeats_itself_and_leaves_the_random_state_alone(evaluated: Evaluated) -> None:
    path = evaluated.folder / "sweep/noisy"
    config, _ = load_config(path)
    model, dataset = load_model(path), load_dataset(config.dataset)
    state = torch.get_rng_state()
    objective = create("objective", config.objective)
    first, again = (
        measure(Evaluation(model, objective, dataset, samples=3, fid="none"), MEASUREMENTS) for _ in range(2)
    )
    assert first == again
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("name", "fid"),
    [("sweep/noisy", "none"), ("optimal", "none"), ("coin", "none"), ("gray", "none"), SLOW_FID],
)
def test_no_batch_size_changes_a_number(evaluated: Evaluated, name: str, fid: Literal["none", "noise"]) -> None:
    config, _ = load_config(evaluated.folder / name)
    model, dataset = load_model(evaluated.folder / name), load_dataset(config.dataset)
    if name == "gray":  # whose pixels are not random yet
        dataset.binarize = "dynamic"
    numbers = []
    for batch_size in (7, 64, 300):
        objective = create("objective", {**config.objective, "samples": 2})
        corruption = {"coin": GaussianNoise(std=0.3), "gray": Masking(fraction=0.3)}.get(name, lambda x: x)
        evaluation = Evaluation(
            model, objective, dataset, corruption, 3, images_per_batch=batch_size, fid=fid, latent="mixture"
        )
        numbers.append(measure(evaluation, MEASUREMENTS)[0])
    for other in numbers[1:]:
        for key, value in numbers[0].items():
            # A pixel of a generated image may be rounded to the next level.
            tolerance = 1e-3 if "fid" in key or key in NEIGHBORHOODS else 2e-5
            assert other[key] == (value if isinstance(value, str) else pytest.approx(value, rel=tolerance)), key


def test_errors_are_one_line(a_run: Path, tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "empty").mkdir()
    for arguments, message in (
        (["/no/such/run"], "/no/such/run: no such folder"),
        (["empty"], "empty: contains no completed run"),
        ([], "RUN"),
        ([a_run, "--samples=-1"], "--samples=-1"),
        ([a_run, "--samples=many"], "many"),
        ([a_run, "--batch-size=0"], "--batch-size=0"),
        ([a_run, "--device=gpu"], "--device=gpu"),
        ([a_run, "--what"], "--what"),
        ([a_run, "--csv=no/such/file.csv"], "--csv=no/such/file.csv"),
        ([a_run, "--disentanglement"], "no known factors"),
    ):
        assert message in failed(capsys, *arguments)
    (a_run / "model.safetensors").write_bytes(b"damaged")
    assert "model.safetensors: damaged" in failed(capsys, a_run)


def test_a_sweep_is_all_runs_in_it_in_order_and_each_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("10", "2", "unfinished"):
        (tmp_path / "sweep" / name / ".hydra").mkdir(parents=True)
        (tmp_path / "sweep" / name / "config.yaml").touch()
        (tmp_path / "sweep" / name / ".hydra" / "config.yaml").touch()
        if name != "unfinished":
            (tmp_path / "sweep" / name / "model.safetensors").touch()
    runs, skipped = find_runs([Path("sweep"), Path("sweep/2")])
    assert [path.name for path in runs] == ["2", "10"]
    assert [path.name for path in skipped] == ["unfinished"]
    shutil.rmtree(tmp_path / "sweep" / "2")
    shutil.rmtree(tmp_path / "sweep" / "10")
    with pytest.raises(UserError, match="no completed run"):
        find_runs([Path("sweep")])


# The table


def row(name: str, nll: float | None, **changes: Any) -> Row:
    """A run on binary images, importance-weighted unless `nll` is None."""
    description = Description(
        **{
            "dataset": "digits",
            "image_shape": (1, 28, 28),
            "test_images": 100,
            "test_sha256": "1",
            "binarize": "static",
            "dequantize": "none",
            "conditional": False,
            "stochastic": True,
            "likelihood": "bernoulli",
            "scale": None,
            "likelihood_settings": "{}",
            "kind": "mass",
            "support": "binary",
            "beta": 1.0,
        }
        | changes
    )
    numbers = {"test/image_elbo": -100.0, "test/nll_bound": 100.0, "test/bits_per_dim": 0.2}
    numbers |= {"test/scored_pixels": "binary", "test/bits_per_dim_from": "elbo"}
    if nll is not None:
        numbers |= {"test/nll": nll, "test/nll_bound": nll, "test/nll_samples": 5}
        numbers |= {"test/bits_per_dim_from": "importance"}
    return Row(name, numbers | description.to_results())


def test_a_group_has_one_kind_of_bound_on_the_same_images_and_the_lowest_is_first() -> None:
    rows = [
        row("b", 90.0),
        row("a", 80.0),
        row("bound only", None),
        row("other split", 1.0, test_sha256="2"),
        row("other binarization", 1.0, binarize="threshold"),
        row("given labels", 1.0, conditional=True),
    ]
    groups = [[member.run for member in members] for _, members in ranked(rows)]
    assert ["a", "b"] in groups and len(groups) == 5
    elbo = next(metric for metric in METRICS if metric.key == "test/image_elbo")
    assert comparison_group(elbo, rows[0].results) == comparison_group(elbo, rows[2].results)


def test_numbers_that_are_not_finite_are_last_and_become_valid_json() -> None:
    rows = [row("infinite", math.inf), row("not a number", math.nan), row("good", 90.0)]
    ((_, members),) = ranked(rows)
    assert members[0].run == "good"
    records = json.loads(as_json(rows), parse_constant=lambda name: pytest.fail(name))
    assert [record["test/nll"] for record in records] == [90.0, None, None]
    assert "nan" not in as_csv(rows)


def test_long_paths_lose_their_beginning_and_the_table_stays_in_120_columns() -> None:
    rows = [row("outputs/" + "very/" * 40 + f"job{n}", 90.0 + n) for n in range(12)]
    lines = text(rows, METRICS).splitlines()
    assert max(map(len, lines)) <= 120
    assert any("…" in line and "job11" in line for line in lines)


def test_densities_of_k_255_and_of_binary_images_are_not_ranked() -> None:
    for changes, reason in (
        ({"kind": "density"}, "values that are only 0 or 1"),
        ({"kind": "density", "binarize": "none", "support": "real"}, "levels k/255"),
    ):
        results = row("x", 1.0, **changes).results
        del results["test/scored_pixels"], results["test/bits_per_dim"]
        group = ranking_group(results)
        assert group.ranked_by is None and not group.across_likelihoods
        assert reason in group.reason and "without bound" in group.reason
    with pytest.raises(ValueError, match="vaex eval adds it"):
        ranking_group({"test/elbo": -1.0})


# Metrics


def test_every_metric_is_declared_once_and_stands_in_the_docs() -> None:
    docs = (Path(__file__).parent.parent / "docs" / "numbers.md").read_text()
    keys = [metric.key for metric in METRICS]
    assert len(set(keys)) == len(keys)
    assert [key for key in keys if f"`{key.partition('/')[2]}`" not in docs] == []


def test_the_docs_name_every_key_of_results_json(evaluated: Evaluated) -> None:
    docs = (Path(__file__).parent.parent / "docs" / "numbers.md").read_text()
    keys = {key for run in evaluated.after.values() for key in run}
    groups = {key.partition("/")[0] for key in keys}
    assert groups <= {"test", "beta", "train", "model", "likelihood", "about"}
    assert sorted(key for key in keys if f"`{key.partition('/')[2]}`" not in docs) == []


PACKAGE = """
from vaex.evaluation.measure import Measurement
from vaex.evaluation.metric import Metric

def brightness(evaluation):
    total = sum(batch.x.sum().item() for batch in evaluation.batches())
    return {"test/brightness": total / evaluation.images.pixels.numel()}

def refuse(evaluation):
    raise ValueError("these images are too dark")

BRIGHTNESS = Measurement(brightness, (Metric("test/brightness", "brightness", digits=4),))
REFUSED = Measurement(refuse, ())
SKIPPED = Measurement(refuse, (), why_not=lambda evaluation: "no darkness: it is day")
TAKEN = Measurement(brightness, (Metric("test/mse", "MSE"),))
TWICE = Measurement(lambda evaluation: {"test/elbo": 0.0}, ())
TEXT = Measurement(lambda evaluation: {"test/brightest": "the first"}, ())
TENSOR = Measurement(lambda evaluation: {"test/x": evaluation.images.pixels}, ())
"""


def test_a_users_metric_joins_the_table_and_results_json_declares_it(
    a_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    (tmp_path / "brightness_of_images.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(tmp_path)
    quick = ("--samples", "0", "--device", "cpu", "--fid", "none")
    own = ["--metric=brightness_of_images.BRIGHTNESS", "--metric=brightness_of_images.SKIPPED"]
    cli.run("eval", [str(a_run), *quick, *own, "--csv", "own.csv"])
    out = capsys.readouterr().out
    after = results(a_run)
    expected = load_dataset(load_config(a_run)[0].dataset).test.pixels.double().mean().item() / 255
    assert after["test/brightness"] == pytest.approx(expected)
    assert f"{expected:.4f}" in out and out.count("brightness") == 1
    assert "run: no darkness: it is day" in out
    assert declared([after]) == [Metric("test/brightness", "brightness", digits=4)]
    assert "test/brightness" in Path("own.csv").read_text()

    for name, message in (
        ("REFUSED", "run: these images are too dark"),
        ("TAKEN", "declares test/mse"),
        ("TWICE", "test/elbo: two measurements return it"),
        ("TENSOR", "test/x: is a Tensor"),
        ("TEXT", "test/brightest is 'the first'; a measurement returns it under another key, such as text/NAME"),
        ("brightness", "must be a vaex.evaluation.measure.Measurement, and is a function"),
        ("MISSING", "has no MISSING"),
    ):
        assert message in failed(capsys, a_run, *quick, f"--metric=brightness_of_images.{name}")
    assert "there is no no_such_package" in failed(capsys, a_run, "--metric=no_such_package.X")
    assert "must be a dotted name" in failed(capsys, a_run, "--metric=sharp")


def test_a_declaration_survives_results_json() -> None:
    metrics = [Metric("test/a", "a", "nats", 1, "lower", None, stderr_key="test/b"), Metric("test/c", "c")]
    entry = json.loads(json.dumps(declaration(metrics)))
    assert declared([{DECLARATIONS: entry}, {}, {DECLARATIONS: {"test/d": {"from": "elsewhere"}}}]) == metrics
    assert metrics[0].stderr({"test/b": 2}) == 2 and metrics[1].stderr({}) is None
    assert metrics[0].text(-1234.56) == "−1,234.6" and metrics[0].plain_text(-1234.56) == "-1234.6"
    assert metrics[0].value({"test/a": math.nan}) is metrics[0].value({"test/a": True}) is None
    assert isinstance(MEASUREMENTS[0], Measurement) and metrics[1].plain_text(None) == "–"


def test_help_comes_without_torch() -> None:
    probe = (
        "import sys; sys.argv = ['vaex', 'eval', '--help']\nfrom vaex.cli import main\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code\n"
        "assert not {'torch', 'hydra', 'omegaconf', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "vaex eval" in done.stdout and "--samples" in done.stdout
