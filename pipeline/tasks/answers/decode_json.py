"""Decode JSON strictly, and repair pieces that a strict decoder refused with ``json_repair``.

Before a repair two frequent mistakes are corrected, because the library would silently lose data.
The result also shows whether the piece seems to be cut at its end.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Collection
from typing import Any

import json_repair

from pipeline.tasks.answers.limits import (
    CHARS_OF_A_STEP,
    MAX_REPAIR_CHARS,
    MAX_REPAIR_STEPS,
    StepLimit,
    StepLimitError,
)

_MAX_DIGITS = 4300
"""Python writes no longer integer."""

# Reaches the end of the text if the closing quote is missing, so that no text is scanned twice.
_STRING = r'"[^"\\]*+(?:\\.?[^"\\]*+)*+("|\Z)'
_ANY_STRING = re.compile(_STRING, re.DOTALL)
# A time without quotes, or a string (which may hold times). json_repair would read
# `"start": 00:23.00` as 0.
_BARE_CLOCK = re.compile(
    r"([:,\[]\s*+)(\d++:\d\d(?::\d\d)?(?:\.\d++)?)(?=\s*+[,}\]])|" + _STRING, re.DOTALL
)
# A text with unescaped quotes, as in `"text_content": "5" pipe"}`, whose end json_repair guesses:
# it ends at the first quote before the object's end or another key.
_TEXT_BEGIN = re.compile(r':\s*+"')
_TEXT_END = re.compile(r'"\s*+(?=\}|,\s*+"[^"\n]{1,64}"\s*+:)')
_INNER_END = re.compile(r'"\s*+[":]')


class JsonObject(dict[str, Any]):
    """A JSON object that remembers repeated keys: events may share their times.

    pairs: all members in the order written. The dict has the last value of a repeated key.
    """

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.pairs = tuple(pairs)

    def split(self, keys: Collection[str], shared_keys: Collection[str]) -> list[dict[str, Any]]:
        """Return the objects that were written as one, where ``keys`` repeat.

        ``{"box": 1, "label": "a", "box": 2, "label": "b"}`` are two. Members that do not repeat
        belong to each, if their keys are in ``keys`` or ``shared_keys``: all members in all objects
        would be quadratic. If keys repeat differently often, nothing says what belongs together,
        and the object is returned as it is.
        """
        counts = Counter(key for key, _ in self.pairs if key in keys)
        repeated = {key for key, count in counts.items() if count > 1}
        if len({counts[key] for key in repeated}) != 1:
            return [self]
        kept = {*keys, *shared_keys} - repeated
        shared = {key: value for key, value in self.pairs if key in kept}
        found: list[dict[str, Any]] = [{}]
        for key, value in self.pairs:
            if key in repeated:
                if key in found[-1]:
                    found.append({})
                found[-1][key] = value
        return [{**shared, **part} for part in found]


class JsonDecoder:
    """Decodes and repairs the JSON of one answer, within one limit of steps.

    Objects become `JsonObject`. Numbers that no column holds become None: NaN, Infinity, 1e999,
    integers of over 4,300 digits.

    has_null_numbers: there were such numbers.
    """

    def __init__(self) -> None:
        self.has_null_numbers = False
        self._limit = StepLimit(MAX_REPAIR_STEPS)
        self._decoder = json.JSONDecoder(
            object_pairs_hook=JsonObject,
            parse_float=self._float,
            parse_int=self._int,
            parse_constant=self._null,
        )

    def decode(self, text: str) -> Any:
        """Return the value of a text that is JSON alone.

        Raises:
            ValueError, RecursionError: it is not.
        """
        return self._decoder.decode(text)

    def decode_at(self, text: str, at: int) -> tuple[Any, int]:
        """Return the value that begins at ``at``, and where it ends.

        Raises:
            json.JSONDecodeError, RecursionError: there is none.
            RepairTooLongError: too much was decoded in vain.
        """
        try:
            return self._decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            # An unterminated string is reported where it begins.
            end = len(text) if error.msg.startswith("Unterminated") else error.pos
            self._take((end - at) // CHARS_OF_A_STEP)
            raise
        except RecursionError:
            self._take((len(text) - at) // CHARS_OF_A_STEP)
            raise

    def repair(self, opener: str, text: str) -> tuple[list[Any], bool]:
        """Repair ``text``, which follows the ``opener`` ("[" or "{") of a list or object.

        Returns the items of the list or the (key, value) pairs of the object, none if it cannot be
        repaired; and whether the last of them seems to be cut.

        Raises:
            RepairTooLongError: the text is too long, or there are no steps left.
        """
        text = opener + text
        if len(text) > MAX_REPAIR_CHARS:
            raise RepairTooLongError(f"{len(text)} characters are too many to repair")
        structure = _ANY_STRING.sub(_drop_if_closed, text)
        depth = len(re.findall(r"[\[{]", structure)) - len(re.findall(r"[\]}]", structure))
        clean = _escape_quotes(_BARE_CLOCK.sub(_quote_clock, text))
        try:
            with self._limit:
                repaired = json_repair.loads(clean, skip_json_loads=True)
        except StepLimitError:
            raise RepairTooLongError("the answer has too many mistakes") from None
        except Exception:  # a third party's parser on hostile text: keep the children read before
            return [], False
        is_list = opener == "["
        if is_list:
            children = repaired if isinstance(repaired, list) else []
        else:
            objects = repaired if isinstance(repaired, list) else [repaired]
            children = [pair for item in objects if isinstance(item, dict) for pair in item.items()]
        closed = ("]", "}") if is_list else ("]", "}", '"', "'")
        is_cut = depth > 1 or (depth == 1 and not text.endswith(closed))
        return [self._as_decoded(child) for child in children], is_cut

    def _take(self, num_steps: int) -> None:
        try:
            self._limit.take(num_steps)
        except StepLimitError:
            raise RepairTooLongError("the answer has too many mistakes") from None

    def _as_decoded(self, value: Any) -> Any:
        """Convert what json_repair returns to what the strict decoder returns."""
        if isinstance(value, dict):
            return JsonObject([(key, self._as_decoded(item)) for key, item in value.items()])
        if isinstance(value, tuple):  # a (key, value) pair
            return tuple(self._as_decoded(item) for item in value)
        if isinstance(value, float) and not math.isfinite(value):
            self.has_null_numbers = True
            return None
        return [self._as_decoded(item) for item in value] if isinstance(value, list) else value

    def _float(self, digits: str) -> float | None:
        value = float(digits)
        if math.isfinite(value):
            return value
        self.has_null_numbers = True
        return None

    def _int(self, digits: str) -> int | None:
        if len(digits) <= _MAX_DIGITS:
            return int(digits)
        self.has_null_numbers = True
        return None

    def _null(self, number: str) -> None:
        self.has_null_numbers = True


class RepairTooLongError(Exception):
    """The repair would take too long."""


def _drop_if_closed(string: re.Match[str]) -> str:
    return "" if string[1] else string[0]


def _quote_clock(match: re.Match[str]) -> str:
    return f'{match[1]}"{match[2]}"' if match[2] else match[0]


def _escape_quotes(text: str) -> str:
    """Escape the quotes inside of texts without backslashes, in one pass over the text."""
    ends = [match.span() for match in _TEXT_END.finditer(text)]
    parts, done, number, backslash = [], 0, 0, text.find("\\")
    for begin in _TEXT_BEGIN.finditer(text):
        if begin.start() < done:
            continue
        first = begin.end()
        while number < len(ends) and ends[number][0] < first:
            number += 1
        if number == len(ends):
            break
        if 0 <= backslash < first:
            backslash = text.find("\\", first)
        end, after = ends[number]
        if 0 <= backslash < end:
            continue
        inner = text[first:end]
        if not _INNER_END.search(inner):  # else rather a missing comma: two texts, or a key
            inner = inner.replace('"', '\\"')
        parts += [text[done:first], inner, text[end:after]]
        done = after
    return "".join(parts) + text[done:]
