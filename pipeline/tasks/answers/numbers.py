"""Read the numbers of a place: the corners of a box, a point, a box in space."""

import re
from typing import Any

_NUMBER = re.compile(r"[+-]?\d{1,15}(?:\.\d{0,15})?", re.ASCII)
_MAX_CHARS = 256


def read_numbers(
    value: Any, *names: tuple[str, ...], what: str, words: str
) -> tuple[list[float], list[str]]:
    """Read as many finite numbers as there are names; also return what was repaired.

    Accepts a list, a list of lists, ``"1, 2, 3, 4"`` with or without brackets, and an object whose
    keys are one of ``names``.

    what, words: for messages, such as ``box`` and ``a box of four numbers``.

    Raises:
        ValueError: ``value`` is not that many numbers.
    """
    notes = []
    numbers = _items(value, names)
    if numbers is not value:
        notes.append(f"{what} was not a plain list")
    if any(isinstance(number, str) for number in numbers):
        notes.append("coordinates were text")
        numbers = [_from_text(item) if isinstance(item, str) else item for item in numbers]
    if len(numbers) != len(names[0]) or not all(_is_finite(number) for number in numbers):
        raise ValueError(f"not {words}")
    return numbers, notes


def are_lists(items: list[Any], length: int) -> bool:
    """Return whether all items are lists of this length."""
    return all(isinstance(item, list) and len(item) == length for item in items)


def _items(value: Any, names: tuple[tuple[str, ...], ...]) -> list[Any]:
    """Return the items of ``value`` that should be numbers, unchecked."""
    if isinstance(value, str) and len(value) <= _MAX_CHARS:
        return [part for part in re.split(r"[\s,;()\[\]]+", value) if part]
    if isinstance(value, dict):
        for keys in names:
            if all(key in value for key in keys):
                return [value[key] for key in keys]
    if isinstance(value, list) and value and all(isinstance(item, list) for item in value):
        return [number for item in value for number in item]
    return value if isinstance(value, list) else []


def _from_text(text: str) -> float | None:
    """Return the number in ``text``; None for "1_0" and "nan", which Python would accept."""
    if not _NUMBER.fullmatch(text.strip()):
        return None
    number = float(text)
    return int(number) if number.is_integer() else number


def _is_finite(number: Any) -> bool:
    if isinstance(number, bool) or not isinstance(number, int | float):
        return False
    return abs(number) < 1e15  # false for NaN; no OverflowError for huge ints
