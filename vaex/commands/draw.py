"""`vaex draw`: pictures of trained runs, into their folders and their TensorBoard events.

Imports what a verb's help doesn't need only after the arguments are known to be good.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vaex.commands.arguments import Parser
from vaex.errors import UserError
from vaex.runs.find import LatestDataset, find_runs, short_names

if TYPE_CHECKING:
    from torch import Tensor

    from vaex.figures.kinds import Subject

MOST_BESIDE = 4  # runs in one picture of latents


def main(arguments: list[str]) -> None:
    """Draw, write, and say in one line each what was written.

    Raises:
        UserError: an argument, a run that can't be drawn, or a kind that has no meaning for one.
    """
    options = _parse(arguments)
    from vaex.figures.kinds import KINDS

    paths, kinds = sorted_out(options.what, list(KINDS))
    found = [find_runs([path]) for path in paths]  # in the order in which they were given
    runs = list(dict.fromkeys(run for whole, _ in found for run in whole))
    drawer = _Drawer(options.device, options.count)
    for run in runs if kinds else []:  # nothing is drawn unless all of it can be
        subject = drawer.subject(run)
        for kind in kinds:
            if reason := KINDS[kind].why_not(subject):
                raise UserError(f"{kind}: {reason}" + (f" ({run})" if len(runs) > 1 else ""))
    names = short_names(runs)
    try:
        for run, name in zip(runs, names, strict=True):
            out = options.out / name if options.out and len(runs) > 1 else options.out
            drawer.draw(run, kinds, out)
        if "latents" in kinds and 1 < len(runs) <= MOST_BESIDE:
            drawer.draw_beside(dict(zip(names, runs, strict=True)), options.out or runs[0] / "figures")
    except OSError as error:
        raise UserError(f"{error}; give a folder that can be written: --out=…") from error
    if skipped := [run for _, without in found for run in without]:
        print(f"left out, without weights: {', '.join(map(str, skipped))}")


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser(
        prog="vaex draw",
        usage="vaex draw [options] RUN [RUN | KIND ...]",
        description="Draw trained runs: PNG files in each run's figures folder, and the same in its TensorBoard "
        "events. Without a kind, every one that has a meaning for the run.",
        epilog="kinds: reconstructions, samples, denoising, interpolation, traversals (also a GIF), manifold, latents "
        "(of two to four runs also side by side), scale, curves; and, only when asked for, projector: codes in "
        "TensorBoard's embedding projector",
        allow_abbrev=False,
    )
    parser.add_argument(
        "what", nargs="+", metavar="RUN | KIND", help="folders of runs or of a sweep; what to draw of them"
    )
    parser.add_device()
    parser.add_argument("--count", type=int, metavar="N", help="images, pairs or codes; default: as suits the kind")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write there, and into no run's folder or events")
    options = parser.parse_intermixed_args(arguments)
    if options.count is not None and options.count < 1:
        parser.error(f"--count={options.count}: must be >= 1")
    parser.check_device(options.device)
    return options


def sorted_out(what: Sequence[str], kinds: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Which arguments are folders, and which are kinds. A folder called as a kind is written ./samples.

    Raises:
        UserError: there is no run, or a word is neither.
    """
    paths = [Path(word) for word in what if word not in kinds]
    if not paths:
        raise UserError(f"{what[0]}: is a kind of picture; give the folder of a run before it")
    for path, word in zip(paths, (word for word in what if word not in kinds), strict=True):
        if not path.exists() and "/" not in word and word != what[0]:
            close = get_close_matches(word, kinds, n=1)
            remedy = f"did you mean {close[0]}?" if close else f"there are {', '.join(kinds)}"
            raise UserError(f"{word}: no such kind of picture, and no folder; {remedy}")
    return paths, list(dict.fromkeys(word for word in what if word in kinds))


class _Drawer:
    def __init__(self, device: str, count: int | None) -> None:
        self.device, self.count = device, count
        self.datasets = LatestDataset()

    def subject(self, run: Path) -> Subject:
        """The model of a run and its images, which the next run mostly shares."""
        from vaex.build import load_model
        from vaex.config.create import create
        from vaex.figures.kinds import Subject
        from vaex.runs.folder import METRICS

        config, recorded, dataset = self.datasets.of(run)
        choices = recorded["choices"]
        beta = [f"beta={config.beta:g}"] * ("beta" in config.objective)
        return Subject(
            model=load_model(run, self.device),
            dataset=dataset,
            corruption=create("corruption", config.corruption),
            metrics=run / METRICS,
            title=", ".join([choices["objective"], *beta, choices["likelihood"], f"latent_dim={config.latent_dim}"]),
            grid=config.figures.images,
            count=self.count,
            parameter=config.figures.parameter,
        )

    def draw(self, run: Path, kinds: Sequence[str], out: Path | None) -> None:
        """The kinds, or else all that have a meaning, into `out`, or else the run's folder and its events."""
        from torch.utils.tensorboard import SummaryWriter

        from vaex.figures.kinds import KINDS

        subject = self.subject(run)
        print(run)
        writer: Any = SummaryWriter(str(run)) if out is None else None
        for name in kinds or [name for name, kind in KINDS.items() if not kind.on_request]:
            kind = KINDS[name]
            if reason := kind.why_not(subject):
                print(f"{name:>16}  not drawn: {reason}")
                continue
            folder = out or (run if kind.beside_events else run / "figures")
            files = kind.draw(subject)
            for file, content in files.items():
                write(folder / file, content, writer, _step(run))
            print(f"{name:>16}  {' '.join(str(folder / file) for file in files)}")
        if writer is not None:
            writer.close()

    def draw_beside(self, runs: dict[str, Path], folder: Path) -> None:
        """The codes of several runs in one picture, each under the name it has here."""
        from vaex.figures.kinds import latent_panel
        from vaex.figures.latents import latents

        panels = []
        for name, run in runs.items():
            panel = latent_panel(self.subject(run))
            panels.append(replace(panel, title=f"{name}\n{panel.title}"))
        write(folder / "latents_beside.png", latents(panels))
        print(f"{'latents':>16}  {folder / 'latents_beside.png'}")


def write(path: Path, content: Tensor | bytes, writer: Any = None, step: int = 0) -> None:
    """A sheet as PNG, and with a writer also into its events under the file's name; or bytes as they are."""
    from vaex.figures.events import picture_summary
    from vaex.figures.sheet import encode_png
    from vaex.runs.writing import replace_file

    file = content if isinstance(content, bytes) else encode_png(content)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, file)
    if writer is not None and not isinstance(content, bytes):
        writer.file_writer.add_summary(picture_summary(path.stem, content, file), step)


def _step(run: Path) -> int:
    """How many steps the run had taken."""
    from vaex.runs.folder import RunFolder

    return int(RunFolder(run).read_results().get("train/steps", 0))
