"""OmegaConf's errors in one line each, with the key, the value and the remedy."""

import difflib
import re
from collections.abc import Collection

from omegaconf.errors import ConfigAttributeError, ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

TYPE_NAMES = {"Float": "float (a number)", "Integer": "int (a whole number)", "Boolean": "bool (true or false)"}

TEXT = "text, which is quoted twice: \"{key}='…'\""


def explain(error: OmegaConfBaseException, keys: Collection[str] = ()) -> str:
    """One line for an error of OmegaConf.

    Args:
        keys: dotted keys of the config, from which the closest is suggested for a key that does not exist.
    """
    key = str(error.full_key or error.key)
    message = (error.msg or str(error)).splitlines()[0]
    if isinstance(error, ConfigKeyError | ConfigAttributeError):
        return f"{key}: no such key{suggestion(key, keys)}"
    if isinstance(error, MissingMandatoryValue):
        return f"{key}: needs a value; give {key}=…"
    if match := re.fullmatch(r"Value '(.*)' of type '\w+' could not be converted to (\w+)", message):
        return f"{key}={match[1]}: must be of type {TYPE_NAMES.get(match[2], match[2])}"
    if match := re.fullmatch(r"Incompatible value 'None' for field of type '(\w+)'", message):
        return f"{key}=null: must be of type {match[1]}"
    if match := re.match(r"Value '(.*)' is not a valid bool", message):
        return f"{key}={match[1]}: must be of type {TYPE_NAMES['Boolean']}"
    if match := re.fullmatch(r"Cannot convert '(?:list|dict)' to string: '(.*)'", message):
        return f"{key}={match[1]}: must be {TEXT.format(key=key)}"
    if "is not a ListConfig" in message:
        return f"{key}: must be a list, as in {key}=[a,b]"
    return f"{key}: {message}; `vaex train --cfg job` prints all keys and values"


def suggestion(key: str, keys: Collection[str]) -> str:
    """`; did you mean …?` with the closest key, preferably one beside it; otherwise where all keys are listed."""
    parent, _, leaf = key.rpartition(".")
    siblings = {other.rpartition(".")[2]: other for other in keys if other.rpartition(".")[0] == parent}
    if close := difflib.get_close_matches(leaf, siblings, n=1):
        return f"; did you mean {siblings[close[0]]}?"
    if close := difflib.get_close_matches(key, list(keys), n=1):
        return f"; did you mean {close[0]}?"
    return "; `vaex train --cfg job` prints all keys"
