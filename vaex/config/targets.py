"""Which classes and functions a `_target_` may name, so that a config from somebody else runs no code but a model's.

1. Allowed: every `_target_` in vaex's own conf, or in a folder given to this command by --config-dir or
   hydra.searchpath.
2. Allowed: classes derived from torch.nn.Module, torch.optim.Optimizer or a class of vaex, if they are in vaex, in
   torch.nn or torch.optim, in an installed package that requires vaex, or in a folder on PYTHONPATH.
3. Everything else is refused, before its module is imported if the module's location already rules it out, unless
   VAEX_TRUST=package,… names its package.

Python's own library is always refused.
"""

import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib.metadata import packages_distributions, requires
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from hydra.conf import ConfigSourceInfo

from vaex.config.schema import config_dir
from vaex.errors import UserError

DOTTED_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+")

_trusted_folders: ContextVar[tuple[Path, ...]] = ContextVar("_trusted_folders", default=())  # of YAML files


@contextmanager
def trust(folders: Iterable[Path]) -> Iterator[None]:
    """Within this context a `_target_` may also name what the YAML files in these folders name."""
    before = _trusted_folders.set(tuple(folders))
    try:
        yield
    finally:
        _trusted_folders.reset(before)


def config_folders(sources: Iterable[ConfigSourceInfo]) -> Iterator[Path]:
    """The folders from which Hydra composed this command's config."""
    for source in sources:
        if source.schema == "file":
            yield Path(source.path)
        elif source.schema == "pkg" and source.provider != "hydra":
            yield Path(str(files(source.path)))


def find(key: str, name: object) -> Callable[..., Any]:
    """Import the class or function that the `_target_` at `key` names.

    Raises:
        UserError: the target is not allowed, or does not exist. An error inside the imported module propagates.
    """
    if not isinstance(name, str) or not DOTTED_NAME.fullmatch(name):
        raise UserError(f"{key}={name}: must be the dotted name of a class or function: package.module.Class")
    standard_library = f"{key}={name}: is part of Python's own library; name a class of a package"
    if _package(name) in sys.stdlib_module_names or "__" in name:
        raise UserError(standard_library)
    in_config = name in _names_in_vaex() or any(name in _names_in(folder) for folder in _trusted_folders.get())
    trusted = _is_trusted(name)
    if not (in_config or trusted):
        _check_location(key, name)
    target = _import(key, name)
    if not callable(target):
        raise UserError(f"{key}={name}: is a {type(target).__name__}, not a class or function")
    # The module that defines the target: mypackage.os.system is defined in os.
    home = str(target.__module__) if inspect.isclass(target) or inspect.isroutine(target) else ""
    if _package(home) in sys.stdlib_module_names:
        raise UserError(standard_library)
    if not (in_config or trusted and _is_trusted(f"{home}.") or _is_component(target)):
        raise UserError(_refusal(key, name))
    return target


def import_trusted(key: str, name: str) -> object:
    """Import an object that the user names on the command line, and thereby trusts.

    Raises:
        UserError: the object does not exist. An error inside the imported module propagates.
    """
    if not DOTTED_NAME.fullmatch(name):
        raise UserError(f"{key}={name}: must be a dotted name: package.module.NAME")
    return _import(key, name)


def _package(name: str) -> str:
    return name.partition(".")[0]


def _refusal(key: str, name: str) -> str:
    package = _package(name)
    remedy = "" if package in ("vaex", "torch") else f"; if you trust it, set VAEX_TRUST={package}"
    return (
        f"{key}={name}: not run, because neither vaex's configs nor a --config-dir of this command name it, and it is "
        f"not a class for vaex derived from torch.nn.Module, torch.optim.Optimizer or a class of vaex{remedy}"
    )


@cache
def _names_in_vaex() -> frozenset[str]:
    return frozenset(_names_in(config_dir()))


def _names_in(folder: Path) -> set[str]:
    """Every `_target_` in a folder's YAML files, except those of Hydra's plugins, which are no part of a run."""
    paths = (path for path in folder.rglob("*.yaml") if path.relative_to(folder).parts[0] != "hydra")
    lines = (line.partition("#")[0] for path in paths for line in path.read_text(encoding="utf-8").splitlines())
    return {name for line in lines for name in re.findall(r"\b_target_['\"]?\s*:\s*['\"]?([\w.]+)", line)}


def _is_trusted(name: str) -> bool:
    packages = (package.strip() for package in os.environ.get("VAEX_TRUST", "").split(","))
    return any(name.startswith(f"{package}.") for package in packages if package)


def _is_component(target: object) -> bool:
    """Whether the target is a class derived from torch.nn.Module, torch.optim.Optimizer or a class of vaex."""
    return inspect.isclass(target) and any(
        base in (torch.nn.Module, torch.optim.Optimizer) or base.__module__.startswith("vaex.")
        for base in target.__mro__[1:]
    )


def _check_location(key: str, name: str) -> None:
    """Raises UserError if the package lies where no code for vaex belongs, because importing a module runs it."""
    package = _package(name)
    if package == "vaex" or name.startswith(("torch.nn.", "torch.optim.")):
        return
    spec = find_spec(package)
    if spec is None:
        raise UserError(_no_module(key, name, package))
    folder = Path(next(iter(spec.submodule_search_locations or ()), spec.origin or "")).parent.resolve()
    if {"site-packages", "dist-packages"} & set(folder.parts):
        distributions = _distributions(tuple(sys.path)).get(package, [])
        requirements = [line for distribution in distributions for line in requires(distribution) or []]
        if not any(re.match(r"vaex[-_.]autoencoders(?![-\w.])", line, re.IGNORECASE) for line in requirements):
            raise UserError(_refusal(key, name))
    elif (
        folder == Path.cwd() and package not in sys.modules and folder not in [Path(p).resolve() for p in sys.path[1:]]
    ):
        raise UserError(
            f"{key}={name}: not run, because {package} was found only in the current folder; if you trust it, "
            f"set PYTHONPATH={folder}"
        )


@cache
def _distributions(path: tuple[str, ...]) -> Mapping[str, list[str]]:
    """The installed distributions that provide each package on `path`, cached because the search takes a second."""
    return packages_distributions()


def _import(key: str, name: str) -> object:
    """Import part by part: each is an attribute of the object before it, or else a module inside that package."""
    path, *parts = name.split(".")
    target = _module(key, name, path)
    for part in parts:
        parent, path = path, f"{path}.{part}"
        if hasattr(target, part):
            target = getattr(target, part)
        elif hasattr(target, "__path__"):
            target = _module(key, name, path)
        else:
            raise UserError(f"{key}={name}: {parent} has no {part}")
    return target


def _module(key: str, name: str, path: str) -> Any:
    try:
        return importlib.import_module(path)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name == path:
            raise UserError(_no_module(key, name, path)) from error
        error.add_note(f"vaex: raised while importing {key}={name}")  # for instance a module that it needs itself
        raise


def _no_module(key: str, name: str, module: str) -> str:
    return (
        f"{key}={name}: there is no {module} on Python's path; correct the name, install it, or put its folder on "
        "PYTHONPATH, as in PYTHONPATH=. for the current one"
    )
