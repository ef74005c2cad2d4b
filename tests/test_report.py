"""`vaex report`: numbers against ones worked out by hand, what is compared, and that nothing in a folder breaks it."""

import csv
import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from scipy.stats import t as student_t

from vaex import cli
from vaex.build import load_config, load_dataset, load_model
from vaex.commands.report import main
from vaex.errors import UserError
from vaex.evaluation.comparison import Description
from vaex.evaluation.metric import Metric, declaration
from vaex.figures import plot
from vaex.report import curves, sheets
from vaex.report.axes import Axis, find_axes
from vaex.report.collect import collect
from vaex.report.layout import sheet_rows, views
from vaex.report.sections import build_document, report_metrics
from vaex.report.statistics import Ranking, Study, Summary, gap_text, rankings, student_t_quantile, study, summarize
from vaex.text_table import csv_table

Captured = pytest.CaptureFixture[str]

SCALE = {"_target_": "vaex.likelihoods.scale.Shared", "floor": 1 / 255, "init": 0.3}
FREE = {"bounded_mean": None, "discretize": False}
LIKELIHOODS: dict[str, dict[str, Any]] = {
    "gaussian": {"scale": SCALE, "_target_": "vaex.likelihoods.gaussian.Gaussian", **FREE},
    "laplace": {"scale": SCALE, "_target_": "vaex.likelihoods.laplace.Laplace", **FREE},
    "discretized": {"scale": SCALE, "_target_": "vaex.likelihoods.gaussian.Gaussian", **FREE, "discretize": True},
    "cross_entropy": {"_target_": "vaex.likelihoods.bernoulli.CrossEntropy"},
    "bernoulli": {"_target_": "vaex.likelihoods.bernoulli.Bernoulli"},
}
KINDS = {"gaussian": ("density", "real"), "laplace": ("density", "real"), "discretized": ("mass", "uint8")}
KINDS |= {"cross_entropy": ("pseudo", "unit_interval"), "bernoulli": ("mass", "binary")}
BITS = {"scored_pixels": "(k+u)/256", "bits_per_dim_from": "importance", "nll_samples": 100, "psnr": 17.0}


def write(
    path: Path,
    likelihood: str = "gaussian",
    *,
    beta: float = 1.0,
    seed: int = 1,
    status: dict[str, Any] | None = None,
    elbo: float | None = 500.0,
    config: dict[str, Any] | None = None,
    described: bool = True,
    **numbers: Any,
) -> Path:
    """A run folder as `vaex train` leaves it, without weights; `numbers` are results named test/…"""
    has_scale = "scale" in LIKELIHOODS[likelihood]
    content: dict[str, Any] = {
        "dataset": {"source": {"_target_": "vaex.data.mnist.mnist"}, "binarize": "none", "dequantize": "none"},
        "likelihood": json.loads(json.dumps(LIKELIHOODS[likelihood])),
        "objective": {"_target_": "vaex.objectives.VAE", "beta": beta},
        "optimizer": {"lr": 0.002},
        "beta": beta,
        "latent_dim": 20,
        "seed": seed,
        "trainer": {"threads": 1},
        "recorded": {
            "image_shape": [1, 28, 28],
            "classes": 10,
            "choices": {"likelihood": likelihood, "dataset": "mnist"}
            | ({"likelihood/scale": "shared"} if has_scale else {}),
        },
    }
    for key, value in (config or {}).items():
        *groups, name = key.split(".")
        inner = content
        for group in groups:
            inner = inner[group]
        inner[name] = value
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    (path / "status.json").write_text(json.dumps(status or {"status": "completed"}))
    if status is None:
        results = {"test/mse": 0.02, "train/seconds": 3.0, "test/rate_per_latent": [1.0]}
        if elbo is not None:
            results |= {"test/elbo": elbo, "test/rate": 20.0, "test/active_units": 7}
            results |= {"test/image_elbo": elbo, "test/image_rate": 20.0, "test/image_distortion": -elbo - 20}
        results |= describe(content, likelihood, elbo is not None) if described else {}
        (path / "results.json").write_text(json.dumps(results | {f"test/{k}": v for k, v in numbers.items()}))
    return path


