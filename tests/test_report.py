"""`vaex report`: its numbers against ones worked out by hand, what it ranks, and that nothing in a folder breaks it."""

import csv
import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import Ran

from vaex import cli
from vaex.build import load_config, load_dataset, load_model
from vaex.commands.report import main
from vaex.report import sheets, svg, training
from vaex.report.assemble import assemble
from vaex.report.axes import Axis, find_axes
from vaex.report.collect import Run, collect
from vaex.report.layout import rows, views
from vaex.report.scores import scored
from vaex.report.statistics import Column, Configuration, columns, configurations, summary, told_apart

Here = Callable[..., Path]
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
    **numbers: Any,
) -> Path:
    """A run's folder as `vaex train` leaves it, without weights; `numbers` are results named test/…"""
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
        results |= {} if elbo is None else {"test/elbo": elbo, "test/rate": 20.0, "test/active_units": 7}
        (path / "results.json").write_text(json.dumps(results | {f"test/{k}": v for k, v in numbers.items()}))
    return path


def read(*folders: Path) -> tuple[list[Run], list[Configuration]]:
    runs = collect(folders)
    return runs, configurations(runs, scored(runs), find_axes(runs))


def column(found: list[Column], name: str) -> Column:
    (only,) = [column for column in found if column.metric.name == name]
    return only


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
    assert Axis("beta", values, choice=False).geometric == geometric


def test_the_spread_is_the_samples() -> None:
    found = summary([1.0, 2.0, 4.0])
    assert found is not None and (found.n, found.mean) == (3, pytest.approx(7 / 3))
    assert found.std == pytest.approx(math.sqrt(((4 / 3) ** 2 + (1 / 3) ** 2 + (5 / 3) ** 2) / 2))
    one = summary([5.0])
    assert one is not None and one.std is None and summary([]) is None


def test_means_over_seeds_and_the_best_are_those_worked_out_by_hand(tmp_path: Path) -> None:
    """Gaussian: 3.0 and 3.2, mean 3.1, std 0.1414; Laplace has the best single run, 2.9, and the worse mean, 3.15."""
    for likelihood, seed, bits in (
        ("gaussian", 1, 3.0),
        ("gaussian", 2, 3.2),
        ("laplace", 1, 2.9),
        ("laplace", 2, 3.4),
    ):
        write(tmp_path / f"{likelihood}{seed}", likelihood, seed=seed, bits_per_dim=bits, **BITS)
    _, found = read(tmp_path)
    best = column(columns(found), "bits_per_dim")
    assert [configuration.label for configuration, _ in best.entries] == ["gaussian", "laplace"]
    (_, first), (_, second) = best.entries
    assert first.mean == pytest.approx(3.1) and first.std == pytest.approx(0.2 / math.sqrt(2))
    assert second.mean == pytest.approx(3.15) and second.std == pytest.approx(0.5 / math.sqrt(2))
    assert told_apart(best.metric, first, second).startswith("not told apart: ahead by 0.0500")
    _, text = report(tmp_path)
    assert "3.1000 ± 0.1414 gaussian 2 seeds; best run gaussian1 , 3.0000" in text
    assert "3.1500 ± 0.3536" in text
    markdown = (tmp_path / "report" / "report.md").read_text()
    assert "| 1 | gaussian | 3.1000 ± 0.1414 |" in markdown and "| 2 | laplace | 3.1500 ± 0.3536 |" in markdown


def test_a_repeated_seed_counts_once_and_one_seed_has_no_spread(tmp_path: Path) -> None:
    for name, elbo in (("1", 100.0), ("2", 300.0)):
        write(tmp_path / name, elbo=elbo)
    _, (only,) = read(tmp_path)
    assert only.seeds == 1 and [item.run.name for item in only.items] == ["2"]
    _, text = report(tmp_path)
    assert "the configuration and seed of a later one, which counts: 1." in text and "300.0 ± " not in text


