"""Repair a piece of JSON that a strict decoder refused, with the library ``json_repair``.

Two frequent mistakes are corrected first, because the library would silently lose data. The result
also shows whether the piece seems to be cut at its end.
"""

import re
from typing import Any

import json_repair

# In squared characters: a few seconds, or 1,000 broken elements of 200 characters.
_MAX_COST = 50_000_000
_COST_PER_PIECE = 10_000
# Reaches the end of the text if the closing quote is missing, so that no text is scanned twice.
_STRING = re.compile(r'"(?:[^"\\]|\\.?)*("|\Z)', re.DOTALL)
# A time without quotes, or a string (which may hold times). json_repair would read
# `"start": 00:23.00` as 0.
_BARE_CLOCK = re.compile(
    r"([:,\[]\s*)(\d+:\d\d(?::\d\d)?(?:\.\d+)?)(?=\s*[,}\]])|" + _STRING.pattern, re.DOTALL
)
# A text with unescaped quotes, as in `"text_content": "5" pipe"}`, whose end json_repair guesses.
_BARE_QUOTES = re.compile(r'(:\s*")([^\\]*?)("\s*(?=\}|,\s*"[^"\n]{1,64}"\s*:))')


class JsonRepairer:
    """Repairs pieces of one answer within a budget of time.

    The library's time is quadratic in the length: many minutes for the text of a looping model.
    """

    def __init__(self) -> None:
        self._budget = _MAX_COST

    def repair(self, opener: str, text: str) -> tuple[list[Any], bool]:
        """Repair ``text``, which follows the ``opener`` ("[" or "{") of a list or object.

        Returns the items of the list or the (key, value) pairs of the object, none if it cannot be
        repaired; and whether the last of them seems to be cut.

        Raises:
            RepairTooLongError: the budget is spent.
        """
        text = opener + text
        self._budget -= len(text) ** 2 + _COST_PER_PIECE
        if self._budget < 0:
            raise RepairTooLongError(f"{len(text)} characters are too many to repair")
        structure = _STRING.sub(_drop_if_closed, text)
        depth = len(re.findall(r"[\[{]", structure)) - len(re.findall(r"[\]}]", structure))
        clean = _BARE_QUOTES.sub(_escape_quotes, _BARE_CLOCK.sub(_quote_clock, text))
        try:
            repaired = json_repair.loads(clean, skip_json_loads=True)
        except Exception:  # a third party's parser on hostile text: keep the children read before
            return [], False
        is_list = opener == "["
        if is_list:
            children = repaired if isinstance(repaired, list) else []
        else:
            objects = repaired if isinstance(repaired, list) else [repaired]
            children = [pair for item in objects if isinstance(item, dict) for pair in item.items()]
        closed = ("]", "}") if is_list else ("]", "}", '"', "'")
        return children, depth > 1 or (depth == 1 and not text.endswith(closed))


class RepairTooLongError(Exception):
    """The repair would take too long."""


def _drop_if_closed(string: re.Match[str]) -> str:
    return "" if string[1] else string[0]


def _quote_clock(match: re.Match[str]) -> str:
    return f'{match[1]}"{match[2]}"' if match[2] else match[0]


def _escape_quotes(match: re.Match[str]) -> str:
    if re.search(r'"\s*[":]', match[2]):  # rather a missing comma: two texts, or a text and a key
        return match[0]
    return match[1] + match[2].replace('"', '\\"') + match[3]
