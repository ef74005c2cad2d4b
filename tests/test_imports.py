"""Imports run one way, and the command's start imports nothing heavy."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "vaex"

# Each layer may import those before it, and itself.
FREE = ["errors", "text_table", "config", "runs"]
LAYERS = """data architectures likelihoods latents model objectives experiment
evaluation figures report training build cost train sweeps commands cli""".split()
ALONE = ("data", "architectures", "likelihoods")


def layer(module: str) -> str:
    return module.split(".")[1]


def imported(path: Path) -> set[str]:
    """Layers of vaex that a file imports when it is imported, leaving out imports for types alone."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("vaex."):
            names.add(layer(node.module))
    return names


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_one_way(path: Path) -> None:
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if own in ("__init__", "__main__"):
        return
    order = FREE + LAYERS
    for other in imported(path):
        if own in ALONE:
            assert other == own, f"{own} may import nothing of vaex but itself, not {other}"
        assert order.index(other) <= order.index(own), f"{own} imports {other}"


def heavy_after(code: str) -> set[str]:
    """Which of the slow packages are imported when `code` has run."""
    probe = f"import sys\ntry:\n    {code}\nexcept SystemExit:\n    pass\nprint('|', *sys.modules)"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    return {"torch", "torchvision", "hydra", "omegaconf", "numpy", "tensorboard"} & set(
        done.stdout.split("|")[-1].split()
    )


def run_with(*arguments: str) -> str:
    return f"sys.argv = ['vaex', *{arguments!r}]; from vaex.cli import main; main()"


def test_importing_vaex_and_asking_for_help_import_nothing_heavy() -> None:
    assert heavy_after("import vaex") == set()
    assert heavy_after(run_with("--help")) == set()
    assert heavy_after(run_with("--version")) == set()


@pytest.mark.parametrize("override", ["beta=-1", "likelihood=nosuch", "bta=4", "objective=ae beta=4"])
def test_a_config_error_is_found_without_torch(override: str, tmp_path: Path) -> None:
    arguments = ("train", *override.split(), f"hydra.run.dir={tmp_path}/run")
    assert "torch" not in heavy_after(run_with(*arguments))
