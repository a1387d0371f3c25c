"""Tracks: things in a video, each with its boxes over time."""

import json
from random import Random
from typing import Any

import pyarrow as pa

from pipeline.tasks.answers.boxes import BOX, corners_of
from pipeline.tasks.answers.labelled_places import labelled, read_labelled
from pipeline.tasks.answers.read_json import fenced
from pipeline.tasks.answers.simulate import fenced_json, random_box, random_label, random_span
from schemas.tables.columns import described
from schemas.task import Drawing, Mark, Parsed, Question, Task, View

_FORMAT = (
    "For each time at which it can be seen, report the time and the bbox coordinates in JSON "
    'format: a list of {"time": seconds, "bbox_2d": [x1, y1, x2, y2], "label": category, '
    '"track_id": number}. The same thing has the same track_id at all times.'
)
_PLACES = labelled(BOX, id_keys=("track_id", "id", "object_id", "instance_id"))


def _prompt(question: Question, media_type: str) -> str:
    if question.prompt:
        return question.prompt
    what = f'every "{", ".join(question.labels)}"' if question.labels else "every object"
    return f"Track {what} in the video. {_FORMAT}"


def _parse(answer: str, question: Question, view: View) -> Parsed:
    """Read ``[{"time": .., "bbox_2d": [..], "label": .., "track_id": ..}]``.

    Boxes with the same label and id are one track; without ids, all boxes of a label are one track.
    A box without a time is kept, with a null time.
    """
    parsed = read_labelled(answer, question, view, form=_PLACES)
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


def _simulate(question: Question, view: View, chance: Random) -> str:
    label, times = random_label(question, chance), random_span(view, chance)
    return fenced_json(
        [{"time": t, "bbox_2d": random_box(chance), "label": label, "track_id": 1} for t in times]
    )


def _draw(value: list[dict[str, Any]]) -> Drawing:
    marks = (
        Mark(
            label=track["label"],
            track_id=track["track_id"],
            pts_seconds=box["pts_seconds"],
            box=corners_of(box["box"]),
        )
        for track in value
        for box in track["boxes"]
    )
    return Drawing(marks=tuple(marks))


_SECONDS = {"description": "PTS of the sampled frame nearest to the answered time", "unit": "s"}
_AT = pa.struct([pa.field("pts_seconds", pa.float64(), metadata=_SECONDS), *BOX.fields])
_TRACK = pa.struct(
    [
        described("label", pa.string(), "the label, as the model wrote it", nullable=False),
        described(
            "track_id", pa.string(), "the model's own id, within the unit; null if it gave none"
        ),
        described(
            "boxes",
            pa.list_(pa.field("element", _AT, nullable=False)),
            "where it is, ascending by time",
            nullable=False,
        ),
    ]
)

TASK = Task(
    name="tracks",
    version=1,
    media_types=frozenset({"video"}),
    column=described(
        "tracks",
        pa.list_(pa.field("element", _TRACK, nullable=False)),
        "things and their boxes over time",
    ),
    prompt=_prompt,
    parse=_parse,
    write=_write,
    simulate=_simulate,
    draw=_draw,
    mark_kind="track",
    metric=None,
    subtitles=None,
    is_prose=False,
)
