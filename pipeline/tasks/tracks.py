"""Tracks: things in a video, each with its boxes over time."""

import json
from typing import Any

import pyarrow as pa

from pipeline.tasks.boxes import BOX
from pipeline.tasks.named_places import read_named_places
from pipeline.tasks.read_json import fenced
from schemas.task import Parsed, Question, Task, View

_FORMAT = (
    "For each time at which it can be seen, report the time and the bbox coordinates in JSON "
    'format: a list of {"time": seconds, "bbox_2d": [x1, y1, x2, y2], "label": category, '
    '"track_id": number}. The same thing has the same track_id at all times.'
)


def _prompt(question: Question, media_type: str) -> str:
    if question.prompt:
        return question.prompt
    what = f'every "{", ".join(question.labels)}"' if question.labels else "every object"
    return f"Track {what} in the video. {_FORMAT}"


def _parse(answer: str, question: Question, view: View) -> Parsed:
    """Read ``[{"time": .., "bbox_2d": [..], "label": .., "track_id": ..}]``.

    Boxes of one label and one id are one track; without ids, all boxes of a label are one. A box
    without a time is left out of no track, with a null time.
    """
    parsed = read_named_places(
        answer,
        view,
        BOX,
        text_name="label",
        text_keys=("label", "name", "category", "text"),
        text_if_missing=question.labels[0] if len(question.labels) == 1 else None,
        id_keys=("track_id", "id", "object_id", "instance_id"),
    )
    if parsed.value is None:
        return parsed
    tracks: dict[tuple[str, str | None], dict[str, Any]] = {}
    for element in parsed.value:
        key = element["label"], element["id"]
        track = {"label": element["label"], "track_id": element["id"], "boxes": []}
        place = {name: element[name] for name in ("pts_seconds", "box", "box_1000")}
        tracks.setdefault(key, track)["boxes"].append(place)
    for track in tracks.values():
        track["boxes"].sort(key=lambda box: (box["pts_seconds"] is None, box["pts_seconds"] or 0.0))
    return Parsed(value=list(tracks.values()), status=parsed.status, note=parsed.note)


def _write(value: list[dict[str, Any]], question: Question, view: View) -> str:
    items = []
    for track in value:
        if question.labels and track["label"] not in question.labels:
            continue
        for box in track["boxes"]:
            item: dict[str, Any] = {}
            if box["pts_seconds"] is not None:
                item["time"] = round(box["pts_seconds"], 1)
            item |= {"bbox_2d": BOX.write(box, view), "label": track["label"]}
            if track["track_id"] is not None:
                item["track_id"] = track["track_id"]
            items.append(item)
    items.sort(key=lambda item: item.get("time", 0.0))
    return fenced(json.dumps(items, ensure_ascii=False))


_SECONDS = {"description": "PTS of the sampled frame nearest to the answered time", "unit": "s"}
_AT = pa.struct([pa.field("pts_seconds", pa.float64(), metadata=_SECONDS), *BOX.fields])
_TRACK = pa.struct(
    [
        pa.field(
            "label",
            pa.string(),
            nullable=False,
            metadata={"description": "the label, as the model wrote it"},
        ),
        pa.field(
            "track_id",
            pa.string(),
            metadata={"description": "the model's own id, within the unit; null if it gave none"},
        ),
        pa.field(
            "boxes",
            pa.list_(pa.field("element", _AT, nullable=False)),
            nullable=False,
            metadata={"description": "where it is, in the order of time"},
        ),
    ]
)

TASK = Task(
    name="tracks",
    version=1,
    media_types=frozenset({"video"}),
    column=pa.field(
        "tracks",
        pa.list_(pa.field("element", _TRACK, nullable=False)),
        metadata={"description": "things and their boxes over time"},
    ),
    prompt=_prompt,
    parse=_parse,
    write=_write,
)