def describe(config: dict[str, Any], likelihood: str, stochastic: bool) -> dict[str, Any]:
    """The description that `vaex train` and `vaex eval` write to results.json."""
    kind, support = KINDS[likelihood]
    scale = config["likelihood"].get("scale")
    description = Description(
        dataset="mnist",
        image_shape=(1, 28, 28),
        test_images=10_000,
        test_sha256=config["dataset"]["binarize"],
        binarize=config["dataset"]["binarize"],
        dequantize=config["dataset"]["dequantize"],
        conditional=False,
        stochastic=stochastic,
        likelihood=likelihood,
        scale="shared" if scale else None,
        likelihood_settings=json.dumps(config["likelihood"]),
        kind=kind,  # type: ignore[arg-type]
        support=support,
        beta=config["beta"],
    )
    return description.to_results()


def read(*folders: Path) -> Study:
    runs = collect(folders)
    return study(runs, report_metrics(runs))


def ranking(ranked: list[Ranking], name: str) -> Ranking:
    (only,) = [ranking for ranking in ranked if ranking.metric.name == name]
    return only


def names(ranking: Ranking) -> list[str]:
    return [run.name for configuration, _ in ranking.entries for run in configuration.runs]


def no_model(run: Path) -> Any:
    raise UserError("no model")


NO_MODELS = sheets.Loaders(no_model, no_model)
LOADERS = sheets.Loaders(load_model, lambda run: load_dataset(load_config(run)[0].dataset))


@pytest.fixture
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if matplotlib were not installed: for tests of texts and tables."""
    monkeypatch.setattr(plot, "find_spec", lambda name: None)


@pytest.fixture(scope="module")
def trained(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained sweep of runs named by likelihood, beta and seed; tests that change it work on a copy."""
    sweep = tmp_path_factory.mktemp("trained") / "sweep"
    for run in ("gaussian-0.5-2", "gaussian-4-1", "gaussian-4-2", "cross_entropy-4-1"):
        likelihood, beta, seed = run.split("-")
        options = [f"likelihood={likelihood}", f"beta={beta}", f"seed={seed}", "steps=2", "device=cpu"]
        cli.run("train", [*tiny, *options, f"hydra.run.dir={sweep / run}"])
    return sweep


def report(*arguments: object) -> tuple[str, str]:
    """The page, and the same as text without its tags."""
    main(list(map(str, arguments)))
    out = next((Path(str(a)[6:]) for a in arguments if str(a).startswith("--out=")), Path(str(arguments[0])) / "report")
    page = (out / "report.html").read_text()
    return page, " ".join(unescape(re.sub(r"<(style|script).*?</\1>|<[^>]*>", " ", page, flags=re.DOTALL)).split())


def test_axes_are_what_differs_in_the_configs_and_not_in_the_names(tmp_path: Path) -> None:
    n = 0
    for likelihood in ("laplace", "cross_entropy"):
        for beta in (4.0, 0.5, 1.0):
            for seed in (3, 7):
                n += 1
                write(tmp_path / f"beta=9,run={n}", likelihood, beta=beta, seed=seed, config={"trainer.threads": n})
    design = find_axes(collect([tmp_path]))
    assert [(axis.key, axis.values) for axis in design.axes] == [
        ("likelihood", ("laplace", "cross_entropy")),
        ("beta", (0.5, 1.0, 4.0)),
    ]
    assert design.seeds == (3, 7) and design.execution == ("trainer.threads",)
    assert {"objective.beta", "likelihood._target_", "likelihood.scale.floor"} <= set(design.followers)


def had_images(run: Path, train: str, test: str, root: str) -> None:
    """Have the run record these hashes and this path of its images."""
    path = run / "results.json"
    path.write_text(
        json.dumps(
            json.loads(path.read_text()) | {f"about/{k}_sha256": v for k, v in [("train", train), ("test", test)]}
        )
    )
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["dataset"]["source"]["root"] = root
    (run / "config.yaml").write_text(yaml.safe_dump(config))


def test_a_path_is_an_axis_only_if_it_leads_to_other_images(tmp_path: Path) -> None:
    for name, images in (("same", "1"), ("other", "2")):
        had_images(write(tmp_path / name / "a", beta=1.0), "1", "1", "/a")
        had_images(write(tmp_path / name / "b", beta=2.0), images, images, "/b")
    same, other = (find_axes(collect([tmp_path / name])) for name in ("same", "other"))
    assert [axis.key for axis in same.axes] == ["beta"] and same.execution == ("dataset.source.root",)
    assert [axis.key for axis in other.axes] == ["beta", "dataset.source.root"]