def test_numbers_of_different_things_share_no_column(tmp_path: Path) -> None:
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
        coin = BITS | {"scored_pixels": "binary", "nll": 90.0 + beta, "bits_per_dim": 0.2}
        write(tmp_path / f"coin{beta}", "bernoulli", beta=beta, elbo=-90.0, config=binary, **coin)
        write(tmp_path / f"grown{beta}", "laplace", beta=beta, elbo=1e5 + beta, config=binary)
    _, found = read(tmp_path)
    together = [
        (made.metric.name, {item.run.name.rstrip("0123456789.") for c, _ in made.entries for item in c.items})
        for made in columns(found)
    ]
    probabilities = [(name, runs) for name, runs in together if name != "mse"]
    expected = [("bits_per_dim", {"density", "mass"}), ("bits_per_dim", {"few"}), ("nll", {"coin"})]
    expected += [("elbo", {"pseudo"}), ("elbo", {"grown"})]
    assert sorted(probabilities, key=str) == sorted(expected, key=str)
    errors = [runs for name, runs in together if name == "mse"]
    assert {"density", "few", "mass", "pseudo"} in errors and {"coin", "grown"} in errors
    _, text = report(tmp_path)
    assert "a pseudo-likelihood is the probability of no image" in text
    assert "a density of values that are only 0 or 1 grows without bound" in text


def test_elbos_of_undequantised_densities_are_compared_within_one_likelihood_only(tmp_path: Path) -> None:
    for likelihood, elbo in (("gaussian", 500.0), ("laplace", 900.0)):
        for beta in (1.0, 4.0):
            write(tmp_path / f"{likelihood}{beta}", likelihood, beta=beta, elbo=elbo - beta)
    floor = {"likelihood.scale.floor": 1e-6}
    write(tmp_path / "lower floor", "laplace", elbo=5000.0, config=floor)
    _, found = read(tmp_path)
    made = [made for made in columns(found) if made.metric.name != "mse"]
    assert [[item.run.name for c, _ in m.entries for item in c.items] for m in made] == [
        ["gaussian1.0", "gaussian4.0"],
        ["laplace1.0", "laplace4.0"],
    ]
    assert not any(m.scale.likelihoods for m in made)
    _, text = report(tmp_path)
    assert f"vaex eval {tmp_path}" in text and "bound nothing" in text and "bits/dim, lowest" not in text


def test_a_dequantised_density_and_a_mass_have_bits_per_dim_from_training_alone(tmp_path: Path) -> None:
    write(tmp_path / "noisy", "gaussian", elbo=2000.0, config={"dataset.dequantize": "uniform"})
    write(tmp_path / "mass", "discretized", elbo=-2000.0)
    for beta in (1.0, 2.0):  # of images that are binary by themselves, as sprites are
        write(tmp_path / f"coin{beta}", "bernoulli", beta=beta, elbo=-90.0)
    _, found = read(tmp_path)
    assert len(column(columns(found), "nll").entries) == 2
    best = column(columns(found), "bits_per_dim")
    values = {item.run.name: item.row.score for c, _ in best.entries for item in c.items}
    assert values["noisy"] == pytest.approx(8 - 2000 / (784 * math.log(2)))
    assert values["mass"] == pytest.approx(2000 / (784 * math.log(2)))
    assert "from the ELBO" in best.scale.title


def test_numbers_that_are_not_finite_win_nothing(tmp_path: Path) -> None:
    for seed, (beta, bits) in enumerate([(1.0, None), (2.0, 4.0), (4.0, 5.0)]):
        write(tmp_path / str(seed), beta=beta, bits_per_dim=bits, **BITS)
    _, found = read(tmp_path)
    best = column(columns(found), "bits_per_dim")
    assert [configuration.label for configuration, _ in best.entries] == ["beta=2", "beta=4"]
    report(tmp_path)


def test_whatever_became_of_a_run_it_is_listed(tmp_path: Path) -> None:
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


def test_nothing_of_a_folder_is_markup_in_the_page(tmp_path: Path) -> None:
    bad = "<script>alert(1)</script>"
    write(tmp_path / "a<u>", status={"status": "failed", "error": bad})
    write(tmp_path / "b&<i>", config={"optimizer.lr": "<img src=x>"})
    page, text = report(tmp_path)
    assert not [markup for markup in (bad, "<img src=x>", "<i>", "<u>") if markup in page]
    assert bad in text and "b&<i>" in text
    assert "<script>" not in (tmp_path / "report" / "report.md").read_text().replace("\\<", "")


