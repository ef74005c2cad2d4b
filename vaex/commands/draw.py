"""`vaex draw`: figures of trained runs, into their folders and their TensorBoard events.

Modules that the help text doesn't need are imported only after the arguments have been checked.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from vaex.commands.arguments import Parser
from vaex.commands.datasets import LatestDataset
from vaex.errors import UserError, joined, one_line, printable
from vaex.runs.find import find_runs, short_names

if TYPE_CHECKING:
    from torch import Tensor

    from vaex.figures.figure import Subject
    from vaex.training.metrics_log import EventsFile

MOST_BESIDE = 4  # runs in one figure of latents


def main(arguments: list[str]) -> None:
    """Draw, write, and print a line for each figure.

    Raises:
        UserError: about an argument or a figure that doesn't apply to a run; or, after the others were drawn, naming
            the runs that can't be.
    """
    options = _parse(arguments)
    from vaex.figures.kinds import FIGURES

    paths, kinds = paths_and_kinds(options.what, list(FIGURES))
    searches = [find_runs([path]) for path in paths]  # keeps the order of the arguments
    runs = list(dict.fromkeys(run for completed, _ in searches for run in completed))
    names = short_names(runs)
    for folder in [options.out] if options.out else runs:
        if folder.exists() and not os.access(folder, os.W_OK):
            raise UserError(f"{folder}: can't be written; give a folder that can be written: --out=…")
    subject_of = partial(_subject, datasets=LatestDataset(options.data), device=options.device, count=options.count)
    problems = []
    for run in runs if kinds else []:  # check all of them before anything is drawn
        try:
            subject = subject_of(run)
        except UserError:  # which is told when its turn comes; the others are drawn all the same
            continue
        for kind in kinds:
            if reason := FIGURES[kind].why_not(subject):
                raise UserError(f"{kind}: {reason}" + (f" ({run})" if len(runs) > 1 else ""))
    try:
        for run, name in zip(runs, names, strict=True):
            try:
                subject = subject_of(run)
                print(one_line(str(run)))
                _draw(subject, run, kinds, options.out / name if options.out and len(runs) > 1 else options.out)
            except UserError as error:
                problems.append(str(error))
        if not problems and "latents" in kinds and 1 < len(runs) <= MOST_BESIDE:
            subjects = [subject_of(run) for run in runs]
            titled = [replace(s, title=f"{name}\n{s.title}") for name, s in zip(names, subjects, strict=True)]
            _draw_latents_beside(titled, options.out or runs[0] / "figures")
    except OSError as error:
        raise UserError(f"{error}; give a folder that can be written: --out=…") from error
    if skipped := [run for _, incomplete in searches for run in incomplete]:
        print(f"left out, without weights: {one_line(', '.join(map(str, skipped)))}")
    if problems:
        raise UserError(joined(problems))


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser(
        prog="vaex draw",
        usage="vaex draw [options] RUN [RUN | KIND ...]",
        description="Draw figures of trained runs: PNG files in each run's figures folder, and the same in its "
        "TensorBoard events. If no kind is named, draw every kind that applies to the run.",
        epilog="kinds: reconstructions, levels, samples, temperatures, denoising, interpolation, traversals (also a "
        "GIF), manifold, latents (of two to four runs also side by side), pseudo_inputs, scale, curves, group_rates; "
        "and, only if named, projector: codes for TensorBoard's embedding projector",
        allow_abbrev=False,
    )
    parser.add_argument(
        "what", nargs="+", metavar="RUN | KIND", help="folders of runs or of a sweep; and which kinds to draw"
    )
    parser.add_device()
    parser.add_data()
    parser.add_argument(
        "--count", type=int, metavar="N", help="number of images, pairs or codes; the default depends on the kind"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="write only to this folder, not to the runs' folders and events"
    )
    options = parser.parse_intermixed_args(arguments)
    if options.count is not None and options.count < 1:
        parser.error(f"--count={options.count}: must be >= 1")
    parser.check_device(options.device)
    return options


def paths_and_kinds(what: Sequence[str], kinds: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Separate the arguments into folders and kinds. A folder with the name of a kind is written as ./samples.

    Raises:
        UserError: there is no run, or a word is neither a folder nor a kind.
    """
    words = [word for word in what if word not in kinds]
    if not words:
        raise UserError(f"{what[0]}: is a kind of figure; give the folder of a run before it")
    for word in words:
        if not Path(word).exists() and "/" not in word and word != what[0]:
            close = get_close_matches(word, kinds, n=1)
            remedy = f"did you mean {close[0]}?" if close else f"there are {', '.join(kinds)}"
            raise UserError(f"{word}: no such kind of figure, and no such folder; {remedy}")
    return list(map(Path, words)), list(dict.fromkeys(word for word in what if word in kinds))


def _subject(run: Path, datasets: LatestDataset, device: str, count: int | None) -> Subject:
    """The model of a run and its images."""
    from vaex.build import load_model
    from vaex.config.create import create
    from vaex.figures.figure import Subject
    from vaex.runs.folder import METRICS

    config, recorded, dataset = datasets.of(run)
    choices = recorded["choices"]
    beta = [f"beta={config.beta:g}"] if "beta" in config.objective else []
    return Subject(
        model=load_model(run, device),
        dataset=dataset,
        corruption=create("corruption", config.corruption),
        metrics=run / METRICS,
        title=", ".join([choices["objective"], *beta, choices["likelihood"], f"latent_dim={config.latent_dim}"]),
        grid=config.figures.images,
        count=count,
        parameter=config.figures.parameter,
    )


def _draw(subject: Subject, run: Path, kinds: Sequence[str], out: Path | None) -> None:
    """Draw these kinds, or by default all that apply, into `out`, or by default the run's folder and its events."""
    from vaex.figures.kinds import FIGURES
    from vaex.runs.folder import RunFolder
    from vaex.training.metrics_log import EventsFile

    step = int(RunFolder(run).read_results().get("train/steps", 0))
    events = EventsFile(run) if out is None else None
    for name in kinds or [name for name, kind in FIGURES.items() if not kind.on_request]:
        kind = FIGURES[name]
        if reason := kind.why_not(subject):
            print(f"{name:>16}  not drawn: {reason}")
            continue
        folder = out or (run if kind.beside_events else run / "figures")
        files = kind.draw(subject)
        for file, content in files.items():
            _write(folder / file, content, events, step)
        print(f"{name:>16}  {printable(' '.join(str(folder / file) for file in files))}")
    if events:
        events.close()


def _draw_latents_beside(subjects: Sequence[Subject], folder: Path) -> None:
    """Draw the codes of several runs side by side."""
    from vaex.figures import latents

    path = folder / "latents_beside.png"
    _write(path, latents.plot(subjects))
    print(f"{'latents':>16}  {path}")


def _write(path: Path, content: Tensor | bytes, events: EventsFile | None = None, step: int = 0) -> None:
    """Write a sheet as PNG, and also into TensorBoard events under the file's name; or bytes as they are."""
    from tensorboard.compat.proto.event_pb2 import Event

    from vaex.figures.events import picture_summary
    from vaex.figures.sheet import encode_png
    from vaex.runs.writing import replace_file

    file = content if isinstance(content, bytes) else encode_png(content)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, file)
    if events and not isinstance(content, bytes):
        events.add(Event(wall_time=time.time(), step=step, summary=picture_summary(path.stem, content, file)))