def test_images_that_changed_between_runs_are_a_warning(tmp_path: Path, no_plots: None) -> None:
    for name, train, test in (("a", "1", "1"), ("b", "2", "1"), ("c", "1", "1"), ("d", "1", "2")):
        had_images(write(tmp_path / name, beta=float(ord(name))), train, test, "/images")
    _, text = report(tmp_path)
    assert (
        "images of a dataset changed between runs: b and a : other pixels in the training images; d and a : other "
        "pixels in the test images. Numbers of different test images are not compared"
    ) in text
    (tmp_path / "b" / "results.json").write_text((tmp_path / "a" / "results.json").read_text())
    (tmp_path / "d" / "results.json").write_text((tmp_path / "a" / "results.json").read_text())
    assert "changed between runs" not in report(tmp_path)[1]


def test_a_value_that_does_not_follow_from_an_option_is_an_axis(tmp_path: Path) -> None:
    write(tmp_path / "a", "gaussian", config={"likelihood.scale.floor": 0.01})
    write(tmp_path / "b", "gaussian", config={"likelihood.scale.floor": 0.001})
    write(tmp_path / "c", "laplace", config={"optimizer.lr": 0.1})
    design = find_axes(collect([tmp_path]))
    assert [axis.key for axis in design.axes] == ["likelihood", "likelihood.scale.floor", "optimizer.lr"]
    one = find_axes(collect([tmp_path / "a"]))
    assert one.axes == () and one.seeds == (1,)


def test_options_of_a_scale_are_an_axis_only_where_there_are_two(tmp_path: Path) -> None:
    write(tmp_path / "a", "gaussian")
    write(tmp_path / "b", "cross_entropy")
    assert [axis.key for axis in find_axes(collect([tmp_path])).axes] == ["likelihood"]
    path = write(tmp_path / "c", "gaussian") / "config.yaml"
    path.write_text(path.read_text().replace("likelihood/scale: shared", "likelihood/scale: per_pixel"))
    assert [axis.key for axis in find_axes(collect([tmp_path])).axes] == ["likelihood", "likelihood/scale"]


@pytest.mark.parametrize(
    "values, geometric",
    [((0.5, 1, 2, 4), True), ((1, 2, 3, 4), False), ((0.0, 1, 10, 100), True), ((1, 100), False), ((-1, 1, 2), False)],
)
def test_a_logarithmic_axis_is_for_values_that_are_geometric(values: tuple[float, ...], geometric: bool) -> None:
    assert Axis("beta", values, is_group=False).geometric == geometric


def test_the_spread_is_the_samples() -> None:
    summary = summarize([1.0, 2.0, 4.0])
    assert summary is not None and (summary.n, summary.mean) == (3, pytest.approx(7 / 3))
    assert summary.std == pytest.approx(math.sqrt(((4 / 3) ** 2 + (1 / 3) ** 2 + (5 / 3) ** 2) / 2))
    one = summarize([5.0])
    assert one is not None and one.std is None and summarize([]) is None


def test_quantiles_of_student_t_are_those_of_scipy() -> None:
    for freedom in (1, 2, 3, 4, 5, 8, 17, 100):
        for probability in (0.5, 0.95, 0.999):
            expected = student_t.ppf(0.5 + probability / 2, freedom)
            assert student_t_quantile(freedom, probability) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("seeds", "others"), [(2, 2), (3, 3), (5, 5), (2, 5)])
def test_two_equal_configurations_are_told_apart_in_five_percent_of_cases(seeds: int, others: int) -> None:
    generator, cases = np.random.default_rng(0), 6000
    numbers = generator.normal(100, 3, (cases, seeds + others)).tolist()
    metric = Metric("test/elbo", "ELBO")
    verdicts = [gap_text(metric, *map(summarize, (row[:seeds], row[seeds:]))) for row in numbers]
    alarms = sum(not verdict.startswith("not distinguishable") for verdict in verdicts) / cases
    assert alarms == pytest.approx(0.05, abs=0.01)  # 3.5 standard errors


