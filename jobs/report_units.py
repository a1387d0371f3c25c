"""A row of the table as the report shows it: plain JSON values, nothing of it trusted.

Two forms: an entry of the index, by which the page searches, filters, sorts and draws its charts,
and the unit itself, which is loaded when it is looked at.
"""

import json
import math
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

from jobs.read_annotations import Row
from jobs.unit_scores import Scored
from pipeline.storage import shown
from schemas.errors import ErrorType

_SEARCHED_CHARS = 1000
_SHOWN_CHARS = 20_000
_ADVICE = {kind.value: kind.advice for kind in ErrorType}


def index_entry(row: Row, scored: Scored | None) -> dict[str, Any]:
    """What is known of a unit without looking at it.

    ``text`` is what a search looks through. Numbers are None where the row has none.
    """
    answers = row.get("responses") or []
    marks = list(_marks(row))
    seconds = row.get("timings") or {}
    sampling = row.get("sampling") or {}
    labels = sorted({mark["label"] for mark in marks if mark["kind"] not in ("text", "block")})
    words = [name_of(row), row["uri"], row.get("caption"), row.get("ocr"), row.get("chat")]
    words += [mark["label"] for mark in marks] + [event["caption"] for event in _events(row)]
    return {
        "name": name_of(row),
        "status": row["status"],
        "error": (row.get("error") or {}).get("type"),
        "type": (row.get("media") or {}).get("media_type"),
        "tasks": [[answer["task"], answer["status"]] for answer in answers],
        "labels": labels,
        "text": " ".join(filter(None, words))[:_SEARCHED_CHARS].lower(),
        "start": sampling.get("start_seconds"),
        "seconds": _length(sampling),
        "tokens_in": _sum(answers, "num_prompt_tokens"),
        "tokens_out": _sum(answers, "num_output_tokens"),
        "decode_seconds": seconds.get("decode_seconds"),
        "engine_seconds": seconds.get("engine_seconds"),
        "score": scored.score if scored else None,
        "scores": scored.by_task if scored else {},
    }


def unit_values(row: Row, parts: list[dict[str, Any]], scored: Scored | None) -> dict[str, Any]:
    """All that the page shows of a unit. parts: its pictures, as ``jobs.report`` makes them."""
    error = row.get("error")
    gold = scored.answers if scored else {}
    return {
        "id": row["unit_id"],
        "uri": row["uri"],
        "href": _href(row["uri"]),
        "parts": parts,
        "error": error and error | {"advice": _ADVICE.get(error["type"], "")},
        "caption": row.get("caption") or row.get("chat"),
        "texts": [[task, _cut(text)] for task, text in _texts(row)],
        "events": _events(row),
        "marks": list(_marks(row)),
        "answers": [
            answer | {key: _cut(answer.get(key)) for key in ("prompt", "raw_text", "reasoning")}
            for answer in row.get("responses") or []
        ],
        "facts": facts(row),
        "gold": {
            "texts": [[task, gold[task]] for task in ("caption", "ocr") if task in gold],
            "events": _events(gold),
            "marks": list(_marks(gold)),
        },
    }


def name_of(row: Row) -> str:
    """A short name: the last two parts of the uri's path, or the media_id of a conversation."""
    path = row["uri"].partition("?")[0].rstrip("/")
    return "/".join(path.split("/")[-2:]) or row["media_id"]


def facts(row: Row) -> list[tuple[str, str]]:
    """Facts about a unit's media, frames and run, as pairs to read."""
    media, sampling = row.get("media") or {}, row.get("sampling") or {}
    seconds = row.get("timings") or {}
    found: list[tuple[str, Any]] = [("unit", row["unit_id"]), ("media", row["media_id"])]
    if media:
        found.append(("file", _joined(media.get("container"), media.get("codec"))))
        found.append(("size", f"{media['width']} × {media['height']} px"))
        if media.get("rotation"):
            found.append(("rotation", f"{media['rotation']}°"))
        if media.get("duration_seconds") is not None:
            found.append(("duration", f"{media['duration_seconds']:.3f} s"))
        if media.get("average_fps"):
            cadence = ", variable" if media.get("is_vfr") else ""
            found.append(("frame rate", f"{media['average_fps']:.3f}{cadence}"))
    if sampling:
        if sampling.get("end_seconds") is not None:
            stretch = f"{sampling['start_seconds']:.3f} to {sampling['end_seconds']:.3f} s"
            found.append(("stretch", stretch))
        size = f"{sampling['resized_width']} × {sampling['resized_height']} px"
        found.append(("the model saw", f"{sampling['num_frames']} of {size}"))
        if times := sampling.get("pts_seconds"):
            found.append(("at seconds", ", ".join(f"{t:.3f}" for t in times)))
        found.append(("vision tokens", f"{sampling['num_vision_tokens']:,}"))
        found.append(("decoder", sampling.get("decoder")))
    for name in ("decode_seconds", "engine_seconds"):
        if seconds.get(name) is not None:
            found.append((name.removesuffix("_seconds"), f"{seconds[name]:.3f} s"))
    if seconds.get("bytes_read"):
        found.append(("read", f"{seconds['bytes_read']:,} bytes"))
    found += [("run", row["run_id"]), ("recipe", row["recipe_id"])]
    found += [(f"attribute {key}", value) for key, value in _attributes(row).items()]
    return [(name, str(value)) for name, value in found if value not in (None, "")]


