"""A row of the table as JSON values for the page; the page treats them as untrusted text.

A unit has an index entry, for search, filters, order and charts, and details, which the page loads
when it shows the unit.
"""

import json
import math
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from jobs.evaluate.unit_scores import Scored
from jobs.results.read import Row, attributes_of
from pipeline.tasks.columns import draw, questions_by_name
from pipeline.tasks.registry import TASKS
from schemas.errors import ErrorType
from schemas.shown import redact_text
from schemas.task import Drawing, Question

_SEARCHED_CHARS = 1000
_SHOWN_CHARS = 20_000
_ADVICE = {kind.value: kind.advice for kind in ErrorType}


def index_entry(
    row: Row, scored: Scored | None, questions: Mapping[str, Question]
) -> dict[str, Any]:
    """Return the index entry of a unit. ``text`` is searched; missing numbers are None.

    questions: those of the table, by name.
    """
    answers = row.get("responses") or []
    drawings = _drawings(row, questions)
    marks = _marks(drawings)
    seconds = row.get("timings") or {}
    sampling = row.get("sampling") or {}
    labels = sorted({mark["label"] for mark in marks if mark["kind"] not in ("text", "block")})
    words = [name_of(row), row["uri"], *(text for _, text in _headlines(drawings)), *_notes(row)]
    words += [mark["label"] for mark in marks] + [e["caption"] for e in _events(drawings)]
    words += [drawing.text for drawing in drawings.values()]
    return {
        "name": name_of(row),
        "status": row["status"],
        "error": (row.get("error") or {}).get("type"),
        "type": _type(row),
        "num_notes": len(_notes(row)),
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


def unit_values(
    row: Row,
    parts: list[dict[str, Any]],
    scored: Scored | None,
    questions: Mapping[str, Question],
) -> dict[str, Any]:
    """Return the details of a unit. parts: its pictures, as ``report`` makes them."""
    error = row.get("error")
    drawings = _drawings(row, questions)
    gold = _drawings(scored.answers if scored else {}, questions)
    return {
        "id": row["unit_id"],
        "uri": row["uri"],
        "href": href(row["uri"]),
        "notes": _notes(row),
        "turns": _turns(row),
        "parts": parts,
        "error": error and error | {"advice": _ADVICE.get(error["type"], "")},
        "headlines": [[task, cut(text)] for task, text in _headlines(drawings)],
        "texts": [[task, cut(d.text)] for task, d in drawings.items() if d.text],
        "events": _events(drawings),
        "marks": _marks(drawings),
        "answers": [
            answer | {key: cut(answer.get(key)) for key in ("prompt", "raw_text", "reasoning")}
            for answer in row.get("responses") or []
        ],
        "facts": [fact for fact in facts(row) if fact[0] != "note"],
        "gold": {
            "texts": [
                [task, text]
                for task, drawing in gold.items()
                for text in (drawing.headline, drawing.text)
                if text is not None
            ],
            "events": _events(gold),
            "marks": _marks(gold),
        },
    }


def name_of(row: Row) -> str:
    """Return a short name: the last two parts of the uri's path, or a conversation's media_id."""
    path = row["uri"].partition("?")[0].rstrip("/")
    return "/".join(path.split("/")[-2:]) or row["media_id"]


def facts(row: Row) -> list[tuple[str, str]]:
    """Return facts about a unit's media, frames and run: (name, text)."""
    media, sampling = row.get("media") or {}, row.get("sampling") or {}
    seconds = row.get("timings") or {}
    found: list[tuple[str, Any]] = [("unit", row["unit_id"]), ("media", row["media_id"])]
    if media:
        found.append(("file", _joined(media.get("container"), media.get("codec"))))
        found.append(("size", f"{media['width']} × {media['height']} px"))
        if media.get("rotation"):
            found.append(("rotation", f"{media['rotation']}°"))
        if media.get("is_mirrored"):
            found.append(("mirrored", "left to right"))
        found += [("note", note) for note in media.get("notes") or ()]
        if media.get("duration_seconds") is not None:
            found.append(("duration", f"{media['duration_seconds']:.3f} s"))
        if media.get("average_fps"):
            cadence = ", variable" if media.get("is_vfr") else ""
            found.append(("frame rate", f"{media['average_fps']:.3f}{cadence}"))
    if sampling:
        if sampling.get("end_seconds") is not None:
            span = f"{sampling['start_seconds']:.3f} to {sampling['end_seconds']:.3f} s"
            found.append(("time span", span))
        size = f"{sampling['resized_width']} × {sampling['resized_height']} px"
        found.append(("frames", f"{sampling['num_frames']} of {size}"))
        if times := sampling.get("pts_seconds"):
            found.append(("frame times", ", ".join(f"{t:.3f}" for t in times)))
        found.append(("vision tokens", f"{sampling['num_vision_tokens']:,}"))
        found.append(("decoder", sampling.get("decoder")))
    for name in ("decode_seconds", "engine_seconds"):
        if seconds.get(name) is not None:
            found.append((name.removesuffix("_seconds"), f"{seconds[name]:.3f} s"))
    if seconds.get("bytes_read"):
        found.append(("bytes read", f"{seconds['bytes_read']:,}"))
    found += [("run", row["run_id"]), ("recipe", row["recipe_id"])]
    attributes = attributes_of(row).items()
    found += [(f"attribute {key}", redact_text(str(value))) for key, value in attributes]
    return [(name, str(value)) for name, value in found if value not in (None, "")]


def mark_times(row: Row) -> list[float]:
    """Return the PTS in seconds of all marks."""
    return [
        mark.pts_seconds
        for drawing in _drawings(row, questions_by_name()).values()
        for mark in drawing.marks
        if mark.pts_seconds is not None
    ]


def _drawings(values: Mapping[str, Any], questions: Mapping[str, Question]) -> dict[str, Drawing]:
    """Return name -> drawing of each task that has a value, in a row or in gold's answers."""
    found = {name: values.get(name) for name in questions}
    return {
        name: draw(value, questions[name]) for name, value in found.items() if value is not None
    }


def _headlines(drawings: Mapping[str, Drawing]) -> list[tuple[str, str]]:
    """Return (task, headline) of each drawing that has one."""
    return [(task, drawing.headline) for task, drawing in drawings.items() if drawing.headline]


def headline_of(row: Row, questions: Mapping[str, Question]) -> str:
    """Return the first headline of a row; else its first text; else an empty text."""
    drawings = _drawings(row, questions)
    texts = [text for _, text in _headlines(drawings)]
    return next(iter([*texts, *filter(None, (d.text for d in drawings.values()))]), "")


def _type(row: Row) -> str | None:
    """Return image, video or conversation; None if the media could not be read."""
    is_chat = bool(row.get("parts")) or not row["uri"] or row.get("chat") is not None
    found: str | None = (row.get("media") or {}).get("media_type")
    return found or ("conversation" if is_chat else None)


def _notes(row: Row) -> list[str]:
    """Return what was unusual about the media, and what was done about it."""
    found = list((row.get("media") or {}).get("notes") or ())
    for k, part in enumerate(row.get("parts") or (), 1):
        found += [f"media {k}: {note}" for note in part["media"].get("notes") or ()]
    return found


def _turns(row: Row) -> list[tuple[str, str]]:
    """Return the turns of a conversation: (role, text); an image or a video stands as its type."""
    if _type(row) != "conversation":
        return []
    for answer in row.get("responses") or ():
        try:
            turns = json.loads(answer["prompt"])
            return [(str(turn["role"]), cut(_turn(turn["content"])) or "") for turn in turns]
        except (ValueError, TypeError, KeyError, RecursionError):
            continue
    return []


def _turn(content: Any) -> str:
    if isinstance(content, str):
        return content
    parts = [part["text"] if part["type"] == "text" else f"[{part['type']}]" for part in content]
    return "\n".join(map(str, parts))


def _marks(drawings: Mapping[str, Drawing]) -> list[dict[str, Any]]:
    """Return the marks as JSON: ``kind, label, pts`` and ``box`` or ``point``, in pixels."""
    marks = []
    for task, drawing in drawings.items():
        for mark in drawing.marks:
            label = f"{mark.label} {mark.track_id}" if mark.track_id else mark.label
            place = {"box": list(mark.box)} if mark.box else {"point": list(mark.point or ())}
            kind = TASKS[task].mark_kind  # questions with their own names have no marks
            marks.append({"kind": kind, "label": label[:200], "pts": mark.pts_seconds, **place})
    return marks


def _events(drawings: Mapping[str, Drawing]) -> list[dict[str, Any]]:
    return [
        {"start": event.start_seconds, "end": event.end_seconds, "caption": event.caption}
        for drawing in drawings.values()
        for event in drawing.events
    ]


def href(uri: str) -> str | None:
    """Return a url of the original for a browser; None if there is none."""
    if uri.lower().startswith(("https://", "http://")):
        return None if "?..." in uri else uri
    if uri.startswith("/"):
        return "file://" + quote(uri)
    return None


def _length(sampling: dict[str, Any]) -> float | None:
    start, end = sampling.get("start_seconds"), sampling.get("end_seconds")
    return None if start is None or end is None or not math.isfinite(end) else end - start


def _sum(answers: list[dict[str, Any]], name: str) -> int:
    return sum(answer.get(name) or 0 for answer in answers)


def _joined(*names: str | None) -> str:
    return ", ".join(filter(None, names))


def cut(text: str | None) -> str | None:
    """Return a text, or the start of a very long one and the number of characters left out."""
    if text is None or len(text) <= _SHOWN_CHARS:
        return text
    return f"{text[:_SHOWN_CHARS]}\n... and {len(text) - _SHOWN_CHARS:,} more characters"
