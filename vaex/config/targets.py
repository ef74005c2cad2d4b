"""What a `_target_` may name: a config that comes from somebody else must run no code but a model's own.

1. It may name what a `_target_` in vaex's own conf names, or in a folder that this command was given by --config-dir or
   hydra.searchpath.
2. It may name a class derived from torch.nn.Module, torch.optim.Optimizer or a class of vaex's that is found in vaex,
   torch.nn or torch.optim, in an installed package that requires vaex, or in a folder on PYTHONPATH.
3. Anything else is refused, before it is imported where its place tells, unless VAEX_TRUST=package,… names its package.

Nothing of Python's own library is ever a target.
"""

import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
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

_given: ContextVar[tuple[Path, ...]] = ContextVar("_given", default=())  # folders of YAML files


@contextmanager
def trusting(folders: Iterable[Path]) -> Iterator[None]:
    """While this lasts, a `_target_` may name what those in the YAML files of these folders do."""
    before = _given.set(tuple(folders))
    try:
        yield
    finally:
        _given.reset(before)


def config_folders(sources: Iterable[ConfigSourceInfo]) -> Iterator[Path]:
    """The folders that a command's config came from, by Hydra's own account of them."""
    for source in sources:
        if source.schema == "file":
            yield Path(source.path)
        elif source.schema == "pkg" and source.provider != "hydra":
            yield Path(str(files(source.path)))


def find(key: str, name: object) -> Callable[..., Any]:
    """What the `_target_` at `key` names, imported.

    Raises:
        UserError: it may not be named, or there is no such thing. An error in the module itself stays what it is.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)+", name):
        raise UserError(f"{key}={name}: must be the dotted name of a class or function: package.module.Class")
    package = name.partition(".")[0]
    pythons_own = f"{key}={name}: is of Python's own library, which makes no part of a run; name a package's class"
    if package in sys.stdlib_module_names or "__" in name:
        raise UserError(pythons_own)
    named = name in _vaex_names() or any(name in _names_in(folder) for folder in _given.get())
    trusted = _is_trusted(name)
    if not (named or trusted):
        _check_place(key, name)
    target = _imported(key, name)
    if not callable(target):
        raise UserError(f"{key}={name}: is a {type(target).__name__}, not a class or function")
    home = str(target.__module__) if inspect.isclass(target) or inspect.isroutine(target) else ""
    if home.partition(".")[0] in sys.stdlib_module_names:  # mypackage.os.system
        raise UserError(pythons_own)
    if not (named or trusted and _is_trusted(f"{home}.") or _is_a_part(target)):
        raise UserError(_refusal(key, name))
    return target


def _refusal(key: str, name: str) -> str:
    package = name.partition(".")[0]
    remedy = "" if package in ("vaex", "torch") else f"; if you trust it, set VAEX_TRUST={package}"
    return (
        f"{key}={name}: not run, because it is neither named by vaex's configs or a --config-dir of this command, nor "
        f"a class for vaex derived from torch.nn.Module, torch.optim.Optimizer or vaex's own{remedy}"
    )


@cache
def _vaex_names() -> frozenset[str]:
    return frozenset(_names_in(config_dir()))


def _names_in(folder: Path) -> set[str]:
    """Every `_target_` in a folder's YAML files but those of plugins, which Hydra makes and no run is made of."""
    files = (path for path in folder.rglob("*.yaml") if path.relative_to(folder).parts[0] != "hydra")
    lines = (line.partition("#")[0] for path in files for line in path.read_text().splitlines())
    return {name for line in lines for name in re.findall(r"\b_target_['\"]?\s*:\s*['\"]?([\w.]+)", line)}


def _is_trusted(name: str) -> bool:
    packages = (package.strip() for package in os.environ.get("VAEX_TRUST", "").split(","))
    return any(name.startswith(f"{package}.") for package in packages if package)


def _is_a_part(target: object) -> bool:
    """Whether it is a class of a kind that runs are made of."""
    return inspect.isclass(target) and any(
        base in (torch.nn.Module, torch.optim.Optimizer) or base.__module__.startswith("vaex.")
        for base in target.__mro__[1:]
    )


def _check_place(key: str, name: str) -> None:
    """Raises UserError where code for vaex can't be, since to import a module is to run it."""
    package = name.partition(".")[0]
    if package == "vaex" or name.startswith(("torch.nn.", "torch.optim.")):
        return
    spec = find_spec(package)
    if spec is None:
        raise UserError(_no_module(key, name, package))
    place = Path(next(iter(spec.submodule_search_locations or ()), spec.origin or "")).parent.resolve()
    if {"site-packages", "dist-packages"} & set(place.parts):
        needs = [need for found in packages_distributions().get(package, []) for need in requires(found) or []]
        if not any(re.match(r"vaex[-_.]autoencoders(?![-\w.])", need, re.IGNORECASE) for need in needs):
            raise UserError(_refusal(key, name))
    elif place == Path.cwd() and package not in sys.modules and place not in (Path(p).resolve() for p in sys.path[1:]):
        raise UserError(
            f"{key}={name}: not run, because {package} is there only by being in the current folder; if you trust it, "
            f"set PYTHONPATH={place}"
        )


def _imported(key: str, name: str) -> object:
    """An attribute, or a module where there is none, part by part."""
    path, *parts = name.split(".")
    found = _module(key, name, path)
    for part in parts:
        path = f"{path}.{part}"
        if hasattr(found, part):
            found = getattr(found, part)
        elif hasattr(found, "__path__"):
            found = _module(key, name, path)
        else:
            raise UserError(f"{key}={name}: {path.rpartition('.')[0]} has no {part}")
    return found


def _module(key: str, name: str, path: str) -> Any:
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name == path:
            raise UserError(_no_module(key, name, path)) from error
        error.add_note(f"vaex: {key}={name} led there")  # a module that it needs itself
        raise
    except Exception as error:
        error.add_note(f"vaex: {key}={name} led there")
        raise


def _no_module(key: str, name: str, module: str) -> str:
    return f"{key}={name}: there is no {module} here; correct the name, install it, or put its folder on PYTHONPATH"
