"""Read the times in an answer, on the clock of the timestamps in the prompt, in seconds."""

import math
import re
from bisect import bisect_left
from collections import Counter
from typing import Any

from schemas.task import View

# 12.5 | 12.5 seconds | <12.5 seconds> | 00:23.00 | 1:02:03.5; a decimal comma as in subtitles. With
# single spaces, as `single_spaces` leaves them, a search takes time linear in the text.
TIME = (
    r"<? ?(?:(?:(\d{1,9}):)?(\d{1,9}):)?(\d{1,9}(?:[.,]\d{0,9})?)"
    r" ?(?:seconds?|secs?|s)? ?>?"
)
_ROUNDING_SECONDS = 0.051  # times in prompts and answers have one decimal
_MAX_CHARS = 64  # a longer text is no time
_SPACES = re.compile(r"[ \t\n\r\f\v]+")
_TIME_PATTERN = re.compile(TIME, re.ASCII | re.IGNORECASE)
_INTERVAL_PATTERN = re.compile(
    rf"\[? ?{TIME} ?(?:-++>?|–|—|→|~|,|to) ?{TIME} ?\]?", re.ASCII | re.IGNORECASE
)


def read_seconds(value: Any) -> float | None:
    """Return the time in ``value`` in seconds; None if it is not a time.

    Accepts numbers, ``"12.5"``, ``"12.5 seconds"``, ``"00:23.00"`` (mm:ss.ff) and ``"1:02:03.5"``
    (h:mm:ss). Negative numbers are accepted; `clamp_seconds` corrects them.
    """
    if isinstance(value, str) and len(value) <= _MAX_CHARS:
        match = _TIME_PATTERN.fullmatch(single_spaces(value.strip()))
        return _seconds(*match.groups()) if match else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < 1e15 else None  # NaN compares false


def read_interval(value: Any) -> tuple[float, float] | None:
    """Return the two times in seconds of ``"00:23.00 - 00:48.00"`` or ``[23.0, 48.0]``."""
    if isinstance(value, list) and len(value) == 2:
        start, end = read_seconds(value[0]), read_seconds(value[1])
        return None if start is None or end is None else (start, end)
    if not isinstance(value, str) or len(value) > _MAX_CHARS:
        return None
    match = _INTERVAL_PATTERN.fullmatch(single_spaces(value.strip()))
    if not match:
        return None
    return _seconds(*match.groups()[:3]), _seconds(*match.groups()[3:])


def single_spaces(text: str) -> str:
    """Return the text with one space for each run of white space."""
    return _SPACES.sub(" ", text)


def clamp_seconds(seconds: float, view: View, notes: Counter[str]) -> float:
    """Clamp a time to the unit; add a note if the change is more than rounding."""
    first, last = view.start_seconds, view.end_seconds
    if first is None:
        first = view.pts_seconds[0] if view.pts_seconds else 0.0
    if last is None:
        last = view.pts_seconds[-1] if view.pts_seconds else math.inf
    clamped = max(first, min(seconds, last))
    if abs(clamped - seconds) > _ROUNDING_SECONDS:
        notes["time clamped to the unit"] += 1
    return clamped


def nearest_pts_seconds(seconds: float, view: View) -> float | None:
    """Return the PTS of the sampled frame nearest to ``seconds``; of two equally near the first."""
    after = bisect_left(view.pts_seconds, seconds)
    near = view.pts_seconds[max(after - 1, 0) : after + 1]
    return min(near, key=lambda pts: abs(pts - seconds), default=None)


def _seconds(hours: str | None, minutes: str | None, seconds: str) -> float:
    whole = int(hours or 0) * 3600 + int(minutes or 0) * 60
    return whole + float(seconds.replace(",", "."))