def test_means_over_seeds_and_the_best_are_those_worked_out_by_hand(tmp_path: Path, no_plots: None) -> None:
    """Gaussian: 3.0 and 3.2, mean 3.1, std 0.1414; Laplace has the best single run, 2.9, and the worse mean, 3.15."""
    for likelihood, seed, bits in (
        ("gaussian", 1, 3.0),
        ("gaussian", 2, 3.2),
        ("laplace", 1, 2.9),
        ("laplace", 2, 3.4),
    ):
        errors = {"bits_per_dim_stderr": 0.0123}
        write(tmp_path / f"{likelihood}{seed}", likelihood, seed=seed, bits_per_dim=bits, **BITS, **errors)
    best = ranking(rankings(read(tmp_path)), "bits_per_dim")
    assert [configuration.label for configuration, _ in best.entries] == ["gaussian", "laplace"]
    (_, first), (_, second) = best.entries
    assert first.mean == pytest.approx(3.1) and first.std == pytest.approx(0.2 / math.sqrt(2))
    assert second.mean == pytest.approx(3.15) and second.std == pytest.approx(0.5 / math.sqrt(2))
    # The pooled variance is (0.02 + 0.125) / 2, and the difference of two means of two has this variance.
    half_width = 4.302653 * math.sqrt(0.0725)
    assert gap_text(best.metric, first, second) == (
        f"not distinguishable: ahead by 0.0500 ± {half_width:.4f} (95 % interval over seeds)"
    )
    ahead = Summary(3.15 - 1.01 * half_width, first.std, 2)
    assert gap_text(best.metric, ahead, second).startswith("ahead by 1.1701 ± 1.1585")
    for one in (Summary(3.1, None, 1), second):
        assert "the spread is unknown with one seed" in gap_text(best.metric, Summary(2.0, None, 1), one)
    _, text = report(tmp_path)
    assert "3.1000 ± 0.1414 gaussian 2 seeds; best run gaussian1 , 3.0000" in text
    assert "3.1500 ± 0.3536" in text
    markdown = (tmp_path / "report" / "report.md").read_text()
    assert "| 1 | gaussian | 3.1000 ± 0.1414 |" in markdown and "| 2 | laplace | 3.1500 ± 0.3536 |" in markdown
    assert "3.4000 ± 0.0123" in markdown and "Here ± is the standard error over test images." in markdown


def test_a_repeated_seed_counts_once_and_one_seed_has_no_spread(tmp_path: Path, no_plots: None) -> None:
    for name, elbo in (("1", 100.0), ("2", 300.0)):
        write(tmp_path / name, elbo=elbo)
    (only,) = read(tmp_path).configurations
    assert only.seeds == 1 and [run.name for run in only.runs] == ["2"]
    _, text = report(tmp_path)
    assert "a later one, which is used instead: 1." in text and "300.0 ± " not in text


def test_numbers_of_different_things_share_no_column(tmp_path: Path, no_plots: None) -> None:
    """The pseudo-likelihood and the binary images have by far the best figures, and win nothing from the densities."""
    binary = {"dataset.binarize": "static"}
    for beta in (1.0, 2.0):
        bits = 3.0 + beta
        write(tmp_path / f"density{beta}", "gaussian", beta=beta, bits_per_dim=bits, **BITS)
        write(tmp_path / f"few{beta}", "laplace", beta=beta, bits_per_dim=bits, **BITS | {"nll_samples": 5})
        write(
            tmp_path / f"mass{beta}", "discretized", beta=beta, bits_per_dim=bits, **BITS | {"scored_pixels": "k/255"}
        )
        write(tmp_path / f"pseudo{beta}", "cross_entropy", beta=beta, elbo=1e6)
        coin = BITS | {"scored_pixels": "binary", "nll_bound": 90.0 + beta, "bits_per_dim": 0.2}
        write(tmp_path / f"coin{beta}", "bernoulli", beta=beta, elbo=-90.0, config=binary, **coin)
        write(tmp_path / f"grown{beta}", "laplace", beta=beta, elbo=1e5 + beta, config=binary)
    together = [
        (made.metric.name, {name.rstrip("0123456789.") for name in names(made)}) for made in rankings(read(tmp_path))
    ]
    probabilities = [(name, runs) for name, runs in together if name not in ("mse", "psnr")]
    expected = [("bits_per_dim", {"density", "mass"}), ("bits_per_dim", {"few"}), ("nll_bound", {"coin"})]
    expected += [("image_elbo", {"pseudo"}), ("image_elbo", {"grown"})]
    assert sorted(probabilities, key=str) == sorted(expected, key=str)
    errors = [runs for name, runs in together if name == "mse"]
    assert {"density", "few", "mass", "pseudo"} in errors and {"coin", "grown"} in errors
    _, text = report(tmp_path)
    assert "a pseudo-likelihood is the probability of no image" in text
    assert "the density of values that are only 0 or 1 grows without bound" in text


