"""Lists of things with a label and a place, which several tasks share."""

from collections import Counter
from typing import Any

from pipeline.tasks.answers.named_places import (
    NamedPlaces,
    Place,
    read_named_places,
    write_named_places,
)
from pipeline.tasks.answers.read_json import join_notes
from schemas.task import AnswerStatus, Parsed, Question, View

_MAX_LABEL_CHARS = 40


def labelled(place: Place, id_keys: tuple[str, ...] = ()) -> NamedPlaces:
    """Return the format ``[{"bbox_2d": [..], "label": ..}]`` for a kind of place."""
    english = ("label", "name", "category", "text", "object_name", "class", "class_name")
    keys = (*english, "标签", "名称", "类别")
    return NamedPlaces(place=place, text_name="label", text_keys=keys, id_keys=id_keys)


def requested_things(question: Question, media_type: str) -> str:
    """Return the part of a prompt that names the things to find: the question's labels, or all."""
    if not question.labels:
        return f"every object in the {media_type}"
    labels = ", ".join(question.labels)
    return f'every instance that belongs to the following categories: "{labels}"'


def read_labelled(answer: str, question: Question, view: View, *, form: NamedPlaces) -> Parsed:
    """Read a list of labelled places; the only label of a question replaces a missing one.

    A label that was requested in another case gets its requested form. A note names labels that
    were not requested; with ``strict_labels`` their elements are left out.
    """
    only_label = question.labels[0] if len(question.labels) == 1 else None
    parsed = read_named_places(answer, view, form, text_if_missing=only_label)
    if not question.labels or not parsed.value:
        return parsed
    requested = {label.casefold(): label for label in question.labels}
    notes: Counter[str] = Counter()
    elements = []
    for element in parsed.value:
        label = requested.get(element["label"].strip().casefold())
        if label is None:
            left_out = "left out: " if question.strict_labels else ""
            notes[f"{left_out}label not requested: {element['label'][:_MAX_LABEL_CHARS]!r}"] += 1
            if question.strict_labels:
                continue
        elif label != element["label"]:
            notes["label in another case"] += 1
        elements.append({**element, "label": label or element["label"]})
    if not notes:
        return parsed
    note = "; ".join(filter(None, (parsed.note, join_notes(notes))))
    return Parsed(value=elements, status=AnswerStatus.REPAIRED, note=note)


def write_labelled(
    value: list[dict[str, Any]], question: Question, view: View, *, form: NamedPlaces
) -> str:
    """Write the answer that ``read_labelled`` reads, with the question's labels only."""
    kept = [e for e in value if not question.labels or e["label"] in question.labels]
    return write_named_places(kept, view, form)
