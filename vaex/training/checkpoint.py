"""Checkpoints: each is written whole or not at all, verified by SHA-256 and loaded without executing anything."""

import hashlib
import io
import logging
import os
import re
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from vaex.config.identity import difference_from_checkpoint
from vaex.config.schema import Config
from vaex.errors import UserError, first_line
from vaex.runs.writing import WritePolicy, replace_file
from vaex.text_table import human

FORMAT = 1
State = dict[str, Any]

log = logging.getLogger("vaex")


class Checkpoints:
    """The checkpoints of one run: the newest two undamaged ones, the best, and any damaged ones.

    Args:
        folder: of the checkpoints, inside the run folder.
        policy: what happens if a checkpoint can't be written.
        config: the run's config; a checkpoint of a run with another one is refused. None to refuse none.
    """

    NEWEST = 2  # number of the newest checkpoints that are kept

    def __init__(self, folder: Path, policy: WritePolicy | None = None, config: Config | None = None) -> None:
        self.folder, self.config = folder, config
        self.policy = policy or WritePolicy(folder.parent)
        self._is_valid: dict[int, bool] = {}  # by step, for the checkpoints that were read or written

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step}.pt"

    def steps(self, suffix: str = ".pt") -> list[int]:
        """Steps of the existing checkpoints, ascending. Raises OSError if the folder can't be read."""
        try:
            names = os.listdir(self.folder)
        except FileNotFoundError:
            return []
        matches = (re.fullmatch(rf"step-(0|[1-9]\d*){re.escape(suffix)}", name) for name in names)
        return sorted(int(match[1]) for match in matches if match)

    def check_space(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, average: bool = False) -> None:
        """Before the first step, check that there is room for every checkpoint that is kept and the one being written.

        Args:
            average: whether checkpoints contain an average of the weights.

        Raises:
            UserError: there is too little room, and a failed write stops the run.
        """
        weights = sum(tensor.nbytes for tensor in model.state_dict().values())
        trained = sum(parameter.nbytes for group in optimizer.param_groups for parameter in group["params"])
        # Adam has two running means of each parameter; others have fewer.
        checkpoint = weights + (3 if average else 2) * trained
        existing = sum(self.path(step).stat().st_size for step in self.steps())
        needed = (self.NEWEST + 2) * checkpoint + weights - existing
        free = shutil.disk_usage(self.folder.parent).free
        if needed > free:
            problem = (
                f"{self.folder.parent}: {human(free, 'B')} free, and the run needs {human(needed, 'B')}, for "
                f"{self.NEWEST + 2} checkpoints of {human(checkpoint, 'B')} and its weights; free some space, or use "
                "another folder: hydra.run.dir=…"
            )
            if self.policy.stop:
                raise UserError(problem)
            log.warning(problem)

    def save(self, step: int, state: State, best_step: int | None, required: bool = False) -> None:
        """Write a checkpoint, then remove all undamaged ones except the newest two and the best.

        Raises:
            WriteFailed: it can't be written, and the policy is to stop or it is `required`. The existing checkpoints
                stay as they are.
        """
        path = self.path(step)
        digest_path = _digest_path(path)
        with self.policy.guard("checkpoint", path, required=required):
            self.folder.mkdir(exist_ok=True)
            buffer = io.BytesIO()
            torch.save({"format": FORMAT, "step": step, **state}, buffer)
            with buffer.getbuffer() as content:
                digest = f"{hashlib.sha256(content).hexdigest()}  {path.name}\n".encode()  # as `sha256sum -c` reads it
                # A checkpoint of the same step stays valid until it is replaced: until then either digest is accepted.
                previous = digest_path.read_bytes() if path.is_file() and digest_path.is_file() else b""
                replace_file(digest_path, digest + previous)
                replace_file(path, content)
                if previous:
                    replace_file(digest_path, digest)
            self._is_valid[step] = True
            self._remove_old(best_step)

    def _remove_old(self, best_step: int | None) -> None:
        valid = [step for step in self.steps() if self._verify(step)]
        for step in set(valid[: -self.NEWEST]) - {best_step}:
            self.path(step).unlink()
        for step in set(self.steps(".sha256")) - set(self.steps()):  # also those of a run killed while saving
            _digest_path(self.path(step)).unlink(missing_ok=True)

    def _verify(self, step: int) -> bool:
        if step not in self._is_valid:
            with suppress(UserError):
                self._read(step)
        return self._is_valid[step]

    def _read(self, step: int) -> bytes:
        """Raises UserError if the file is damaged."""
        path = self.path(step)
        self._is_valid[step] = False
        try:
            content = path.read_bytes()
            digests = _digest_path(path).read_bytes().split()[::2]
        except OSError as error:
            raise UserError(f"{error.filename or path}: can't be read ({error.strerror})") from error
        if hashlib.sha256(content).hexdigest().encode() not in digests:
            raise UserError(f"{path}: damaged, its SHA-256 is not the one beside it")
        self._is_valid[step] = True
        return content

    def load(self, step: int) -> State:
        """Raises UserError if the file is damaged, has another format or belongs to another run."""
        state = self._load(step)
        self._check_config(step, state)
        return state

    def _check_config(self, step: int, state: State) -> None:
        if self.config and (changes := difference_from_checkpoint(state.get("config", {}), self.config)):
            raise UserError(
                f"{self.path(step)}: belongs to another run: {changes} in config.yaml. Restore the checkpoints of this "
                "run, or remove this one"
            )

    def _load(self, step: int) -> State:
        """Raises UserError if the file is damaged or has another format."""
        path, content = self.path(step), self._read(step)
        self._is_valid[step] = False  # until its content is checked, too
        try:
            state: State = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
            saved_format, saved_step = state["format"], state["step"]
        except Exception as error:  # the file may hold anything
            reason = first_line(error)
            raise UserError(f"{path}: is no checkpoint of vaex ({reason})") from error
        if saved_format != FORMAT:
            raise UserError(f"{path}: has format {saved_format}, and this version of vaex reads format {FORMAT}")
        if saved_step != step:
            raise UserError(f"{path}: holds step {saved_step}, which is not the step in its name")
        self._is_valid[step] = True
        return state

    def load_newest(self) -> State | None:
        """The newest undamaged checkpoint, with a warning that names damaged ones; None if there is no checkpoint.

        Raises:
            UserError: all checkpoints are damaged, and the message names each; or the newest belongs to another run.
        """
        try:
            steps = self.steps()
        except OSError as error:
            raise UserError(f"{self.folder}: can't be read ({error.strerror}); make it readable") from error
        problems = []
        for step in reversed(steps):
            try:
                state = self._load(step)
            except UserError as error:
                problems.append(str(error))
                continue
            self._check_config(step, state)
            if problems:
                log.warning(f"{'; '.join(problems)}. The run continues from {self.path(step)}, which is undamaged")
            return state
        if problems:
            raise UserError(
                f"{'; '.join(problems)}. No checkpoint is undamaged: restore one from a copy, or start the run again"
            )
        return None


def _digest_path(path: Path) -> Path:
    return path.with_suffix(".sha256")


def random_state(device: torch.device) -> dict[str, torch.Tensor]:
    """The state of every random number generator that training uses."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_random_state(state: dict[str, torch.Tensor], device: torch.device) -> None:
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