def test_elbos_of_undequantised_densities_are_compared_within_one_likelihood_only(
    tmp_path: Path, no_plots: None
) -> None:
    for likelihood, elbo in (("gaussian", 500.0), ("laplace", 900.0)):
        for beta in (1.0, 4.0):
            write(tmp_path / f"{likelihood}{beta}", likelihood, beta=beta, elbo=elbo - beta)
    floor = {"likelihood.scale.floor": 1e-6}
    write(tmp_path / "lower floor", "laplace", elbo=5000.0, config=floor)
    columns = [ranking for ranking in rankings(read(tmp_path)) if ranking.metric.name != "mse"]
    assert [names(ranking) for ranking in columns] == [["gaussian1.0", "gaussian4.0"], ["laplace1.0", "laplace4.0"]]
    assert not any(ranking.group.across_likelihoods for ranking in columns)
    _, text = report(tmp_path)
    assert f"vaex eval {tmp_path}" in text and "bound nothing" in text and "bits/dim, lowest" not in text


def test_bits_per_dim_from_the_elbo_and_importance_weighted_ones_share_no_ranking(tmp_path: Path) -> None:
    for beta in (1.0, 2.0):
        write(tmp_path / f"elbo{beta}", beta=beta, bits_per_dim=3 + beta, **BITS | {"bits_per_dim_from": "elbo"})
        write(tmp_path / f"importance{beta}", beta=beta, bits_per_dim=2 + beta, seed=2, **BITS)
    columns = [ranking for ranking in rankings(read(tmp_path)) if ranking.metric.name == "bits_per_dim"]
    assert {tuple(names(ranking)[:1]) for ranking in columns} == {("elbo1.0",), ("importance1.0",)} or len(columns) == 2
    assert ["from the ELBO" in ranking.group.title for ranking in columns].count(True) == 1


def test_a_metric_from_outside_has_a_column_a_card_and_a_plot(tmp_path: Path) -> None:
    metric = Metric("test/sharpness", "sharpness", "1/px", 2, "higher")
    for beta, value in ((1.0, 0.25), (2.0, 0.75)):
        run = write(tmp_path / f"{beta}", beta=beta, sharpness=value)
        content = json.loads((run / "results.json").read_text()) | {"metrics": declaration([metric])}
        (run / "results.json").write_text(json.dumps(content))
    page, text = report(tmp_path)
    assert "sharpness, highest" in text and "best run 2.0 , 0.75" in text and 'aria-label="sharpness"' in page
    assert (tmp_path / "report" / "files" / "sharpness_beta.svg").is_file()
    assert text.count("sharpness") >= 4  # the card, the plot, and the columns of both tables


def test_runs_without_a_description_are_listed_and_not_compared(tmp_path: Path, no_plots: None) -> None:
    for beta in (1.0, 2.0):
        write(tmp_path / f"old{beta}", beta=beta, bits_per_dim=3.0, described=False, **BITS)
        write(tmp_path / f"new{beta}", "laplace", beta=beta, bits_per_dim=4.0, **BITS)
    assert all("old" not in name for made in rankings(read(tmp_path)) for name in names(made))
    _, text = report(tmp_path)
    assert "2 of 4 completed runs do not say what their numbers describe" in text
    assert f"vaex eval {tmp_path} adds the description" in text and "old1.0" in text


def test_numbers_that_are_not_finite_win_nothing(tmp_path: Path) -> None:
    for seed, (beta, bits) in enumerate([(1.0, None), (2.0, 4.0), (4.0, 5.0)]):
        write(tmp_path / str(seed), beta=beta, bits_per_dim=bits, **BITS)
    best = ranking(rankings(read(tmp_path)), "bits_per_dim")
    assert [configuration.label for configuration, _ in best.entries] == ["beta=2", "beta=4"]
    assert "nan" not in report(tmp_path)[1]


def test_whatever_became_of_a_run_it_is_listed(tmp_path: Path, no_plots: None) -> None:
    for beta in (1.0, 2.0):
        write(tmp_path / f"good{beta}", beta=beta)
    error = "Traceback <b>\ntraining diverged at step 2: lower optimizer.lr"
    write(tmp_path / "nan", beta=4.0, status={"status": "failed", "error": error})
    write(tmp_path / "stopped", beta=4.0, seed=2, status={"status": "interrupted", "reason": "SIGTERM at step 30"})
    write(tmp_path / "going", beta=4.0, seed=3, status={"status": "running"})
    early = tmp_path / "early"
    (early / ".hydra").mkdir(parents=True)
    (early / "status.json").write_text('{"status": "failed", "error": "no such dataset"}')
    (early / ".hydra" / "config.yaml").write_text("beta: 77")
    (early / ".hydra" / "overrides.yaml").write_text("- beta=16\n- seed=5\n")
    damaged = write(tmp_path / "damaged", beta=2.0, seed=9)
    (damaged / "results.json").write_text('{"test/elbo": ')
    (damaged / "config.yaml").write_text("a: [")
    write(tmp_path / "cut", beta=2.0, seed=8).joinpath("status.json").write_text("")
    (tmp_path / "sweep.json").write_text("{}")

    page, text = report(tmp_path)
    assert "No completed run, so no row: gaussian, beta=4." in text
    assert "8 runs: 3 completed, 2 failed, 1 interrupted, 1 running, 1 unknown" in text
    assert "training diverged at step 2: lower optimizer.lr" in text and "SIGTERM at step 30" in text
    assert "no such dataset" in text and "results.json: damaged" in text and "status.json: damaged" in text
    assert "Traceback" not in text and "77" not in re.findall(r"<td[^>]*>([^<]*)", page)
    with (tmp_path / "report" / "runs.csv").open() as file:
        lines = {line["run"]: line for line in csv.DictReader(file)}
    assert len(lines) == 8 and lines["early"]["beta"] == "16" and lines["early"]["seed"] == "5"
    assert lines["good2.0"]["test/elbo"] == "500.0" and "test/rate_per_latent" not in lines["good2.0"]
    assert lines["nan"]["status"] == "failed" and lines["nan"]["reason"].startswith("training diverged")


