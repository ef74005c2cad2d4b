"""The jobs of a sweep as a table and as progress lines."""

from collections.abc import Sequence

from vaex.sweeps.folder import JobState
from vaex.text_table import text_table


def numbers(job: JobState) -> dict[str, str]:
    """Title -> text of the training time in seconds and of the headline metrics; empty until the job is complete."""
    seconds = {} if job.seconds is None else {"seconds": f"{job.seconds:.0f}"}
    return {**seconds, **job.summary}


def text(jobs: Sequence[JobState]) -> str:
    """A table with a line for each job, and below it the errors."""
    if not jobs:
        return "no jobs"
    titles = list(dict.fromkeys(title for job in jobs for title in numbers(job)))
    rows = [[job.name, job.status, *(numbers(job).get(title) for title in titles)] for job in jobs]
    lines = text_table(["job", "status", *titles], rows, left={0, 1}, indent="", gap=2, missing="")
    errors = [(job.name, job.error.splitlines()[0]) for job in jobs if job.error and job.status != "completed"]
    return "\n".join([*lines, *(f"! {name}: {error}" for name, error in errors)])
