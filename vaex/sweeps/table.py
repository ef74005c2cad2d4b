"""What became of a sweep's jobs: one line each."""

from collections.abc import Sequence

from vaex.sweeps.folder import Job

WIDTH = 120


def numbers(job: Job) -> dict[str, str]:
    """Title -> text, empty where there is no such number. Nats and, for mse, squares of x in [0, 1]."""
    seconds, results = job.seconds, job.results
    shown = {"seconds": "" if seconds is None else f"{seconds:.0f}"}
    for name, digits in (("elbo", 1), ("rate", 1), ("distortion", 1), ("mse", 5)):
        value = results.get(f"test/{name}")
        shown[name] = f"{value:.{digits}f}" if isinstance(value, float | int) else ""
    return shown


def text(jobs: Sequence[Job]) -> str:
    """A table of all jobs, and below it what the errors were."""
    rows = [{"job": job.name, "status": job.status, **numbers(job)} for job in jobs]
    if not rows:
        return "no jobs"
    columns = [title for title in rows[0] if any(row[title] for row in rows)]
    widths = {title: max(len(title), *(len(row[title]) for row in rows)) for title in columns}
    lines = []
    for row in ({title: title for title in columns}, *rows):
        cells = [
            row[title].ljust(widths[title]) if title in ("job", "status") else row[title].rjust(widths[title])
            for title in columns
        ]
        lines.append("  ".join(cells).rstrip())
    for job in jobs:
        if job.error and job.status != "completed":
            lines.append(f"! {job.name}: {job.error.splitlines()[0]}")
    return "\n".join(lines)
