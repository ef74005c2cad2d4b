"""What a run records of where it comes from: versions, the git revision and the command."""

import platform
import subprocess
import sys
from importlib.metadata import version
from typing import Any

from vaex import __version__
from vaex.config.schema import config_dir


def versions() -> dict[str, str]:
    """Of vaex, Python and the packages that make the numbers."""
    packages = {name: version(name) for name in ("torch", "torchvision", "hydra-core", "omegaconf", "numpy")}
    return {"vaex": __version__, "python": platform.python_version(), **packages}


def provenance() -> dict[str, Any]:
    """Versions, and the git revision when vaex runs from a checkout."""
    return versions() | {"git_revision": _git_revision(), "command": ["vaex", "train", *sys.argv[1:]]}


def _git_revision() -> str | None:
    checkout = config_dir().parent
    if not (checkout / ".git").exists():
        return None
    try:
        described = subprocess.run(
            ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=5,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return described.stdout.strip() or None