def test_the_page_needs_nothing_but_itself(tmp_path: Path, here: Here, tiny: list[str]) -> None:
    for beta in (1, 2):
        here(*tiny, "steps=4", "device=cpu", f"beta={beta}", folder=f"sweep/{beta}")
    page, _ = report(tmp_path / "sweep")
    assert page.count("<svg") > 3 and page.count("data:image/png") == 5
    assert "http:" not in page and "https:" not in page and "//" not in re.sub(r"data:[^\"]*", "", page)
    for address in re.findall(r"(?:src|href|action)=\"([^\"]*)\"", page) + re.findall(r"url\(([^)]*)\)", page):
        assert address.startswith(("data:", "#")), address
    assert not re.search(r"@import|<script [^>]*src|<iframe|<object", page)
    assert 'name="viewport"' in page and "prefers-color-scheme: dark" in page

    markdown = (tmp_path / "sweep" / "report" / "report.md").read_text()
    files = re.findall(r"!\[[^\]]*\]\(([^)]*)\)", markdown)
    assert len(files) > 5 and all((tmp_path / "sweep" / "report" / file).is_file() for file in files)
    before = page
    assert report(tmp_path / "sweep")[0] == before  # and the report is no run of the sweep


def test_the_same_images_and_the_same_z_run_down_the_columns(tmp_path: Path, here: Here, tiny: list[str]) -> None:
    for likelihood in ("gaussian", "cross_entropy"):
        for beta in (0.5, 4):
            for seed in (1, 2) if beta == 4 else (2,):
                name = f"sweep/{likelihood}{beta}{seed}"
                options = [f"likelihood={likelihood}", f"beta={beta}", f"seed={seed}"]
                here(*tiny, "steps=3", "device=cpu", *options, folder=name)
    runs, found = read(tmp_path / "sweep")
    asked = rows(find_axes(runs), found)
    drawn = sheets.draw(asked)
    assert not drawn.remarks
    assert [sheet.title for sheet in drawn.reconstructions] == ["gaussian", "cross_entropy"] or [
        sheet.title for sheet in drawn.reconstructions
    ] == ["cross_entropy", "gaussian"]
    dataset = load_dataset(load_config(runs[0].path)[0].dataset)
    x = dataset.test.pixels[: sheets.COLUMNS] / 255
    z = sheets.prior_draws(20)
    assert torch.equal(z, sheets.prior_draws(20)) and len(z.unique()) == z.numel()
    for n, (title, _) in enumerate(asked):
        reconstructions, samples = drawn.reconstructions[n], drawn.samples[n]
        assert reconstructions.labels == ("test images", "beta=0.5", "beta=4")
        assert samples.labels == ("beta=0.5", "beta=4")
        assert torch.equal(reconstructions.images[0], x)
        for row, name in enumerate((f"{title}0.52", f"{title}41")):  # the first seed that there is
            model = load_model(tmp_path / "sweep" / name)
            torch.testing.assert_close(reconstructions.images[row + 1], model.reconstruct(x))
            with torch.no_grad():
                torch.testing.assert_close(samples.images[row], model.decode(z).mean)


def test_a_sheet_has_room_for_so_many_and_says_what_is_left_out(tmp_path: Path) -> None:
    for n in range(30):
        write(tmp_path / str(n), beta=float(n + 1))
    runs, found = read(tmp_path)
    ((_, cells),), left_out = sheets._chosen(rows(find_axes(runs), found))
    assert len(cells) == sheets.MOST_ROWS and cells[0][0] == "beta=1" and cells[-1][0] == "beta=30"
    assert sum(line.count("beta=") for line in left_out) == 30 - sheets.MOST_ROWS


def test_other_numeric_axes_are_held_and_the_reader_told(tmp_path: Path) -> None:
    n = 0
    for beta in (0.5, 1.0, 2.0):
        for size in (5, 10, 20):
            n += 1
            write(tmp_path / str(n), beta=beta, config={"latent_dim": size}, elbo=beta * size)
    runs, found = read(tmp_path)
    first, second = views(find_axes(runs), found)
    assert not first.gaps
    assert first.axis.key == "beta" and first.caption == "Throughout latent_dim=10."
    assert second.axis.key == "latent_dim" and second.caption == "Throughout beta=1."
    (line,) = second.lines
    assert [(x, c.items[0].run.results["test/elbo"]) for x, c in line.members] == [(5, 5.0), (10, 10.0), (20, 20.0)]


