"""`vaex eval`: evaluate trained runs, write the numbers to their results.json, and print one table.

Modules that help does not need are imported only after the arguments have been checked.
"""

from __future__ import annotations

import argparse
import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from vaex.commands.arguments import Parser
from vaex.commands.datasets import LatestDataset
from vaex.errors import UserError, joined, one_line
from vaex.runs.find import find_runs, short_names

if TYPE_CHECKING:
    from vaex.evaluation.measure import Measurement
    from vaex.evaluation.table import Row

# Option -> the extra it needs, and the packages of that extra that vaex imports.
EXTRAS = {
    "disentanglement": ("disentanglement", ("sklearn",)),
    "inception": ("pretrained", ("torchmetrics", "torch_fidelity")),
    "lpips": ("pretrained", ("torchmetrics",)),
}


def main(arguments: list[str]) -> None:
    """Evaluate, print and write.

    Raises:
        UserError: an argument is invalid; or, after the others were evaluated, naming the runs that can't be.
    """
    options = _parse(arguments)
    for name in ("csv", "json"):
        file: Path | None = getattr(options, name)
        if file and (file.is_dir() or not os.access(file.absolute().parent, os.W_OK)):
            raise UserError(f"--{name}={file}: must be a file in a folder that exists and can be written")
    runs, skipped = find_runs(options.runs)

    from vaex.evaluation.metrics import METRICS
    from vaex.evaluation.pretrained import check_images, inception, lpips_network
    from vaex.evaluation.table import as_csv, as_json, text
    from vaex.runs.writing import replace_file

    if options.inception:
        inception()  # a missing file of weights is an error before anything is measured
    if options.lpips:
        lpips_network()
    measurements = {name: _measurement(name) for name in options.metric}
    datasets = LatestDataset(options.data)
    if options.disentanglement:
        _check_factors(runs, datasets)
    for name in ("inception", "lpips"):
        for run in runs if getattr(options, name) else ():
            _, _, dataset = datasets.of(run)
            check_images(f"--{name}", dataset.image_shape, len(dataset.test))
    names = short_names(runs)
    rows: list[Row] = []
    problems: list[str] = []
    for run, name in zip(runs, names, strict=True):
        try:
            rows.append(_evaluate(run, name, options, measurements, datasets, problems))
        except UserError as error:  # the other runs are evaluated all the same
            problems.append(str(error))
    if rows:
        extra = [metric for measurement in measurements.values() for metric in measurement.metrics]
        print(text(rows, [*METRICS, *extra]))
    if skipped:
        print(f"\nleft out, without weights: {one_line(', '.join(map(str, skipped)))}")
    if options.csv:
        replace_file(options.csv, as_csv(rows).encode())
    if options.json:
        replace_file(options.json, as_json(rows).encode())
    if problems:
        raise UserError(joined(problems))


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser(
        prog="vaex eval",
        description="Evaluate trained runs on their whole test split: ELBO, importance-weighted NLL, bits/dim, "
        "reconstruction errors, active units, calibration and FID. Writes the numbers to each run's results.json and "
        "prints one table, in which only numbers that mean the same thing are ranked together.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("runs", nargs="+", type=Path, metavar="RUN", help="the folder of a run or of a sweep")
    add(
        "--samples",
        type=int,
        metavar="K",
        help="samples of z for each image in the importance-weighted NLL; 0 for the ELBO only; default 256 from a "
        "fitted posterior, 100 from the encoder's",
    )
    add(
        "--posterior",
        choices=("encoder", "fitted"),
        help="what these samples are drawn from: the encoder's q(z|x), as in papers, or a Gaussian fitted to p(z|x) of "
        "each image, which usually gives a tighter bound and takes as long as 2500 samples; default fitted on binary "
        "images with posterior=diagonal unless --samples is given, otherwise encoder",
    )
    add(
        "--batch-size",
        type=int,
        metavar="N",
        help="images (or images times samples of z) evaluated at once; default 1000 for images of 28 × 28, fewer for "
        "larger ones",
    )
    parser.add_device()
    parser.add_data()
    add(
        "--fid",
        choices=("means", "noise", "none"),
        help="how to generate the images for the Fréchet distances, precision, recall, density and coverage: as means "
        "of the likelihood, or with its pixel noise; none skips these metrics and is the default for images without "
        "labels; otherwise the default is means",
    )
    add(
        "--latent",
        choices=("prior", "mixture"),
        default="prior",
        help="distribution of z for generated images: the prior, or a mixture of Gaussians fitted to the codes of the "
        "training images; autoencoders always use the mixture; default prior",
    )
    add(
        "--inception",
        action="store_true",
        help="also compute the FIDs of samples and of reconstructions in the features of Inception-v3, as papers do",
    )
    add("--lpips", action="store_true", help="also compute the LPIPS of reconstructions, in the features of AlexNet")
    add(
        "--disentanglement",
        action="store_true",
        help="also compute MIG, DCI, SAP and the FactorVAE score; needs images with known factors, such as sprites",
    )
    add(
        "--metric",
        action="append",
        default=[],
        metavar="NAME",
        help="also compute a Measurement of your own, named package.module.NAME (see docs/adding.md); may be repeated",
    )
    add("--csv", type=Path, metavar="FILE", help="also write the numbers as CSV, one line for each run")
    add("--json", type=Path, metavar="FILE", help="also write the numbers and lists as JSON, one object for each run")
    options = parser.parse_args(arguments)
    if options.samples is not None and options.samples < 0:
        parser.error(f"--samples={options.samples}: must be >= 1 sample, or 0 for none")
    if options.posterior and options.samples == 0:
        parser.error(f"--posterior={options.posterior}: nothing is drawn with --samples=0; leave out one of them")
    if options.batch_size is not None and options.batch_size < 1:
        parser.error(f"--batch-size={options.batch_size}: must be >= 1 image")
    parser.check_device(options.device)
    for option, (extra, packages) in EXTRAS.items():
        for package in packages if getattr(options, option) else ():
            if find_spec(package) is None:
                parser.error(f"--{option}: needs {package}; pip install 'vaex-autoencoders[{extra}]'")
    return options


def _measurement(name: str) -> Measurement:
    """The user's measurement. Raises UserError if there is none, or if it declares metrics of vaex."""
    from vaex.config.targets import import_trusted
    from vaex.evaluation.measure import Measurement
    from vaex.evaluation.metrics import METRICS

    measurement = import_trusted("--metric", name)
    if not isinstance(measurement, Measurement):
        kind = type(measurement).__name__
        raise UserError(f"--metric={name}: must be a vaex.evaluation.measure.Measurement, and is a {kind}")
    for key in {metric.key for metric in measurement.metrics} & {metric.key for metric in METRICS}:
        raise UserError(f"--metric={name}: declares {key}, which is a metric of vaex; choose another key")
    return measurement


def _check_factors(runs: list[Path], datasets: LatestDataset) -> None:
    """Raises UserError, before anything is measured, if the images of a run have no known factors."""
    for run in runs:
        _, recorded, dataset = datasets.of(run)
        if not dataset.source.factors:
            raise UserError(
                f"--disentanglement: {run} was trained on {recorded['choices']['dataset']}, whose images have no known "
                "factors; leave the option out, or give runs of dataset=sprites"
            )


def _evaluate(
    run: Path,
    name: str,
    options: argparse.Namespace,
    measurements: dict[str, Measurement],
    datasets: LatestDataset,
    problems: list[str],
) -> Row:
    """Evaluate one run and merge the numbers into its results.json; if it can't be written, `problems` says so."""
    from vaex.build import load_model
    from vaex.config.create import create
    from vaex.evaluation.comparison import collapsed
    from vaex.evaluation.measure import Evaluation, measure
    from vaex.evaluation.metric import DECLARATIONS, declaration
    from vaex.evaluation.metrics import MEASUREMENTS, describe
    from vaex.evaluation.table import Row, finite
    from vaex.runs.folder import RESULTS, WEIGHTS, WEIGHTS_HASH, RunFolder, weights_hash
    from vaex.runs.writing import WriteFailed

    config, recorded, dataset = datasets.of(run)
    before = RunFolder(run).read_results()
    model = load_model(run, options.device)
    if options.posterior == "fitted" and not model.posterior.is_diagonal:
        raise UserError(
            f"{run}: --posterior=fitted: starts from a Gaussian with independent latents, and this run has another "
            "posterior; use --posterior=encoder"
        )
    evaluation = Evaluation(
        model=model,
        objective=create("objective", config.objective).to(model.device),
        dataset=dataset,
        corruption=create("corruption", config.corruption),
        samples=options.samples,
        posterior=options.posterior,
        images_per_batch=options.batch_size,
        fid=options.fid,
        latent=options.latent,
        inception=options.inception,
        lpips=options.lpips,
        disentanglement=options.disentanglement,
        title=name,
    )
    try:
        results, notes = measure(evaluation, [*MEASUREMENTS, *measurements.values()])
    except UserError as error:
        raise UserError(f"{run}: {error}") from error
    results = describe(results, model, dataset, config, recorded["choices"])
    results[WEIGHTS_HASH] = weights_hash((run / WEIGHTS).read_bytes())  # an older run has none
    if measurements:
        metrics = [metric for measurement in measurements.values() for metric in measurement.metrics]
        results[DECLARATIONS] = {**before.get(DECLARATIONS, {}), **declaration(metrics)}
    try:
        RunFolder(run).write_json(RESULTS, before | finite(results))
    except WriteFailed as error:
        problems.append(f"{error.problem}; the numbers of {name} are printed and not saved")
    return Row(name, results, [*filter(None, [collapsed(results)]), *notes])
