"""Creating the object that a config describes: its `_target_`, called with its other values."""

import inspect
import re
import typing
from collections.abc import Sequence
from types import UnionType
from typing import Any, TypeVar, Union

from vaex.config.schema import Group
from vaex.config.targets import find
from vaex.errors import UserError


def create(key: str, group: Group, **given: Any) -> Any:
    """Call what the group's `_target_` names (see vaex.config.targets) with its other values and `given`.

    A value that has a `_target_` itself, at any depth, is made first.

    Raises:
        UserError: the target may not be named, or can't be called so, or it raised a ValueError or an OSError, which is
            the config's fault. Anything else is its own and keeps its traceback, with the key as a note.
    """
    if "_target_" not in group:
        raise UserError(f"{key}._target_: is missing; it names the class or function to build")
    name = group["_target_"]
    target = find(f"{key}._target_", name)
    arguments = {}
    for argument, value in group.items():
        if argument in ("_args_", "_convert_", "_partial_", "_recursive_"):
            raise UserError(f"{key}.{argument}: vaex has no use for it; give {name} its arguments by their names")
        if argument in given:
            raise UserError(f"{key}.{argument}: is given by vaex itself; leave it out")
        if argument != "_target_":
            arguments[argument] = _made(f"{key}.{argument}", value)
    try:
        inspect.signature(target).bind(**arguments, **given)
    except TypeError as error:
        raise UserError(f"{key}: {name} can't be called so: {error}") from error
    except ValueError:  # some classes written in C have no signature
        pass
    _check_types(key, target, arguments)
    try:
        return target(**arguments, **given)
    except (ValueError, OSError) as error:
        message = " ".join(str(error).split()) or type(error).__name__
        where = "" if name.startswith("vaex.") else f" ({name} raised it; VAEX_DEBUG=1 shows where)"
        prefix = "" if message.startswith(key.split(".")[0]) else f"{key}: "
        raise UserError(prefix + message + where) from error
    except Exception as error:
        if isinstance(error, MemoryError) or re.search("can't allocate memory|overflowed", str(error)):
            raise UserError(f"{key}: out of memory for its weights; lower its sizes, or latent_dim") from error
        error.add_note(f"vaex: {key}._target_={name} led there")
        raise


Kind = TypeVar("Kind")


def of_kind(kind: type[Kind], key: str, made: object) -> Kind:
    """What was made for a key. Raises UserError when it is of another kind than vaex needs there."""
    if not isinstance(made, kind):
        raise UserError(f"{key}._target_: makes a {type(made).__name__}, and must make a {kind.__name__}")
    return made


def _made(key: str, value: Any) -> Any:
    if isinstance(value, dict):
        return create(key, value) if "_target_" in value else {k: _made(f"{key}.{k}", v) for k, v in value.items()}
    if isinstance(value, list):
        return [_made(f"{key}[{n}]", item) for n, item in enumerate(value)]
    return value


def _check_types(key: str, target: Any, arguments: dict[str, Any]) -> None:
    try:
        hints = typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except (NameError, TypeError):
        return
    for name in sorted(set(arguments) & set(hints)):
        if not _matches(arguments[name], hints[name]):
            raise UserError(f"{key}.{name}={arguments[name]}: must be {_in_words(hints[name])}")


def _in_words(hint: Any) -> str:
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) in (Sequence, list, tuple):
        return f"a list {'[a, b]' if _is_pair(hint) else '[a, …]'}, each {_in_words(arguments[0])}"
    names = [option.__name__ for option in arguments or (hint,) if option in (int, float, bool, str)]
    return (
        f"of type {' or '.join(names)}" if names else "a group with a _target_" if inspect.isclass(hint) else str(hint)
    )


def _is_pair(hint: Any) -> bool:
    arguments = typing.get_args(hint)
    return typing.get_origin(hint) is tuple and len(arguments) == 2 and arguments[1] is not ...


def _matches(value: object, hint: Any) -> bool:
    """Whether a value out of YAML is of a type; types that YAML doesn't know always match."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, UnionType):
        return any(_matches(value, option) for option in arguments)
    if origin in (Sequence, list, tuple):
        if not isinstance(value, list | tuple) or (_is_pair(hint) and len(value) != 2):
            return False
        return all(_matches(item, arguments[0]) for item in value)
    if hint is type(None):
        return value is None
    if hint is float:
        return isinstance(value, float | int) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63
    if hint in (bool, str):
        return isinstance(value, hint)
    if inspect.isclass(hint) and origin is None and isinstance(value, str | int | float | bool | list | dict | None):
        return isinstance(value, hint)
    return True
