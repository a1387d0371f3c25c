"""Mend a piece of JSON that a strict decoder refused, with the kept library ``json_repair``.

Around the library: two mistakes of models in which it would lose data without a word, and whether
the piece just ends too early.
"""

import re
from typing import Any

import json_repair

# In characters squared: a few seconds, or 1,000 broken elements of 200 characters.
_MAX_COST = 50_000_000
_COST_PER_PIECE = 10_000
# Up to the end of the text where the closing quote is missing, so that no text is scanned twice.
_STRING = re.compile(r'"(?:[^"\\]|\\.?)*("|\Z)', re.DOTALL)
# A time without quotes, or a string (which may hold times). json_repair would read
# `"start": 00:23.00` as 0.
_BARE_CLOCK = re.compile(
    r"([:,\[]\s*)(\d+:\d\d(?::\d\d)?(?:\.\d+)?)(?=\s*[,}\]])|" + _STRING.pattern, re.DOTALL
)
# A text with bare quotes in it, as in `"text_content": "5" pipe"}`; json_repair guesses its end.
_BARE_QUOTES = re.compile(r'(:\s*")([^\\]*?)("\s*(?=\}|,\s*"[^"\n]{1,64}"\s*:))')


class Mender:
    """Mends pieces of one answer, until it has cost too much.

    The library takes time quadratic in the length: many minutes for what a looping model writes.
    """

    def __init__(self) -> None:
        self._budget = _MAX_COST

    def mend(self, opener: str, text: str) -> tuple[list[Any], bool]:
        """Mend ``text``, what follows the ``opener`` ("[" or "{") of a list or object.

        Returns:
            The items of the list or (key, value) pairs of the object, none if it cannot be mended;
            and whether the last of them seems to be cut.

        Raises:
            MendingTooLongError: if all pieces so far are too much.
        """
        text = opener + text
        self._budget -= len(text) ** 2 + _COST_PER_PIECE
        if self._budget < 0:
            raise MendingTooLongError(f"{len(text)} characters are too many to mend")
        structure = _STRING.sub(_drop_if_closed, text)
        depth = len(re.findall(r"[\[{]", structure)) - len(re.findall(r"[\]}]", structure))
        clean = _BARE_QUOTES.sub(_escape_quotes, _BARE_CLOCK.sub(_quote_clock, text))
        try:
            mended = json_repair.loads(clean, skip_json_loads=True)
        except Exception:  # a third party's parser on hostile text: keep what was read before
            return [], False
        is_list = opener == "["
        if is_list:
            children = mended if isinstance(mended, list) else []
        else:
            objects = mended if isinstance(mended, list) else [mended]
            children = [pair for item in objects if isinstance(item, dict) for pair in item.items()]
        closed = ("]", "}") if is_list else ("]", "}", '"', "'")
        return children, depth > 1 or (depth == 1 and not text.endswith(closed))


class MendingTooLongError(Exception):
    """Mending would take too long."""


def _drop_if_closed(string: re.Match[str]) -> str:
    return "" if string[1] else string[0]


def _quote_clock(match: re.Match[str]) -> str:
    return f'{match[1]}"{match[2]}"' if match[2] else match[0]


def _escape_quotes(match: re.Match[str]) -> str:
    if re.search(r'"\s*[":]', match[2]):  # rather a missing comma: two texts, or a text and a key
        return match[0]
    return match[1] + match[2].replace('"', '\\"') + match[3]