def mark_times(row: Row) -> list[float]:
    """The times at which something is marked in the picture."""
    return [mark["pts"] for mark in _marks(row) if mark["pts"] is not None]


def _marks(row: Row) -> Iterator[dict[str, Any]]:
    """Everything that has a place: ``kind, label, pts`` and ``box`` or ``point``, in pixels."""
    for found in row.get("objects") or []:
        yield _mark("object", found["label"], found, found["box"])
    for found in row.get("text_spans") or []:
        if found.get("box"):
            yield _mark("text", found["text"], found, found["box"])
    for found in row.get("points") or []:
        point = [found["point"]["x"], found["point"]["y"]]
        yield _mark("point", found["label"], found) | {"point": point}
    for found in row.get("tracks") or []:
        name = found["label"] + (f" {found['track_id']}" if found["track_id"] else "")
        for at in found["boxes"]:
            yield _mark("track", name, at, at["box"])
    for found in row.get("objects_3d") or []:
        if found["projected_box"]:
            yield _mark("object in space", found["label"], found, found["projected_box"])
    for found in (row.get("document") or {}).get("blocks") or []:
        yield _mark("block", found["kind"], {}, found["box"])
    for found in row.get("tool_calls") or []:
        if found["point"]:
            point = [found["point"]["x"], found["point"]["y"]]
            yield _mark("point", found["name"], {}) | {"point": point}


def _mark(
    kind: str, label: str, found: dict[str, Any], box: dict[str, float] | None = None
) -> dict[str, Any]:
    mark = {"kind": kind, "label": label[:200], "pts": found.get("pts_seconds")}
    return mark | ({"box": [box[key] for key in ("x1", "y1", "x2", "y2")]} if box else {})


def _events(row: Row) -> list[dict[str, Any]]:
    """Events, and the moments of a query."""
    moments = [found | {"caption": "moment"} for found in row.get("moments") or []]
    return [
        {
            "start": event["start_seconds"],
            "end": event["end_seconds"],
            "caption": event.get("caption") or "",
        }
        for event in [*(row.get("events") or []), *moments]
    ]


def _texts(row: Row) -> Iterator[tuple[str, str]]:
    """Answers that are text, beside the caption."""
    if row.get("ocr"):
        yield "ocr", row["ocr"]
    if row.get("fields"):
        yield "fields", "\n".join(f"{key}: {value}" for key, value in row["fields"])
    if row.get("document"):
        yield "document", row["document"]["text"]
    if row.get("tool_calls"):
        calls = [f"{call['name']} {call['arguments']}" for call in row["tool_calls"]]
        yield "tool_calls", "\n".join(calls)
    if row.get("custom"):
        yield "custom", row["custom"]


def _href(uri: str) -> str | None:
    """Where a browser finds the original, if it can."""
    if uri.startswith(("https://", "http://")):
        return None if "?..." in uri else uri
    if uri.startswith("/"):
        return "file://" + quote(uri)
    return None


def _attributes(row: Row) -> dict[str, Any]:
    try:
        found = json.loads(row.get("attributes") or "{}")
    except (ValueError, RecursionError):
        return {}
    return {k: shown(str(v)) for k, v in found.items()} if isinstance(found, dict) else {}


def _length(sampling: dict[str, Any]) -> float | None:
    start, end = sampling.get("start_seconds"), sampling.get("end_seconds")
    return None if start is None or end is None or not math.isfinite(end) else end - start


def _sum(answers: list[dict[str, Any]], name: str) -> int:
    return sum(answer.get(name) or 0 for answer in answers)


def _joined(*names: str | None) -> str:
    return ", ".join(filter(None, names))


def _cut(text: str | None) -> str | None:
    if text is None or len(text) <= _SHOWN_CHARS:
        return text
    return f"{text[:_SHOWN_CHARS]}\n... and {len(text) - _SHOWN_CHARS:,} more characters"
