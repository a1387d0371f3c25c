"""Label Studio: rows as tasks with predictions to correct, and corrected tasks back as gold."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from jobs.export_source import Files, Source
from jobs.read_annotations import Row
from pipeline.storage import Storage, shown
from schemas.errors import UserError

_LOCAL = "/data/local-files/?d="
_IMAGE_CONFIG = """<View>
  <Image name="image" value="$image"/>
  <RectangleLabels name="objects" toName="image">{labels}</RectangleLabels>
  <RectangleLabels name="text_spans" toName="image"><Label value="text"/></RectangleLabels>
  <TextArea name="transcription" toName="image" perRegion="true" whenLabelValue="text"/>
  <TextArea name="caption" toName="image" rows="3"/>
  <TextArea name="ocr" toName="image" rows="3"/>
</View>
"""
_VIDEO_CONFIG = """<View>
  <Video name="video" value="$video" frameRate="$fps"/>
  <TimelineLabels name="events" toName="video"><Label value="event"/></TimelineLabels>
  <TextArea name="event_caption" toName="video" perRegion="true"/>
  <TextArea name="caption" toName="video" rows="3"/>
  <TextArea name="ocr" toName="video" rows="3"/>
</View>
"""
_TEXTS = ("caption", "ocr")


def label_studio(source: Source) -> Files:
    """Tasks with predictions: ``images.json`` and ``videos.json``, each with its config.

    Media are not copied: s3:// and https:// uris as they are, local ones as Label Studio's local
    files, whose document root must be ``/``. Of videos whole files only: events, caption, text.
    """
    images, videos, labels = [], [], set()
    for row in source.rows:
        media = row.get("media")
        if not media or not row.get("sampling"):
            source.skipped.append(f"{row['uri']}: {'failed' if row['error'] else 'a conversation'}")
        elif media["media_type"] == "image":
            images.append(_task(row, "image", {}, _image_results(row)))
            labels |= {found["label"] for found in row.get("objects") or []}
        else:
            fps = media.get("average_fps") or 25.0
            videos.append(_task(row, "video", {"fps": fps}, _video_results(row, fps)))
    tags = "".join(
        f'<Label value="{_attribute(label)}"/>' for label in sorted(labels) or ["object"]
    )
    if images:
        yield "images.json", _json(images)
        yield "images.xml", _IMAGE_CONFIG.format(labels=tags).encode()
    if videos:
        yield "videos.json", _json(videos)
        yield "videos.xml", _VIDEO_CONFIG.encode()


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
    found = [("objects", each["label"], each) for each in row.get("objects") or []]
    found += [("text_spans", "text", each) for each in row.get("text_spans") or [] if each["box"]]
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
        if name == "text_spans":
            value = place | {"text": [each["text"]]}
            yield common | {"from_name": "transcription", "type": "textarea", "value": value}
    yield from _texts(row, "image")


def _video_results(row: Row, fps: float) -> Iterator[dict[str, Any]]:
    begin = row["media"].get("begin_seconds") or 0.0
    for number, event in enumerate(row.get("events") or []):
        # Its frames count from 1.
        start, end = (
            max(1, round((event[key] - begin) * fps) + 1)
            for key in ("start_seconds", "end_seconds")
        )
        common = {"id": f"events-{number}", "to_name": "video"}
        ranges = {"ranges": [{"start": start, "end": max(start, end)}]}
        value = ranges | {"timelinelabels": ["event"]}
        yield common | {"from_name": "events", "type": "timelinelabels", "value": value}
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
    """Read Label Studio's JSON export as rows of gold, one for each task that was annotated.

    Raises:
        UserError: it is missing, or not such an export of our tasks.
    """
    try:
        tasks = json.loads(storage.read_bytes(uri))
        return [_gold(task) for task in tasks if _last_annotation(task)]
    except FileNotFoundError:
        raise UserError(f"there is no file {shown(uri)}") from None
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(
            f"{shown(uri)} is not the JSON export of a Label Studio project of our tasks: {error!r}"
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
        events: list[dict[str, Any]] = [
            {
                "start_seconds": _seconds(span["start"], data),
                "end_seconds": _seconds(span["end"], data),
                "caption": "\n".join(texts.get((r["id"], "event_caption"), [""])),
            }
            for r in results
            if r["type"] == "timelinelabels"
            for span in r["value"]["ranges"]
        ]
        return row | {"events": sorted(events, key=lambda event: event["start_seconds"])}
    boxes = [r for r in results if r["type"] == "rectanglelabels"]
    return row | {
        "objects": [
            {"label": r["value"]["rectanglelabels"][0], "box": _box(r), "pts_seconds": None}
            for r in boxes
            if r["from_name"] == "objects"
        ],
        "text_spans": [
            {
                "text": "\n".join(texts.get((r["id"], "transcription"), [""])),
                "box": _box(r),
                "pts_seconds": None,
            }
            for r in boxes
            if r["from_name"] == "text_spans"
        ],
    }


def _seconds(frame: int, data: dict[str, Any]) -> float:
    return round((frame - 1) / float(data["fps"]) + float(data["begin_seconds"]), 6)


def _box(result: dict[str, Any]) -> dict[str, float]:
    value, width, height = result["value"], result["original_width"], result["original_height"]
    x1, y1 = value["x"] * width / 100, value["y"] * height / 100
    x2, y2 = x1 + value["width"] * width / 100, y1 + value["height"] * height / 100
    return {k: round(v, 3) for k, v in {"x1": x1, "y1": y1, "x2": x2, "y2": y2}.items()}


def _json(tasks: Sequence[dict[str, Any]]) -> bytes:
    return json.dumps(tasks, ensure_ascii=False, indent=1).encode()


def _attribute(text: str) -> str:
    from markupsafe import escape

    return str(escape(" ".join(text.split())))
