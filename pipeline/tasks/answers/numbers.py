"""Read the numbers of a place: the corners of a box, a point, a box in space."""

import re
from typing import Any

from pipeline.tasks.answers.limits import check_deadline

_NUMBER = re.compile(r"[+-]?\d{1,15}(?:\.\d{0,15})?", re.ASCII)
_MAX_CHARS = 256
_BRACKETS = re.compile(r"[\[(]([\d\s.,;+-]{1,80})[\])]", re.ASCII)
_BULLET = re.compile(r"(?:[-*•|]|\d{1,3}[.)])\s+", re.ASCII)
_MARKS = " *_`'\"|,.;:-–—："


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


def lines_with_numbers(text: str, count: int) -> list[tuple[str, list[float]]]:
    """Read lines such as ``- cat: [1, 2, 3, 4]`` and ``| cat | (1, 2), (3, 4) |``.

    Returns the label and the numbers of each line that has exactly ``count`` numbers in brackets
    and a label. A sentence with numbers in it is no such line.
    """
    found = []
    for line in text.splitlines():
        if "[" not in line and "(" not in line:
            continue
        check_deadline()
        line = " ".join(line.split())
        bullet = _BULLET.match(line)
        rest = line[bullet.end() :] if bullet else line
        groups = list(_BRACKETS.finditer(rest))
        numbers = [_from_text(part) for g in groups for part in re.split(r"[\s,;]+", g[1]) if part]
        if len(numbers) != count or None in numbers:
            continue
        before, after = rest[: groups[0].start()], rest[groups[-1].end() :]
        label = (before.strip(_MARKS) or after.strip(_MARKS)).strip()
        is_entry = bullet or not before.strip() or before.rstrip()[-1] in ":-–—："
        if label and is_entry and not (before.strip(_MARKS) and after.strip(_MARKS)):
            found.append((label, [number for number in numbers if number is not None]))
    return found


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
