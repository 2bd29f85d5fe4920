"""The type of a configuration value: told by the key's default, read from a command's text."""

import ast
import math
from collections.abc import Callable

# Keys that take a name or a tuple of whole numbers; every other key keeps the type of its default.
NAME_OR_WIDTHS = frozenset({"elastic.width_bounds"})
# Tuples that may have any length but zero; every other tuple keeps the length of its default.
ANY_LENGTH = frozenset({"elastic.width_bounds", "heads.prototypes", "eval.neighbours"})

_TRUE, _FALSE = ("true", "yes", "1"), ("false", "no", "0")


def parse(key: str, text: str, default: object) -> object:
    """Read the text of `--config.key=text` as the type of the key's default.

    A tuple is written 1024,2048 or (1024, 2048). Raises ValueError, saying what was expected.
    """
    read = _parse_name_or_widths if key in NAME_OR_WIDTHS else _reader(default)
    try:
        return read(text.strip())
    except (ValueError, SyntaxError, TypeError):
        raise ValueError(f"config key {key} takes {describe(key, default)}, not {text!r}") from None


def problem(key: str, value: object, default: object) -> str | None:
    """Return the sentence for a value of another type than its key takes, or None if it fits.

    A whole number fits where a float is expected; floats must be finite.
    """
    if key in NAME_OR_WIDTHS:
        fits = isinstance(value, str) or _fits_tuple(key, value, (1,))
    elif isinstance(default, tuple):
        fits = _fits_tuple(key, value, default)
    else:
        fits = _fits(value, default)
    return None if fits else f"config key {key} takes {describe(key, default)}, not {value!r}"


def describe(key: str, default: object) -> str:
    """Say in words which values a key takes: "a whole number", "2 numbers, such as 0.9,0.999"."""
    if key in NAME_OR_WIDTHS:
        return "a name or widths, such as 192,256,384"
    if not isinstance(default, tuple):
        return _KINDS[type(default)]
    kind = "whole numbers" if isinstance(default[0], int) else "numbers"
    count = "" if key in ANY_LENGTH else f"{len(default)} "
    return f"{count}{kind}, such as {','.join(map(str, default))}"


_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a name"}


def _fits(value: object, default: object) -> bool:
    if isinstance(default, float):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and math.isfinite(value)
    return type(value) is type(default)


def _fits_tuple(key: str, value: object, default: tuple) -> bool:
    if not isinstance(value, tuple) or not value:
        return False
    right_length = key in ANY_LENGTH or len(value) == len(default)
    return right_length and all(_fits(item, default[0]) for item in value)


def _reader(default: object) -> Callable[[str], object]:
    if isinstance(default, bool):
        return _parse_bool
    if isinstance(default, tuple):
        kind = type(default[0])
        return lambda text: _parse_tuple(text, kind)
    return type(default)


def _parse_name_or_widths(text: str) -> str | tuple:
    return _parse_tuple(text, int) if text.startswith(tuple("0123456789([")) else text


def _parse_bool(text: str) -> bool:
    if text.lower() in _TRUE + _FALSE:
        return text.lower() in _TRUE
    raise ValueError(text)


def _parse_tuple(text: str, kind: type) -> tuple:
    # literal_eval reads numbers and brackets and runs nothing; "5" is a tuple of one.
    value = ast.literal_eval(text)
    items = tuple(value) if isinstance(value, tuple | list) else (value,)
    if any(isinstance(item, bool) or not isinstance(item, int | float) for item in items):
        raise ValueError(text)
    if kind is int and any(not isinstance(item, int) for item in items):
        raise ValueError(text)
    return tuple(kind(item) for item in items)