def test_a_folder_of_failed_runs_alone_has_a_report(tmp_path: Path) -> None:
    write(tmp_path / "a", status={"status": "failed", "error": "out of memory"})
    _, text = report(tmp_path)
    assert "No run has completed" in text and "out of memory" in text


def test_nothing_of_a_folder_is_markup_in_the_page(tmp_path: Path, no_plots: None) -> None:
    bad = "<script>alert(1)</script>"
    write(tmp_path / "a<u>", status={"status": "failed", "error": bad})
    write(tmp_path / "b&<i>", config={"optimizer.lr": "<img src=x>"})
    page, text = report(tmp_path)
    assert not [markup for markup in (bad, "<img src=x>", "<i>", "<u>") if markup in page]
    assert bad in text and "b&<i>" in text
    assert not re.search("<[a-z]", (tmp_path / "report" / "report.md").read_text())


HOSTILE = "<script>x</script>\n\n<img src=x onerror=y>`<b>`|\x1b[2J\u202e[a](javascript:x)*_$\\frac{$=1+1"


def test_nothing_of_a_folder_is_markup_in_markdown_or_a_formula_in_the_table(tmp_path: Path) -> None:
    """Names, options, classes, metrics and errors, wherever they are shown."""
    name = HOSTILE.replace("/", "")
    metric = {"key": f"own/{HOSTILE}", "title": HOSTILE, "unit": HOSTILE, "comparable": "images", "better": "lower"}
    for beta in (1.0, 2.0):
        run = write(
            tmp_path / name / f"={name}{beta}", beta=beta, config={f"dataset.k{HOSTILE}".replace(".", ""): beta}
        )
        content = yaml.safe_load((run / "config.yaml").read_text())
        content["dataset"] |= {"x": f"={HOSTILE}{beta}", "class_names": [f"{HOSTILE}{beta}"]}
        content["recorded"]["choices"] |= {"dataset": HOSTILE, "likelihood": f"{HOSTILE}{beta}"}
        (run / "config.yaml").write_text(yaml.safe_dump(content))
        measured = json.loads((run / "results.json").read_text())
        measured |= {metric["key"]: beta, "metrics": {metric["key"]: metric}}
        measured |= {"about/dataset": HOSTILE, "about/likelihood": HOSTILE, "about/binarize": HOSTILE}
        (run / "results.json").write_text(json.dumps(measured))
    write(tmp_path / name / f"+{name}", status={"status": "failed", "error": f"@{HOSTILE.splitlines()[-1]}"})
    cli.run("report", [str(tmp_path / name), f"--out={tmp_path / 'out'}"])

    text = (tmp_path / "out" / "report.md").read_text()
    assert not re.search("<[a-z/!]|[^\\\\]\\[a[^\\\\]|\x1b|\u202e", text)
    assert all(line.count("|") - line.count("\\|") in (0, header) for line, header in table_lines(text))
    rows = list(csv.reader((tmp_path / "out" / "runs.csv").read_text().splitlines()))
    assert len(rows) == 4 and any(cell.startswith("'=<script>") for row in rows for cell in row)
    assert not [cell for row in rows for cell in row if cell[:1] in "=+@\t\r" and cell]
    assert not [cell for row in rows for cell in row if not cell.isprintable()]
    page = (tmp_path / "out" / "report.html").read_text()
    body = re.sub(r"<(style|script)>.*?</\1>", "", page, flags=re.DOTALL)
    assert not re.search("<script|<img src=x|<b>|<i>", body)


