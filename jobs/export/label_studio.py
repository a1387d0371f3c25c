"""Label Studio: write rows as tasks with predictions, and read corrected tasks as gold."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from jobs.console.json_values import json_text
from jobs.export.source import HAS_NO_ADDRESS, Files, Source, has_address
from jobs.results.read import Row
from pipeline.storage.parquet import parse_json
from pipeline.storage.storage import Storage
from pipeline.tasks.registry import TASKS
from schemas.errors import UserError
from schemas.shown import redact_uri
from schemas.task import MetricKind

_NOT_XML = re.compile(r"[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_LOCAL = "/data/local-files/?d="
_TRANSCRIPTION = """
  <TextArea name="transcription" toName="image" perRegion="true" whenLabelValue="text"/>"""
_EVENT_CAPTION = """
  <TextArea name="event_caption" toName="video" perRegion="true"/>"""


def _tasks(*kinds: MetricKind) -> list[str]:
    """Return the names of the tasks that have one of these metrics."""
    return [name for kind in kinds for name, task in TASKS.items() if task.metric == kind]


_LABEL_BOXES, _TEXT_BOXES = _tasks("label_boxes"), _tasks("text_boxes")
_EVENTS, _TEXTS = _tasks("events"), _tasks("caption", "text")
_Texts = dict[tuple[str, str], list[str]]
"""(region id, control) -> lines of text."""


def label_studio(source: Source) -> Files:
    """Tasks with predictions: ``images.json`` and ``videos.json``, each with its config.

    Media are not copied: s3:// and https:// uris stay, local files become Label Studio's local
    files, whose document root must be ``/``. A video has no boxes, only events and texts.
    """
    images, videos, labels = [], [], set()
    for row in source.rows:
        media = row.get("media")
        if not media or not row.get("sampling"):
            source.skipped.append((row["uri"], "failed" if row["error"] else "a conversation"))
        elif not has_address(row):
            source.skipped.append((row["uri"], HAS_NO_ADDRESS))
        elif media["media_type"] == "image":
            images.append(_task(row, "image", {}, _image_results(row)))
            labels |= {
                _label(found["label"]) for name in _LABEL_BOXES for found in row.get(name) or []
            }
        else:
            fps = media.get("average_fps") or 25.0
            videos.append(_task(row, "video", {"fps": fps}, _video_results(row, fps)))
    if images:
        yield "images.json", _json(images)
        yield "images.xml", _image_config(sorted(labels) or ["object"]).encode()
    if videos:
        yield "videos.json", _json(videos)
        yield "videos.xml", _video_config().encode()


def _image_config(labels: Sequence[str]) -> str:
    lines = ['<Image name="image" value="$image"/>']
    tags = "".join(f'<Label value="{_attribute(label)}"/>' for label in labels)
    lines += [
        f'<RectangleLabels name="{name}" toName="image">{tags}</RectangleLabels>'
        for name in _LABEL_BOXES
    ]
    lines += [
        f'<RectangleLabels name="{name}" toName="image"><Label value="text"/></RectangleLabels>'
        + _TRANSCRIPTION
        for name in _TEXT_BOXES
    ]
    return _view([*lines, *_text_areas("image")])


def _video_config() -> str:
    lines = ['<Video name="video" value="$video" frameRate="$fps"/>']
    lines += [
        f'<TimelineLabels name="{name}" toName="video"><Label value="event"/></TimelineLabels>'
        + _EVENT_CAPTION
        for name in _EVENTS
    ]
    return _view([*lines, *_text_areas("video")])


def _text_areas(media: str) -> list[str]:
    return [f'<TextArea name="{name}" toName="{media}" rows="3"/>' for name in _TEXTS]


def _view(lines: Sequence[str]) -> str:
    return "".join(["<View>\n", *(f"  {line}\n" for line in lines), "</View>\n"])


def _task(
    row: Row, kind: str, more: dict[str, Any], results: Iterator[dict[str, Any]]
) -> dict[str, Any]:
    uri, sampling = row["uri"], row["sampling"]
    data = {
        kind: _LOCAL + uri.lstrip("/") if uri.startswith("/") else uri,
        "uri": uri,
        "media_id": row["media_id"],
        "unit_id": row["unit_id"],
        "start_seconds": sampling.get("start_seconds"),
        "end_seconds": sampling.get("end_seconds"),
        "begin_seconds": row["media"].get("begin_seconds") or 0.0,
    }
    prediction = {"model_version": row["recipe_id"], "result": list(results)}
    return {"data": data | more, "predictions": [prediction]}


def _image_results(row: Row) -> Iterator[dict[str, Any]]:
    width, height = row["media"]["width"], row["media"]["height"]
    found = [(name, _label(e["label"]), e) for name in _LABEL_BOXES for e in row.get(name) or []]
    found += [(n, "text", e) for n in _TEXT_BOXES for e in row.get(n) or [] if e["box"]]
    for number, (name, label, each) in enumerate(found):
        x1, y1, x2, y2 = each["box"].values()
        place = {
            "x": 100 * x1 / width,
            "y": 100 * y1 / height,
            "width": 100 * (x2 - x1) / width,
            "height": 100 * (y2 - y1) / height,
            "rotation": 0,
        }
        common = {
            "id": f"{name}-{number}",
            "to_name": "image",
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
        }
        value = place | {"rectanglelabels": [label]}
        yield common | {"from_name": name, "type": "rectanglelabels", "value": value}
        if name in _TEXT_BOXES:
            value = place | {"text": [each["text"]]}
            yield common | {"from_name": "transcription", "type": "textarea", "value": value}
    yield from _texts(row, "image")


def _video_results(row: Row, fps: float) -> Iterator[dict[str, Any]]:
    begin = row["media"].get("begin_seconds") or 0.0
    events = [(name, event) for name in _EVENTS for event in row.get(name) or []]
    for number, (name, event) in enumerate(events):
        # Label Studio counts frames from 1.
        start, end = (
            max(1, round((event[key] - begin) * fps) + 1)
            for key in ("start_seconds", "end_seconds")
        )
        common = {"id": f"{name}-{number}", "to_name": "video"}
        ranges = {"ranges": [{"start": start, "end": max(start, end)}]}
        value = ranges | {"timelinelabels": ["event"]}
        yield common | {"from_name": name, "type": "timelinelabels", "value": value}
        value = ranges | {"text": [event["caption"]]}
        yield common | {"from_name": "event_caption", "type": "textarea", "value": value}
    yield from _texts(row, "video")


def _texts(row: Row, to_name: str) -> Iterator[dict[str, Any]]:
    for name in _TEXTS:
        if row.get(name):
            value = {"text": [row[name]]}
            common = {"id": name, "from_name": name, "to_name": to_name}
            yield common | {"type": "textarea", "value": value}


def gold_rows(uri: str, storage: Storage) -> list[dict[str, Any]]:
    """Read Label Studio's JSON export as rows of gold, one for each annotated task.

    Raises:
        UserError: the file is missing, or is not an export of tasks that ``label_studio`` wrote.
    """
    try:
        tasks = parse_json(storage.read_bytes(uri))
        return [_gold(task) for task in tasks if _last_annotation(task)]
    except FileNotFoundError:
        raise UserError(f"there is no file {redact_uri(uri)}") from None
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(
            f"{redact_uri(uri)} is not the JSON export of a Label Studio project with tasks of "
            f"`reelscribe export`: {error!r}"
        ) from None


def _last_annotation(task: dict[str, Any]) -> dict[str, Any] | None:
    done = [each for each in task["annotations"] if not each.get("was_cancelled")]
    return done[-1] if done else None


def _gold(task: dict[str, Any]) -> dict[str, Any]:
    data, annotation = task["data"], _last_annotation(task)
    assert annotation is not None
    results = annotation["result"]
    row = {key: data[key] for key in ("media_id", "uri", "start_seconds", "end_seconds")}
    texts = {
        (r["id"], r["from_name"]): r["value"]["text"] for r in results if r["type"] == "textarea"
    }
    for name in _TEXTS:
        found = [text for (_, from_name), text in texts.items() if from_name == name]
        row[name] = "\n".join(found[0]) if found else None
    if "video" in data:
        return row | {name: _gold_events(name, results, texts, data) for name in _EVENTS}
    boxes = [r for r in results if r["type"] == "rectanglelabels"]
    for name in _LABEL_BOXES:
        row[name] = [
            {"label": r["value"]["rectanglelabels"][0], "box": _box(r), "pts_seconds": None}
            for r in boxes
            if r["from_name"] == name
        ]
    for name in _TEXT_BOXES:
        row[name] = [
            {"text": _text(texts, r, "transcription"), "box": _box(r), "pts_seconds": None}
            for r in boxes
            if r["from_name"] == name
        ]
    return row


def _gold_events(
    name: str, results: list[dict[str, Any]], texts: _Texts, data: dict[str, Any]
) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = [
        {
            "start_seconds": _seconds(span["start"], data),
            "end_seconds": _seconds(span["end"], data),
            "caption": _text(texts, r, "event_caption"),
        }
        for r in results
        if r["type"] == "timelinelabels" and r["from_name"] == name
        for span in r["value"]["ranges"]
    ]
    return sorted(events, key=lambda event: event["start_seconds"])


def _text(texts: _Texts, region: dict[str, Any], control: str) -> str:
    """Return the text that a person wrote about a region."""
    return "\n".join(texts.get((region["id"], control), [""]))


def _seconds(frame: int, data: dict[str, Any]) -> float:
    return round((frame - 1) / float(data["fps"]) + float(data["begin_seconds"]), 6)


def _box(result: dict[str, Any]) -> dict[str, float]:
    value, width, height = result["value"], result["original_width"], result["original_height"]
    x1, y1 = value["x"] * width / 100, value["y"] * height / 100
    x2, y2 = x1 + value["width"] * width / 100, y1 + value["height"] * height / 100
    return {k: round(v, 3) for k, v in {"x1": x1, "y1": y1, "x2": x2, "y2": y2}.items()}


def _json(tasks: Sequence[dict[str, Any]]) -> bytes:
    return json_text(tasks, indent=1).encode()


def _label(text: str) -> str:
    """Return a label as both an attribute of the config and the tasks have it.

    XML joins white space in attributes, and has no control characters: a parser refuses the file.
    """
    return _NOT_XML.sub("\ufffd", " ".join(text.split()))


def _attribute(text: str) -> str:
    from markupsafe import escape

    return str(escape(text))
