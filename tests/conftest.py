"""Fixtures: a small cut of the real MNIST files, and runs of the real command."""

import copy
import gc
import gzip
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.core_plugins.importlib_resources_config_source import ImportlibResourcesConfigSource
from hydra.plugins.config_source import ConfigResult, ConfigSource
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from vaex.config.compose import compose, create_hydra
from vaex.config.overrides import parse_overrides
from vaex.config.schema import Config, check, config_dir
from vaex.data.dataset import Source
from vaex.data.mnist import mnist

gc.disable()  # until the tests are collected: what is imported and collected stays
torch.set_num_threads(1)  # the models here are too small for two
# The first backward pass of a process starts a thread for each device; under FakeTensorMode also for GPUs that do not
# exist. A fork of a process with such threads can't train, so the first backward pass is this one.
torch.zeros((), requires_grad=True).backward()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="no CUDA device here"))


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """A shell that runs the tests in the background has them, and what they start, ignore Ctrl-C."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Nothing of the user's is read or written; the workers of one test run share it."""
    os.environ["VAEX_CACHE"] = str(tmp_path_factory.getbasetemp().parent / "vaex-cache")


@pytest.fixture(scope="session", autouse=True)
def cached_options() -> Iterator[None]:
    """Hydra parses each YAML file once in a session: a short run is mostly composing its config."""
    contents: dict[tuple[str, str, str], bytes] = {}  # pickles, which are copied faster than by deepcopy

    def loader(load: Callable[[ConfigSource, str], ConfigResult]) -> Callable[[ConfigSource, str], ConfigResult]:
        def load_once(source: ConfigSource, config_path: str) -> ConfigResult:
            if isinstance(source, FileConfigSource) and Path(source.path) != config_dir():
                return load(source, config_path)
            key = (source.provider, source.path, config_path)
            if key not in contents:
                contents[key] = pickle.dumps(load(source, config_path))
            return pickle.loads(contents[key])

        return load_once

    with pytest.MonkeyPatch.context() as patched:
        for kind in (FileConfigSource, ImportlibResourcesConfigSource):
            patched.setattr(kind, "load_config", loader(kind.load_config))
        yield


@pytest.fixture(scope="session")
def source() -> Source:
    return mnist()


def write_idx(path: Path, array: torch.Tensor) -> None:
    header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    path.write_bytes(gzip.compress(header + array.to(torch.uint8).numpy().tobytes(), compresslevel=1))


