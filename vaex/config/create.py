"""Creating the object that a part of the config describes: its `_target_` is called with its other values."""

import inspect
import re
import typing
from collections.abc import Sequence
from types import UnionType
from typing import Any, TypeVar, Union

import torch

from vaex.config.errors import TEXT
from vaex.config.schema import Group
from vaex.config.targets import find
from vaex.errors import UserError

T = TypeVar("T")


def create(key: str, group: Group, **available: Any) -> Any:
    """Call the class or function that the group's `_target_` names (see vaex.config.targets).

    Its arguments are the group's other values, and those values of `available` that it asks for by having a parameter
    of that name (or `**kwargs`). Values that have a `_target_` themselves, at any depth, are created first. They also
    get the available values that they have a parameter for, unless the config gives them another value for it.

    Raises:
        UserError: the target may not be named, or cannot be called with these arguments, or raised a ValueError or an
            OSError, which mean that the config is invalid. Other errors keep their traceback and get the key as a note.
    """
    for name in available:
        if name in group:
            raise UserError(f"{key}.{name}: vaex sets this argument; leave it out")
    return _create(key, group, available, at_top=True)


def asks_for(key: str, group: Group, name: str) -> bool:
    """Whether `create` would pass an available value of this name to the group's `_target_`."""
    return _asks_for(_target(key, group), name, at_top=True)


def instance_of(kind: type[T], key: str, value: object, defines: Sequence[str] = ()) -> T:
    """The value that was created for a key.

    Raises:
        UserError: it is not of the kind that vaex needs there, or leaves a name undefined that `kind` leaves to it.
    """
    name = type(value).__name__
    if not isinstance(value, kind):
        raise UserError(f"{key}._target_: creates a {name}, but must create a {kind.__name__}")
    if isinstance(value, torch.nn.Module) and "_modules" not in vars(value):
        raise UserError(f"{key}._target_: {name}.__init__ must call super().__init__() first")
    for attribute in defines:
        if getattr(value, attribute, None) is None or getattr(type(value), attribute, 0) is getattr(kind, attribute, 1):
            raise UserError(f"{key}._target_: {name} must define {attribute}, as {kind.__name__} says")
    return value


def _create(key: str, group: Group, available: dict[str, Any], at_top: bool = False) -> Any:
    target = _target(key, group)
    name = group["_target_"]
    arguments = {}
    for argument, value in group.items():
        if argument in ("_args_", "_convert_", "_partial_", "_recursive_"):
            raise UserError(f"{key}.{argument}: vaex does not support it; give {name} its arguments by name")
        if argument != "_target_":
            arguments[argument] = _value(f"{key}.{argument}", value, available)
    requested = {a: v for a, v in available.items() if a not in arguments and _asks_for(target, a, at_top)}
    try:
        inspect.signature(target).bind(**arguments, **requested)
    except TypeError as error:
        raise UserError(f"{key}: {name} cannot be called with these arguments: {error}") from error
    except ValueError:  # some classes written in C have no signature
        pass
    _check_types(key, target, arguments)
    try:
        return target(**arguments, **requested)
    except (ValueError, OSError) as error:
        message = " ".join(str(error).split()) or type(error).__name__
        source = "" if name.startswith("vaex.") else f" ({name} raised it; VAEX_DEBUG=1 shows where)"
        prefix = "" if message.startswith(key.split(".")[0]) else f"{key}: "
        raise UserError(prefix + message + source) from error
    except Exception as error:
        too_large = "can't allocate memory|[Oo]verflow|cannot be represented as a SymInt"
        if isinstance(error, MemoryError | OverflowError) or re.search(too_large, str(error)):
            raise UserError(f"{key}: out of memory for its weights; lower its sizes, or latent_dim") from error
        error.add_note(f"vaex: raised while creating {key}._target_={name}")
        raise


def _target(key: str, group: Group) -> Any:
    if "_target_" not in group:
        raise UserError(f"{key}._target_: is missing; it names the class or function to call")
    return find(f"{key}._target_", group["_target_"])


def _asks_for(target: Any, name: str, at_top: bool) -> bool:
    """Whether a target has a parameter of this name; at the top, `**kwargs` asks for every name."""
    try:
        parameters = inspect.signature(target).parameters
    except ValueError:
        return at_top
    return name in parameters or at_top and any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def _value(key: str, value: Any, available: dict[str, Any]) -> Any:
    if isinstance(value, dict):
        if "_target_" in value:
            return _create(key, value, available)
        return {name: _value(f"{key}.{name}", item, available) for name, item in value.items()}
    if isinstance(value, list):
        return [_value(f"{key}[{n}]", item, available) for n, item in enumerate(value)]
    return value


def _check_types(key: str, target: Any, arguments: dict[str, Any]) -> None:
    """Raises UserError for an argument that does not match the type hint of its parameter."""
    try:
        hints = typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except (NameError, TypeError):
        return
    for name in sorted(set(arguments) & set(hints)):
        value, hint = arguments[name], hints[name]
        if not _matches(value, hint):
            words = TEXT.format(key=f"{key}.{name}") if hint in (str, str | None) else _in_words(hint)
            raise UserError(f"{key}.{name}={value}: must be {words}")


def _in_words(hint: Any) -> str:
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) in (Sequence, list, tuple):
        return f"a list {'[a, b]' if _is_pair(hint) else '[a, …]'}, each {_in_words(arguments[0])}"
    names = [option.__name__ for option in arguments or (hint,) if option in (int, float, bool, str)]
    if names:
        return f"of type {' or '.join(names)}"
    return f"a group whose _target_ creates a {hint.__name__}" if inspect.isclass(hint) else str(hint)


def _is_pair(hint: Any) -> bool:
    arguments = typing.get_args(hint)
    return typing.get_origin(hint) is tuple and len(arguments) == 2 and arguments[1] is not ...


def _matches(value: object, hint: Any) -> bool:
    """Whether a value from YAML has a type; types that YAML does not have always match."""
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
    if hint is Any or origin is not None or not inspect.isclass(hint):
        return True
    return not isinstance(value, str | int | float | bool | list | dict | None) or isinstance(value, hint)
