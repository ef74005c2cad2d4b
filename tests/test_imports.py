"""Imports run one way, and the command's start imports nothing heavy."""

import ast
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "vaex"

# Each layer may import those before it, and itself.
LAYERS = """errors text_table config runs data architectures likelihoods latents model objectives experiment
evaluation start figures report training build cost train sweeps commands cli""".split()
ALONE = ("data", "architectures", "likelihoods")  # import nothing of vaex but themselves
HEAVY = ("torch", "torchvision", "hydra", "omegaconf", "numpy", "tensorboard")


def imported_layers(path: Path) -> set[str]:
    """Layers that a file imports when it is imported itself, without imports for types alone."""
    imports = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ImportFrom)]
    return {node.module.split(".")[1] for node in imports if node.module and node.module.startswith("vaex.")}


def test_imports_run_one_way() -> None:
    wrong = []
    for path in sorted(PACKAGE.rglob("*.py")):
        own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if own in ("__init__", "__main__"):
            continue
        for other in imported_layers(path) - {own}:
            if own in ALONE or LAYERS.index(other) > LAYERS.index(own):
                wrong.append(f"{path.relative_to(PACKAGE)} ({own}) must not import {other}")
    assert not wrong, "\n".join(wrong)


def heavy_imports(*commands: str) -> set[str]:
    """Which slow packages a new process has imported after `import vaex` and these commands."""
    probe = f"""
import sys, vaex
from vaex.cli import main
for command in {commands!r}:
    sys.argv = ["vaex", *command.split()]
    try:
        main()
    except SystemExit:
        pass
print("|", *sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    return set(HEAVY) & set(done.stdout.split("|")[-1].split())


def test_help_and_version_import_nothing_heavy() -> None:
    assert heavy_imports("--help", "--version") == set()


def test_a_config_error_is_found_without_torch(tmp_path: Path) -> None:
    mistakes = ("beta=-1", "likelihood=nosuch", "bta=4", "objective=ae beta=4")
    commands = [f"train {mistake} hydra.run.dir={tmp_path}/run" for mistake in mistakes]
    assert "torch" not in heavy_imports("train --help", *commands)