@pytest.fixture(scope="session")
def small(source: Source, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides for the first 1,200 training and 300 test images and a small network, for runs that take a moment."""
    folder = tmp_path_factory.mktemp("mnist")
    for name, part, count in (("train", source.train, 1200), ("t10k", source.test, 300)):
        write_idx(folder / f"{name}-images-idx3-ubyte.gz", part.pixels[:count, 0])
        write_idx(folder / f"{name}-labels-idx1-ubyte.gz", part.labels[:count])
    return [f"dataset.source.root={folder}", "dataset.validation=200", "batch_size=32"]


@pytest.fixture(scope="session")
def tiny(small: list[str]) -> list[str]:
    return [*small, "architecture.hidden=[16]", "architecture.activation=relu"]


def for_tests(group: str, option: str) -> list[str]:
    """Overrides from the line `# Small (for tests): KEY=VALUE …` of an option's YAML file."""
    text = (config_dir() / group / f"{option}.yaml").read_text()
    line = re.search(r"^# Small \(for tests\): (.*)$", text, flags=re.MULTILINE)
    return [f"{group}.{override}" for override in line[1].split()] if line else []


SMALL_NETWORKS = {
    path.stem: for_tests("architecture", path.stem) for path in sorted((config_dir() / "architecture").glob("*.yaml"))
}

SPRITES = ["dataset.source.rotations=2", "dataset.source.positions=2", "dataset.source.test=20"]


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of color pictures in two classes: bright and dark gradients with some noise."""
    folder = tmp_path_factory.mktemp("pictures")
    ramp = np.linspace(0, 100, 40)
    noise = np.random.default_rng(0)
    for name, offset in (("bright", 120), ("dark", 20)):
        (folder / name).mkdir()
        for n in range(60):
            gray = offset + ramp[None, :, None] * (n / 60) + ramp[:36, None, None] * (1 - n / 60)
            color = gray * np.array([1.0, 0.8, 0.6]) + noise.uniform(0, 20, (36, 40, 3))
            Image.fromarray(color.clip(0, 255).astype(np.uint8)).save(folder / name / f"{n}.png")
    return folder


@pytest.fixture(scope="session")
def data(small: list[str], pictures: Path) -> dict[str, list[str]]:
    """Overrides for a small amount of every dataset that needs no file of others."""
    return {
        "mnist": small,
        "sprites": ["dataset=sprites", *SPRITES, "dataset.validation=20", "batch_size=32"],
        "sprites_rgb": ["dataset=sprites_rgb", *SPRITES, "dataset.validation=20", "batch_size=32"],
        "image_folder": [
            "dataset=image_folder",
            f"dataset.source.root={pictures}",
            "dataset.source.size=32",
            "batch_size=32",
        ],
    }


def composed(*overrides: str) -> Config:
    """The checked config of `vaex train OVERRIDES`. Options are composed once in a session, since Hydra is slow."""
    options = [override for override in overrides if (config_dir() / override.partition("=")[0]).is_dir()]
    config = copy.deepcopy(_with_options(*options))
    values = parse_overrides([override for override in overrides if override not in options])
    ConfigLoaderImpl._apply_overrides_to_config(values, config)
    return check(config)


@cache
def _with_options(*options: str) -> DictConfig:
    composed = compose(create_hydra(), options)
    return OmegaConf.masked_copy(composed, [key for key in composed if key != "hydra"])


@dataclass
class Ran:
    code: int
    out: str
    error: str

    def one_line(self) -> str:
        """What it said on failing, which must be one line and no traceback."""
        assert self.code != 0, self.out
        lines = self.error.strip().splitlines()
        assert len(lines) == 1, self.error
        return lines[0]


@pytest.fixture
def vaex(tmp_path: Path) -> Callable[..., Ran]:
    """The real command in a process of its own, in an empty folder."""

    def run(*arguments: str, cwd: Path = tmp_path, **environment: str) -> Ran:
        done = subprocess.run(
            [sys.executable, "-m", "vaex", *arguments],
            capture_output=True,
            text=True,
            cwd=cwd,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            timeout=600,
        )
        return Ran(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """The real command in this process, which spares importing torch. Gives the run's folder."""
    from vaex import cli

    def run(*arguments: str, folder: str | None = "run") -> Path:
        monkeypatch.chdir(tmp_path)
        path = tmp_path / (folder or "")
        resumes = any(argument.startswith("resume=") for argument in arguments)
        cli.run("train", [*arguments, *([] if resumes or not folder else [f"hydra.run.dir={path}"])])
        return path

    return run


def fork(command: Callable[[], object], output: Path) -> int:
    """Call `command` in a process of its own, which spares importing torch. Its output goes to a file.

    Returns:
        The number of the process. Its exit code is 0, or 1 after an error, or that of a SystemExit.
    """
    child = os.fork()
    if child:
        return child
    code: object = 1
    with output.open("w", buffering=1) as file:
        sys.stdout = sys.stderr = file
        try:
            command()
            code = 0
        except SystemExit as stop:
            code = stop.code
        except BaseException:
            traceback.print_exc()
    os._exit(code if isinstance(code, int) else 1)


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The one line with which a command ends."""

    def ends(command: Callable[..., object], *arguments: object, **options: object) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            command(*arguments, **options)
        error = capsys.readouterr().err.strip()
        assert stop.value.code == 1 and "\n" not in error
        return error.removeprefix("vaex: ")

    return ends


def results(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return content


def metrics(folder: Path, key: str) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line[key] for line in lines if key in line]


# Training: runs that several tests share.

# 1,000 training images in batches of 32: epochs end at steps 32 and 63.
TWO_EPOCHS = ["epochs=2", "figures.every=1", "figures.kinds=[samples]", "figures.images=4", "trainer.log_every=5"]


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A run of `vaex train` with these overrides, trained once for all tests. A test that changes it makes a copy."""
    from vaex import cli

    runs: dict[tuple[str, ...], Path] = {}

    def run(*overrides: str) -> Path:
        if overrides not in runs:
            runs[overrides] = tmp_path_factory.mktemp("trained") / "run"
            with pytest.MonkeyPatch.context() as patched:
                patched.chdir(runs[overrides].parent)
                cli.run("train", [*overrides, f"hydra.run.dir={runs[overrides]}"])
        return runs[overrides]

    return run