def table_lines(text: str) -> Iterator[tuple[str, int]]:
    """Each line of a Markdown table, with the number of bars in its header."""
    header = 0
    for line in text.splitlines():
        header = (header or line.count("|") - line.count("\\|")) if line.startswith("| ") else 0
        if header:
            yield line, header


def test_numbers_in_the_table_stay_numbers(tmp_path: Path) -> None:
    lines = csv_table(
        [{"run": "-a", "x": -1.5, "y": "+1", "z": [1], "reason": "no"}, {"run": "b", "w": "−2"}], "reason"
    )
    assert lines == "run,x,y,w,reason\n'-a,-1.5,'+1,,no\nb,,,−2,\n"


def test_the_page_needs_nothing_but_itself(trained: Path, tmp_path: Path) -> None:
    page, _ = report(trained, f"--out={tmp_path}")
    assert page.count("<svg") > 3 and page.count("data:image/png") == (3 + 2) + (2 + 1)
    assert "http:" not in page and "https:" not in page
    assert "//" not in re.sub(r"data:[^\"]*|^// .*$", "", page, flags=re.MULTILINE)
    for address in re.findall(r"(?:src|href|action)=\"([^\"]*)\"", page) + re.findall(r"url\(([^)]*)\)", page):
        assert address.startswith(("data:", "#")), address
    assert not re.search(r"@import|<script [^>]*src|<iframe|<object", page)
    assert 'name="viewport"' in page and "prefers-color-scheme: dark" in page

    files = re.findall(r"!\[[^\]]*\]\(([^)]*)\)", (tmp_path / "report.md").read_text())
    assert len(files) > 5 and all((tmp_path / file).is_file() for file in files)


def test_a_report_inside_the_sweep_is_no_run_of_it(tmp_path: Path, no_plots: None) -> None:
    write(tmp_path / "run")
    assert report(tmp_path) == report(tmp_path)


def test_the_same_images_and_the_same_z_run_down_the_columns(trained: Path) -> None:
    rows = sheet_rows(read(trained))
    pages = sheets.draw(rows, LOADERS)
    assert not pages.remarks and {title for title, _ in rows} == {"gaussian", "cross_entropy"}
    x = load_dataset(load_config(trained / "gaussian-4-1")[0].dataset).test.pixels[: sheets.COLUMNS] / 255
    z = sheets.prior_samples(20)
    assert torch.equal(z, sheets.prior_samples(20)) and len(z.unique()) == z.numel()
    for (title, _), reconstructions, samples in zip(rows, pages.reconstructions, pages.samples, strict=True):
        assert reconstructions.title == samples.title == title
        labels = ("beta=0.5", "beta=4") if title == "gaussian" else ("beta=4",)
        assert samples.labels == labels and reconstructions.labels == ("test images", *labels)
        assert torch.equal(reconstructions.images[0], x)
        runs = ("gaussian-0.5-2", "gaussian-4-1") if title == "gaussian" else ("cross_entropy-4-1",)
        for row, run in enumerate(runs):  # the first seed of each configuration
            model = load_model(trained / run)
            torch.testing.assert_close(reconstructions.images[row + 1], model.reconstruct(x))
            with torch.no_grad():
                torch.testing.assert_close(samples.images[row], model.decode(z).mean)


def test_a_sheet_has_room_for_so_many_and_says_what_is_left_out(tmp_path: Path) -> None:
    for n in range(30):
        write(tmp_path / str(n), beta=float(n + 1))
    ((_, cells),), left_out = sheets.choose(sheet_rows(read(tmp_path)))
    assert len(cells) == sheets.MOST_ROWS and cells[0][0] == "beta=1" and cells[-1][0] == "beta=30"
    assert sum(line.count("beta=") for line in left_out) == 30 - sheets.MOST_ROWS


def test_other_numeric_axes_are_held_and_the_reader_told(tmp_path: Path) -> None:
    n = 0
    for beta in (0.5, 1.0, 2.0):
        for size in (5, 10, 20):
            n += 1
            write(tmp_path / str(n), beta=beta, config={"latent_dim": size}, elbo=beta * size)
    first, second = views(read(tmp_path))
    assert not first.gaps
    assert first.axis.key == "beta" and first.caption == "At latent_dim=10."
    assert second.axis.key == "latent_dim" and second.caption == "At beta=1."
    (line,) = second.lines
    assert [(x, c.runs[0].results["test/elbo"]) for x, c in line.members] == [(5, 5.0), (10, 10.0), (20, 20.0)]