def test_a_collapsed_posterior_is_told(tmp_path: Path) -> None:
    write(tmp_path / "a", beta=1.0)
    write(tmp_path / "b", beta=64.0, active_units=0)
    assert "z is not used: beta=64 (1)." in report(tmp_path)[1]


def test_every_plot_has_a_file_of_its_own(tmp_path: Path) -> None:
    """A likelihood with another option is another scale, of the same name."""
    for bounded in (True, False):
        for beta in (1.0, 2.0):
            write(tmp_path / f"{bounded},{beta}", beta=beta, config={"likelihood.bounded_mean": bounded}, elbo=beta)
    runs = collect([tmp_path])
    names = [picture.file for picture in assemble(runs, [tmp_path]).pictures]
    assert len(names) == len(set(names)) and sum("elbo" in name for name in names) == 2


def test_a_model_that_can_not_be_loaded_costs_its_row_and_no_more(tmp_path: Path, here: Here, tiny: list[str]) -> None:
    for beta in (1, 2, 4):
        here(*tiny, "steps=2", "device=cpu", f"beta={beta}", folder=f"sweep/{beta}")
    (tmp_path / "sweep" / "2" / "model.safetensors").write_bytes(b"damaged")
    (tmp_path / "sweep" / "4" / "model.safetensors").unlink()
    page, text = report(tmp_path / "sweep")
    assert page.count("data:image/png") == 2 + 1
    assert "beta=2: left out; " in text and "beta=4: left out; " in text


def test_a_training_curve_is_thinned_and_what_was_replaced_is_left_out(tmp_path: Path) -> None:
    steps = [*range(0, 500), *range(400, 1000)]
    lines = [json.dumps({"step": step, "validation/elbo": float(n)}) for n, step in enumerate(steps)]
    (tmp_path / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 1000, "validation/elbo"']))
    curve = training.curve(tmp_path / "metrics.jsonl", 2.0)
    assert curve is not None and curve.steps[-1] == 999 and curve.values[-1] == len(steps) - 1
    assert len(curve.steps) <= training.MOST_POINTS and list(curve.steps) == sorted(set(curve.steps))
    assert training.curve(tmp_path / "missing.jsonl", None) is None


def test_without_matplotlib_there_are_tables_and_sheets_and_one_line_about_plots(
    tmp_path: Path, here: Here, tiny: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    for beta in (1, 2):
        here(*tiny, "steps=2", "device=cpu", f"beta={beta}", folder=f"sweep/{beta}")
    monkeypatch.setattr(svg, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # importing it fails
    capsys.readouterr()
    page, text = report(tmp_path / "sweep")
    said = capsys.readouterr().out
    assert said.count("pip install 'vaex-autoencoders[plots]'") == 1 and "vaex-autoencoders[plots]" in text
    assert "<svg" not in page and page.count("data:image/png") == 5 and "All runs" in text


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["nowhere"], "nowhere: no such folder"),
        (["empty"], "empty: no run there, with config.yaml or status.json"),
        (["run", "run"], "--out=FOLDER: is needed where several folders are given"),
        (["run", "--out=file"], "file: can't be written (File exists)"),
        (["run", "--out=file/report"], "file/report: can't be written (Not a directory)"),
        (["run", "--what"], "--what"),
        ([], "vaex report --help"),
    ],
)
def test_errors_are_one_line(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: Callable[..., str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "run")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    assert message in said(cli.report, arguments)


def test_help_comes_without_torch(vaex: Callable[..., Ran]) -> None:
    probe = (
        "import sys; sys.argv = ['vaex', 'report', '--help']\nfrom vaex.cli import main\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code\n"
        "assert not {'torch', 'hydra', 'omegaconf', 'numpy', 'matplotlib', 'yaml'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "vaex report" in done.stdout and "--out" in done.stdout
    assert "vaex report" in vaex("--help").out
