"""`vaex eval`: all test numbers of trained runs, into their results.json and into one table.

Imports what a verb's help doesn't need only after the arguments are known to be good.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zlib import crc32

from vaex.commands.arguments import Parser
from vaex.errors import UserError
from vaex.runs.find import LatestDataset, find_runs, short_names

if TYPE_CHECKING:
    from vaex.evaluation.generation import Draws
    from vaex.evaluation.ranking import Row


def main(arguments: list[str]) -> None:
    """Evaluate, print and write.

    Raises:
        UserError: an argument, or a run that can't be evaluated.
    """
    options = _parse(arguments)
    for name in ("csv", "json"):
        file: Path | None = getattr(options, name)
        if file and (file.is_dir() or not file.absolute().parent.is_dir()):
            raise UserError(f"--{name}={file}: must be a file in a folder that exists")
    runs, skipped = find_runs(options.runs)

    from vaex.evaluation.table import as_csv, as_json, text
    from vaex.runs.writing import replace_file

    datasets = LatestDataset()
    if options.disentanglement:
        _need_factors(runs, datasets)
    names = short_names(runs)
    rows = [_evaluate(run, name, options, datasets) for run, name in zip(runs, names, strict=True)]
    print(text(rows))
    if skipped:
        print(f"\nleft out, without weights: {', '.join(map(str, skipped))}")
    if options.csv:
        replace_file(options.csv, as_csv(rows).encode())
    if options.json:
        replace_file(options.json, as_json(rows).encode())


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser(
        prog="vaex eval",
        description="Evaluate trained runs on their whole test split: ELBO, importance-weighted NLL, bits/dim, "
        "reconstruction errors, active units, calibration and FID. Adds the numbers to each run's results.json and "
        "prints one table, in which only what means the same is ranked together.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="a run's folder, or a folder of runs: a sweep"
    )
    parser.add_argument(
        "--samples",
        type=int,
        metavar="K",
        help="draws of z for each image in the importance-weighted NLL; 0 for the ELBO only; "
        "default 5000 on binary images, 100 on others",
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        metavar="N",
        help="images, or images times draws, at once; default 1000 of 28 × 28, fewer of larger ones",
    )
    parser.add_device()
    parser.add_argument(
        "--fid",
        choices=("means", "noise", "none"),
        help="Fréchet distances, precision and recall, density and coverage of generated images: of the likelihood's "
        "means, or with its pixel noise; default means, or none for images without labels",
    )
    parser.add_argument(
        "--latent",
        choices=("prior", "mixture"),
        default="prior",
        help="where the z of samples comes from: the prior, or a mixture of Gaussians fitted to the training codes, as "
        "it always is for an autoencoder; default prior",
    )
    parser.add_argument(
        "--inception", action="store_true", help="also the FID of samples in Inception-v3's features, as papers give it"
    )
    parser.add_argument(
        "--disentanglement",
        action="store_true",
        help="also MIG, DCI, SAP and the FactorVAE score, for images whose factors are known: sprites",
    )
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the numbers, one line a run")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers, one object a run, lists included")
    options = parser.parse_args(arguments)
    if options.samples is not None and options.samples < 0:
        parser.error(f"--samples={options.samples}: must be >= 1 draw, or 0 for none")
    if options.batch_size is not None and options.batch_size < 1:
        parser.error(f"--batch-size={options.batch_size}: must be >= 1 image")
    parser.check_device(options.device)
    return options


def _need_factors(runs: list[Path], datasets: LatestDataset) -> None:
    """Raises UserError, before anything is measured, when the images of a run have no known factors."""
    for run in runs:
        _, recorded, dataset = datasets.of(run)
        if not dataset.source.factors:
            raise UserError(
                f"--disentanglement: {run} was trained on {recorded['choices']['dataset']}, whose images have no known "
                "factors; leave the option out, or give runs of dataset=sprites"
            )


def _evaluate(run: Path, name: str, options: argparse.Namespace, datasets: LatestDataset) -> Row:
    """Measure one run, merge the numbers into its results.json, and make its line of the table."""
    from vaex.build import load_model
    from vaex.config.create import create
    from vaex.evaluation.measure import collapsed, measure
    from vaex.evaluation.ranking import Row, group_of
    from vaex.evaluation.table import finite
    from vaex.runs.folder import RESULTS, RunFolder

    config, recorded, dataset = datasets.of(run)
    before = RunFolder(run).read_results()
    model = load_model(run, options.device)
    objective = create("objective", config.objective).to(model.device)
    unlabelled = dataset.source.classes < 2
    wanted: Any = options.fid or ("none" if unlabelled else "means")
    generated: Draws | None = None if wanted == "none" else wanted
    try:
        results = measure(
            model,
            objective,
            dataset,
            samples=options.samples,
            batch_size=options.batch_size,
            generated=generated,
            latent=options.latent,
            inception=options.inception,
            disentangled=options.disentanglement,
            description=name,
            corruption=create("corruption", config.corruption),
        )
    except ModuleNotFoundError as error:
        extra = {"sklearn": "disentanglement", "torchmetrics": "inception", "torch_fidelity": "inception"}
        if error.name not in extra:
            raise
        option = extra[error.name]
        raise UserError(f"--{option}: needs {error.name}; pip install 'vaex-autoencoders[{option}]'") from error
    except NotImplementedError as error:
        raise UserError(f"--fid=noise: {error}; take --fid=means") from error
    except ValueError as error:
        raise UserError(f"{run}: {error}; --fid=none leaves generated images out") from error

    RunFolder(run).write_json(RESULTS, before | finite(results))

    choices = recorded["choices"]
    channels, height, width = dataset.image_shape
    crc = crc32(dataset.test.pixels.contiguous().numpy().data)
    group = group_of(
        kind=model.likelihood.kind,
        stochastic=model.stochastic,
        scored_pixels=results.get("test/scored_pixels"),
        conditional=config.conditional,
        dataset=f"{choices['dataset']}, {len(dataset.test):,} test images of {channels} × {height} × {width} "
        f"(crc {crc:08x})",
        binarize=dataset.binarize,
        crc=crc,
    )
    notes = [note for note in [collapsed(results)] if note]
    if unlabelled and not options.fid:
        notes.append("no FID: its images have no labels to train a classifier by")
    return Row(
        run=name,
        likelihood=choices["likelihood"],
        kind=model.likelihood.kind,
        scale=choices.get("likelihood/scale"),
        beta=config.beta if "beta" in config.objective else None,
        dimensions=channels * height * width,
        group=group,
        results=results,
        notes=notes,
    )
