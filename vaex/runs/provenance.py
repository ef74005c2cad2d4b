"""The origin that a run records: package versions, git revision and command line."""

import platform
import subprocess
import sys
from importlib.metadata import version
from typing import Any

from vaex import __version__
from vaex.config.schema import config_dir


def versions() -> dict[str, str]:
    """Versions of vaex, Python and the packages that can change numbers."""
    packages = {name: version(name) for name in ("torch", "torchvision", "hydra-core", "omegaconf", "numpy")}
    return {"vaex": __version__, "python": platform.python_version(), **packages}


def provenance() -> dict[str, Any]:
    """`versions`, the command, and the git revision if vaex runs from a checkout."""
    return versions() | {"git_revision": _git_revision(), "command": ["vaex", "train", *sys.argv[1:]]}


def _git_revision() -> str | None:
    checkout = config_dir().parent
    if not (checkout / ".git").exists():
        return None
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        revision = subprocess.run(command, capture_output=True, text=True, timeout=5).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    return revision.strip() or None
