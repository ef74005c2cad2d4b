"""Checkpoints: written whole or not at all, checked by SHA-256, loaded without executing anything."""

import hashlib
import io
import logging
import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch

from vaex.errors import UserError
from vaex.runs.writing import Writing, replace_file

FORMAT = 1

log = logging.getLogger("vaex")


class Checkpoints:
    """The checkpoints of one run: the newest two that are whole, the best, and any that are damaged.

    Args:
        folder: of the checkpoints, inside the run's.
        writing: what happens when one can't be written.
    """

    NEWEST = 2  # that are kept

    def __init__(self, folder: Path, writing: Writing | None = None) -> None:
        self.folder = folder
        self.writing = writing or Writing(folder.parent)
        self._whole: dict[int, bool] = {}  # what is known of each step's

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step}.pt"

    def steps(self) -> list[int]:
        """Steps of the checkpoints that are there, ascending. Raises OSError when the folder can't be read."""
        return self._steps(".pt")

    def _steps(self, suffix: str) -> list[int]:
        try:
            names = os.listdir(self.folder)
        except FileNotFoundError:
            return []
        found = (re.fullmatch(rf"step-(0|[1-9]\d*){re.escape(suffix)}", name) for name in names)
        return sorted(int(match[1]) for match in found if match)

    def check_space(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Before the first step: room for all checkpoints that are kept, one that is being written, and the weights.

        Raises:
            UserError: there isn't, unless the run goes on without checkpoints.
        """
        weights = sum(tensor.nbytes for tensor in model.state_dict().values())
        trained = sum(parameter.nbytes for group in optimizer.param_groups for parameter in group["params"])
        checkpoint = weights + 2 * trained  # Adam's two means of each; others have fewer
        there = sum(self.path(step).stat().st_size for step in self.steps())
        needed = (self.NEWEST + 2) * checkpoint + weights - there
        free = shutil.disk_usage(self.folder.parent).free
        if needed > free:
            problem = (
                f"{self.folder.parent}: {_size(free)} free, and the run needs {_size(needed)}, for "
                f"{self.NEWEST + 2} checkpoints of {_size(checkpoint)} and its weights; free some space, or give "
                "another folder: hydra.run.dir=…"
            )
            if self.writing.stop:
                raise UserError(problem)
            log.warning(problem)

    def save(self, step: int, state: dict[str, Any], best_step: int | None, must: bool = False) -> Path:
        """Write, then remove all whole ones but the newest two and the best.

        Raises:
            WriteFailed: it can't be written, and the run is to stop then or this one `must` be. What was there before
                stays.
        """
        path = self.path(step)
        digest_path = _digest_path(path)
        with self.writing.of("checkpoint", path, must=must):
            self.folder.mkdir(exist_ok=True)
            buffer = io.BytesIO()
            torch.save({"format": FORMAT, "step": step, **state}, buffer)
            content = buffer.getbuffer()
            digest = f"{hashlib.sha256(content).hexdigest()}  {path.name}\n".encode()  # as sha256sum -c reads it
            # One that is there already stays valid until it is replaced: meanwhile either digest is good.
            before = digest_path.read_bytes() if path.is_file() and digest_path.is_file() else b""
            replace_file(digest_path, digest + before)
            replace_file(path, content)
            if before:
                replace_file(digest_path, digest)
            self._whole[step] = True
            self._remove_old(best_step)
        return path

    def _remove_old(self, best_step: int | None) -> None:
        steps = self.steps()
        whole = [step for step in steps if self._is_whole(step)]
        for old in set(whole[: -self.NEWEST]) - {best_step}:
            self.path(old).unlink()
        for left in set(self._steps(".sha256")) - set(self.steps()):  # also by a run that was killed while saving
            _digest_path(self.path(left)).unlink(missing_ok=True)

    def _is_whole(self, step: int) -> bool:
        if step not in self._whole:
            try:
                self._read(step)
            except UserError:
                self._whole[step] = False
            else:
                self._whole[step] = True
        return self._whole[step]

    def _read(self, step: int) -> bytes:
        """Raises UserError for a file that is damaged."""
        path = self.path(step)
        try:
            content = path.read_bytes()
            digests = _digest_path(path).read_bytes().split()[::2]
        except OSError as error:
            raise UserError(f"{error.filename or path}: can't be read ({error.strerror})") from error
        if hashlib.sha256(content).hexdigest().encode() not in digests:
            raise UserError(f"{path}: damaged, its SHA-256 is not the one beside it")
        return content

    def load(self, step: int) -> dict[str, Any]:
        """Raises UserError for a file that is damaged or of another format."""
        path = self.path(step)
        self._whole[step] = False
        content = self._read(step)
        try:
            state: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
            format, of_step = state["format"], state["step"]
        except Exception as error:  # whatever is in the file, it isn't a checkpoint of vaex
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise UserError(f"{path}: is no checkpoint of vaex ({reason})") from error
        if format != FORMAT:
            raise UserError(f"{path}: is of format {format}, this vaex reads {FORMAT}")
        if of_step != step:
            raise UserError(f"{path}: holds step {of_step}, not what its name says")
        self._whole[step] = True
        return state

    def load_newest(self) -> dict[str, Any] | None:
        """The newest that is whole, with a warning that names those which are not; None when there is none at all.

        Raises:
            UserError: those that are there are all damaged; names each.
        """
        try:
            steps = self.steps()
        except OSError as error:
            raise UserError(f"{self.folder}: can't be read ({error.strerror}); make it readable") from error
        problems = []
        for step in reversed(steps):
            try:
                state = self.load(step)
            except UserError as error:
                problems.append(str(error))
                continue
            if problems:
                log.warning(f"{'; '.join(problems)}. Going on from {self.path(step)}, which is whole")
            return state
        if problems:
            raise UserError(f"{'; '.join(problems)}. None is whole: put a copy of one back, or start the run anew")
        return None


def _digest_path(path: Path) -> Path:
    return path.with_suffix(".sha256")


def _size(count: int) -> str:
    """Bytes, for people."""
    size, units = float(max(count, 0)), ["bytes", "kB", "MB", "GB", "TB"]
    while size >= 1000 and len(units) > 1:
        size /= 1000
        units.pop(0)
    return f"{size:.3g} {units[0]}"


def random_state(device: torch.device) -> dict[str, torch.Tensor]:
    """State of every generator that training draws from."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_random_state(state: dict[str, torch.Tensor], device: torch.device) -> None:
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
