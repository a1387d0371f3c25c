"""Slices of gold's rows: by properties of the media, columns of gold, or attributes."""

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jobs.evaluate.match import Pair
from jobs.results.read import attributes_of
from schemas.errors import UserError
from schemas.shown import redact_text

MEDIA_SLICES = ("media_type", "container", "codec", "resolution", "duration")
"""Slices by properties of the media; ``--by all`` means these five."""

NO_VALUE = "(none)"
"""The label of rows without a value, such as the codec of an image."""

_RESOLUTIONS = {
    "up to 240 px": 240,
    "up to 480 px": 480,
    "up to 720 px": 720,
    "up to 1080 px": 1080,
    "over 1080 px": math.inf,
}
_DURATIONS = {
    "up to 5 s": 5,
    "up to 30 s": 30,
    "up to 5 min": 300,
    "up to 1 h": 3600,
    "over 1 h": math.inf,
}
_BUCKETS: dict[str, dict[str, float]] = {"resolution": _RESOLUTIONS, "duration": _DURATIONS}


def labels_of(
    pairs: Sequence[Pair], by: Sequence[str], gold_columns: Sequence[str]
) -> dict[str, list[str]]:
    """Return slice -> the label of each pair.

    Raises:
        UserError: a slice is neither of the media, nor a column of gold, nor an attribute.
    """
    names = [name for given in by for name in (MEDIA_SLICES if given == "all" else (given,))]
    attributes = [attributes_of(pair.row or {}) for pair in pairs]
    further = [*gold_columns, *sorted({key for found in attributes for key in found})]
    for name in names:
        check_name("slice", name, list(dict.fromkeys(["all", *MEDIA_SLICES, *further])))
    return {
        name: [_label(name, pair, found) for pair, found in zip(pairs, attributes, strict=True)]
        for name in dict.fromkeys(names)
    }


def _label(name: str, pair: Pair, attributes: dict[str, Any]) -> str:
    media = (pair.row or {}).get("media") or {}
    if name == "resolution":
        return _bucket(min(media["width"], media["height"]) if media else None, _RESOLUTIONS)
    if name == "duration":
        return _bucket(media.get("duration_seconds"), _DURATIONS)
    if name in MEDIA_SLICES:
        value = media.get(name)
    else:
        value = pair.gold.columns.get(name, attributes.get(name))
    text = NO_VALUE if value is None or value == "" else redact_text(str(value))
    return text.encode("utf-8", "replace").decode()  # an attribute may hold a lone surrogate


def _bucket(value: float | None, buckets: Mapping[str, float]) -> str:
    if value is None:
        return NO_VALUE
    return next(name for name, maximum in buckets.items() if value <= maximum)


def sorted_labels(name: str, members: Mapping[str, Sequence[Pair]]) -> list[str]:
    """Sort buckets from small to large; other labels by number of rows, then by name."""
    if name in _BUCKETS:
        return [label for label in (*_BUCKETS[name], NO_VALUE) if label in members]
    return sorted(members, key=lambda label: (-len(members[label]), label))


def check_name(kind: str, name: str, known: Iterable[str]) -> None:
    """Check that ``name`` is known. kind: for the message, such as ``slice``.

    Raises:
        UserError: it is not.
    """
    names = list(known)
    if name in names:
        return
    near = difflib.get_close_matches(name, names, n=1)
    hint = f", did you mean {near[0]!r}?" if near else "."
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    raise UserError(f"unknown {kind} {name!r}{hint} Known are {', '.join(names[:20])}{more}")
