"""A long run takes no more memory, and no more open files, than a short one."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from vaex.training.step import TrainingStep

SOME, MANY = 5_000, 50_000  # steps


@pytest.mark.slow
def test_memory_and_open_files_stay_flat(
    here: Callable[..., Path], tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With everything on: numbers, validation, pictures and checkpoints, some hundred times over."""
    step = TrainingStep.__call__
    taken, seen = 0, {}

    def counting(self: TrainingStep, index: object) -> None:
        nonlocal taken
        step(self, index)  # type: ignore[arg-type]
        taken += 1
        if taken in (SOME, MANY - 1):
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            seen[taken] = pages * os.sysconf("SC_PAGE_SIZE") / 2**20, len(os.listdir("/proc/self/fd"))

    monkeypatch.setattr(TrainingStep, "__call__", counting)
    often = ["trainer.validate_every=2", "trainer.checkpoint_every=8", "figures.every=8", "figures.images=16"]
    run = here(*tiny, f"steps={MANY}", "trainer.log_every=500", *often)
    (early, files_early), (late, files_late) = seen[SOME], seen[MANY - 1]
    assert late < early + 40, "MB"
    assert files_late <= files_early
    assert len(list((run / "checkpoints").glob("*.pt"))) <= 3
    assert (run / "vaex.log").stat().st_size < 2**20