def test_a_collapsed_posterior_is_told(tmp_path: Path, no_plots: None) -> None:
    write(tmp_path / "a", beta=1.0)
    write(tmp_path / "b", beta=64.0, active_units=0)
    assert "z is not used: beta=64 (1 run)." in report(tmp_path)[1]


def test_every_plot_has_a_file_of_its_own(tmp_path: Path) -> None:
    """A likelihood with another option has a comparison group of its own, with the same name."""
    for bounded in (True, False):
        for beta in (1.0, 2.0):
            write(tmp_path / f"{bounded},{beta}", beta=beta, config={"likelihood.bounded_mean": bounded}, elbo=beta)
    pictures = build_document(collect([tmp_path]), [tmp_path], NO_MODELS).pictures
    files = [picture.file for picture in pictures]
    assert len(files) == len(set(files)) and sum("elbo" in name for name in files) == 2


def test_file_names_of_pictures_are_cut_and_stay_unique(tmp_path: Path) -> None:
    """The titles of the training curves of unlike runs list everything that differs, far beyond 255 bytes."""
    for n in range(3):
        settings = {f"optimizer.{'long' * 10}{key}": f"{'value' * 5}{n if key == 9 else n % 2}" for key in range(10)}
        run = write(tmp_path / str(n), config=settings)
        (run / "metrics.jsonl").write_text("".join(f'{{"step": {s}, "validation/elbo": -{s}}}\n' for s in (1, 2, 3)))
    page, _ = report(tmp_path)
    files = [file.name for file in (tmp_path / "report" / "files").glob("training*.svg")]
    assert len(files) == 3 and max(map(len, files)) < 100 and page.count("<svg") == 3


def test_a_model_that_can_not_be_loaded_costs_its_row_and_no_more(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "sweep")
    (tmp_path / "sweep" / "gaussian-0.5-2" / "model.safetensors").write_bytes(b"damaged")
    (tmp_path / "sweep" / "cross_entropy-4-1" / "model.safetensors").unlink()
    pages = sheets.draw(sheet_rows(read(tmp_path / "sweep")), LOADERS)
    assert [len(sheet.images) for sheet in pages.reconstructions] == [2]
    remarks = " ".join(pages.remarks)
    assert "gaussian, beta=0.5: left out; " in remarks and "cross_entropy, beta=4: left out; " in remarks


def test_a_training_curve_is_thinned_and_what_was_replaced_is_left_out(tmp_path: Path) -> None:
    steps = [*range(0, 500), *range(400, 1000)]
    lines = [json.dumps({"step": step, "validation/elbo": float(n)}) for n, step in enumerate(steps)]
    (tmp_path / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 1000, "validation/elbo"']))
    curve = curves.read_curve(tmp_path / "metrics.jsonl", 2.0)
    assert curve is not None and curve.steps[-1] == 999 and curve.values[-1] == len(steps) - 1
    assert len(curve.steps) <= curves.MOST_POINTS and list(curve.steps) == sorted(set(curve.steps))
    assert curves.read_curve(tmp_path / "missing.jsonl", None) is None


def test_without_matplotlib_there_are_tables_and_sheets_and_one_line_about_plots(
    trained: Path, tmp_path: Path, no_plots: None, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # importing it fails
    capsys.readouterr()
    page, text = report(trained, f"--out={tmp_path}")
    output = capsys.readouterr().out
    assert output.count("pip install 'vaex-autoencoders[plots]'") == 1 and "vaex-autoencoders[plots]" in text
    assert "<svg" not in page and page.count("data:image/png") == 8 and "All runs" in text


def test_errors_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: Callable[..., str]) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "run")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    for arguments, message in (
        (["nowhere"], "nowhere: no such folder"),
        (["empty"], "empty: contains no run, with config.yaml or status.json"),
        (["run", "run"], "--out=FOLDER: is required if several folders are given"),
        (["run", "--out=file"], "file: can't be written (File exists)"),
        (["run", "--out=file/report"], "file/report: can't be written (Not a directory)"),
        (["run", "--what"], "--what"),
        ([], "vaex report --help"),
    ):
        assert message in said(cli.run, "report", arguments)


def test_help_comes_without_torch() -> None:
    probe = (
        "import sys; sys.argv = ['vaex', 'report', '--help']\nfrom vaex.cli import main\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code\n"
        "assert not {'torch', 'hydra', 'omegaconf', 'numpy', 'matplotlib', 'yaml'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "vaex report" in done.stdout and "--out" in done.stdout
