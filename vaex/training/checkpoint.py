"""Checkpoints: written whole or not at all, checked by SHA-256, loaded without executing anything."""

import hashlib
import io
import re
from pathlib import Path
from typing import Any

import torch

from vaex.errors import UserError
from vaex.folder import replace_file

FORMAT = 1


class Checkpoints:
    """The checkpoints of one run: the newest two, and the best."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step}.pt"

    def steps(self) -> list[int]:
        """Steps of the checkpoints that are there, ascending."""
        found = (re.fullmatch(r"step-(\d+)\.pt", path.name) for path in self.folder.glob("step-*.pt"))
        return sorted(int(match[1]) for match in found if match)

    def save(self, step: int, state: dict[str, Any], best_step: int | None) -> Path:
        """Write, then remove all but the newest two and the best."""
        self.folder.mkdir(exist_ok=True)
        buffer = io.BytesIO()
        torch.save({"format": FORMAT, "step": step, **state}, buffer)
        content = buffer.getvalue()
        path = self.path(step)
        replace_file(_digest_path(path), (hashlib.sha256(content).hexdigest() + "\n").encode())
        replace_file(path, content)
        steps = self.steps()
        for old in set(steps) - set(steps[-2:]) - {best_step}:
            self.path(old).unlink()
            _digest_path(self.path(old)).unlink(missing_ok=True)
        return path

    def load(self, step: int) -> dict[str, Any]:
        """Raises UserError for a file that is damaged or of another format."""
        path = self.path(step)
        try:
            content = path.read_bytes()
            wanted = _digest_path(path).read_text().strip()
            if hashlib.sha256(content).hexdigest() != wanted:
                raise UserError(f"{path}: damaged, its SHA-256 is not the one beside it")
            state: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, KeyError) as error:
            raise UserError(f"{path}: can't be read ({str(error).splitlines()[0]})") from error
        if state["format"] != FORMAT:
            raise UserError(f"{path}: is of format {state['format']}, this vaex reads {FORMAT}")
        return state

    def load_newest(self) -> dict[str, Any]:
        """The newest that is whole. Raises UserError when there is none, naming each damaged one."""
        problems = []
        for step in reversed(self.steps()):
            try:
                return self.load(step)
            except UserError as error:
                problems.append(str(error))
        raise UserError("; ".join(problems) or f"{self.folder}: no checkpoint there; start the run anew")


def _digest_path(path: Path) -> Path:
    return path.with_suffix(".sha256")


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
