"""Likelihood × architecture on color pictures: docs/color_table.md.

    python scripts/color_study.py PICTURES                  # 20 runs of 1,500 steps
    python scripts/color_study.py PICTURES --architectures ladder --seeds 0 1 2

PICTURES has the sub-folders train and test, with a sub-folder for each class. All runs have the same number of steps,
the same batches and test split, and networks with about the same number of parameters. Completed runs are not trained
again. FIDs are in the features of vaex's own classifier of these pictures, of samples from the prior.
"""

import argparse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from likelihood_table import ROOT, UNIFORM, evaluate, train
from which_likelihood import Cell, interval_table

LIKELIHOODS = {
    "discretized_logistic_mixture": ["likelihood=discretized_logistic_mixture"],
    "discretized_logistic_mixture, conditional channels": [
        "likelihood=discretized_logistic_mixture",
        "likelihood.conditional_channels=true",
    ],
    "discretized_logistic, per_pixel": ["likelihood=discretized_logistic", "likelihood/scale=per_pixel"],
    "discretized_logistic, shared": ["likelihood=discretized_logistic"],
    "gaussian, per_pixel": ["likelihood=gaussian", "likelihood/scale=per_pixel", UNIFORM],
    "gaussian, shared": ["likelihood=gaussian", UNIFORM],
    "laplace, shared": ["likelihood=laplace", UNIFORM],
    "categorical": ["likelihood=categorical"],
    "continuous_bernoulli": ["likelihood=continuous_bernoulli", UNIFORM],
    "cross_entropy": ["likelihood=cross_entropy"],
}
ARCHITECTURES = {
    "conv": ["architecture=conv", "latent_dim=128"],
    "ladder": [
        "architecture=ladder",
        "architecture.widths=[48,96,128]",
        "architecture.groups=[1,1,1]",
        "architecture.depth=1",
        "latent_dim=8",
        "objective.coarse_first=true",
    ],
}
COMMON = ["dataset=image_folder", "dataset.source.size=32", "batch_size=64", "optimizer.lr=0.001", "trainer.threads=1"]
COLUMNS = {  # heading: (key of results.json, digits)
    "bits/dim": ("test/bits_per_dim", 3),
    "ELBO": ("test/elbo", 0),
    "rate": ("test/rate", 0),
    "MSE": ("test/mse", 4),
    "SSIM": ("test/ssim", 3),
    "reconstruction FID": ("test/fid_reconstruction", 0),
    "FID": ("test/fid", 0),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--likelihoods", nargs="+", choices=list(LIKELIHOODS), default=list(LIKELIHOODS))
    parser.add_argument("--architectures", nargs="+", choices=list(ARCHITECTURES), default=list(ARCHITECTURES))
    parser.add_argument("--samples", type=int, default=10, help="of z for each image, for bits/dim")
    parser.add_argument("--workers", type=int, default=2, help="number of runs at a time, one thread each")
    parser.add_argument("--folder", type=Path, default=Path("outputs/color"))
    parser.add_argument("--docs", type=Path, default=ROOT / "docs")
    arguments = parser.parse_args()
    settings = [
        (architecture, likelihood, seed)
        for seed in arguments.seeds
        for likelihood in arguments.likelihoods
        for architecture in arguments.architectures
    ]

    def start(architecture: str, likelihood: str, seed: int) -> str:
        overrides = [
            *COMMON,
            f"dataset.source.root={arguments.pictures.absolute()}",
            f"objective.warmup={arguments.steps // 5}",
            *ARCHITECTURES[architecture],
            *LIKELIHOODS[likelihood],
            f"seed={seed}",
        ]
        return train(folder_name(architecture, likelihood, seed), overrides, arguments.folder, arguments.steps)

    with ThreadPoolExecutor(arguments.workers) as pool:
        jobs = [pool.submit(start, *setting) for setting in settings]
        for n, job in enumerate(jobs, 1):
            print(f"{n}/{len(jobs)}  {job.result()}", flush=True)
    records = {record["run"]: record for record in evaluate(arguments.folder, arguments.samples, arguments.workers)}
    lines = [
        f"Written by `python scripts/color_study.py PICTURES`: {arguments.steps:,} steps of 64 pictures of 32 × 32 "
        f"pixels, seeds {', '.join(map(str, arguments.seeds))}; bits/dim from {arguments.samples} importance-weighted "
        "samples of z. ± is half the width of a 95 % confidence interval over the seeds.",
    ]
    for architecture in arguments.architectures:
        rows = []
        for likelihood in arguments.likelihoods:
            runs = [folder_name(architecture, likelihood, seed) for seed in arguments.seeds]
            cell = Cell(likelihood, 1.0, [arguments.folder / run for run in runs], [records[run] for run in runs])
            rows.append(([likelihood], cell))
        lines += ["", f"## {architecture}", "", *interval_table(["likelihood"], COLUMNS, rows)]
    (arguments.docs / "color_table.md").write_text("\n".join(lines) + "\n")


def folder_name(architecture: str, likelihood: str, seed: int) -> str:
    return f"{architecture}-{likelihood.replace(', ', '-').replace(' ', '_')}-{seed}"


if __name__ == "__main__":
    main()
